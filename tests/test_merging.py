"""Merging methods against their papers' formulas, written out entry by entry in fp64, and against PEFT."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lora_mixer.errors import MixError
from lora_mixer.merging import (
    DENSE,
    MergeMethod,
    breadcrumbs,
    concatenate,
    dare,
    della,
    knots,
    magnitude_prune,
    orthogonal_sum,
    ties,
    truncate,
    truncate_pair,
    weighted_sum,
)
from lora_mixer.merging.della import keep_probabilities
from lora_mixer.merging.method import layer_generator

OUT, IN = 12, 9
WEIGHTS = [0.7, -0.4, 1.3]


def random_pairs(ranks=(2, 3, 4), dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(OUT, r, generator=g, dtype=dtype),
            torch.randn(r, IN, generator=g, dtype=dtype),
        )
        for r in ranks
    ]


def deltas_of(pairs):
    return [up @ down for up, down in pairs]


def entries(shape):
    return itertools.product(*map(range, shape))


def largest(delta, count):
    """Zero all but the ``count`` largest entries, by sorting places."""
    places = sorted(entries(delta.shape), key=lambda p: -abs(float(delta[p])))[:count]
    kept = torch.zeros_like(delta)
    for place in places:
        kept[place] = delta[place]
    return kept


def close(a, b):
    assert torch.allclose(a.double(), b.double(), atol=1e-12, rtol=1e-12)


def test_concatenation_is_the_weighted_sum_of_deltas():
    pairs = random_pairs()

    up, down = concatenate(pairs, WEIGHTS)

    close(up @ down, sum(w * d for w, d in zip(WEIGHTS, deltas_of(pairs), strict=True)))
    close(up @ down, weighted_sum(deltas_of(pairs), WEIGHTS))
    assert up.shape[1] == 9


@pytest.mark.parametrize("rank", [1, 3, 5, 8, 9, 20])
def test_the_core_gives_the_optimum_of_eckart_and_young(rank):
    up, down = concatenate(random_pairs(), WEIGHTS)
    left, values, right = torch.linalg.svd(up @ down, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    optimum = float(values[rank:].norm() / values.norm())

    form = truncate_pair(up, down, rank=rank)

    close(form.up @ form.down, best)
    assert form.error == pytest.approx(optimum, abs=1e-12)
    measured = float((form.up @ form.down - up @ down).norm() / (up @ down).norm())
    assert form.error == pytest.approx(measured, abs=1e-10)
    dense = truncate(up @ down, rank=rank)
    close(dense.up @ dense.down, best)
    assert dense.error == pytest.approx(optimum, abs=1e-12)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_energy_takes_the_lowest_rank_that_keeps_it(energy):
    up, down = concatenate(random_pairs(), WEIGHTS)
    squares = torch.linalg.svdvals(up @ down).square()
    shares = squares.cumsum(0) / squares.sum()

    form = truncate_pair(up, down, energy=energy)

    assert shares[form.rank - 1] >= energy * (1 - 1e-12)
    assert form.rank == 1 or shares[form.rank - 2] < energy


def test_a_rank_above_the_size_of_the_matrix_keeps_all():
    up, down = torch.randn(3, 20, dtype=torch.float64), torch.randn(20, 40, dtype=torch.float64)

    form = truncate_pair(up, down, rank=10)

    assert form.rank == 3
    assert form.error == 0
    close(form.up @ form.down, up @ down)


def test_nothing_stays_nothing():
    form = truncate_pair(torch.zeros(3, 2), torch.zeros(2, 4), rank=1)

    assert form.error == 0
    assert not (form.up @ form.down).any()


@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_and_averages(density, majority):
    deltas = deltas_of(random_pairs())
    trimmed = [largest(d, int(density * d.numel())) for d in deltas]
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for place in entries(expected.shape):
        values = [float(t[place]) for t in trimmed]
        votes = values if majority == "total" else [math.copysign(1, v) if v else 0 for v in values]
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [w * v for w, v in zip(WEIGHTS, values, strict=True) if v * sign > 0]
        expected[place] = sum(agreeing) / max(len(agreeing), 1)

    close(ties(deltas, WEIGHTS, density, majority), expected)


def test_magnitude_prune_adds_the_largest_entries():
    deltas = deltas_of(random_pairs())

    close(
        magnitude_prune(deltas, WEIGHTS, 0.3),
        sum(w * largest(d, int(0.3 * d.numel())) for w, d in zip(WEIGHTS, deltas, strict=True)),
    )


def test_breadcrumbs_drop_outliers_and_noise():
    deltas = deltas_of(random_pairs())
    expected = torch.zeros(OUT, IN, dtype=torch.float64)
    for w, d in zip(WEIGHTS, deltas, strict=True):
        cut = largest(d, int(0.1 * d.numel()) + int(0.4 * d.numel())) - largest(d, int(0.1 * d.numel()))
        expected += w * cut

    close(breadcrumbs(deltas, WEIGHTS, 0.4, 0.1), expected)


def test_dare_keeps_the_mean_and_draws_by_seed():
    delta = torch.randn(40, 50, dtype=torch.float64)
    draws = [dare([delta], [1.0], 0.3, generator=torch.Generator().manual_seed(s)) for s in range(400)]

    again = dare([delta], [1.0], 0.3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(draws[0], again)
    assert not torch.equal(draws[0], draws[1])
    for draw in draws[:5]:
        kept = draw != 0
        close(draw[kept], delta[kept] / 0.3)
        assert kept.double().mean() == pytest.approx(0.3, abs=0.05)
    mean = torch.stack(draws).mean(0)
    spread = (delta.square() * (0.7 / 0.3) / len(draws)).sqrt()
    assert ((mean - delta).abs() < 6 * spread).all()


def test_dare_ties_elects_signs_on_what_was_drawn():
    deltas = deltas_of(random_pairs())
    g = torch.Generator().manual_seed(3)
    masks = [torch.rand(OUT, IN, generator=g, dtype=torch.float64) < 0.6 for _ in deltas]
    drawn = [d * m / 0.6 for d, m in zip(deltas, masks, strict=True)]

    merged = dare(deltas, WEIGHTS, 0.6, generator=torch.Generator().manual_seed(3), elect=True)

    close(merged, ties(drawn, WEIGHTS, density=1.0))


def test_della_keeps_large_entries_rather():
    delta = torch.randn(7, 11, dtype=torch.float64)
    chances = keep_probabilities(delta, 0.5, 0.3)

    for row in range(7):
        order = sorted(range(11), key=lambda c: abs(float(delta[row, c])))
        for k, column in enumerate(order):
            assert float(chances[row, column]) == pytest.approx(0.2 + 0.6 * k / 10)
    g = torch.Generator().manual_seed(5)
    mask = torch.rand(7, 11, generator=g, dtype=torch.float64) < chances
    merged = della([delta], [0.7], 0.5, 0.3, generator=torch.Generator().manual_seed(5))
    close(merged, 0.7 * delta * mask / chances)


def test_della_without_reach_is_dare():
    deltas = deltas_of(random_pairs())

    close(
        della(deltas, WEIGHTS, 0.5, 0.0, generator=torch.Generator().manual_seed(1), elect=False),
        dare(deltas, WEIGHTS, 0.5, generator=torch.Generator().manual_seed(1)),
    )


def test_knots_merges_in_the_common_basis():
    pairs = random_pairs()
    left, values, right = torch.linalg.svd(torch.cat(deltas_of(pairs), dim=1), full_matrices=False)
    kept = values > 1e-5
    parts = (values[kept, None] * right[kept]).split(IN, dim=1)

    up, down = knots(pairs, WEIGHTS, density=0.6)

    close(up @ down, left[:, kept] @ ties(list(parts), WEIGHTS, 0.6))
    assert up.shape[1] == int(kept.sum())


def test_knots_with_one_adapter_and_all_entries_is_the_adapter():
    pairs = random_pairs((3,))

    up, down = knots(pairs, [0.5], density=1.0)

    close(up @ down, 0.5 * deltas_of(pairs)[0])


def test_orthogonal_sum_leaves_each_its_own_inputs():
    pairs = random_pairs()
    first, second, third = deltas_of(pairs)

    up, down = orthogonal_sum(pairs, WEIGHTS)

    def off(*downs):
        rows = torch.cat(downs)
        return torch.eye(IN, dtype=torch.float64) - torch.linalg.pinv(rows) @ rows

    a, b = pairs[0][1], pairs[1][1]
    expected = WEIGHTS[0] * first + WEIGHTS[1] * second @ off(a) + WEIGHTS[2] * third @ off(a, b)
    assert torch.allclose(up @ down, expected, atol=1e-10)


def test_orthogonal_adapters_are_added_as_they_are():
    basis = torch.linalg.qr(torch.randn(IN, IN, dtype=torch.float64)).Q.T
    pairs = [(torch.randn(OUT, 2, dtype=torch.float64), basis[2 * i : 2 * i + 2]) for i in range(3)]

    up, down = orthogonal_sum(pairs, WEIGHTS)

    assert torch.allclose(up @ down, weighted_sum(deltas_of(pairs), WEIGHTS), atol=1e-10)


@pytest.mark.parametrize("name", DENSE)
def test_one_seed_gives_one_result_and_layers_draw_for_themselves(name):
    deltas = deltas_of(random_pairs())
    method = MergeMethod(name, seed=4)

    assert torch.equal(
        method.merge_deltas(deltas, WEIGHTS, "a"),
        MergeMethod(name, seed=4).merge_deltas(deltas, WEIGHTS, "a"),
    )
    assert layer_generator(4, "a").initial_seed() != layer_generator(4, "b").initial_seed()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "linear"}, "linear.*there are sum"),
        ({"name": "ties", "density": 0}, "density"),
        ({"name": "della", "density": 0.95}, "density - epsilon"),
        ({"name": "breadcrumbs", "density": 0.995}, "outliers"),
        ({"name": "ties", "majority": "loud"}, "majority"),
    ],
)
def test_impossible_methods_are_refused_by_name(settings, said):
    with pytest.raises(MixError, match=said):
        MergeMethod(**settings)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(IN, OUT)


def peft_merge(pairs, weights, kind, **options):
    """Let PEFT merge adapters and give the weight change that it arrives at."""
    peft = pytest.importorskip("peft")
    model = None
    for number, (up, down) in enumerate(pairs):
        config = peft.LoraConfig(r=up.shape[1], lora_alpha=up.shape[1], target_modules=["layer"])
        if model is None:
            model = peft.get_peft_model(Tiny(), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{number}", config)
        layer = model.base_model.model.layer
        layer.lora_A[f"a{number}"].weight.data = down.clone()
        layer.lora_B[f"a{number}"].weight.data = up.clone()
    names = [f"a{number}" for number in range(len(pairs))]
    model.add_weighted_adapter(names, weights, "merged", combination_type=kind, **options)
    return model.base_model.model.layer.get_delta_weight("merged").detach()


def float_pairs(ranks=(3, 3)):
    return [(up.float(), down.float()) for up, down in random_pairs(ranks)]


def test_peft_cat_is_the_weighted_sum():
    pairs = float_pairs((2, 4))
    up, down = concatenate(pairs, [0.7, 0.5])

    assert torch.allclose(peft_merge(pairs, [0.7, 0.5], "cat"), up @ down, atol=1e-5)


def test_peft_svd_is_the_truncated_weighted_sum():
    pairs = float_pairs()
    up, down = concatenate(pairs, [0.7, 0.5])
    form = truncate_pair(up, down, rank=2)

    peer = peft_merge(pairs, [0.7, 0.5], "svd", svd_rank=2)

    assert torch.allclose(peer, form.up @ form.down, atol=1e-4)


@pytest.mark.parametrize(("kind", "method"), [("ties_svd", ties), ("magnitude_prune_svd", magnitude_prune)])
def test_peft_agrees_on_pruning_methods_of_full_matrices(kind, method):
    pairs = float_pairs()

    peer = peft_merge(pairs, [0.7, 0.5], kind, svd_rank=9, density=0.4)

    assert torch.allclose(peer, method(deltas_of(pairs), [0.7, 0.5], 0.4), atol=1e-4)


def test_peft_linear_is_no_weighted_sum():
    """It adds sqrt(w1 w2) (B1 A2 + B2 A1), of the size of the sum itself."""
    pairs = float_pairs()
    (b1, a1), (b2, a2) = pairs
    exact = weighted_sum(deltas_of(pairs), [0.7, 0.5])

    peer = peft_merge(pairs, [0.7, 0.5], "linear")

    assert torch.allclose(peer, exact + math.sqrt(0.35) * (b1 @ a2 + b2 @ a1), atol=1e-4)
    assert (peer - exact).norm() / exact.norm() > 0.5
