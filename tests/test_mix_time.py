"""Schedules, methods and masks within a mix: what gains they give, and that mixes with them stay values."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mixer.errors import MixError
from lora_mixer.mixes import (
    AdapterMix,
    BlockTree,
    Composite,
    Constant,
    Keyframes,
    KLora,
    LayerPatterns,
    LbwWeights,
    Mask,
    Method,
    Mix,
    Ramp,
    Switch,
    Window,
)

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_model.encoder.layers.0.mlp.fc1"

weights = st.floats(-10, 10)
schedules = st.sampled_from(
    [
        None,
        Constant(0.5),
        Window(5),
        Window(0.2, 0.8),
        Ramp(0, 1, ease="ease_in"),
        Keyframes([(0, 0), (0.5, 1)]),
    ]
)
blocks = st.sampled_from(
    [None, BlockTree(0.5, up={0: (0.1, 0.5, 0.9)}), LbwWeights([0.5] * 12), LayerPatterns({"*.attn2.*": 0.5})]
)
components = st.sampled_from(["unet", "te", "text_encoder", "text_encoder_2"])
adapters = st.builds(
    AdapterMix,
    weights,
    st.dictionaries(components, weights, max_size=3),
    blocks,
    schedules,
    st.dictionaries(components, schedules.filter(bool), max_size=2),
    st.sampled_from([None, Mask("0" * 64), Mask("1" * 64, 2.5, path="left, right.png")]),
)
methods = st.sampled_from(
    [Method(), Switch(3), Switch(adapters=("b", "a")), Composite(), KLora(), KLora("b", "a", modulo=True)]
)
mixes = st.builds(Mix, st.fixed_dictionaries({"a": adapters, "b": adapters}), methods)


class TestSchedules:
    """Gains at steps."""

    def test_a_schedule_multiplies_weight_and_blocks(self) -> None:
        """All three say something about one gain."""
        mix = Mix.of({"a": {"weight": 0.8, "blocks": {"down": 0.5}, "schedule": "linear(0, 1)"}})

        assert mix.gain("a", "unet", LAYER) == 0.4
        assert [mix.gain_at("a", "unet", LAYER, step, 5) for step in range(5)] == [
            0.0,
            0.1,
            0.2,
            0.4 * 0.75,
            0.4,
        ]

    def test_a_constant_mix_has_one_gain_at_all_steps(self) -> None:
        """Whatever the step."""
        mix = Mix.of({"a": {"unet": 0.3}})

        assert mix.is_constant
        assert {mix.gain_at("a", "unet", LAYER, step, 20) for step in range(20)} == {0.3}

    @pytest.mark.parametrize("schedule", [0.5, "0.5@0,0.5@1", {"ramp": "ease_in", "first": 0.5, "last": 0.5}])
    def test_a_schedule_that_stays_the_same_is_a_weight(self, schedule: object) -> None:
        """So the mix is constant, and may be merged."""
        mix = Mix.of({"a": {"weight": 0.8, "schedule": schedule}})

        assert mix.is_constant
        assert mix == Mix.of({"a": 0.4})

    def test_components_may_have_schedules_of_their_own(self) -> None:
        """In place of their number."""
        mix = Mix.of({"a": {"weight": 0.5, "components": {"unet": "0@0,1@1"}}})

        assert [mix.gain_at("a", "unet", LAYER, step, 3) for step in range(3)] == [0.0, 0.5, 1.0]
        assert mix.gain_at("a", "transformer", "x", 0, 3) == 0.5
        assert not mix.is_constant

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ({"weight": 0.5, "schedule": "linear(1, 0)"}, 0.5),
            ({"weight": 0.5, "schedule": "window(5s)"}, 0.0),
            ({"weight": 0.5, "components": {"te": 0.3}, "schedule": "window(5s)"}, 0.3),
            ({"weight": 0.5, "components": {"text_encoder_2": 0.3}, "schedule": "window(5s)"}, 0.0),
            ({"weight": 0.5, "components": {"te": "0.7@0,0@1"}, "schedule": "window(5s)"}, 0.7),
            ({"weight": 0.5, "components": {"te": "0.7@0,0@1"}, "blocks": [0.5, *[1] * 11]}, 0.35),
        ],
    )
    def test_text_encoders_have_the_value_of_step_0_or_a_weight_of_their_own(
        self, spec: object, expected: float
    ) -> None:
        """They run once, before the loop; later steps change nothing."""
        mix = Mix.of({"a": spec})

        assert mix.gain_at("a", "text_encoder", TEXT_LAYER, 0, 1) == expected
        assert {mix.gain_at("a", "text_encoder", TEXT_LAYER, step, 9) for step in range(9)} == {expected}

    def test_a_slider_goes_by_the_timestep(self) -> None:
        """Which img2img and odd spacings need."""
        mix = Mix.of("a:1,schedule=slider(700)")

        assert [mix.gain_at("a", "unet", LAYER, 0, 10, timestep=t) for t in (701, 700)] == [0.0, 1.0]

    @pytest.mark.parametrize(
        ("line", "schedule"),
        [
            ("a:0.5,start=5", Window(5)),
            ("a:0.5,start=0.2,stop=0.8", Window(0.2, 0.8)),
            ("a:0.5,step=1-3", Window(1, 3, "step")),
            ("a:0.5,0@0,1@0.5", Keyframes([(0, 0), (0.5, 1)])),
            ("a:0.5,schedule=ease_in(0, 1)", Ramp(ease="ease_in")),
        ],
    )
    def test_one_line_says_when(self, line: str, schedule: object) -> None:
        """Short keys as in prompts."""
        adapter = Mix.of(line)["a"]

        assert (adapter.weight, adapter.schedule) == (0.5, schedule)

    @pytest.mark.parametrize(
        "line",
        [
            "a:1,start=5,step=1-2",
            "a:1,start=5,schedule=linear(0, 1)",
            "a:1,lbw=ALL,blocks=ALL",
            "a:1,feather=2",
            "a:x@0",
        ],
    )
    def test_one_line_says_it_once(self, line: str) -> None:
        """Two answers to one question are refused."""
        with pytest.raises(MixError):
            Mix.of(line)


class TestMethods:
    """How adapters come together."""

    def test_switch_takes_turns_of_tau_steps(self) -> None:
        """floor(step / tau) mod k, in the order of the mix."""
        mix = Mix.of("a:0.5, b:1, c:2 | switch(tau=2)")

        found = [[mix.gain_at(name, "unet", LAYER, step, 10) for name in mix] for step in range(7)]

        a, b, c = [0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]
        assert found == [a, a, b, b, c, c, a]

    def test_switch_may_leave_adapters_out_and_has_its_own_order(self) -> None:
        """Others stay on."""
        mix = Mix.of(
            {"adapters": ["a", "b", "c"], "method": {"name": "switch", "tau": 1, "adapters": ["c", "a"]}}
        )

        found = [[mix.gain_at(name, "unet", LAYER, step, 9) for name in mix] for step in range(3)]
        assert found == [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]

    def test_switch_reads_text_with_the_first_adapter_unless_te_says_more(self) -> None:
        """The text encoders run before the first turn."""
        mix = Mix.of("a:1, b:1, c:1,te=0.5 | switch")

        assert [mix.gain_at(name, "text_encoder", TEXT_LAYER, 0, 1) for name in mix] == [1.0, 0.0, 0.5]

    def test_the_order_of_turns_counts_and_nothing_else_does(self) -> None:
        """Equality of mixes ignores order, except for this method."""
        assert Mix.of("a, b | switch") != Mix.of("b, a | switch")
        assert Mix.of("a, b | switch") == Mix.of('a, b | switch(tau=5, adapters=["a", "b"])')
        assert Mix.of("a, b | switch") != Mix.of("a, b")
        assert Mix.of("a, b | sum") == Mix.of("b, a")

    @pytest.mark.parametrize("method", ["switch", "composite", "k_lora"])
    def test_mixes_with_a_method_are_not_constant(self, method: str) -> None:
        """They cannot be merged once for the run."""
        assert not Mix.of(f"a, b | {method}").is_constant

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("switch(3)", Switch(3)),
            ({"name": "switch"}, Switch(5)),
            ("composite", Composite()),
            ('k_lora("b", "a", modulo=true)', KLora("b", "a", modulo=True)),
            ("k_lora(alpha=2)", KLora(alpha=2)),
            (Switch(2), Switch(2)),
            (None, Method()),
        ],
    )
    def test_every_form_is_read(self, method: object, expected: Method) -> None:
        """Texts, dicts and values."""
        assert Mix.of({"adapters": ["a", "b"], "method": method}).method == expected

    def test_k_lora_knows_content_and_style(self) -> None:
        """By name, or by the order of the mix."""
        assert KLora().roles(("a", "b")) == ("a", "b")
        assert KLora("b", "a").roles(("a", "b")) == ("b", "a")

    @pytest.mark.parametrize(
        ("method", "said"),
        [
            ("swich", 'Did you mean "switch"'),
            ("switch(0)", "tau: expected a number of at least 1, got 0"),
            ("switch(2.5)", "whole number of steps"),
            ("switch(tua=3)", 'Did you mean "tau"'),
            ("switch(1, 2, 3)", "at most 2 values"),
            ('switch(adapters=["a", "c"])', 'method: "c" is not in the mix'),
            ('switch(adapters=["a", "a"])', "different names"),
            ("switch(adapters=3)", "different names"),
            ('k_lora(content="a")', "both content and style"),
            ('k_lora("a", "c")', '"c" is not in the mix'),
            ("k_lora(modulo=2)", "expected true or false"),
            ({"tau": 3}, "expected one of"),
            (3, "expected one of"),
        ],
    )
    def test_other_things_are_refused_with_a_reason(self, method: object, said: str) -> None:
        """At construction."""
        with pytest.raises(MixError) as caught:
            Mix.of({"adapters": {"a": 1, "b": 1}, "method": method})

        assert said in str(caught.value)

    def test_k_lora_is_for_two(self) -> None:
        """Content and style."""
        with pytest.raises(MixError, match=r"for two adapters, content and style; got 3"):
            Mix.of("a, b, c | k_lora")


class TestMaskedMixes:
    """Masks within mixes."""

    def test_a_mask_makes_a_mix_move(self) -> None:
        """It is not the same at all places."""
        assert not Mix({"a": AdapterMix(mask=Mask("0" * 64))}).is_constant

    def test_masks_differ_by_picture_and_feather(self) -> None:
        """Not by where the picture lies."""
        one, other = Mask("0" * 64, 1, path="a.png"), Mask("0" * 64, 1, path="b.png")

        assert Mix({"a": AdapterMix(mask=one)}) == Mix({"a": AdapterMix(mask=other)})
        assert Mix({"a": AdapterMix(mask=one)}) != Mix({"a": AdapterMix(mask=Mask("0" * 64, 2))})
        assert Mix({"a": AdapterMix(mask=one)}) != Mix({"a": AdapterMix()})


@given(mixes)
def test_every_form_reads_back_as_the_same(mix: Mix) -> None:
    """Depth, time, place and method included."""
    for written in (mix.to_dict(), mix.to_json(), mix.to_yaml(), mix.to_text()):
        again = Mix.of(written)
        assert again.adapters == mix.adapters
        assert again.names == mix.names
        assert again.method == mix.method
        assert again == mix
    assert pickle.loads(pickle.dumps(mix)).adapters == mix.adapters


@given(mixes, st.integers(1, 12), st.data())
def test_equal_mixes_have_equal_gains(mix: Mix, steps: int, data: st.DataObject) -> None:
    """What the fingerprint forgets makes no difference."""
    again = Mix.of(mix.to_text())
    step = data.draw(st.integers(0, steps - 1))

    for name in mix:
        for component, layer in (
            ("unet", LAYER),
            ("text_encoder", TEXT_LAYER),
            ("text_encoder_3", TEXT_LAYER),
        ):
            gain = mix.gain_at(name, component, layer, step, steps)
            assert math.isfinite(gain)
            assert again.gain_at(name, component, layer, step, steps) == gain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"schedule": "0@0,1@1"}, {"schedule": "linear(0, 1)"}),
        ({"schedule": "window(0, 1)"}, {}),
        ({"schedule": "window(0.5, 1)"}, {"schedule": {"start": 0.5}}),
        ({"schedule": "1@0.5;0@0"}, {"schedule": "0@0,1@0.5"}),
        ({"components": {"te": "linear(0, 1)"}}, {"components": {"te": "0@0,1@1"}}),
        ({"components": {"unet": "0.5@0"}}, {"components": {"unet": 0.5}}),
    ],
)
def test_ways_to_say_the_same_time_are_equal(one: object, other: object) -> None:
    """Ramps as keyframes, windows that never close."""
    assert Mix.of({"a": {"weight": 1, **one}}) == Mix.of({"a": {"weight": 1, **other}})  # type: ignore[dict-item]


def test_a_te_weight_beside_a_schedule_is_no_repetition() -> None:
    """Equal to the weight, and yet it says that the text is not scheduled."""
    assert Mix.of("a:0.5,te=0.5,start=5") != Mix.of("a:0.5,start=5")
    assert Mix.of("a:0.5,te=0.5") == Mix.of("a:0.5")


def test_a_constant_schedule_cannot_make_a_weight_infinite() -> None:
    """Nor leave a negative zero behind, which would be written as another value."""
    with pytest.raises(MixError, match="weight: expected a finite number, got inf"):
        AdapterMix(1e308, schedule=Constant(1e308))
    assert math.copysign(1, AdapterMix(-5e-324, schedule=Constant(0.5)).weight) == 1


def test_parts_of_the_wrong_kind_are_refused_when_built_directly() -> None:
    """The constructors are no way round the checks."""
    with pytest.raises(MixError, match=r"schedule: expected Schedule \(Mix.of reads all forms\), got 'x'"):
        AdapterMix(schedule="x")  # type: ignore[arg-type]
    with pytest.raises(MixError, match="expected a Method"):
        Mix(method="switch")  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_mix_without_some_adapters_keeps_its_method_where_it_can(names: tuple[str, ...]) -> None:
    """Deleting an adapter is not an error."""
    assert Mix.of("a, b, c | switch").without(*names).method == Switch()
    assert Mix.of('a, b | switch(adapters=["a", "b"])').without("a").method == Method()
