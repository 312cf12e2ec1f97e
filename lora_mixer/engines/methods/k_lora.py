"""
K-LoRA (arXiv 2502.18461): in each layer the content's or the style's adapter alone, by what their largest elements sum to.

For content c and style s, with r the ranks and D the weight changes at weight 1:

    K       = r_c * r_s
    S_i     = sum of the K largest |D_i| of the layer
    rho     = sum |D_c| / sum |D_s| of each layer
    gamma   = mean of the rho below three times the mean of all rho
    scale   = alpha * t / T + beta, beta 0.5; in the variant s*, that modulo alpha, beta 0.85 alpha
    choice  = content where (S_c / gamma) / (S_s * scale) > 1, else style

S and gamma do not depend on t, so two numbers for each layer are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MixError
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer

_BLOCK = 1 << 22
"""Elements of a weight change that are looked at at a time (16 MiB in fp32)."""


@dataclass(frozen=True)
class Contest:
    """
    What decides in the layers that both adapters change.

    Attributes:
        ratios: S_c / (gamma * S_s) by component and path; the content has the layer while this is above the scale.
    """

    ratios: Mapping[tuple[str, str], float]

    def share(self, layer: BoundLayer, *, content: bool, scale: float) -> float:
        """Return 1 where an adapter has a layer at a scale, else 0; layers that one alone changes are its own."""
        ratio = self.ratios.get((layer.live.component, layer.live.path))
        return 1.0 if ratio is None else float((ratio > scale) == content)


def contest(content: Sequence[BoundLayer], style: Sequence[BoundLayer]) -> Contest:
    """
    Sum up the adapters' largest elements, layer by layer and block by block.

    Args:
        content: The layers of the content's adapter in denoisers.
        style: Those of the style's.

    Raises:
        MixError: When a layer that both change has no rank in one of them.
    """
    others = {(layer.live.component, layer.live.path): layer for layer in style}
    places = [(layer.live.component, layer.live.path) for layer in content]
    both = [(layer, others[place]) for layer, place in zip(content, places, strict=True) if place in others]
    odd = [
        f"{x.live.component}.{x.live.path} ({x.weights.algorithms[0]})"
        for pair in both
        for x in pair
        if x.weights.rank is None
    ]
    if odd:
        raise MixError(f"k_lora goes by ranks, and there is none in {first_of(odd, 3)}")
    fused = [x for pair in both for x in pair if x.siblings is not None]
    if fused:
        shown = f"{fused[0].live.component}.{fused[0].live.path} ({'+'.join(fused[0].weights.algorithms)})"
        raise MixError(f"k_lora compares layers one by one, and {shown} is computed from several at once")
    sums = {}
    quotients = []
    for one, other in both:
        count = (one.weights.rank or 1) * (other.weights.rank or 1)
        (top, whole), (other_top, other_whole) = (
            magnitude(x.weights, x.live.shape, x.live.weight, count) for x in (one, other)
        )
        sums[one.live.component, one.live.path] = (top, other_top)
        quotients.append(whole / other_whole if other_whole else float("inf"))
    gamma = typical(quotients)
    return Contest({place: _ratio(top, other * gamma) for place, (top, other) in sums.items()})


def typical(quotients: Sequence[float]) -> float:
    """
    Return the mean of those below three times the mean of all, so that a layer that one of both left dead decides nothing.

    Args:
        quotients: One for each layer; infinite where the style's change is zero.

    Returns:
        The mean; 1 where none is left.

    Example:
        >>> typical([1.0, 2.0, float("inf")]), typical([1.0, 1.0, 1.0, 97.0])
        (1.5, 1.0)
    """
    mean = sum(quotients) / len(quotients) if quotients else 0.0
    kept = [quotient for quotient in quotients if quotient < 3 * mean]
    return sum(kept) / len(kept) if kept else 1.0


def _ratio(content: float, style: float) -> float:
    return content / style if style else float("inf") if content else 0.0


@torch.no_grad()
def magnitude(
    weights: LayerWeights, shape: tuple[int, ...], base: torch.Tensor, count: int
) -> tuple[float, float]:
    """
    Sum the magnitudes of a weight change at weight 1 without holding all of it where it is a low-rank pair.

    Args:
        weights: The adapter's part.
        shape: (out, in, *kernel).
        base: The weight, for changes that depend on it.
        count: How many of the largest to sum.

    Returns:
        The sum of the ``count`` largest magnitudes, and the sum of all.
    """
    pair = weights.factors(shape)
    if pair is None:
        blocks = [weights.delta(base.float().reshape(shape), 1.0).abs().flatten()]
    else:
        down = pair.down.float() * pair.scale
        step = max(1, _BLOCK // down.shape[1])
        blocks = (  # type: ignore[assignment]
            (pair.up[start : start + step].float() @ down).abs().flatten()
            for start in range(0, shape[0], step)
        )
    largest, whole = torch.empty(0), 0.0
    for block in blocks:
        whole += float(block.sum(dtype=torch.float64))
        best = block.topk(min(count, block.numel())).values.double().cpu()
        largest = torch.cat([largest.double(), best])
        largest = largest.topk(min(count, largest.numel())).values
    return float(largest.sum()), whole
