"""Numbers that training starts from: torch's own draws, on the CPU, so that one seed gives one start on every device."""

from __future__ import annotations

import math

import torch


def kaiming(*shape: int) -> torch.Tensor:
    """
    Draw as ``torch.nn.Linear`` does: uniform in +-1/sqrt(inputs).

    Example:
        >>> bool(kaiming(3, 16).abs().max() <= 0.25)
        True
    """
    tensor = torch.empty(*shape)
    torch.nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
    return tensor


def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
    """Draw normally around 0."""
    return torch.randn(*shape) * std


def divisor_near(size: int, wanted: int) -> int:
    """
    Return the divisor of a size that is nearest to a number, the smaller of two.

    Example:
        >>> divisor_near(48, 32), divisor_near(9, 4), divisor_near(6, 32)
        (24, 3, 6)
    """
    if wanted >= size:
        return size
    higher = next(n for n in range(wanted, size + 1) if size % n == 0)
    lower = next(n for n in range(wanted, 0, -1) if size % n == 0)
    return lower if wanted - lower <= higher - wanted else higher
