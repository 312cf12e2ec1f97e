"""DoRA written in each format's own place for magnitudes: read back by this package, by PEFT and by diffusers as the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_mixer import LoraMixer, SaveError
from lora_mixer.writing import convert
from tests.models import tiny_sd

if TYPE_CHECKING:
    from pathlib import Path

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"


def table(
    pipe: Any, leaf: str, paths: tuple[str, ...] = (LINEAR, CONV), *, by_input: bool = False
) -> dict[str, Any]:
    """One DoRA on each module, with magnitudes as a leaf spells them."""
    g = torch.Generator().manual_seed(4)
    found = {}
    for path in paths:
        shape = pipe.unet.get_submodule(path).weight.shape
        keep = 1 if by_input or (leaf == "lora_magnitude_vector" and len(shape) > 2) else 0
        width = shape[1] if by_input else shape[0]
        view = [-1 if axis == keep else 1 for axis in range(len(shape))]
        values = torch.rand(width, generator=g) + 0.5
        key = f"unet.{path}"
        found |= {
            f"{key}.lora_A.weight": torch.randn(3, *shape[1:], generator=g) * 0.3,
            f"{key}.lora_B.weight": torch.randn(shape[0], 3, *[1] * (len(shape) - 2), generator=g) * 0.3,
            f"{key}.alpha": torch.tensor(2.0),
            f"{key}.{leaf}": values
            if leaf == "lora_magnitude_vector" and len(shape) == 2
            else values.view(view),
        }
    return found


def weights_of(pipe: Any, source: Any, weight: float) -> dict[str, torch.Tensor]:
    """What the two modules hold under an adapter, which is taken off again."""
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(source, adapter_name="probe")
    mixer.set_adapters("probe", weight)
    found = {path: pipe.unet.get_submodule(path).weight.detach().clone() for path in (LINEAR, CONV)}
    mixer.unload_lora_weights()
    return found


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(value, other[path], atol=1e-5) for path, value in one.items())


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize("leaf", ["lora_magnitude_vector", "dora_scale"])
def test_a_dora_reads_back_as_the_trained_weight_from_every_format(
    sd: Any, form: str, leaf: str, tmp_path: Path
) -> None:
    source = table(sd, leaf)
    wanted = {weight: weights_of(sd, source, weight) for weight in (1.0, -0.6)}
    mixer = LoraMixer(sd)
    mixer.load_lora_weights(source, adapter_name="a")

    report = mixer.save_lora_weights(tmp_path / "out", "a", format=form)

    mixer.unload_lora_weights()
    out = tmp_path / "out" if form == "peft" else report.files[0]
    assert near(weights_of(sd, out, 1.0), wanted[1.0])
    same_rule = (leaf == "dora_scale") == (form == "kohya")
    assert near(weights_of(sd, out, -0.6), wanted[-0.6]) == same_rule
    assert any("2 modules are DoRA" in note for note in report.notes)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_lengths_of_inputs_have_a_place_in_kohyas_format_only(sd: Any, form: str, tmp_path: Path) -> None:
    source = table(sd, "dora_scale", by_input=True)
    wanted = weights_of(sd, source, -0.6)
    mixer = LoraMixer(sd)
    mixer.load_lora_weights(source, adapter_name="a")

    with pytest.raises(
        SaveError, match=r"no place for 2 modules: .*the magnitude of a DoRA with lengths of inputs"
    ):
        mixer.save_lora_weights(tmp_path / "out", "a", format=form)
    report = mixer.save_lora_weights(tmp_path / "kohya", "a", format="kohya")

    mixer.unload_lora_weights()
    assert not (tmp_path / "out").exists()
    assert near(weights_of(sd, report.files[0], -0.6), wanted)


def test_a_pair_beside_a_dora_is_refused_where_one_setting_stands_for_all(sd: Any, tmp_path: Path) -> None:
    source = table(sd, "lora_magnitude_vector")
    del source[f"unet.{CONV}.lora_magnitude_vector"]
    mixer = LoraMixer(sd)
    mixer.load_lora_weights(source, adapter_name="a")

    with pytest.raises(SaveError, match=rf"unet\.{CONV} \(a pair without the magnitude"):
        mixer.save_lora_weights(tmp_path / "out", "a", format="peft")
    mixer.unload_lora_weights()


def test_diffusers_makes_the_same_of_the_file(tmp_path: Path) -> None:
    pipe, peer = tiny_sd(), tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(table(pipe, "lora_magnitude_vector"), adapter_name="a")

    report = mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format="diffusers")

    peer.load_lora_weights(str(report.files[0]), adapter_name="a")
    peer.fuse_lora()
    for path in (LINEAR, CONV):
        theirs = peer.unet.get_submodule(path)
        theirs = getattr(theirs, "base_layer", theirs).weight
        assert torch.allclose(pipe.unet.get_submodule(path).weight, theirs, atol=1e-5), path


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 5), nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).movedim(-1, 1)
        out: torch.Tensor = self.b(y)
        return out


def test_pefts_own_folder_is_read_and_the_written_one_is_pefts(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    x = torch.randn(2, 3, 3, 6)
    peer = get_peft_model(
        Net(),
        LoraConfig(target_modules=["a", "b"], r=2, lora_alpha=3, use_dora=True, init_lora_weights=False),
    ).eval()
    with torch.no_grad():
        for name, value in peer.named_parameters():
            if "magnitude" in name:
                value.add_(torch.rand(value.shape))
    peer.save_pretrained(tmp_path / "theirs")
    net = Net().eval()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(tmp_path / "theirs", adapter_name="a")
    assert torch.allclose(net(x), peer(x), atol=1e-5)

    mixer.save_lora_weights(tmp_path / "ours", "a", format="peft")

    again = PeftModel.from_pretrained(Net(), tmp_path / "ours").eval()
    assert torch.allclose(again(x), peer(x), atol=1e-5)
    names = ("theirs", "ours")
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in names)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_file_is_converted(sd: Any, tmp_path: Path) -> None:
    sd.save_pretrained(tmp_path / "model")
    mixer = LoraMixer(sd)
    source = table(sd, "lora_magnitude_vector")
    wanted = weights_of(sd, source, 0.5)
    mixer.load_lora_weights(source, adapter_name="a")
    first = mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format="diffusers")
    mixer.unload_lora_weights()

    second = convert(first.files[0], tmp_path / "b", format="peft", model=tmp_path / "model")

    assert len(second.ranks) == 2
    assert near(weights_of(sd, tmp_path / "b", 0.5), wanted)
