"""Folders of adapters as an indexed library: opened at once, searched by page, and kept while a disk is away."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_mixer import hashes as file_hashes
from lora_mixer.errors import LoraMixerError, SourceError, SourceNotFoundError
from lora_mixer.inspection import read_adapter
from lora_mixer.interrupts import at_once
from lora_mixer.library import _schema, adding, changing, thumbnails
from lora_mixer.library._database import Database
from lora_mixer.library._scanning import refresh
from lora_mixer.library._searching import PAGE_AT_MOST, near_words, query, storable
from lora_mixer.library._walking import within
from lora_mixer.library.compatibility import Compatibility, compatible
from lora_mixer.library.entry import Entry, Page
from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.parsing.values import as_float, as_hash, clean_text
from lora_mixer.wording import shown

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.library._scanning import Progress
    from lora_mixer.library._searching import Query
    from lora_mixer.library.entry import Refreshed

_KEEP: Any = object()
_NOTES_AT_MOST = 20_000
_WORDS_AT_MOST = 200
_LABELS_AT_MOST, _LABEL_AT_MOST = 50, 60
_FIRST_AT_MOST, _FORMER_AT_MOST = 64, 20
_BY_NAME, _FIRST_COME = "offline, name COLLATE NOCASE, path", "offline, rowid"
"""Orders of entries; numbers of rows grow, and stay with an entry that moves."""


class Library:
    """
    Adapters in folders, found by a scan of headers and remembered in an index.

    Several libraries, threads and processes may share an index. Nothing is deleted from it because a file is not
    there: the entry is marked offline and comes back with the file. What the user says of a file (weight, notes,
    trigger words) lies in a file of its own beside the index, and follows the file's content.

    Args:
        folders: Where adapters lie. They need not be there now.
        index: The index's file; by default in the user's cache folder, with what the user says in the data folder.

    Example:
        >>> import tempfile
        >>> from lora_mixer import demo_adapters
        >>> folder = demo_adapters()["ink"].path.parent
        >>> library = Library([folder], index=Path(tempfile.mkdtemp()) / "index.sqlite")
        >>> library.refresh().unreadable
        0
        >>> library.search("ink").entries[0].algorithms
        ('lora',)
        >>> import shutil
        >>> own = Path(tempfile.mkdtemp())
        >>> _ = shutil.copy(folder / "ink.safetensors", own)
        >>> library = Library([own], index=Path(tempfile.mkdtemp()) / "index.sqlite")
        >>> library.refresh().added
        1
        >>> (ink,) = library.find("ink")
        >>> library.set_default(ink.id, weight=0.7).weight, library.used(ink.id).uses
        (0.7, 1)
        >>> library.rename(ink.id, "tusche").name, library.move(ink.id, "styles").folder, library.get(ink.id).name
        ('tusche', 'styles', 'tusche')
        >>> library.source(ink.id).name, library.info(ink.id).algorithms, len(library.hashes(ink.id)["sha256"])
        ('tusche.safetensors', ('lora',), 64)
        >>> library.by_hash(library.hashes(ink.id)["sha256"])[0].id == ink.id, library.duplicates()
        (True, ())
        >>> list(library.tree().values()), sorted(library.facets()), list(library.known())
        ([{'styles': 1}], ['algorithm', 'base', 'folder', 'label'], ['tusche'])
        >>> library.set_preview(ink.id, None).preview, library.thumbnail(ink.id), library.compatible(ink, "SDXL").fits
        (None, None, False)
        >>> token = library.trash(ink.id)
        >>> library.restore(token)[0].name, library.add(folder / "pixel.safetensors", "pixel").name
        ('tusche', 'pixel')
        >>> (own / "styles" / "tusche.safetensors").unlink()
        >>> library.refresh().offline, library.forget(ink.id), len(library.search().entries)
        (1, None, 1)
    """

    def __init__(
        self,
        folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Open the index; nothing is scanned yet.

        Raises:
            SourceError: No folder is given, or the index cannot be written.
        """
        given = [folders] if isinstance(folders, str | os.PathLike) else list(folders or ())
        if not given:
            raise SourceError("a library needs at least one folder", argument="folders")
        self._notes: list[str] = []
        self._roots = _outermost(at_home(folder).absolute() for folder in given)
        place = at_home(index).absolute() if index is not None else _default("XDG_CACHE_HOME", ".cache")
        said = (
            place.with_name(f"{place.stem}.user.sqlite")
            if index is not None
            else _default("XDG_DATA_HOME", ".local/share")
        )
        self._index = Database(place, _schema.INDEX, _schema.INDEX_VERSION, self._notes)
        self._user = Database(
            said,
            _schema.USER,
            _schema.USER_VERSION,
            self._notes,
            irreplaceable=True,
            upgrades=_schema.USER_UPGRADES,
        )
        self._previews = said.with_name(f"{said.name.removesuffix('.sqlite')}.previews")
        self._thumbnails = place.with_name(f"{place.stem}.thumbnails")
        self._lock = threading.Lock()

    def refresh(self, progress: Progress | None = None) -> Refreshed:
        """
        Bring the index up to date; files that are as they were are not opened.

        Args:
            progress: Called with how many files are done, how many there are, and the name of the one in hand. What it
                raises ends the scan; what was read by then is kept.

        Returns:
            What was found.
        """
        return self._scan(progress)[0]

    def _scan(self, progress: Progress | None = None) -> tuple[Refreshed, Mapping[str, Exception]]:
        """Bring the index up to date; say by path what files could not be read for reasons that do not lie in them."""
        with self._lock:
            before = self._index.renewals
            found = refresh(self._index, self._user, self._roots, progress)
            # Made anew in the middle, the index has only a part.
            return (
                found
                if self._index.renewals == before
                else refresh(self._index, self._user, self._roots, progress)
            )

    def _see(self, paths: Iterable[Path]) -> None:
        """
        Let the index see what files, or folders of one adapter, have come.

        Raises:
            Exception: Why one of them could not be read, where that does not lie in it.
        """
        wanted = set(paths)
        for path, failure in self._scan()[1].items():
            if not wanted.isdisjoint((Path(path), Path(path).parent)):
                raise failure

    def set_default(
        self,
        id: str,  # noqa: A002
        *,
        weight: float | None = _KEEP,
        notes: str | None = _KEEP,
        triggers: Iterable[str] | None = _KEEP,
        favourite: bool = _KEEP,
        labels: Iterable[str] = _KEEP,
        explicit: bool | None = _KEEP,
    ) -> Entry:
        """
        Keep what the user says of an adapter; it stays with the content, wherever the file goes.

        Args:
            id: The entry.
            weight: The preferred weight; None takes what came with the file again, as for the next two.
            notes: Notes.
            triggers: Trigger words.
            favourite: Whether it is one.
            labels: The user's own words to sort it by; none where there are none.
            explicit: Whether its preview is not for everybody's eyes; None takes what came with the file.

        Returns:
            The entry as it is now.

        Raises:
            SourceNotFoundError: There is no such entry.
            SourceError: A value is none that can be kept.
        """
        changes: dict[str, Any] = {}
        if weight is not _KEEP:
            changes["weight"] = None if weight is None else as_float(weight)
            if weight is not None and changes["weight"] is None:
                raise SourceError(f"weight must be a finite number, got {weight!r}", argument="weight")
        if notes is not _KEEP:
            changes["notes"] = None if notes is None else clean_text(notes)[:_NOTES_AT_MOST]
        if triggers is not _KEEP:
            words = (
                None
                if triggers is None
                else [clean_text(word).strip()[:500] for word in triggers][:_WORDS_AT_MOST]
            )
            changes["words"] = (
                None if words is None else json.dumps([word for word in words if word], ensure_ascii=False)
            )
        if favourite is not _KEEP:
            changes["favourite"] = int(favourite)
        if labels is not _KEEP:
            kept = dict.fromkeys(clean_text(each).strip()[:_LABEL_AT_MOST] for each in labels)
            changes["labels"] = (
                json.dumps([each for each in kept if each][:_LABELS_AT_MOST], ensure_ascii=False)
                if kept
                else None
            )
        if explicit is not _KEEP:
            changes["explicit"] = None if explicit is None else int(explicit)
        return self._say(id, lambda old: {**old, **changes})

    def set_preview(self, id: str, picture: str | os.PathLike[str] | None) -> Entry:  # noqa: A002
        """
        Keep a picture as an adapter's preview; it stays with the content, and nothing is written beside the file.

        Args:
            id: The entry.
            picture: A picture's file, of which a small copy is kept; None takes the one that came with the file again.

        Returns:
            The entry as it is now.

        Raises:
            SourceNotFoundError: There is no such entry.
            SourceError: It is not a picture that can be read.
        """
        entry = self.get(id)
        name = None
        if picture is not None:
            name = f"{entry.id}-{secrets.token_hex(6)}.webp"
            try:
                thumbnails.write(Path(picture), self._previews / name, thumbnails.SIZES[1])
            except thumbnails.PreviewError as error:
                raise SourceError(error.message, file=Path(picture).name, adapter=entry.name) from error
        return self._say(id, lambda old: {**old, "preview": name})

    def rename(self, id: str, name: str) -> Entry:  # noqa: A002
        """
        Give an adapter's file another name, and what lies beside it under its name.

        What the user said goes with it, and :meth:`find` knows it by its former name, too, as long as nothing else has that.

        Args:
            id: The entry.
            name: The new name, without an ending; made safe.

        Returns:
            The entry as it is now.

        Raises:
            SourceError: Something is called so already, or the file is away.
            SaveError: The disk refuses.
        """
        before = self._there(id)
        with changing.rename(before, name, self._seen_again) as path:
            entry = self._elsewhere(id, path)

            def remembered(old: dict[str, Any]) -> dict[str, Any]:
                names = [
                    each
                    for each in loose_json(old["former"] or "[]")
                    if each not in (before.name, entry.name)
                ]
                return {
                    **old,
                    "former": json.dumps([before.name, *names][:_FORMER_AT_MOST], ensure_ascii=False),
                }

            return self._say(entry.id, remembered) if entry.name != before.name else entry

    def move(self, id: str, folder: str, *, root: str | os.PathLike[str] | None = None) -> Entry:  # noqa: A002
        """
        Put an adapter's file, and what lies beside it under its name, into another folder of the library.

        Args:
            id: The entry.
            folder: Below the library's folder, with ``/`` between; empty is the top. It is made where it is not there.
            root: Which of the library's folders; the one that it is in unless said.

        Returns:
            The entry as it is now.

        Raises:
            SourceError: It leads out of the library, something is called so there already, or the file is away.
            SaveError: The disk refuses.
        """
        entry = self._there(id)
        top = entry.root if root is None else self._root(root)
        place = top / folder.replace("\\", "/").strip("/")
        parts = place.relative_to(top).parts
        if any(
            part == ".." or part.startswith(".") or adding.safe_name(part) != part for part in parts
        ) or not within(place, top):
            raise SourceError(
                "expected names of folders with / between, none of them hidden", file=str(folder)
            )
        with changing.move(entry, place, self._seen_again) as path:
            return self._elsewhere(id, path)

    def trash(self, id: str) -> str:  # noqa: A002
        """
        Put an adapter's file, and what lies beside it under its name, into the trash of its folder.

        Args:
            id: The entry.

        Returns:
            What :meth:`restore` takes.

        Raises:
            SourceError: The file is away.
            SaveError: The disk refuses.
        """
        entry = self._there(id)
        with changing.to_trash(entry, self._seen_again) as token:
            self.forget(id)
            return f"{self._roots.index(entry.root)}-{token}"

    def restore(self, token: str) -> tuple[Entry, ...]:
        """
        Put what :meth:`trash` took away where it was.

        Args:
            token: What :meth:`trash` returned.

        Returns:
            The entries that are back.

        Raises:
            SourceError: It is not in the trash, or something else took its place.
            SaveError: The disk refuses.
        """
        number, _, name = token.partition("-")
        if not number.isdecimal() or int(number) >= len(self._roots):
            raise SourceError("this is not in the library's trash any more")
        known = {entry.id for entry in self._where("1")}

        def undone() -> None:
            self._seen_again()
            with suppress(Exception):
                for entry in self._where("1"):
                    if entry.offline and entry.id not in known:
                        self.forget(entry.id)

        with changing.from_trash(self._roots[int(number)], name, undone) as (id, back):  # noqa: A001 -- what it is called everywhere
            self._see(back)
            places = {str(path) for path in back}
            entries = [e for e in self._where("1") if {str(e.path), str(e.path.parent)} & places]
            if len(entries) == 1 and entries[0].id != id:
                self._index.write(lambda connection: _called(connection, entries[0].id, id))
            return tuple(self._where("path = ?", str(entry.path))[0] for entry in entries)

    def _there(self, id: str) -> Entry:  # noqa: A002
        self.source(id)
        return self.get(id)

    def _seen_again(self) -> None:
        """Let the index see that files are where they were; where it cannot, the next look does."""
        with suppress(Exception):
            self.refresh()

    def _elsewhere(self, id: str, path: Path) -> Entry:  # noqa: A002
        """Let the index see that a file is elsewhere now; where it cannot be read there, the call fails."""
        self._see([path])
        entries = self._where("path = ?", str(path))
        return entries[0] if entries else self.get(id)

    def used(self, id: str) -> Entry:  # noqa: A002
        """
        Count one use of an adapter, for ``sort="uses"``.

        Args:
            id: The entry.

        Returns:
            The entry as it is now.
        """
        return self._say(id, lambda old: {**old, "uses": old["uses"] + 1})

    def add(
        self,
        source: str | os.PathLike[str] | bytes | IO[bytes],
        name: str,
        *,
        folder: str | os.PathLike[str] | None = None,
        limit: int = adding.SIZE_AT_MOST,
        config: str | os.PathLike[str] | None = None,
    ) -> Entry:
        """
        Copy an adapter into the library: checked before it gets its name, and over nothing that is there.

        Args:
            source: A file, its bytes, or a stream.
            name: What to call it; made safe, and numbered where that is taken.
            folder: One of the library's folders; the first unless said.
            limit: How many bytes it may have.
            config: The ``adapter_config.json`` that belongs to it, for PEFT's files; both go into a folder of their own.

        Returns:
            The new entry.

        Raises:
            SourceError: It is larger than allowed, cannot be read, or the folder is none of the library's.
            FormatError: It is not a safetensors file with an adapter that can be used, or its configuration does not fit.
            SaveError: The disk refuses.
        """
        table = None if config is None else adding.peft_config(config)
        return self._added(adding.put(source, self._root(folder), name, limit=limit, config=table))

    def add_from_hub(
        self,
        repo_id: str,
        *,
        weight_name: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        name: str | Callable[[str], str] | None = None,
        **options: Any,
    ) -> Entry:
        """
        Download an adapter from the Hub and copy it into the library, with its PEFT configuration where it has one.

        Args:
            repo_id: ``user/name``, or the address of a file at the Hub; never a path.
            weight_name: Which file of the repository.
            folder: As for :meth:`add`.
            name: What to call it; a function is given what it is called there and returns it. As it is there unless said.
            options: ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns:
            The new entry.

        Raises:
            SourceError: There is no such repository or file, several could be meant, or nobody answers.
            FormatError: As :meth:`add`.

        Example:
            >>> library.add_from_hub("user/repository", weight_name="ink.safetensors")  # doctest: +SKIP
        """
        root = self._root(folder)
        download = adding.from_hub(repo_id, weight_name, options)
        called = name(download.name) if callable(name) else name or download.name
        return self._added(adding.put(download.weights, root, called, config=download.config))

    def forget(self, id: str) -> None:  # noqa: A002
        """
        Take an entry out of the index that is away for good; what the user said of it is kept.

        Args:
            id: The entry.

        Raises:
            SourceError: The file is there, so the next scan would find it again.
        """
        entry = self.get(id)
        if entry.path.exists():
            raise SourceError(
                "is there; delete or move the file to take it out", file=str(entry.path), adapter=entry.name
            )
        self._index.write(
            lambda connection: [
                connection.execute(f"DELETE FROM {t} WHERE id = ?", (id,)) for t in ("files", "hashes")
            ]
        )

    def _say(self, id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Entry:  # noqa: A002
        """
        Keep what the user says of an entry with its content; the names that it had are its own.

        Files of one content may be different ones that say nothing of themselves: what one was called means no other.
        """
        entry = self.get(id)
        columns = _schema.SAID
        listed = ", ".join(columns)
        row = self._index.read(
            lambda connection: dict(
                connection.execute(
                    f"SELECT content, path, {listed} FROM files WHERE id = ?", (entry.id,)
                ).fetchone()
            )
        )
        key = row["content"] or row["path"]

        before: list[sqlite3.Row | None] = []

        def work(connection: sqlite3.Connection) -> None:
            names = ", ".join(columns.values())
            before.append(connection.execute("SELECT * FROM said WHERE content = ?", (key,)).fetchone())
            there = connection.execute(f"SELECT path, {names} FROM said WHERE content = ?", (key,)).fetchone()
            here = {column: row[mine] for mine, column in columns.items()}
            new = change({**here, **dict(there or {}), "former": here["former"]})
            path = row["path"]
            if there is not None and new["former"] == here["former"] and os.path.lexists(there["path"]):
                path, new["former"] = there["path"], there["former"]
            places = ", ".join("?" * (len(columns) + 2))
            connection.execute(
                f"INSERT OR REPLACE INTO said (content, path, {names}) VALUES ({places})",
                (key, path, *(new[column] for column in columns.values())),
            )

        def say() -> None:
            self._user.write(work)
            self._index.write(lambda connection: _repeat(connection, self._user, entry.id, key, row["path"]))

        def unsay() -> None:
            if before:
                self._user.write(lambda connection: _put_back(connection, key, before[-1]))

        at_once(say, unsay)
        return self.get(id)

    def _named_root(self, folder: str | os.PathLike[str] | None) -> Path:
        root = self._roots[0] if folder is None else at_home(folder).absolute()
        if root not in self._roots:
            raise SourceError(
                f"is none of the library's folders: {', '.join(map(str, self._roots))}", file=str(root)
            )
        return root

    def _root(self, folder: str | os.PathLike[str] | None) -> Path:
        root = self._named_root(folder)
        if not root.is_dir():
            raise SourceNotFoundError("the library's folder is not there now", file=str(root))
        return root

    def _added(self, path: Path) -> Entry:
        self.refresh()
        entries = self._where("path = ?", str(path))
        if not entries:
            raise SourceNotFoundError("was written and is not there any more", file=str(path))
        return entries[0]

    # --- looking: nothing here changes a file ---

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders, without those inside others."""
        return self._roots

    @property
    def notes(self) -> tuple[str, ...]:
        """What went wrong and was put right: a damaged index, previews that cannot be shown."""
        return tuple(self._notes)

    @property
    def thumbnails_folder(self) -> Path:
        """Where :meth:`thumbnail` keeps its pictures: the one folder of a library that may be served."""
        return self._thumbnails

    def search(
        self,
        text: str = "",
        *,
        base: str | None = None,
        fits: str | None = None,
        algorithm: str | None = None,
        root: str | os.PathLike[str] | None = None,
        folder: str | None = None,
        label: str | None = None,
        favourite: bool | None = None,
        offline: bool | None = None,
        sort: str = "name",
        descending: bool = False,
        first: Sequence[str] = (),
        page: int = 0,
        page_size: int = 60,
    ) -> Page:
        """
        Find entries.

        Args:
            text: Words that must all be in names, titles, trigger words, tags, notes, labels, file names or folders; an
                entry of exactly this name comes first. Words that nothing has are read as the most like ones that
                something has; the page's ``read_as`` says so.
            base: Only of this base family.
            fits: Only what can be used with a pipeline of this base family, as :meth:`compatible` tells.
            algorithm: Only with this algorithm.
            root: Only in this one of the library's folders.
            folder: Only in this folder below a library's folder, and below it.
            label: Only with this label of the user's.
            favourite: Only favourites, or only others.
            offline: Only those that are away, or only those that are there.
            sort: One of :data:`SORTS`, such as ``name`` or ``date``.
            descending: The greatest first.
            first: Ids of entries that come before all others.
            page: Which page, from 0; one past the end is the last.
            page_size: How many entries a page has, at most 1000.

        Returns:
            The page.

        Raises:
            SourceError: There is no such order, or the numbers make no sense.
        """
        if not 1 <= page_size <= PAGE_AT_MOST or page < 0:
            raise SourceError(
                f"page must be 0 or more and page_size from 1 to {PAGE_AT_MOST}, got {shown(page)}, {shown(page_size)}",
                argument="page",
            )
        bases = None if fits is None else [base for base in self.facets()["base"] if self._suits(base, fits)]
        options: dict[str, Any] = {
            "base": storable(base),
            "bases": bases,
            "algorithm": storable(algorithm),
            "root": None if root is None else str(self._named_root(root)),
            "folder": storable(folder),
            "label": storable(label),
            "favourite": favourite,
            "offline": offline,
            "sort": sort,
            "descending": descending,
            "first": [storable(each) for each in first][:_FIRST_AT_MOST],
        }
        hits = self._page(query(self._roots, storable(text), **options), page, page_size)
        if hits.total or not text.strip():
            return hits
        near = near_words(storable(text), self._written())
        if not near or near == " ".join(text.casefold().split()):
            return hits
        return replace(self._page(query(self._roots, near, **options), page, page_size), read_as=near)

    def _page(self, wanted: Query, page: int, page_size: int) -> Page:
        def work(connection: sqlite3.Connection) -> Page:
            total = int(
                connection.execute(
                    f"SELECT COUNT(*) FROM files WHERE {wanted.where}", wanted.values
                ).fetchone()[0]
            )
            pages = max(-(-total // page_size), 1)
            number = min(page, pages - 1)
            rows = connection.execute(
                f"SELECT * FROM files WHERE {wanted.where} ORDER BY {wanted.order} LIMIT ? OFFSET ?",
                (*wanted.values, *wanted.order_values, page_size, number * page_size),
            ).fetchall()
            return Page(self._entries(connection, rows), total, number, pages)

        return self._index.read(work)

    def _written(self) -> list[str]:
        """Return all texts that searches look in."""
        places = ", ".join("?" * len(self._roots))
        rows = self._index.read(
            lambda connection: connection.execute(
                f"SELECT haystack || ' ' || {_schema.OWN_TEXT} AS text FROM files WHERE root IN ({places})",
                [*map(str, self._roots)],
            ).fetchall()
        )
        return [row["text"] for row in rows]

    def _suits(self, base: str, wanted: str) -> bool:
        return compatible(Entry("", "", Path(), Path(), base=base), wanted).fits

    def get(self, id: str) -> Entry:  # noqa: A002 -- what it is called everywhere
        """
        Return one entry.

        Args:
            id: The entry.

        Raises:
            SourceNotFoundError: There is none of this id in these folders.
        """
        entries = self._where("id = ?", id)
        if not entries:
            raise SourceNotFoundError(
                f"the library has no adapter {str(id)[:40]!r}; search for it again", adapter=str(id)[:40]
            )
        return entries[0]

    def find(self, name: str) -> tuple[Entry, ...]:
        """
        Return the entries of a name, but for case. Where none has it, those that had it, but for case, too.

        Those that are there come first, and of these who came into the library first: a file that comes later, or moves, takes no
        other's place.

        Args:
            name: A file's name without its ending, or what it was called before.
        """
        entries = self._where("name = ? COLLATE NOCASE", name, order=_FIRST_COME)
        known = json.dumps(name, ensure_ascii=False).casefold()
        return entries or self._where("instr(casefold(former), ?) > 0", known, order=_FIRST_COME)

    def by_hash(self, digits: str) -> tuple[Entry, ...]:
        """
        Return the entries that have a hash, of any kind; of files that nobody has hashed yet, those that say so.

        Args:
            digits: 8 hexadecimal digits or more; the beginning of a longer hash will do.
        """
        wanted = as_hash(digits)
        if wanted is None:
            return ()
        return self._where(
            "(id IN (SELECT id FROM hashes WHERE digits >= ? AND digits < ? OR digits IN (?, ?, ?))"
            # headers are copied, and lie: what one says counts until the file's own hashes are known
            " OR (substr(declared, 1, ?) = ? AND id NOT IN (SELECT id FROM hashes)))",
            *(wanted, wanted + "g", wanted[:8], wanted[:10], wanted[:12]),
            *(len(wanted), wanted),
        )

    def facets(self) -> dict[str, dict[str, int]]:
        """
        Count the entries by base, algorithm, folder and the user's labels, for filters.

        Returns:
            How many entries have each value, by field: ``base``, ``algorithm``, ``folder``, ``label``.
        """
        places = ", ".join("?" * len(self._roots))
        rows = self._index.read(
            lambda connection: connection.execute(
                f"SELECT base, algorithms, folder, labels FROM files WHERE root IN ({places})",
                [*map(str, self._roots)],
            ).fetchall()
        )
        counts = {
            "base": Counter(row["base"] for row in rows),
            "algorithm": Counter(name for row in rows for name in loose_json(row["algorithms"])),
            "folder": Counter(row["folder"] for row in rows),
            "label": Counter(label for row in rows for label in loose_json(row["labels"] or "[]")),
        }
        return {kind: dict(sorted(counter.items())) for kind, counter in counts.items()}

    def tree(self) -> dict[Path, dict[str, int]]:
        """
        Count the entries by folder, for each of the library's folders: those right in it, not those below.

        Returns:
            By library folder, the folders below it with how many entries they have.
        """
        rows = self._index.read(
            lambda connection: connection.execute(
                "SELECT root, folder, COUNT(*) AS count FROM files GROUP BY root, folder ORDER BY folder"
            ).fetchall()
        )
        return {
            root: {row["folder"]: row["count"] for row in rows if row["root"] == str(root)}
            for root in self._roots
        }

    def duplicates(self) -> tuple[tuple[Entry, ...], ...]:
        """
        Find files that are the same to the byte: those of equal headers and sizes are compared by their hashes.

        Returns:
            Groups of two and more; files that are away or cannot be read are left out.
        """
        alike = self._where(
            "offline = 0 AND content != '' AND content IN (SELECT content FROM files WHERE offline = 0"
            " GROUP BY content HAVING COUNT(*) > 1)"
        )
        groups: dict[str, list[Entry]] = {}
        for entry in alike:
            with suppress(LoraMixerError, OSError):
                groups.setdefault(self.hashes(entry.id)["sha256"], []).append(entry)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def known(self) -> dict[str, dict[str, str]]:
        """Return the hashes known so far by name, as :func:`match_adapters` takes them; twins have their folder in the name."""
        entries = [entry for entry in self._where("1") if not entry.problem]
        count: dict[str, int] = {}
        for entry in entries:
            count[entry.name] = count.get(entry.name, 0) + 1
        return {
            entry.name if count[entry.name] == 1 else f"{entry.path.parent}/{entry.name}": dict(entry.hashes)
            for entry in entries
        }

    def source(self, id: str) -> Path:  # noqa: A002
        """
        Return the file of an entry, for loading, after a look that it is still in its folder.

        Args:
            id: The entry.

        Raises:
            SourceNotFoundError: It is not there now.
            SourceError: A link leads out of the folder.
        """
        entry = self.get(id)
        if not entry.path.is_file():
            raise SourceNotFoundError(
                "is not there now; is its disk away?", file=str(entry.path), adapter=entry.name
            )
        if not within(entry.path, entry.root):
            raise SourceError(
                f"a link leads out of the library's folder {entry.root}",
                file=str(entry.path),
                adapter=entry.name,
            )
        return entry.path

    def info(self, id: str) -> AdapterInfo:  # noqa: A002
        """
        Read the full description of an entry, with its metadata; raises as :meth:`source` and ``read_adapter``.

        Args:
            id: The entry.

        Returns:
            The adapter's description, as :func:`~lora_mixer.read_adapter` gives it.
        """
        return read_adapter(self.source(id))

    def hashes(self, id: str) -> Mapping[str, str]:  # noqa: A002
        """
        Return the hashes of an entry, by kind; computed at the first call, which reads the whole file, and remembered.

        Args:
            id: The entry.

        Raises:
            SourceError: As :meth:`source`.
        """
        entry = self.get(id)
        known = {kind: digits for kind, digits in entry.hashes.items() if kind != "declared"}
        if known:
            return known
        table = {
            kind: digits
            for kind, digits in read_adapter(self.source(id)).hashes.items()
            if kind in file_hashes.NAMES
        }
        self._index.write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO hashes (id, kind, digits) VALUES (?, ?, ?)",
                [(entry.id, kind, digits) for kind, digits in table.items()],
            )
        )
        return table

    def thumbnail(self, id: str, size: int = 256) -> Path | None:  # noqa: A002
        """
        Return a small picture of an entry, written anew into :attr:`thumbnails_folder`.

        Args:
            id: The entry.
            size: The longer side in pixels.

        Returns:
            A WebP file; None where there is no preview, or none that can be shown (``notes`` says why).
        """
        entry = self.get(id)
        try:
            return thumbnails.thumbnail(entry, self._thumbnails, size, self._previews)
        except thumbnails.PreviewError as error:
            note = f"the preview of {entry.name}: {error.reason}"
            if note not in self._notes and len(self._notes) < 1000:
                self._notes.append(note)
            return None

    def compatible(self, entry: Entry, base: str) -> Compatibility:
        """
        Tell whether an entry is for a base, as :func:`base_family` names it, and why not; see :func:`compatible`.

        Args:
            entry: The entry.
            base: The base's family, as :func:`base_family` names it.

        Returns:
            Whether it fits, and the reason.
        """
        return compatible(entry, base)

    def _where(self, clause: str, *values: object, order: str = _BY_NAME) -> tuple[Entry, ...]:
        places = ", ".join("?" * len(self._roots))

        def work(connection: sqlite3.Connection) -> tuple[Entry, ...]:
            rows = connection.execute(
                f"SELECT * FROM files WHERE root IN ({places}) AND {clause} ORDER BY {order}",
                (*map(str, self._roots), *map(storable, values)),
            ).fetchall()
            return self._entries(connection, rows)

        return self._index.read(work)

    def _entries(self, connection: sqlite3.Connection, rows: list[sqlite3.Row]) -> tuple[Entry, ...]:
        known = _schema.hashes_of(connection, [row["id"] for row in rows])
        return tuple(_schema.entry_of(row, known[row["id"]], self._previews) for row in rows)


def _repeat(connection: sqlite3.Connection, user: Database, id: str, key: str, path: str) -> None:  # noqa: A002
    """
    Let searches see what the user said, in all entries of the same content; of the names that one had, in itself alone.

    It is read while nobody else writes the index, so that of two who speak at once the later one is repeated.
    """
    said = user.read(lambda other: other.execute("SELECT * FROM said WHERE content = ?", (key,)).fetchone())
    if said is not None:
        columns = {mine: column for mine, column in _schema.SAID.items() if mine != "former"}
        sets = ", ".join(f"{mine} = ?" for mine in columns)
        values = [said[column] for column in columns.values()]
        connection.execute(f"UPDATE files SET {sets} WHERE id = ? OR content = ?", (*values, id, key))
        if said["path"] == path:
            connection.execute("UPDATE files SET former = ? WHERE id = ?", (said["former"], id))


def _put_back(connection: sqlite3.Connection, key: str, row: sqlite3.Row | None) -> None:
    """Let be said of a content what was said before."""
    connection.execute("DELETE FROM said WHERE content = ?", (key,))
    if row is not None:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO said ({', '.join(row.keys())}) VALUES ({marks})", tuple(row))


def _called(connection: sqlite3.Connection, now: str, id: str) -> None:  # noqa: A002
    """Give an entry the id that it had, unless another has it by now."""
    if connection.execute("SELECT 1 FROM files WHERE id = ?", (id,)).fetchone() is None:
        connection.execute("DELETE FROM hashes WHERE id = ?", (id,))
        for table in ("files", "hashes"):
            connection.execute(f"UPDATE {table} SET id = ? WHERE id = ?", (id, now))


def _outermost(folders: Iterable[Path]) -> tuple[Path, ...]:
    unique = list(dict.fromkeys(folders))
    return tuple(
        folder
        for folder in unique
        if not any(other != folder and folder.is_relative_to(other) for other in unique)
    )


def _default(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "lora_mixer" / "library.sqlite"
