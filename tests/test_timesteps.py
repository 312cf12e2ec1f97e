"""The timestep of a denoiser call, found without waiting for the device that it lies on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from lora_mixer.engines.denoiser.steps import Timesteps, timestep_of


class Pipe:
    def __init__(self, steps: int = 4) -> None:
        self.scheduler: Any = DDIMScheduler()
        self.scheduler.set_timesteps(steps)


def read(pipe: Pipe) -> Timesteps:
    timesteps = Timesteps()
    timesteps.read(pipe.scheduler.timesteps)
    return timesteps


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> float:
        raise AssertionError("a value was read from the device")

    monkeypatch.setattr(torch.Tensor, "item", refused)


@pytest.mark.usefixtures("no_reading")
def test_a_part_of_the_schedulers_timesteps_is_known_by_its_place() -> None:
    pipe = Pipe()
    expected = pipe.scheduler.timesteps.tolist()
    timesteps = read(pipe)

    assert [timesteps.value(t) for t in pipe.scheduler.timesteps] == expected
    assert [timesteps.value(t.expand(2)) for t in pipe.scheduler.timesteps] == expected
    assert timesteps.value(pipe.scheduler.timesteps[2:][0]) == expected[2]


def test_a_part_of_a_slice_with_steps_is_known_by_its_place() -> None:
    pipe = Pipe()
    whole = pipe.scheduler.timesteps
    pipe.scheduler.timesteps = whole[1::2]

    timesteps = read(pipe)

    assert [timesteps.value(t) for t in whole] == whole.tolist()  # those between are read


def test_timesteps_changed_in_place_are_read_anew() -> None:
    pipe = Pipe()
    timesteps = read(pipe)
    first = timesteps.value(pipe.scheduler.timesteps[0])

    pipe.scheduler.timesteps += 7

    assert timesteps.read(pipe.scheduler.timesteps) == pipe.scheduler.timesteps.tolist()
    assert timesteps.value(pipe.scheduler.timesteps[0]) == first + 7


@pytest.mark.parametrize(
    "value", [torch.tensor(321), torch.tensor([321.0, 321.0]), torch.tensor(321, dtype=torch.int32), 321]
)
def test_other_timesteps_are_read(value: Any) -> None:
    timesteps = read(Pipe())

    assert timesteps.value(value) == 321.0


def test_the_timestep_of_a_call_is_the_argument_of_that_name_or_the_second_one() -> None:
    assert timestep_of((None, 5), {}) == 5
    assert timestep_of((), {"timestep": 7}) == 7
    assert timestep_of((None,), {}) is None
