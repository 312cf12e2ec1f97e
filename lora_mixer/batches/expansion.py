"""A plan written out: every picture with its request and the name of its file."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.axes import JobAxis, read_axes
from lora_mixer.batches.naming import PICTURE_SUFFIXES, NameTemplate, slug
from lora_mixer.batches.plan import MIX_FIELDS
from lora_mixer.batches.wildcards import fill, read_wildcards
from lora_mixer.errors import LoraMixerError, MixError, PictureError, PlanError
from lora_mixer.mixes import Mix
from lora_mixer.pictures import MAX_SEED, PICTURE_FIELDS, PictureRequest, own_defaults
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from lora_mixer.batches.plan import Plan
    from lora_mixer.parsing.problems import Problems

PICTURES_AT_MOST = 10_000_000


@dataclass(frozen=True)
class PlannedPicture:
    """
    One picture of a plan.

    Attributes:
        index: Its place in the plan, from 0.
        job: Its job's number.
        name: Its job's name, or its number.
        cell: Its place in its job.
        request: What it shall be.
        file: The file's name below the plan's folder.

    Example:
        >>> from lora_mixer.batches import check_plan
        >>> picture = check_plan({"jobs": [{"prompt": "a cat", "repeat": 2}]}).pictures[1]
        >>> picture.job, picture.cell, picture.request.prompt
        (0, 1, 'a cat')
    """

    index: int
    job: int
    name: str
    cell: int
    request: PictureRequest
    file: str


@dataclass(frozen=True)
class _JobParts:
    grid: list[JobAxis]
    side: list[JobAxis]
    repeat: int

    @property
    def size(self) -> int:
        return math.prod(len(axis.values) for axis in self.grid) * self.together * self.repeat

    @property
    def together(self) -> int:
        return len(self.side[0].values) if self.side else 1

    def cells(self) -> Iterator[tuple[tuple[tuple[JobAxis, Any], ...], int]]:
        """Return the values of each cell and which repeat it is."""
        for values in itertools.product(*(axis.values for axis in self.grid)):
            for i in range(self.together):
                cell = (*zip(self.grid, values, strict=True), *((axis, axis.values[i]) for axis in self.side))
                for turn in range(self.repeat):
                    yield cell, turn


def expand(plan: Plan, adapters: Collection[str], problems: Problems) -> list[PlannedPicture]:
    """
    Write a plan out.

    Args:
        plan: The plan.
        adapters: The names that there are.
        problems: Where problems are noted, with their lines.

    Returns:
        The pictures that make sense, in the order of the plan.

    Example:
        >>> from lora_mixer.batches.plan import load_plan
        >>> plan = load_plan({"jobs": [{"prompt": "a cat", "grid": {"seed": "5..6", "weight ink": [0, 1]}}]})
        >>> [(x.file, x.request.mix.to_text()) for x in expand(plan, ["ink"], plan.problems())][1:3]
        [('00001-5.png', 'ink:1'), ('00002-6.png', 'ink:0')]
    """
    wildcards = read_wildcards(plan, problems)
    parts = [_parts(plan, i, wildcards, problems) for i in range(len(plan.jobs))]
    total = sum(part.size for part in parts)
    if total > PICTURES_AT_MOST:
        largest = max(range(len(parts)), key=lambda i: parts[i].size)
        problems.problem(
            ("jobs", largest), f"a plan has at most {PICTURES_AT_MOST} pictures, got {total} with this job"
        )
        return []
    try:
        template = NameTemplate(plan.output.name, PICTURE_SUFFIXES[plan.output.format])
    except PlanError as error:
        problems.take(("output", "name"), error)
        return []
    for key in MIX_FIELDS:  # also where every job has its own
        try:
            if (given := getattr(plan.defaults, key)) is not None:
                plan.mix(given)
        except MixError as error:
            problems.take(("defaults", key), error)
    builder = _Builder(plan, adapters, wildcards, template, problems)
    for i, part in enumerate(parts):
        builder.add_job(i, part)
    return builder.found


def _parts(plan: Plan, job: int, wildcards: Mapping[str, Sequence[str]], problems: Problems) -> _JobParts:
    grid = read_axes(plan, job, "grid", wildcards, problems)
    side = read_axes(plan, job, "zip", wildcards, problems)
    twice = {axis.key for axis in grid} & {axis.key for axis in side}
    if twice:
        problems.problem(("jobs", job, "zip"), f"{', '.join(sorted(twice))} is in grid and in zip")
    lengths = {axis.key: len(axis.values) for axis in side}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {count}" for key, count in lengths.items())
        problems.problem(("jobs", job, "zip"), f"lists must have one length, got {told}")
        side = []
    return _JobParts(grid, side, plan.jobs[job].repeat)


class _RefusedError(Exception):
    """One picture cannot be: why, and which field of its job is meant, or which other part of the plan."""

    def __init__(self, refusal: LoraMixerError, *fields: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(refusal)
        self.refusal, self.fields, self.path = refusal, fields, path


@contextmanager
def _about(*fields: str, path: tuple[str, ...] = ()) -> Iterator[None]:
    try:
        yield
    except LoraMixerError as error:
        raise _RefusedError(error, *fields, path=path) from error


class _Builder:
    def __init__(
        self,
        plan: Plan,
        adapters: Collection[str],
        wildcards: Mapping[str, Sequence[str]],
        template: NameTemplate,
        problems: Problems,
    ) -> None:
        self.plan, self.adapters, self.wildcards = plan, adapters, wildcards
        self.template, self.problems = template, problems
        self.found: list[PlannedPicture] = []
        self.defaults = plan.defaults.model_dump(exclude_none=True)
        self.own = own_defaults(plan.options.model)
        self.names: dict[str, int] = {}
        self.mixes: dict[str, Mix] = {}

    def add_job(self, number: int, parts: _JobParts) -> None:
        job = self.plan.jobs[number]
        said = {key: getattr(job, key) for key in type(self.plan.defaults).model_fields}
        base = {**self.defaults, **{key: value for key, value in said.items() if value is not None}}
        name = job.name or f"{number}"
        count = 0
        for cell, (values, turn) in enumerate(parts.cells()):
            try:
                request = self._request(base, values, turn)
                self._add(number, name, cell, request)
            except _RefusedError as error:
                self.problems.take(error.path or ("jobs", number, *error.fields), error.refusal)
                count += 1
                if count >= 5:
                    return  # the others have the same reasons

    def _request(
        self, base: Mapping[str, Any], values: Sequence[tuple[JobAxis, Any]], turn: int
    ) -> PictureRequest:
        fields: dict[str, Any] = dict(base)
        fixed: dict[str, str] = {}
        for axis, value in values:
            if axis.kind == "field":
                fields[axis.key] = value
                if axis.key == "size":
                    fields.pop("width", None)
                    fields.pop("height", None)
            elif axis.kind == "wildcard":
                fixed[axis.key.strip("_")] = value
        request = self._of_fields(fields, fixed, turn)
        for axis, value in values:
            if axis.axis is not None:
                with _about("grid"):
                    request = axis.axis.at(request, value)
        with _about():  # problems of pictures say themselves which fields they are about
            return self._checked(self._tagged(request).with_defaults(self.own))

    def _tagged(self, request: PictureRequest) -> PictureRequest:
        try:
            return request.with_tags(self.adapters)
        except MixError as error:
            with _about("prompt"):
                replace(request, negative_prompt="").with_tags(self.adapters)
            raise _RefusedError(error, "negative_prompt") from error

    def _of_fields(self, fields: Mapping[str, Any], fixed: Mapping[str, str], turn: int) -> PictureRequest:
        with _about():
            if fields.get("prompt") is None:
                raise PictureError("has no prompt; give it one, or one to defaults")
            seed = (fields.get("seed") or 0) + turn
            if seed > MAX_SEED:
                raise PictureError(f"repeats would go beyond {MAX_SEED}", field="seed")
        width, height = _size(fields)
        said = {name: fields[name] for name in PICTURE_FIELDS if fields.get(name) is not None}
        said |= {name: self.plan.place(path) for name, path in said.items() if PICTURE_FIELDS[name].is_file}
        said |= {"seed": seed, "width": width, "height": height}
        for name, place in (("prompt", ""), ("negative_prompt", "negative")):
            with _about(name):
                said[name] = fill(said.get(name, ""), seed, self.wildcards, fixed, place)
        for name in MIX_FIELDS:
            with _about(name):
                said[name] = None if (given := fields.get(name)) is None else self._mix(given)
        with _about():
            return PictureRequest(**{**said, "mix": said["mix"] or Mix()})

    def _checked(self, request: PictureRequest) -> PictureRequest:
        for field in MIX_FIELDS:
            mix = getattr(request, field)
            unknown = [] if mix is None else [name for name in mix.names if name not in self.adapters]
            if unknown:
                with _about(field):
                    has = f"which the plan does not have; it has: {', '.join(self.adapters) or 'none'}"
                    raise MixError(
                        f"names the adapter {', '.join(map(repr, unknown))}, {has}",
                        adapter=unknown[0],
                        problems=tuple(Problem("", f"names the adapter {name!r}, {has}") for name in unknown),
                    )
        return request

    def _mix(self, given: Any) -> Mix:
        try:
            key = json.dumps(given)
        except TypeError:  # values from Python: mixes, masks as arrays
            return self.plan.mix(given)
        if key not in self.mixes:
            self.mixes[key] = self.plan.mix(given)
        return self.mixes[key]

    def _add(self, job: int, name: str, cell: int, request: PictureRequest) -> None:
        index = len(self.found)
        values = {
            "index": index,
            "seed": request.seed,
            "job": job,
            "name": name,
            "cell": cell,
            "prompt": request.prompt,
            "mix": request.mix.to_text() or "base",
            "steps": request.steps or 0,
            "width": request.width or 0,
            "height": request.height or 0,
            "key": request.digest()[:12],
        }
        with _about(path=("output", "name")):
            file = self.template.name(values)
        other = self.names.setdefault(file.casefold(), index)
        if other != index:
            self.problems.problem(
                ("output", "name"),
                f"pictures {other} and {index} would both be {file!r}; put {{index}} into it",
            )
        self.found.append(PlannedPicture(index, job, name, cell, request, file))


def _size(fields: Mapping[str, Any]) -> tuple[int | None, int | None]:
    width, height = fields.get("width"), fields.get("height")
    if fields.get("size") is not None:
        wide, high = (int(part) for part in fields["size"].split("x"))
        width, height = width or wide, height or high
    return width, height


def sheet_name(picture: PlannedPicture) -> str:
    """Return the file name of a job's contact sheet."""
    return f"sheets/{picture.job:03}-{slug(picture.name)}.png"
