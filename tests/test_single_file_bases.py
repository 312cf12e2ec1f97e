"""A checkpoint in one file is a base for extract, merge, resize and convert as the diffusers folder of the same model is."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_mixer.errors import MatchError, SourceNotFoundError
from lora_mixer.pictures import load_outline
from lora_mixer.writing import convert, extract, merge
from tests import single_files
from tests.models import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def models(request, tmp_path_factory):
    """Return a base and a tuned model, each as a file and as a folder with weights."""
    folder = tmp_path_factory.mktemp("bases")
    made = {}
    for name, seed in (("base", None), ("tuned", 77)):
        pipe = tiny_sd() if request.param == "sd" else tiny_sdxl()
        if seed is not None:
            torch.manual_seed(seed)
            for part in (pipe.unet.mid_block, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
                for key, parameter in () if part is None else part.named_parameters():
                    if "embedding" not in key:
                        parameter.data += 0.1 * torch.randn_like(parameter)
        made[name, "file"] = single_files.write_checkpoint(pipe, folder / f"{name}.safetensors")
        pipe.save_pretrained(folder / f"{name}-folder")
        made[name, "folder"] = folder / f"{name}-folder"
    return made


def extracted(models, before, after, tmp_path):
    out = tmp_path / f"{before}-{after}.safetensors"
    extract(models["base", before], models["tuned", after], out, rank=3, pairs_only=True)
    return load_file(out)


def test_extract_takes_files_folders_and_one_of_each(models, tmp_path):
    expected = extracted(models, "folder", "folder", tmp_path)

    assert any(".mid_block." in key for key in expected)
    assert any(key.startswith("text_encoder") for key in expected)
    for before, after in (("file", "file"), ("file", "folder"), ("folder", "file")):
        found = extracted(models, before, after, tmp_path)
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_every_weight_of_an_outline_is_the_files_own(models):
    file, folder = (load_outline(str(models["base", form])) for form in ("file", "folder"))

    for part, module in folder.components.items():
        for name, parameter in module.named_parameters():
            own = file.tensor(part, name)
            assert torch.equal(own, folder.tensor(part, name)), f"{part}.{name}"
            assert own.shape == parameter.shape


@pytest.mark.parametrize("work", ["merge", "convert"])
def test_changes_that_need_the_base_take_it_from_the_file(models, work, tmp_path):
    """DoRA's change depends on the base's weights."""
    outline = load_outline(str(models["base", "folder"]))
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, into = outline.tensor("unet", f"{path}.weight").shape
    generator = torch.Generator().manual_seed(5)
    tensors = {
        f"unet.{path}.lora_A.weight": torch.randn(2, into, generator=generator),
        f"unet.{path}.lora_B.weight": torch.randn(out, 2, generator=generator),
        f"unet.{path}.lora_magnitude_vector": torch.rand(out, generator=generator) + 0.5,
    }
    save_file(tensors, tmp_path / "dora.safetensors")
    made = {}
    for form in ("file", "folder"):
        place, base = tmp_path / f"{form}.safetensors", models["base", form]
        if work == "merge":
            merge([(tmp_path / "dora.safetensors", 0.6)], place, rank=4, model=base)
        else:
            convert(tmp_path / "dora.safetensors", place, format="kohya", rank=4, model=base)
        made[form] = load_file(place)

    assert made["file"]
    assert all(torch.equal(made["file"][key], made["folder"][key]) for key in made["folder"])


def test_half_precision_files_are_not_widened(tmp_path):
    pipe = tiny_sd().to(torch.float16)
    file = single_files.write_checkpoint(pipe, tmp_path / "half.safetensors")

    weight = load_outline(str(file)).tensor("unet", "conv_in.weight")

    assert weight.dtype == torch.float16
    assert torch.equal(weight, pipe.unet.conv_in.weight)


def test_what_is_no_model_and_what_is_another_one_is_said(models, tmp_path):
    save_file({"lora_unet_a.lora_down.weight": torch.ones(1, 1)}, tmp_path / "lora.safetensors")

    with pytest.raises(SourceNotFoundError, match="an adapter, not a model"):
        extract(models["base", "file"], tmp_path / "lora.safetensors", tmp_path / "x.safetensors", rank=1)
    with pytest.raises(MatchError, match="weight for weight"):
        extract(models["base", "file"], models["base", "folder"], tmp_path / "x.safetensors", rank=1)
    assert not (tmp_path / "x.safetensors").exists()
