"""
Low-rank forms by singular values: the best pair of a given rank, with the error that is made.

By Eckart and Young (1936) no matrix of rank r is nearer in the Frobenius norm than the first r singular triplets. For
a sum of adapters B* A* (out x R times R x in) they come from a core of R x R: with B* = Q_B R_B and A*^T = Q_A R_A,
the singular values of R_B R_A^T are those of B* A*. The full matrix is never built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_mixer.errors import MixError, SaveError


@dataclass(frozen=True)
class LowRankForm:
    """
    A matrix as ``up @ down``.

    Attributes:
        up: (out, rank).
        down: (rank, in).
        error: What was left out, as a share of the Frobenius norm of the whole; 0 where nothing was.

    Example:
        >>> import torch
        >>> LowRankForm(torch.ones(4, 2), torch.ones(2, 3), 0.0).rank
        2
    """

    up: torch.Tensor
    down: torch.Tensor
    error: float

    @property
    def rank(self) -> int:
        """The rank."""
        return self.up.shape[1]


def truncate_pair(
    up: torch.Tensor,
    down: torch.Tensor,
    rank: int | None = None,
    energy: float | None = None,
    sv_ratio: float | None = None,
) -> LowRankForm:
    """
    Return the best form of ``up @ down`` at a lower rank, worked out in the core of R x R in fp64.

    Args:
        up: (out, R).
        down: (R, in).
        rank: The rank wanted; one that the matrix does not reach gives the whole. Beside the others: the most.
        energy: The share of the squared norm to keep: the lowest rank that keeps it is taken.
        sv_ratio: Keep singular values above the largest divided by this.

    Returns:
        The pair, in fp64 for fp64 input and in fp32 otherwise.

    Raises:
        MixError: When none of them is given, or one is impossible.

    Example:
        >>> form = truncate_pair(torch.eye(3), torch.diag(torch.tensor([3.0, 4.0, 0.0])), rank=1)
        >>> form.rank, round(form.error, 3)
        (1, 0.6)
    """
    _check(rank, energy, sv_ratio)
    q_up, r_up = torch.linalg.qr(up.double())  # (out, R), (R, R)
    q_down, r_down = torch.linalg.qr(down.double().T)  # (in, R), (R, R)
    left, values, right = decomposed(r_up @ r_down.T)
    kept = _kept(values, rank, energy, sv_ratio)
    root = values[:kept].sqrt()
    wide = torch.float64 if up.dtype == torch.float64 else torch.float32
    return LowRankForm(
        up=(q_up @ (left[:, :kept] * root)).to(wide),
        down=((root[:, None] * right[:kept]) @ q_down.T).to(wide),
        error=_tail(values, kept),
    )


def truncate(
    matrix: torch.Tensor,
    rank: int | None = None,
    energy: float | None = None,
    sv_ratio: float | None = None,
) -> LowRankForm:
    """
    Return the best form of a full matrix at a lower rank.

    Args:
        matrix: (out, in).
        rank: The rank wanted; beside the others, the most.
        energy: The share of the squared norm to keep.
        sv_ratio: Keep singular values above the largest divided by this.

    Returns:
        The pair, in fp64 for fp64 input and in fp32 otherwise.

    Raises:
        MixError: When none of them is given, or one is impossible.

    Example:
        >>> truncate(torch.ones(4, 6), energy=0.99).rank
        1
    """
    _check(rank, energy, sv_ratio)
    left, values, right = decomposed(matrix.double())
    kept = _kept(values, rank, energy, sv_ratio)
    root = values[:kept].sqrt()
    wide = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    return LowRankForm(
        up=(left[:, :kept] * root).to(wide),
        down=(root[:, None] * right[:kept]).to(wide),
        error=_tail(values, kept),
    )


def decomposed(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return the thin singular value decomposition.

    Args:
        matrix: (n, m).

    Returns:
        ``left`` (n, k), ``values`` (k,) and ``right`` (k, m).

    Raises:
        SaveError: When the matrix holds NaN or Inf, which have none.
    """
    if not bool(matrix.isfinite().all()):
        raise SaveError("a change of weights has values that are not finite, so it has no low-rank form")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


NEGLIGIBLE = 1e-12
"""Singular values up to this share of the largest are rounding, in fp64."""


def pair_of(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return a full matrix as a pair of the least rank that it has in fp64, by its singular values.

    Args:
        matrix: (out, in).

    Returns:
        ``up`` (out, rank) and ``down`` (rank, in), fp64; the rows of ``down`` are orthogonal.

    Example:
        >>> up, down = pair_of(torch.ones(4, 6))
        >>> up.shape, down.shape
        (torch.Size([4, 1]), torch.Size([1, 6]))
    """
    left, values, right = decomposed(matrix.double())
    kept = max(int((values > NEGLIGIBLE * values.max()).sum()), 1)
    return left[:, :kept] * values[:kept], right[:kept]


def _check(rank: int | None, energy: float | None, sv_ratio: float | None) -> None:
    if rank is None and energy is None and sv_ratio is None:
        raise MixError("expected a rank, an energy or a ratio of singular values, got none", argument="rank")
    if rank is not None and rank < 1:
        raise MixError(f"rank must be at least 1, got {rank}", argument="rank")
    if energy is not None and not 0 < energy <= 1:
        raise MixError(f"energy must be above 0 and at most 1, got {energy}", argument="energy")
    if sv_ratio is not None and not sv_ratio >= 1:
        raise MixError(f"sv_ratio must be at least 1, got {sv_ratio}", argument="sv_ratio")


def _kept(values: torch.Tensor, rank: int | None, energy: float | None, sv_ratio: float | None) -> int:
    kept = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        shares = values.square().cumsum(0)
        # rounding must not ask for one more value than there are
        wanted = shares[-1] * energy * (1 - 1e-15)
        kept = min(kept, int((shares < wanted).sum()) + 1)
    if sv_ratio is not None:
        kept = min(kept, max(int((values > values[0] / sv_ratio).sum()), 1))
    return kept


def _tail(values: torch.Tensor, kept: int) -> float:
    whole = float(torch.linalg.vector_norm(values))
    return float(torch.linalg.vector_norm(values[kept:])) / whole if whole else 0.0
