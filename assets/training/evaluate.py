"""Figures of every adapter on held-out subjects, and the contact sheet.

    python evaluate.py --assets assets --out FOLDER [--subjects 8] [--steps 20]

A style's true pictures are the style's function of the base's own pictures, same prompt, same
seed: an adapter of weight 1 should come as near to them as it can. The subject LoRA is compared
with its reference drawings. Prompts carry no trigger words, so that weight 0 is the base.
Writes assets/demo/figures.json, the adapters' previews, and FOLDER/sheet.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from distance import mean_distance, nearest_distance
from merge import Merged
from PIL import Image
from styles import STYLES

WEIGHTS = (0.25, 0.5, 0.75, 1.0)


def draw(
    pipe: Any, prompts: list[str], steps: int, parts: list[tuple[Path, float]] | None = None
) -> np.ndarray:
    """(n, 128, 128, 3) in [0, 1]; picture i always starts from seed i."""
    out: list[np.ndarray] = []
    with Merged(pipe, parts or []):
        for at in range(0, len(prompts), 8):
            part = prompts[at : at + 8]
            seeds = [torch.Generator().manual_seed(at + i) for i in range(len(part))]
            kw = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
            out.append(pipe(part, generator=seeds, **kw).images)
    return np.concatenate(out)


def stylised(style: str, pictures: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    return STYLES[style](x).permute(0, 2, 3, 1).numpy()


def strip(pictures: np.ndarray, columns: int) -> Image.Image:
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))


def references(loras: Path) -> np.ndarray:
    """The subject's drawings: squares in one row."""
    x = np.asarray(Image.open(loras / "lumo.reference.webp").convert("RGB")) / 255
    return np.stack(np.split(x, x.shape[1] // x.shape[0], axis=1))


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--assets", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--subjects", type=int, default=8)
    ap.add_argument("--steps", type=int, default=20)
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    loras = a.assets / "loras"
    table = json.loads((loras / "styles.json").read_text())
    adapters = table["adapters"]
    pipe = DiffusionPipeline.from_pretrained(a.assets / "demo", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    subjects = table["held_out_subjects"][: a.subjects]
    prompts = [f"a {s}" for s in subjects]
    base = draw(pipe, prompts, a.steps)
    figures: dict[str, Any] = {
        "measure": "assets/training/distance.py; prompts 'a SUBJECT', guidance 3, picture i from seed i",
        "steps": a.steps,
        "subjects": subjects,
        "adapters": {},
        "mixes": {},
    }
    columns = {"base": base}
    truths = {}
    for e in adapters:
        name, path, start = e["name"], loras / e["file"], time.time()
        if e["style"] is None:
            own = [f"{e['trigger']}"] * 4
            refs = references(loras)
            plain = draw(pipe, own, a.steps)
            row = [nearest_distance(plain, refs)]
            for w in (0.5, 1.0):
                pictures = draw(pipe, own, a.steps, [(path, w)])
                row.append(nearest_distance(pictures, refs))
            figures["adapters"][name] = {"weights": [0.0, 0.5, 1.0], "distance": [round(d, 4) for d in row]}
        else:
            truth = truths[name] = stylised(e["style"], base)
            row = [mean_distance(base, truth)]
            for w in WEIGHTS:
                pictures = draw(pipe, prompts, a.steps, [(path, w)])
                row.append(mean_distance(pictures, truth))
            columns[name] = pictures
            figures["adapters"][name] = {"weights": [0.0, *WEIGHTS], "distance": [round(d, 4) for d in row]}
        strip(pictures[:8], 4).save(loras / e["preview"], quality=85)
        falls = all(x > y for x, y in itertools.pairwise(row))
        print(
            f"{name}: {[round(d, 3) for d in row]} {'falls' if falls else 'DOES NOT FALL'} {time.time() - start:.0f} s",
            flush=True,
        )
    for one, two in (("pixel", "watercolor"), ("neon", "halftone")):
        paths = {e["name"]: loras / e["file"] for e in adapters}
        pictures = draw(pipe, prompts, a.steps, [(paths[one], 0.5), (paths[two], 0.5)])
        columns[f"{one}+{two}"] = pictures
        entry = {}
        for s, other in ((one, two), (two, one)):
            entry[f"to {s}"] = {
                f"{s} 1.0": round(mean_distance(columns[s], truths[s]), 4),
                "mix 0.5 + 0.5": round(mean_distance(pictures, truths[s]), 4),
                f"{other} 1.0": round(mean_distance(columns[other], truths[s]), 4),
            }
        figures["mixes"][f"{one} + {two}"] = entry
        print(f"{one} + {two}: {entry}")
    (a.assets / "demo" / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    strip(np.concatenate(list(columns.values())), len(prompts)).save(a.out / "sheet.png")


if __name__ == "__main__":
    main()
