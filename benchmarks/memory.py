"""
Peak memory and time of one picture from one checkpoint file, with each option that saves memory; each in a process of its own.

Run ``python -m benchmarks.memory --size sdxl --device cuda`` for the table of docs/models.md (a GPU; 10 GB of disk, 10 minutes), or
``--size small --device cpu`` to see that it runs. Every row loads the file and the adapters anew, sets a mix of three, makes a
picture of four steps at the family's own size, and compares it with the first row's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.single_file import SIZES, write

SIDES = {"sdxl": 1024, "sd15": 512, "small": 64}
STEPS = 4
# Options of the model, of the mixer ("keep_base"), and "limit": the memory that there is, in GB, with nothing else said.
ROWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "20 adapters": {"adapters": 20},
    "--dtype float32": {"dtype": "float32"},
    "--dtype bfloat16": {"dtype": "bfloat16"},
    "--keep-base host": {"keep_base": "host"},
    "--keep-base auto": {"keep_base": "auto"},
    "--keep-base none": {"keep_base": "none"},
    "--vae-slicing": {"vae_slicing": True},
    "--vae-tiling": {"vae_tiling": True},
    "--fp8": {"fp8": True},
    "--fp8 --vae-tiling": {"fp8": True, "vae_tiling": True},
    "--offload model": {"offload": "model"},
    "--offload model --vae-tiling": {"offload": "model", "vae_tiling": True},
    "--offload model --fp8 --vae-tiling": {"offload": "model", "fp8": True, "vae_tiling": True},
    "--offload group --vae-tiling": {"offload": "group", "vae_tiling": True},
    "--offload sequential --vae-tiling": {"offload": "sequential", "vae_tiling": True},
    "a limit of 8 GB, nothing said": {"limit": 8},
    "a limit of 6 GB, nothing said": {"limit": 6},
}


def measure(file: Path, size: str, device: str, options: dict[str, Any], picture: Path) -> dict[str, Any]:
    """Make one picture in this process, and say what it took."""
    from lora_mixer import LoraMixer, PictureMaker, PictureRequest, load_pipeline

    cuda = device == "cuda"
    count, keep_base, limit = (options.pop(name, None) for name in ("adapters", "keep_base", "limit"))
    if limit is not None and cuda:
        torch.cuda.set_per_process_memory_fraction(limit * 1e9 / torch.cuda.mem_get_info()[1])
    start = time.perf_counter()
    pipe = load_pipeline(str(file), device=device, **options)
    out: dict[str, Any] = {"load s": time.perf_counter() - start}
    mixer = LoraMixer(pipe, **({} if keep_base is None else {"keep_base": keep_base}))
    start = time.perf_counter()
    for path in sorted((file.parent / "loras").glob("*.safetensors"))[: count or 3]:
        mixer.load_lora_weights(path, adapter_name=path.stem)
    out["adapters s"] = time.perf_counter() - start
    mix = {"style00": 0.7, "style01": 0.4, "style02": -0.3}
    side = SIDES[size]
    request = PictureRequest("a castle on a hill", seed=1, steps=STEPS, width=side, height=side, mix=mix)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        start = time.perf_counter()
        mixer.set_mix(mix)
        out["mix s"] = time.perf_counter() - start
        maker, times = PictureMaker(mixer), []
        for _ in range(2):
            start = time.perf_counter()
            (made,) = maker.make([request])
            times.append(time.perf_counter() - start)
    out["first s"], out["picture s"] = times
    out["said"] = [
        str(each.message) for each in told if type(each.message).__name__ == "SmallerSettingWarning"
    ]
    np.save(picture, np.asarray(made.image))
    out["host GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if cuda:
        torch.cuda.synchronize()
        out["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        out["reserved GB"] = torch.cuda.max_memory_reserved() / 1e9
    return out


def compared(picture: Path, first: Path) -> str:
    """Say how far a picture is from the first row's."""
    if not first.is_file():
        return ""
    a, b = (np.load(path).astype(float) for path in (picture, first))
    if a.shape != b.shape:
        return "another size"
    return (
        "the same"
        if (a == b).all()
        else f"mean {np.abs(a - b).mean():.2f}, most {np.abs(a - b).max():.0f} of 255"
    )


def table(found: dict[str, dict[str, Any]], title: str) -> str:
    """Write the rows as Markdown."""
    columns = ("peak GB", "reserved GB", "host GB", "load s", "adapters s", "mix s", "first s", "picture s")
    lines = [
        title,
        "",
        f"| options | {' | '.join(columns)} | pixels |",
        f"| --- |{' ---: |' * len(columns)} --- |",
    ]
    for name, row in found.items():
        if "error" in row:
            lines.append(
                f"| `{name}` | {' | '.join('' for _ in columns)} | {row['error'].replace('|', '/')} |"
            )
            continue
        cells = [f"{row[column]:.2f}" if column in row else "" for column in columns]
        said = f" ({'; '.join(row['said'])})" if row["said"] else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {row['pixels']}{said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure each row in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--folder", type=Path, help="Where the checkpoint and the adapters are made and kept."
    )
    parser.add_argument(
        "--rows", default=":", help="Which, as a slice: :9 are the first nine, 9: the others."
    )
    parser.add_argument(
        "--out", type=Path, help="A file for the table; what is measured as JSON goes beside it."
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.gettempdir()) / "lora-mixer-memory"
    if given.row is not None:
        file = folder / f"{given.size}.safetensors"
        place = folder / f"{list(ROWS).index(given.row)}.npy"
        print(json.dumps(measure(file, given.size, given.device, dict(ROWS[given.row]), place)))
        return
    write(given.size, folder, given.device, 20)
    found: dict[str, dict[str, Any]] = {}
    card = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    title = f"{given.size} from one file, {SIDES[given.size]} pixels, {STEPS} steps, {card}, torch {torch.__version__}"
    first, _, last = given.rows.partition(":")
    for name in list(ROWS)[int(first or 0) : int(last or len(ROWS))]:
        command = [sys.executable, "-m", "benchmarks.memory", f"--row={name}", "--size", given.size]
        command += ["--device", given.device, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            row = json.loads(done.stdout.splitlines()[-1])
            row["pixels"] = compared(folder / f"{list(ROWS).index(name)}.npy", folder / "0.npy")
        else:
            row = {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
        found[name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        if given.out is not None:  # what is cut off leaves what was measured
            given.out.write_text(table(found, title), encoding="utf-8")
            given.out.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found, title))


if __name__ == "__main__":
    main()
