"""
Faults injected into calls that write files: a disk that refuses, errors at calls, Ctrl-C; afterwards all is as before or as after.

``python -m tests.file_faults --seed 1 --count 2000`` draws calls and places; what is found is printed with the words that bring it
again (``--only "CALL / KIND PLACE"``).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import functools
import hashlib
import random
import re
import signal
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import save_file
from typing_extensions import Self

from lora_mixer import Library, LoraConfig, LoraMixer, LoraMixerError, SavedMixes, save_picture
from lora_mixer.picture_metadata import PictureSettings
from lora_mixer.writing import bake, convert, merge, resize
from tests.faults import (
    AtCall,
    Denoiser,
    _fault,
    _ignored,
    _interrupt,
    _is_own_mistake,
    _keys,
    lora,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("disk", "call", "signal")
_DRAWN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}|(?<![0-9a-f])[0-9a-f]{16}(-[0-9a-f]{12})?(?![0-9a-f])")
"""Names that are drawn: places in the trash, entries of an index, previews of them."""
_INDEX = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".sqlite-journal", ".lock")
_CHANGES = (
    "os.rename",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
)  # a full disk lets files be removed


@dataclass
class Place:
    """A folder with two adapters, a model, a library and a book of mixes."""

    folder: Path

    @property
    def one(self) -> Path:
        """The first adapter."""
        return self.folder / "loras" / "one.safetensors"

    @property
    def two(self) -> Path:
        """The second."""
        return self.folder / "loras" / "styles" / "two.safetensors"

    @functools.cached_property
    def library(self) -> Library:
        """The library of both."""
        return Library(self.folder / "loras", index=self.folder / "index.sqlite")

    @functools.cached_property
    def book(self) -> SavedMixes:
        """Saved mixes."""
        return SavedMixes(self.folder / "mixes.json")

    @functools.cached_property
    def mixer(self) -> LoraMixer:
        """A model with both adapters."""
        mixer = LoraMixer(Denoiser())
        mixer.load_lora_weights(str(self.one), "one")
        mixer.load_lora_weights(str(self.two), "two")
        mixer.set_adapters(["one", "two"], [0.5, 0.25])
        return mixer

    def id(self, name: str) -> str:
        """The library's word for an adapter."""
        return self.library.find(name)[0].id

    def out(self, name: str) -> Path:
        """Where something is written."""
        return self.folder / "out" / name


class _Saved(torch.nn.Module):
    """A model that can be written, as diffusers' can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Denoiser()

    def save_pretrained(self, folder: str, **_: Any) -> None:
        """Write the weights."""
        Path(folder).mkdir(exist_ok=True)
        save_file(self.net.state_dict(), Path(folder) / "model.safetensors")


def _bake(place: Place) -> None:
    mixer = LoraMixer(_Saved())
    mixer.load_lora_weights({f"net.{key}": value for key, value in lora(0).items()}, "one")
    bake(mixer, place.folder / "baked")


def _preview(place: Place) -> None:
    Image.new("RGB", (8, 8), (200, 0, 0)).save(place.folder / "preview.png")


def _peft(place: Place, name: str = "peft") -> None:
    """Have a folder of PEFT's where another one goes."""
    convert(place.two, place.out(name), format="peft")


def _nothing(place: Place) -> None:
    """Need nothing before."""


# By call: what it needs before, and the call. What is before the first comma is the name of what it covers.
CALLS: dict[str, tuple[Callable[[Place], Any], Callable[[Place], Any]]] = {
    "convert": (_nothing, lambda p: convert(p.one, p.out("a.safetensors"), format="diffusers", dtype="float16")),
    "convert, peft": (_nothing, lambda p: convert(p.one, p.out("peft"), format="peft")),
    "convert, peft over another": (_peft, lambda p: convert(p.one, p.out("peft"), format="peft")),
    "merge": (_nothing, lambda p: merge([(p.one, 0.5), (p.two, 0.5)], p.out("a.safetensors"), rank=2)),
    "resize": (_nothing, lambda p: resize(p.one, p.out("a.safetensors"), rank=1)),
    "bake": (_nothing, _bake),
    "LoraMixer.save_lora_weights": (
        lambda p: p.mixer,
        lambda p: p.mixer.save_lora_weights(p.out("a.safetensors")),
    ),
    "LoraMixer.save_lora_weights, peft": (
        lambda p: p.mixer,
        lambda p: p.mixer.save_lora_weights(p.out("peft"), "one", format="peft"),
    ),
    "LoraConfig.save": (_nothing, lambda p: LoraConfig(r=2, target_modules=["one"]).save(p.out("adapter_config.json").parent)),
    "save_picture": (
        _nothing,
        lambda p: save_picture(Image.new("RGB", (8, 8)), p.out("a.png"), PictureSettings(prompt="a fox")),
    ),
    "SavedMixes.save": (lambda p: p.book.save("old", "ink:1"), lambda p: p.book.save("new", "ink:0.5")),
    "SavedMixes.delete": (lambda p: p.book.save("old", "ink:1"), lambda p: p.book.delete("old")),
    "SavedMixes.rename": (lambda p: p.book.save("old", "ink:1"), lambda p: p.book.rename("old", "new")),
    "SavedMixes.undo": (lambda p: p.book.save("old", "ink:1"), lambda p: p.book.undo()),
    "SavedMixes.import_text": (lambda p: p.book.save("old", "ink:1"), lambda p: p.book.import_text("oil:1", "new")),
    "Library.refresh": (
        lambda p: (p.library.refresh(), save_file(lora(3), p.folder / "loras" / "three.safetensors")),
        lambda p: p.library.refresh(),
    ),
    "Library.add": (lambda p: p.library.refresh(), lambda p: p.library.add(p.one.read_bytes(), "new")),
    "Library.rename": (
        lambda p: (p.library.refresh(), p.library.set_default(p.id("two"), labels=["old"])),
        lambda p: p.library.rename(p.id("two"), "new"),
    ),
    "Library.rename, beside": (
        lambda p: (p.two.with_suffix(".txt").write_text("notes"), p.two.with_suffix(".png").write_bytes(b"x"), p.library.refresh()),
        lambda p: p.library.rename(p.id("two"), "new"),
    ),
    "Library.move": (lambda p: p.library.refresh(), lambda p: p.library.move(p.id("two"), "people")),
    "Library.trash": (
        lambda p: (p.two.with_suffix(".txt").write_text("notes"), p.library.refresh()),
        lambda p: p.library.trash(p.id("two")),
    ),
    "Library.restore": (
        lambda p: (p.two.with_suffix(".txt").write_text("notes"), p.library.refresh(), setattr(p, "token", p.library.trash(p.id("two")))),
        lambda p: p.library.restore(p.token),  # type: ignore[attr-defined]
    ),
    "Library.set_default": (lambda p: p.library.refresh(), lambda p: p.library.set_default(p.id("one"), weight=0.5, labels=["x"])),
    "Library.set_preview": (lambda p: p.library.refresh(), lambda p: p.library.set_preview(p.id("one"), p.folder / "preview.png")),
    "Library.used": (lambda p: p.library.refresh(), lambda p: p.library.used(p.id("one"))),
    "Library.forget": (
        lambda p: (p.library.refresh(), p.two.unlink(), p.library.refresh()),
        lambda p: p.library.forget(next(e.id for e in p.library.search(page_size=50).entries if e.offline)),
    ),
}  # fmt: skip


class Disk:
    """Refuse the n-th change of files under a folder, as a full disk does; 0 only counts."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n, self.count = str(folder), n, 0

    def __enter__(self) -> Self:
        _hook()
        _armed.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _armed.clear()

    def seen(self, event: str, args: tuple[Any, ...]) -> None:
        """Count what changes a file."""
        if event == "open":
            path, mode, flags = args
            changes = bool(isinstance(mode, str) and set(mode) & set("wxa+")) or bool(
                isinstance(flags, int) and flags & 3
            )
        else:
            path, changes = args[0], event in _CHANGES
        name = str(path)
        if not changes or not name.startswith(self.folder) or name.endswith(_INDEX):
            return
        self.count += 1
        if self.count == self.n:
            raise OSError(errno.ENOSPC, "No space left on device", name)


_armed: list[Disk] = []


@functools.cache
def _hook() -> None:
    """Look at what Python does with files; a hook cannot be taken away, so it asks whether one is armed."""
    main = threading.main_thread()

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if _armed and (event == "open" or event in _CHANGES) and threading.current_thread() is main:
            _armed[0].seen(event, args)

    sys.addaudithook(hear)


@contextlib.contextmanager
def made(call: str) -> Iterator[Place]:
    """Make a place for a call."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Place(Path(folder))
        place.two.parent.mkdir(parents=True)
        save_file(lora(0), place.one)
        save_file(lora(1), place.two)
        place.out("").mkdir()
        for name in ("a.safetensors", "a.png", "adapter_config.json"):
            place.out(name).write_bytes(b"before")
        _preview(place)
        CALLS[call][0](place)
        yield place


def seen(place: Place) -> dict[str, Any]:
    """Give what lies in a folder, and what the library and the book say of it."""
    table: dict[str, Any] = {}
    for path in sorted(place.folder.rglob("*")):
        if path.is_file() and not path.name.endswith(
            (*_INDEX, "places.json")
        ):  # what the trash notes for itself
            name = _DRAWN.sub("DRAWN", path.relative_to(place.folder).as_posix())
            raw = _DRAWN.sub(
                "DRAWN", path.read_bytes().replace(str(place.folder).encode(), b"").decode("latin-1")
            )
            table[name] = hashlib.sha256(raw.encode("latin-1")).hexdigest()
    again = Library(place.folder / "loras", index=place.folder / "index.sqlite")
    if (place.folder / "index.sqlite").exists():
        again.refresh()
        table["(library)"] = [
            (e.name, e.path.relative_to(place.folder).as_posix(), e.labels, e.weight, e.uses, e.offline)
            for e in sorted(again.search(page_size=50).entries, key=lambda e: e.name)
        ]
    table["(book)"] = place.book.list()
    return table


@functools.cache
def around(call: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Give what is there before and after a call without faults, and how many places there are for each kind."""
    with made(call) as place:
        before = seen(place)
    with made(call) as place, Disk(place.folder, 0) as disk, AtCall(0, _fault) as calls:
        CALLS[call][1](place)
        calls.__exit__()
        disk.__exit__()
        return before, seen(place), {"disk": disk.count, "call": calls.inner, "signal": calls.count}


def run(call: str, kind: str, k: int) -> str | None:
    """Inject one fault; say what is inconsistent afterwards, or None."""
    before, after, _ = around(call)
    with made(call) as place:
        ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
            "disk": lambda: Disk(place.folder, k),
            "call": lambda: AtCall(k, _fault, whole=False),
            "signal": lambda: AtCall(k, _interrupt),
        }
        told, sys.unraisablehook = sys.unraisablehook, _ignored
        raised: BaseException | None = None
        try:
            with ways[kind]():
                CALLS[call][1](place)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- libraries make others of faults
            raised = error
        finally:
            sys.unraisablehook = told
        if raised is not None and (
            _is_own_mistake(raised) or (kind == "disk" and not isinstance(raised, LoraMixerError))
        ):
            return f"a foreign error: {type(raised).__name__}: {str(raised)[:200]}"
        del raised
        now = seen(place)
        if now not in (before, after):
            odd = [
                key
                for key in {*now, *before, *after}
                if now.get(key) not in (before.get(key), after.get(key))
            ]
            told_now = [now.get(key) for key in odd if key.startswith("(")]
            return f"neither before nor after: {odd or sorted(now)} {told_now or ''}"
        if now == before != after:
            with contextlib.suppress(AttributeError):
                del place.library
            CALLS[call][1](place)
            if seen(place) != after:
                return "the same call afterwards does not make what it makes"
    return None


def inject(
    seed: int, count: int, kinds: tuple[str, ...] = KINDS, tell: Callable[[str], object] = lambda _: None
) -> tuple[collections.Counter[str], list[str]]:
    """
    Inject faults into calls that write files.

    Args:
        seed: Of what is drawn.
        count: How many.
        kinds: Of :data:`KINDS`.
        tell: Called with what was inconsistent, as it is found.

    Returns:
        How many were injected by kind, and what was inconsistent.
    """
    draw = random.Random(seed)
    done: collections.Counter[str] = collections.Counter()
    wrong = []
    with _keys():
        while done.total() < count:
            call, kind = draw.choice(tuple(CALLS)), draw.choice(kinds)
            places = around(call)[2][kind]
            if not places:
                continue
            k = draw.randint(1, places)
            done[kind] += 1
            problem = run(call, kind, k)
            if problem:
                wrong.append(f"{call} / {kind} {k}: {problem}")
                tell(wrong[-1])
    return done, wrong


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", help="a line that was printed")
    options = parser.parse_args()
    if options.only:
        call, rest = options.only.split(" / ", 1)
        kind, k = rest.partition(":")[0].split()
        with _keys():
            print(run(call, kind, int(k)) or "consistent")  # noqa: T201
        return
    done, wrong = inject(options.seed, options.count, tell=lambda line: print(line, flush=True))  # noqa: T201
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(done.items()))
    text = (
        f"{done.total()} faults ({kinds}) in {len(CALLS)} calls that write files, {len(wrong)} inconsistent"
    )
    print(text)  # noqa: T201
    sys.exit(bool(wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
