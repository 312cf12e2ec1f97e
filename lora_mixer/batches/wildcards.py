"""``__NAME__`` in prompts: drawn by the picture's own seed, so that a picture is the same wherever and whenever it is made."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from lora_mixer.batches.dynamic import draw, is_dynamic
from lora_mixer.errors import PlanError
from lora_mixer.parsing.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.batches.plan import Plan
    from lora_mixer.parsing.problems import EntryPath, Problems

_MARK = re.compile(r"__([A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*)__")
_FILE_BYTES_AT_MOST = 64 * 1024 * 1024
_DEPTH_AT_MOST = 8
_TEXT_AT_MOST = 100_000


def read_wildcards(plan: Plan, problems: Problems) -> dict[str, list[str]]:
    """
    Read the plan's wildcards.

    Args:
        plan: The plan; files are as seen from its folder, one value per line, lines that begin with ``#`` left out.
        problems: Where problems are noted.

    Returns:
        The values by name.
    """
    wildcards: dict[str, list[str]] = {}
    for name, given in plan.wildcards.items():
        where = ("wildcards", name)
        if not _MARK.fullmatch(f"__{name}__"):
            problems.problem(where, "expected a name of letters and digits, with - _ . between them")
            continue
        values = list(given) if isinstance(given, list) else _of_file(plan.place(given), where, problems)
        if not values and values is not None:
            problems.problem(where, "has no values")
        wildcards[name] = values or [""]
    return wildcards


def _of_file(path: str, where: EntryPath, problems: Problems) -> list[str] | None:
    try:
        text = read_regular(path, _FILE_BYTES_AT_MOST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        problems.problem(where, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
        return None
    rows = (row.strip() for row in text.splitlines())
    return [row for row in rows if row and not row.startswith("#")]


def fill(
    text: str, seed: int, values: Mapping[str, Sequence[str]], fixed: Mapping[str, str], place: str = ""
) -> str:
    """
    Put values in place of wildcards.

    Args:
        text: A prompt.
        seed: The picture's seed, by which values are drawn.
        values: The values by name.
        fixed: Values that are not drawn.
        place: Where the text stands, so that two texts of a picture draw apart.

    Raises:
        PlanError: When a name is unknown, or wildcards name each other without end.

    Example:
        >>> fill("a __animal__ at __time__", 7, {"animal": ["cat", "owl"], "time": ["dusk"]}, {"animal": "fox"})
        'a fox at dusk'
    """
    if is_dynamic(text):
        return _drawn(text, seed, values, fixed, place)
    filled = _filled(text, seed, values, fixed, place)
    return draw(filled, seed, values, place) if is_dynamic(filled) else filled


def _drawn(
    text: str, seed: int, values: Mapping[str, Sequence[str]], fixed: Mapping[str, str], place: str
) -> str:
    """Draw variants; wildcards stand in them, so all are drawn together."""
    named = _MARK.sub(lambda match: fixed.get(match[1], match[0]), text)
    for match in _MARK.finditer(named):
        if match[1] not in values:
            raise PlanError(_unknown(match[1], values))
    drawn = draw(named, seed, values, place)
    if len(drawn) > _TEXT_AT_MOST:
        raise PlanError(f"with its variants drawn a prompt is longer than {_TEXT_AT_MOST} characters")
    return drawn


def _unknown(name: str, values: Mapping[str, Sequence[str]]) -> str:
    return f"the wildcard __{name}__ is unknown; known are: {', '.join(values) or 'none'}"


def _filled(
    text: str, seed: int, values: Mapping[str, Sequence[str]], fixed: Mapping[str, str], place: str
) -> str:
    count = 0

    def value_of(match: re.Match[str]) -> str:
        nonlocal count
        name = match[1]
        if name in fixed:
            return fixed[name]
        if name not in values:
            raise PlanError(_unknown(name, values))
        count += 1
        digest = hashlib.sha256(f"{seed}\0{place}\0{name}\0{count}".encode()).digest()
        return values[name][int.from_bytes(digest[:8], "big") % len(values[name])]

    for _ in range(_DEPTH_AT_MOST):
        filled, drawn = _MARK.subn(value_of, text)
        if not drawn:
            return text
        if len(filled) > _TEXT_AT_MOST:
            raise PlanError(
                f"with its wildcards filled in a prompt is longer than {_TEXT_AT_MOST} characters"
            )
        text = filled
    raise PlanError(f"wildcards name each other more than {_DEPTH_AT_MOST} times over in {text[:60]!r}")
