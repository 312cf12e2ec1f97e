"""``lora-mixer find``: adapters that a picture names, or a file's newest version, in folders and on a model site by hash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer import picture_metadata
from lora_mixer.cli._completing import adapters
from lora_mixer.cli._options import AsJson, refuse_missing
from lora_mixer.cli._saying import say
from lora_mixer.errors import LoraMixerError
from lora_mixer.parsing import at_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.sites import ModelSite, SiteFile

EXIT_SOME_MISSING = 1


def find(
    things: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE_OR_FILE_OR_HASH...",
            help="Pictures, whose adapters are looked for; adapters' files; hashes.",
            autocompletion=adapters,
        ),
    ],
    *,
    loras: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where to look first. May be given several times."),
    ] = None,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask", help="Ask a model site for what is not here, by hash, and for newer versions of what is."
        ),
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The site's interface; else LORA_MIXER_SITE, else a large public one."
        ),
    ] = None,
    get: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --ask: fetch what is missing into this folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for adapters by hash: in folders, and with --ask on a model site, with their newest version."""
    if get is not None and not ask:
        raise LoraMixerError("--get fetches from a site: give --ask as well", argument="get")
    known = _known(loras or ())
    from lora_mixer.sites import ModelSite

    asked = ModelSite(site) if ask else None
    rows: dict[str, dict[str, Any]] = {}
    for thing in things:
        for adapter, here in _wanted(thing, known):
            rows[adapter.name] = _row(adapter, here, asked, get)
    lines = [_line(name, row) for name, row in rows.items()] or ["no adapters are named"]
    say("\n".join(lines), {"adapters": rows}, as_json=as_json)
    if any(row["path"] is None for row in rows.values()):
        raise typer.Exit(EXIT_SOME_MISSING)


def _known(folders: Any) -> Mapping[str, Any]:
    """Describe what lies in folders, by path."""
    from lora_mixer.inspection import read_adapter
    from lora_mixer.sources import adapter_files

    adapters: dict[str, Any] = {}
    refuse_missing("--loras", folders)
    for folder in folders:
        for file in adapter_files(at_home(folder)):
            try:
                adapters[str(file)] = read_adapter(file)
            except LoraMixerError:
                continue
    return adapters


def _wanted(thing: str, known: Mapping[str, Any]) -> list[tuple[picture_metadata.PictureAdapter, str | None]]:
    """Return what is looked for, and where it is in the folders."""
    from lora_mixer.inspection import read_adapter

    if thing.lower().endswith(tuple(picture_metadata.FORMATS)):
        matches = picture_metadata.match_adapters(picture_metadata.read_picture(thing), known)
        return [(slot.adapter, slot.match) for slot in matches.slots]
    if at_home(thing).exists():
        return [
            (
                picture_metadata.PictureAdapter(Path(thing).stem, hashes=dict(read_adapter(thing).hashes)),
                thing,
            )
        ]
    adapter = picture_metadata.PictureAdapter(thing, hashes={"hash": thing})
    return [
        (adapter, slot.match if slot.found_by in ("hash", "header") else None)
        for slot in picture_metadata.match_adapters(
            picture_metadata.PictureSettings(adapters=(adapter,)), known
        ).slots
    ]


def _row(
    adapter: picture_metadata.PictureAdapter, here: str | None, site: ModelSite | None, get: Path | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"path": here, "hashes": dict(adapter.hashes), "site": None, "newest": None}
    if site is None:
        return row
    match = site.find([adapter]).get(adapter.name)
    if match is None:
        return row
    row["site"] = _facts(match)
    newest = site.newest(match)
    row["newest"] = None if newest is None else _facts(newest)
    if here is None and get is not None:
        row["path"] = str(site.download(match, get))
    return row


def _facts(file: SiteFile) -> dict[str, Any]:
    names = ("name", "title", "version", "base", "licence", "size", "page")
    return {**{name: getattr(file, name) for name in names}, "words": list(file.words)}


def _line(name: str, row: Mapping[str, Any]) -> str:
    parts = [row["path"] or "not here"]
    if (on_site := row["site"]) is not None:
        words = f", words: {', '.join(on_site['words'])}" if on_site["words"] else ""
        parts.append(
            f"on the site: {on_site['title']} {on_site['version']} ({on_site['base']}{words}) {on_site['page']}"
        )
        if on_site["licence"]:
            parts.append(on_site["licence"])
    if (newest := row["newest"]) is not None:
        parts.append(f"newer: {newest['version']} {newest['page']}")
    return f"{name}: {'; '.join(parts)}"
