"""What a saved mix of the page has beside the mix itself: rows that were switched off, and whose file was missing."""

from __future__ import annotations

import json
import threading
from typing import IO, TYPE_CHECKING, Any

from lora_mixer.atomic import write_files
from lora_mixer.parsing import json_or_none

if TYPE_CHECKING:
    from pathlib import Path

_VERSIONS = 50
"""How many versions of one name are kept: as many as saved mixes can be taken back."""


class SavedRows:
    """
    Rows by the name of a saved mix, beside ``SavedMixes``, which knows only what takes part.

    A version belongs to the mix that was saved with it: where that was changed or taken back since, another version fits,
    or none, and the mix alone is what there is.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._path = path
        self._lock = threading.Lock()

    def put(self, name: str, mix: str, rows: dict[str, Any]) -> None:
        """Keep the rows of a mix that is saved in a moment."""
        with self._lock:
            book = self._read()
            book[name] = [[mix, rows], *book.get(name, [])][:_VERSIONS]
            text = json.dumps(book).encode()

            def write(stream: IO[bytes]) -> None:
                stream.write(text)

            write_files({self._path: write})

    def get(self, name: str, mix: str) -> dict[str, Any] | None:
        """Return the rows that were saved with a mix, or None."""
        with self._lock:
            versions = self._read().get(name, [])
        return next((rows for text, rows in versions if text == mix), None)

    def _read(self) -> dict[str, list[Any]]:
        try:
            book = json_or_none(self._path.read_bytes())
        except OSError:
            return {}
        return book if isinstance(book, dict) else {}
