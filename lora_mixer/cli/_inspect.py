"""``lora-mixer inspect``: what an adapter is, without any model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer.cli._completing import adapters
from lora_mixer.cli._progress import bar
from lora_mixer.cli._saying import facts_of_error
from lora_mixer.cli._terminal import console, plain
from lora_mixer.errors import LoraMixerError, SourceNotFoundError
from lora_mixer.parsing import at_home
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

    from lora_mixer.adapter import AdapterInfo

    # A source as the user wrote or the search found it, and what came of reading it.
    Row = tuple[str, AdapterInfo | Exception]

EXIT_SOME_BAD = 1
_KIB = 1024


def inspect(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE_OR_FOLDER_OR_REPO...",
            help="Folders are searched for adapters all the way down.",
            autocompletion=adapters,
        ),
    ],
    *,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="A JSON list of objects, with hashes, metadata and what lies beside each file."
        ),
    ] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Open .pt, .pth, .ckpt and .bin files as well.")] = False,
) -> None:
    """Show format, base model, algorithm, ranks, modules and trigger words of adapters."""
    rows = list(_read_all(sources, allow_pickle=allow_pickle))
    if as_json:
        typer.echo(json.dumps([_as_object(name, result) for name, result in rows], indent=2))
    else:
        console().print(_table(rows))
    if any(isinstance(result, Exception) for _, result in rows):
        raise typer.Exit(EXIT_SOME_BAD)


def _read_all(sources: Iterable[str], *, allow_pickle: bool) -> Iterator[Row]:
    from lora_mixer.inspection import read_adapter

    sources_read: list[tuple[str, Exception | None]] = []
    for source in sources:
        try:
            sources_read += [(name, None) for name in _expand(source, allow_pickle=allow_pickle)]
        except (LoraMixerError, OSError) as error:
            sources_read.append((source, error))
    for name, problem in bar(sources_read, "reading headers"):
        if problem is not None:
            yield name, problem
            continue
        try:
            yield name, read_adapter(name, allow_pickle=allow_pickle)
        except (LoraMixerError, OSError) as error:
            yield name, error


def _expand(source: str, *, allow_pickle: bool) -> list[str]:
    """Return the adapters' files below a folder; anything else as it is."""
    from lora_mixer.sources import adapter_files

    folder = at_home(source)
    if not folder.is_dir():
        return [source]
    files = adapter_files(folder, allow_pickle=allow_pickle)
    if not files:
        hint = "" if allow_pickle else " Pickles (.pt, .bin) are looked for with --allow-pickle."
        raise SourceNotFoundError(
            f"holds no adapter files (.safetensors), nor do the folders in it.{hint}", file=source
        )
    return [str(file) for file in files]


def _as_object(name: str, result: AdapterInfo | Exception) -> dict[str, Any]:
    if isinstance(result, Exception):
        return {"source": name, **facts_of_error(result)}
    return result.to_dict()


def _reason(name: str, error: Exception) -> str:
    """Return what is wrong with a row's file, and with which other file where it is one beside it."""
    if not isinstance(error, LoraMixerError):
        return str(error)
    is_its_own = error.file is None or error.file == name or error.file.startswith(f"{name}: ")
    return error.reason_on(Surface.COMMAND) if is_its_own else error.text_on(Surface.COMMAND)


def _table(rows: Iterable[Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("File", overflow="fold")
    for heading in ("Format", "Base", "Algorithm", "Rank", "Alpha", "Modules", "Type", "Size", "Best at"):
        table.add_column(heading)
    table.add_column("Words", overflow="fold")
    for name, result in rows:
        if isinstance(result, Exception):
            # One cell for the file and the reason: in a column of its own it would squeeze all others.
            table.add_row(Text(f"{plain(name)}\n  error: {plain(_reason(name, result))}", style="red"))
            continue
        table.add_row(*(Text(plain(cell)) for cell in (name, *_cells(result))))
    return table


def _cells(info: AdapterInfo) -> Iterator[str]:
    yield info.format
    yield info.base
    yield ", ".join(info.algorithms)
    yield _range(info.ranks)
    yield _range(info.alphas) or "= rank"
    yield ", ".join(f"{component} {count}" for component, count in info.components.items())
    yield ", ".join(info.dtypes)
    yield _size(info.bytes)
    yield "" if info.about.preferred_weight is None else f"{info.about.preferred_weight:g}"
    yield ", ".join(info.trigger_words)


def _range(values: tuple[int, ...] | tuple[float, ...]) -> str:
    """Write a few values in full and many as a range: per-module ranks can be dozens."""
    shown = [f"{value:g}" for value in sorted(values)]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]} to {shown[-1]}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    return f"{size:.1f} GiB"
