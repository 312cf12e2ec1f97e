"""Adapters written in each format: read again they are what they were, and the peers read the same from them."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lora_mixer.writing.formats.format
from lora_mixer import LoraMixer, SaveError
from lora_mixer.writing.container import model_hashes, write_safetensors

FORMATS = ["diffusers", "kohya", "peft"]


def sd_unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=8,
        attention_head_dim=4,
        sample_size=8,
    )


def sdxl_unet(seed=0):
    """SDXL's own blocks, which readers of LDM names take for granted, at a small width."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        layers_per_block=2,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=8,
        attention_head_dim=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
        sample_size=8,
    )


def text_model(kind="CLIPTextModel"):
    import transformers

    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        bos_token_id=62,
        eos_token_id=63,
    )
    return getattr(transformers, kind)(config)


def sd_pipe():
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=text_model(),
        tokenizer=None,
        unet=sd_unet(),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class SDXL:
    """The parts of SDXL that adapters reach, without the rest."""

    def __init__(self):
        self.components = {
            "unet": sdxl_unet(),
            "text_encoder": text_model(),
            "text_encoder_2": text_model("CLIPTextModelWithProjection"),
        }


def make_lora(pipe, *, seed=0, dtype=torch.float32, kinds=("Linear", "Conv2d"), every=1, alpha=None):
    """An adapter in diffusers' spelling with other ranks and alphas from module to module."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    number = 0
    for component, root in pipe.components.items():
        if not isinstance(root, torch.nn.Module):
            continue
        for path, module in root.named_modules():
            if type(module).__name__ not in kinds:
                continue
            number += 1
            if number % every:
                continue
            rank = 2 + number % 3
            shape = tuple(module.weight.shape)
            up = (shape[0], rank, *[1] * (len(shape) - 2))
            prefix = f"lora_{component}".replace("text_encoder_2", "te2").replace("text_encoder", "te1")
            name = f"{prefix}_{path.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=g).to(dtype) * 0.3
            tensors[f"{name}.lora_up.weight"] = torch.randn(up, generator=g).to(dtype) * 0.3
            if alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
            elif number % 4:
                tensors[f"{name}.alpha"] = torch.tensor(rank * (0.5 + number % 5))
    return tensors


def weights_of(pipe):
    return {
        f"{component}.{name}": value.detach().clone()
        for component, root in pipe.components.items()
        if isinstance(root, torch.nn.Module)
        for name, value in root.state_dict().items()
    }


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a if a[name].numel())


def load_written(mixer, path, form, components):
    """Load what was written; PEFT's folders one by one. Gives the names."""
    if form != "peft":
        mixer.load_lora_weights(path, adapter_name="again", strict=True)
        return ["again"]
    parts = [c for c in components if (path / c).is_dir()] or [None]
    for part in parts:
        folder = path if part is None else path / part
        mixer.load_lora_weights(folder, adapter_name=f"again {part}", component=part, strict=True)
    return [f"again {part}" for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [sd_pipe, SDXL])
def test_an_adapter_read_again_is_the_same(tmp_path, kind, form, dtype):
    pipe = kind()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe, dtype=dtype), adapter_name="a", strict=True)
    wanted = weights_of(pipe)

    report = mixer.save_lora_weights(tmp_path / "out", "a", format=form)
    names = load_written(mixer, tmp_path / "out", form, pipe.components)
    mixer.set_adapters(names)

    assert worst(weights_of(pipe), wanted) == 0
    assert report.worst_error == 0
    before = {id(w): p for p, w in _layers(mixer, ["a"]).items()}
    again = _layers(mixer, names)
    assert set(before.values()) == set(again)
    for place, weights in _layers(mixer, ["a"]).items():
        own, back = weights.factors(_shape(pipe, place)), again[place].factors(_shape(pipe, place))
        assert own.scale == back.scale
        assert own.up.dtype == back.up.dtype == dtype
        assert torch.equal(own.up, back.up)
        assert torch.equal(own.down, back.down)


def _layers(mixer, names):
    return {
        (layer.live.component, layer.live.path): layer.weights
        for name in names
        for layer, *_ in mixer._state.controller.held(name)
    }


def _shape(pipe, place):
    return tuple(pipe.components[place[0]].get_submodule(place[1]).weight.shape)


def test_kohya_files_have_the_names_that_their_readers_expect(tmp_path):
    sd, sdxl = sd_pipe(), SDXL()
    for pipe, file in ((sd, "sd"), (sdxl, "sdxl")):
        mixer = LoraMixer(pipe)
        mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
        mixer.save_lora_weights(tmp_path / f"{file}.safetensors", "a", format="kohya")

    names = load_file(tmp_path / "sd.safetensors")
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in names
    names = load_file(tmp_path / "sdxl.safetensors")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.lora_down.weight" in names
    assert "lora_unet_output_blocks_2_2_conv.lora_down.weight" in names
    assert "lora_unet_label_emb_0_0.alpha" in names
    assert "lora_te1_text_model_encoder_layers_1_mlp_fc1.alpha" in names
    assert "lora_te2_text_model_encoder_layers_0_self_attn_out_proj.alpha" in names
    assert not [name for name in names if "down_blocks" in name]


def test_text_encoders_keep_their_old_root_in_diffusers_files(tmp_path):
    pipe = sd_pipe()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a")

    names = [name for name in load_file(tmp_path / "a.safetensors") if name.startswith("text_encoder")]

    assert names
    assert all(name.startswith("text_encoder.text_model.encoder.") for name in names)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [sd_pipe, SDXL])
def test_the_mix_written_is_the_live_mix(tmp_path, kind, form):
    pipe = kind()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
    mixer.load_lora_weights(make_lora(pipe, seed=1, every=2), adapter_name="b")
    mixer.set_adapters(["a", "b"], [{"unet": 0.7, "te": 0.2}, -0.4])
    wanted = weights_of(pipe)

    report = mixer.save_lora_weights(tmp_path / "out", format=form)
    names = load_written(mixer, tmp_path / "out", form, pipe.components)
    mixer.set_adapters(names)

    assert worst(weights_of(pipe), wanted) < 2e-6
    assert report.worst_error == 0


def test_a_rank_gives_the_optimum_and_says_what_it_cost(tmp_path):
    pipe = sd_pipe()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
    mixer.load_lora_weights(make_lora(pipe, seed=1), adapter_name="b")
    base = weights_of(_disabled(mixer))
    mixer.set_adapters(["a", "b"], [0.7, -0.4])
    live = weights_of(pipe)

    report = mixer.save_lora_weights(tmp_path / "out.safetensors", rank=2)
    mixer.load_lora_weights(tmp_path / "out.safetensors", adapter_name="cut", strict=True)
    cut = weights_of(pipe)

    assert len(report.errors) > 50
    for place, error in report.errors.items():
        name = f"{place}.weight"
        delta = (live[name].double() - base[name].double()).flatten(1)
        values = torch.linalg.svdvals(delta)
        optimum = float(values[2:].norm() / values.norm())
        measured = float((cut[name] - live[name]).double().norm() / delta.norm())
        assert error == pytest.approx(optimum, abs=1e-4)
        assert measured == pytest.approx(optimum, abs=1e-4)
        assert report.ranks[place] == 2


def _disabled(mixer):
    mixer.disable_lora()
    return mixer.pipe


def test_what_was_mixed_is_in_the_header(tmp_path):
    pipe = sd_pipe()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
    mixer.load_lora_weights(make_lora(pipe, seed=1), adapter_name="b")

    for form in ("kohya", "diffusers"):
        mixer.save_lora_weights(
            tmp_path / "m.safetensors", format=form, rank=4, weights={"a": 0.7, "b": 0.3}, dtype="bf16"
        )
        with safe_open(tmp_path / "m.safetensors", "pt") as file:
            texts = file.metadata()
        assert texts["lora_mixer.mix"] == "a:0.7, b:0.3"
        assert texts["lora_mixer.rank"] == "4"
        assert texts["lora_mixer.version"]
        assert set(json.loads(texts["lora_mixer.adapters"])) == {"a", "b"}
        assert all(
            tensor.dtype == torch.bfloat16
            for name, tensor in load_file(tmp_path / "m.safetensors").items()
            if not name.endswith(".alpha")
        )


def test_a_sources_metadata_stays_with_it_in_kohya_files(tmp_path):
    pipe = sd_pipe()
    save_file(
        make_lora(pipe),
        tmp_path / "src.safetensors",
        {"ss_tag_frequency": '{"x": {"y": 1}}', "modelspec.trigger_phrase": "wtr", "sshs_model_hash": "0"},
    )
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(tmp_path / "src.safetensors", adapter_name="a")

    mixer.save_lora_weights(tmp_path / "out.safetensors", "a", format="kohya")

    mixer.load_lora_weights(tmp_path / "out.safetensors", adapter_name="b")
    info = mixer.adapters["b"]
    assert info.trigger_words == ("wtr",)
    assert info.metadata["ss_tag_frequency"] == '{"x": {"y": 1}}'
    assert info.metadata["sshs_model_hash"] == info.hashes["sshs_model_hash"]
    assert info.metadata["ss_network_dim"] == "Dynamic"


def test_files_and_hashes_are_those_of_the_safetensors_library(tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}{number}": torch.randn(200, 331, generator=g).to(dtype)
        for number in range(3)
        for name, dtype in (("b", torch.float16), ("a", torch.float32), ("c", torch.bfloat16))
    } | {"z": torch.tensor(3), "u": torch.tensor([1, 2], dtype=torch.uint8), "ü": torch.zeros(0, 2)}
    texts = {"ss_x": "1"}
    save_file(tensors, tmp_path / "theirs.safetensors", texts)

    with (tmp_path / "ours.safetensors").open("wb") as stream:
        write_safetensors(stream, tensors, texts)

    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    from lora_mixer.hashes import compute

    with (tmp_path / "theirs.safetensors").open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        known = compute(stream, start)
    ours = model_hashes(tensors, texts | {"other": "does not count"})
    assert ours["sshs_model_hash"] == known["sshs_model_hash"]
    assert ours["sshs_legacy_hash"] == known["autov1"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    pipe = sd_pipe()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(make_lora(pipe), adapter_name="a")
    mixer.save_lora_weights(tmp_path / "f" / "a.safetensors", "a")
    mixer.save_lora_weights(tmp_path / "p", "a", format="peft")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(stream, tensors, texts):
        stream.write(b"half a ")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_mixer.writing.formats.format, "write_safetensors", full)
    for place, form in (("f/a.safetensors", "kohya"), ("p", "peft"), ("new.safetensors", "diffusers")):
        with pytest.raises(SaveError, match="No space left"):
            mixer.save_lora_weights(tmp_path / place, "a", format=form)

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
