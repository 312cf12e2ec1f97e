"""
How long a load takes beside a plain read of its file onto the device, and whether it stays so with many adapters loaded.

``python -m benchmarks.loading`` runs SDXL, Flux.1 and Wan 14B (``--blocks`` of each kind at most) at full layer shapes on a GPU;
``--size sdxl-thin thin-flux thin-wan`` runs all of their layers at small widths on any CPU, where what is left is Python. Every
figure is the least of ``--repeats`` turns: wall time on a GPU, this process's CPU time elsewhere. Files are in the system's cache.

* ``plain read``: ``safetensors.torch.load_file`` onto the device;
* ``first``: a mixer's first load of a kind of file, ``again``: the loads after it, of other files of that kind;
* ``kept``: ``activate=False``; ``in effect``: the default;
* ``number N``: the load of one more adapter where N - 1 are loaded.

``--profile`` prints where a load's time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import platform
import pstats
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from benchmarks import families, models
from lora_mixer import LoraMixer

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = 4
_THIN = {
    "thin-flux": (
        "flux",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
        },
    ),
    "thin-wan": (
        "wan",
        {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 16, "freq_dim": 16},
    ),
}
SIZES = ("sdxl", "flux", "wan", "sdxl-thin", *_THIN)


def prepared(
    name: str, folder: Path, device: str, dtype: torch.dtype, blocks: int | None
) -> tuple[Any, dict[str, list[Path]]]:
    """Make a pipeline and files for it, by the spelling of their keys."""
    if name.startswith("sdxl"):
        pipe = models.pipeline(name, device, dtype)
        paths = [folder / f"{number}.safetensors" for number in range(FILES)]
        for number, path in enumerate(paths):
            models.write_kohya(pipe, path, number)
        return pipe, {"kohya": paths}
    kind, narrow = _THIN.get(name, (name, {}))
    size = families.SIZES[kind]
    config = {**size.config, **narrow}
    config |= {key: min(blocks, config[key]) for key in size.depths} if blocks else {}
    pipe = families.pipeline(size, config, device, dtype)
    pairs = [families.write(size, pipe.transformer, folder, seed, dtype) for seed in range(FILES)]
    return pipe, {"original": [one for one, _ in pairs], "diffusers": [other for _, other in pairs]}


class Timer:
    """Times calls: wall time on a GPU, work included that it does behind the caller's back, else CPU time."""

    def __init__(self, device: str, repeats: int) -> None:
        """Take the device and how often to repeat."""
        self._cuda = device == "cuda"
        self._repeats = repeats

    def once(self, call: Callable[[], object]) -> float:
        """Time one call in seconds."""
        gc.collect()
        if not self._cuda:
            start = time.process_time()
            call()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def least(self, call: Callable[[], object]) -> float:
        """Return the least of several turns."""
        return min(self.once(call) for _ in range(self._repeats))


def measure(
    pipe: Any, paths: list[Path], device: str, repeats: int, resident: int, *, profile: bool
) -> dict[str, Any]:
    """Time loads of files of one kind; the pipeline is left as it was."""
    timer = Timer(device, repeats)
    turn = iter(range(10**9))
    mixer = LoraMixer(pipe)

    def load(*, activate: bool = True) -> None:
        number = next(turn)
        mixer.load_lora_weights(paths[number % FILES], f"a{number}", activate=activate)

    out: dict[str, Any] = {"file MB": paths[0].stat().st_size / 1e6}
    plain = out["plain read s"] = timer.least(lambda: load_file(paths[0], device=device))
    out["first, in effect s"] = timer.once(load)
    for what, activate in (("kept", False), ("in effect", True)):
        took = timer.least(lambda a=activate: load(activate=a))  # type: ignore[misc]
        out[f"again, {what} s"], out[f"again, {what}, x plain read"] = took, took / plain
    mixer.unload_lora_weights()
    times = [timer.once(load) for _ in range(resident)]
    for number in sorted({2, 10, 25, 50, 100} & set(range(resident + 1))):
        out[f"number {number}, in effect s"] = min(times[max(1, number - 3) : number])
    if profile:
        profiler = cProfile.Profile()
        profiler.enable()
        load()
        if device == "cuda":
            torch.cuda.synchronize()
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
    mixer.unload_lora_weights()
    return out


def main() -> None:
    """Read the command line, measure, print tables and, if asked, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES[:3]))
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--blocks", type=int, default=None, help="blocks of each kind at most; default: all")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--resident", type=int, default=25, help="how many adapters are loaded at last")
    parser.add_argument("--profile", action="store_true", help="print where a load's time goes")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    hardware = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()} CPU"
    print(f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    tables: dict[str, Any] = {}
    for name in options.size:
        dtype = (torch.float16 if name == "sdxl" else torch.bfloat16) if cuda else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            pipe, kinds = prepared(name, Path(folder), options.device, dtype, options.blocks)
            for kind, paths in kinds.items():
                table = measure(
                    pipe, paths, options.device, options.repeats, options.resident, profile=options.profile
                )
                tables[f"{name}, {kind}"] = table
                print(f"{name}, {kind}", flush=True)
                for key, value in table.items():
                    print(f"  {key:<36} {value:.4g}", flush=True)
        del pipe
        if cuda:
            torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
