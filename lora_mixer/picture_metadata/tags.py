"""``<lora:...>`` tags in strangers' prompts: taken out whatever they say, with a note where that was not understood."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from lora_mixer.errors import MixError
from lora_mixer.mixes import TE, Mix, format_prompt, parse_prompt
from lora_mixer.parsing.values import as_float
from lora_mixer.picture_metadata.settings import PictureAdapter

if TYPE_CHECKING:
    from collections.abc import Iterable

_TAG = re.compile(r"(?<!\\)<(?:lora|lyco):([^<>]{1,4000})>")
_TAGS_AT_MOST = 500
# SD.Next's names for the three thirds of a UNet, and ours.
_THIRDS = {"in": "down", "mid": "mid", "out": "up"}
_NOT_IN_NAMES = re.compile(r"[:<>,]")


def take_tags(
    prompt: str, notes: list[str], *, denoiser_first: bool = False
) -> tuple[str, list[PictureAdapter]]:
    """
    Take the tags out of a prompt.

    Args:
        prompt: As it was written.
        notes: Where remarks go.
        denoiser_first: Whether the first of two weights is the denoiser's, as in SwarmUI.

    Returns:
        The prompt without them, and the adapters in the order of the tags; of a name given twice the last one counts.

    Example:
        >>> take_tags("a castle <lora:ink:0.2:0.8>, dusk", [])[0]
        'a castle, dusk'
    """
    tags: dict[str, PictureAdapter] = {}
    names: list[str] = []

    def numbered(_: re.Match[str]) -> str:
        if len(names) == _TAGS_AT_MOST:
            return ""
        names.append(f"tag {len(names)}")
        return f"<lora:{names[-1]}>"

    for match in islice(_TAG.finditer(prompt), _TAGS_AT_MOST):
        adapter = _read(match[1], notes, denoiser_first=denoiser_first)
        if adapter is None:
            notes.append(f"the tag <lora:{match[1][:60]}> names no adapter and was left out")
        elif tags.pop(adapter.name, None):
            notes.append(f'"{adapter.name}" is named twice in the prompt; the last weight counts')
        if adapter is not None:
            tags[adapter.name] = adapter
    clean, _ = parse_prompt(_TAG.sub(numbered, prompt), names)
    return clean, list(tags.values())


def with_tags(prompt: str, adapters: Iterable[PictureAdapter]) -> tuple[str, bool]:
    """
    Write tags behind a prompt.

    Args:
        prompt: The prompt.
        adapters: The adapters in their order.

    Returns:
        The prompt with tags that other programs read, and whether they say all there is to say.

    Example:
        >>> with_tags("a castle", [PictureAdapter("ink", 0.8, 0.2)])
        ('a castle <lora:ink:0.2:0.8>', True)
    """
    tags, complete = [], True
    for adapter in adapters:
        alias = alias_of(adapter.name)
        try:
            tags.append(format_prompt("", Mix({alias: adapter.adapter_mix()})))
            complete = complete and alias == adapter.name
        except MixError:
            plain = PictureAdapter(alias, adapter.weight, adapter.text_weight)
            tags.append(format_prompt("", Mix({alias: plain.adapter_mix()})))
            complete = False
    return " ".join([prompt, *tags] if prompt else tags), complete


def alias_of(name: str) -> str:
    """
    Return a name as tags and lists of hashes can have it.

    Example:
        >>> alias_of("user/repo: a, b")
        'user/repo_ a_ b'
    """
    return _NOT_IN_NAMES.sub("_", name).strip() or "_"


def _read(body: str, notes: list[str], *, denoiser_first: bool) -> PictureAdapter | None:
    name, *items = (part.strip() for part in body.split(":"))
    if not name:
        return None
    if denoiser_first and len(items) == 2 and not any("=" in item for item in items):
        items.reverse()
    try:
        _, mix = parse_prompt(f"<lora:{':'.join(['x', *items])}>", ["x"])
        return PictureAdapter.of(name, mix["x"])
    except MixError as error:
        adapter, left = _plainly(name, items)
        if left:
            why = error.problems[0].text if error.problems else str(error)
            notes.append(f'"{name}": {", ".join(left)} was left out: {why[:200]}')
        return adapter


def _plainly(name: str, items: list[str]) -> tuple[PictureAdapter, list[str]]:
    """Read the numbers of a tag, and say what else was in it."""
    places = ["te", "unet"]
    values: dict[str, float] = {}
    left: list[str] = []
    for item in items[:20]:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            key, text = (places.pop(0), item) if places else ("", item)
        number = as_float(text.partition("@")[0])  # of keyframes the first value
        if key in {"te", "unet", *_THIRDS} and number is not None:
            values[key] = number
        if values.get(key) is None or "@" in text:
            left.append(item[:60])
    te = values.get("te", 1.0)
    unet = values.get("unet", te)
    thirds = {ours: values[theirs] for theirs, ours in _THIRDS.items() if theirs in values}
    plain = PictureAdapter(name, unet, None if te == unet else te)
    if not thirds:
        return plain, left
    # There the thirds' weights stand in place of the denoiser's, here blocks multiply it.
    blocks = {**dict.fromkeys(("down", "mid", "up", "other"), unet), **thirds}
    spec = Mix.of({"x": {"weight": 1.0, "components": {TE: te}, "blocks": blocks}})["x"]
    return replace(plain, spec=spec), left
