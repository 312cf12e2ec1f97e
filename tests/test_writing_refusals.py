"""What has no place in a file is refused by name; biases are carried where there is one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lora_mixer import AdapterNameError, LoraMixer, MixError, SaveError
from tests.test_writing import make_lora, sd_pipe, weights_of, worst


def test_what_cannot_be_saved_is_said(tmp_path):
    pipe = sd_pipe()
    mixer = LoraMixer(pipe)
    with pytest.raises(MixError, match="nothing to save"):
        mixer.save_lora_weights(tmp_path / "a")
    mixer.load_lora_weights(make_lora(pipe, dtype=torch.bfloat16), adapter_name="a")
    with pytest.raises(AdapterNameError, match="'b'"):
        mixer.save_lora_weights(tmp_path / "a", "b")
    with pytest.raises(SaveError, match="format must be"):
        mixer.save_lora_weights(tmp_path / "a", format="lycoris")
    with pytest.raises(SaveError, match="is a folder"):
        mixer.save_lora_weights(tmp_path / "a.safetensors", format="peft")
    with pytest.raises(SaveError, match="rank"):
        mixer.save_lora_weights(tmp_path / "a", rank=0)
    with pytest.raises(SaveError, match="dtype"):
        mixer.save_lora_weights(tmp_path / "a", dtype="int8")
    with pytest.raises(SaveError, match="do not fit"):
        mixer.save_lora_weights(tmp_path / "a", weights={"a": 1e6}, dtype="fp16")
    with pytest.raises(MixError, match="schedules"):
        mixer.save_lora_weights(tmp_path / "a", weights="a:1,schedule=linear(0, 1)")
    assert not list(tmp_path.iterdir())


def test_kohyas_format_refuses_what_it_has_no_names_for(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    mixer = LoraMixer(model)
    mixer.load_lora_weights({"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)})

    with pytest.raises(SaveError, match=r"model\.0.*diffusers"):
        mixer.save_lora_weights(tmp_path / "a", format="kohya")
    mixer.save_lora_weights(tmp_path / "a", weights={"default_0": 0.5})
    wanted = model[0].weight.detach() - 0.5
    mixer.load_lora_weights(tmp_path / "a", adapter_name="again", strict=True)
    assert torch.allclose(model[0].weight, wanted)


def test_biases_are_carried(tmp_path):
    pipe = sd_pipe()
    tensors = {
        "unet.conv_in.lora_A.weight": torch.randn(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.randn(8, 2, 1, 1),
        "unet.conv_in.lora_B.bias": torch.randn(8),
    }
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(tensors, adapter_name="a")
    mixer.set_adapters("a", 0.5)
    wanted = weights_of(pipe)

    for form in ("diffusers", "peft"):
        mixer.save_lora_weights(tmp_path / form, format=form, weights={"a": 0.5})
        mixer.load_lora_weights(tmp_path / form, adapter_name=form, strict=True)
        assert worst(weights_of(pipe), wanted) < 1e-6
    mixer.save_lora_weights(tmp_path / "k.safetensors", format="kohya", weights={"a": 0.5})
    diff = load_file(tmp_path / "k.safetensors")["lora_unet_conv_in.diff_b"]
    assert torch.allclose(diff, 0.5 * tensors["unet.conv_in.lora_B.bias"])


TYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("form", ["peft", "diffusers"])
@pytest.mark.parametrize("into", [None, "float16"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_adapters_of_every_float_type_are_written_and_what_is_not_finite_is_refused(
    tmp_path, kind, into, form
):
    net = torch.nn.ModuleDict({"net": torch.nn.Linear(8, 8)})
    file = {
        f"net.lora_{side}.weight": (torch.randn(*shape, generator=torch.Generator().manual_seed(3)) / 4).to(
            kind
        )
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    mixer = LoraMixer(net)
    mixer.load_lora_weights(file, "a")
    place = tmp_path / ("out" if form == "peft" else "out.safetensors")
    mixer.save_lora_weights(place, "a", format=form, dtype=into)
    before = net["net"].weight.clone()
    mixer.unload_lora_weights()
    mixer.load_lora_weights(place, "a")
    assert torch.allclose(net["net"].weight, before, atol=2e-3)
    mixer.unload_lora_weights()

    file["net.lora_A.weight"] = torch.full((2, 8), torch.nan).to(kind)
    mixer.load_lora_weights(file, "b", allow_nonfinite=True, activate=False)
    with pytest.raises(SaveError, match="NaN or Inf in 1 of 1"):
        mixer.save_lora_weights(place.with_name(f"b{place.suffix}"), "b", format=form, dtype=into)
