"""Figures of every adapter on held-out subjects, with the library itself.

    python assets/training/evaluate.py [--subjects 8] [--steps 20] [--device cpu]

A style's true pictures are the style's function of the base's own pictures, same prompt, same
seed: an adapter of weight 1 should come as near to them as it can. The subject LoRA is compared
with its reference drawings. Prompts carry no trigger words, so that weight 0 is the base.
Writes assets/demo/figures.json and out/sheet.png (and, with --previews, the adapters' previews),
and prints the table of the model cards. The checkout has to be on Python's path.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distance import mean_distance, nearest_distance
from PIL import Image
from styles import STYLES

from lora_mixer import DemoAdapter, LoraMixer, demo_adapters, load_demo

ASSETS = Path(__file__).resolve().parent.parent
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
MIXES = (("pixel", "watercolor"), ("neon", "halftone"))
MEASURE = (
    "assets/training/distance.py, all five parts; prompts 'a SUBJECT' (the subject adapter: its trigger, four "
    "seeds, to the nearest reference drawing), guidance 3, picture i from seed i"
)


class Artist:
    """Draws batches of 8 with a mix; picture i always starts from seed i."""

    def __init__(self, steps: int, device: str) -> None:
        self.adapters = demo_adapters()
        self.steps = steps
        self.mixer = LoraMixer(load_demo(device=device))
        self.mixer.pipe.set_progress_bar_config(disable=True)
        for name, adapter in self.adapters.items():
            self.mixer.load_lora_weights(adapter.path, adapter_name=name, strict=True)

    def draw(self, prompts: list[str], mix: dict[str, float]) -> np.ndarray:
        """(n, 128, 128, 3) in [0, 1]."""
        self.mixer.set_adapters(list(mix), list(mix.values()))
        out = []
        for at in range(0, len(prompts), 8):
            part = prompts[at : at + 8]
            seeds = [torch.Generator().manual_seed(at + i) for i in range(len(part))]
            kw = {"num_inference_steps": self.steps, "guidance_scale": 3.0, "output_type": "np"}
            out.append(self.mixer.pipe(part, generator=seeds, **kw).images)
        return np.concatenate(out)


def stylised(style: str, pictures: np.ndarray) -> np.ndarray:
    """A style's true pictures."""
    x = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    return STYLES[style](x).permute(0, 2, 3, 1).numpy()


def strip(pictures: np.ndarray, columns: int) -> Image.Image:
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))


def references() -> np.ndarray:
    """The subject's drawings: squares in one row."""
    x = np.asarray(Image.open(ASSETS / "loras" / "lumo.reference.webp").convert("RGB")) / 255
    return np.stack(np.split(x, x.shape[1] // x.shape[0], axis=1))


def entry(distances: list[float]) -> dict[str, Any]:
    return {
        "weights": [0.0, *WEIGHTS],
        "distance": [round(d, 4) for d in distances],
        "falls at every weight": all(x > y for x, y in itertools.pairwise(distances)),
    }


def mixed(
    columns: dict[str, np.ndarray], truths: dict[str, np.ndarray], one: str, two: str
) -> dict[str, Any]:
    """How far the two alone and the mix are from either's true pictures."""
    both = columns[f"{one} + {two}"]
    return {
        f"to {near}": {
            f"{near} 1.0": round(mean_distance(columns[near], truths[near]), 4),
            "mix 0.5 + 0.5": round(mean_distance(both, truths[near]), 4),
            f"{far} 1.0": round(mean_distance(columns[far], truths[near]), 4),
        }
        for near, far in ((one, two), (two, one))
    }


def row(name: str, found: dict[str, Any]) -> str:
    return f"| {name} | " + " | ".join(f"{d:.3f}" for d in found["distance"]) + " |"


def subject_pictures(artist: Artist, adapter: DemoAdapter) -> list[np.ndarray]:
    return [artist.draw([adapter.trigger] * 4, {adapter.name: w} if w else {}) for w in (0.0, *WEIGHTS)]


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", type=Path, default=ASSETS.parent / "out")
    ap.add_argument("--subjects", type=int, default=8)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--previews", action="store_true")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    artist = Artist(a.steps, a.device)
    held_out = next(iter(artist.adapters.values())).held_out[: a.subjects]
    prompts = [f"a {name}" for name in held_out]
    columns = {"base": artist.draw(prompts, {})}
    figures: dict[str, Any] = {
        "measure": MEASURE,
        "steps": a.steps,
        "device": a.device,
        "subjects": list(held_out),
        "adapters": {},
        "mixes": {},
    }
    styles = {
        e["name"]: e["style"] for e in json.loads((ASSETS / "loras" / "styles.json").read_text())["adapters"]
    }
    truths = {name: stylised(style, columns["base"]) for name, style in styles.items() if style}
    for name, adapter in artist.adapters.items():
        if adapter.kind == "subject":
            steps = subject_pictures(artist, adapter)
            found = [nearest_distance(pictures, references()) for pictures in steps]
        else:
            steps = [columns["base"], *(artist.draw(prompts, {name: w}) for w in WEIGHTS)]
            found = [mean_distance(pictures, truths[name]) for pictures in steps]
            columns[name] = steps[-1]
        figures["adapters"][name] = entry(found)
        if a.previews:
            weights = adapter.path / "adapter_model" if adapter.path.is_dir() else ASSETS / "loras" / name
            strip(steps[-1][:8], 4).save(f"{weights}.preview.webp", quality=85)
        print(row(name, figures["adapters"][name]), flush=True)
    for one, two in MIXES:
        columns[f"{one} + {two}"] = artist.draw(prompts, {one: 0.5, two: 0.5})
        figures["mixes"][f"{one} + {two}"] = mixed(columns, truths, one, two)
        print(f"{one} + {two}: {figures['mixes'][f'{one} + {two}']}", flush=True)
    (ASSETS / "demo" / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    strip(np.concatenate(list(columns.values())), len(prompts)).save(a.out / "sheet.png")


if __name__ == "__main__":
    main()
