"""Dense changes, multiplied channels, values that replace, sparse remainders, and several parts in one module."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import InvalidAdapterError, LoraMixer, MatchError, UnsupportedAdapterError
from tests.layers import close, delta, layer, randn

BASE = randn(6, 4)
W = BASE.double()
PAIR = {"lora_up.weight": randn(6, 2), "lora_down.weight": randn(2, 4), "alpha": 1.0}
CHANGE = 0.5 * PAIR["lora_up.weight"].double() @ PAIR["lora_down.weight"].double()
BIAS = randn(6, seed=7)


def test_full_difference_is_added_as_it_is():
    diff, diff_b = randn(6, 4, seed=1), randn(6, seed=2)

    weights = layer({"diff": diff, "diff_b": diff_b})

    assert weights.algorithms == ("full",)
    assert close(delta(weights, BASE, 0.3), 0.3 * diff.double())
    assert torch.allclose(weights.bias_delta(BIAS, 0.3), 0.3 * diff_b)
    assert torch.allclose(weights.bias_delta(None, -1.0), -diff_b)


def test_bias_difference_alone_leaves_the_weight():
    weights = layer({"diff_b": randn(6)})

    assert torch.equal(delta(weights, BASE), torch.zeros(6, 4, dtype=torch.float64))
    net = torch.nn.Sequential(torch.nn.Linear(4, 5))
    with pytest.raises(MatchError, match="bias of 6 values, the module has 5 outputs"):
        LoraMixer(net).load_lora_weights({"0.diff_b": randn(6)}, adapter_name="a")


def test_norm_weights_are_vectors():
    w_norm, b_norm, base = randn(8, seed=1), randn(8, seed=2), randn(8, seed=3)

    weights = layer({"w_norm": w_norm, "b_norm": b_norm})

    assert weights.algorithms == ("norm",)
    assert close(delta(weights, base, -0.5), -0.5 * w_norm.double())
    assert torch.equal(weights.bias_delta(base, 2.0), 2 * b_norm)
    assert weights.misfit((9,)) == "made for a weight (8,), the module has (9,)"


@pytest.mark.parametrize("on_input", [0, 1])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_lycoris_ia3_multiplies_columns_or_rows_by_one_plus_w(on_input, kernel):
    channels = 4 if on_input else 6
    vector = randn(1, channels, 1, 1) if kernel else randn(channels)
    base = randn(6, 4, *kernel)
    shape = (1, -1, *[1] * len(kernel)) if on_input else (-1, 1, *[1] * len(kernel))

    weights = layer({"weight": vector, "on_input": on_input})

    assert weights.algorithms == ("ia3",)
    assert close(delta(weights, base, 0.6), base.double() * 0.6 * vector.double().reshape(shape))
    assert weights.bias_delta(BIAS, 1.0) is None


@pytest.mark.parametrize("rows", [True, False])
def test_peft_ia3_multiplies_by_the_number_itself_and_outputs_take_the_bias_along(rows):
    vector = randn(6, 1) if rows else randn(1, 4)

    weights = layer({"ia3_l": vector}, config={"peft_type": "IA3"})

    assert close(delta(weights, BASE), W * vector.double() - W)
    assert close(delta(weights, BASE, 0.5), 0.5 * (W * vector.double() - W))
    bias = weights.bias_delta(BIAS, 1.0)
    assert torch.allclose(bias, BIAS * vector[:, 0] - BIAS) if rows else bias is None


def test_peft_ia3_on_square_convolutions_is_told_by_feedforward_modules():
    vector, base = randn(1, 4, 1, 1), randn(4, 4, 3, 3)
    outputs = layer({"ia3_l": vector}, config={"peft_type": "IA3", "feedforward_modules": ["other"]})
    inputs = layer({"ia3_l": vector}, config={"peft_type": "IA3", "feedforward_modules": ["net"]})

    assert close(delta(outputs, base), base.double() * (vector.double().transpose(0, 1) - 1))
    assert close(delta(inputs, base), base.double() * (vector.double() - 1))


def test_set_weight_takes_the_place_of_the_base_at_any_weight_but_zero():
    value = randn(6, 4, seed=9)
    weights = layer({"set_weight": value, "lora_up.weight": randn(6, 2) * 0, "lora_down.weight": randn(2, 4)})

    for gain in (1.0, 0.2, -3.0):
        assert close(W + delta(weights, BASE, gain), value.double())
    assert torch.equal(delta(weights, BASE, 0.0), torch.zeros(6, 4, dtype=torch.float64))


def test_modules_to_save_and_biases_of_peft_folders_are_values():
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": ["net"]}
    weight, bias = randn(6, 4, seed=3), randn(6, seed=4)

    plain = layer({"weight": weight, "bias": bias}, config=config)
    raw = layer(
        {"modules_to_save.default.weight": weight, "modules_to_save.default.bias": bias}, config=config
    )

    for weights in (plain, raw):
        assert weights.algorithms == ("set",)
        assert close(W + delta(weights, BASE, 0.4), weight.double())
        assert torch.allclose(BIAS + weights.bias_delta(BIAS, 0.4), bias)


def test_trained_tokens_replace_their_rows():
    rows, base = randn(2, 4, seed=5), randn(10, 4)
    config = {"peft_type": "LORA", "trainable_token_indices": {"net": [7, 2]}}

    weights = layer({"token_adapter.trainable_tokens_delta": rows}, config=config)

    changed = base.double() + delta(weights, base, 0.5)
    assert close(changed[[7, 2]], rows.double())
    untouched = [i for i in range(10) if i not in (2, 7)]
    assert torch.equal(changed[untouched], base.double()[untouched])
    assert "token 7" in weights.misfit((5, 4))


@pytest.mark.parametrize("indices", [None, [1], [1, -2], [1, "2"], {"other": [1, 2]}])
def test_trained_tokens_without_one_id_each_are_refused(indices):
    with pytest.raises(InvalidAdapterError, match="expected one id for each row"):
        layer({"trainable_tokens_delta": randn(2, 4)}, config={"token_indices": indices})


def test_sparse_remainder_is_added_and_scaled_with_the_pair():
    indices, values = torch.tensor([[0, 5, 5], [1, 3, 3]], dtype=torch.int16), randn(3)
    rest = torch.zeros(6, 4, dtype=torch.float64)
    rest[0, 1], rest[5, 3] = values[0].double(), (values[1].double() + values[2].double())

    weights = layer(
        {**PAIR, "bias_indices": indices, "bias_values": values, "bias_size": torch.tensor([6, 4])}
    )

    assert set(weights.algorithms) == {"lora", "sparse"}
    assert close(delta(weights, BASE, 0.7), 0.7 * (CHANGE + 0.5 * rest))


def test_sparse_coordinates_outside_of_the_weight_are_refused():
    bad = {
        "bias_indices": torch.tensor([[6], [0]]),
        "bias_values": randn(1),
        "bias_size": torch.tensor([6, 4]),
    }

    with pytest.raises(InvalidAdapterError, match=r"outside of \(6, 4\)"):
        layer({**PAIR, **bad})


def test_reshape_weight_needs_no_padding_where_the_module_has_the_shape():
    weights = layer({**PAIR, "reshape_weight": torch.tensor([6, 4])})

    assert weights.algorithms == ("lora",)
    assert close(delta(weights, BASE), CHANGE)
    assert weights.misfit((6, 2)) == "made for a weight (6, 4), the module has (6, 2)"


def test_parts_of_different_algorithms_in_one_module_add_up():
    diff = randn(6, 4, seed=8)

    weights = layer({**PAIR, "diff": diff, "diff_b": BIAS, "lora_up.bias": BIAS})

    assert weights.algorithms == ("full", "lora")
    assert close(delta(weights, BASE, 2.0), 2 * (CHANGE + diff.double()))
    assert torch.allclose(weights.bias_delta(None, 1.0), 1.5 * BIAS)
    moved = weights.map(lambda tensor: tensor * 0)
    assert delta(moved, BASE).abs().max() == 0
    assert {t.data_ptr() for t in weights.tensors()}.isdisjoint({t.data_ptr() for t in moved.tensors()})


@pytest.mark.parametrize(
    ("leaves", "name"),
    [
        (
            {"lambda_layer": randn(1, 2), "q_layer.weight": randn(2, 4), "p_layer.weight": randn(6, 2)},
            "T-LoRA",
        ),
        ({"oft_r": randn(2, 3, 3)}, "OFT of PEFT before 0.16"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(leaves, name):
    with pytest.raises(UnsupportedAdapterError, match=name):
        layer(leaves)
