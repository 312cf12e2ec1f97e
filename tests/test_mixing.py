"""Which adapters are in effect after each call, and with which weights; nothing changes when a call is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lora_mixer import AdapterNameError, LoraMixer, MixError
from tests.small_pipe import Bench, assert_same, pairs_for, small_pipe, values, written


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- set_adapters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "weights", "expected"),
    [
        ("a", None, {"a": 1.0}),
        ("a", 0.5, {"a": 0.5}),
        (["a"], [0.5], {"a": 0.5}),
        (("b", "a"), None, {"b": 1.0, "a": 1.0}),
        (["a", "b"], 0.3, {"a": 0.3, "b": 0.3}),
        (["a", "b"], [0.7, -0.4], {"a": 0.7, "b": -0.4}),
        (["a", "b"], (2, None), {"a": 2.0, "b": 1.0}),
        (["c", "a", "b"], [1.5, -2, 0.25], {"c": 1.5, "a": -2, "b": 0.25}),
        ("a", {"unet": 0.8}, {"a": {"unet": 0.8}}),
        ("a", {"text_encoder": 0.2, "unet": 0.8}, {"a": {"unet": 0.8, "text_encoder": 0.2}}),
        ("a", {"te": 0.2}, {"a": {"text_encoder": 0.2, "text_encoder_2": 0.2}}),
        (
            "a",
            {"te": 0.2, "text_encoder_2": -1},
            {"a": {"text_encoder": 0.2, "text_encoder_2": -1.0}},
        ),
        (
            ["a", "b"],
            [{"unet": 0, "te": 0.5}, 0.1],
            {"a": {"unet": 0, "text_encoder": 0.5, "text_encoder_2": 0.5}, "b": 0.1},
        ),
        (["a", "b"], {"unet": 0.5}, {"a": {"unet": 0.5}, "b": {"unet": 0.5}}),
    ],
)
def test_set_adapters_reads_diffusers_forms_of_weights(
    bench: Bench, names: Any, weights: Any, expected: dict[str, Any]
) -> None:
    bench.mixer.set_adapters(names, weights)

    bench.assert_mix(**expected)


def test_no_names_are_the_base(bench: Bench) -> None:
    bench.mixer.set_adapters([])

    bench.assert_base()


@pytest.mark.parametrize(
    ("names", "weights", "error", "said"),
    [
        ("x", 1.0, AdapterNameError, "'x', which is not loaded; loaded are: a, b, c"),
        (["a:1", "b:0.5"], None, AdapterNameError, "write one text, 'a:1, b:0.5', for one mix"),
        (["a", "x", "y"], 1.0, AdapterNameError, "'x', 'y'"),
        (["a", "a"], [1, 1], AdapterNameError, "a: named more than once"),
        (["a", "b"], [1.0], MixError, "2 names, got 1 weights"),
        ("a", [1.0, 2.0], MixError, "1 names, got 2 weights"),
        (["a", "b"], [], MixError, "2 names, got 0 weights"),
        ("a", float("nan"), MixError, "finite"),
        (["a", "b"], [0.5, float("inf")], MixError, "b: expected a finite number"),
        ("a", {"unet": -float("inf")}, MixError, "a.unet: expected a finite number"),
        ("a", True, MixError, "finite number, got True"),
        ("a", "0.5", MixError, "finite number, got '0.5'"),
        ("a", {"transformer": 0.5}, MixError, "no component transformer in this pipeline; it has"),
        ({"a": 0.5}, None, MixError, "set_mix"),
    ],
)
def test_a_refused_set_adapters_changes_nothing(
    bench: Bench, names: Any, weights: Any, error: type[Exception], said: str
) -> None:
    bench.mixer.set_adapters(["b", "c"], [0.5, -0.25])
    before = bench.bits()

    with pytest.raises(error) as caught:
        bench.mixer.set_adapters(names, weights)

    assert said in str(caught.value)
    assert_same(bench.bits(), before)
    bench.assert_mix(b=0.5, c=-0.25)


def test_order_of_names_does_not_change_a_bit(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b", "c"], [0.7, -0.3, 1.9])
    one = bench.bits()

    bench.mixer.set_adapters(["c", "a", "b"], [1.9, 0.7, -0.3])

    assert_same(bench.bits(), one)
    assert bench.mixer.get_active_adapters() == ["c", "a", "b"]


def test_order_of_loading_does_not_change_a_bit() -> None:
    one, other = small_pipe(), small_pipe()
    a, b = (written(pairs_for(one, seed)) for seed in (1, 2))
    for pipe, order in ((one, (("a", a), ("b", b))), (other, (("b", b), ("a", a)))):
        mixer = LoraMixer(pipe)
        for name, file in order:
            mixer.load_lora_weights(file, name)
        mixer.set_adapters(["a", "b"], [0.7, -0.3])

    assert_same(values(one), values(other))


def test_what_was_set_before_does_not_matter(bench: Bench) -> None:
    fresh = Bench()
    fresh.mixer.set_adapters(["a", "b"], [0.7, 0.2])
    for names, weights in ((["c"], 3.0), (["a", "b"], [-1e4, 1e4]), (["a", "c"], {"unet": 0}), ([], None)):
        bench.mixer.set_adapters(names, weights)
    bench.mixer.disable_lora()

    bench.mixer.set_adapters(["a", "b"], [0.7, 0.2])

    assert_same(bench.bits(), fresh.bits())


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, {"unet": 0, "te": 0}])
def test_weight_zero_is_the_base_exactly(bench: Bench, zero: Any) -> None:
    bench.mixer.set_adapters(["a", "b"], zero)

    bench.clean.assert_untouched(bench.pipe)
    assert bench.mixer.get_active_adapters() == ["a", "b"]


# --- disabling, deleting ------------------------------------------------------------------------------------------


def test_disable_gives_the_base_and_enable_the_mix_bit_for_bit(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.7, 0.4])
    before = bench.bits()

    bench.mixer.disable_lora()
    bench.assert_base()
    bench.mixer.disable_lora()
    bench.assert_base()
    bench.mixer.enable_lora()
    bench.mixer.enable_lora()

    assert_same(bench.bits(), before)
    bench.assert_mix(a=0.7, b=0.4)


def test_set_adapters_ends_disable(bench: Bench) -> None:
    bench.mixer.disable_lora()

    bench.mixer.set_adapters("a", 0.5)

    bench.assert_mix(a=0.5)


def test_deleting_an_active_adapter_keeps_the_weights_of_the_others(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b", "c"], [0.7, {"unet": 0.4}, -0.2])

    bench.mixer.delete_adapters("a")

    bench.assert_mix(b={"unet": 0.4}, c=-0.2)
    assert list(bench.mixer.adapters) == ["b", "c"]


def test_deleting_an_inactive_adapter_changes_no_weight(bench: Bench) -> None:
    bench.mixer.set_adapters("a", 0.7)
    before = bench.bits()

    bench.mixer.delete_adapters(["b", "c", "b"])

    assert_same(bench.bits(), before)
    assert list(bench.mixer.adapters) == ["a"]


def test_deleting_the_last_one_gives_the_base(bench: Bench) -> None:
    bench.mixer.delete_adapters(["a", "b"])
    bench.mixer.delete_adapters("c")

    bench.assert_base()
    assert not bench.mixer.adapters
    assert bench.mixer.memory().total == 0


def test_deleting_while_disabled_leaves_the_rest_for_enable(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.7, 0.4])
    bench.mixer.disable_lora()

    bench.mixer.delete_adapters("a")

    bench.assert_base()
    bench.mixer.enable_lora()
    bench.assert_mix(b=0.4)


def test_an_unknown_name_deletes_nothing(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.7, 0.4])

    with pytest.raises(AdapterNameError, match="delete_adapters names 'x'"):
        bench.mixer.delete_adapters(["a", "x"])

    assert list(bench.mixer.adapters) == ["a", "b", "c"]
    bench.assert_mix(a=0.7, b=0.4)


def test_a_deleted_name_is_free_again(bench: Bench) -> None:
    bench.mixer.delete_adapters("a")
    bench.pairs["a"] = pairs_for(bench.pipe, 8)

    bench.mixer.load_lora_weights(written(bench.pairs["a"]), "a")

    bench.assert_mix(a=1.0)


def test_unload_gives_the_base_and_forgets_everything(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.7, 0.4])

    bench.mixer.unload_lora_weights()

    bench.assert_base()
    assert not bench.mixer.adapters
    assert bench.mixer.get_list_adapters() == {}
    assert bench.mixer.memory().total == 0
    bench.mixer.enable_lora()
    bench.assert_base()


def test_get_list_adapters_goes_by_component(bench: Bench) -> None:
    file = written(pairs_for(bench.pipe, 4, lambda component, _: component == "text_encoder"))
    bench.mixer.load_lora_weights(file, "d")

    assert bench.mixer.get_list_adapters() == {
        "unet": ["a", "b", "c"],
        "text_encoder": ["a", "b", "c", "d"],
        "text_encoder_2": ["a", "b", "c"],
    }


def test_patterns_that_no_layer_has_are_refused(bench: Bench) -> None:
    before = bench.bits()
    with pytest.raises(MixError, match=r"a\.blocks: no layer of this pipeline matches nowhere"):
        bench.mixer.set_mix({"a": {"weight": 0.5, "blocks": {"*": 1, "nowhere.*": 0}}})
    assert_same(bench.bits(), before)
