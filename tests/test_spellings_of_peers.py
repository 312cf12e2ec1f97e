"""Spellings that diffusers and PEFT read: alphas behind halves, norms beside pairs, KaSA."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_mixer import LoraMixer, NotAnAdapterError, UnsupportedAdapterError, read_adapter


def model():
    return nn.ModuleDict(
        {
            "net": nn.Linear(8, 8, bias=False),
            "norm_q": nn.LayerNorm(8),
            "ff": nn.ModuleDict({"k_norm": nn.LayerNorm(8)}),
        }
    )


def pair(key="net", out=8, inp=8, names=("lora_A", "lora_B")):
    g = torch.Generator().manual_seed(3)
    shapes = ((2, inp), (out, 2))
    return {
        f"{key}.{half}.weight": torch.randn(shape, generator=g)
        for half, shape in zip(names, shapes, strict=True)
    }


SPELLED = {
    "lora_A.weight.alpha": ("lora_A", "lora_B"),
    "lora_B.weight.alpha": ("lora_A", "lora_B"),
    "lora_A.default.weight.alpha": ("lora_A.default", "lora_B.default"),
    "lora_down.weight.alpha": ("lora_down", "lora_up"),
    "lora_up.alpha": ("lora_down", "lora_up"),
    "lora.down.weight.alpha": ("lora.down", "lora.up"),
    "alpha": ("lora_A", "lora_B"),
}


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("alpha", [8.0, 0.5, -1.0])
def test_an_alpha_behind_a_half_of_the_pair_counts(spelled, alpha):
    root, file = model(), pair(names=SPELLED[spelled])
    before = root["net"].weight.detach().double()
    report = LoraMixer(root).load_lora_weights({**file, f"net.{spelled}": torch.tensor(alpha)}, "a")
    down, up = (t.double() for t in file.values())
    assert report.complete
    torch.testing.assert_close(
        root["net"].weight.double(), before + alpha / 2 * up @ down, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("key", ["norm_q.weight", "norm_q.bias", "ff.k_norm.weight"])
@pytest.mark.parametrize("front", ["", "transformer."])
def test_norms_beside_pairs_are_set(key, front):
    root, value = model(), torch.arange(8.0)
    mixer = LoraMixer(root)
    base = root.get_parameter(key).detach().clone()
    assert mixer.load_lora_weights({**pair(front + "net"), front + key: value}, "a").complete
    assert torch.equal(root.get_parameter(key), value)
    mixer.disable_lora()
    assert torch.equal(root.get_parameter(key), base)


def test_norms_alone_are_a_model_and_no_adapter():
    with pytest.raises(NotAnAdapterError):
        read_adapter({"norm_q.weight": torch.ones(8), "norm_q.bias": torch.ones(8)})


@pytest.mark.parametrize("told_by", ["configuration", "keys"])
def test_a_part_of_kasa_is_refused_by_name(told_by, tmp_path):
    file = {f"base_model.model.{key}": value for key, value in pair().items()}
    config = {"peft_type": "LORA", "r": 2}
    if told_by == "configuration":
        config["kasa_config"] = {"beta": 1e-4}
    else:
        file["base_model.model.net.lora_diag"] = torch.ones(2)
    save_file(file, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedAdapterError, match="KaSA"):
        LoraMixer(model()).load_lora_weights(tmp_path)
