"""The handlers of the Gallery: pictures opened, and their settings taken back into the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, PictureError
from lora_mixer.picture_metadata import AdapterMatches, PictureSettings, match_adapters, read_picture

from .. import gallery
from ..mix_rows import recalled_rows, shown

if TYPE_CHECKING:
    from ..app_state import AppState

MAX_PICTURE = 64 << 20


class _LazyHashes(Mapping[str, str]):
    """An adapter's hashes, read when somebody looks."""

    def __init__(self, app: AppState, entry_id: str) -> None:
        self._app, self._id = app, entry_id
        self._table: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._table is None:
            try:
                self._table = dict(self._app.library.hashes(self._id))
            except (LoraMixerError, OSError):
                self._table = {}
        return self._table

    def __getitem__(self, kind: str) -> str:
        return self._all()[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def recalled(app: AppState, settings: PictureSettings) -> tuple[dict[str, Any], AdapterMatches]:
    """Give the mix_rows of a picture's mix: by hash first, then by name; what is missing keeps its place."""
    known = {
        name: _LazyHashes(app, entry.id)
        for name, entry in zip(app.names(), app.every_entry(), strict=True)
        if not entry.problem and not entry.offline
    }
    found = match_adapters(settings, known)
    for slot in found.slots:
        mask = slot.adapter.spec.mask if slot.adapter.spec is not None else None
        if mask is not None and mask.picture is not None:
            with suppress(PictureError):  # the row says that its mask is not here
                app.masks.put_values(mask.picture)
    app.preloader.want(found.mix.names)
    return shown(recalled_rows(found), app), found


def dropped(path: Any, cache: str) -> PictureSettings:
    """
    Read a picture that was dropped on the page.

    Args:
        path: What the browser uploaded.
        cache: The folder that uploads lie in; nothing outside of it is read.

    Raises:
        PictureError: When it is no upload, or too large.
        PictureMetadataError: When nobody wrote settings into it.
    """
    given = Path(str(path))
    try:
        real = given.resolve(strict=True)
    except (OSError, ValueError) as error:
        raise PictureError("the upload is gone; drop the picture again") from error
    if given.is_symlink() or not real.is_relative_to(Path(cache).resolve()) or not real.is_file():
        raise PictureError("this is not an upload")
    if real.stat().st_size > MAX_PICTURE:
        raise PictureError(f"the picture is larger than {MAX_PICTURE >> 20} MB")
    return read_picture(real.read_bytes())


def of_gallery(app: AppState, picture_id: Any) -> PictureSettings:
    """
    Read a picture of the gallery.

    Raises:
        PictureError: When there is none.
    """
    return read_picture(gallery.path_of(app, picture_id))


def report(settings: PictureSettings, found: AdapterMatches) -> dict[str, Any]:
    """Say what was read and which adapters were found, for the page."""
    words = {"hash": "found by hash", "name": "found by name"}
    slots = []
    for slot in found.slots:
        ok = slot.match is not None
        text = (
            f"{slot.adapter.name}: {words.get(slot.found_by, slot.found_by)}"
            if ok
            else f"{slot.adapter.name}: {slot.note or slot.found_by}; its place is kept"
        )
        slots.append({"ok": ok, "text": text + (f" ({slot.note})" if ok and slot.note else "")})
    return {
        **gallery.about(settings),
        "title": f"Settings read ({settings.dialect})" if settings.dialect else "Settings read",
        "slots": slots,
        "notes": [*settings.notes, *found.notes],
    }
