"""
Draw docs/images/mixes.png: what a mix can say, on the demo pipeline, on a CPU, offline.

Run ``python assets/sheets/mixes.py --out docs/images/mixes.png`` in a checkout that is installed. All pictures have one
seed and one prompt; what differs is the mix, which docs/mixes.md shows beside each.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_mixer import LoraMixer, Mix, demo_adapters, load_demo
from lora_mixer.cli._sheet import Band, contact_sheet
from lora_mixer.mixes import Mask

SIZE = 128
ONE, OTHER = "ink", "neon"


def half(*, left: bool) -> Mask:
    """A mask that is white on one half of the picture."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[:, : SIZE // 2] = float(left)
    mask[:, SIZE // 2 :] = float(not left)
    return Mask.of(mask, feather=4)


def rows() -> list[tuple[str, list[tuple[str, Any]]]]:
    """Name the rows, and the heading and mix of each picture; the last row is one batch."""
    both = f"{ONE}:1, {OTHER}:1"
    left, right = ({"weight": 1, "mask": half(left=side)} for side in (True, False))
    return [
        (
            "in time",
            [
                ("base", {}),
                (f"{ONE}:1", f"{ONE}:1"),
                ("window\n(0, 0.3)", f"{ONE}:1,schedule=window(0, 0.3)"),
                ("window\n(0.3, 1)", f"{ONE}:1,schedule=window(0.3, 1)"),
                ("linear\n(0, 1)", f"{ONE}:1,schedule=linear(0, 1)"),
            ],
        ),
        (
            "two styles",
            [
                (f"{OTHER}:1", f"{OTHER}:1"),
                ("switch\n(tau=1)", f"{both} | switch(tau=1)"),
                ("composite", f"{both} | composite"),
                ("k_lora", f"{both} | k_lora"),
                (f"{ONE} left,\n{OTHER} right", {ONE: left, OTHER: right}),
            ],
        ),
        (
            "one batch",
            [
                (f"{ONE}:1", {ONE: 1}),
                (f"{ONE}:0.5\n{OTHER}:0.5", {ONE: 0.5, OTHER: 0.5}),
                (f"{OTHER}:1", {OTHER: 1}),
                ("watercolor:1", {"watercolor": 1}),
                ("base", {}),
            ],
        ),
    ]


def draw(mixer: LoraMixer, mixes: Any, count: int, prompt: str, seed: int, steps: int) -> list[Image.Image]:
    with mixer.applied(mixes):
        return mixer.pipe(
            [prompt] * count,
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for _ in range(count)],
        ).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--out", default="mixes.png")
    parser.add_argument("--prompt", default="a castle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    pipe = load_demo()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    for name, adapter in demo_adapters().items():
        mixer.load_lora_weights(adapter.path, adapter_name=name)
    mixer.disable_lora()
    bands = []
    for label, cells in rows():
        if label == "one batch":
            mixes = [Mix.of(mix) for _, mix in cells]
            pictures = draw(mixer, mixes, len(mixes), options.prompt, options.seed, options.steps)
        else:
            pictures = [
                draw(mixer, mix, 1, options.prompt, options.seed, options.steps)[0] for _, mix in cells
            ]
        bands.append(Band([heading for heading, _ in cells], [(label, pictures)]))
    contact_sheet(bands).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
