"""An adapter to a file or a folder, in any format: written beside, read back, then put in place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_mixer.atomic import write_files
from lora_mixer.errors import SaveError
from lora_mixer.wording import first_of
from lora_mixer.writing.formats.format import NewAdapter
from lora_mixer.writing.formats.table import FORMATS
from lora_mixer.writing.read_back import check_written
from lora_mixer.writing.report import SaveReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_mixer.writing.formats.format import OutputFormat
    from lora_mixer.writing.layers import NewLayer
    from lora_mixer.writing.names import Names
    from lora_mixer.writing.read_back import Locate


def write_adapter(
    path: Path,
    layers: Sequence[NewLayer],
    names: Names,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
    family: str,
    title: str,
    locate: Locate | None = None,
) -> SaveReport:
    """
    Write an adapter, and read it back before it takes its place.

    Args:
        path: A ``.safetensors`` file or a folder; PEFT's format is a folder, with one folder per component inside it
            where there are several.
        layers: What to write.
        names: The spelling of modules.
        format: One of ``FORMATS``.
        dtype: To store in; None keeps each tensor's own.
        metadata: Texts for the header.
        family: The base family.
        title: The adapter's name.
        locate: Finds the modules of an adapter that is read back; None where only its spelling can be compared.

    Returns:
        What was written.

    Raises:
        SaveError: When the format cannot carry a layer, or the disk refuses; the old files are untouched then.
    """
    check_format(format, path)
    if not layers:
        raise SaveError("there is nothing to write: the mix changes no module")
    row = FORMATS[format]
    adapter = NewAdapter(path, layers, names, dtype, metadata, family, title)
    spelling = None if row.spelling is None else row.spelling(names)
    return SaveReport(
        files=write_files(
            dict(row.files(adapter)),
            check=partial(check_written, layers=layers, spelling=spelling, locate=locate),
        ),
        format=format,
        ranks={str(layer.place): layer.rank for layer in layers},
        errors={str(layer.place): layer.error for layer in layers},
        notes=(
            *_notes(layers),
            *(_warning(layers) if row.holds_every_algorithm else ()),
            *_strengths(layers, row),
        ),
    )


def check_format(format: str, path: Path) -> None:  # noqa: A002
    """
    Refuse a format that there is not, or a file's name for a format that is a folder.

    Raises:
        SaveError: Saying what would do.
    """
    if format not in FORMATS:
        raise SaveError(f"format must be one of {', '.join(FORMATS)}, got {format!r}", argument="format")
    row = FORMATS[format]
    if row.is_folder and (path.suffix.lower() == ".safetensors" or path.is_file()):
        raise SaveError(
            f"the format {format!r} is a folder ({row.summary}); give a folder's name",
            file=str(path),
            argument="format",
        )


def _warning(layers: Sequence[NewLayer]) -> tuple[str, ...]:
    if len({layer.alpha for layer in layers if layer.rank}) < 2:
        return ()
    return (
        (
            "alphas differ from module to module, as in the source: diffusers 0.42.1 misreads that in Kohya's format "
            "(its own format is safe there)"
        ),
    )


def _strengths(layers: Sequence[NewLayer], row: OutputFormat) -> tuple[str, ...]:
    count = sum(layer.lengths is not None for layer in layers)
    if not count:
        return ()
    return (f"{count} modules are DoRA: readers of this format take weights other than 1 {row.dora}",)


def _notes(layers: Sequence[NewLayer]) -> tuple[str, ...]:
    table: dict[str, list[str]] = {}
    for layer in layers:
        if layer.note:
            table.setdefault(layer.note, []).append(str(layer.place))
    return tuple(f"{note}: {first_of(where, 3)}" for note, where in table.items())
