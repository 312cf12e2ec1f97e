"""What all sessions share: one pipeline behind one queue, the library, the saved mixes and the pictures on disk."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import threading
import warnings
from collections import OrderedDict
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer import FairQueue, PartialMatchWarning, demo_adapters
from lora_mixer.errors import AdapterNameError, LoraMixerError, PictureError
from lora_mixer.library import Entry, Fit, Library, SavedMixes, compatible, safe_name
from lora_mixer.parsing import at_home
from lora_mixer.pictures import DEMO, ModelOptions

from .guard import Sessions
from .masks import Masks
from .messages import hide, without_paths
from .models import Models
from .preloading import Preloader
from .readers import Readers
from .saved_rows import SavedRows
from .starts import Starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lora_mixer import LoraMixer, PictureMaker, PictureRequest
    from lora_mixer.mixes import BlockLayout

_log = logging.getLogger(__name__)
ID_DIGITS = 8
SCAN_WAIT = 2.0
"""Seconds that the start waits for the library; the rest of a first scan goes on behind the open page."""
KEPT_LOADED = 24
HASHED_AT_ONCE = 16 << 30
"""Bytes of files that are read behind the page for one picture whose hashes nobody knows."""
"""Adapters that stay in memory; beyond that, those that were not used for longest go."""
GRID_BATCH = 4
"""Cells of a grid in one call, each with its own mix."""
MAX_UPLOAD = 4 << 30


@dataclass(frozen=True)
class ServerOptions:
    """
    How the page is started.

    Attributes:
        model: ``demo``, a folder or a Hub repository.
        loras: Folders of adapters; the demo's own where there are none and the model is the demo.
        models: Folders of models that the page may change to.
        out: Where pictures, uploads, masks, exports and saved mixes go.
        loading: How the model is loaded; None is as ``load_pipeline`` does it.
        max_upload: The largest file taken, in bytes.
        grid_batch: Cells of a grid in one call; with 1 they are, to the byte, what they would be alone.

    Example:
        >>> ServerOptions(model="demo").model
        'demo'
    """

    model: str = DEMO
    loras: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()
    out: Path = Path("lora-mixer-ui")
    loading: ModelOptions | None = None
    max_upload: int = MAX_UPLOAD
    grid_batch: int = GRID_BATCH


class AppState:
    """
    The shared half of the page; no session's mix is ever in it.

    Args:
        options: How it was started.
        tell: Takes what is being done, in words, for whoever waits at a terminal.

    Raises:
        LoraMixerError: When there is no such model.

    Example:
        >>> app = AppState(ServerOptions())  # doctest: +SKIP
    """

    def __init__(self, options: ServerOptions, tell: Callable[[str], object] = str) -> None:
        """Open the folders, and begin to load the model."""
        self.options = options
        out = at_home(options.out).resolve()
        places = (out, *options.loras, *options.models, Path.home(), Path(tempfile.gettempdir()), Path.cwd())
        hide(*map(at_home, places))
        if at_home(options.model).exists():
            hide(at_home(options.model).parent)
        self.out, self.pictures, self.uploads = out, out / "pictures", out / "adapters"
        self.exports, self.downloads = out / "exports", out / "downloads"
        for folder in (self.pictures, self.uploads, self.downloads):
            folder.mkdir(parents=True, exist_ok=True)
        folders = [at_home(folder).resolve() for folder in options.loras]
        self._demo = (
            next(iter(demo_adapters().values())).path.parent.resolve() if options.model == DEMO else None
        )
        if not folders and self._demo is not None:
            folders = [self._demo]
        self._loaded: OrderedDict[str, tuple[str, int, float]] = OrderedDict()
        self._lock = threading.RLock()
        self._hashing = threading.Lock()
        self._naming, self._given = threading.Lock(), set[str]()
        self.saving = threading.Lock()
        """Held while somebody looks whether a mix is saved under a name, and saves one."""
        self.queue = FairQueue()
        self.sessions = Sessions()
        self.readers = Readers()
        self.library = Library([self.uploads, *folders], index=out / "library.sqlite")
        self.scanning, self.scans = "", 0
        self._looking = threading.Lock()
        self._look: Future[None] | None = None
        self._look_again: Future[None] | None = None
        tell(f"looking for adapters in {', '.join(map(str, folders)) or self.uploads}")
        self.scan(wait=SCAN_WAIT)
        count = self.library.search(page_size=1).total
        tell(
            f"{count} adapters so far; the look goes on behind the page"
            if self.scanning
            else f"{count} adapters are there"
        )
        self.mixes = SavedMixes(out / "mixes.json")
        self.saved_rows = SavedRows(out / "rows.json")
        self.masks = Masks(out / "masks")
        self.starts = Starts(out / "starts", self.masks)
        self.loads = 0
        self.hashing = False
        tell(f"loading the model {options.model}; the page opens before it is there")
        self.models = Models(
            options.loading or ModelOptions(options.model),
            [at_home(folder).resolve() for folder in options.models],
            options.grid_batch,
            self._model_changed,
        )
        self.preloader = Preloader(self)

    # --- the model -------------------------------------------------------------------------------------------------

    @property
    def mixer(self) -> LoraMixer:
        """The model's mixer; waits for a model that is being loaded."""
        return self.models.loaded().mixer

    @property
    def maker(self) -> PictureMaker:
        """Who makes pictures one by one."""
        return self.models.loaded().maker

    @property
    def grid_maker(self) -> PictureMaker:
        """Who makes the cells of grids."""
        return self.models.loaded().grid_maker

    @property
    def base(self) -> str:
        """The model's family."""
        return self.models.facts.base

    @property
    def size(self) -> tuple[int, int]:
        """Pixels that the model was made for."""
        return self.models.facts.size

    @property
    def layout(self) -> BlockLayout | None:
        """The blocks of the model's UNet."""
        return self.models.facts.layout

    @property
    def defaults(self) -> dict[str, Any]:
        """Steps and guidance where nothing is said."""
        return self.models.facts.defaults

    def _model_changed(self) -> None:
        """Forget what was loaded into the model before; the pages look at the library again."""
        with self._lock:
            self._loaded.clear()
        self.scans += 1

    # --- names ---------------------------------------------------------------------------------------------------

    def name_of(self, entry: Entry) -> str:
        """Return the name that an entry has in mixes: its own, or with its id where another has that too."""
        first = next(iter(self._in_turn(self.library.find(entry.name))), None)
        alone = first is None or first.id == entry.id
        return entry.name if alone else f"{entry.name}-{entry.id[:ID_DIGITS]}"

    def entry_named(self, name: str) -> Entry | None:
        """Find the entry that a mix calls by this name."""
        entries = self._in_turn(self.library.find(name))
        if entries:
            return next((entry for entry in entries if entry.name == name), entries[0])
        stem, _, start = name.rpartition("-")
        alike = self.library.find(stem) if stem and len(start) == ID_DIGITS else ()
        return next((entry for entry in alike if entry.id.startswith(start.lower())), None)

    def _in_turn(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return entries in the order in which they have a right to their names: uploads come last."""
        return sorted(entries, key=lambda entry: (entry.offline, entry.root == self.uploads))

    @contextmanager
    def new_name(self, wanted: str) -> Iterator[str]:
        """
        Give a new file a name that nothing is called by yet, so that no mix means another file from now on.

        Nobody else is given it for as long as the block lasts: several files come at a time.

        Args:
            wanted: What it would be called.
        """
        stem = safe_name(wanted)
        tries = (stem, *(f"{stem}-{number}" for number in range(2, 10_000)))
        with self._naming:
            name = next(name for name in tries if self._is_free(name))
            self._given.add(name.casefold())
        try:
            yield name
        finally:
            self._given.discard(name.casefold())

    @contextmanager
    def given_name(self, name: str) -> Iterator[None]:
        """
        Keep a name from new files for a block, in which another gets it.

        Raises:
            PictureError: When a file comes under this name just now.
        """
        with self._naming:
            if name.casefold() in self._given:
                raise PictureError(
                    f"a file is being added under the name {name}: choose another", adapter=name
                )
            self._given.add(name.casefold())
        try:
            yield
        finally:
            self._given.discard(name.casefold())

    def _is_free(self, name: str) -> bool:
        """Say whether a new file can be called so: the library numbers what lies there already, and asks nobody what that means."""
        places = (self.uploads / name, self.uploads / f"{name}.safetensors")
        return (
            name.casefold() not in self._given
            and not any(os.path.lexists(place) for place in places)
            and self.entry_named(name) is None
        )

    def names(self) -> list[str]:
        """List the names that mixes may use."""
        entries = self._in_turn(self.every_entry())
        firsts = {entry.name: entry.id for entry in reversed(entries)}
        return [
            e.name if firsts[e.name] == e.id else f"{e.name}-{e.id[:ID_DIGITS]}" for e in self.every_entry()
        ]

    def every_entry(self) -> list[Entry]:
        """List the whole library."""
        entries: list[Entry] = []
        page, pages = 0, 1
        while page < pages:
            part = self.library.search(page=page, page_size=1000)
            entries += part.entries
            page, pages = page + 1, part.pages
        return entries

    def entry(self, entry_id: str) -> Entry:
        """
        Return an entry by its id.

        Raises:
            SourceNotFoundError: When there is none.
        """
        return self.library.get(entry_id)

    def scan(self, *, wait: float | None = None) -> Future[None]:
        """
        Look through the folders in a thread of its own; ``scanning`` says how far it is.

        One looks at a time: who asks meanwhile waits for one more look, which all of them share.

        Args:
            wait: Seconds to wait for it; None waits until it is done.

        Returns:
            What is done when the look is over.
        """
        with self._looking:
            if self._look is None:
                self._look = Future()
                self._look.set_running_or_notify_cancel()
                self.scanning = "Looking through the folders"
                threading.Thread(target=self._look_through, name="library", daemon=True).start()
            elif self._look_again is None:
                self._look_again = Future()
                self._look_again.set_running_or_notify_cancel()
            asked = self._look_again or self._look
        futures.wait([asked], wait)
        return asked

    def _look_through(self) -> None:
        while True:
            try:
                self.library.refresh(lambda done, total, _: self._scanned(done, total))
            except (LoraMixerError, OSError) as error:
                _log.warning("the folders could not be looked through: %s", error)
            except Exception:  # noqa: BLE001 -- the next look is not kept waiting for this one
                _log.exception("the folders could not be looked through")
            with self._looking:
                done, self._look, self._look_again = self._look, self._look_again, None
                self.scanning, self.scans = "" if self._look is None else self.scanning, self.scans + 1
                is_over = self._look is None
            if done is not None:
                done.set_result(None)
            if is_over:
                return

    def _scanned(self, done: int, total: int) -> None:
        self.scanning = f"Looking through the folders: {done} of {total}"

    def refusal(self, entry: Entry) -> str:
        """Say why an entry cannot be used with this pipeline; empty where it can."""
        fits, reason = self.library.compatible(entry, self.base)
        if fits:
            return ""
        if reason.kind is Fit.OTHER_BASE:
            return f"made for {self.called(entry.base)}; the model here is {self.called(self.base)}"
        return without_paths(reason.replace(str(entry.path), entry.name))

    def called(self, base: str) -> str:
        """Return the name of a base family that people read: the demo's own base has none but a number."""
        if self.models.facts.options.model == DEMO and base == self.base:
            return "demo"
        return base.replace("UNet with cross-attention", "UNet")

    def suits(self, base: str) -> bool:
        """Say whether adapters for a base can be used with the model."""
        return bool(compatible(Entry("", "", Path(), Path(), base=base), self.base).fits)

    def changeable(self, entry: Entry) -> bool:
        """Say whether an adapter's file may be renamed, moved and deleted here: the demo's own stay."""
        return entry.root != self._demo

    def hash_all(self, entries: Iterable[Entry]) -> None:
        """
        Compute the hashes that are not known yet, one file after the other, in a thread of its own.

        As many as :data:`HASHED_AT_ONCE` bytes have room for, the newest first; the next picture goes on from there.
        """
        unknown = [entry for entry in entries if not set(entry.hashes) - {"declared"}]
        unknown.sort(key=lambda entry: entry.mtime, reverse=True)
        ends = itertools.accumulate(entry.bytes for entry in unknown)
        wanted = [entry.id for entry, end in zip(unknown, ends, strict=True) if end <= HASHED_AT_ONCE]
        wanted = wanted or [entry.id for entry in unknown[:1]]
        with self._hashing:
            if not wanted or self.hashing:
                return
            self.hashing = True

        def work() -> None:
            try:
                for entry_id in wanted:
                    with suppress(LoraMixerError, OSError):
                        self.library.hashes(entry_id)
            finally:
                self.hashing = False

        threading.Thread(target=work, name="hashes", daemon=True).start()

    # --- adapters ------------------------------------------------------------------------------------------------

    def ready(self, names: Iterable[str]) -> None:
        """
        Load what a mix needs and is not loaded yet; called within a turn of the queue.

        Args:
            names: The mix's names.

        Raises:
            AdapterNameError: When the library has no such adapter, or it is for another base.
            LoraMixerError: When a file cannot be read or does not fit.
        """
        wanted = {name: self._usable(name) for name in names}
        with self._lock:
            fresh = {name: entry for name, entry in wanted.items() if self._loaded.get(name) != _state(entry)}
            spare = [name for name in self._loaded if name not in wanted]
            spare = spare[: max(0, len(self._loaded) + len(fresh) - max(KEPT_LOADED, len(wanted)))]
            self._exchange(fresh, spare)
            for name in wanted:
                self._loaded.move_to_end(name)

    def spare_for(self, name: str) -> bool:
        """Say whether an adapter is not loaded yet and has a place beside those that are; waits for no load."""
        return name not in self._loaded and len(self._loaded) < KEPT_LOADED

    def _usable(self, name: str) -> Entry:
        entry = self.entry_named(name)
        if entry is None:
            raise AdapterNameError(
                f"the library has no adapter {name!r}; add its file, or take it out", adapter=name
            )
        reason = self.refusal(entry)
        if reason:
            raise AdapterNameError(f"{name}: {reason}", adapter=name)
        return entry

    def _exchange(self, fresh: dict[str, Entry], spare: list[str]) -> None:
        for name in spare:
            self.mixer.delete_adapters(name)
            del self._loaded[name]
        for name, entry in fresh.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PartialMatchWarning)  # shown with the adapter's details
                self.mixer.load_lora_weights(
                    self.library.source(entry.id),
                    adapter_name=name,
                    hotswap=name in self.mixer.adapters,
                    activate=False,
                )
            self.loads += 1
            self._loaded[name] = _state(entry)

    def tagged(self, request: PictureRequest) -> PictureRequest:
        """Move ``<lora:...>`` tags from the prompt into the mix; the library's names are known."""
        return request.with_tags(self.names()) if "<l" in request.prompt else request

    def count_uses(self, requests: Iterable[PictureRequest]) -> None:
        """Count one use of each adapter of a job, for the library's order by use."""
        for name in dict.fromkeys(name for request in requests for name in request.adapters):
            entry = self.entry_named(name)
            if entry is not None:
                self.library.used(entry.id)

    def hashes(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return adapters' hashes by name, for a picture's metadata."""
        entries = {name: self.entry_named(name) for name in names}
        return {name: dict(self.library.hashes(e.id)) for name, e in entries.items() if e is not None}


def _state(entry: Entry) -> tuple[str, int, float]:
    return entry.id, entry.bytes, entry.mtime
