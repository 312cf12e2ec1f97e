"""diffusers' nested block weights: the same as diffusers on transformers, and a whole block's weight elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_mixer.errors import MixError
from lora_mixer.mixes import BlockLayout, Mix
from tests.small_unets import SD15, SDXL, gain_of, layers

if TYPE_CHECKING:
    from pathlib import Path


class TestLayout:
    """A layout is read off a live model."""

    def test_the_layouts_of_sd15_and_sdxl(
        self, sd15_unet: torch.nn.Module, sdxl_unet: torch.nn.Module
    ) -> None:
        """Transformers and resnets by block."""
        assert BlockLayout.from_module_names(name for name, _ in sd15_unet.named_modules()) == SD15
        assert BlockLayout.from_module_names(name for name, _ in sdxl_unet.named_modules()) == SDXL

    def test_other_models_have_no_blocks(self) -> None:
        """Neither a text encoder nor a VAE is taken for a UNet."""
        names = [
            "text_model.encoder.layers.0.mlp",
            "encoder.down_blocks.0.resnets.0",
            "transformer_blocks.0.attn",
        ]

        assert not BlockLayout.from_module_names(names).is_unet


class TestDiffusersDicts:
    """Nested dicts as in diffusers."""

    @given(data=st.data())
    def test_transformers_have_the_weights_of_diffusers(
        self, data: st.DataObject, sd15_unet: torch.nn.Module
    ) -> None:
        """Any nesting, on every transformer of the model, compared with diffusers' own expansion."""
        number = st.floats(-2, 2)
        one = st.lists(number, min_size=1, max_size=1)

        def side(slots: int, blocks: list[int]) -> st.SearchStrategy[object]:
            of_block = number | one | st.lists(number, min_size=slots, max_size=slots)
            return of_block | st.dictionaries(st.sampled_from([f"block_{i}" for i in blocks]), of_block)

        sides = {"down": side(2, [0, 1, 2]), "mid": number | one, "up": side(3, [1, 2, 3])}
        spec = data.draw(st.fixed_dictionaries({}, optional=sides))
        expected = _maybe_expand_lora_scales(cast("Any", sd15_unet), [spec])[0] if spec else {}
        gain = gain_of(spec, SD15) if spec else gain_of("ALL")

        for module in layers(sd15_unet):
            if ".attentions." in module:
                block = (
                    module.split(".transformer_blocks")[0].removesuffix(".proj_in").removesuffix(".proj_out")
                )
                assert gain(module) == expected.get(block, 1.0), module

    @pytest.mark.parametrize("tag", ["a_blockwise_scalar", "a_blockwise_list"])
    def test_outputs_are_those_that_diffusers_gave(self, tag: str, shared_data: Path) -> None:
        """The reference outputs, from weights merged with our gains: 1e-5 relative."""
        golden = shared_data / "generated/diffusers_peft/golden_sd_mix_0.7_0.4.json"
        note = next(n for n in json.loads(golden.read_text())["notes"] if n.startswith(tag))
        spec = json.loads(note[note.index("[{") + 1 : note.rindex("]")].replace("'", '"'))
        mix = Mix.of({"a": spec})
        pipelines: Any = StableDiffusionPipeline
        pipe = pipelines.from_pretrained(shared_data / "tiny-sd")
        adapter = load_file(shared_data / "generated/diffusers_peft/sd_lora_r4_unet_te.safetensors")
        given_inputs = load_file(shared_data / "generated/inputs_sd.safetensors")
        layout = BlockLayout.from_module_names(name for name, _ in pipe.unet.named_modules())

        for key in (key for key in adapter if key.endswith(".lora_A.weight")):
            component, _, module = key.removesuffix(".lora_A.weight").partition(".")
            layer = getattr(pipe, component).get_submodule(module)
            delta = adapter[key.replace("lora_A", "lora_B")].flatten(1) @ adapter[key].flatten(1)
            layer.weight.data += mix.gain("a", component, module, layout) * delta.reshape(layer.weight.shape)
        with torch.no_grad():
            found = pipe.unet(
                *(given_inputs[key] for key in ("sample", "timesteps", "encoder_hidden_states"))
            ).sample
            hidden = pipe.text_encoder(given_inputs["input_ids"]).last_hidden_state

        expected = load_file(golden.with_suffix(".safetensors"))
        for name, output in (("unet_out", found), ("text_encoder.last_hidden_state", hidden)):
            wanted = expected[f"mix@{tag}/{name}"]
            assert (output - wanted).norm() / wanted.norm() < 1e-5

    def test_a_blocks_weight_reaches_all_of_the_block(self, sd15_unet: torch.nn.Module) -> None:
        """Diffusers leaves middle resnets, samplers and blocks without transformers at 1."""
        gain = gain_of({"down": 0.25, "mid": 0.5, "up": 0.75}, SD15)

        for module in layers(sd15_unet):
            side = {"down_blocks": 0.25, "mid_block": 0.5, "up_blocks": 0.75}.get(module.split(".")[0], 1.0)
            assert gain(module) == side, module

    def test_lists_index_transformers_and_resnets_and_end_with_the_sampler(self) -> None:
        """Entry i is for transformer i and resnet i."""
        gain = gain_of({"down": {"block_3": [0.1, 0.2]}, "up": {"block_1": [0.3, 0.4, 0.5]}}, SD15)

        assert [gain(f"down_blocks.3.resnets.{i}.conv1") for i in (0, 1)] == [0.1, 0.2]
        assert [gain(f"up_blocks.1.{part}.0.conv") for part in ("resnets", "upsamplers")] == [0.3, 0.5]
        assert gain("up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q") == 0.4
        assert gain("up_blocks.2.attentions.0.proj_in") == 1.0

    def test_layers_outside_the_blocks_keep_1_unless_other_says_more(self) -> None:
        """conv_in and the embeddings are in no block."""
        assert gain_of({"down": 0, "mid": 0, "up": 0})("conv_in") == 1.0
        assert gain_of({"down": 0, "other": 0.5})("time_embedding.linear_1") == 0.5

    def test_blocks_multiply_the_weight_of_the_unet_and_spare_text_encoders(self) -> None:
        """Beside a weight, blocks are relative to it."""
        mix = Mix.of({"a": {"weight": 0.5, "components": {"te": 0.2}, "blocks": {"down": 0.5}}})

        assert mix.gain("a", "unet", "down_blocks.0.resnets.0.conv1") == 0.25
        assert mix.gain("a", "text_encoder", "text_model.encoder.layers.0.mlp.fc1") == 0.2

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ({"down": [1, 2, 3]}, "down.block_0: expected 2 weights, one for each transformer, or 1, got 3"),
            ({"up": {"block_1": [1, 2]}}, "up.block_1: expected 3 weights"),
            ({"up": {"block_0": [1, 2]}}, "up.block_0: expected 3 weights, one for each resnet, or 1, got 2"),
            (
                {"down": {"block_7": 1}},
                "down.block_7: this UNet has no such block; it has block_0 to block_3",
            ),
        ],
    )
    def test_what_does_not_fit_the_model_is_refused(self, spec: object, said: str) -> None:
        """Both when gains are asked for and when the mixer checks beforehand."""
        with pytest.raises(MixError) as caught:
            gain_of(spec, SD15)("conv_in")
        assert said in str(caught.value)
        with pytest.raises(MixError, match=r"a\.blocks"):
            Mix.of({"a": {"blocks": spec}}).check({"unet": SD15, "text_encoder": BlockLayout()})

    def test_a_list_that_ends_too_early_is_refused_without_a_layout_too(self) -> None:
        """Never an IndexError."""
        with pytest.raises(MixError, match="at least 3 weights"):
            gain_of({"up": [0.1, 0.2]})("up_blocks.1.attentions.2.proj_in")

    def test_blocks_on_a_model_without_blocks_are_refused(self) -> None:
        """A transformer has no down blocks."""
        mix = Mix.of({"a": {"unet": {"down": 0.5}}})

        with pytest.raises(MixError, match="this model has none"):
            mix.check({"transformer": BlockLayout()})
        mix.check({"unet": SD15, "vae": BlockLayout()})

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ({"unet": {"dwn": 0.5}}, 'Did you mean "down"'),
            ({"unet": {"mid": [1, 2]}}, "a.unet.mid: expected a number or a list of 1, got a list of 2"),
            ({"unet": {"up": {"block1": 1}}}, 'a.unet.up: expected keys such as "block_0"'),
            (
                {"unet": {"down": {"block_1": [0.5, "x"]}}},
                "a.unet.down.block_1[1]: expected a finite number, got 'x'",
            ),
            (
                {"unet": {"down": []}},
                "a.unet.down: expected a number or a list of numbers, got an empty list",
            ),
            ({"text_encoder": {"down": 1}}, "only unet has blocks"),
            ({"components": {"unet": {"down": 1}}, "blocks": {"up": 1}}, "given twice"),
            ({"blocks": 3}, "a.blocks: expected a preset's name"),
        ],
    )
    def test_other_things_are_refused_with_their_place(self, spec: object, said: str) -> None:
        """At construction."""
        with pytest.raises(MixError) as caught:
            Mix.of({"a": spec})
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"down": 0.5, "mid": [2], "up": {"block_1": [0.1, 0.2, 0.3], "block_0": 0}, "other": 0},
        {"down": {}},
        "OUTALL",
        [0.25] * 20,
        {"*.attn2.*": 0.5, "re:x{2}|\"y'": 1},
        "b-lora:style",
    ],
)
def test_block_weights_survive_every_form(spec: object) -> None:
    """Written and read again."""
    mix = Mix.of({"a": {"weight": 0.5, "blocks": spec}})

    for written in (mix.to_dict(), mix.to_json(), mix.to_yaml(), mix.to_text()):
        again = Mix.of(written)
        assert again.adapters == mix.adapters
        assert again == mix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"unet": {"down": 0.5}}, {"blocks": {"down": [0.5], "mid": 1, "up": {"block_0": 1}}}),
        ({"blocks": "ALL"}, {"blocks": [1] * 17}),
        ({"blocks": [1] + [0] * 11}, {"blocks": [1] + [0] * 25}),
    ],
)
def test_ways_to_say_the_same_depth_are_equal(one: object, other: object) -> None:
    """Lists of one, ones left out, ids left out."""
    assert Mix.of({"a": one}) == Mix.of({"a": other})
