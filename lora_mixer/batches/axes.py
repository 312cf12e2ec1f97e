"""What a grid of a job can change, and the values it does so by."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_mixer.batches.plan import MIX_FIELDS, PictureEntry, sentence
from lora_mixer.errors import MixError, PictureError
from lora_mixer.mixes import Mix
from lora_mixer.parsing.values import is_number
from lora_mixer.pictures import PICTURE_FIELDS, GridAxis, PictureRequest
from lora_mixer.pictures.grid import BY_COMPONENT
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.batches.plan import Plan
    from lora_mixer.parsing.problems import Problems

_FIELDS = frozenset(PictureEntry.model_fields)
_WILDCARD = re.compile(r"__(.+)__")
_RANGE = re.compile(r"(-?[0-9]{1,19})\.\.(-?[0-9]{1,19})")
_KINDS = ("weight", *BY_COMPONENT, "blocks")
VALUES_AT_MOST = 1_000_000


@dataclass(frozen=True)
class JobAxis:
    """
    One axis of a job.

    Attributes:
        key: As the plan writes it.
        values: The values.
        kind: ``field``, ``wildcard`` or ``picture`` (an axis of :mod:`lora_mixer.pictures`).
        axis: The axis, of the last kind.
    """

    key: str
    values: tuple[Any, ...]
    kind: str
    axis: GridAxis | None = None

    def label(self, value: Any) -> str:
        """Return what stands at a row or column of a contact sheet."""
        if self.axis is not None:
            return GridAxis(self.axis.kind, (value,), self.axis.adapter).labels[0]
        text = (
            value
            if isinstance(value, str)
            else (Mix.of(value).to_text() if self.key in MIX_FIELDS else f"{value}")
        )
        about = PICTURE_FIELDS.get(self.key)
        return f"{self.key} {text}" if about and about.kind != "text" else text[:40] or self.key


def read_axes(
    plan: Plan, job: int, which: str, wildcards: Mapping[str, Sequence[str]], problems: Problems
) -> list[JobAxis]:
    """
    Read the grid of a job, or what stands side by side.

    Args:
        plan: The plan.
        job: The job's number.
        which: ``grid`` or ``zip``.
        wildcards: The wildcards' values.
        problems: Where problems are noted.

    Returns:
        The axes that make sense.
    """
    axes = []
    for key, given in getattr(plan.jobs[job], which).items():
        where = ("jobs", job, which, key)
        values = _values(key, given, wildcards)
        if isinstance(values, str):
            problems.problem(where, values)
            continue
        axis = _axis(key, values, wildcards)
        if isinstance(axis, str):
            problems.problem(where, axis)
            continue
        bad = {i: why for i, value in enumerate(values) if (why := _misfit(plan, axis, value))}
        for i, why in bad.items():
            problems.problem((*where, i), why)
        if not bad and key in MIX_FIELDS:  # what is not text would lose the plan's folder
            axis = replace(
                axis, values=tuple(x if isinstance(x, str | None) else plan.mix(x) for x in values)
            )
        if not bad:
            axes.append(axis)
    return axes


def _values(
    key: str, given: list[Any] | str, wildcards: Mapping[str, Sequence[str]]
) -> tuple[Any, ...] | str:
    if isinstance(given, list):
        return tuple(given) if given else "has no values; give at least one"
    if (wild := _WILDCARD.fullmatch(key)) and given == "all":
        return tuple(wildcards.get(wild[1], ())) or f"the wildcard {key} is unknown"
    if span := _RANGE.fullmatch(given):
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < VALUES_AT_MOST:
            return f"a range goes upwards and has at most {VALUES_AT_MOST} values, got {given}"
        return tuple(range(first, last + 1))
    return f"expected a list, a range such as 1..10{', or all' if wild else ''}, got {shown(given)}"


def _axis(key: str, values: tuple[Any, ...], wildcards: Mapping[str, Sequence[str]]) -> JobAxis | str:
    if key in _FIELDS:
        return JobAxis(key, values, "field")
    if wild := _WILDCARD.fullmatch(key):
        if wild[1] not in wildcards:
            return f"the wildcard {key} is unknown; known are: {', '.join(wildcards) or 'none'}"
        return JobAxis(key, values, "wildcard")
    kind, _, name = key.partition(" ")
    if kind in _KINDS and name.strip():
        return JobAxis(key, values, "picture", GridAxis(kind, values, name.strip()))
    known = ", ".join((*sorted(_FIELDS), *(f"'{kind} NAME'" for kind in _KINDS), "__WILDCARD__"))
    return f"no such axis; known are {known}"


def _misfit(plan: Plan, axis: JobAxis, value: Any) -> str:
    """Say why a value cannot be, or nothing."""
    if axis.kind == "wildcard":
        return "" if isinstance(value, str) else f"expected text, got {shown(value)}"
    if axis.axis is not None:
        return _misfit_of_picture(axis.axis, value)
    try:
        PictureEntry.model_validate({axis.key: value})
        if axis.key in MIX_FIELDS and value is not None:
            plan.mix(value)
    except ValidationError as error:
        return sentence(error.errors(include_url=False)[0])
    except MixError as error:
        return str(error)
    return ""


def _misfit_of_picture(axis: GridAxis, value: Any) -> str:
    if axis.kind != "blocks" and not is_number(value):
        return f"expected a number, got {shown(value)}"
    try:
        axis.at(PictureRequest(""), value)
    except (MixError, PictureError) as error:
        return str(error)
    return ""
