"""Copies of a pipeline that a mixer works on, in memory and by pickle: the same mix, and a life of their own."""

from __future__ import annotations

import gc
import io
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch

from lora_mixer import LoraMixer
from tests.models import tiny_sd
from tests.small_pipe import SmallPipe, assert_same, mixed, pairs_for, small_pipe, values, written
from tests.weights import Snapshot, components

MIXES: dict[str, Any] = {
    "merged": ({"a": 0.7, "b": -0.4}, {}),
    "schedule": ({"a": {"weight": 1.0, "schedule": "0@0,1@1"}, "b": 0.3}, {}),
    "at each step": ({"a": {"weight": 1.0, "schedule": "0@0,1@1"}}, {"engine": "merged"}),
    "side": ({"a": 0.7, "b": -0.4}, {"engine": "side"}),
    "mask": ({"a": {"weight": 1.0, "mask": [[1.0, 0.0]]}}, {}),
    "each image": ([{"a": 1.0}, {"b": 0.5}], {}),
    "negative": ({"a": 1.0}, {"negative": {"b": 0.5}}),
}


def pickled(pipe: Any) -> Any:
    buffer = io.BytesIO()
    pickle.dump(pipe, buffer)
    buffer.seek(0)
    return pickle.load(buffer)


def draw(pipe: Any, steps: int = 2) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        ["x", "y"], num_inference_steps=steps, height=16, width=16, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def made() -> tuple[Any, LoraMixer, dict[str, torch.Tensor]]:
    pipe = tiny_sd()
    base = values(pipe)
    mixer = LoraMixer(pipe)
    for seed, name in enumerate("ab"):
        mixer.load_lora_weights(written(pairs_for(pipe, seed)), name, activate=False)
    return pipe, mixer, base


@pytest.mark.parametrize("copy", [deepcopy, pickled])
@pytest.mark.parametrize(
    ("name", "reserved"),
    [*((name, False) for name in MIXES), ("merged", True), ("schedule", True), ("each image", True)],
)
def test_a_copy_has_the_mix_and_the_way_back(name: str, reserved: bool, copy: Any) -> None:
    pipe, mixer, base = made()
    mix, options = MIXES[name]
    if reserved:
        mixer.reserve(rank=8, rows=4 if name in ("each image", "negative") else 1)
    mixer.set_mix(mix, **options)
    picture = draw(pipe)

    other = copy(pipe)

    assert torch.equal(draw(other), picture)
    assert torch.equal(draw(pipe), picture)
    theirs = LoraMixer(other)
    assert theirs.mixes == mixer.mixes
    theirs.set_adapters("b", 0.25)
    assert torch.equal(draw(pipe), picture)
    mixer.set_adapters("b", 0.25)
    assert torch.equal(draw(pipe), draw(other))
    theirs.release()
    theirs.unload_lora_weights()
    assert_same(values(other), base)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in other.unet.modules())
    assert mixer.get_active_adapters() == ["b"]


def test_steps_of_a_copy_are_not_the_originals() -> None:
    pipe, mixer, _ = made()
    mixer.set_mix({"a": {"weight": 1.0, "schedule": "0@0,1@1"}})
    other = deepcopy(pipe)
    four = draw(other, 4)

    seen: list[torch.Tensor] = []

    def between(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            seen.append(draw(other, 4))
        return kwargs

    alone = draw(pipe, 5)
    pipe.set_progress_bar_config(disable=True)
    mixed = pipe(
        ["x", "y"], num_inference_steps=5, height=16, width=16, output_type="latent",
        generator=torch.Generator().manual_seed(0), callback_on_step_end=between,
    ).images  # fmt: skip

    assert torch.equal(mixed, alone)
    assert torch.equal(seen[0], four)


def test_a_part_is_copied_without_the_pipeline() -> None:
    pipe, mixer, base = made()
    mixer.set_mix({"a": {"weight": 1.0, "schedule": "0@0,1@1"}})
    memo: dict[int, Any] = {}

    other = deepcopy(pipe.unet, memo)

    assert id(pipe) not in memo
    assert id(pipe.vae) not in memo
    theirs = LoraMixer(other)
    assert list(theirs.adapters) == ["a", "b"]
    theirs.unload_lora_weights()
    assert_same(
        dict(other.state_dict()), {k.removeprefix("unet."): v for k, v in base.items() if k[:5] == "unet."}
    )
    assert mixer.get_active_adapters() == ["a"]
    mixer.unload_lora_weights()
    assert_same(values(pipe), base)


class CheckedPipe(SmallPipe):
    """A pipeline whose pictures begin with a look at their inputs."""

    def check_inputs(self) -> None:
        """Find nothing."""


def replaced(part: str) -> torch.nn.Module:
    """Make another text encoder or UNet with the same layers."""
    module: torch.nn.Module = small_pipe(seed=9).components[part]
    return module


@pytest.mark.parametrize("copy", [deepcopy, pickled])
@pytest.mark.parametrize("when", ["before", "after, with a mixer", "after, without", "before and looked at"])
@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_copy_has_the_mix_in_parts_that_are_replaced(
    part: str, off: bool, when: str, copy: Any, kept: bool
) -> None:
    pipe = CheckedPipe(**components(small_pipe()))
    pairs = pairs_for(pipe, 1)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    mixer.set_adapters("a", 0.5)
    clean = Snapshot.of(SmallPipe(**{**components(small_pipe()), part: replaced(part)}))
    if off:
        mixer.disable_lora()
    if when.startswith("before"):
        pipe.components[part] = replaced(part)
    if when == "before and looked at":
        pipe.check_inputs()
    if not kept:
        del mixer
        gc.collect()

    other = copy(pipe)
    again = LoraMixer(other) if when == "after, with a mixer" else None
    if when.startswith("after"):
        other.components[part] = replaced(part)

    other.check_inputs()
    if off:
        assert_same(values(other), clean.state)
    else:
        clean.assert_holds(other, mixed((pairs, 0.5)))
    again = again or LoraMixer(other)
    assert (list(again.adapters), again.get_active_adapters()) == (["a"], [] if off else ["a"])
    again.enable_lora()
    clean.assert_holds(other, mixed((pairs, 0.5)))
    again.unload_lora_weights()
    assert_same(values(other), clean.state)


@pytest.mark.parametrize(
    ("name", "part", "before", "copy"),
    [("schedule", "unet", False, deepcopy), ("side", "text_encoder", True, pickled)],
)
def test_a_picture_of_a_copy_has_the_mix_in_parts_that_were_replaced(
    name: str, part: str, before: bool, copy: Any
) -> None:
    pipe, mixer, _ = made()
    mixer.set_mix(MIXES[name][0], **MIXES[name][1])
    if before:
        setattr(pipe, part, scaled(getattr(tiny_sd(), part)))
    other = copy(pipe)
    if not before:
        setattr(other, part, scaled(getattr(tiny_sd(), part)))

    picture = draw(other)

    wanted = tiny_sd()
    setattr(wanted, part, scaled(getattr(tiny_sd(), part)))
    theirs = LoraMixer(wanted)
    for seed, adapter in enumerate("ab"):
        theirs.load_lora_weights(written(pairs_for(wanted, seed)), adapter, activate=False)
    theirs.set_mix(MIXES[name][0], **MIXES[name][1])
    assert torch.equal(picture, draw(wanted))
    assert LoraMixer(other).mixes == theirs.mixes


def scaled(part: Any) -> Any:
    """Change all weights of a part."""
    with torch.no_grad():
        for weight in part.parameters():
            weight.mul_(1.1)
    return part


def test_a_mixer_is_copied_with_its_pipeline() -> None:
    pipe, mixer, base = made()
    mixer.set_adapters("a", 0.5)

    theirs = deepcopy(mixer)

    assert theirs.pipe is not pipe
    theirs.unload_lora_weights()
    assert_same(values(theirs.pipe), base)
    assert mixer.get_active_adapters() == ["a"]
