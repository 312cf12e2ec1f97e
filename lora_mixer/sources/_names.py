"""
Which of a folder's file names is the adapter, and which names a caller may give.

The same rules serve folders on disk and listings of repositories, so all of it works on plain strings.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from lora_mixer.errors import AmbiguousSourceError, SourceError, SourceNotFoundError
from lora_mixer.problem import Problem, Remedy
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.sources._types import Request

CONFIG_NAME = "adapter_config.json"
SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER_SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
_LISTED_AT_MOST = 20
_STATE = re.compile(r"(?:checkpoint|step|epoch)[-_]?\d+", re.IGNORECASE)
"""How trainers name the folders in which they keep what a run had reached."""
_COMPONENT = re.compile(
    r"(?:unet|transformer|text_encoder|prior|decoder|controlnet|connectors)(?:_[a-z0-9]+)*"
)

# Names that transformers, diffusers, accelerate and the trainers give to whole models and to training state.
_NOT_AN_ADAPTER = re.compile(
    r"""
    (?: model | pytorch_model | diffusion_pytorch_model | open_clip_(?:pytorch_)?model | consolidated
      | optimizer | scheduler | scaler | training_args | trainer_state | (?:rng|random)_states?(?:_\d+)? )
    (?: \. (?:fp16|fp32|bf16|ema|non_ema|\d+) )*
    | .* -\d{5}-of-\d{5} (?: \. \w+ )?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_pickle(name: str) -> bool:
    """Say whether a file of this name would be unpickled to be read."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def safe_relative(value: str, argument: str) -> str:
    """
    Return a caller's ``weight_name`` or ``subfolder`` in POSIX form.

    Args:
        value: What the caller gave.
        argument: The argument's name, for the message.

    Raises:
        SourceError: It is absolute, names a drive, is empty or climbs out with ``..``.

    Example:
        >>> safe_relative("sub/x.safetensors", "weight_name")
        'sub/x.safetensors'
    """
    path = PurePosixPath(value.replace("\\", "/"))
    outside = path.is_absolute() or PureWindowsPath(value).drive or ".." in path.parts
    if any(len(part) > 255 for part in path.parts):
        raise SourceError(
            f"{argument} is too long for a file's name ({len(value)} characters)", argument=argument
        )
    if outside or not path.parts or "\0" in value:
        raise SourceError(
            f"{argument} must be a relative path inside the folder or repository, without '..' (got {value!r}). "
            f"To read a file elsewhere, pass its own path as the source.",
            argument=argument,
        )
    return str(path)


def check_allowed(name: str, label: str, request: Request) -> None:
    """Raise SourceError where ``name`` is a kind of file that the caller did not allow."""
    if not is_pickle(name):
        if request.use_safetensors is False and name.lower().endswith(SAFETENSORS_SUFFIX):
            raise SourceError(
                "is a safetensors file, and other files were asked for (use_safetensors).",
                file=str(label),
            )
        return
    if request.use_safetensors:
        raise SourceError(
            "is not a safetensors file, and only such were asked for (use_safetensors).", file=str(label)
        )
    if not request.allow_pickle:
        raise SourceError(
            f"is a pickle ({PurePosixPath(name).suffix}): such a file can run code while it is read, so it is "
            "not opened by default.",
            file=str(label),
            remedy=Remedy(
                "Convert it to .safetensors, or pass allow_pickle=True if you trust it.",
                "Convert it to .safetensors, or give --allow-pickle if you trust it.",
                "Convert it to .safetensors: the page opens no others.",
            ),
        )


def candidates(names: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """
    Return the names that may be adapters: the right ending, and no model's or trainer's own file.

    Args:
        names: Names of files, with ``/`` between folders.
        suffixes: Endings that count, in lower case.

    Returns:
        Those that may be adapters, sorted.

    Example:
        >>> candidates(["x.safetensors", "model-00001-of-00002.safetensors", "README.md"], [".safetensors"])
        ['x.safetensors']
    """
    paths = []
    for name in names:
        file_name = name.rpartition("/")[2]
        suffix = next((s for s in suffixes if file_name.lower().endswith(s)), None)
        if suffix and not _NOT_AN_ADAPTER.fullmatch(file_name[: -len(suffix)]):
            paths.append(name)
    return sorted(paths)


def component_of(folder: str) -> str | None:
    """Return the pipeline component that a folder is named after, or None."""
    return folder if _COMPONENT.fullmatch(folder) else None


def component_files(names: Iterable[str], request: Request, label: str = "folder") -> list[str]:
    """
    Return the adapters of single components, each in a folder of the component's name with its own configuration.

    Example:
        >>> from lora_mixer.sources._types import Request
        >>> folders = [f"{part}/{name}" for part in ("unet", "text_encoder", "checkpoint-500")
        ...            for name in ("adapter_config.json", "adapter_model.safetensors")]
        >>> component_files(folders, Request())
        ['text_encoder/adapter_model.safetensors', 'unet/adapter_model.safetensors']

    Raises:
        SourceError: A component's adapter has no configuration where others have theirs.
    """
    names = list(names)
    paths, bare = [], []
    for folder in sorted({name.partition("/")[0] for name in names if name.count("/") == 1}):
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{folder}/")]
        if component_of(folder) and CONFIG_NAME in inside:
            paths.append(f"{folder}/{choose_file(inside, f'{label}/{folder}', request)}")
        elif component_of(folder):
            bare += [f"{folder}/{name}" for name in candidates(inside, ADAPTER_SUFFIXES) if "/" not in name]
    if paths and bare:
        raise SourceError(
            f"{first_of(bare, 5)}: expected {CONFIG_NAME} beside it, as {first_of(paths, 5)} has; without it the scale is not known, "
            "and the adapter would be loaded without this part. Put the file there.",
            file=label,
            problems=[Problem(name, f"has no {CONFIG_NAME} beside it") for name in bare],
            remedy=Remedy("Or name one component by subfolder=."),
        )
    return paths


def adapters_left(names: Iterable[str], chosen: Iterable[str]) -> tuple[str, ...]:
    """
    Return the folders below with a PEFT adapter of their own that is not among those chosen; states of a training are none.

    Example:
        >>> names = [f"{folder}/{name}" for folder in ("unet", "vae", "checkpoint-500")
        ...          for name in ("adapter_config.json", "adapter_model.safetensors")]
        >>> adapters_left(names, ["unet/adapter_model.safetensors"])
        ('vae',)
    """
    names = list(names)
    taken = {name.partition("/")[0] for name in chosen if "/" in name}
    folders = {
        name.partition("/")[0] for name in names if name.endswith(f"/{CONFIG_NAME}") and name.count("/") == 1
    }
    inside = {
        folder: [n.partition("/")[2] for n in names if n.startswith(f"{folder}/")]
        for folder in folders - taken
    }
    return tuple(
        sorted(
            folder
            for folder, own in inside.items()
            if candidates(own, ADAPTER_SUFFIXES) and not _STATE.fullmatch(folder)
        )
    )


def choose_file(names: Iterable[str], label: str, request: Request) -> str:
    """
    Return the one file of a folder that is the adapter.

    Args:
        names: All file names of the folder or repository, relative to it, with ``/`` between folders.
        label: What to call the folder in messages.
        request: What the caller allows.

    Raises:
        AmbiguousSourceError: Several files could be meant; all are listed.
        SourceNotFoundError: None could be; what there is is listed.
        SourceError: The only ones are pickles, and these were not allowed.

    Example:
        >>> from lora_mixer.sources._types import Request
        >>> choose_file(["adapter_config.json", "adapter_model.safetensors"], "folder", Request())
        'adapter_model.safetensors'
    """
    names = list(names)
    here = [name for name in names if "/" not in name]
    files = [] if request.use_safetensors is False else candidates(here, [SAFETENSORS_SUFFIX])
    if not files and not request.use_safetensors:
        files = candidates(here, PICKLE_SUFFIXES)
        for name in files:
            check_allowed(name, f"{label}: {name}", request)
    if len(files) == 1:
        return files[0]
    if files:
        raise AmbiguousSourceError(
            f"holds {len(files)} files that could be the adapter: {listing(files)}.",
            remedy=Remedy(
                f"Name one with weight_name=, for example weight_name={files[0]!r}.",
                "Name the file itself, by its path or its address.",
                "Name one under File in it.",
            ),
            file=label,
        )
    raise _none_found(names, label, request)


def _none_found(held: list[str], label: str, request: Request) -> SourceNotFoundError:
    wanted = ", ".join(ADAPTER_SUFFIXES) if request.use_safetensors is None else SAFETENSORS_SUFFIX
    message = f"holds no adapter file ({wanted}); it holds {listing(sorted(held)) or 'nothing'}."
    deeper = [name for name in candidates(held, ADAPTER_SUFFIXES) if "/" in name]
    if deeper:
        folder = deeper[0].rpartition("/")[0]
        named = f"If it is in a folder below, name that one: {folder}"
        return SourceNotFoundError(
            message,
            remedy=Remedy(
                f"If it is in a folder below, name that one: subfolder={folder!r}.",
                f"{named}.",
                f"If it is in a folder below, name the file with it: {deeper[0]}.",
            ),
            file=label,
        )
    if any(name.lower().endswith(SAFETENSORS_SUFFIX) for name in held):
        left = "Files with names of whole models are left alone unless"
        return SourceNotFoundError(
            message,
            remedy=Remedy(
                f"{left} weight_name= names one.", f"{left} one is named.", f"{left} one is named."
            ),
            file=label,
        )
    return SourceNotFoundError(message, file=label)


def listing(names: Sequence[str]) -> str:
    """Return names for a message: quoted, and only so many of them."""
    return first_of([repr(name) for name in names], _LISTED_AT_MOST)
