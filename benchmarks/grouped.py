"""
The GPU's weight update alone: how far from fp64, and how fast beside a copy of the same bytes.

Run ``python -m benchmarks.grouped`` on a GPU. Layers have SDXL's shapes, eight adapters of rank 16 each.
"""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms import Factors
from lora_mixer.engines.merged.blend import exact_matmul
from lora_mixer.engines.merged.grouped import Groups

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {(1280, 1280): 60, (10240, 1280): 6, (1280, 5120): 6, (640, 640): 20, (640, 2048): 10}
GAINS = [0.7, -0.3, 0.5, 0.21, 0.9, 0.13, 0.37, 0.41]
RANK = 16


def layers(
    weight_dtype: torch.dtype, file_dtype: torch.dtype, shapes: dict[tuple[int, int], int]
) -> list[tuple[torch.Tensor, torch.Tensor, list[Factors]]]:
    """Make live weights, bases and pairs."""
    torch.manual_seed(0)
    made = []
    for (rows, columns), count in shapes.items():
        for _ in range(count):
            base = (torch.randn(rows, columns, device="cuda") * 0.02).to(weight_dtype)
            pairs = [
                Factors(
                    (torch.randn(rows, RANK, device="cuda") * 0.02).to(file_dtype),
                    (torch.randn(RANK, columns, device="cuda") / columns**0.5).to(file_dtype),
                    0.5,
                )
                for _ in GAINS
            ]
            made.append((base.clone(), base, pairs))
    return made


def ulps(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Give the distance in units of the last place that the true value has in the dtype."""
    rounded = exact.to(found.dtype)
    info = torch.finfo(found.dtype)
    spacing = 2.0 ** torch.floor(torch.log2(rounded.double().abs().clamp_min(info.tiny))) * info.eps
    return (found.double() - exact).abs() / spacing


def median_ms(call: Callable[[], object], repeats: int = 15) -> float:
    """Time a call on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    """Print one line for each pair of dtypes."""
    print(torch.cuda.get_device_name(), torch.__version__)
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    for weight_dtype, file_dtype in itertools.chain(
        ((half, half), (brain, brain), (brain, half), (half, full), (full, half))
    ):
        made = layers(weight_dtype, file_dtype, {(1280, 1280): 4, (640, 2048): 4})
        groups = Groups()
        for weight, base, pairs in made:
            assert groups.add(weight, base, pairs, range(len(pairs)))  # noqa: S101 -- a benchmark
            weight.fill_(float("nan"))
        with exact_matmul():
            groups.write(GAINS)
        worst, over, absolute = 0.0, 0, 0.0
        for weight, base, pairs in made:
            exact = base.double()
            for gain, pair in zip(GAINS, pairs, strict=True):
                exact = exact + gain * pair.scale * (pair.up.double() @ pair.down.double())
            off = ulps(weight, exact)
            worst, over = max(worst, float(off.max())), over + int((off > 1).sum())
            rounding = (exact.to(weight_dtype).double() - exact).abs()
            absolute = max(absolute, float(((weight.double() - exact).abs() - rounding).max()))
        made = layers(weight_dtype, file_dtype, SHAPES)
        groups = Groups()
        for weight, base, pairs in made:
            groups.add(weight, base, pairs, range(len(pairs)))
        with exact_matmul():
            took = median_ms(lambda: groups.write(GAINS))  # noqa: B023 -- called at once
        spare = [torch.empty_like(weight) for weight, _, _ in made]
        copy = median_ms(lambda: torch._foreach_copy_(spare, [w for w, _, _ in made]))  # noqa: B023
        count = sum(w.numel() for w, _, _ in made)
        print(
            f"weights {weight_dtype}, files {file_dtype}: worst {worst:.3g} ulp, {over} over 1 ulp, excess {absolute:.2e}; "
            f"{took:.2f} ms for {count / 1e6:.0f} M weights, a copy {copy:.2f} ms"
        )


if __name__ == "__main__":
    main()
