"""Bad input: each its own clear error, and nothing changed, nothing half loaded."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import (
    AdapterNameError,
    InvalidAdapterError,
    LoraMixer,
    LoraMixerError,
    MatchError,
    NotAnAdapterError,
    PartialMatchWarning,
    SourceError,
    UnsupportedAdapterError,
    read_adapter,
)
from tests.models import SDXL_WIDTHS, tiny_sd
from tests.spellings import dotted, kohya, state_dict
from tests.weights import Pair, Snapshot, deltas, random_pairs

KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
SD = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
SDXL = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
OMI = {"unet": "unet.", "text_encoder": "clip_l.", "text_encoder_2": "clip_g."}
PAIR = {
    "unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
    "unet.conv_in.lora_B.weight": torch.ones(8, 1, 1, 1),
}


def t(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


@pytest.fixture
def refuses(sd, sd_base):
    """Load into a pipeline that has an adapter at work; assert the error and that nothing is different afterwards."""
    clean = sd_base[1]

    def load(source: Any, kind: type[LoraMixerError], **options: Any) -> str:
        mixer = LoraMixer(sd)
        good, _ = state_dict(random_pairs(sd, lambda _, path: "attn1" in path), kohya(SD), KOHYA)
        mixer.load_lora_weights(good, adapter_name="good")
        mixer.set_adapters("good", 0.5)
        before = Snapshot.of(sd), mixer.mix, dict(mixer.adapters), mixer.get_list_adapters(), mixer.memory()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(LoraMixerError) as caught:
                mixer.load_lora_weights(source, **{"adapter_name": "bad", **options})
        assert type(caught.value) is kind, caught.value
        before[0].assert_untouched(sd)
        assert (mixer.mix, dict(mixer.adapters), mixer.get_list_adapters(), mixer.memory()) == before[1:]
        mixer.set_adapters("good", 0.7)
        mixer.unload_lora_weights()
        clean.assert_untouched(sd)
        return str(caught.value)

    return load


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "holds no tensors"),
        ({"clip_l": t(2, 768), "clip_g": t(2, 1280)}, "textual inversion"),
        ({"emb_params": t(3, 768)}, "textual inversion"),
        ({"<cat>": t(768)}, "textual inversion"),
        ({"bundle_emb.cat.string_to_param.*": t(2, 768)}, "textual inversion"),
        ({"model.diffusion_model.input_blocks.0.0.weight": t(8, 4, 3, 3), "first_stage_model.x": t(1)}, "full checkpoint"),
        ({"conditioner.embedders.0.transformer.text_model.embeddings.position_ids": t(1)}, "full checkpoint"),
        ({"conv_in.weight": t(8, 4, 3, 3), "conv_in.bias": t(8)}, "full model"),
        ({"controlnet_cond_embedding.conv_in.weight": t(8, 3, 3, 3), "conv_in.weight": t(8, 4, 3, 3)}, "ControlNet"),
        ({"control_model.input_blocks.0.0.weight": t(8, 4, 3, 3)}, "ControlNet"),
        ({"lora_controlnet": t(0), "input_blocks.1.0.emb_layers.1.up": t(8, 1)}, "ControlNet"),
        ({"image_proj.proj.weight": t(4, 4), "ip_adapter.1.to_k_ip.weight": t(4, 4)}, "IP-Adapter"),
        ({"image_proj.proj.weight": t(4, 4), "ip_adapter.0.to_q_lora.down.weight": t(4, 4),
          "ip_adapter.0.to_q_lora.up.weight": t(4, 4)}, "IP-Adapter"),
        ({"a.b.c": t(3), "d": t(1)}, "none of its 2 keys belongs to a known adapter format: a.b.c, d"),
        ({"lora_unet_conv_in.alpha": t()}, "none of its 1 keys"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_called_by_its_name(table, message, refuses):
    assert message in refuses(table, NotAnAdapterError)


@pytest.mark.parametrize("odd", [{"meta": "text"}, {5: t(1)}, {"x": None}, {"x": [1.0]}])
def test_a_state_dict_with_something_else_in_it_is_refused(odd, refuses):
    (key,) = odd

    assert f": {key}: expected a mapping of names to tensors" in refuses({**PAIR, **odd}, SourceError)


@pytest.mark.parametrize(
    ("table", "messages"),
    [
        ({"lora_unet_conv_in.lora_down.weight": t(2, 4, 3, 3), "lora_unet_conv_out.lora_up.weight": t(4, 2, 1, 1)},
         ["2 of 2 modules", "lora_unet_conv_in: has lora down but no lora up", "lora_unet_conv_out: has lora up but no lora down"]),
        ({"lora_unet_conv_in.lora_mid.weight": t(2, 2, 3, 3)}, ["1 of 1 modules"]),
        ({"unet.conv_in.lora_A.weight": t(2, 4, 3, 3), "unet.conv_in.lora_B.weight": t(8, 3, 1, 1)},
         ["(8, 3, 1, 1)", "(2, 4, 3, 3)", "do not multiply"]),
        ({"unet.conv_in.lora_A.weight": t(2, 4, 3, 3), "unet.conv_in.lora_B.weight": t(8, 2, 3, 3)}, ["do not multiply"]),
        ({"unet.conv_in.lora_A.weight": t(4), "unet.conv_in.lora_B.weight": t(8, 1)}, ["expected matrices"]),
        ({"unet.conv_in.lora_A.weight": t(), "unet.conv_in.lora_B.weight": t()}, ["expected matrices"]),
        ({"unet.conv_in.lora_A.weight": t(0, 4, 3, 3), "unet.conv_in.lora_B.weight": t(8, 0, 1, 1)}, ["empty"]),
        ({"unet.conv_in.lora_A.weight": t(1, 4, 3, 3).int(), "unet.conv_in.lora_B.weight": t(8, 1, 1, 1).int()},
         ["torch.int32", "expected floating point"]),
        ({"unet.conv_in.lora_A.weight": t(1, 4, 3, 3).bool(), "unet.conv_in.lora_B.weight": t(8, 1)}, ["torch.bool"]),
        ({"unet.conv_in.lora_A.weight": t(1, 4, 3, 3) + 0j, "unet.conv_in.lora_B.weight": t(8, 1)}, ["torch.complex64"]),
        ({**PAIR, "unet.conv_in.alpha": t() + 1j}, ["alpha"]),
    ],
)  # fmt: skip
def test_broken_modules_are_all_listed_in_one_error(table, messages, refuses):
    said = refuses(table, InvalidAdapterError)

    assert [message for message in messages if message not in said] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused_and_forced_ones_leave_no_trace(
    value, dtype, refuses, sd, sd_base
):
    pairs = random_pairs(sd, lambda _, path: path in ("conv_in", "conv_out"))
    table, _ = state_dict(pairs, kohya(SD), KOHYA)
    table = {key: tensor.to(dtype) for key, tensor in table.items()}
    table["lora_unet_conv_out.lora_up.weight"].view(-1)[0] = value

    said = refuses(table, InvalidAdapterError)
    assert "NaN or Inf in 1 of 2 modules (unet.conv_out)" in said
    assert "allow_nonfinite=True" in said

    mixer = LoraMixer(sd)
    mixer.load_lora_weights(table, adapter_name="bad", allow_nonfinite=True)
    assert not sd.unet.conv_out.weight.isfinite().all()
    mixer.set_adapters("bad", 0.0)
    sd_base[1].assert_untouched(sd)
    mixer.set_adapters("bad", 1.0)
    mixer.delete_adapters("bad")
    sd_base[1].assert_untouched(sd)


FOREIGN = {
    "Flux": ("lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.0.attn.to_q"),
    "SD3": ("lora_unet_joint_blocks_0_x_block_attn_qkv",),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_1_attention_to_q",),
    "Wan": ("diffusion_model.blocks.0.self_attn.q", "lora_unet__blocks_0_cross_attn_k"),
    "Z-Image": ("diffusion_model.layers.0.attention.qkv", "lora_unet__layers_0_attention_to_k"),
    "a DiT": ("transformer_blocks.0.attn.add_k_proj",),  # several families have this one
}


@pytest.mark.parametrize(
    ("family", "module"), [(name, module) for name, modules in FOREIGN.items() for module in modules]
)
def test_other_model_families_are_refused_by_name(family, module, refuses):
    said = refuses({f"{module}.lora_down.weight": t(2, 8), f"{module}.lora_up.weight": t(8, 2)}, MatchError)

    assert f"an adapter for {family}" in said
    assert "this pipeline is a UNet (cross-attention 12)" in said


def test_real_key_lists_of_other_families_are_refused(shared_data, sd, sd_base):
    """Flux, Qwen, Anima, Krea: by what they are for, or by an algorithm or tensors that are not read."""
    files = sorted((shared_data / "keys").glob("invokeai_*.json"))
    mixer, families = LoraMixer(sd), {}
    for file in files:
        if "sdxl" in file.name:
            continue
        shapes = json.loads(file.read_text())["keys"]
        table = {
            key: torch.ones([min(n, 4) for n in shape or [1, 1]])
            for key, shape in shapes.items()
            if ".alpha" not in key
        }
        with pytest.raises(LoraMixerError) as caught:
            mixer.load_lora_weights(table, adapter_name=file.stem)
        families[file.stem] = f"{type(caught.value).__name__}: {caught.value}"
    assert len(families) > 15
    unclear = {
        k: v
        for k, v in families.items()
        if "for unknown" in v or ("none of its" in v and "an adapter for" not in v)
    }
    assert unclear == {}
    assert mixer.adapters == {}
    sd_base[1].assert_untouched(sd)


class TestTheWrongBase:
    """An SDXL adapter on an SD 1.x UNet, and the like: the message has both widths."""

    @pytest.mark.parametrize(
        "front",
        [
            "lora_unet_down_blocks_1_attentions_0_",
            "lora_unet_input_blocks_4_1_",
            "unet.down_blocks.1.attentions.0.",
        ],
    )
    @pytest.mark.parametrize("first", ["attn1_to_q", "attn2_to_k"])
    def test_real_widths_are_named(self, front, first):
        """Also where the layers that come first in the file say nothing of the text's width."""
        table = {}
        shapes = {f"attn1_to_{x}": (640, 640) for x in "qkv"} | {
            f"attn{n}_to_out_0": (1280, 1280) for n in (1, 2)
        }
        shapes |= {"ff_net_0_proj": (9, 9), "ff_net_2": (9, 9), "proj_in": (9, 9), "attn2_to_q": (7, 7)}
        shapes |= {"attn2_to_k": (640, 2048)}
        for leaf in sorted(shapes, key=lambda name: name != first):
            name = f"{front}transformer_blocks_0_{leaf}"
            out, into = shapes[leaf]
            table |= {
                f"{name}.lora_down.weight": torch.zeros(1, into),
                f"{name}.lora_up.weight": torch.zeros(out, 1),
            }
        pipe = tiny_sd()
        pipe.unet.register_to_config(cross_attention_dim=768)
        clean = Snapshot.of(pipe)

        with pytest.raises(MatchError, match=r"(?s)SDXL.*2048.*SD 1\.x.*768"):
            LoraMixer(pipe).load_lora_weights(table)
        clean.assert_untouched(pipe)

    def test_an_sdxl_file_on_sd_names_the_shapes(self, sdxl, refuses):
        table, _ = state_dict(random_pairs(sdxl, lambda _, path: "attn2" in path), kohya(SDXL), KOHYA)

        said = refuses(table, MatchError)

        assert str(sum(SDXL_WIDTHS)) in said
        assert "12" in said


class TestPartialMatch:
    """A part of the file fits: it loads, with a warning and the report; ``strict`` refuses."""

    @pytest.mark.parametrize("spell", [kohya(SDXL), dotted(OMI)], ids=["kohya", "omi"])
    def test_keys_of_an_encoder_that_is_not_there_are_reported(self, spell, sdxl):
        """An SDXL pipeline may be loaded without its second encoder."""
        pairs = random_pairs(sdxl, lambda _, path: "attn" in path)
        table, _ = state_dict(pairs, spell, KOHYA)
        encoder, sdxl.text_encoder_2 = sdxl.text_encoder_2, None
        clean = Snapshot.of(sdxl)
        try:
            mixer = LoraMixer(sdxl)
            with pytest.warns(PartialMatchWarning, match="the pipeline has no such component"):
                report = mixer.load_lora_weights(table, adapter_name="a")
            clean.assert_holds(sdxl, {p: d for p, d in deltas(pairs).items() if p[0] != "text_encoder_2"})
            by_name = {part.component: part for part in report.components}
            assert len(by_name["text_encoder_2"].unmatched) == sum(p[0] == "text_encoder_2" for p in pairs)
            assert len(by_name["text_encoder_2"].keys_unused) == 3 * len(by_name["text_encoder_2"].unmatched)
            mixer.unload_lora_weights()
            clean.assert_untouched(sdxl)
            with pytest.raises(MatchError, match="not all of the file was matched"):
                mixer.load_lora_weights(table, strict=True)
            clean.assert_untouched(sdxl)
        finally:
            sdxl.text_encoder_2 = encoder

    def test_te2_keys_on_sd_are_reported(self, sd, sd_base):
        pairs = random_pairs(sd, lambda component, path: component == "unet" and "attn1" in path)
        table, _ = state_dict(pairs, kohya(SD), KOHYA)
        extra = {
            f"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{x}.weight": t(4, 4) for x in ("up", "down")
        }

        with pytest.warns(PartialMatchWarning, match="text_encoder_2"):
            report = LoraMixer(sd).load_lora_weights({**table, **extra})

        sd_base[1].assert_holds(sd, deltas(pairs))
        assert report.unmatched == 1

    def test_strict_refuses_one_unknown_module(self, refuses):
        extra = {f"lora_unet_nowhere.lora_{x}.weight": t(4, 4) for x in ("up", "down")}

        said = refuses({**PAIR, **extra}, MatchError, strict=True)

        assert "nowhere" in said

    def test_a_wrong_shape_is_refused_even_where_others_fit(self, refuses):
        extra = {"unet.conv_out.lora_A.weight": t(1, 9, 3, 3), "unet.conv_out.lora_B.weight": t(4, 1, 1, 1)}

        said = refuses({**PAIR, **extra}, MatchError)

        assert "unet.conv_out: made for a weight (4, 9, 3, 3), the module has (4, 8, 3, 3)" in said

    def test_a_norm_is_no_place_for_a_matrix(self, refuses):
        refuses(
            {"unet.conv_norm_out.lora_A.weight": t(1, 8), "unet.conv_norm_out.lora_B.weight": t(8, 1)},
            MatchError,
        )


@pytest.mark.parametrize("name", ["good", "", "  ", "a\nb", 3])
def test_a_name_in_use_or_impossible_is_refused(name, refuses):
    refuses(PAIR, AdapterNameError, adapter_name=name)


def test_names_are_compared_whole(sd, sd_base):
    """``a`` and ``aa``, or the name of a module, are names like any other."""
    pair = Pair(t(8, 1), t(1, 4, 3, 3))
    mixer = LoraMixer(sd)
    for name in ("a", "aa", "unet", "conv_in", "lora_A", "default"):
        mixer.load_lora_weights(PAIR, adapter_name=name)
    mixer.set_adapters(["a", "aa"], [0.5, 0.25])
    mixer.delete_adapters("a")

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): pair.delta()}, 0.25)


@pytest.mark.parametrize(
    "content", [{"a": 3}, {"string_to_param": {"*": t(2, 768)}, "name": "x"}, [], [1], 3, "text", None]
)
def test_a_pickle_of_something_else_is_refused(content, refuses, tmp_path):
    torch.save(content, tmp_path / "a.pt")

    refuses(tmp_path / "a.pt", NotAnAdapterError, allow_pickle=True)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(refuses, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Bomb()}, tmp_path / "a.pt")

    with pytest.raises(LoraMixerError, match="allow_pickle"):
        read_adapter(tmp_path / "a.pt")
    with pytest.raises(LoraMixerError, match="reads weights only"):
        read_adapter(tmp_path / "a.pt", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_good_file_with_an_unknown_algorithm_is_refused_by_name(refuses, tmp_path):
    """Leaving the unknown part out would be another picture."""
    save_file({**PAIR, "unet.conv_out.lora_E": t(1, 1)}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "XLORA"}))

    assert "XLORA" in refuses(tmp_path, UnsupportedAdapterError, weight_name="a.safetensors")
