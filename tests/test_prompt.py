"""Tags in prompts: AUTOMATIC1111's grammar, with schedules and LBW."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mixer.errors import MixError
from lora_mixer.mixes import (
    LBW_PRESETS,
    AdapterMix,
    Keyframes,
    LbwWeights,
    Mix,
    Ramp,
    Window,
    format_prompt,
    parse_prompt,
)

KNOWN = ("watercolor", "3d", "my style v1.5")
weights = st.floats(allow_nan=False, allow_infinity=False)


def only(text: str) -> AdapterMix:
    """Read the one tag of a prompt."""
    _, mix = parse_prompt(text, KNOWN)
    return mix[mix.names[0]]


class TestWeights:
    """The positional order is text encoders, then UNet."""

    @pytest.mark.parametrize(
        ("tag", "te", "unet"),
        [
            ("<lora:3d>", 1.0, 1.0),
            ("<lora:3d:0.7>", 0.7, 0.7),
            ("<lora:3d:0.2:0.8>", 0.2, 0.8),
            ("<lora:3d:te=0.2>", 0.2, 0.2),
            ("<lora:3d:unet=0.8>", 1.0, 0.8),
            ("<lora:3d:0.2:unet=0.8>", 0.2, 0.8),
            ("<lora:3d:unet=0.8:te=0.2>", 0.2, 0.8),
            ("<lora:3d:unet=0.8:0.2>", 0.2, 0.8),
            ("<lora: 3d : -1 : 1.5 >", -1.0, 1.5),
            ("<lyco:3d:0.5>", 0.5, 0.5),
            ("<lora:3d:1e-1>", 0.1, 0.1),
        ],
    )
    def test_te_is_1_and_unet_is_te_where_they_are_missing(self, tag: str, te: float, unet: float) -> None:
        """As AUTOMATIC1111 reads them."""
        adapter = only(tag)

        assert [adapter.component_weight(name) for name in ("text_encoder", "text_encoder_2", "unet")] == [
            te,
            te,
            unet,
        ]

    def test_each_text_encoder_can_have_its_weight(self) -> None:
        """Our addition, by the components' full names."""
        adapter = only("<lora:3d:0.2:0.8:text_encoder_2=0.5>")

        assert [adapter.component_weight(name) for name in ("text_encoder", "text_encoder_2", "unet")] == [
            0.2,
            0.5,
            0.8,
        ]

    def test_names_may_have_spaces_and_points(self) -> None:
        """Everything but : < >."""
        _, mix = parse_prompt("x <lora:my style v1.5:0.5>", KNOWN)

        assert mix == Mix.of({"my style v1.5": 0.5})

    def test_the_order_is_that_of_the_tags(self) -> None:
        """Which LoRA Switch goes by."""
        assert parse_prompt("<lora:3d:1><lora:watercolor:1>", KNOWN)[1].names == ("3d", "watercolor")


class TestTime:
    """Schedules in tags."""

    def test_keyframes_stand_in_either_position(self) -> None:
        """For both, for the UNet alone, for the text encoders alone."""
        frames = Keyframes([(0, 0), (0.5, 1)])

        both, unet, te = (
            only(f"<lora:3d:{args}>") for args in ("0@0,1@0.5", "0.3:0@0,1@0.5", "0@0,1@0.5:0.3")
        )

        assert (both.weight, both.schedule, dict(both.components)) == (1.0, frames, {})
        assert (unet.weight, unet.schedule, dict(unet.components)) == (1.0, frames, {"te": 0.3})
        assert (te.weight, te.schedule, dict(te.schedules)) == (0.3, None, {"te": frames})

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            ("start=5", Window(5, None, "step")),
            ("stop=1", Window(0, 1, "step")),
            ("start=5:stop=20", Window(5, 20)),
            ("step=5-20", Window(5, 20)),
            ("step=5-", Window(5)),
            ("start=0.2:stop=0.8", Window(0.2, 0.8)),
            ("step=0.2-0.8", Window(0.2, 0.8)),
            ("schedule=ease_in(0, 1, 0.2, 0.8)", Ramp(0, 1, 0.2, 0.8, "ease_in")),
            ("schedule=1@0;0.2@10", Keyframes([(0, 1), (10, 0.2)])),
        ],
    )
    def test_windows_and_schedules(self, args: str, expected: object) -> None:
        """Whole numbers are steps, as in LBW; numbers with a point are fractions."""
        adapter = only(f"<lora:3d:0.5:{args}>")

        assert adapter.schedule == expected
        assert adapter.weight == 0.5

    def test_a_text_weight_beside_a_unet_weight_is_spared_by_the_window(self) -> None:
        """One weight for both starts late as a whole; a te of its own stands."""
        late, own = (parse_prompt(f"<lora:3d:{args}:start=5>", KNOWN)[1] for args in ("0.5", "0.5:0.5"))

        assert late.gain_at("3d", "text_encoder", "x", 0, 1) == 0.0
        assert own.gain_at("3d", "text_encoder", "x", 0, 1) == 0.5


class TestDepth:
    """LBW in tags."""

    @pytest.mark.parametrize(
        "args", ["1:lbw=OUTALL", "1:1:lbw=OUTALL", "1:OUTALL", "lbw=1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"]
    )
    def test_presets_and_lists(self, args: str) -> None:
        """By name, in the old third place, and number by number."""
        assert only(f"<lora:3d:{args}>").blocks == LbwWeights(LBW_PRESETS["OUTALL"])

    def test_presets_of_the_user(self) -> None:
        """Given beside the prompt."""
        _, mix = parse_prompt("<lora:3d:1:lbw=FACE>", KNOWN, {"FACE": [1, *[0] * 11]})

        assert mix["3d"].blocks == LbwWeights([1, *[0] * 11])


class TestText:
    """What is left of the prompt."""

    @pytest.mark.parametrize(
        ("prompt", "clean"),
        [
            ("a castle <lora:3d:1>", "a castle"),
            ("<lora:3d:1> a castle", "a castle"),
            ("a <lora:3d:1> castle", "a castle"),
            ("a castle, <lora:3d:1>, dusk", "a castle, dusk"),
            ("a castle,<lora:3d:1>,dusk", "a castle,dusk"),
            ("a castle, <lora:3d:1>", "a castle"),
            ("<lora:3d:1>, a castle", "a castle"),
            ("a castle<lora:3d:1>, dusk", "a castle, dusk"),
            ("a cas<lora:3d:1>tle", "a castle"),
            ("a castle <lora:3d:1><lora:watercolor:1> dusk", "a castle dusk"),
            ("a, <lora:3d:1>, <lora:watercolor:1>, b", "a, b"),
            ("a\n<lora:3d:1>\nb", "a\n\nb"),
            ("<lora:3d:1>", ""),
            ("two  spaces ,, stay <lora:3d:1>", "two  spaces ,, stay"),
        ],
    )
    def test_a_tag_leaves_no_gap(self, prompt: str, clean: str) -> None:
        """One space, no comma alone; the rest as it was typed."""
        assert parse_prompt(prompt, KNOWN)[0] == clean

    @given(st.text())
    def test_a_prompt_without_tags_is_the_same(self, text: str) -> None:
        """To the last space."""
        if "<lora:" not in text and "<lyco:" not in text:
            assert parse_prompt(text, KNOWN) == (text, Mix())

    @pytest.mark.parametrize(
        "prompt",
        [
            r"an escaped \<lora:3d:1>",
            "(lora:1.2), [lora:3d:1]",
            "<lora:3d:1",
            "<lora>",
            "<lora:>",
            "<LORA:3d:1>",
            "< lora:3d:1>",
            "<hypernet:3d:1>",
            "a < b > c",
            "lora:3d:1>",
        ],
    )
    def test_odd_brackets_are_left_alone(self, prompt: str) -> None:
        """They are text."""
        assert parse_prompt(prompt, KNOWN) == (prompt, Mix())


class TestRefusing:
    """What cannot be meant."""

    @pytest.mark.parametrize(
        ("prompt", "said"),
        [
            (
                "<lora:watercolour:1>",
                'no adapter "watercolour"; known are "watercolor", "3d", "my style v1.5". Did you',
            ),
            ("<lora::1>", 'there is no adapter ""'),
            ("<lora:3d:1> <lora:3d:0.5>", '"3d" is named twice'),
            ("<lora:3d:x>", "expected a number or keyframes such as \"0@0,1@0.5\", got 'x'"),
            ("<lora:3d:>", "expected a number or keyframes"),
            ("<lora:3d:nan>", "finite number"),
            ("<lora:3d:1:OUTAL>", 'Did you mean "OUTALL"'),
            ("<lora:3d:1:1:8>", "expected at most two weights"),
            ("<lora:3d:1:dyn=8>", "cannot be cut at run time"),
            ("<lora:3d:1:lbwe=x>", "layer patterns"),
            ("<lora:3d:1:hr=0.5>", "a second pass"),
            ("<lora:3d:1:strat=5>", 'Did you mean "start"'),
            ("<lora:3d:1:te=1>", "te is given twice"),
            ("<lora:3d:te=1:te=1>", "te is given twice"),
            ("<lora:3d:1:start=5:stop=0.5>", "both in steps or both as fractions"),
            ("<lora:3d:1:0@0,1@1:start=5>", "all say when"),
            ("<lora:3d:1:step=5>", 'expected a span such as "5-20"'),
            ("<lora:3d:1:step=9-3>", "a start below the stop"),
            ("<lora:3d:1:lbw=1,1>", "17 or 26"),
            ("<lora:3d:1:lbw=R,1,1,1,1,1,1,1,1,1,1,1>", 'token "R"'),
        ],
    )
    def test_the_reason_is_said(self, prompt: str, said: str) -> None:
        """With the tag it is about."""
        with pytest.raises(MixError) as caught:
            parse_prompt(prompt, KNOWN)

        assert said in str(caught.value)
        assert "<lora:" in str(caught.value)

    def test_of_a_large_library_few_names_are_said(self) -> None:
        """And how many more there are; the one that was meant first of all."""
        known = [f"style {number}" for number in range(300)]
        with pytest.raises(MixError, match=r'known are "style 0", .*"style 7" and 292 more\.$'):
            parse_prompt("<lora:zzz:1>", known)
        with pytest.raises(MixError, match=r'Did you mean "style 250"\?$'):
            parse_prompt("<lora:style250:1>", known)

    def test_all_problems_are_told_at_once(self) -> None:
        """Of all tags."""
        with pytest.raises(MixError, match="for 3 reasons"):
            parse_prompt("<lora:nope:1> <lora:3d:x> <lora:watercolor:1:nope=1>", KNOWN)

    @given(st.text(alphabet="<>lora:3d=@,;~0.1-es()\\ ", max_size=40))
    def test_nothing_else_is_raised(self, junk: str) -> None:
        """Whatever is typed."""
        with contextlib.suppress(MixError):
            parse_prompt(f"<lora:3d:{junk}", KNOWN)


class TestWriting:
    """A mix as tags."""

    @pytest.mark.parametrize(
        "mix",
        [
            "watercolor:0.7, 3d:1,te=0.2",
            "3d:0.5,text_encoder_2=0.1,lbw=OUTALL",
            "3d:0.5,te=0.5,schedule=linear(0, 1)",
            "3d:0.5,schedule=window(5s, 20s), watercolor:0@0,1@0.5",
            "3d:0.25,te=0@0,1@1s",
            {"my style v1.5": {"blocks": [0.25] * 20}},
            {},
        ],
    )
    def test_tags_read_back_as_the_same_mix(self, mix: object) -> None:
        """Prompt and mix both."""
        written = format_prompt("a castle, at dusk", mix)

        assert parse_prompt(written, KNOWN) == ("a castle, at dusk", Mix.of(mix))

    @pytest.mark.parametrize(
        ("form", "tag"),
        [
            ({"unet": 0.8, "te": 0.2}, "0.2:0.8"),
            ({"unet": 0.8}, "1:0.8"),
            ({"unet": "0@0,1@1", "te": 0.5}, "0.5:0@0,1@1"),
        ],
    )
    def test_a_weight_of_the_unet_is_the_tags_second_one(self, form: object, tag: str) -> None:
        """The same gains on a pipeline with a UNet."""
        mix = Mix.of({"3d": form})

        assert format_prompt("", mix) == f"<lora:3d:{tag}>"
        again = parse_prompt(f"<lora:3d:{tag}>", KNOWN)[1]
        for component in ("unet", "text_encoder", "text_encoder_2"):
            assert again.gain_at("3d", component, "x", 3, 9) == mix.gain_at("3d", component, "x", 3, 9)

    @given(weights, weights)
    def test_numbers_survive_to_the_last_bit(self, te: float, unet: float) -> None:
        """Also the very small and the very large."""
        mix = Mix.of({"3d": {"weight": unet, "components": {"te": te}}})

        assert parse_prompt(format_prompt("", mix), KNOWN) == ("", mix)

    @pytest.mark.parametrize(
        ("mix", "said"),
        [
            ({"3d": {"transformer": 0.5}}, 'weights of "transformer"'),
            (
                {"3d": {"components": {"unet": 0.5}, "schedule": "window(5s)"}},
                "this schedule beside a weight of unet",
            ),
            ({"3d": {"unet": {"down": 0.5}}}, "nested blocks"),
            ({"3d": {"blocks": {"*.attn2.*": 0.5}}}, "layer patterns"),
            ("3d:1, b:1 | switch", 'cannot say "switch"'),
            ({"a:b": 1}, "names with : < >"),
        ],
    )
    def test_what_tags_cannot_say_is_refused(self, mix: object, said: str) -> None:
        """Nothing is dropped silently."""
        with pytest.raises(MixError) as caught:
            format_prompt("x", mix)

        assert said in str(caught.value)
