"""A tiny pipeline in a folder, adapters for it, and plans over them; also run as a program, to be killed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.models import tiny_sd

GRID = {"grid": {"mix": ["a:1", "b:0.5,schedule=window(0.5, 1)", "a:0.5, c:1", ""], "seed": "1..2"}}
"""A job of eight pictures that all differ."""


def make_model(folder):
    """Write the pipeline and the adapters a, b and c."""
    pipe = tiny_sd()
    pipe.save_pretrained(folder / "model")
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for path, module in pipe.unet.named_modules():
            if path.endswith(("to_q", "to_v")):
                high, wide = module.weight.shape
                tensors[f"unet.{path}.lora_A.weight"] = torch.randn(2, wide, generator=generator)
                tensors[f"unet.{path}.lora_B.weight"] = torch.randn(high, 2, generator=generator)
        save_file(tensors, folder / f"{name}.safetensors")


def plan_for(folder, out, jobs, **more):
    """Make a plan with short, small pictures."""
    return {
        "model": str(folder / "model"),
        "adapters": {name: str(folder / f"{name}.safetensors") for name in "abc"},
        "defaults": {"prompt": "a castle", "steps": 2, "size": "32x32"},
        "output": {"folder": str(out), **more.pop("output", {})},
        "jobs": jobs,
        **more,
    }


def statuses(plan, **options):
    """Run a plan, and count what became of its pictures."""
    from lora_mixer.batches import run_plan

    counts = {"done": 0, "kept": 0, "failed": 0}
    for result in run_plan(plan, **options):
        counts[result.status] += 1
    return counts


def hashes(folder):
    """Give SHA-256 of each picture by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix in (".png", ".jpg", ".webp")
    }


def main():
    """Run the plan in the file named first with the engine named second, and print each event."""
    from lora_mixer.batches import run_plan

    plan = json.loads(Path(sys.argv[1]).read_text())

    def told(event):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    for _ in run_plan(plan, engine=sys.argv[2], workers=int(sys.argv[3]), on_event=told):
        pass


if __name__ == "__main__":
    main()
