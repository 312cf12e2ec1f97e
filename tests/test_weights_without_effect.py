"""What a mix says of an adapter and nothing can have: an error where nothing else is left of it, else a warning by name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MixError, UnusedWeightWarning
from tests.small_pipe import SmallPipe, pairs_for, small_pipe, written

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = {
    "unet": ("unet",),
    "text": ("text_encoder", "text_encoder_2"),
    "second": ("text_encoder_2",),
    "all": ("unet", "text_encoder", "text_encoder_2"),
}


@pytest.fixture
def bench() -> tuple[Any, LoraMixer]:
    pipe = small_pipe()
    mixer = LoraMixer(pipe)
    for seed, (name, parts) in enumerate(PARTS.items()):
        mixer.load_lora_weights(written(pairs_for(pipe, seed, lambda part, _, own=parts: part in own)), name)
    mixer.set_adapters("all")
    return pipe, mixer


def state(pipe: Any) -> list[torch.Tensor]:
    return [
        p.clone()
        for root in pipe.components.values()
        if isinstance(root, nn.Module)
        for p in root.parameters()
    ]


ACTS = [  # adapter, what is said, what of it is lost, and what says the same of the parts that the adapter has
    ("unet", {"unet": 0.5, "te": 0.2}, "te", {"unet": 0.5}),
    ("unet", {"te": 0.2}, "te", 1.0),  # a part that is not named has 1.0
    ("unet", {"weight": 0.8, "components": {"te": 0.2}}, "te", 0.8),
    ("unet", {"unet": 0.5, "text_encoder": 0.2, "text_encoder_2": -1}, "text_encoder, text_encoder_2", 0.5),
    ("text", {"unet": 0.7, "te": 0.3}, "unet", 0.3),
    ("second", {"text_encoder": 0.3, "text_encoder_2": 0.1}, "text_encoder", 0.1),
]
NOTHING = [
    ("unet", {"unet": 0, "te": 0.2}, "te"),
    ("unet", {"weight": 0, "components": {"text_encoder": 1.0}}, "text_encoder"),
    ("text", {"unet": 0.7, "te": 0}, "unet"),
    ("second", {"text_encoder": 0.3, "text_encoder_2": 0, "unet": 0}, "text_encoder"),
]
FULL = [
    ("unet", {"unet": 0.5, "te": 0}),
    ("unet", {"unet": 0, "te": 0}),
    ("unet", 0.0),
    ("text", {"te": 0.3}),
    ("second", {"te": 0.3}),
    ("all", {"unet": 0.5, "te": 0.2, "text_encoder_2": 0.1}),
]


def applied(mixer: LoraMixer, mix: Any) -> None:
    with mixer.applied(mix):
        pass


WAYS: dict[str, Callable[[LoraMixer, str, Any], None]] = {
    "set_adapters": lambda mixer, name, weight: mixer.set_adapters([name, "all"], [weight, 0.5]),
    "set_mix": lambda mixer, name, weight: mixer.set_mix({name: weight, "all": 0.5}),
    "list": lambda mixer, name, weight: mixer.set_mix([{"all": 1.0}, {name: weight}], engine="side"),
    "negative": lambda mixer, name, weight: mixer.set_mix(
        {"all": 1.0}, negative={name: weight}, engine="side"
    ),
    "applied": lambda mixer, name, weight: applied(mixer, {name: weight, "all": 0.5}),
}


@pytest.mark.parametrize(("name", "weight", "lost", "same"), ACTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_weight_for_a_part_without_layers_warns_and_the_others_act(
    bench: Any, name: str, weight: Any, lost: str, same: Any, way: str
) -> None:
    pipe, mixer = bench
    with pytest.warns(UnusedWeightWarning, match=rf"^{name}: a weight for {lost} changes nothing"):
        WAYS[way](mixer, name, weight)
    if way in ("set_adapters", "set_mix"):
        mixed = state(pipe)
        mixer.set_mix({name: same, "all": 0.5})  # says the same, and nothing else: no warning
        assert all(torch.equal(a, b) for a, b in zip(mixed, state(pipe), strict=True))


@pytest.mark.parametrize(("name", "weight", "lost"), NOTHING)
def test_a_mix_of_which_nothing_would_act_is_refused(bench: Any, name: str, weight: Any, lost: str) -> None:
    pipe, mixer = bench
    before = state(pipe)
    for call in (
        lambda: mixer.set_mix({name: weight, "all": 0.5}),
        lambda: mixer.check_mix({name: weight}),
        lambda: mixer.set_mix([{"all": 1.0}, {name: weight}]),
    ):
        with pytest.raises(MixError, match=rf"{name}: a weight for {lost}, and it changes .* only"):
            call()
    assert all(torch.equal(a, b) for a, b in zip(before, state(pipe), strict=True))
    assert mixer.get_active_adapters() == ["all"]


@pytest.mark.parametrize(("name", "weight"), FULL)
def test_weights_that_act_and_zeros_say_nothing(bench: Any, name: str, weight: Any) -> None:
    _, mixer = bench
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer.set_mix({name: weight})


def test_te_needs_a_text_encoder() -> None:
    torch.manual_seed(0)
    pipe = SmallPipe(unet=nn.Sequential(nn.Linear(4, 4)))
    mixer = LoraMixer(pipe)
    file = {"unet.0.lora_A.weight": torch.ones(1, 4), "unet.0.lora_B.weight": torch.ones(4, 1)}
    mixer.load_lora_weights(file, "a")
    for weight in ({"te": 0.2}, {"unet": 0.5, "te": 0.2}, {"text_encoder": 0.2}, {"transformer": 1.0}):
        with pytest.raises(MixError, match=r"no component .* in this pipeline; it has unet$"):
            mixer.set_adapters("a", weight)
    mixer.set_adapters("a", {"unet": 0.5, "te": 0})


@pytest.mark.parametrize("method", ["k_lora", "switch", "composite"])
def test_methods_that_go_by_the_denoiser_need_layers_there(bench: Any, method: str) -> None:
    _, mixer = bench
    with pytest.raises(MixError, match=rf"text: {method} goes by the denoiser"):
        mixer.set_mix({"adapters": {"all": 1.0, "text": 1.0}, "method": method})
    with pytest.raises(MixError, match=r"text: .* goes by the denoiser"):
        mixer.check_mix({"adapters": {"text": 1.0, "all": 1.0}, "method": method})
    mixer.check_mix({"adapters": {"all": 1.0, "unet": 1.0}, "method": method})


def test_what_only_denoisers_have_warns_on_adapters_of_text_encoders(bench: Any) -> None:
    _, mixer = bench
    with pytest.warns(UnusedWeightWarning, match="text: its schedule changes nothing after the start"):
        mixer.set_mix({"text": {"weight": 1.0, "schedule": "1@0,0@1"}})
    with pytest.warns(
        UnusedWeightWarning, match=r"unet: text_encoder\.proj: no layer that it changes matches"
    ):
        mixer.set_mix({"unet": {"weight": 1.0, "blocks": {"text_encoder.proj": 0.5}}})


def test_what_is_written_says_so_too(bench: Any, tmp_path: Any) -> None:
    _, mixer = bench
    with pytest.warns(UnusedWeightWarning, match="unet: a weight for te"):
        mixer.save_lora_weights(tmp_path / "x.safetensors", weights={"unet": {"unet": 0.5, "te": 0.2}})
