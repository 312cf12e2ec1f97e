"""Scripts that follow main let engines fail by the names that they had before the first tag: what they set is what runs."""

from __future__ import annotations

import importlib
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.engines import controller
from lora_mixer.engines.merged.engine import MergedEngine
from lora_mixer.engines.side import engine as side


def former(module: str):
    with pytest.warns(DeprecationWarning, match=rf"lora_mixer\.engines\.{module} is "):
        return getattr(importlib.import_module("lora_mixer.engines"), module)


def in_merged(name: str):
    with pytest.warns(
        DeprecationWarning, match=r"engines\.merged is lora_mixer\.engines\.merged\.engine now"
    ):
        return getattr(importlib.import_module("lora_mixer.engines.merged"), name)


def pair(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"0.lora_{side}.weight": torch.randn(*shape, generator=draw)
        for side, shape in (("A", (2, 5)), ("B", (3, 2)))
    }


@pytest.fixture
def mixer() -> LoraMixer:
    mixer = LoraMixer(nn.Sequential(nn.Linear(5, 3)))
    mixer.load_lora_weights(pair(0), "a", activate=False)
    return mixer


def fail(*_: object, **__: object) -> None:
    raise MemoryError("no room")


def test_what_is_read_is_what_there_is_today():
    assert former("beside").make_layers is side.make_layers
    assert former("stage").Stage.replace is controller.EngineController.replace
    assert in_merged("MergedEngine").remove is MergedEngine.forget
    assert not hasattr(former("stage"), "Board")
    assert not hasattr(importlib.import_module("lora_mixer.engines"), "scene")


def test_a_function_that_is_set_runs(mixer: LoraMixer):
    beside, whole = former("beside"), side.make_layers
    beside.make_layers = fail
    try:
        with pytest.raises(MemoryError):
            mixer.set_mix("a:1", engine="side")
    finally:
        beside.make_layers = whole
    mixer.set_mix("a:1", engine="side")

    assert side.make_layers is whole


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("Stage.rename", (controller.EngineController, "replace")),
        ("MergedEngine.remove", (MergedEngine, "forget")),
    ],
)
def test_a_method_that_is_set_runs(mixer: LoraMixer, name: str, today: tuple[type, str]):
    owner, method = name.split(".")
    mixer.set_mix("a:0.5")
    weight = mixer.pipe[0].weight.clone()
    view = former("stage").Stage if owner == "Stage" else in_merged(owner)
    whole = getattr(view, method)
    call = (
        partial(mixer.load_lora_weights, pair(1), "a", hotswap=True)
        if owner == "Stage"
        else partial(mixer.delete_adapters, "a")
    )
    setattr(view, method, fail)
    try:
        assert getattr(*today) is fail
        with pytest.raises(MemoryError):
            call()
    finally:
        setattr(view, method, whole)

    assert getattr(*today) is whole
    assert mixer.get_active_adapters() == ["a"]
    assert torch.equal(mixer.pipe[0].weight, weight)


def test_nothing_of_the_package_uses_them(mixer: LoraMixer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer.set_mix("a:1")
        mixer.load_lora_weights(pair(1), "a", hotswap=True)
        mixer.unload_lora_weights()
