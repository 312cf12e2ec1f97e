"""Small files, read as a whole: regular files only, within a limit, without waiting for whoever feeds a pipe."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from lora_mixer.errors import SourceNotFoundError

_PIECE = 1 << 20
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_regular(path: str | Path, most: int) -> bytes:
    """
    Read a file that is one: no FIFO, no device, no socket, and no more bytes than are allowed.

    Args:
        path: The file; a link to one is followed.
        most: The most bytes.

    Raises:
        OSError: When it cannot be read.
        ValueError: When it is not a regular file, or larger; the text says so.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     read_regular(file.name, 10)
        b''
    """
    with open_regular(path) as stream:
        # asked for the most at once, Python takes memory for all of it
        content = stream.read(min(most, os.fstat(stream.fileno()).st_size) + 1)
        while len(content) <= most and (more := stream.read(min(most + 1 - len(content), _PIECE))):
            content += more
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes, which is the most that is read")
    return content


def at_home(name: str | os.PathLike[str]) -> Path:
    """
    Return a path with ``~`` written out; where nobody has that name it stays as it is, as in a shell.

    Args:
        name: The path as it was typed.

    Returns:
        The path.

    Example:
        >>> at_home("~no-such-user/x").parts
        ('~no-such-user', 'x')
    """
    place = Path(name)
    try:
        return place.expanduser()
    except RuntimeError:
        return place


def place_of(name: str | os.PathLike[str]) -> Path:
    r"""
    Return the path that somebody names, ``~`` written out; whether something is there is for the caller to see.

    Raises:
        SourceNotFoundError: When nothing can have such a name, so that asking for it fails otherwise than for what is not there.

    Example:
        >>> place_of("a\0b")
        Traceback (most recent call last):
        lora_mixer.errors.SourceNotFoundError: a\x00b: no file can have this name
    """
    place = at_home(name)
    try:
        os.lstat(place)
    except ValueError:  # a zero byte, half a surrogate pair
        raise SourceNotFoundError("no file can have this name", file=os.fspath(name)) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SourceNotFoundError(
                f"no file has a name of {len(os.fspath(name))} letters", file=os.fspath(name)
            ) from None
    return place


def open_regular(path: str | Path) -> IO[bytes]:
    """
    Open a file for reading that is one, as :func:`read_regular` does.

    Raises:
        OSError: When it cannot be opened.
        ValueError: When it is not a regular file, or has a name that none has; the text says so.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file, open_regular(file.name) as stream:
        ...     stream.read()
        b''
    """
    # without O_NONBLOCK opening a FIFO would wait for a writer, before anything can be asked about it
    stream = os.fdopen(os.open(path, os.O_RDONLY | _WITHOUT_WAITING), "rb")
    try:
        refuse_irregular(os.fstat(stream.fileno()).st_mode)
    except BaseException:
        stream.close()
        raise
    return stream


def refuse_irregular(mode: int) -> None:
    """
    Check what a file is by its mode.

    Raises:
        ValueError: When it is not a regular file; the text says what it is.
    """
    kinds = {stat.S_ISFIFO: "a FIFO", stat.S_ISDIR: "a folder", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
             stat.S_ISSOCK: "a socket"}  # fmt: skip
    if not stat.S_ISREG(mode):
        what = next((name for is_one, name in kinds.items() if is_one(mode)), "something else")
        raise ValueError(f"is {what}; expected a regular file")
