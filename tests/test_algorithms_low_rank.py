"""Low-rank changes and their products against the formulas of their papers, written out in fp64."""

from __future__ import annotations

import json

import pytest
import torch

from lora_mixer import FormatError, InvalidAdapterError, MixError
from lora_mixer.algorithms import loha
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source
from tests.layers import close, delta, layer, randn


def d(tensor):
    return tensor.double()


def test_lora_is_alpha_over_rank_times_up_down():
    up, down, base = randn(6, 2), randn(2, 4), randn(6, 4)

    weights = layer({"lora_up.weight": up, "lora_down.weight": down, "alpha": 3.0})

    assert close(delta(weights, base, 0.7), 0.7 * 3.0 / 2 * d(up) @ d(down))
    assert weights.rank == 2


def test_rslora_divides_by_the_root_of_the_rank_and_patterns_choose_alpha():
    up, down, base = randn(6, 4), randn(4, 4), randn(6, 4)
    leaves = {"lora_B.weight": up, "lora_A.weight": down}

    stabilised = layer(leaves, config={"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True})
    patterned = layer(
        leaves, config={"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"net": 2}}
    )

    assert close(delta(stabilised, base), 8 / 4**0.5 * d(up) @ d(down))
    assert close(delta(patterned, base), 2 / 4 * d(up) @ d(down))


def test_scale_overrides_alpha_and_scalar_multiplies():
    up, down, base = randn(6, 2), randn(2, 4), randn(6, 4)

    weights = layer(
        {"lora_up.weight": up, "lora_down.weight": down, "alpha": 9.0, "scale": 0.25, "scalar": 2.0}
    )

    assert close(delta(weights, base), 0.5 * d(up) @ d(down))


def test_cp_core_is_the_tucker_sum_and_folds_into_an_exact_pair():
    up, mid, down, base = randn(6, 2, 1, 1), randn(2, 2, 3, 3), randn(2, 4, 1, 1), randn(6, 4, 3, 3)
    weights = layer({"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": 1.0})

    expected = 0.5 * torch.einsum("mnkl,im,nj->ijkl", d(mid), d(up)[..., 0, 0], d(down)[..., 0, 0])

    assert close(delta(weights, base), expected, 1e-6)  # folded in fp32
    pair = weights.factors((6, 4, 3, 3))
    assert close((d(pair.up) @ d(pair.down) * pair.scale).reshape(expected.shape), expected, 1e-6)


def test_dylora_is_cut_to_its_first_ranks_at_the_whole_ranks_scale():
    up, down, base = randn(6, 4), randn(4, 4), randn(6, 4)
    table = {"net.lora_up.weight": up, "net.lora_down.weight": down, "net.alpha": torch.tensor(2.0)}
    given = read_source(resolve_source(table))

    limited = given.limited(2)

    assert limited.info.ranks == (2,)
    assert close(delta(limited.layers[0].weights, base), 0.5 * d(up)[:, :2] @ d(down)[:2])
    assert given.limited(9).info.ranks == (4,)
    with pytest.raises(MixError, match="max_rank must be 1 or more, got 0"):
        given.limited(0)


def loha_leaves(out, columns, rank):
    shapes = {"w1_a": (out, rank), "w1_b": (rank, columns), "w2_a": (out, rank), "w2_b": (rank, columns)}
    return {f"hada_{name}": randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("as_pair", [True, False])
def test_loha_is_the_product_of_two_low_rank_matrices_either_way(monkeypatch, as_pair):
    monkeypatch.setattr(loha, "pair_is_cheaper", lambda *_: as_pair)
    leaves, base = loha_leaves(6, 36, 3), randn(6, 4, 3, 3)
    weights = layer({**leaves, "alpha": 2.0})
    w1_a, w1_b, w2_a, w2_b = map(d, leaves.values())
    expected = 2.0 / 3 * ((w1_a @ w1_b) * (w2_a @ w2_b)).reshape(6, 4, 3, 3)

    pair = weights.factors(tuple(base.shape))

    assert (pair is not None) == as_pair
    assert close(delta(weights, base), expected)
    if pair is not None:
        assert pair.up.shape == (6, 9)
        assert close((d(pair.up) @ d(pair.down)).reshape(expected.shape) * pair.scale, expected, 1e-6)


def test_loha_with_cores_has_transposed_factors():
    shapes = {
        "w1_a": (2, 6),
        "w1_b": (2, 4),
        "w2_a": (2, 6),
        "w2_b": (2, 4),
        "t1": (2, 2, 3, 3),
        "t2": (2, 2, 3, 3),
    }
    leaves = {f"hada_{name}": randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    a1, b1, a2, b2, t1, t2 = map(d, leaves.values())
    first = torch.einsum("ijkl,jr,ip->prkl", t1, b1, a1)
    second = torch.einsum("ijkl,jr,ip->prkl", t2, b2, a2)

    weights = layer({**leaves, "alpha": 1.0})

    assert close(delta(weights, randn(6, 4, 3, 3)), 0.5 * first * second, 1e-6)
    assert "(6, 4, 3, 3)" in weights.misfit((6, 4, 1, 1))


def test_pair_is_used_only_while_its_factors_are_an_eighth_of_the_weight():
    assert loha.pair_is_cheaper(64, (1280, 1280))
    assert loha.pair_is_cheaper(80, (1280, 1280))
    assert not loha.pair_is_cheaper(81, (1280, 1280))
    assert not loha.pair_is_cheaper(16, (64, 64))
    assert loha.pair_is_cheaper(64, (640, 640, 3, 3))


# Names of the parts and their shapes for a weight (6, 8): w1 is (2, 4), w2 is (3, 2).
LOKR = {
    "both full": {"w1": (2, 4), "w2": (3, 2)},
    "w2 a product": {"w1": (2, 4), "w2_a": (3, 2), "w2_b": (2, 2)},
    "w1 a product": {"w1_a": (2, 1), "w1_b": (1, 4), "w2": (3, 2)},
    "both products": {"w1_a": (2, 1), "w1_b": (1, 4), "w2_a": (3, 2), "w2_b": (2, 2)},
}


@pytest.mark.parametrize("form", LOKR)
@pytest.mark.parametrize("as_pair", [True, False])
def test_lokr_is_the_kronecker_product_in_every_form(monkeypatch, form, as_pair):
    monkeypatch.setattr("lora_mixer.algorithms.lokr.pair_is_cheaper", lambda *_: as_pair)
    parts = {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(LOKR[form].items())}
    w1 = d(parts["w1"]) if "w1" in parts else d(parts["w1_a"]) @ d(parts["w1_b"])
    w2 = d(parts["w2"]) if "w2" in parts else d(parts["w2_a"]) @ d(parts["w2_b"])
    rank = {"both full": None, "w1 a product": 1}.get(form, 2)
    expected = torch.kron(w1, w2) * (1 if rank is None else 3.0 / rank)

    weights = layer({**{f"lokr_{name}": tensor for name, tensor in parts.items()}, "alpha": 3.0})

    assert weights.rank == rank
    assert close(delta(weights, randn(6, 8)), expected)
    pair = weights.factors((6, 8))
    assert (pair is not None) == as_pair
    if pair is not None:
        assert close(d(pair.up) @ d(pair.down) * pair.scale, expected, 1e-6)


@pytest.mark.parametrize("core", [True, False])
def test_lokr_on_convolutions_with_and_without_core(core):
    w1, base = randn(2, 4), randn(6, 8, 3, 3)
    if core:
        parts = {"w2_a": randn(2, 3), "w2_b": randn(2, 2), "t2": randn(2, 2, 3, 3)}
        w2 = torch.einsum("ijkl,ip,jr->prkl", d(parts["t2"]), d(parts["w2_a"]), d(parts["w2_b"]))
    else:
        parts = {"w2_a": randn(3, 2), "w2_b": randn(2, 18)}
        w2 = (d(parts["w2_a"]) @ d(parts["w2_b"])).reshape(3, 2, 3, 3)

    weights = layer({"lokr_w1": w1, **{f"lokr_{k}": v for k, v in parts.items()}, "alpha": 1.0})

    assert close(delta(weights, base), 0.5 * torch.kron(d(w1)[..., None, None], w2.contiguous()), 1e-6)


def test_placeholder_alpha_of_full_factors_does_not_scale_but_peft_does():
    w1, w2, base = randn(2, 4), randn(3, 2), randn(6, 8)
    leaves = {"lokr_w1": w1, "lokr_w2": w2}

    placeholder = layer({**leaves, "alpha": 9999220736.0})
    peft = layer(leaves, config={"peft_type": "LOKR", "r": 4, "alpha": 2})

    assert placeholder.alpha is None
    assert close(delta(placeholder, base), torch.kron(d(w1), d(w2)))
    assert close(delta(peft, base), torch.kron(d(w1), d(w2)) / 2)


def test_early_lokr_file_gives_the_recorded_changes(shared_data):
    recorded = json.loads((shared_data / "files" / "reference_deltas.json").read_text())
    file = "lycoris_smart_falcon_8_lokr.safetensors"
    given = {
        layer.target.written: layer.weights
        for layer in read_source(resolve_source(shared_data / "files" / file)).layers
    }

    assert len(given) == 350
    for module, expected in recorded[file]["layers"].items():
        base = torch.zeros(expected["shape"])
        assert given[module].misfit(tuple(base.shape)) is None
        change = given[module].delta(base, 1.0)
        assert change.norm().item() == pytest.approx(expected["fro"], rel=1e-5)
        assert change.double().sum().item() == pytest.approx(expected["sum"], rel=1e-3, abs=1e-3)
        assert change.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_glora_changes_the_weight_by_itself_and_beside_it_in_both_orders(kernel):
    base = randn(6, 4, *kernel)
    one = (1,) * len(kernel)
    a1, a2 = randn(4, 2, *one), randn(2, 4, *one)
    b1, b2 = randn(6, 2, *one), randn(2, 4, *kernel)
    itself = torch.einsum("oi...,ij,jk->ok...", d(base), d(a1).flatten(1), d(a2).flatten(1))
    expected = 1.5 * (itself + (d(b1).flatten(1) @ d(b2).flatten(1)).reshape(base.shape))

    new = layer({"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": 3.0})
    assert close(delta(new, base), expected)
    assert close(delta(new, base, -0.4), -0.4 * expected)
    if not kernel:
        old = layer({"a1.weight": a2, "a2.weight": a1, "b1.weight": b2, "b2.weight": b1, "alpha": 3.0})
        assert close(delta(old, base), expected)


def test_glora_on_a_square_layer_is_told_by_its_smaller_rank():
    base, a1, a2, b1, b2 = (
        randn(4, 4),
        randn(4, 2),
        randn(2, 4, seed=1),
        randn(4, 2, seed=2),
        randn(2, 4, seed=3),
    )

    weights = layer({"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2})

    assert weights.rank == 2
    assert close(delta(weights, base), d(base) @ d(a1) @ d(a2) + d(b1) @ d(b2))


ADALORA = {"peft_type": "ADALORA", "lora_alpha": 8}


def test_adalora_scales_singular_values_by_alpha_over_the_rank_that_training_began_with():
    up, values, down = randn(6, 3), randn(3, 1), randn(3, 4)
    leaves = {"lora_A": down, "lora_B": up, "lora_E": values}

    whole = layer(leaves, config=ADALORA)
    masked = layer(leaves, config={**ADALORA, "rank_pattern": {"net.lora_E": [True, False, True]}})

    expected = 8 / (3 + 1e-5) * d(up) @ (d(values) * d(down))
    assert whole.algorithms == ("adalora",)
    assert close(delta(whole, randn(6, 4)), expected, 1e-6)
    kept = [0, 2]
    expected = 8 / (3 + 1e-5) * d(up)[:, kept] @ (d(values)[kept] * d(down)[kept])
    assert masked.rank == 2
    assert close(delta(masked, randn(6, 4)), expected, 1e-6)
    cut = {"lora_A": down[kept], "lora_B": up[:, kept], "lora_E": values[kept]}
    for config in ({"rank_pattern": {"net.lora_E": [True, False, True]}}, {"init_r": 3}):
        assert close(delta(layer(cut, config={**ADALORA, **config}), randn(6, 4)), expected, 1e-6)


def test_adalora_may_keep_no_singular_value_at_all():
    leaves = {"lora_A": torch.empty(0, 4), "lora_B": torch.empty(6, 0), "lora_E": torch.empty(0, 1)}

    weights = layer(leaves, config={**ADALORA, "rank_pattern": {"net.lora_E": [False, False]}})

    assert weights.rank == 0
    assert weights.misfit((6, 4)) is None
    assert weights.misfit((5, 4)) is not None
    assert torch.equal(delta(weights, randn(6, 4)), torch.zeros(6, 4, dtype=torch.float64))


def test_vera_cuts_the_shared_matrices_to_each_module():
    shared_a, shared_b, lam_b, lam_d = randn(3, 10), randn(12, 3), randn(6), randn(3)
    table = {
        "base_model.vera_A": shared_a,
        "base_model.vera_B": shared_b,
        "base_model.model.net.vera_lambda_b": lam_b,
        "base_model.model.net.vera_lambda_d": lam_d,
    }

    (only,) = read_source(resolve_source(table)).layers

    expected = torch.diag(d(lam_b)) @ d(shared_b)[:6] @ torch.diag(d(lam_d)) @ d(shared_a)[:, :4]
    assert close(delta(only.weights, randn(6, 4)), expected, 1e-6)
    assert "reach to 12 x 10" in only.weights.misfit((6, 11))


def test_vera_without_its_shared_matrices_is_refused_with_the_way_out():
    with pytest.raises(FormatError, match="save_projection, only"):
        layer({"vera_lambda_b": randn(6), "vera_lambda_d": randn(3)}, config={"peft_type": "VERA"})


@pytest.mark.parametrize(
    "leaves",
    [
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 4)},
        {"hada_w1_a": (6, 2), "hada_w1_b": (3, 4), "hada_w2_a": (6, 2), "hada_w2_b": (2, 4)},
        {"lokr_w1": (2, 2)},
        {"lokr_w1_a": (2, 2), "lokr_w1_b": (3, 2), "lokr_w2": (2, 2)},
        {"a1.weight": (4, 2), "a2.weight": (3, 4), "b1.weight": (6, 2), "b2.weight": (2, 4)},
        {"lora_E": (3, 1), "lora_A": (3, 4)},
        {"lora_E": (2, 1), "lora_A": (3, 4), "lora_B": (6, 3)},
    ],
)
def test_incomplete_or_contradicting_parts_are_refused_with_module_and_shapes(leaves):
    with pytest.raises(InvalidAdapterError, match="net: "):
        layer({name: randn(*shape) for name, shape in leaves.items()})


@pytest.mark.parametrize("rows", [5, 7])
def test_products_for_another_weight_say_both_sizes(rows):
    for weights in (layer(loha_leaves(6, 4, 2)), layer({"lokr_w1": randn(2, 2), "lokr_w2": randn(3, 2)})):
        assert weights.misfit((6, 4)) is None
        assert weights.misfit((rows, 4)) == f"made for a weight of 6 x 4, the module has {rows} x 4"
