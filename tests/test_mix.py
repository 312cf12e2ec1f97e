"""A mix is a value: what it accepts, what it refuses, and that it survives every way of writing it down."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS, AdapterMix, Mix

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"

weights = st.floats(allow_nan=False, allow_infinity=False, width=64)
names = st.text(min_size=1).filter(
    lambda name: bool(name.strip()) and not any("\ud800" <= c <= "\udfff" for c in name)
)
component_names = st.sampled_from(
    ["unet", "te", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"]
)
adapters = st.builds(AdapterMix, weights, st.dictionaries(component_names, weights, max_size=4))
mixes = st.builds(Mix, st.dictionaries(names, adapters, max_size=4))


class TestReading:
    """``Mix.of`` reads every form."""

    def test_a_dict_of_numbers_gives_each_component_the_weight(self) -> None:
        """One number is the weight of everything."""
        mix = Mix.of({"watercolor": 0.7, "3d": -1})

        assert mix.names == ("watercolor", "3d")
        assert mix["3d"].weight == -1.0
        assert mix.gain("watercolor", "unet", LAYER) == 0.7
        assert mix.gain("watercolor", "text_encoder_2", "text_model.encoder.layers.0.mlp.fc1") == 0.7

    def test_components_not_named_have_1_as_in_diffusers(self) -> None:
        """Diffusers gives 1.0 to the components that its dict leaves out."""
        mix = Mix.of({"a": {"unet": 0.8}})

        assert mix.gain("a", "unet", LAYER) == 0.8
        assert mix.gain("a", "text_encoder", "x") == 1.0

    def test_components_not_named_have_the_weight_where_one_is_given(self) -> None:
        """With a weight, components are exceptions to it."""
        mix = Mix.of({"a": {"weight": 0.5, "components": {"text_encoder_2": 0.1}}})

        assert mix.gain("a", "unet", LAYER) == 0.5
        assert mix.gain("a", "text_encoder", "x") == 0.5
        assert mix.gain("a", "text_encoder_2", "x") == 0.1

    def test_te_stands_for_every_text_encoder_and_a_full_name_wins(self) -> None:
        """The alias fills in for the names that are not there."""
        adapter = Mix.of({"a": {"te": 0.2, "text_encoder_2": 0.9}})["a"]

        found = [
            adapter.component_weight(name)
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "unet")
        ]
        assert found == [0.2, 0.9, 0.2, 1.0]
        assert adapter.named_components == ("text_encoder_2",)

    @pytest.mark.parametrize(
        "form",
        [
            {"a": 0.7, "b": {"unet": 0.8, "te": 0.2}},
            [("a", 0.7), ("b", {"unet": 0.8, "te": 0.2})],
            [["a", 0.7], ["b", AdapterMix(1.0, {"unet": 0.8, "te": 0.2})]],
            {"adapters": {"a": 0.7, "b": {"unet": 0.8, "te": 0.2}}},
            '{"a": 0.7, "b": {"unet": 0.8, "te": 0.2}}',
            '[["a", 0.7], ["b", {"unet": 0.8, "te": 0.2}]]',
            "a: 0.7\nb:\n  unet: 0.8\n  te: 0.2\n",
            "- [a, 0.7]\n- [b, {unet: 0.8, te: 0.2}]\n",
            "a:0.7, b:unet=0.8,te=0.2",
            '"a":0.7,b:1,te=0.2,unet=0.8',
        ],
    )
    def test_all_forms_of_one_mix_are_equal(self, form: object) -> None:
        """The form leaves no trace in the value."""
        expected = Mix({"a": AdapterMix(0.7), "b": AdapterMix(1.0, {"unet": 0.8, "te": 0.2})})

        assert Mix.of(form) == expected
        assert Mix.of(form).names == ("a", "b")

    def test_names_alone_have_weight_1(self) -> None:
        """A list of names and a line of names say the same."""
        assert Mix.of(["a", "b"]).to_dict() == {"a": 1.0, "b": 1.0}
        assert Mix.of("a, b").to_dict() == {"a": 1.0, "b": 1.0}

    def test_a_mix_is_given_back_as_it_is(self) -> None:
        """Reading a mix makes no copy."""
        mix = Mix.of("a:0.5")

        assert Mix.of(mix) is mix

    def test_nothing_is_the_empty_mix(self) -> None:
        """No adapter is a mix, too: the base."""
        assert Mix.of({}) == Mix.of([]) == Mix.of("") == Mix()
        assert len(Mix()) == 0

    @pytest.mark.parametrize(
        ("names", "given_weights", "expected"),
        [
            ("a", 0.3, {"a": 0.3}),
            (["a", "b"], None, {"a": 1.0, "b": 1.0}),
            (["a", "b"], 0.5, {"a": 0.5, "b": 0.5}),
            (["a", "b"], [0.5, None], {"a": 0.5, "b": 1.0}),
            (["a", "b"], [{"unet": 0.1}, 0.2], {"a": {"unet": 0.1}, "b": 0.2}),
            (["a", "b"], {"unet": 0.1}, {"a": {"unet": 0.1}, "b": {"unet": 0.1}}),
        ],
    )
    def test_weights_as_set_adapters_takes_them(
        self, names: object, given_weights: object, expected: object
    ) -> None:
        """One for all, or one for each."""
        assert Mix.from_weights(names, given_weights) == Mix.of(expected)  # type: ignore[arg-type]


class TestRefusing:
    """What means nothing is refused, with its place."""

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], 10**400, 1j])
    def test_only_finite_numbers_are_weights(self, bad: object) -> None:
        """True and texts are not numbers."""
        with pytest.raises(MixError, match=r"3d\.unet: expected a finite number, got"):
            Mix.of({"3d": {"unet": bad}})

    def test_all_problems_are_told_at_once(self) -> None:
        """One error names every bad entry."""
        with pytest.raises(MixError) as caught:
            Mix.of({"a": math.nan, "b": {"unet": "x", "te": True}, "c": 1, "": 2})

        message = str(caught.value)
        assert "for 4 reasons" in message
        assert "a: expected a finite number, got nan." in message
        assert "b.unet: expected a finite number, got 'x'." in message
        assert "b.te: expected a finite number, got True." in message
        assert "expected a name (text that is not empty), got ''" in message

    def test_a_misspelled_key_is_answered_with_the_right_one(self) -> None:
        """Both in the rich form and in place of a component."""
        with pytest.raises(MixError, match='Did you mean "components"'):
            Mix.of({"a": {"weight": 1, "component": {}}})
        with pytest.raises(MixError, match='Did you mean "weight"'):
            Mix.of({"a": {"wieght": 1}})

    def test_components_beside_a_weight_are_shown_their_place(self) -> None:
        """Flat components beside "weight" would be ambiguous."""
        with pytest.raises(MixError, match='go under "components"'):
            Mix.of({"a": {"weight": 1, "unet": 0.5}})

    @pytest.mark.parametrize(
        "form", [[("a", 1), ("a", 2)], "a:1, a:2", '{"a": 1, "a": 2}', "a: 1\nb: 1\na: 2\n", ["a", "a"]]
    )
    def test_a_name_given_twice_is_refused_in_every_form(self, form: object) -> None:
        """JSON and YAML would silently keep the last one."""
        with pytest.raises(MixError, match="named twice"):
            Mix.of(form)

    @pytest.mark.parametrize(
        "form",
        [3, None, {1: 0.5}, [1], [("a", 1, 2)], "a:", "a:,", "a:0.5,", ":1", "a:x", "a:0.1,0.2", "a b:[1", '"a:1',
         "a:1,te=", "{", "[[[", "[" * 100_000, "a: 1\n- b", "just\ntext", "a:1,te=1,te=2", "0.5", "a:te=nan", "a|b|c"],
    )  # fmt: skip
    def test_other_things_are_refused_by_our_error(self, form: object) -> None:
        """No other exception comes out."""
        with pytest.raises(MixError):
            Mix.of(form)

    def test_lists_of_different_length_are_refused_with_both_lengths(self) -> None:
        """As in set_adapters."""
        with pytest.raises(MixError, match="each of the 2 names, got 1 weights"):
            Mix.from_weights(["a", "b"], [0.5])

    def test_an_unknown_name_is_answered_with_the_names_there_are(self) -> None:
        """Asking for what is not in the mix."""
        with pytest.raises(
            MixError, match=r'no adapter "watercolour"; it has "watercolor", "3d"\. Did you mean "watercolor"'
        ):
            Mix.of("watercolor, 3d")["watercolour"]

    def test_values_are_checked_when_built_directly(self) -> None:
        """The constructors are no way round the checks."""
        with pytest.raises(MixError, match="weight: expected a finite number, got nan"):
            AdapterMix(math.nan)
        with pytest.raises(MixError, match="expected an AdapterMix"):
            Mix({"a": 0.5})  # type: ignore[dict-item]


class TestWriting:
    """A mix survives being written down."""

    @given(mixes)
    def test_every_form_reads_back_as_the_same(self, mix: Mix) -> None:
        """Numbers to the last bit, names in their order, in all four forms."""
        for again in (
            Mix.from_dict(mix.to_dict()),
            Mix.from_json(mix.to_json()),
            Mix.from_yaml(mix.to_yaml()),
            Mix.of(mix.to_json()),
            Mix.of(mix.to_text()),
            pickle.loads(pickle.dumps(mix)),
            copy.deepcopy(mix),
        ):
            assert again.adapters == mix.adapters
            assert again.names == mix.names
            assert again.fingerprint == mix.fingerprint

    def test_one_line_is_short(self) -> None:
        """Nobody writes what goes without saying."""
        mix = Mix.of({"watercolor": 0.7, "3d": {"unet": 0.8, "te": 0.2}, "a, b": 1})

        assert mix.to_text() == 'watercolor:0.7, 3d:1,unet=0.8,te=0.2, "a, b":1'

    def test_an_adapter_named_adapters_survives(self) -> None:
        """The key of the full form is a name like any other."""
        mix = Mix.of([("adapters", {"unet": 0.5})])

        assert Mix.from_dict(mix.to_dict()).names == ("adapters",)


class TestEquality:
    """Equal meaning is equality."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": 1}, {"a": 1.0}),
            ({"a": 0.0}, {"a": -0.0}),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ({"a": {"unet": 1.0}}, {"a": 1}),
            ({"a": {"te": 0.5}}, {"a": dict.fromkeys(TEXT_ENCODERS, 0.5)}),
            ({"a": {"te": 0.5}}, {"a": {"weight": 1, "components": {"te": 0.5, "unet": 1.0}}}),
        ],
    )
    def test_ways_to_say_the_same_are_equal(self, one: object, other: object) -> None:
        """Fingerprints, comparison and hash agree."""
        assert Mix.of(one).fingerprint == Mix.of(other).fingerprint
        assert Mix.of(one) == Mix.of(other)
        assert len({Mix.of(one), Mix.of(other)}) == 1

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": 1}, {"b": 1}),
            ({"a": 1}, {"a": math.nextafter(1, 2)}),
            ({"a": 0}, {}),
            ({"a": {"te": 0}}, {"a": {"unet": 0}}),
        ],
    )
    def test_different_meanings_differ(self, one: object, other: object) -> None:
        """Down to the last bit of a weight."""
        assert Mix.of(one) != Mix.of(other)

    def test_the_fingerprint_is_the_same_in_another_process(self) -> None:
        """No hash seed takes part."""
        code = "from lora_mixer.mixes import Mix; print(Mix.of('a:0.7, b:te=0.2').fingerprint)"
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()

        assert found == Mix.of({"b": {"te": 0.2}, "a": 0.7}).fingerprint
        assert len(found) == 32

    def test_a_mix_is_not_equal_to_its_dict(self) -> None:
        """Only mixes are compared."""
        assert Mix.of("a:1") != {"a": 1.0}


def test_values_cannot_change() -> None:
    """Frozen to the bottom."""
    mix = Mix.of({"a": {"unet": 0.5}})

    with pytest.raises(AttributeError):
        mix.adapters = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        mix["a"].components["unet"] = 1.0  # type: ignore[index]
    assert "a" in mix
    assert list(mix) == ["a"]
