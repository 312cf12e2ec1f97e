"""What diffusers and PEFT call adapters by, on a pipeline that a mixer works on: refused by name, never silently nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_mixer import LoraMixer, LoraMixerError, PipelineStateError
from tests.models import tiny_sd
from tests.small_pipe import pairs_for, written

if TYPE_CHECKING:
    from pathlib import Path

PIPE = {
    "disable_lora": (),
    "enable_lora": (),
    "unload_lora_weights": (),
    "fuse_lora": (),
    "unfuse_lora": (),
    "set_adapters": ("a",),
    "delete_adapters": ("a",),
    "get_active_adapters": (),
    "get_list_adapters": (),
    "set_lora_device": (["a"], "cpu"),
    "load_lora_weights": ({},),
}
UNET = {
    "set_adapters": ("a",),
    "set_adapter": ("a",),
    "disable_lora": (),
    "enable_lora": (),
    "disable_adapters": (),
    "enable_adapters": (),
    "active_adapters": (),
    "fuse_lora": (),
    "unfuse_lora": (),
    "unload_lora": (),
    "delete_adapters": ("a",),
}


@pytest.fixture
def mixed() -> tuple[Any, LoraMixer]:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    return pipe, mixer


@pytest.mark.parametrize(("word", "args"), PIPE.items())
def test_words_of_pipelines_name_the_mixers_own(mixed: Any, word: str, args: Any) -> None:
    pipe, mixer = mixed
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with pytest.raises(
        PipelineStateError, match=rf"StableDiffusionPipeline\.{word}\(\).*\(a\).*LoraMixer\.of"
    ):
        getattr(pipe, word)(*args)
    assert mixer.get_active_adapters() == ["a"]
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize(("word", "args"), UNET.items())
def test_words_of_models_name_the_mixers_own(mixed: Any, word: str, args: Any) -> None:
    pipe, _ = mixed
    with pytest.raises(PipelineStateError, match=rf"UNet2DConditionModel\.{word}\(\)"):
        getattr(pipe.unet, word)(*args)
    if hasattr(type(pipe.text_encoder), word):
        with pytest.raises(PipelineStateError, match=rf"CLIPTextModel\.{word}\(\)"):
            getattr(pipe.text_encoder, word)(*args)


def test_words_are_the_models_own_again_after_unload(mixed: Any) -> None:
    pipe, mixer = mixed
    mixer.unload_lora_weights()
    assert [word for word in PIPE if word in vars(pipe)] == []
    assert [word for word in UNET if word in vars(pipe.unet)] == []
    assert pipe.get_list_adapters() == {}
    assert not pipe.unet._forward_pre_hooks
    assert "_call_impl" not in vars(pipe.unet)
    assert "encode_prompt" not in vars(pipe)


def test_another_pipeline_with_the_parts_is_refused_as_well(mixed: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe, _ = mixed
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    for word in ("disable_lora", "unload_lora_weights", "fuse_lora"):
        with pytest.raises(PipelineStateError, match="LoraMixer"):
            getattr(other, word)()


@pytest.mark.parametrize(
    "mix", [{"a": {"weight": 1.0, "schedule": "0@0,1@1"}}, {"a": {"weight": 1.0, "mask": [[1.0, 0.0]]}}]
)
def test_what_is_in_no_parameter_is_not_saved_by_halves(mixed: Any, mix: Any, tmp_path: Path) -> None:
    pipe, mixer = mixed
    mixer.set_mix(mix)
    for owner in (pipe, pipe.unet, pipe.text_encoder):
        with pytest.raises(
            PipelineStateError, match=r"save_pretrained\(\) would save a model without the mix"
        ):
            owner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    mixer.set_adapters("a", 0.5)
    pipe.save_pretrained(tmp_path / "out")
    back = type(pipe).from_pretrained(tmp_path / "out", safety_checker=None)
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in back.unet.state_dict().items())


def test_a_schedule_that_is_merged_at_each_step_is_not_saved_either(tmp_path: Path) -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    mixer.set_mix({"a": {"weight": 1.0, "schedule": "0@0,1@1"}}, engine="merged")
    with pytest.raises(LoraMixerError):
        pipe.save_pretrained(tmp_path / "out")


def test_words_for_adapters_of_peft_are_theirs(mixed: Any) -> None:
    pipe, mixer = mixed
    mixer.unload_lora_weights()
    ours = written(pairs_for(pipe, 1))
    file = written(pairs_for(pipe, 3, lambda part, path: part == "unet" and "attn" in path))
    pipe.load_lora_weights({k: v for k, v in file.items() if v.ndim == 2}, adapter_name="theirs")
    mixer.load_lora_weights(ours, "ours")
    assert pipe.get_list_adapters() == {"unet": ["theirs"]}
    pipe.disable_lora()
    assert mixer.get_active_adapters() == ["ours"]
