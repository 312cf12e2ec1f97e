"""
The grammar of AUTOMATIC1111's ``parameters`` text, which most programs write and read.

    prompt, over as many lines as it has
    Negative prompt: as many lines again           (left out where it is empty)
    Steps: 20, Sampler: Euler, Lora hashes: "a: 0123456789ab, b: ..."

The last line counts as parameters only where it has three pairs or more. A value is a JSON string where it has a comma, a
colon or a line break. Some sites add keys whose values are bare JSON; these are cut out before the pairs are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.json_text import json_at, json_or_none
from lora_mixer.parsing.values import clean_text

if TYPE_CHECKING:
    from collections.abc import Mapping

NEGATIVE = "Negative prompt:"
LONGEST = 500_000
"""Characters of a text that are read at all."""
_PAIRS_AT_LEAST, _PAIRS_AT_MOST = 3, 300
_PAIR = re.compile(r'\b(\w[\w \-/]{1,60}):\s{0,20}("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_BARE_JSON = re.compile(r"(Hashes|Civitai resources|Civitai metadata|Recipe metadata): (?=[{\[])")


@dataclass(frozen=True)
class Infotext:
    """
    A text taken apart.

    Attributes:
        prompt: With its tags.
        negative_prompt: The same below.
        pairs: The parameters, unquoted, in their order.
        blocks: What stood as bare JSON, by its key.
    """

    prompt: str
    negative_prompt: str
    pairs: Mapping[str, str]
    blocks: Mapping[str, Any] = field(default_factory=dict)


def parse(text: str) -> Infotext | None:
    r"""
    Take a text apart.

    Args:
        text: The ``parameters`` text.

    Returns:
        Its parts; None where it has no line of parameters and no JSON that belongs to one.

    Example:
        >>> found = parse('a castle\nNegative prompt: rain\nSteps: 20, Seed: 7, Model: "a, b"')
        >>> found.prompt, found.negative_prompt, found.pairs["Model"]
        ('a castle', 'rain', 'a, b')
    """
    blocks: dict[str, Any] = {}
    lines = _without_json(text[:LONGEST], blocks).strip().split("\n")
    matches = list(islice(_PAIR.finditer(lines[-1]), _PAIRS_AT_MOST))
    if len(matches) >= _PAIRS_AT_LEAST:
        lines.pop()
    elif not blocks:
        return None
    else:
        matches = []
    pairs = {match[1].strip(): unquoted(match[2].strip()) for match in matches}
    start = next((number for number, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), None)
    if start is None:
        return Infotext(_joined(lines), "", pairs, blocks)
    negative = [lines[start].strip().removeprefix(NEGATIVE), *lines[start + 1 :]]
    return Infotext(_joined(lines[:start]), _joined(negative), pairs, blocks)


def quoted(value: object) -> str:
    """
    Write a value so that readers find its end.

    Example:
        >>> quoted(7.5), quoted("a: 1, b: 2")
        ('7.5', '"a: 1, b: 2"')
    """
    text = clean_text(value)
    if text.startswith('"') or any(mark in text for mark in ",:\n"):
        return json.dumps(text, ensure_ascii=False)
    return text


def unquoted(text: str) -> str:
    """Read a value; text that is not a JSON string stays as it is."""
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        value = json_or_none(text)
        return value if isinstance(value, str) else text
    return text


def entries(text: str) -> list[tuple[str, str]]:
    """
    Read what ``Lora hashes`` and the like hold: names and values, the name up to the last colon.

    Example:
        >>> entries("ink: 0123456789ab, 3d: v2: ba9876543210")
        [('ink', '0123456789ab'), ('3d: v2', 'ba9876543210')]
    """
    pairs = (part.strip().rpartition(":") for part in text.split(",")[:_PAIRS_AT_MOST])
    return [(name.strip(), value.strip()) for name, _, value in pairs if name.strip()]


def write_parameters(prompt: str, negative_prompt: str, pairs: Mapping[str, object]) -> str:
    r"""
    Write a text.

    Args:
        prompt: With tags, where there are any.
        negative_prompt: May be empty.
        pairs: The parameters in their order; those that are None are left out.

    Returns:
        The text.

    Example:
        >>> write_parameters("a castle", "", {"Steps": 20, "Seed": None, "Size": "64x64"})
        'a castle\nSteps: 20, Size: 64x64'
    """
    lines = [clean_text(prompt)]
    if negative_prompt:
        lines.append(f"{NEGATIVE} {clean_text(negative_prompt)}")
    lines.append(", ".join(f"{key}: {quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def _without_json(text: str, blocks: dict[str, Any]) -> str:
    """Cut the values out that are bare JSON, with their keys and the comma behind."""
    kept, end = "", 0
    for match in islice(_BARE_JSON.finditer(text), 20):
        if match.start() < end:
            continue
        try:
            value, stop = json_at(text, match.end())
        except ValueError:
            continue
        blocks[match[1]] = value
        before = text[end : match.start()]
        kept += before if text[stop : stop + 1] == "," else before.rstrip().removesuffix(",")
        end = stop + 1 if text[stop : stop + 1] == "," else stop
    return kept + text[end:]


def _joined(lines: list[str]) -> str:
    return "\n".join(line.rstrip("\r") for line in lines).strip()
