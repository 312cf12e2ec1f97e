"""Where pictures go: a folder, or a URL that fsspec writes to; a picture is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.locks import take_lock
from lora_mixer.errors import SaveError
from lora_mixer.parsing.files import read_regular
from lora_mixer.picture_metadata import save_picture
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from filelock import FileLock
    from PIL.Image import Image

    from lora_mixer.picture_metadata import PictureSettings

_STALE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")  # as lora_mixer.atomic names them
_PART = ".part"
LOCK = ".lora-mixer.lock"
"""A file in the folder that says a run is in it."""
_FILE_BYTES_AT_MOST = 4 << 30


class Storage:
    """
    A place for pictures.

    Args:
        folder: A folder, or a URL.

    Raises:
        SaveError: When the URL is of a kind that cannot be written to.
    """

    def __init__(self, folder: str) -> None:
        """Find out which of the two it is."""
        self.folder = folder
        self._remote: Any = None
        if "://" in folder and not folder.startswith("file://"):
            import fsspec

            try:
                self._remote, self._root = fsspec.core.url_to_fs(folder)
            except Exception as error:  # each kind of file system raises what it likes at what it lacks
                raise SaveError(
                    f"cannot write to it: {type(error).__name__}: {error}", file=folder
                ) from error
        else:
            self._path = Path(folder.removeprefix("file://"))

    @property
    def path(self) -> Path | None:
        """The folder, where it is one."""
        return None if self._remote is not None else self._path

    def where(self, name: str) -> str:
        """Return the full place of a file."""
        return f"{self.folder.rstrip('/')}/{name}" if self.path is None else str(self._path / name)

    def save(
        self,
        name: str,
        image: Image,
        settings: PictureSettings,
        hashes: Mapping[str, Mapping[str, str]],
        quality: int | None,
    ) -> str:
        """
        Write a picture.

        Returns:
            SHA-256 of the file.

        Raises:
            SaveError: When it cannot be written there.
        """
        if self.path is not None:
            self._refuse_links(name)
            with suppress(OSError):
                if (self._path / name).is_symlink():  # replaced, not followed: nothing outside is written to
                    (self._path / name).unlink()
            place = save_picture(image, self._path / name, settings, hashes=hashes, quality=quality)
            return hashlib.sha256(place.read_bytes()).hexdigest()
        with tempfile.TemporaryDirectory() as folder:
            here = save_picture(
                image, Path(folder) / Path(name).name, settings, hashes=hashes, quality=quality
            )
            raw = here.read_bytes()
        self._upload(name, raw)
        return hashlib.sha256(raw).hexdigest()

    def _refuse_links(self, name: str) -> None:
        """See that the folders of a name are folders in this one, and no links out of it."""
        place = self._path
        for part in name.split("/")[:-1]:
            place /= part
            if place.is_symlink():
                raise SaveError(
                    f"cannot be written: {place} is a link, which may lead anywhere",
                    file=str(self._path / name),
                )

    def there(self, names: Iterable[str]) -> list[str]:
        """Return those of the names at which something is: a file, a link, a folder."""
        if self.path is not None:
            return [name for name in names if os.path.lexists(self._path / name)]
        try:
            paths = self._remote.find(self._root)
        except OSError:
            return []
        known = {str(place).removeprefix(self._root).lstrip("/") for place in paths}
        return [name for name in names if name in known]

    def is_link(self, name: str) -> bool:
        """Tell whether a name is a link."""
        return self.path is not None and (self._path / name).is_symlink()

    def lock(self) -> FileLock | None:
        """
        Keep other runs out of the folder, whatever manifests they have.

        Raises:
            SaveError: When another run is in it.
        """
        if self.path is None:
            return None
        return take_lock(self._path / LOCK, self._path)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a regular file; None where there is none."""
        try:
            if self.path is not None:
                return read_regular(self._path / name, _FILE_BYTES_AT_MOST)
            raw = self._remote.cat_file(f"{self._root}/{name}")
            return raw if isinstance(raw, bytes) else None
        except (OSError, ValueError):
            return None

    def digest(self, name: str) -> str | None:
        """Return SHA-256 of a file; None where there is none."""
        raw = self.read(name)
        return None if raw is None else hashlib.sha256(raw).hexdigest()

    def remove_stale(self) -> int:
        """Remove what interrupted writes of pictures left behind; nobody else may be writing."""
        if self.path is None or not self._path.is_dir():
            return 0
        count = 0
        for file in self._path.rglob(".*.tmp"):
            if _STALE.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)
                count += 1
        return count

    def check(self) -> None:
        """
        Make the folder, and see that it can be written to.

        Raises:
            SaveError: When it cannot.
        """
        try:
            if self.path is not None:
                self._path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self._path) as file:
                    file.write(b"\0" * 4096)
            else:
                self._remote.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, NotImplementedError) as error:  # ValueError: a zero byte in the name
            raise SaveError(
                f"cannot write to it: {getattr(error, 'strerror', None) or error}",
                file=self.folder,
                remedy=Remedy(
                    "choose another place with the plan's output.folder",
                    "choose another place with the plan's output.folder, or with --out",
                ),
            ) from error

    def _upload(self, name: str, raw: bytes) -> None:
        place = f"{self._root}/{name}"
        try:
            self._remote.makedirs(place.rpartition("/")[0], exist_ok=True)
            # Object stores show an object when it is whole; on others a move makes it so.
            self._remote.pipe_file(place + _PART, raw)
            self._remote.mv(place + _PART, place)
        except (OSError, NotImplementedError) as error:
            raise SaveError(f"cannot be written: {error}", file=str(self.where(name))) from error
