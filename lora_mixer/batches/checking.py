"""Everything that can be wrong with a plan, found before anything is made: files, names, bases, weights, sizes."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.cache import AdapterPlace
from lora_mixer.batches.expansion import PlannedPicture, expand
from lora_mixer.batches.manifest import MANIFEST_SUFFIXES
from lora_mixer.batches.plan import MIX_FIELDS, AdapterSpec, load_plan
from lora_mixer.demo import local_source
from lora_mixer.errors import LoraMixerError, MixError, PictureError
from lora_mixer.inspection import match_adapter, read_adapter
from lora_mixer.mixes import TEXT_ENCODERS, BlockLayout, block_layouts
from lora_mixer.pictures import PICTURE_FIELDS, PictureRequest, load_outline
from lora_mixer.pictures.from_images import read_image
from lora_mixer.problem import Problem
from lora_mixer.sources import adapter_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.batches.plan import Plan
    from lora_mixer.parsing.problems import Problems

_NOT_IN_KEYS = ("model", "dtype", "device", "config", "allow_pickle", "offload", "vae_slicing")
_SAMPLES, _SAMPLE_BYTES = 16, 16384


@dataclass(frozen=True)
class CheckedPlan:
    """
    A plan that can be made.

    Attributes:
        plan: The plan.
        pictures: All of its pictures.
        adapters: Where its adapters are, by name.
        infos: What they are.
        identities: A short digest of what each file holds.
        folder: Where the pictures go.
        manifest: Where the manifest is.

    Example:
        >>> checked = check_plan({"jobs": [{"prompt": "a cat", "repeat": 2}]})
        >>> len(checked.pictures), len({checked.key(picture) for picture in checked.pictures})
        (2, 2)
    """

    plan: Plan
    pictures: tuple[PlannedPicture, ...]
    adapters: Mapping[str, AdapterPlace]
    infos: Mapping[str, AdapterInfo]
    identities: Mapping[str, str]
    folder: str
    manifest: Path

    def key(self, picture: PlannedPicture) -> str:
        """
        Return 32 digits that tell whether a picture that is there is the one that the plan wants.

        Args:
            picture: One of its pictures.
        """
        plan = self.plan
        parts = [
            picture.request.digest(),
            *_model_parts(plan),
            plan.output.format,
            str(plan.output.quality),
            *_image_parts(picture.request),
            *(f"{name}={self.identities[name]}" for name in sorted(picture.request.adapters)),
        ]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_plan(source: Any, *, outline: Any = None) -> CheckedPlan:
    """
    Read a plan, write it out, and check it against its model and its adapters; no weights are loaded.

    Args:
        source: A file, the values, or a plan.
        outline: What :func:`~lora_mixer.pictures.load_outline` gave for the plan's model, where many plans are checked.

    Returns:
        The plan with all of its pictures.

    Raises:
        PlanError: With everything that is wrong.

    Example:
        >>> plan = {"adapters": {"ink": "demo:ink"}, "jobs": [{"prompt": "a cat", "mix": "ink:0.5, neon:1"}]}
        >>> check_plan(plan)
        Traceback (most recent call last):
        lora_mixer.errors.PlanError: This plan cannot be made:
          jobs[0].mix: names the adapter 'neon', which the plan does not have; it has: ink
    """
    plan = load_plan(source)
    problems = plan.problems()
    specs = _specs(plan, problems)
    pictures = expand(plan, specs, problems)
    places = {
        name: AdapterPlace(spec.source, spec.model_dump(exclude={"source"}, exclude_none=True))
        for name, spec in specs.items()
    }
    infos = _check_files(plan, places, pictures, problems, outline)
    _check_sizes(pictures, problems)
    _check_images(pictures, problems)
    problems.finish()
    identities = {name: _identity(places[name].source) for name in infos}
    folder = plan.place(plan.output.folder)
    return CheckedPlan(
        plan, tuple(pictures), places, infos, identities, folder, _manifest(plan, folder, problems)
    )


def _image_parts(request: PictureRequest) -> list[str]:
    """Say what the images that a picture is made of hold."""
    given = {name: getattr(request, name) for name, about in PICTURE_FIELDS.items() if about.is_file}
    return [f"{name}={_identity(path)}" for name, path in given.items() if path is not None]


def _check_images(pictures: list[PlannedPicture], problems: Problems) -> None:
    seen: dict[tuple[str, str], PictureError | None] = {}
    for picture in pictures:
        for name, about in PICTURE_FIELDS.items():
            path = getattr(picture.request, name) if about.is_file else None
            if path is None:
                continue
            if (name, path) not in seen:
                try:
                    read_image(path, name, "L" if name == "mask_image" else "RGB")
                    seen[name, path] = None
                except PictureError as error:
                    seen[name, path] = error
            if (refusal := seen[name, path]) is not None:
                problems.take(("jobs", picture.job), refusal)


def _model_parts(plan: Plan) -> list[str]:
    """Say what of the model changes pixels: its files as they are, all else as the plan names it."""
    options = plan.options
    named = plan.model if isinstance(plan.model, str) else plan.model.source
    parts = [named, options.dtype]
    for name in ("model", "vae", "controlnet", "ip_adapter", "image_encoder"):
        given = getattr(options, name)
        if given is not None and Path(given).is_file():
            parts.append(f"{name}={_identity(given)}")
    said = options.said()
    return parts + [f"{key}={said[key]}" for key in sorted(said) if key not in _NOT_IN_KEYS]


def _manifest(plan: Plan, folder: str, problems: Problems) -> Path:
    given = plan.output.manifest
    if given is not None:
        path = Path(plan.place(given))
        if path.suffix not in MANIFEST_SUFFIXES or "://" in given:
            problems.problem(
                ("output", "manifest"),
                f"expected a local {' or '.join(MANIFEST_SUFFIXES)} file, got {given!r}",
            )
            problems.finish()
        return path
    if "://" in folder:  # a URL has no room for a file that grows
        return plan.folder / f"{Path(plan.label or 'plan').stem}.manifest.jsonl"
    return Path(folder) / "manifest.jsonl"


def _specs(plan: Plan, problems: Problems) -> dict[str, AdapterSpec]:
    specs: dict[str, AdapterSpec] = {}
    for number, folder in enumerate(plan.adapter_folders):
        where = ("adapter_folders", number)
        root = Path(plan.place(folder))
        if not root.is_dir():
            problems.problem(where, f"{root} is not a folder")
            continue
        for file in adapter_files(root):
            if file.stem in specs:
                problems.problem(
                    where, f"two files are called {file.stem!r}: {specs[file.stem].source} and {file}"
                )
            specs[file.stem] = AdapterSpec(source=str(file))
    for name, given in plan.adapters.items():
        spec = AdapterSpec(source=given) if isinstance(given, str) and given else given
        if not isinstance(spec, AdapterSpec) or not name.strip() or not name.isprintable():
            problems.problem(("adapters", name), f"expected a printable name and a source, got {name!r}")
            continue
        source = spec.source
        if "\0" not in source and "://" not in source and not source.startswith("demo:"):
            here = Path(plan.place(source))
            with contextlib.suppress(OSError):
                source = str(here) if here.exists() else source
        specs[name] = spec.model_copy(update={"source": source})
    return specs


def _check_files(
    plan: Plan,
    places: Mapping[str, AdapterPlace],
    pictures: list[PlannedPicture],
    problems: Problems,
    outline: Any,
) -> dict[str, AdapterInfo]:
    try:
        outline = load_outline(plan.options) if outline is None else outline
    except LoraMixerError as error:
        problems.take(("model",), error)
    infos: dict[str, AdapterInfo] = {}
    for name, place in places.items():
        try:
            source = _readable(place.source)
            infos[name] = read_adapter(source, **place.reading)
            if outline is not None:
                options = {key: place.options[key] for key in ("component", "strict") if key in place.options}
                match_adapter(_readable(place.source), outline, **options, **place.reading)
        except (LoraMixerError, OSError, ValueError) as error:
            problems.take(("adapters", name), error)
    if outline is not None:
        _check_mixes(outline.components, pictures, problems)
    return infos


def _readable(source: str) -> Any:
    """Return what ``read_adapter`` reads: of a URL only the header is fetched."""
    if "://" not in source or source.startswith(("https://huggingface.co/", "https://hf.co/")):
        return local_source(source)
    import fsspec

    try:
        return fsspec.open(source, "rb").open()
    except Exception as error:  # each kind of file system raises what it likes
        raise OSError(f"{source} cannot be read: {type(error).__name__}: {error}") from error


def _no_component(names: list[str]) -> MixError:
    return MixError(
        f"the model has no component {', '.join(names)}",
        component=names[0],
        problems=tuple(Problem("", f"the model has no component {name}") for name in names),
    )


def _check_mixes(components: Mapping[str, Any], pictures: list[PlannedPicture], problems: Problems) -> None:
    layouts: dict[str, BlockLayout] = {}
    seen: dict[tuple[str, frozenset[str]], MixError | None] = {}
    known = {*components, *TEXT_ENCODERS}
    mixes = (
        (picture, key, mix)
        for picture in pictures
        for key in MIX_FIELDS
        if (mix := getattr(picture.request, key)) is not None
    )
    for picture, key, mix in mixes:
        named = frozenset(mix.named_components)
        kind = (mix.fingerprint, named)  # equal mixes may say it with other components
        if kind not in seen:
            odd = sorted(named - known)
            seen[kind] = _no_component(odd) if odd else None
            if not odd and any(mix[name].blocks is not None for name in mix.names):
                layouts = layouts or block_layouts(components)
                try:
                    mix.check(layouts)
                except MixError as error:
                    seen[kind] = error
        if (refusal := seen[kind]) is not None:
            problems.take(("jobs", picture.job, key), refusal)


def _check_sizes(pictures: list[PlannedPicture], problems: Problems) -> None:
    for picture in pictures:
        for name in ("width", "height"):
            value = getattr(picture.request, name)
            if value is not None and value % 8:
                problems.problem(("jobs", picture.job, name), f"expected a multiple of 8, got {value}")


def _identity(source: str) -> str:
    """Digest a file's size and parts of it all over: another training of the same adapter differs everywhere."""
    path = Path(local_source(source)) if "://" not in source else None
    if path is not None and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(_identity(str(file)) for file in files).encode()).hexdigest()[:16]
    if path is None or not path.is_file():
        return hashlib.sha256(source.encode()).hexdigest()[:16]  # a Hub name or a URL says which one it is
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as stream:
        for i in range(_SAMPLES):
            stream.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
