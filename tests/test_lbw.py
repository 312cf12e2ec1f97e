"""LBW's lists, presets and tokens, id by id, and layer patterns with B-LoRA's presets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_mixer.errors import MixError
from lora_mixer.mixes import (
    LBW_IDS,
    LBW_PRESETS,
    BlockLayout,
    BlockShape,
    LayerPatterns,
    LbwWeights,
    Mix,
    draw_lbw,
    read_presets,
)
from lora_mixer.mixes.lbw import id_of
from tests.small_unets import SD15, SDXL, gain_of, layers

if TYPE_CHECKING:
    import torch


class TestLbw:
    """LBW lists and presets."""

    def test_ids_of_sd15_layers(self) -> None:
        """The table of the original UNet's blocks."""
        found = {name: id_of(name) for name in (
            "conv_in", "down_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.1.conv1", "down_blocks.0.downsamplers.0.conv",
            "down_blocks.2.attentions.1.proj_in", "down_blocks.3.resnets.1.conv1", "mid_block.attentions.0.proj_in",
            "up_blocks.0.resnets.2.conv1", "up_blocks.0.upsamplers.0.conv", "up_blocks.1.attentions.0.proj_in",
            "up_blocks.3.attentions.2.proj_out", "time_embedding.linear_1", "conv_out",
        )}  # fmt: skip

        assert list(found.values()) == [
            "IN00", "IN01", "IN02", "IN03", "IN08", "IN11", "M00", "OUT02", "OUT02", "OUT03", "OUT11", None, None
        ]  # fmt: skip

    @pytest.mark.parametrize(("length", "layout"), [(17, SD15), (26, SD15), (12, SDXL), (20, SDXL)])
    def test_each_id_has_its_number(
        self, length: int, layout: BlockLayout, request: pytest.FixtureRequest
    ) -> None:
        """With a different number for every id, on every layer of the model."""
        model = request.getfixturevalue("sd15_unet" if layout is SD15 else "sdxl_unet")
        numbers = dict(zip(LBW_IDS[length], range(1, length + 1), strict=True))
        mix = Mix.of({"a": {"blocks": list(numbers.values())}})

        for module in layers(model):
            expected = 1.0 if id_of(module) is None else numbers.get(str(id_of(module)), 0)
            assert mix.gain("a", "unet", module, layout) == expected, module
        assert mix.gain("a", "text_encoder_2", "text_model.encoder.layers.0.mlp.fc1") == 1.0

    @pytest.mark.parametrize(
        ("preset", "on"),
        [
            ("NONE", ""),
            (
                "ALL",
                "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
            ),
            ("INS", "BASE IN01 IN02 IN04"),
            ("IND", "BASE IN05 IN07 IN08"),
            ("INALL", "BASE IN01 IN02 IN04 IN05 IN07 IN08"),
            ("MIDD", "BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06"),
            ("OUTD", "BASE OUT03 OUT04 OUT05 OUT06"),
            ("OUTS", "BASE OUT07 OUT08 OUT09 OUT10 OUT11"),
            ("OUTALL", "BASE OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"),
        ],
    )
    def test_presets_switch_on_their_ids(self, preset: str, on: str) -> None:
        """The lists of the script, id by id."""
        weights = LbwWeights(LBW_PRESETS[preset]).by_id

        assert [key for key, value in weights.items() if value == 1.0] == on.split()
        assert set(weights.values()) <= {0.0, 1.0}

    def test_preset_all_0_5_is_0_5_throughout(self) -> None:
        """The one preset with another number."""
        assert LBW_PRESETS["ALL0.5"] == (0.5,) * 17

    def test_lists_come_as_text_too(self) -> None:
        """As in a prompt."""
        numbers = [1, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, -1]

        assert Mix.of({"a": {"blocks": "1,0,0,0,0.5,0,0,0,0,0,0,-1"}}) == Mix.of({"a": {"blocks": numbers}})
        assert Mix.of("a:lbw=1,0,0,0,0.5,0,0,0,0,0,0,-1,te=2")["a"].components == {"te": 2.0}
        assert (
            Mix.of("a:lbw=1,0,0,0,0.5,0,0,0,0,0,0,-1,te=2").gain("a", "unet", "up_blocks.1.resnets.2.conv1")
            == -1.0
        )

    @pytest.mark.parametrize("length", [0, 1, 13, 16, 25, 57, 60, 62])
    def test_other_lengths_are_refused_with_the_right_ones(self, length: int) -> None:
        """LBW would take what is missing as 0."""
        with pytest.raises(MixError, match=r"12 or 20 \(SDXL\), 17 or 26 .* got " + str(length)):
            Mix.of({"a": {"blocks": [1] * length}})

    @pytest.mark.parametrize(
        ("length", "layout", "said"),
        [(17, SDXL, "OUT00, OUT01, OUT02"), (12, SD15, "IN01, IN02"), (20, SD15, "OUT09, OUT10, OUT11")],
    )
    def test_a_list_for_the_other_model_is_refused(self, length: int, layout: BlockLayout, said: str) -> None:
        """A list of 17 would silently cut the largest blocks of SDXL."""
        with pytest.raises(MixError) as caught:
            gain_of([1] * length, layout)("conv_in")

        assert said in str(caught.value)
        assert ("expected a list of 12 or 20 or 26" if layout is SDXL else "17 or 26") in str(caught.value)

    @pytest.mark.parametrize("token", ["R", "U", "X", "X+0.2"])
    def test_tokens_are_refused_by_name(self, token: str) -> None:
        """A mix with dice in it would not be one value."""
        with pytest.raises(MixError, match=rf'the token "{token[0]}.* draw_lbw'):
            Mix.of({"a": {"blocks": ",".join([token] + ["1"] * 11)}})

    def test_a_seed_makes_tokens_numbers(self) -> None:
        """The same seed, the same numbers, in the ranges of LBW."""
        text = ",".join(["R"] * 8 + ["U"] * 8 + ["X"])

        drawn = draw_lbw(text, seed=3, x=0.7)

        assert drawn == draw_lbw(text, seed=3, x=0.7)
        assert drawn != draw_lbw(text, seed=4, x=0.7)
        assert all(0 <= value <= 1 for value in drawn.values[:8])
        assert all(-0.5 <= value <= 1.5 for value in drawn.values[8:16])
        assert drawn.values[16] == 0.7
        with pytest.raises(MixError, match="give x"):
            draw_lbw(text, seed=3)

    def test_users_have_presets_of_their_own(self) -> None:
        """From a file in LBW's format, before the built-in names."""
        presets = read_presets("# comment\n\nFACE: 1,0,0,0,0,0,0,0,1,1,1,0\nALL:0,0,0,0,0,0,0,0,0,0,0,0\n")

        assert Mix.of("a:lbw=FACE", presets) == Mix.of(
            {"a": {"blocks": [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]}}
        )
        assert Mix.of("a:lbw=ALL", presets) == Mix.of({"a": {"blocks": [0] * 12}})

    def test_an_unknown_preset_is_answered_with_the_known_ones(self) -> None:
        """And with the nearest."""
        with pytest.raises(MixError, match=r'known are "NONE", "ALL", .*Did you mean "OUTALL"'):
            Mix.of("a:lbw=OUTAL")
        with pytest.raises(MixError, match="line 2: expected a new name"):
            read_presets("A:1,1,1,1,1,1,1,1,1,1,1,1\nno colon")


class TestPatterns:
    """Layer names."""

    def test_the_last_match_decides_and_no_match_is_1(self) -> None:
        """First the rule, then its exceptions."""
        gain = gain_of({"*.attn2.*": 0.2, "mid_block.*": 0, "re:mid_block.*to_[kv]": 0.7})

        assert gain("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q") == 0.2
        assert gain("mid_block.attentions.0.transformer_blocks.0.attn2.to_q") == 0.0
        assert gain("mid_block.attentions.0.transformer_blocks.0.attn2.to_k") == 0.7
        assert gain("down_blocks.0.resnets.0.conv1") == 1.0

    def test_order_counts(self) -> None:
        """The other way round the rule hides its exception."""
        one, other = {"*": 0.5, "mid_block.*": 1}, {"mid_block.*": 1, "*": 0.5}

        assert gain_of(one)("mid_block.resnets.0.conv1") == 1.0
        assert gain_of(other)("mid_block.resnets.0.conv1") == 0.5
        assert Mix.of({"a": {"blocks": one}}) != Mix.of({"a": {"blocks": other}})

    def test_a_pattern_may_name_the_component(self) -> None:
        """So text encoders have depth as well."""
        mix = Mix.of({"a": {"blocks": {"text_encoder*.layers.[0-5].*": 0.5, "unet.*": 0.9}}})

        assert mix.gain("a", "text_encoder", "text_model.encoder.layers.3.mlp.fc1") == 0.5
        assert mix.gain("a", "text_encoder", "text_model.encoder.layers.7.mlp.fc1") == 1.0
        assert mix.gain("a", "unet", "conv_in") == 0.9

    def test_patterns_without_marks_go_under_their_own_key(self) -> None:
        """A plain word could be a misspelled block."""
        assert gain_of({"patterns": {"conv_in": 0.1}})("conv_in") == 0.1
        with pytest.raises(MixError, match=r'Layer patterns go under "patterns"'):
            gain_of({"conv_in": 0.1})

    def test_patterns_that_match_nothing_are_found(self) -> None:
        """For an error: they would do nothing, without a word."""
        patterns = LayerPatterns({"mid_block.*": 1, "unet.conv_*": 0, "nowhere.*": 2})

        assert patterns.unmatched([("unet", "mid_block.resnets.0.conv1")]) == ("unet.conv_*", "nowhere.*")
        assert patterns.unmatched([("unet", "mid_block.x"), ("unet", "conv_in")]) == ("nowhere.*",)

    @pytest.mark.parametrize(
        "spec", [{"re:(": 1}, {"*": "x"}, {"patterns": {}}, {"patterns": 3}, {"patterns": {"": 1}}]
    )
    def test_broken_patterns_are_refused(self, spec: object) -> None:
        """A regular expression is compiled at once."""
        with pytest.raises(MixError):
            gain_of(spec)

    @pytest.mark.parametrize("preset", ["b-lora:content", "b-lora:style", "b-lora"])
    @pytest.mark.parametrize(
        ("down", "up"),
        [
            ((2, 2, 2, 0), (0, 3, 3, 3)),  # SD 1.x, 2.x
            ((0, 2, 2, 0), (0, 3, 3, 0)),  # SDXL's refiner
            ((0, 1, 1), (2, 2, 0)),  # KOALA, the demo
            ((0, 2, 2, 2), (3, 3, 3, 0)),  # x4 upscaler
            ((0, 3, 3, 3), (4, 4, 4, 0)),  # Kandinsky 2
            ((0, 2), (3, 0)),
            ((2, 2), ()),  # a ControlNet alone
            ((), ()),
        ],
    )
    def test_b_lora_is_refused_off_sdxl(
        self, preset: str, down: tuple[int, ...], up: tuple[int, ...]
    ) -> None:
        """Also where a model has transformers at up_blocks.0: they carry nothing that B-LoRA knows of."""
        layout = BlockLayout(tuple(BlockShape(n, 2) for n in down), None, tuple(BlockShape(n, 3) for n in up))
        mix = Mix.of({"a": {"blocks": preset}})

        with pytest.raises(MixError, match=f"{preset} is for SDXL"):
            mix.check({"unet": layout})
        mix.check({"unet": SDXL, "text_encoder": BlockLayout()})
        Mix.of({"a": {"blocks": {"*": 0.5}}}).check({"unet": layout})

    @pytest.mark.parametrize(
        "blocks", ["b-lora:style", {"up": {"block_0": [1, 0, 1]}}, [0.5] * 12, [0.5] * 20, {"mid": 0.5}]
    )
    def test_a_controlnet_beside_the_unet_is_not_asked_for_blocks_that_it_has_not(
        self, blocks: object
    ) -> None:
        """It is the half of a UNet: weights for the other half are the UNet's, and mean nothing in its own layers."""
        half = BlockLayout(SDXL.down, SDXL.mid)
        mix = Mix.of({"a": {"blocks": blocks}})

        mix.check({"controlnet": half, "unet": SDXL, "vae": BlockLayout()})

        path = "down_blocks.1.attentions.0.proj_in"
        assert mix.gain("a", "controlnet", path, half) == mix.gain("a", "unet", path, SDXL)

    @pytest.mark.parametrize(
        ("preset", "content", "style"), [("b-lora:content", 1, 0), ("b-lora:style", 0, 1), ("b-lora", 1, 1)]
    )
    def test_b_lora_keeps_two_blocks_of_sdxl(
        self, preset: str, content: int, style: int, sdxl_unet: torch.nn.Module
    ) -> None:
        """up_blocks.0.attentions.0 is content, attentions.1 is style, all else 0."""
        mix = Mix.of({"a": {"blocks": preset}})

        for module in layers(sdxl_unet):
            on = {"up_blocks.0.attentions.0": content, "up_blocks.0.attentions.1": style}
            assert mix.gain("a", "unet", module, SDXL) == on.get(".".join(module.split(".")[:4]), 0), module
        assert mix.gain("a", "text_encoder", "text_model.encoder.layers.0.mlp.fc1") == 0.0
