"""
K-LoRA (arXiv 2502.18461): in each layer the content's or the style's adapter alone, by what their largest elements sum to.

For content c and style s, with r the ranks and D the weight changes at weight 1:

    K       = r_c * r_s
    S_i     = sum of the K largest |D_i| of the layer
    rho     = sum |D_c| / sum |D_s| of each layer
    gamma   = mean of the rho below three times the mean of all rho
    scale   = alpha * t / T + beta, beta 0.5; in the variant s*, that modulo alpha, beta 0.85 alpha
    choice  = content where (S_c / gamma) / (S_s * scale) > 1, else style

S and gamma do not depend on t, so two numbers for each layer are kept. Changes have the scale alpha / rank of their file
in them, which the authors leave out (gamma makes up for one that is the same in all layers).

The authors' files hold attention layers (q, k, v, out) alone, and their code patches those; any other layer of a file counts in
gamma and then acts in no picture. Here layers outside of attention (feed-forward, convolutions) compete, too: whoever loads an
adapter that has them gets no less of it than it says, and no layer has both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.errors import MixError
from lora_mixer.mixes.methods.method import Method, call_text, not_in_mix
from lora_mixer.mixes.reading import Reading
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of, list_of, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.mixes.methods.method import ComparedLayer

_BLOCK = 1 << 22
"""Elements of a weight change that are looked at at a time (16 MiB in fp32)."""


@dataclass(frozen=True)
class KLora(Method):
    """
    K-LoRA (arXiv 2502.18461): in each layer the content's or the style's adapter, with more style in later steps.

    Attributes:
        content: The adapter of the subject; the first of the mix where none is named.
        style: The adapter of the style; the second of the mix where none is named.
        alpha: The slope of the style's advantage over the run.
        beta: Its start; when None, as the authors have it: 0.5, or 0.85 alpha with ``modulo``.
        modulo: The paper's variant s*, in which the advantage starts anew when it reaches alpha.

    Example:
        >>> [KLora().advantage(step, 4) for step in range(4)]
        [0.5, 0.875, 1.25, 1.625]
        >>> round(KLora(modulo=True).advantage(0, 4), 3), round(KLora(modulo=True).advantage(1, 4), 3)
        (1.275, 0.15)
        >>> KLora().roles(("thing", "style"))
        ('thing', 'style')
    """

    name: ClassVar[str] = "k_lora"
    example: ClassVar[str] = "k_lora()"
    goes_by_steps: ClassVar[bool] = True
    content: str | None = None
    style: str | None = None
    alpha: float = 1.5
    beta: float | None = None
    modulo: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        reading = Reading()
        object.__setattr__(self, "alpha", reading.number("alpha", self.alpha, low=0))
        if self.beta is None:
            object.__setattr__(self, "beta", 0.85 * self.alpha if self.modulo is True else 0.5)
        object.__setattr__(self, "beta", reading.number("beta", self.beta, low=0))
        for key in ("content", "style"):
            if not isinstance(given := getattr(self, key), (str, type(None))):
                reading.problem(key, f"expected the name of an adapter, got {shown(given)}.")
        if not isinstance(self.modulo, bool):
            reading.problem("modulo", f"expected true or false, got {shown(self.modulo)}.")
        if (self.content is None) != (self.style is None) or (
            self.content == self.style and self.content is not None
        ):
            reading.problem(
                "", f"expected both content and style, got {shown(self.content)} and {shown(self.style)}."
            )
        reading.finish("method")

    def roles(self, names: Sequence[str]) -> tuple[str, str]:
        """
        Tell who has which part.

        Args:
            names: The adapters of the mix, in their order.

        Returns:
            The adapter of the content and that of the style.
        """
        return self.content or names[0], self.style or names[1]

    def compared(self, names: Sequence[str]) -> tuple[str, str]:
        """Return the content and the style."""
        return self.roles(names)

    def compare(self, layers: Sequence[Sequence[ComparedLayer]]) -> Contest:
        """
        Sum up the largest elements of both.

        Returns:
            What the layers weigh against each other.
        """
        content, style = layers
        return contest(content, style)

    def layer_shares(
        self,
        name: str,
        names: Sequence[str],
        layers: Sequence[ComparedLayer],
        comparison: Contest,
        step: int,
        steps: int,
    ) -> list[float]:
        """Return 1 for the layers that an adapter wins, else 0."""
        content, _ = self.roles(names)
        scale = self.advantage(min(step, steps - 1), steps)
        return [comparison.share(layer, content=name == content, scale=scale) for layer in layers]

    def advantage(self, step: int, steps: int) -> float:
        """
        Return by how much the style is favoured: alpha * step / steps + beta; with ``modulo``, what is left over alpha.

        Args:
            step: The step, from 0.
            steps: How many there are.
        """
        scale = self.alpha * step / steps + (self.beta or 0.0)
        return scale % self.alpha if self.modulo and self.alpha else scale

    def misfits(self, names: Sequence[str]) -> list[str]:
        """Tell adapters that are not in the mix, or too many of them."""
        if len(names) != 2:
            return [f"k_lora is for two adapters, content and style; got {len(names)} ({list_of(names)})."]
        return not_in_mix([name for name in (self.content, self.style) if name is not None], names)

    def to_spec(self) -> dict[str, object]:
        """Return the parameters."""
        spec: dict[str, object] = {"name": self.name}
        if self.content is not None:
            spec.update(content=self.content, style=self.style)
        return {**spec, "alpha": self.alpha, "beta": self.beta, "modulo": self.modulo}

    def to_text(self) -> str:
        """Write ``k_lora(content="a", ...)``."""
        return call_text(self.to_spec())

    def meaning(self, names: Sequence[str]) -> object:
        """Return the roles, too."""
        content, style = self.roles(names)
        return {**self.to_spec(), "content": content, "style": style}


@dataclass(frozen=True)
class Contest:
    """
    What decides in the layers that both adapters change.

    Attributes:
        ratios: S_c / (gamma * S_s) by component and path; the content has the layer while this is above the scale.
    """

    ratios: Mapping[tuple[str, str], float]

    def share(self, layer: ComparedLayer, *, content: bool, scale: float) -> float:
        """Return 1 where an adapter has a layer at a scale, else 0; layers that one alone changes are its own."""
        ratio = self.ratios.get((layer.live.component, layer.live.path))
        return 1.0 if ratio is None else float((ratio > scale) == content)


def contest(content: Sequence[ComparedLayer], style: Sequence[ComparedLayer]) -> Contest:
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
        Problem(f"{x.live.component}.{x.live.path}", x.weights.algorithms[0])
        for pair in both
        for x in pair
        if x.weights.rank is None
    ]
    if odd:
        listed = first_of([f"{one.place} ({one.text})" for one in odd], 3)
        raise MixError(f"k_lora goes by ranks, and there is none in {listed}", problems=tuple(odd))
    fused = [x for pair in both for x in pair if x.siblings is not None]
    if fused:
        raise MixError(
            f"k_lora compares layers one by one, and this one ({'+'.join(fused[0].weights.algorithms)}) is computed from "
            "several at once",
            key=f"{fused[0].live.component}.{fused[0].live.path}",
        )
    sums = {}
    quotients = []
    for one, other in both:
        count = (one.weights.rank or 1) * (other.weights.rank or 1)
        (top, whole), (other_top, other_whole) = (
            magnitude(x.weights, x.live.shape, x.live.weight, count) for x in (one, other)
        )
        sums[one.live.component, one.live.path] = (top, other_top)
        quotient = whole / other_whole if other_whole else math.inf
        quotients.append(quotient if math.isfinite(quotient) else math.inf)
    gamma = typical(quotients)
    return Contest({place: _ratio(top, other * gamma) for place, (top, other) in sums.items()})


def typical(quotients: Sequence[float]) -> float:
    """
    Return the mean of those below three times the mean of all, so that a layer that one of both left dead decides nothing.

    Args:
        quotients: One for each layer; infinite where the style's change is zero, or either holds NaN or Inf.

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
    """Return the quotient; a layer of NaN or Inf, or of zeros, loses to any other."""
    if not math.isfinite(content) or not content:
        return 0.0
    return content / style if style and math.isfinite(style) else math.inf


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
    import torch

    with torch.no_grad():
        pair = weights.factors(shape)
        if pair is None:
            blocks = iter([weights.delta(base.float().reshape(shape), 1.0).abs().flatten()])
        else:
            up, down = pair.up, pair.down.float() * pair.scale  # (out, r), (r, in * kernel)
            step = max(1, _BLOCK // down.shape[1])
            blocks = (
                (up[start : start + step].float() @ down).abs().flatten()
                for start in range(0, shape[0], step)
            )
        largest, whole = torch.empty(0, dtype=torch.float64), 0.0
        for block in blocks:
            whole += float(block.sum(dtype=torch.float64))
            best = block.topk(min(count, block.numel())).values.double().cpu()
            largest = torch.cat([largest, best])
            largest = largest.topk(min(count, largest.numel())).values
    return float(largest.sum()), whole
