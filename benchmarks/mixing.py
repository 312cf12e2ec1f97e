"""
Load, set, switch, disable, step, memory: lora_mixer, diffusers + PEFT and a plain copy of the same bytes, one process.

Run ``python -m benchmarks.mixing --size sdxl --device cuda`` (or ``--size sd15 --device cpu``). Every figure is a median
over repeats after a warm-up; both sides use the same files and the same pipeline object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from benchmarks.models import pipeline, step_inputs, write_kohya
from lora_mixer import LoraMixer

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS = (1, 2, 4, 8)
PARTS = ("unet", "text_encoder", "text_encoder_2")


class Clock:
    """Times calls on one device, work included that the device does behind the caller's back."""

    def __init__(self, device: str, repeats: int) -> None:
        """Take the device and how often to repeat."""
        self.device = device
        self.repeats = repeats

    def sync(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def once(self, call: Callable[[], object]) -> float:
        """Time one call in seconds."""
        self.sync()
        start = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object], warm: int = 1) -> float:
        """Time a call several times after warming up, and give the median in seconds."""
        for _ in range(warm):
            call()
        return statistics.median(self.once(call) for _ in range(self.repeats))


def step_ratio(clock: Clock, mixer: LoraMixer, step: Callable[[], None]) -> float:
    """Time a step under the present mix against a step of the base, turn by turn, so that drift hits both."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(clock.repeats):
        for mixed in (True, False):
            (mixer.enable_lora if mixed else mixer.disable_lora)()
            step()
            times[mixed].append(clock.once(step))
    mixer.enable_lora()
    return statistics.median(times[True]) / statistics.median(times[False])


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph; it reads the same weights, so it sees every mix without being captured again."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def weights_of(pipe: Any) -> list[torch.Tensor]:
    """List all parameters and buffers of the adapted components."""
    modules = [getattr(pipe, part) for part in PARTS if getattr(pipe, part, None) is not None]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def changed(tensors: list[torch.Tensor], base: list[torch.Tensor]) -> float:
    """Give the share of values that differ from the base."""
    different = sum(int((a != b).sum()) for a, b in zip(tensors, base, strict=True))
    return different / sum(t.numel() for t in tensors)


def measure(  # noqa: PLR0915 -- one table, one process
    size: str, device: str, dtype: torch.dtype, repeats: int, *, side: int | None, peer: bool
) -> dict[str, Any]:
    """Run everything once and give the table."""
    clock = Clock(device, repeats)
    pipe = pipeline(size, device, dtype)
    inputs = step_inputs(size, 2, device, dtype)
    inputs["sample"] = inputs["sample"][..., :side, :side].contiguous()
    out: dict[str, Any] = {}

    @torch.no_grad()
    def step() -> None:
        pipe.unet(**inputs)

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"style{i}.safetensors" for i in range(max(COUNTS))]
        out["file MB"] = max(write_kohya(pipe, path, seed) for seed, path in enumerate(files)) / 1e6
        names = [path.stem for path in files]
        weights = [0.7, -0.3, 0.5, 0.21, 0.9, 0.13, 0.37, 0.41]

        out["plain read s"] = clock.median(lambda: load_file(files[0], device=device))
        base = [t.clone() for t in weights_of(pipe)]
        out["base step s"] = clock.median(step, warm=3)
        replay = captured(step) if device == "cuda" else None
        if replay:
            out["base step as a CUDA graph s"] = clock.median(replay)

        # --- lora_mixer
        mixer = LoraMixer(pipe)
        first = clock.once(lambda: mixer.load_lora_weights(files[0], names[0]))
        mixer.unload_lora_weights()
        loads = []
        for path, name in zip(files, names, strict=True):
            loads.append(clock.once(lambda p=path, n=name: mixer.load_lora_weights(p, n)))  # type: ignore[misc]
        out["ours load, very first s"] = first
        out["ours load s"] = statistics.median(loads)
        out["ours load, each s"] = [round(x, 4) for x in loads]
        slots = mixer._state.controller._bases._all_slots()  # noqa: SLF001
        touched = [slot.live for slot in slots if slot.attribute == "weight"]
        spare = [torch.empty_like(t) for t in touched]
        out["touched GB"] = sum(t.numel() * t.element_size() for t in touched) / 1e9
        out["copy of touched weights s"] = clock.median(lambda: torch._foreach_copy_(spare, touched))  # noqa: F821
        del spare
        for count in COUNTS:
            mixes = [weights[:count], [-w for w in weights[:count]]]
            turn = iter(range(10**9))
            out[f"ours set_adapters of {count} s"] = clock.median(
                lambda n=count, m=mixes, t=turn: mixer.set_adapters(names[:n], m[next(t) % 2])  # type: ignore[misc]
            )
            out[f"ours step, {count} adapters, x base"] = step_ratio(clock, mixer, step)
            if replay:
                out[f"ours step as the same graph, {count} adapters, x base"] = step_ratio(
                    clock, mixer, replay
                )
        mixer.set_mix(dict(zip(names[:4], weights[:4], strict=True)), engine="side")
        out["ours side path, 4 adapters, x base"] = step_ratio(clock, mixer, step)
        if device == "cuda":
            mixer.enable_lora()
            beside = captured(step)
            out["ours side path as a graph, 4 adapters, x base graph"] = (
                clock.median(beside) / out["base step as a CUDA graph s"]
            )
            del beside
        turn = iter(range(10**9))
        out["ours switch of one style s"] = clock.median(
            lambda: mixer.set_adapters(names[next(turn) % 8], 0.8)
        )

        def cycle() -> None:
            mixer.enable_lora()
            mixer.disable_lora()

        enable_and_disable = clock.median(cycle)
        mixer.enable_lora()
        out["ours disable s"] = clock.once(mixer.disable_lora)
        out["ours enable + disable s"] = enable_and_disable
        out["ours share of weights changed after disable"] = changed(weights_of(pipe), base)
        memory = mixer.memory()
        out["ours adapters MB"] = sum(memory.adapters.values()) / 1e6
        out["ours base copies MB"] = sum(memory.base.values()) / 1e6
        if device == "cuda":
            torch.cuda.synchronize()
            out["ours peak GPU GB"] = torch.cuda.max_memory_allocated() / 1e9
        mixer.unload_lora_weights()

        if peer:
            del replay
            out |= measure_peer(pipe, clock, files, names, weights, step, base)
    return out


def measure_peer(
    pipe: Any,
    clock: Clock,
    files: list[Path],
    names: list[str],
    weights: list[float],
    step: Callable[[], None],
    base: list[torch.Tensor],
) -> dict[str, Any]:
    """Run the same on diffusers + PEFT, on the same pipeline object; it is not usable as a base afterwards."""
    out: dict[str, Any] = {}
    base_step = clock.median(step, warm=2)
    loads = []
    for path, name in zip(files, names, strict=True):
        loads.append(clock.once(lambda p=path, n=name: pipe.load_lora_weights(str(p), adapter_name=n)))  # type: ignore[misc]
    out["peer load s"] = statistics.median(loads)
    out["peer load, each s"] = [round(x, 4) for x in loads]
    for count in COUNTS:
        out[f"peer set_adapters of {count} s"] = clock.median(
            lambda n=count: pipe.set_adapters(names[:n], weights[:n])  # type: ignore[misc]
        )
        out[f"peer step, {count} adapters, x base"] = clock.median(step, warm=2) / base_step
    pipe.set_adapters(names[:4], weights[:4])
    out["peer fuse of 4 s"] = clock.once(pipe.fuse_lora)
    out["peer unfuse of 4 s"] = clock.once(pipe.unfuse_lora)
    pipe.unload_lora_weights()
    out["peer share of weights changed after unfuse"] = changed(weights_of(pipe), base)
    return out


def main() -> None:
    """Read the command line, measure, print a table and, if asked, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", choices=("tiny", "sd15", "sdxl", "sdxl-thin"), default="sd15")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default=None)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument(
        "--side", type=int, default=None, help="side of the latents; default: native, 24 on the CPU"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers + PEFT out")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    dtype = getattr(torch, options.dtype or ("float16" if cuda else "float32"))
    repeats = options.repeats or (15 if cuda else 3)
    side = options.side or (None if cuda else 24)  # the layers have their full size
    table = measure(options.size, options.device, dtype, repeats, side=side, peer=not options.no_peer)
    hardware = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()} CPU"
    print(
        f"{options.size}, {dtype}, {hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"latents {side or 'native'}"
    )
    for name, value in table.items():
        print(f"  {name:<46} {value if isinstance(value, list) else format(value, '.4g')}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
