"""Every algorithm through the mixer: weight 0 is the base, order does not matter, changes add up, the base comes back."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer
from tests.layers import layer, randn

PAIR = {"lora_up.weight": randn(8, 2), "lora_down.weight": randn(2, 8), "alpha": 1.0}
LEAVES = {
    "lora": PAIR,
    "lora bias": {"lora_B.weight": randn(8, 2), "lora_A.weight": randn(2, 8), "lora_B.bias": randn(8)},
    "loha": {
        f"hada_{n}": randn(*s)
        for n, s in zip(("w1_a", "w1_b", "w2_a", "w2_b"), ((8, 2), (2, 8)) * 2, strict=True)
    },
    "lokr": {"lokr_w1": randn(2, 4), "lokr_w2": randn(4, 2)},
    "glora": {
        f"{n}.weight": randn(*s) for n, s in zip(("a1", "a2", "b1", "b2"), ((8, 2), (2, 8)) * 2, strict=True)
    },
    "full": {"diff": randn(8, 8), "diff_b": randn(8)},
    "ia3": {"weight": randn(8), "on_input": 1},
    "ia3 peft": {"ia3_l": randn(8, 1)},
    "oft": {"oft_blocks": randn(2, 4, 4), "rescale": randn(8, 1), "alpha": 0.0},
    "oft peft": {"oft_R.weight": randn(2, 6)},
    "boft": {"oft_blocks": randn(2, 4, 2, 2), "alpha": 0.0},
    "boft peft": {"boft_R": randn(2, 4, 2, 2), "boft_s": randn(8, 1)},
    "dora": {**PAIR, "dora_scale": randn(8, 1)},
    "dora by input": {**PAIR, "dora_scale": randn(1, 8)},
    "dora peft": {**PAIR, "lora_magnitude_vector": randn(8)},
    "adalora": {"lora_A": randn(2, 8), "lora_B": randn(8, 2), "lora_E": randn(2, 1)},
    "hra": {"hra_u": randn(8, 2)},
    "set": {"set_weight": randn(8, 8), **PAIR},
}
NOT_LINEAR = ["glora", "ia3 peft", "oft", "oft peft", "boft", "dora", "dora peft", "hra", "set"]


def adapter(name):
    return {f"net.{leaf}": torch.as_tensor(value) for leaf, value in LEAVES[name].items()}


def model(dtype=torch.float32):
    root = nn.Module()
    root.net = nn.Linear(8, 8, dtype=dtype)
    with torch.no_grad():
        root.net.weight.copy_(randn(8, 8, seed=11))
        root.net.bias.copy_(randn(8, seed=12))
    return root


def same(module, base):
    return all(torch.equal(value, base[key]) for key, value in module.state_dict().items())


def copy(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LEAVES)
def test_weights_are_the_base_plus_the_change_and_the_base_comes_back_bit_for_bit(name, dtype):
    module = model(dtype)
    base = copy(module)
    weights = layer(LEAVES[name])
    mixer = LoraMixer(module)
    mixer.load_lora_weights(adapter(name), "a", strict=True)

    for gain in (0.6, -0.3, 1.0):
        mixer.set_adapters("a", gain)
        exact = base["net.weight"].double()
        # rounded once from an fp32 sum (fp64 for fp64)
        expected = exact + weights.delta(exact, gain)
        error = (module.net.weight.double() - expected).norm() / expected.norm()
        assert error < {torch.float64: 1e-6, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
        change = weights.bias_delta(base["net.bias"].double(), gain)
        if change is not None:
            exact = base["net.bias"].double() + change
            assert (module.net.bias.double() - exact).norm() / exact.norm() < 2 * torch.finfo(dtype).eps
        else:
            assert torch.equal(module.net.bias, base["net.bias"])
    mixer.set_adapters("a", 0.0)
    assert same(module, base)
    mixer.set_adapters("a", 1.0)
    mixer.disable_lora()
    assert same(module, base)
    mixer.unload_lora_weights()
    assert same(module, base)
    assert module._forward_hooks == {}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(NOT_LINEAR, 2)))
def test_changes_that_depend_on_the_base_add_up_from_the_clean_base_in_any_order(first, second):
    module = model()
    clean = module.net.weight.detach().double()
    mixer = LoraMixer(module)
    mixer.load_lora_weights(adapter(first), "a")
    mixer.load_lora_weights(adapter(second), "b")
    mixer.set_adapters(["a", "b"], [0.7, -0.4])
    one = copy(module)

    mixer.set_adapters(["b", "a"], [-0.4, 0.7])

    assert same(module, one)
    expected = clean + layer(LEAVES[first]).delta(clean, 0.7) + layer(LEAVES[second]).delta(clean, -0.4)
    assert (one["net.weight"].double() - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("name", LEAVES)
def test_weight_zero_in_a_mix_has_no_part_even_with_nan(name):
    module = model()
    mixer = LoraMixer(module)
    broken = {
        key: value * float("nan") if value.is_floating_point() and value.numel() > 1 else value
        for key, value in adapter(name).items()
    }
    mixer.load_lora_weights(adapter("lora"), "good")
    alone = copy(module)
    mixer.load_lora_weights(broken, "broken", allow_nonfinite=True)

    mixer.set_adapters(["good", "broken"], [1.0, 0.0])

    assert same(module, alone)


@pytest.mark.parametrize("name", LEAVES)
def test_changes_are_zeros_at_weight_zero(name):
    base = randn(8, 8).double()

    change = layer(LEAVES[name]).delta(base, 0.0)

    assert torch.count_nonzero(change) == 0
    assert change.dtype == torch.float64


def test_adapters_of_one_kind_with_different_parts_in_one_file_are_all_applied():
    module = nn.Module()
    module.one, module.two, module.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
    base = copy(module)
    table = {f"one.{leaf}": torch.as_tensor(value) for leaf, value in LEAVES["dora"].items()}
    table |= {f"two.{leaf}": torch.as_tensor(value) for leaf, value in LEAVES["lokr"].items()}
    table |= {"norm.w_norm": randn(8), "norm.b_norm": randn(8)}
    mixer = LoraMixer(module)

    report = mixer.load_lora_weights(table, "mixed", strict=True)

    assert report.matched == 3
    assert mixer.adapters["mixed"].algorithms == ("dora", "lokr", "lora", "norm")
    assert torch.allclose(module.norm.weight, base["norm.weight"] + table["norm.w_norm"])
    mixer.unload_lora_weights()
    assert same(module, base)
