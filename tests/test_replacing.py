"""Loading under names and replacing what is loaded: what is in effect afterwards, also when it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_mixer import AdapterNameError, InvalidAdapterError, LoraMixer, MatchError
from tests.small_pipe import Bench, assert_same, pairs_for, small_pipe, written


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- adapters with NaN --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(bench: Bench) -> dict[str, torch.Tensor]:
    file = written(pairs_for(bench.pipe, 9))
    for number, tensor in enumerate(file.values()):
        tensor.view(-1)[0] = (float("nan"), float("inf"))[number % 2]
    return file


def test_an_adapter_with_nan_is_refused_and_nothing_changes(
    bench: Bench, broken: dict[str, torch.Tensor]
) -> None:
    bench.mixer.set_adapters("b", 0.5)

    with pytest.raises(InvalidAdapterError, match="NaN or Inf in 6 of 6 modules"):
        bench.mixer.load_lora_weights(broken, "broken")

    assert list(bench.mixer.adapters) == ["a", "b", "c"]
    bench.assert_mix(b=0.5)


def test_a_forced_adapter_with_nan_leaves_no_trace(bench: Bench, broken: dict[str, torch.Tensor]) -> None:
    bench.mixer.load_lora_weights(broken, "broken", allow_nonfinite=True)
    assert bench.pipe.components["unet"].linear.weight.isnan().any()

    bench.mixer.set_adapters(["broken", "a"], [0, 0.5])
    bench.pairs["broken"] = {}
    bench.assert_mix(broken=0, a=0.5)
    bench.mixer.set_adapters("broken")
    bench.mixer.disable_lora()
    bench.assert_base()
    bench.mixer.enable_lora()
    bench.mixer.delete_adapters("broken")
    bench.assert_base()
    bench.mixer.set_adapters("a", 0.5)
    bench.assert_mix(a=0.5)


# --- loading ------------------------------------------------------------------------------------------------------


def test_the_adapter_loaded_last_is_the_only_active_one(bench: Bench) -> None:
    bench.assert_mix(c=1.0)


def test_names_by_default_count_what_is_loaded() -> None:
    pipe = small_pipe()
    mixer = LoraMixer(pipe)
    for seed in range(2):
        mixer.load_lora_weights(written(pairs_for(pipe, seed)))
    mixer.delete_adapters("default_0")

    mixer.load_lora_weights(written(pairs_for(pipe, 2)))

    assert list(mixer.adapters) == ["default_1", "default_2"]


def test_a_name_in_use_is_refused_and_nothing_changes(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)

    with pytest.raises(AdapterNameError, match="'a' is in use"):
        bench.mixer.load_lora_weights(written(pairs_for(bench.pipe, 5)), "a")

    bench.assert_mix(b=0.5)


@pytest.mark.parametrize("name", ["", "  ", "two\nlines"])
def test_a_name_that_cannot_be_shown_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(AdapterNameError, match="printable"):
        bench.mixer.load_lora_weights(written(pairs_for(bench.pipe, 5)), name)

    bench.assert_mix(c=1.0)


def test_a_load_that_fails_changes_nothing(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "c"], [0.5, 2.0])
    misfit = {"unet.linear.lora_A.weight": torch.ones(2, 7), "unet.linear.lora_B.weight": torch.ones(5, 2)}

    with pytest.raises(MatchError):
        bench.mixer.load_lora_weights(misfit, "misfit")

    assert list(bench.mixer.adapters) == list(bench.mixer.reports) == ["a", "b", "c"]
    bench.assert_mix(a=0.5, c=2.0)


def test_loading_while_disabled_makes_the_new_one_active(bench: Bench) -> None:
    bench.mixer.disable_lora()

    bench.pairs["d"] = pairs_for(bench.pipe, 4)
    bench.mixer.load_lora_weights(written(bench.pairs["d"]), "d")

    bench.assert_mix(d=1.0)


def test_a_state_dict_is_not_changed_and_may_require_gradients(bench: Bench) -> None:
    bench.pairs["d"] = pairs_for(bench.pipe, 4)
    file = {key: torch.nn.Parameter(tensor) for key, tensor in written(bench.pairs["d"]).items()}
    before = {key: tensor.detach().clone() for key, tensor in file.items()}

    bench.mixer.load_lora_weights(file, "d")

    bench.assert_mix(d=1.0)
    assert_same({key: tensor.detach() for key, tensor in file.items()}, before)
    assert all(tensor.requires_grad for tensor in file.values())


# --- replacing ----------------------------------------------------------------------------------------------------


def test_hotswap_keeps_weight_and_place(bench: Bench) -> None:
    bench.mixer.set_adapters(["c", "b", "a"], [0.5, {"unet": 0.25}, -1.0])
    bench.pairs["b"] = pairs_for(bench.pipe, 7)

    bench.mixer.load_lora_weights(written(bench.pairs["b"]), "b", hotswap=True)

    bench.assert_mix(c=0.5, b={"unet": 0.25}, a=-1.0)
    assert list(bench.mixer.adapters) == ["a", "b", "c"]


def test_hotswap_of_an_adapter_for_other_layers_lets_go_of_the_old_ones(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    bench.pairs["b"] = pairs_for(bench.pipe, 7, lambda component, _: component == "text_encoder")

    bench.mixer.load_lora_weights(written(bench.pairs["b"]), "b", hotswap=True)

    bench.assert_mix(b=0.5)


def test_hotswap_while_disabled_waits_for_enable(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    bench.mixer.disable_lora()
    bench.pairs["b"] = pairs_for(bench.pipe, 7)

    bench.mixer.load_lora_weights(written(bench.pairs["b"]), "b", hotswap=True)

    bench.assert_base()
    bench.mixer.enable_lora()
    bench.assert_mix(b=0.5)


def test_hotswap_of_an_unknown_name_is_refused(bench: Bench) -> None:
    with pytest.raises(AdapterNameError, match="hotswap names 'x'"):
        bench.mixer.load_lora_weights(written(bench.pairs["a"]), "x", hotswap=True)

    bench.assert_mix(c=1.0)


@pytest.mark.parametrize("stage", ["reading", "writing"])
@pytest.mark.parametrize("disabled", [False, True])
def test_a_hotswap_that_fails_leaves_the_old_one_in_effect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stage: str, disabled: bool
) -> None:
    bench.mixer.set_adapters(["c", "b"], [0.5, -1.5])
    if disabled:
        bench.mixer.disable_lora()
    before, info = bench.bits(), bench.mixer.adapters["b"]
    file = written(pairs_for(bench.pipe, 7))
    if stage == "reading":
        file["unet.linear.lora_A.weight"] = torch.ones(2, 7)
    else:
        controller = bench.mixer._state.controller
        replace = controller.replace

        def fail(name: str, *more: Any) -> None:
            replace(name, *more)
            raise MemoryError(name)

        monkeypatch.setattr(controller, "replace", fail)

    with pytest.raises((MatchError, InvalidAdapterError, MemoryError)):
        bench.mixer.load_lora_weights(file, "b", hotswap=True)

    assert_same(bench.bits(), before)
    assert list(bench.mixer.adapters) == ["a", "b", "c"]
    assert bench.mixer.adapters["b"] is info
    bench.mixer.enable_lora()
    bench.assert_mix(c=0.5, b=-1.5)
