"""How long one picture and a batch of 8 take on this CPU: wall and CPU seconds, and the load beside it.

PYTHONPATH=. OMP_NUM_THREADS=2 python assets/training/speed.py
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from lora_mixer import load_demo


def main() -> None:
    pipe: Any = load_demo()
    pipe.set_progress_bar_config(disable=True)
    for count, steps in ((1, 1), (1, 20), (8, 20)):  # the first warms up
        seeds = [torch.Generator().manual_seed(i) for i in range(count)]
        wall, cpu = time.perf_counter(), time.process_time()
        pipe(["a rocket"] * count, num_inference_steps=steps, guidance_scale=3.0, generator=seeds)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        load = os.getloadavg()[0]
        print(
            f"{count} picture(s), {steps} steps, {torch.get_num_threads()} threads: "
            f"{wall:.1f} s, {cpu:.1f} CPU s, load {load:.1f}"
        )


if __name__ == "__main__":
    main()
