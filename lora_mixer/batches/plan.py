"""The plan as a value: which model, which adapters, which pictures, where they go and how they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model

from lora_mixer.batches.reading import PLAN_BYTES_AT_MOST, decode, form_endings, read_text
from lora_mixer.errors import PlanError, SourceNotFoundError
from lora_mixer.mixes import Mix
from lora_mixer.parsing.data import Located
from lora_mixer.parsing.files import at_home, read_regular
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.parsing.problems import Problems
from lora_mixer.pictures import DEMO, MODEL_FIELDS, PICTURE_FIELDS, ModelOptions
from lora_mixer.problem import Surface
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_mixer.pictures import PictureField

MIX_FIELDS = ("mix", "negative_mix")
"""What a picture can be told beside ``PICTURE_FIELDS``: mixes, in any form."""
_Size = Annotated[str, Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class AdapterSpec(_Strict):
    """Where an adapter is, as ``load_lora_weights`` takes it."""

    source: Annotated[
        str,
        Field(
            min_length=1, description="A file, folder, Hub repository, URL that fsspec reads, or demo:NAME."
        ),
    ]
    weight_name: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    component: str | None = None
    strict: bool = False
    allow_pickle: bool = False
    max_rank: Annotated[int, Field(ge=1)] | None = None


def _annotation(about: PictureField) -> Any:
    """Return a field of a picture as pydantic checks and describes it."""
    if about.choices:
        return Annotated[Literal[about.choices] | None, Field(description=about.help)]
    if about.kind == "text":
        limits: Any = Field(max_length=None if about.high is None else int(about.high))
        return Annotated[
            Annotated[str, limits, AfterValidator(_checked(about))] | None, Field(description=about.help)
        ]
    if about.kind == "whole":
        return Annotated[
            Annotated[int, Field(ge=about.low, le=about.high)] | None, Field(description=about.help)
        ]
    limits = Field(ge=about.low, le=about.high, allow_inf_nan=False)
    return Annotated[Annotated[float, limits] | None, Field(description=about.help)]


def _checked(about: PictureField) -> Callable[[str], str]:
    def check(value: str) -> str:
        if (problem := about.problem(value)) is not None:
            raise ValueError(problem.text)
        return value

    return check


if TYPE_CHECKING:

    class _PlannedFields(_Strict):
        """Made below, from the table."""

else:
    _PlannedFields = create_model(
        "_PlannedFields",
        __base__=_Strict,
        **{name: (_annotation(about), None) for name, about in PICTURE_FIELDS.items()},
    )


class ModelSpec(_Strict):
    """A model with more than its name."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            description="demo, a checkpoint (.safetensors), a diffusers folder, or a Hub repository.",
        ),
    ]
    revision: Annotated[str | None, Field(description=MODEL_FIELDS["revision"]["help"])] = None
    variant: Annotated[str | None, Field(description=MODEL_FIELDS["variant"]["help"])] = None
    vae: Annotated[str | None, Field(description=MODEL_FIELDS["vae"]["help"])] = None
    controlnet: Annotated[str | None, Field(description=MODEL_FIELDS["controlnet"]["help"])] = None
    ip_adapter: Annotated[str | None, Field(description=MODEL_FIELDS["ip_adapter"]["help"])] = None
    image_encoder: Annotated[str | None, Field(description=MODEL_FIELDS["image_encoder"]["help"])] = None
    config: Annotated[str | None, Field(description=MODEL_FIELDS["config"]["help"])] = None
    allow_pickle: Annotated[bool, Field(description=MODEL_FIELDS["allow_pickle"]["help"])] = False


class PictureEntry(_PlannedFields, _Strict):
    """What a picture can be told, each of ``PICTURE_FIELDS`` and more; ``defaults`` of a plan, and part of each job."""

    size: Annotated[_Size | None, Field(description="WIDTHxHEIGHT")] = None
    mix: Annotated[Any, Field(description="A mix in any form of docs/mixes.md.")] = None
    negative_mix: Annotated[
        Any,
        Field(description="That of the half of guidance without the prompt; the same where it is not said."),
    ] = None


class Job(PictureEntry):
    """One picture, or a grid of them."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    grid: Annotated[
        dict[str, list[Any] | str],
        Field(
            description="Values by axis; every combination is made, the last axis fastest. Axes: the fields above, "
            "'weight NAME', 'unet NAME', 'transformer NAME', 'te NAME', 'blocks NAME', '__WILDCARD__'. A list, '1..10', or 'all' for wildcards."
        ),
    ] = {}
    zip: Annotated[
        dict[str, list[Any] | str], Field(description="As grid, but the lists go side by side.")
    ] = {}
    repeat: Annotated[
        int, Field(ge=1, le=1_000_000, description="Each with the next seed, the fastest of all.")
    ] = 1
    sheet: Annotated[bool, Field(description="A contact sheet of the job's pictures at the end.")] = False


class Output(_Strict):
    """Where the pictures go."""

    folder: Annotated[str, Field(min_length=1, description="A folder, or a URL that fsspec writes to.")] = (
        "pictures"
    )
    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            description="Fields in braces: index, seed, job, name, cell, prompt, mix, steps, width, height, key.",
        ),
    ] = "{index:05}-{seed}"
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    replace: Annotated[
        bool,
        Field(
            description="Make pictures also where files of another plan, or of an earlier form of this one, are in the way."
        ),
    ] = False
    manifest: Annotated[
        str | None, Field(description="A .jsonl or .sqlite file; in the folder unless said otherwise.")
    ] = None


class RunOptions(_Strict):
    """How the pictures are made."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 1
    mixed_batches: Annotated[
        Literal["auto", "always", "never"],
        Field(description="Whether pictures with different mixes share batches; auto: on a GPU."),
    ] = "auto"
    threads: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="CPU threads of each worker. Sums differ with their number, so it is fixed.",
        ),
    ] = 1
    strict: Annotated[
        bool, Field(description="Deterministic kernels and one picture at a time, or an error.")
    ] = False
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    cache_adapters: Annotated[int, Field(ge=1, le=100_000, description="The most adapters in memory.")] = 64
    cache_gb: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="The most memory for them, in 10^9 bytes.")
    ] = 4.0
    keep_base: Annotated[
        Literal["device", "host", "patch", "none", "auto"],
        Field(
            description="Where bases of changed weights are kept: on the device, in host memory, in the mixed weights with a patch beside them, nowhere, or by room."
        ),
    ] = "device"
    offload: Annotated[
        Literal["none", "model", "group", "sequential"], Field(description=MODEL_FIELDS["offload"]["help"])
    ] = "none"
    fp8: Annotated[bool, Field(description=MODEL_FIELDS["fp8"]["help"])] = False
    vae_tiling: Annotated[bool, Field(description=MODEL_FIELDS["vae_tiling"]["help"])] = False
    vae_slicing: Annotated[bool, Field(description=MODEL_FIELDS["vae_slicing"]["help"])] = False


class Plan(_Strict):
    r"""
    A whole plan.

    Example:
        >>> plan = Plan.model_validate({"model": "demo", "jobs": [{"prompt": "a castle", "grid": {"seed": "1..3"}}]})
        >>> plan.jobs[0].grid
        {'seed': '1..3'}
        >>> from lora_mixer.batches import parse_plan
        >>> read = parse_plan(b"jobs:\n- prompt: a cat\n", "yaml", folder=Path("plans"))
        >>> read.line("jobs", 0, "prompt"), read.place("wash.png"), read.mix("ink:0.5").to_text(), read.problems().problems
        (2, 'plans/wash.png', 'ink:0.5', [])
    """

    model: Annotated[
        Annotated[str, Field(min_length=1)] | ModelSpec,
        Field(description="demo, a checkpoint (.safetensors), a diffusers folder, or a Hub repository."),
    ] = "demo"
    adapters: dict[str, AdapterSpec | str] = {}
    adapter_folders: Annotated[
        list[str], Field(description="Every .safetensors file in these is an adapter named after its file.")
    ] = []
    wildcards: Annotated[
        dict[str, list[str] | str],
        Field(description="What __NAME__ in a prompt stands for: a list, or a file with one per line."),
    ] = {}
    defaults: PictureEntry = PictureEntry()
    output: Output = Output()
    run: RunOptions = RunOptions()
    jobs: Annotated[list[Job], Field(min_length=1)]

    _located: Located | None = PrivateAttr(None)
    _label: str = PrivateAttr("")
    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def label(self) -> str:
        """What messages call it: the name of its file, or nothing."""
        return self._label

    @property
    def folder(self) -> Path:
        """What its paths are relative to: the folder of its file."""
        return self._folder

    def line(self, *path: str | int) -> int | None:
        """
        Return the line of the plan's file at which something stands; None where it is from no file.

        Args:
            *path: Keys and numbers that lead to it.
        """
        return None if self._located is None else self._located.line(path)

    def problems(self) -> Problems:
        """Return a collector of what is wrong with it, which finds the lines of paths and raises a ``PlanError``."""
        return _problems(self._label, lambda path: self.line(*path))

    def place(self, path: str) -> str:
        """
        Return a path as seen from the plan's folder; addresses stay as they are.

        Args:
            path: A path as the plan has it.
        """
        return path if "://" in path else str(self._folder / at_home(path))

    @property
    def options(self) -> ModelOptions:
        """Which model, and how it is loaded; files and folders are as seen from the plan's folder."""
        spec = ModelSpec(source=self.model) if isinstance(self.model, str) else self.model
        values = spec.model_dump(exclude={"source"}, exclude_none=True)
        for name in ("vae", "controlnet", "ip_adapter", "image_encoder", "config"):
            if name in values:
                values[name] = self._here(values[name])
        for name in ("device", "dtype", "offload", "fp8", "vae_tiling", "vae_slicing"):
            values[name] = getattr(self.run, name)
        return ModelOptions(self._here(spec.source), **values)

    def _here(self, name: str) -> str:
        """Return the path of a file or folder that is there as seen from the plan's folder; else the name as it is."""
        try:
            place = Path(self.place(name))
            return str(place) if name != DEMO and place.exists() else name
        except (OSError, ValueError):
            return name

    def mix(self, given: Any) -> Mix:
        """
        Read a mix; paths of masks are seen from the plan's folder, as all others are.

        Args:
            given: A mix in any form.

        Returns:
            The mix.

        Raises:
            MixError: When it makes no sense.
        """
        return Mix.of(given, folder=self._folder)


def load_plan(source: str | Path | Mapping[str, Any] | Plan) -> Plan:
    """
    Read a plan.

    Args:
        source: A .yaml, .json, .jsonl or .csv file; or the values themselves, with paths relative to the current folder.

    Returns:
        The plan; whether its adapters and mixes make sense is for :func:`check_plan` to say.

    Raises:
        SourceNotFoundError: When there is no such file.
        PlanError: With everything that is wrong, and its line.

    Example:
        >>> load_plan({"jobs": [{"prompt": "a castle", "steps": 0}]})
        Traceback (most recent call last):
        lora_mixer.errors.PlanError: This plan cannot be made:
          jobs[0].steps: expected greater than or equal to 1, got 0
    """
    if isinstance(source, Plan):
        return source
    if not isinstance(source, str | Path):
        return _validated(Located(source), "", Path(), with_lines=False)
    path = Path(source)
    try:
        raw = read_regular(path, PLAN_BYTES_AT_MOST)
    except (OSError, ValueError) as error:
        raise SourceNotFoundError(
            f"the plan cannot be read: {getattr(error, 'strerror', None) or error}", file=str(source)
        ) from error
    endings = form_endings()
    kind = endings.get(path.suffix.lower())
    if kind is None:
        raise PlanError(
            f"expected a name that ends with {', '.join(endings)}, got {path.suffix!r}", file=str(path)
        )
    return parse_plan(raw, kind, label=path.name, folder=path.parent)


def parse_plan(raw: bytes, kind: str, *, label: str = "", folder: Path | None = None) -> Plan:
    r"""
    Read a plan from bytes.

    Args:
        raw: The text, in UTF-8.
        kind: One of ``PLAN_FORMS``: ``yaml``, ``json``, ``jsonl`` or ``csv``.
        label: What to call it in messages; nothing is "this plan".
        folder: What its paths are relative to.

    Returns:
        The plan, whose values know their lines.

    Raises:
        PlanError: With everything that is wrong, and its line.

    Example:
        >>> parse_plan(b"prompt,seed\na cat,one\n", "csv")
        Traceback (most recent call last):
        lora_mixer.errors.PlanError: This plan cannot be made:
          line 2: jobs[0].seed: expected a valid integer, got 'one'
    """
    problems = _problems(label)
    text = decode(raw, problems)
    problems.finish()
    located = read_text(text, kind, problems)
    problems.finish()
    return _validated(located, label, folder or Path(), with_lines=True)


def _validated(located: Located, label: str, folder: Path, *, with_lines: bool) -> Plan:
    problems = _problems(label, located.line if with_lines else None)
    if not isinstance(located.value, dict):
        problems.problem((), f"expected a mapping with model and jobs, got {shown(located.value)}")
        problems.finish()
    try:
        plan = Plan.model_validate(located.value)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            problems.problem(each["loc"], sentence(each))
        problems.finish()
        raise AssertionError from error  # a validation error has at least one problem
    except RecursionError:
        problems.problem((), "is nested too deeply")
        problems.finish()
        raise
    plan._label, plan._folder = label, folder  # noqa: SLF001 -- pydantic's private attributes of our own class
    plan._located = located if with_lines else None  # noqa: SLF001
    return plan


def _problems(label: str, lines: Callable[[tuple[str | int, ...]], int | None] | None = None) -> Problems:
    return Problems(lines, lambda problems: PlanError(problems=problems, file=label or None), Surface.PLAN)


def sentence(error: Mapping[str, Any]) -> str:
    """Say what pydantic found; where, stands beside it."""
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "value_error":  # of our own checks, which say themselves what they got
        return str(error["ctx"]["error"])
    message = str(error["msg"]).replace("Input should be ", "expected ")  # pydantic's own words
    return f"{message}, got {shown(error['input'])}"


def plan_schema() -> dict[str, Any]:
    """
    Return the JSON Schema of plans, for editors.

    Returns:
        The schema, in the form of draft 2020-12.

    Example:
        >>> sorted(plan_schema()["properties"])[:3]
        ['adapter_folders', 'adapters', 'defaults']
    """
    schema = Plan.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A plan of lora-mixer batch"
    return loose_json(json.dumps(schema))  # type: ignore[no-any-return]
