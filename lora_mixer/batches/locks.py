"""One run at a time: who writes a folder or a manifest holds its lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lora_mixer.errors import SaveError

if TYPE_CHECKING:
    from pathlib import Path


def take_lock(lock: Path, place: Path) -> FileLock:
    """
    Take a lock file, or say who is in the way.

    Args:
        lock: The file.
        place: What it stands for: a folder or a file.

    Raises:
        SaveError: When another run has it, or the disk refuses.
    """
    held = FileLock(str(lock))
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise SaveError(
            "is in use by another run; wait for it, or give this plan another folder", file=str(place)
        ) from error
    except OSError as error:
        raise SaveError(f"cannot write to it: {error.strerror or error}", file=str(place)) from error
    return held
