"""Merging methods against their papers' formulas, written out entry by entry in fp64, and against PEFT."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch

from lora_mixer import merging
from lora_mixer.errors import MixError, SaveError
from lora_mixer.merging import (
    METHODS,
    MergeMethod,
    breadcrumbs,
    concatenate,
    dare,
    della,
    knots,
    magnitude_prune,
    orthogonal_sum,
    pair_of,
    ties,
    truncate,
    truncate_pair,
    weighted_sum,
)
from lora_mixer.merging.della import keep_probabilities

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


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


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


def sign_of(value):
    return (value > 0) - (value < 0)


def ties_by_hand(deltas, weights, density, majority, average):
    """The paper's three steps on the weighted changes, entry by entry."""
    trimmed = [w * largest(d, int(density * d.numel())) for w, d in zip(weights, deltas, strict=True)]
    votes = {}
    for place in entries(deltas[0].shape):
        values = [float(t[place]) for t in trimmed]
        votes[place] = sign_of(sum(values if majority == "total" else map(sign_of, values)))
    most = sign_of(sum(votes.values()))
    expected = torch.zeros(deltas[0].shape, dtype=torch.float64)
    for place, vote in votes.items():
        agreeing = [
            (w, float(t[place]))
            for w, t in zip(weights, trimmed, strict=True)
            if float(t[place]) * (vote or most) > 0
        ]
        divisor = len(agreeing) if average == "count" else sum(abs(w) for w, _ in agreeing)
        expected[place] = sum(value for _, value in agreeing) / (divisor or 1)
    return expected


@pytest.mark.parametrize("average", ["count", "weights"])
@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_weights_elects_and_averages(density, majority, average):
    deltas = deltas_of(random_pairs())
    expected = ties_by_hand(deltas, WEIGHTS, density, majority, average)

    close(ties(deltas, WEIGHTS, density, majority, average), expected)
    close(ties(deltas, WEIGHTS, density, majority, average, scale=1.5), 1.5 * expected)


def test_a_total_of_nothing_takes_the_sign_of_most():
    a, b = torch.tensor([1.0, -2.0, -3.0]), torch.tensor([-1.0, -2.0, -3.0])

    assert ties([a, b], [1, 1], density=1).tolist() == [-1.0, -2.0, -3.0]
    assert ties([-a, -b], [1, 1], density=1).tolist() == [1.0, 2.0, 3.0]


def test_shares_of_a_half_are_as_strong_as_ones_where_the_mean_is_over_weights():
    deltas = deltas_of(random_pairs((2, 3)))

    whole = ties(deltas, [1, 1], 0.5)

    close(ties(deltas, [0.5, 0.5], 0.5), 0.5 * whole)
    close(ties(deltas, [0.5, 0.5], 0.5, scale=2.0), whole)
    close(ties(deltas, [0.5, 0.5], 0.5, average="weights"), whole)


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
        for number, row in enumerate(d):  # nine entries: two outliers, then four
            expected[number] += w * (largest(row, 2 + 4) - largest(row, 2))

    close(breadcrumbs(deltas, WEIGHTS, 0.5, 0.25), expected)
    close(breadcrumbs(deltas, WEIGHTS, 0.5, 0.25, scale=0.3), 0.3 * expected)


def test_dare_keeps_the_mean_and_draws_by_seed():
    delta = torch.randn(40, 50, dtype=torch.float64)
    draws = [dare([delta], [1.0], 0.3, generators=seeds(s)) for s in range(400)]

    again = dare([delta], [1.0], 0.3, generators=seeds(0))

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
    masks = [torch.rand(OUT, IN, generator=g, dtype=torch.float64) < 0.6 for g in seeds(3, 4, 5)]
    drawn = [d * m / 0.6 for d, m in zip(deltas, masks, strict=True)]

    merged = dare(deltas, WEIGHTS, 0.6, generators=seeds(3, 4, 5), elect=True)

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
    merged = della([delta], [0.7], 0.5, 0.3, generators=seeds(5))
    close(merged, 0.7 * delta * mask / chances)


def test_della_without_reach_is_dare():
    deltas = deltas_of(random_pairs())

    close(
        della(deltas, WEIGHTS, 0.5, 0.0, generators=seeds(1, 2, 3), elect=False),
        dare(deltas, WEIGHTS, 0.5, generators=seeds(1, 2, 3)),
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


@pytest.mark.parametrize("size", [1e-13, 1e-6, 1e6, 1e13])
def test_where_the_size_of_a_pair_lies_does_not_change_which_inputs_are_its_own(size):
    pairs = random_pairs()
    spread = [pairs[0], (pairs[1][0] / size, pairs[1][1] * size), pairs[2]]

    up, down = orthogonal_sum(pairs, WEIGHTS)
    other_up, other_down = orthogonal_sum(spread, WEIGHTS)

    assert torch.allclose(other_up @ other_down, up @ down, atol=1e-10)


@pytest.mark.parametrize("dead", [(0, 1, 2), (1,)])
def test_what_an_adapter_makes_nothing_of_is_left_to_the_others(dead):
    """An up of zeros, in whole or in some ranks, as in a layer that was not trained."""
    pairs = random_pairs((3, 3))
    up = pairs[0][0].clone()
    up[:, list(dead)] = 0
    alive = [rank for rank in range(3) if rank not in dead]
    shared = (up, pairs[1][1])  # looks at what the other looks at, in every rank

    merged_up, merged_down = orthogonal_sum([shared, pairs[1]], [1.0, 1.0])

    rows = pairs[1][1][alive]
    off = torch.eye(IN, dtype=torch.float64) - torch.linalg.pinv(rows) @ rows
    first, second = deltas_of([shared, pairs[1]])
    assert torch.allclose(merged_up @ merged_down, first + second @ off, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"majority": "frequency"}, {"density": 0.3, "average": "weights"}])
def test_knots_goes_by_changes_and_not_by_how_they_are_factored(settings):
    pairs = random_pairs()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    others = [(-up, -down) for up, down in pairs]
    others[1] = (pairs[1][0] @ turn.T * 1e-7, turn @ pairs[1][1] * 1e7)

    up, down = knots(pairs, WEIGHTS, **settings)
    other_up, other_down = knots(others, WEIGHTS, **settings)

    assert torch.allclose(other_up @ other_down, up @ down, atol=1e-9)


def test_even_votes_in_the_common_basis_do_not_hang_on_a_librarys_signs():
    """Singular vectors have no sign of their own; the largest entry of each output vector is made positive."""
    pairs = random_pairs((2, 2))
    deltas = deltas_of(pairs)
    left, values, right = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    left, values, right = left[:, :4], values[:4], right[:4]
    signs = torch.stack([column[column.abs().argmax()].sign() for column in left.T])
    parts = (values[:, None] * right * signs[:, None]).split(IN, dim=1)

    up, down = knots(pairs, [1.0, -0.5], density=0.4, majority="frequency")

    close(up @ down, left * signs @ ties(list(parts), [1.0, -0.5], 0.4, "frequency"))


@pytest.mark.parametrize("merge", [knots, orthogonal_sum])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_methods_by_decomposition_refuse_what_is_not_finite(merge, value):
    pairs = random_pairs()
    pairs[1][0][0, 0] = value
    with pytest.raises(SaveError, match="not finite"):
        merge(pairs, WEIGHTS)


# --- every method -----------------------------------------------------------------------------------------------------

# Settings under which a method keeps every entry, so that what it does beside choosing entries is seen.
WHOLE = {
    "knots": {"density": 1},
    "ties": {"density": 1},
    "dare": {"density": 1},
    "dare-ties": {"density": 1},
    "della": {"density": 1, "epsilon": 0},
    "breadcrumbs": {"density": 1, "outliers": 0},
    "magnitude": {"density": 1},
}
every_method = pytest.mark.parametrize("name", METHODS)


def merged(method, pairs, weights, place="unet.layer"):
    """Merge adapters of one layer by their names, and give the change."""
    if method.needs_rank:
        return method.merge_changes({n: up @ down for n, (up, down) in pairs.items()}, weights, place)
    up, down = method.merge_pairs(pairs, weights, place)
    return up @ down


def named(ranks=(2, 3, 4), seed=0):
    return dict(zip("abc", random_pairs(ranks, seed=seed), strict=False))


def weights_of(*numbers):
    return dict(zip("abc", numbers, strict=False))


@every_method
def test_the_order_of_adapters_does_not_matter_but_where_it_is_said(name):
    method, pairs, weights = MergeMethod(name), named(), weights_of(0.7, -0.4, 1.3)

    ways = [merged(method, {n: pairs[n] for n in order}, weights) for order in itertools.permutations("abc")]

    assert all(torch.equal(way, ways[0]) for way in ways) is (name != "orthogonal")
    vectors = {n: up[:, 0] for n, (up, _) in pairs.items()}
    one, *others = (
        method.merge_vectors({n: vectors[n] for n in order}, weights, "unet.norm")
        for order in itertools.permutations("abc")
    )
    assert all(torch.allclose(one, other, atol=1e-12) for other in others)


@every_method
@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e4])
def test_adapters_that_are_smaller_or_larger_all_alike_give_the_same_smaller_or_larger(name, factor):
    method, pairs, weights = MergeMethod(name), named(), weights_of(0.7, -0.4, 1.3)
    scaled = {n: (up * factor, down) for n, (up, down) in pairs.items()}

    whole = merged(method, pairs, weights)

    assert torch.allclose(merged(method, scaled, weights) / factor, whole, atol=1e-9)
    by_weight = {n: w * factor for n, w in weights.items()}
    assert torch.allclose(merged(method, pairs, by_weight) / factor, whole, atol=1e-9)


@every_method
def test_adapters_that_are_the_same_give_themselves_or_their_sum(name):
    """Means give the one; sums give twice, and the orthogonal sum leaves nothing for the second."""
    method = MergeMethod(name, **WHOLE.get(name, {}))
    pairs = named((3,))
    pairs["b"] = pairs["a"]
    (change,) = deltas_of([pairs["a"]])

    times = {"sum": 2, "dare": 2, "breadcrumbs": 2, "magnitude": 2}.get(name, 1)

    assert torch.allclose(merged(method, pairs, weights_of(1, 1)), times * change, atol=1e-9)


@every_method
def test_adapters_with_nothing_in_common_are_added(name):
    method = MergeMethod(name, **WHOLE.get(name, {}))
    up = torch.zeros(OUT, 2, dtype=torch.float64)
    down = torch.zeros(2, IN, dtype=torch.float64)
    up[2, 0], down[0, 1], up[5, 1], down[1, 4] = 1.5, -2.0, 0.5, 3.0
    pairs = {"a": (up[:, :1], down[:1]), "b": (up[:, 1:], down[1:])}

    expected = 0.7 * up[:, :1] @ down[:1] - 0.4 * up[:, 1:] @ down[1:]

    assert torch.allclose(merged(method, pairs, weights_of(0.7, -0.4)), expected, atol=1e-12)


@every_method
@pytest.mark.parametrize("weight", [1.0, 0.6, -1.2])
def test_one_adapter_alone_is_itself_as_far_as_it_is_kept(name, weight):
    pairs = named((3,))
    (change,) = deltas_of(pairs.values())
    whole = merged(MergeMethod(name, **WHOLE.get(name, {})), pairs, weights_of(weight))
    assert torch.allclose(whole, weight * change, atol=1e-10)

    kept = merged(MergeMethod(name), pairs, weights_of(weight))
    if name in ("ties", "magnitude"):
        close(kept, weight * largest(change, change.numel() // 2))
    elif name in ("dare", "dare-ties"):
        close(kept[kept != 0], 2 * weight * change[kept != 0])
        assert 0.2 < float((kept != 0).double().mean()) < 0.8
    elif name == "breadcrumbs":
        close(kept, weight * torch.stack([largest(row, 4) for row in change]))


@every_method
def test_a_negative_weight_is_the_opposite_adapter(name):
    method, pairs = MergeMethod(name), named()
    opposite = {n: (-up if n == "b" else up, down) for n, (up, down) in pairs.items()}

    one = merged(method, pairs, weights_of(0.7, -0.4, 1.3))

    assert torch.allclose(one, merged(method, opposite, weights_of(0.7, 0.4, 1.3)), atol=1e-10)
    negated = merged(method, pairs, weights_of(-0.7, 0.4, -1.3))
    assert torch.allclose(negated, -one, atol=1e-10)


@every_method
def test_a_change_without_a_pair_is_merged_by_its_singular_values(name):
    """A full matrix as a pair is the same to every method as the pair that it was made of."""
    method, pairs, weights = MergeMethod(name), named(), weights_of(0.7, -0.4, 1.3)
    other = dict(pairs)
    other["b"] = pair_of(pairs["b"][0] @ pairs["b"][1])

    assert other["b"][0].shape[1] == 3
    assert torch.allclose(merged(method, other, weights), merged(method, pairs, weights), atol=1e-9)


@pytest.mark.parametrize("name", ["ties", "dare-ties", "della", "knots"])
def test_norms_and_biases_are_means_where_weights_are(name):
    method = MergeMethod(name, **WHOLE[name])
    change = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    assert torch.allclose(
        method.merge_vectors({"a": change, "b": change}, weights_of(1, 1), "norm"), change, atol=1e-12
    )


@pytest.mark.parametrize("name", ["sum", "orthogonal", "dare", "breadcrumbs", "magnitude"])
def test_norms_and_biases_are_added_where_weights_are(name):
    method = MergeMethod(name, **WHOLE.get(name, {}))
    one, two = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    both = method.merge_vectors({"a": one, "b": two}, weights_of(0.7, -0.4), "norm")

    close(both, 0.7 * one - 0.4 * two)


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.draws])
def test_draws_are_those_of_seed_layer_and_adapter(name):
    pairs, weights = named(), weights_of(0.7, -0.4, 1.3)

    one = merged(MergeMethod(name, seed=4), pairs, weights)

    assert torch.equal(one, merged(MergeMethod(name, seed=4), pairs, weights))
    assert not torch.equal(one, merged(MergeMethod(name, seed=5), pairs, weights))
    assert not torch.equal(one, merged(MergeMethod(name, seed=4), pairs, weights, "unet.other"))
    drawn = [merged(MergeMethod(name, seed=4), {n: pairs["a"]}, {n: 1.0}) != 0 for n in ("a", "b")]
    assert not torch.equal(*drawn)
    # what one adapter keeps does not depend on who else is there
    if name == "dare":
        alone = {n: merged(MergeMethod(name, seed=4), {n: pairs[n]}, weights) for n in "abc"}
        close(one, sum(alone.values()))


@every_method
def test_a_method_is_its_text(name):
    method = MergeMethod(name)

    assert MergeMethod.of(method.to_text()) == method == MergeMethod.of(name)
    assert set(method.settings) == {setting.name for setting in METHODS[name].settings}
    for setting in METHODS[name].settings:
        other = setting.choices[-1] if setting.choices else 1 if setting.default != 1 else 0.5
        other = 0.05 if setting.name in ("epsilon", "outliers") else other
        if setting.name == "density":
            other = 0.7
        text = f"{name}({setting.name}={other})"
        assert MergeMethod.of(text).settings[setting.name] == other
        assert MergeMethod.of(text) == MergeMethod(name, **{setting.name: other}) != method
    assert METHODS[name].summary


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linear", "linear.*there are sum"),
        ("b-lora", "block weights.*blocks=b-lora:content"),
        ("ties(density=0)", "density must be above 0 and at most 1, got 0"),
        ("ties(density=much)", "density must be a number, got 'much'"),
        ("ties(density=nan)", "density must be a number"),
        ("dare(seed=1.5)", "seed must be a whole number"),
        ("della(density=0.95)", "density - epsilon"),
        ("breadcrumbs(density=0.995)", "outliers"),
        ("ties(majority=loud)", "majority must be total or frequency, got 'loud'"),
        ("sum(density=0.5)", "sum has no setting 'density'; it has none"),
        ("magnitude(epsilon=0.5, outliers=1)", "no setting 'epsilon'.*; .*no setting 'outliers'"),
        ("ties(0.5)", "each setting once"),
        ("ties(density=0.5, density=0.6)", "each setting once"),
        ("ties(density=0.5", "expected a method"),
    ],
)
def test_impossible_methods_are_refused_by_name(text, said):
    with pytest.raises(MixError, match=said):
        MergeMethod.of(text)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 7.5, 1e9])
def test_a_ratio_keeps_the_singular_values_above_the_largest_by_it(ratio):
    up, down = concatenate(random_pairs(), WEIGHTS)
    values = torch.linalg.svdvals(up @ down)
    wanted = max(int((values > values[0] / ratio).sum()), 1)

    assert truncate_pair(up, down, sv_ratio=ratio).rank == wanted
    assert truncate(up @ down, sv_ratio=ratio).rank == wanted
    assert truncate_pair(up, down, rank=2, sv_ratio=ratio).rank == min(wanted, 2)


def test_a_rank_beside_an_energy_is_the_most():
    up, down = concatenate(random_pairs(), WEIGHTS)
    free = truncate_pair(up, down, energy=0.99).rank

    assert truncate_pair(up, down, rank=free - 1, energy=0.99).rank == free - 1
    assert truncate_pair(up, down, rank=free + 1, energy=0.99).rank == free
    assert truncate(up @ down, rank=1, energy=0.99).rank == 1
    with pytest.raises(ValueError, match="none"):
        truncate_pair(up, down)


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
    """With equal weights: PEFT elects signs before it weights."""
    pairs = float_pairs()

    peer = peft_merge(pairs, [0.6, 0.6], kind, svd_rank=9, density=0.4)

    assert torch.allclose(peer, method(deltas_of(pairs), [0.6, 0.6], 0.4), atol=1e-4)


def test_peft_linear_is_no_weighted_sum():
    """It adds sqrt(w1 w2) (B1 A2 + B2 A1), of the size of the sum itself."""
    pairs = float_pairs()
    (b1, a1), (b2, a2) = pairs
    exact = weighted_sum(deltas_of(pairs), [0.7, 0.5])

    peer = peft_merge(pairs, [0.7, 0.5], "linear")

    assert torch.allclose(peer, exact + math.sqrt(0.35) * (b1 @ a2 + b2 @ a1), atol=1e-4)
    assert (peer - exact).norm() / exact.norm() > 0.5


CHANGES = ("breadcrumbs", "dare", "della", "magnitude_prune", "ties", "weighted_sum")


@pytest.mark.parametrize("name", [*CHANGES, "knots", "orthogonal_sum", "concatenate"])
def test_parts_that_do_not_fit_are_refused_in_own_words(name):
    merge = getattr(merging, name)
    known = inspect.signature(merge).parameters
    given = {"generators": [torch.Generator()] * 2} if "generators" in known else {}

    def part(size):
        return torch.ones(size, 3) if name in CHANGES else (torch.ones(size, 1), torch.ones(1, 3))

    for parts, weights, why in (
        ([], [], "nothing to merge"),
        ([part(2), part(2)], [1.0], "one weight for each of 2 changes, got 1"),
        ([part(2)], [1.0, 2.0], "one weight for each of 1 changes, got 2"),
        ([part(2), part(4)], [1.0, 1.0], r"have one shape, got \(2, 3\) and \(4, 3\)"),
    ):
        with pytest.raises(MixError, match=why) as error:
            merge(parts, weights, **given)
        assert error.value.argument in inspect.signature(merge).parameters
