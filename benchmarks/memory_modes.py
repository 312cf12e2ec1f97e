"""
Where bases are kept, in figures: bytes on the device and in host memory, the first mix, a switch and the way back.

Run ``python -m benchmarks.memory_modes --device cuda --size sd15 sdxl flux`` (one process for each pair of size and mode, since the first
mix of a process has costs of its own), or ``--device cpu --size tiny``. Random weights, four adapters of rank 16 over all linear
layers. Each time stands beside a copy of the same bytes on the device; ``--json FILE`` keeps all figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.models import _filled, pipeline
from lora_mixer import measure_speed
from lora_mixer.engines import KeepBase

FLUX_SHAPES = {(3072, 3072): 200, (12288, 3072): 100, (3072, 15360): 80, (21504, 3072): 38}
"""Flux' linear layers, 418 of them, 23.9 GB in bf16."""


def model(size: str, device: str) -> Any:
    """Make a model of a size with random weights."""
    if size != "flux":
        return pipeline(size, device, torch.float16 if device == "cuda" else torch.float32)
    torch.manual_seed(0)
    shapes = [shape for shape, count in FLUX_SHAPES.items() for _ in range(count)]
    layers = [torch.nn.Linear(columns, rows, bias=False, device="meta") for rows, columns in shapes]
    return _filled(lambda: torch.nn.Sequential(*layers), device, torch.bfloat16)


def one(size: str, mode: KeepBase, device: str, repeats: int) -> dict[str, Any]:
    """Measure one mode at one size."""
    report = measure_speed(model(size, device), repeats=repeats, keep_base=mode)
    return {"size": size, "keep_base": mode, **report.to_json()}


def row(facts: dict[str, Any]) -> str:
    """Write one row of a Markdown table."""
    found = {each["name"]: each for each in facts["measurements"]}
    copy = found["set a mix of 4"]["limit"]
    first = found["set the very first mix, which keeps bases"]["value"]
    cells = [
        facts["size"],
        f"`{facts['keep_base']}`",
        f"{found['memory of kept bases']['value'] / 1e9:.2f}",
        f"{found.get('peak memory of the GPU', {'value': 0})['value'] / 1e9:.2f}",
        f"{first * 1e3:.0f}",
        *(
            f"{found[name]['value'] * 1e3:.1f}"
            for name in ("set a mix of 1", "set a mix of 4", "take it away")
        ),
        f"{copy * 1e3:.1f}",
        f"{found['values that differ from the base afterwards']['value']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", nargs="+", choices=("tiny", "sd15", "sdxl", "flux"), default=["tiny"])
    parser.add_argument("--mode", nargs="+", choices=get_args(KeepBase), default=list(get_args(KeepBase)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--alone", action="store_true", help="measure here, and print JSON only")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(one(options.size[0], options.mode[0], options.device, options.repeats)))
        return
    made = []
    print(
        "| size | `keep_base` | bases, GB | peak, GB | first mix, ms | set 1, ms | set 4, ms | take away, ms | a copy, ms | differ |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in options.size:
        for mode in options.mode:
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory_modes",
                "--alone",
                "--size",
                size,
                "--mode",
                mode,
            ]
            command += ["--device", options.device, "--repeats", str(options.repeats)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"| {size} | `{mode}` | {done.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            made.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(row(made[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
