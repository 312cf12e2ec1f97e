"""
Mixes in prompts: ``a castle <lora:watercolor:0.7> at dusk``.

The grammar is AUTOMATIC1111's, with the arguments of sd-webui-loractl (schedules) and sd-webui-lora-block-weight (LBW):

    <lora:NAME[:TE[:UNET]][:key=value]...>

TE is the weight of the text encoders, 1 where it is missing; UNET that of all else, and the same as TE where it is
missing. Each is a number or keyframes (``0@0,1@0.5``); in the place of UNET a preset or a list of LBW may stand. Keys are
``te``, ``unet``, ``text_encoder``, ``text_encoder_2`` to ``_4``, ``lbw``, ``start``, ``stop``, ``step=a-b``
(whole numbers are steps, numbers with a point fractions) and ``schedule`` (``linear(0, 1)`` and the like).

Tags of other kinds (``<hypernet:...>``) and whatever else looks odd stay in the prompt. ``<lyco:...>`` is read as
``<lora:...>``. A name given twice is an error: other tools add such weights up, or use the last one twice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_mixer.components import TE, TEXT_ENCODERS
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.grammar.forms import read_adapter_mix
from lora_mixer.mixes.grammar.schedules import looks_like_schedule, read_span, read_window
from lora_mixer.mixes.grammar.tokens import is_number
from lora_mixer.mixes.lbw import LbwWeights, lbw_text
from lora_mixer.mixes.mix import Mix
from lora_mixer.mixes.patterns import B_LORA
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.transformer_blocks import PRESETS as DEPTH_PRESETS
from lora_mixer.wording import did_you_mean, list_of, number_text, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_mixer.mixes.blocks import Blocks

_PRESETS = (*B_LORA, *DEPTH_PRESETS)
_BETWEEN = re.compile(
    "".join(f"(?<![=:]{name})" for name in dict.fromkeys(x.split(":")[0] for x in _PRESETS if ":" in x)) + ":"
)
"""The colon between the parts of a tag; the one in the name of a preset is none."""
_TAG = re.compile(r"(?<!\\)<(lora|lyco):([^<>]+)>")
_KEYS = ("te", "unet", *TEXT_ENCODERS, "lbw", "start", "stop", "step", "schedule")
_LIMITED = {
    "dyn": "the ranks of an adapter cannot be cut at run time; leave it out",
    "lbwe": "weights by element are said with layer patterns, outside the prompt",
    "hr": "a second pass has a mix of its own; leave it out",
    "hrte": "a second pass has a mix of its own; leave it out",
    "hrunet": "a second pass has a mix of its own; leave it out",
}


def parse_prompt(
    text: str, known: Collection[str], presets: Mapping[str, Sequence[float]] | None = None
) -> tuple[str, Mix]:
    """
    Take the adapters' tags out of a prompt.

    Args:
        text: The prompt, as it was typed.
        known: The names of the adapters that are loaded.
        presets: LBW lists that may be named, beside the built-in ones.

    Returns:
        The prompt without the tags (with one space where a tag stood between words, and without a comma that it leaves
        alone), and the mix in the order of the tags. Without tags: the same text, and the empty mix.

    Raises:
        MixError: With everything that is wrong: unknown names, names given twice, numbers that are none.

    Example:
        >>> prompt, mix = parse_prompt("a castle, <lora:watercolor:0.7>, <lora:3d:0.2:0.8> at dusk", ["watercolor", "3d"])
        >>> prompt, mix.to_text()
        ('a castle, at dusk', 'watercolor:0.7, 3d:0.8,te=0.2')
    """
    reading = Reading(presets)
    adapters: dict[str, AdapterMix] = {}
    clean, end = "", 0
    for match in _TAG.finditer(text):
        clean = _joined(clean, text[end : match.start()]) if end else text[: match.start()]
        end = match.end()
        name, *items = _BETWEEN.split(match[2])
        name = name.strip()
        if name not in known:
            hint = did_you_mean(name, known)
            reading.problem(match[0], f'there is no adapter "{name}"; known are {list_of(known, 8)}.{hint}')
        elif name in adapters:
            reading.problem(
                match[0], f'"{name}" is named twice; write one tag with the weight that it shall have.'
            )
        elif adapter := _read_items(items, match[0], reading):
            adapters[name] = adapter
        else:
            adapters[name] = AdapterMix()
    reading.finish("prompt")
    return (_joined(clean, text[end:], last=True), Mix(adapters)) if end else (text, Mix())


def names_in_prompt(text: str) -> list[str]:
    """
    List the adapters that the tags of a prompt name, whether or not they are known.

    Args:
        text: The prompt, as it was typed.

    Returns:
        The names in the order of the tags, each once.

    Example:
        >>> names_in_prompt("a castle <lora:ink:0.7> at dusk <lora:neon:lbw=OUTALL> <lora:ink>")
        ['ink', 'neon']
    """
    return list(dict.fromkeys(_BETWEEN.split(match[2])[0].strip() for match in _TAG.finditer(text)))


def format_prompt(prompt: str, mix: object) -> str:
    """
    Write a mix behind a prompt.

    Args:
        prompt: The prompt, without tags.
        mix: A mix, in any form that ``Mix.of`` reads.

    Returns:
        The prompt and a tag for each adapter, which ``parse_prompt`` reads back as the same mix. (A weight of ``unet``
        comes back as that of all but the text encoders, which is the same on every pipeline that has a UNet.)

    Raises:
        MixError: The mix has what tags cannot say, or an adapter has a name that they cannot have.

    Example:
        >>> format_prompt("a castle", "watercolor:0.7, 3d:unet=0.8,te=0.2,lbw=OUTALL")
        'a castle <lora:watercolor:0.7> <lora:3d:0.2:0.8:lbw=OUTALL>'
    """
    value = Mix.of(mix)
    reading = Reading()
    if not value.method.is_sum:
        reading.problem("method", f'tags cannot say "{value.method.name}"; write the mix as JSON.')
    tags = [_tag(name, adapter, reading) for name, adapter in value.adapters.items()]
    reading.finish("mix")
    return " ".join([prompt, *tags] if prompt else tags)


def _joined(before: str, after: str, *, last: bool = False) -> str:
    """Close the gap that a tag leaves: one space between words, and no comma on its own."""
    left, right = before.rstrip(" \t"), after.lstrip(" \t")
    spaced = (left, right) != (before, after)
    if right.startswith(",") and (not left or left.endswith((",", "\n"))):
        behind = right[1:]
        right = behind.lstrip(" \t")
        spaced = right != behind
    if last and not right and left.endswith(","):
        left = left[:-1].rstrip(" \t")
    ends = not left or left.endswith("\n") or right[:1] in {",", "\n"} or (last and not right)
    return left + (" " if spaced and not ends else "") + right


def _read_items(items: list[str], where: str, reading: Reading) -> AdapterMix | None:
    positional = [item.strip() for item in items if "=" not in item]
    named: dict[str, str] = {}
    for item in (item for item in items if "=" in item):
        key, _, value = (part.strip() for part in item.partition("="))
        if key in _LIMITED:
            reading.problem(where, f'"{key}" is not supported: {_LIMITED[key]}.')
        elif key not in _KEYS:
            reading.problem(
                where, f'unknown argument "{key}"; known are {list_of(_KEYS)}.{did_you_mean(key, _KEYS)}'
            )
        elif key in named:
            reading.problem(where, f"{key} is given twice; give it one value.")
        else:
            named[key] = value
    for key, value in zip(("te", "unet"), positional, strict=False):
        # Before it had a name, LBW's list stood in the third place.
        is_list = key == "unet" and not is_number(value) and not looks_like_schedule(value)
        key = "lbw" if is_list else key  # noqa: PLW2901
        if key in named:
            reading.problem(where, f"{key} is given twice, by its place and by its name; give it once.")
        named.setdefault(key, value)
    if len(positional) > len(("te", "unet")):
        reading.problem(
            where, f'expected at most two weights, got "{positional[2]}", too: {_LIMITED["dyn"]}.'
        )
    return _adapter_of(named, where, reading)


def _adapter_of(named: dict[str, str], where: str, reading: Reading) -> AdapterMix | None:
    te = _weight(named.get("te", "1"), where, reading)
    unet = _weight(named["unet"], where, reading) if "unet" in named else te
    components = {key: _weight(named[key], where, reading) for key in TEXT_ENCODERS if key in named}
    spec: dict[str, object] = {"components": components}
    if isinstance(unet, float):
        spec["weight"] = unet
    timed: list[str] = [key for key in ("start", "stop", "step", "schedule") if key in named]
    if not isinstance(unet, float):
        spec["schedule"] = unet
        timed.append("unet")
    # An explicit te beside an explicit unet is a weight of its own, which schedules do not touch.
    if te != unet or ("te" in named and "unet" in named and timed):
        components[TE] = te
    if len(timed) > 1 and timed != ["start", "stop"]:
        reading.problem(where, f"{list_of(timed)} all say when; give one of them.")
    elif "step" in named:
        spec["schedule"] = read_span(named["step"], where, reading)
    elif "schedule" in named:
        spec["schedule"] = named["schedule"]
    elif timed and timed != ["unet"]:
        spec["schedule"] = read_window(named.get("start"), named.get("stop"), where, reading)
    if "lbw" in named:
        spec["blocks"] = named["lbw"]
    return read_adapter_mix(spec, where, reading)


def _weight(text: str, where: str, reading: Reading) -> float | str:
    if is_number(text):
        return reading.number(where, float(text))
    if not looks_like_schedule(text):
        reading.problem(where, f'expected a number or keyframes such as "0@0,1@0.5", got {shown(text)}.')
        return 0.0
    return text


def _tag(name: str, adapter: AdapterMix, reading: Reading) -> str:
    if set(name) & set(":<>") or name != name.strip():
        reading.problem(
            name, "tags cannot have names with : < > or outer spaces; load the adapter under another name."
        )
    missing = [key for key in adapter.components if key not in {TE, "unet", *TEXT_ENCODERS}]
    if missing:
        reading.problem(name, f"tags cannot say weights of {list_of(missing)}; write the mix as JSON.")
    blocks = adapter.blocks and _lbw(adapter.blocks)
    if adapter.mask is not None or (adapter.blocks is not None and blocks is None):
        reading.problem(
            name, "tags cannot say masks, nested blocks or layer patterns; write the mix as JSON."
        )
    encoders = {key: _said(adapter, key) for key in adapter.components if key in TEXT_ENCODERS}
    weight = number_text(adapter.weight)
    te = _said(adapter, TE) if TE in adapter.components else None
    if "unet" in adapter.components:
        weight, te = _said(adapter, "unet"), te or weight
        if adapter.schedule is not None and (TE not in adapter.components or "unet" in adapter.schedules):
            reading.problem(
                name, "tags cannot say this schedule beside a weight of unet; write the mix as JSON."
            )
    parts = [name, weight] if te is None else [name, te, weight]
    parts += [f"{key}={value}" for key, value in encoders.items()]
    if blocks:
        parts.append(f"lbw={blocks}")
    if adapter.schedule is not None:
        parts.append(f"schedule={adapter.schedule.to_text()}")
    return f"<lora:{':'.join(parts)}>"


def _lbw(blocks: Blocks) -> str | None:
    """Return block weights as ``lbw=`` takes them: a preset's name or a list."""
    if isinstance(blocks, LbwWeights):
        return lbw_text(blocks)
    spec = blocks.to_spec()
    return spec if isinstance(spec, str) else None


def _said(adapter: AdapterMix, key: str) -> str:
    return (
        adapter.schedules[key].to_text() if key in adapter.schedules else number_text(adapter.components[key])
    )
