"""DoRA over other changes: both axes, every spelling, and the meaning that each program gives to a partial weight."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import InvalidAdapterError, LoraMixer, MixError
from tests.layers import adapter, close, delta, layer, randn

UP, DOWN = randn(6, 2), randn(2, 4)
PAIR = {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": 4.0}
CHANGE = 2.0 * UP.double() @ DOWN.double()
BASE = randn(6, 4)
W = BASE.double()


def linear(weight, change, magnitude, dims, gain):
    turned = weight + change
    return weight + gain * (magnitude.double() * turned / turned.norm(dim=dims, keepdim=True) - weight)


def lycoris(weight, change, magnitude, dims, gain):
    turned = weight + change
    return turned * (1 + gain * (magnitude.double() / turned.norm(dim=dims, keepdim=True) - 1))


def peft(weight, change, magnitude, dims, gain):
    turned = weight + gain * change
    return magnitude.double() * turned / turned.norm(dim=dims, keepdim=True)


@pytest.mark.parametrize("gain", [1.0, 0.6, -0.5, 1.7, 1e-3])
@pytest.mark.parametrize(("shape", "dim"), [((6, 1), 1), ((1, 4), 0), ((6,), 1), ((4,), 0)])
def test_dora_scale_grows_with_the_weight_along_the_axis_of_its_shape(gain, shape, dim):
    magnitude = randn(*shape).abs()

    weights = layer({**PAIR, "dora_scale": magnitude})

    along = magnitude.reshape((-1, 1) if dim == 1 else (1, -1))
    expected = linear(W, CHANGE, along, dim, gain)
    assert close(delta(weights, BASE, gain), expected - W)
    assert weights.algorithms == ("dora", "lora")
    assert (weights.rank, weights.alpha, weights.in_width) == (2, 4.0, 4)


@pytest.mark.parametrize("gain", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("leaf", ["magnitude", "lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_peft_and_ai_toolkit_magnitudes_follow_peft(gain, leaf):
    magnitude = randn(6).abs()

    weights = layer({**PAIR, leaf: magnitude})

    assert close(delta(weights, BASE, gain), peft(W, CHANGE, magnitude[:, None], 1, gain) - W)


STRENGTHS = {"linear": linear, "peft": peft, "lycoris": lycoris}


@pytest.mark.parametrize("gain", [1.0, 0.6, -0.5, 1e-3])
@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("leaf", ["dora_scale", "magnitude"])
def test_every_strength_is_there_by_name_for_every_file(gain, name, leaf):
    magnitude = randn(6).abs()
    table = {**PAIR, leaf: magnitude, "diff_b": torch.ones(6)}

    given = adapter(table).with_dora_strength(name)

    (only,) = given.layers
    expected = STRENGTHS[name](W, CHANGE, magnitude[:, None], 1, gain)
    assert close(delta(only.weights, BASE, gain), expected - W)
    assert only.weights.algorithms == ("dora", "lora", "full")
    model = torch.nn.Module()
    model.net = torch.nn.Linear(4, 6)
    with torch.no_grad():
        model.net.weight.copy_(BASE)
    mixer = LoraMixer(model)
    mixer.load_lora_weights({f"net.{k}": torch.as_tensor(v) for k, v in table.items()}, dora_strength=name)
    mixer.set_adapters("default_0", gain)
    assert close(model.net.weight.detach().double(), expected, 1e-6)


def test_a_strength_that_there_is_not_is_refused_and_adapters_without_magnitudes_stay():
    with pytest.raises(MixError, match="linear, peft, lycoris, got 'loud'"):
        adapter(PAIR).with_dora_strength("loud")
    plain = adapter(PAIR)
    assert plain.with_dora_strength("lycoris").layers == plain.layers
    mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(4, 6)))
    with pytest.raises(MixError, match="got 'loud'"):
        mixer.load_lora_weights({f"0.{k}": torch.as_tensor(v) for k, v in PAIR.items()}, dora_strength="loud")
    assert not mixer.adapters


def test_programs_agree_at_weight_one_only():
    magnitude = randn(6).abs()
    one, other = layer({**PAIR, "dora_scale": magnitude[:, None]}), layer({**PAIR, "magnitude": magnitude})

    assert close(delta(one, BASE), delta(other, BASE), 1e-10)
    assert not close(delta(one, BASE, 0.5), delta(other, BASE, 0.5), 1e-2)


def test_plain_vector_on_a_square_weight_counts_outputs():
    up, down, magnitude, base = randn(4, 2), randn(2, 4), randn(4).abs(), randn(4, 4)
    change = up.double() @ down.double()

    weights = layer({"lora_up.weight": up, "lora_down.weight": down, "dora_scale": magnitude})

    assert close(
        delta(weights, base), peft(base.double(), change, magnitude[:, None], 1, 1.0) - base.double()
    )


@pytest.mark.parametrize(
    ("leaf", "shape", "dims"),
    [
        ("dora_scale", (6, 1, 1, 1), (1, 2, 3)),
        ("dora_scale", (1, 4, 1, 1), (0, 2, 3)),
        ("lora_magnitude_vector", (1, 6, 1, 1), (1, 2, 3)),
    ],
)
def test_convolutions_take_lengths_over_all_other_axes(leaf, shape, dims):
    up, down, base = randn(6, 2, 1, 1), randn(2, 4, 3, 3), randn(6, 4, 3, 3)
    magnitude = randn(*shape).abs()
    change = (up.double().flatten(1) @ down.double().flatten(1)).reshape(base.shape)
    turned = base.double() + change
    length = torch.linalg.vector_norm(turned, dim=dims, keepdim=True)

    weights = layer({"lora_up.weight": up, "lora_down.weight": down, leaf: magnitude})

    expected = turned / length * magnitude.double().reshape(length.shape)
    assert close(delta(weights, base), expected - base.double())


def test_magnitude_lies_over_any_change():
    magnitude, base = randn(6, 1).abs(), randn(6, 8)
    w1, w2 = randn(2, 4), randn(3, 2)
    change = torch.kron(w1.double(), w2.double())

    weights = layer({"lokr_w1": w1, "lokr_w2": w2, "dora_scale": magnitude})

    assert weights.algorithms == ("dora", "lokr")
    assert close(delta(weights, base, 0.6), linear(base.double(), change, magnitude, 1, 0.6) - base.double())


def test_bias_difference_stays_beside_the_magnitude():
    weights = layer({**PAIR, "dora_scale": randn(6, 1).abs(), "diff_b": torch.ones(6)})

    assert weights.algorithms == ("dora", "lora", "full")
    assert torch.equal(weights.bias_delta(torch.zeros(6), 0.5), torch.full((6,), 0.5))


def test_a_row_of_zeros_stays_one():
    base = torch.zeros(6, 4)

    for leaf in ("dora_scale", "magnitude"):
        weights = layer({"lora_up.weight": UP * 0, "lora_down.weight": DOWN, leaf: torch.ones(6)})
        assert torch.equal(delta(weights, base), torch.zeros(6, 4, dtype=torch.float64))


def test_magnitude_without_a_change_or_of_another_width_is_refused():
    with pytest.raises(InvalidAdapterError, match="without a change beside it"):
        layer({"dora_scale": randn(6, 1)})
    with pytest.raises(InvalidAdapterError, match="along one axis"):
        layer({**PAIR, "dora_scale": randn(6, 4)})
    wrong = layer({**PAIR, "dora_scale": randn(5, 1)})
    assert wrong.misfit((6, 4)) == "magnitude of 5 values, the module has 6 outputs"
