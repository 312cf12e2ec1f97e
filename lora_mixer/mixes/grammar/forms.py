"""The forms in which a whole mix may come: dict, list, JSON, YAML, one line; each becomes names with what they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from lora_mixer.errors import MixError
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.blocks import TREE_KEYS, Blocks, BlockTree, read_tree
from lora_mixer.mixes.grammar import line
from lora_mixer.mixes.grammar.schedules import looks_like_schedule, read_schedule
from lora_mixer.mixes.lbw import read_lbw
from lora_mixer.mixes.mask import read_mask
from lora_mixer.mixes.methods.table import read_method
from lora_mixer.mixes.patterns import B_LORA, looks_like_patterns, read_patterns
from lora_mixer.mixes.transformer_blocks import PRESETS, read_depth
from lora_mixer.wording import did_you_mean, list_of, shown

if TYPE_CHECKING:
    from lora_mixer.mixes.methods.method import Method
    from lora_mixer.mixes.reading import Reading
    from lora_mixer.mixes.schedule import Schedule
    from lora_mixer.parsing.problems import EntryPath

FULL_KEYS = ("adapters", "method")
_PAIR = 2


@dataclass
class Entries:
    """
    A mix before its parts are read.

    Attributes:
        adapters: Names with what was said about them, repeated names included.
        method: What was said about the method, or None.
    """

    adapters: list[tuple[object, object]] = field(default_factory=list)
    method: object = None


def is_name(name: object, reading: Reading) -> TypeGuard[str]:
    """Tell whether something can be an adapter's name, and note it where not."""
    if isinstance(name, str) and name.strip() and not any("\ud800" <= char <= "\udfff" for char in name):
        return True
    reading.problem("", f"expected a name (text that is not empty), got {shown(name)}; numbers need quotes.")
    return False


def is_full(data: Mapping[Any, object]) -> bool:
    """
    Tell the form with "adapters" (and "method") from weights by name.

    Example:
        >>> is_full({"adapters": {"a": 1}}), is_full({"adapters": 1})
        (True, False)
    """
    return (
        "adapters" in data and isinstance(data["adapters"], (Mapping, list)) and set(data) <= set(FULL_KEYS)
    )


def read_parts(obj: object, reading: Reading) -> tuple[dict[str, AdapterMix], Method]:
    """
    Read a mix in any form.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_parts("a:0.5 | switch(3)", Reading())[1]
        Switch(tau=3, adapters=())
    """
    entries = entries_of(obj, reading)
    adapters: dict[str, AdapterMix] = {}
    for name, spec in entries.adapters:
        if not is_name(name, reading):
            continue
        if name in adapters:
            reading.problem(
                name, "is named twice; give each adapter one entry with the weight that it shall have."
            )
            continue
        adapters[name] = read_adapter_mix(spec, name, reading) or AdapterMix()
    method = read_method(entries.method, "method", reading)
    if not reading.problems:
        for problem in method.misfits(tuple(adapters)):
            reading.problem("method", problem)
    return adapters, method


def entries_of(obj: object, reading: Reading, path: EntryPath = ()) -> Entries:
    """
    Take a mix in any form apart, which stands at a path of a text that was read.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> entries_of(["a", ("b", 0.5)], Reading()).adapters
        [('a', 1.0), ('b', 0.5)]
    """
    if isinstance(obj, str):
        return _entries_of_text(obj, reading)
    if isinstance(obj, Mapping):
        if not is_full(obj):
            return _entries_of_table(obj, reading, path)
        inner, below = obj["adapters"], (*path, "adapters")
        reading.root("method", (*path, "method"))
        # An adapter may itself be named "adapters", so a dict in here is never taken for the full form again.
        if isinstance(inner, Mapping):
            entries = _entries_of_table(inner, reading, below)
        else:
            entries = entries_of(inner, reading, below)
        return Entries(entries.adapters, obj.get("method"))
    if isinstance(obj, (list, tuple)):
        pairs: list[tuple[object, object]] = []
        for index, entry in enumerate(obj):
            if isinstance(entry, str):
                reading.root(entry, (*path, index))
                pairs.append((entry, 1.0))
            elif isinstance(entry, (list, tuple)) and len(entry) == _PAIR:
                reading.root(entry[0], (*path, index, 1))
                pairs.append((entry[0], entry[1]))
            else:
                reading.problem(
                    f"[{index}]", f"expected a name or a pair (name, weights), got {shown(entry)}."
                )
        return Entries(pairs)
    reading.problem("", f"expected a Mix, a dict, a list of names or pairs, or text, got {shown(obj)}.")
    return Entries()


def _entries_of_table(table: Mapping[Any, object], reading: Reading, path: EntryPath) -> Entries:
    for name in table:
        reading.root(name, (*path, name))
    return Entries(list(table.items()))


def _entries_of_text(text: str, reading: Reading) -> Entries:
    stripped = text.strip()
    if not stripped:
        return Entries()
    if stripped[0] in "{[":
        plain = reading.load("json", text)
    elif "\n" in stripped:
        plain = reading.load("yaml", text)
    else:
        return Entries(*line.read_line(stripped, reading))
    if reading.problems:
        return Entries()
    if isinstance(plain, str):
        reading.problem("", f"expected YAML that maps names to weights, got the text {shown(plain)}.")
        return Entries()
    return entries_of(plain, reading)


RICH_KEYS = ("weight", "components", "blocks", "schedule", "mask")


@dataclass
class _Components:
    """What a dict by component says."""

    weights: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    blocks: Blocks | None = None


def read_adapter_mix(spec: object, where: str, reading: Reading) -> AdapterMix | None:
    """
    Read the weights of one adapter in any form.

    A number is the weight of everything. A dict by component is read as diffusers reads it: what is not named has 1.0,
    and ``unet`` may have block weights. A dict with ``weight``, ``components``, ``blocks``, ``schedule`` or ``mask``
    says these, and components that are not named take the weight. In place of a component's number a schedule may
    stand.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_adapter_mix({"unet": {"down": 0}, "te": 0.5}, "a", Reading()).gain("unet", "down_blocks.0.resnets.0.conv1")
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
            reading.problem(where, f"{name!r} is not a component.{hint}")
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
        reading.take(where, error)
        return None


def read_blocks(spec: object, where: str, reading: Reading) -> Blocks | None:
    """
    Read block weights in any form.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_blocks("b-lora:style", "", Reading()).weight("unet", "mid_block.resnets.0.conv1")
        0.0
    """
    if isinstance(spec, Blocks):
        return spec
    if isinstance(spec, (str, list, tuple)):
        name = spec.strip() if isinstance(spec, str) else ""
        preset: Blocks | None = B_LORA.get(name) or PRESETS.get(name)
        return preset or read_lbw(spec, where, reading, (*B_LORA, *PRESETS))
    if isinstance(spec, Mapping):
        return _read_block_dict(spec, where, reading)
    reading.problem(
        where,
        f"expected a preset's name, an LBW list, a dict with {list_of(TREE_KEYS)} or a dict of layer patterns, "
        f"got {shown(spec)}.",
    )
    return None


def _read_block_dict(spec: Mapping[object, object], where: str, reading: Reading) -> Blocks | None:
    if set(spec) == {"patterns"}:
        return read_patterns(spec["patterns"], f"{where}.patterns", reading)
    if looks_like_patterns(spec):
        return read_patterns(spec, where, reading)
    if {"double", "single"} & set(spec):
        return read_depth(spec, where, reading)
    return read_tree(spec, where, reading)
