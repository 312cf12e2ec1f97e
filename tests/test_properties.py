"""For any ranks, dtypes, layers and weights: the blend is right to the last place, and leaves nothing behind."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.engines.merged.grouped import Group
from tests.weights import same_bits

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Case(NamedTuple):
    """A layer and adapters for it."""

    layer: nn.Module
    adapters: list[
        tuple[torch.Tensor, torch.Tensor, float | None]
    ]  # up (out, rank), down (rank, in, *kernel), alpha
    weights: list[float]

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight.detach()

    def file(self, number: int) -> dict[str, torch.Tensor]:
        up, down, alpha = self.adapters[number]
        table = {
            "0.lora_down.weight": down,
            "0.lora_up.weight": up.reshape(*up.shape, *[1] * (down.ndim - 2)),
        }
        return table if alpha is None else {**table, "0.alpha": torch.tensor(alpha)}

    def terms(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Each adapter's up and down in fp64, (out, rank) and (rank, in * kernel), and the whole factor on them."""
        return [
            (up.double(), down.double().flatten(1), weight * (1.0 if alpha is None else alpha / up.shape[1]))
            for (up, down, alpha), weight in zip(self.adapters, self.weights, strict=True)
        ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    out, inner = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel = draw(st.sampled_from([None, (1, 1), (3, 3), (2, 1)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    layer = nn.Linear(inner, out) if kernel is None else nn.Conv2d(inner, out, kernel)
    layer = layer.to(draw(st.sampled_from(FLOATS)))
    if kernel is not None and draw(st.booleans()):
        layer = layer.to(memory_format=torch.channels_last)
    scale = draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0]))
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
    adapters = []
    for _ in range(draw(st.integers(1, 5))):
        rank, size = draw(st.integers(1, 48)), draw(st.sampled_from([1e-3, 0.05, 1.0]))
        up = (size * torch.randn(out, rank, generator=generator)).to(draw(st.sampled_from(FLOATS)))
        down = torch.randn(rank, *layer.weight.shape[1:], generator=generator).to(
            draw(st.sampled_from(FLOATS))
        )
        adapters.append((up, down, draw(st.none() | st.floats(0.125, 64, width=16))))
    weights = draw(st.lists(st.floats(-3, 3), min_size=len(adapters), max_size=len(adapters)))
    return Case(layer, adapters, weights)


def mixer_for(case: Case, order: list[int]) -> LoraMixer:
    mixer = LoraMixer(nn.Sequential(case.layer))
    for number in order:
        mixer.load_lora_weights(case.file(number), f"a{number}")
    return mixer


def room(
    base: torch.Tensor, terms: list[tuple[torch.Tensor, torch.Tensor, float]], dtype: torch.dtype
) -> torch.Tensor:
    """
    How far a weight may be from base + sum of factor * up @ down, element by element.

    One unit in the last place of the weight's dtype; and what the fp64 sums of both sides cost where terms cancel: each
    of the n products and sums is rounded once, so n * 2^-53 * sum of |terms| at most, n being the sum of ranks and the
    base. (That bound is for any order of summation, Higham, Accuracy and Stability, 4.2.)
    """
    base = base.double().flatten(1)
    size = sum((abs(factor) * (up.abs() @ down.abs()) for up, down, factor in terms), start=base.abs())
    exact = sum((factor * (up @ down) for up, down, factor in terms), start=base)
    n = 2 + sum(up.shape[1] for up, _, _ in terms)  # two more: factor and alpha / rank are rounded, too
    return ulp(exact, dtype) + n * 2.0**-53 * size


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give the distance of neighbours of ``dtype`` at these values."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.double().abs()).exponent - 1
    spacing = torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent)
    return spacing.clamp(min=info.smallest_normal * info.eps)


@given(cases())
@settings(max_examples=150)
def test_each_weight_is_within_one_unit_in_the_last_place(case: Case) -> None:
    base = case.weight.clone()
    mixer = mixer_for(case, list(range(len(case.adapters))))

    mixer.set_adapters(list(mixer.adapters), case.weights)

    exact = sum((factor * (up @ down) for up, down, factor in case.terms()), start=base.double().flatten(1))
    off = (case.weight.double().flatten(1) - exact).abs()
    assert (off <= room(base, case.terms(), base.dtype)).all()


@given(cases())
@settings(max_examples=60)
def test_blend_then_disable_is_the_identity(case: Case) -> None:
    base, place = case.weight.clone(), case.layer.weight.data_ptr()
    mixer = mixer_for(case, list(range(len(case.adapters))))

    mixer.set_adapters(list(mixer.adapters), case.weights)
    mixer.disable_lora()

    assert same_bits(case.weight, base)
    assert case.weight.stride() == base.stride()
    assert case.layer.weight.data_ptr() == place


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_adapters_does_not_matter(case: Case, random: object) -> None:
    order = list(range(len(case.adapters)))
    mixer = mixer_for(case, order)
    mixer.set_adapters([f"a{n}" for n in order], case.weights)
    one = case.weight.clone()
    mixer.unload_lora_weights()
    random.shuffle(order)
    mixer = mixer_for(case, order)
    random.shuffle(order)

    mixer.set_adapters([f"a{n}" for n in order], [case.weights[n] for n in order])

    assert same_bits(case.weight, one)


# --- the arithmetic of the GPU's path, on the CPU --------------------------------------------------------------------


@st.composite
def groups(
    draw: st.DrawFn,
) -> tuple[Group, list[float], list[list[tuple[torch.Tensor, torch.Tensor, float]]]]:
    dtype = draw(st.sampled_from(FLOATS))
    out, inner, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    ranks = tuple(draw(st.lists(st.integers(1, 32), min_size=1, max_size=4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    numbers = st.sampled_from([1.0, 0.5, 2.0, -1.0, 2.0**-7]) | st.floats(-3, 3).filter(bool)
    gains, terms, group = [], [], Group(ranks)
    for _ in range(count):
        scale = draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0]))
        group.bases.append((scale * torch.randn(out, inner, generator=generator)).to(dtype))
        group.weights.append(torch.full((out, inner), math.nan, dtype=dtype))
        terms.append([])
        for rank in ranks:
            size = draw(st.sampled_from([1e-5, 1e-3, 0.05, 1.0]))
            up = (size * torch.randn(out, rank, generator=generator)).to(dtype)
            down = torch.randn(rank, inner, generator=generator).to(dtype)
            group.ups.append(up)
            group.downs.append(down)
            group.scales.append(draw(st.sampled_from([1.0, 0.125, 2.0**-6, 0.3])))
            group.places.append(len(gains))
            gains.append(draw(numbers))
            terms[-1].append((up.double(), down.double(), gains[-1] * group.scales[-1]))
    return group, gains, terms


@given(groups())
@settings(max_examples=150)
def test_a_group_writes_every_layer_as_exactly_as_fp32_factors(
    case: tuple[Group, list[float], list[list[tuple[torch.Tensor, torch.Tensor, float]]]],
) -> None:
    group, gains, terms = case
    bases = [base.clone() for base in group.bases]

    group.write_batched(
        torch.tensor(gains, dtype=torch.float64)[group.places]
        * torch.tensor(group.scales, dtype=torch.float64)
    )

    for weight, kept, base, own in zip(group.weights, group.bases, bases, terms, strict=True):
        exact = sum((factor * (up @ down) for up, down, factor in own), start=base.double())
        sizes = sum(abs(factor) * (up.abs() @ down.abs()) for up, down, factor in own)
        # what sums in fp32 cost where terms cancel: n roundings of 2^-24 of the terms at most (Higham, as above)
        fp32 = (3 + sum(up.shape[1] for up, _, _ in own)) * 2.0**-24 * (sizes + base.double().abs())
        off = (weight.double() - exact).abs()
        assert (off <= room(base, own, weight.dtype) + fp32).all()
        assert same_bits(kept, base)
