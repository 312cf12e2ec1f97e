"""
The weight update as pure functions on tensors: W' = W + sum of gain_i * scale_i * up_i @ down_i, rounded once.

Everything is accumulated from a kept base, whatever was set before, so there is no drift and no order of calls: in fp64
on a CPU, in fp32 on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.merged.rounding import write_by_rows, write_rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.algorithms import Factors, LayerWeights


@dataclass(frozen=True)
class Term:
    """
    One adapter's part in one weight.

    Attributes:
        weights: Its tensors and their algorithm.
        pair: Their low-rank form for this weight, or None where there is none.
        gain: The user's weight.
    """

    weights: LayerWeights
    pair: Factors | None
    gain: float


def accumulator(weight: torch.Tensor) -> torch.dtype:
    """
    Return the dtype that sums for a weight are made in.

    fp32 sums of many terms miss the last place of an fp32 weight, and where terms cancel that of any other. CPUs have
    fp64 at half the speed, so there each weight is the true sum, rounded once; most GPUs have next to none.
    """
    return torch.float64 if weight.device.type == "cpu" or weight.dtype == torch.float64 else torch.float32


def blend_weight(
    weight: torch.Tensor, base: torch.Tensor, terms: Sequence[Term], *, transposed: bool = False
) -> None:
    """
    Write ``base`` plus all terms into ``weight``.

    Args:
        weight: Written in place, (out, in, *kernel) in any memory format; (in, out) when ``transposed``.
        base: The clean base, same shape and dtype; read only.
        terms: What to add, in a fixed order (sums are not associative; the caller sorts).
        transposed: Whether the weight is stored (in, out).
    """
    wide = accumulator(weight)
    source = base.to(weight.device)
    clean = source.T if transposed else source
    rows = clean.shape[0]
    low_rank = [(term.pair, term.gain) for term in terms if term.pair is not None]
    dense = [term for term in terms if term.pair is None]
    exactly = weight.device.type == "cpu"
    factors = stacked(low_rank, weight.device, wide) if low_rank else None
    if factors is not None and not dense and not transposed and clean.is_contiguous():
        flat = clean.view(rows, -1)  # (out, in * kernel)
        if weight.dtype == wide and weight.is_contiguous():
            torch.addmm(flat, *factors, out=weight.view(rows, -1))
            return
        if exactly:
            _add_by_rows(weight, flat, *factors)
            return
    converted = clean.dtype != wide
    exact = clean.to(wide) if converted else clean
    total = exact
    if factors is not None:
        flat = exact.reshape(rows, -1)  # (out, in * kernel)
        # in place where the sum is nobody else's: copies cost more than the product does
        in_place = converted and not dense
        total = (flat.addmm_(*factors) if in_place else torch.addmm(flat, *factors)).view(clean.shape)
    if dense:
        total = sum((term.weights.delta(exact, term.gain) for term in dense), start=total)
    write(weight, total.T if transposed else total)


def write(target: torch.Tensor, total: torch.Tensor) -> None:
    """Write a sum into a weight or a bias, each number rounded once."""
    if total.dtype == torch.float64 and target.device.type == "cpu" and total.device.type == "cpu":
        write_rounded(target, total)
    else:
        target.copy_(total)


def _add_by_rows(weight: torch.Tensor, base: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    """Write ``base`` (out, in * kernel) plus ``up @ down`` into a weight on a CPU, some rows at a time."""

    def fill(rows: slice, exact: torch.Tensor) -> None:
        exact.copy_(base[rows])
        exact.addmm_(up[rows], down)

    write_by_rows(weight, base.shape[1], fill)


def stacked(
    pairs: Sequence[tuple[Factors, float]], device: torch.device, wide: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all pairs as one: (out, sum of ranks) with the gains in it, and (sum of ranks, in * kernel)."""
    ups = _joined([pair.up for pair, _ in pairs], 1, device, wide)  # (out, R)
    downs = _joined([pair.down for pair, _ in pairs], 0, device, wide)  # (R, in * kernel)
    gains = [gain * pair.scale for pair, gain in pairs for _ in range(pair.up.shape[1])]
    return ups * torch.tensor(gains, dtype=wide, device=device), downs


def _joined(
    tensors: Sequence[torch.Tensor], dim: int, device: torch.device, wide: torch.dtype
) -> torch.Tensor:
    first = tensors[0]
    if all(x.dtype == first.dtype and x.device == first.device for x in tensors):
        return torch.cat(list(tensors), dim).to(device, wide)  # half the calls for the many small ones
    return torch.cat([x.to(device, wide) for x in tensors], dim)


def bias_change(base: torch.Tensor | None, terms: Sequence[Term]) -> torch.Tensor | None:
    """
    Sum the changes of a bias, in the dtype that a weight's are summed in.

    Args:
        base: The module's clean bias (out,), or None for a module without one.
        terms: The adapters' parts.

    Returns:
        The sum (out,), or None where no adapter changes the bias.
    """
    exact = None if base is None else base.to(accumulator(base))
    parts = [part for term in terms if (part := term.weights.bias_delta(exact, term.gain)) is not None]
    return torch.stack(parts).sum(0) if parts else None  # (out,)
