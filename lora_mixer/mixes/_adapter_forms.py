"""The forms of one adapter's weights: a number, diffusers' dict by component, or the rich dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.mixes._block_forms import read_blocks
from lora_mixer.mixes._reading import did_you_mean, shown
from lora_mixer.mixes._schedule_forms import looks_like_schedule, read_schedule
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.blocks import Blocks, BlockTree
from lora_mixer.mixes.mask import read_mask

if TYPE_CHECKING:
    from lora_mixer.mixes._reading import Reading
    from lora_mixer.mixes.schedule import Schedule

RICH_KEYS = ("weight", "components", "blocks", "schedule", "mask")


@dataclass
class _Components:
    """What a dict by component says."""

    weights: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    blocks: Blocks | None = None


def read_adapter(spec: object, where: str, reading: Reading) -> AdapterMix | None:
    """
    Read the weights of one adapter in any form.

    A number is the weight of everything. A dict by component is read as diffusers reads it: what is not named has 1.0,
    and ``unet`` may have block weights. A dict with ``weight``, ``components``, ``blocks``, ``schedule`` or ``mask``
    says these, and components that are not named take the weight. In place of a component's number a schedule may
    stand.

    Args:
        spec: A number, a dict, or an ``AdapterMix``.
        where: The path of the entry, for messages.
        reading: Where problems are noted.

    Returns:
        The value, or None where there was a problem.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read_adapter({"unet": {"down": 0}, "te": 0.5}, "a", Reading()).gain("unet", "down_blocks.0.resnets.0.conv1")
        0.0
    """
    before = len(reading.problems)
    if isinstance(spec, AdapterMix):
        return spec
    if not isinstance(spec, Mapping):
        weight = reading.number(where, spec)
        return AdapterMix(weight) if len(reading.problems) == before else None
    if any(key in RICH_KEYS for key in spec):
        return _read_rich(spec, where, reading)
    parts = _read_components(spec, where, reading)
    return _build(1.0, parts, {}, where, reading) if len(reading.problems) == before else None


def _read_rich(spec: Mapping[Any, object], where: str, reading: Reading) -> AdapterMix | None:
    before = len(reading.problems)
    for key in spec:
        if key not in RICH_KEYS:
            reading.unknown_key(where, key, RICH_KEYS, 'Weights by component go under "components".')
    weight = reading.number(f"{where}.weight", spec.get("weight", 1.0))
    parts = _read_components(spec.get("components", {}), f"{where}.components", reading)
    more: dict[str, Any] = {}
    if spec.get("blocks") is not None:
        if parts.blocks is not None:
            reading.problem(
                where, 'block weights are given twice, under "blocks" and under "unet"; give them once.'
            )
        parts.blocks = read_blocks(spec["blocks"], f"{where}.blocks", reading)
    if spec.get("schedule") is not None:
        more["schedule"] = read_schedule(spec["schedule"], f"{where}.schedule", reading)
    if spec.get("mask") is not None:
        more["mask"] = read_mask(spec["mask"], f"{where}.mask", reading)
    return _build(weight, parts, more, where, reading) if len(reading.problems) == before else None


def _read_components(spec: object, where: str, reading: Reading) -> _Components:
    parts = _Components()
    if not isinstance(spec, Mapping):
        reading.problem(where, f'expected a dict such as {{"unet": 0.8, "te": 0.3}}, got {shown(spec)}.')
        return parts
    for name, value in spec.items():
        if not isinstance(name, str) or not name.isidentifier():
            reading.problem(where, f'expected the name of a component such as "unet", got {shown(name)}.')
        elif hint := did_you_mean(name, RICH_KEYS, cutoff=0.8):
            reading.problem(where, f"{name!r} is no component.{hint}")
        elif looks_like_schedule(value):
            if schedule := read_schedule(value, f"{where}.{name}", reading):
                parts.schedules[name] = schedule
                parts.weights[name] = 1.0
        elif isinstance(value, (Mapping, BlockTree)):
            if name == "unet":
                parts.blocks = read_blocks(value, f"{where}.{name}", reading)
            else:
                reading.problem(
                    f"{where}.{name}", f"expected a number; only unet has blocks; got {shown(value)}."
                )
        else:
            parts.weights[name] = reading.number(f"{where}.{name}", value)
    return parts


def _build(
    weight: float, parts: _Components, more: Mapping[str, Any], where: str, reading: Reading
) -> AdapterMix | None:
    try:
        return AdapterMix(weight, parts.weights, parts.blocks, schedules=parts.schedules, **more)
    except MixError as error:
        for problem in error.problems:
            reading.problem(where, problem)
        return None
