"""
Frobenius norms of products from their factors, in memory that follows the factors and not the product.

Of a low-rank pair only the small core is computed: ||s B A||^2 = s^2 tr((B^T B)(A A^T)), r x r instead of out x in. A file of
a few KB can name a product of any size, so that nothing here makes one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_PARTS_AT_MOST = 16
_BLOCK_AT_MOST = 1 << 18
"""Numbers that stand in memory at one time, of products that are summed piece by piece."""


def pair_norm(up: torch.Tensor, down: torch.Tensor, scale: float) -> float:
    """
    Return the Frobenius norm of ``scale * up @ down`` from its core.

    Args:
        up: (out, rank).
        down: (rank, in).
        scale: The factor.

    Example:
        >>> import torch
        >>> up, down = torch.randn(9, 2).double(), torch.randn(2, 7).double()
        >>> math.isclose(pair_norm(up, down, 0.5), (0.5 * up @ down).norm())
        True
    """
    left, right = up.double(), down.double()
    if left.shape[0] * right.shape[1] <= left.shape[1] ** 2:  # the product is smaller than what stands for it
        return abs(scale) * float((left @ right).norm())
    core = ((left.T @ left) * (right @ right.T).T).sum()  # (r, r): the trace of a product
    return abs(scale) * math.sqrt(max(float(core), 0.0))


def core_norm(up: torch.Tensor, core: torch.Tensor, down: torch.Tensor, scale: float) -> float:
    """
    Return the Frobenius norm of a change with a core, in memory that follows its three tensors and not their product.

    Args:
        up: (out, r).
        core: (r, n, *kernel).
        down: (n, in).
        scale: The factor.

    Example:
        >>> import torch
        >>> up, core, down = torch.ones(3, 2).double(), torch.ones(2, 1, 3, 3).double(), torch.ones(1, 5).double()
        >>> round(core_norm(up, core, down, 0.5) ** 2)  # 3 x 5 x 9 numbers, each of them 1
        135
    """
    # An orthogonal factor changes no norm: what is left of a tall matrix is its triangle.
    left = up.double() if up.shape[0] <= up.shape[1] else torch.linalg.qr(up.double(), mode="r").R
    right = down.double().T
    right = right if right.shape[0] <= right.shape[1] else torch.linalg.qr(right, mode="r").R
    wide = torch.tensordot(left, core.double().flatten(2), 1)  # (out, n, kernel)
    return abs(scale) * float((right @ wide.movedim(1, 0).flatten(1)).norm())


@dataclass(frozen=True)
class Product:
    """
    A matrix (out, in * kernel) as its factors; with a core they are folded kernel by kernel.

    Attributes:
        left: (out, r).
        right: (r, in), or with a core (n, in).
        core: (r, n, kernel), or None.
    """

    left: torch.Tensor
    right: torch.Tensor
    core: torch.Tensor | None = None

    @property
    def kernels(self) -> int:
        """How many matrices (out, in) stand beside each other."""
        return 1 if self.core is None else self.core.shape[2]

    def folded(self, kernels: slice) -> torch.Tensor:
        """Return the right factor of some of them side by side: (r, in * kernels)."""
        right = self.right.double()
        if self.core is None:
            return right
        return torch.einsum("rnk,ni->rki", self.core[:, :, kernels].double(), right).flatten(1)


def hadamard_norm(one: Product, other: Product, work: float = math.inf) -> float | None:
    """
    Return the Frobenius norm of the elementwise product of two products, in memory that follows their factors.

    Args:
        one: The first.
        other: One of the same shape.
        work: How many multiplications there is time for.

    Returns:
        The norm; None where it would take longer.

    Example:
        >>> import torch
        >>> a, b, c, d = (torch.ones(*shape) for shape in ((3, 2), (2, 5), (3, 1), (1, 5)))
        >>> round(hadamard_norm(Product(a, b), Product(c, d)) ** 2)
        60
    """
    (height, first), (width, second) = one.left.shape, (one.right.shape[1], other.left.shape[1])
    parts = first * second
    as_pair = parts <= min(_PARTS_AT_MOST, height, width)
    if hadamard_work(one, other) > work:
        return None
    left, more_left = one.left.double(), other.left.double()
    total = 0.0
    at_once = max(1, _BLOCK_AT_MOST // max(1, width * max(first, second)))
    for number in range(0, one.kernels, at_once):
        some = slice(number, number + at_once)
        right, more_right = one.folded(some), other.folded(some)
        if as_pair:  # columns times columns: a product of two matrices again
            up = torch.einsum("or,os->ors", left, more_left).flatten(1)
            down = torch.einsum("ri,si->rsi", right, more_right).flatten(0, 1)
            total += pair_norm(up, down, 1.0) ** 2
            continue
        rows = max(1, _BLOCK_AT_MOST // max(1, right.shape[1]))
        for start in range(0, height, rows):
            chunk = slice(start, start + rows)
            total += float(((left[chunk] @ right) * (more_left[chunk] @ more_right)).square().sum())
    return math.sqrt(total)


def hadamard_work(one: Product, other: Product) -> int:
    """Return how many multiplications :func:`hadamard_norm` takes, about."""
    (height, first), (width, second) = one.left.shape, (one.right.shape[1], other.left.shape[1])
    if first * second <= min(_PARTS_AT_MOST, height, width):
        each = (height + width) * (first * second) ** 2
    else:
        each = height * width * (first + second)
    folds = sum(p.left.shape[1] * p.right.numel() for p in (one, other) if p.core is not None)
    return one.kernels * (each + folds)
