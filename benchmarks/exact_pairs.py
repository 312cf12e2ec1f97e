"""LoHa and LoKr on one layer: as an exact low-rank pair and as a dense change, in milliseconds on one CPU core."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from unittest import mock

import torch

from lora_mixer.algorithms import LayerWeights, loha
from lora_mixer.algorithms.base import rows_and_columns
from lora_mixer.algorithms.loha import LoHa
from lora_mixer.algorithms.lokr import LoKr
from lora_mixer.engines.merged.blend import Term, blend_weight

if TYPE_CHECKING:
    from collections.abc import Callable

_CHOICES = ("lora_mixer.algorithms.loha.pair_is_cheaper", "lora_mixer.algorithms.lokr.pair_is_cheaper")


def _best(job: Callable[[], None], times: int = 15) -> float:
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        job()
        taken.append(time.perf_counter() - start)
    return min(taken) * 1e3


def _row(name: str, weights: LayerWeights, rank: int, shape: tuple[int, ...]) -> None:
    base = torch.randn(shape)
    live = torch.empty_like(base)
    rows, columns = rows_and_columns(shape)
    measured = []
    for as_pair in (True, False):

        def choose(*_: object, answer: bool = as_pair) -> bool:
            return answer

        with mock.patch(_CHOICES[0], choose), mock.patch(_CHOICES[1], choose):
            pair = weights.factors(shape)
            term = Term(weights, pair, 0.7)
            measured.append(_best(lambda term=term: blend_weight(live, base, [term])))  # type: ignore[misc]
    chosen = "pair" if loha.pair_is_cheaper(rank, shape) else "dense"
    share = rank * (rows + columns) / (rows * columns)
    sizes = " x ".join(map(str, shape))
    print(
        f"{sizes:18} {name:18} {share:5.2f}  pair {measured[0]:7.2f}  dense {measured[1]:7.2f}  chosen: {chosen}"
    )


def main() -> None:
    """Print a row for each algorithm, rank and shape."""
    torch.set_num_threads(1)
    for shape in ((1280, 1280), (10240, 1280), (640, 640, 3, 3)):
        rows, columns = rows_and_columns(shape)
        for r in (4, 8, 16):
            a, b = torch.randn(rows, r), torch.randn(r, columns)
            _row(f"LoHa r{r}", LoHa(a, b, a, b, None, None, 1.0, None), r * r, shape)
        for factor, r in ((8, 8), (8, 16), (32, 8)):
            w1, a, b = (
                torch.randn(factor, factor),
                torch.randn(rows // factor, r),
                torch.randn(r, columns // factor),
            )
            lokr = LoKr(w1, None, None, None, a, b, None, 1.0, None)
            _row(f"LoKr f{factor} r{r}", lokr, factor * r, shape)


if __name__ == "__main__":
    main()
