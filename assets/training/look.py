"""The 24 held-out subjects as the base draws them, without their names: can each be named?

PYTHONPATH=. python assets/training/look.py docs/images/subjects.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_mixer import demo_adapters, load_demo


def main(out: Path) -> None:
    pipe: Any = load_demo()
    pipe.set_progress_bar_config(disable=True)
    subjects = next(iter(demo_adapters().values())).held_out
    drawn = []
    for at in range(0, len(subjects), 8):
        prompts = [f"a {name}" for name in subjects[at : at + 8]]
        seeds = [torch.Generator().manual_seed(at + i) for i in range(len(prompts))]
        kw = {"num_inference_steps": 20, "guidance_scale": 3.0, "output_type": "np"}
        drawn.append(pipe(prompts, generator=seeds, **kw).images)
    pictures = (np.concatenate(drawn) * 255).round().astype(np.uint8)
    rows = [np.concatenate(list(pictures[i : i + 6]), 1) for i in range(0, len(pictures), 6)]
    Image.fromarray(np.concatenate(rows)).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
