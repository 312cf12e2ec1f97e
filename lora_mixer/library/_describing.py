"""A file's row in the index: what its header and the files beside it say; a file that cannot be read is one with a reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import FormatError, LoraMixerError, SourceError
from lora_mixer.inspection import read_adapter
from lora_mixer.parsing.values import as_hash, clean_text

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.library._walking import WalkedFile

_HEAD_AT_MOST = 4 << 20
_TAGS = 30
_TEXT_AT_MOST = 20_000
_WORD_AT_MOST = 500
_LOOK_AGAIN = "look again"
"""Stands for what lies beside a file where the next scan is to read the file, whether it has changed by then or not."""


@dataclass(frozen=True)
class Described:
    """
    A file as a scan has found it.

    Attributes:
        row: Values by column, for the part of the index that a scan fills.
        failure: Why it could not be read, where that lies in no content of the file: a disk, a lack of memory, a fault of the
            reader. The row says so, and that the next scan is to look again.
    """

    row: dict[str, Any]
    failure: Exception | None = None


def describe_file(file: WalkedFile) -> Described:
    """
    Describe a file.

    Args:
        file: The file.

    Returns:
        Its row; one odd file does not keep the others away.
    """
    path = Path(file.path)
    row: dict[str, Any] = {
        "path": file.path,
        "folder": file.folder,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "beside": file.beside,
        "preview": file.preview,
        "name": clean_text(path.stem),
        "base": "unknown",
        "format": "",
        "algorithms": [],
        "ranks": [],
        "title": "",
        "words": [],
        "tags": [],
        "notes": "",
        "weight": None,
        "negative_text": "",
        "explicit": False,
        "declared": None,
        "content": "",
        "problem": "",
    }
    failure: Exception | None = None
    try:
        row["content"] = content_key(path, file.size)
        row |= _of_info(read_adapter(path))
    except FormatError as error:
        row["problem"] = clean_text(error.text_on(None))[:_TEXT_AT_MOST]
    except LoraMixerError as error:
        failure, row["problem"] = error, clean_text(error.text_on(None))[:_TEXT_AT_MOST]
    except OSError as error:
        failure = SourceError(f"cannot be read ({error.strerror or error})", file=str(path))
        row["problem"] = clean_text(failure)[:_TEXT_AT_MOST]
    except Exception as error:  # noqa: BLE001 -- told in the row, and raised by who wants this very file
        failure = error
        row["problem"] = f"cannot be read ({type(error).__name__}: {clean_text(error)[:500]})"
    if failure is not None:
        row["beside"] = _LOOK_AGAIN
    row["rank"] = max(row["ranks"], default=0)
    row["haystack"] = haystack(
        row["name"], row["title"], row["words"], row["tags"], path.name, file.folder, row["notes"]
    )
    texts = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
    return Described(texts, failure)


def content_key(path: Path, size: int) -> str:
    """
    Tell a file by what it holds, cheaply: its header and its size.

    Trainers write names, times and settings into headers, so that copies are equal and others are not.
    """
    with path.open("rb") as stream:
        first = stream.read(8)
        length = min(int.from_bytes(first, "little"), _HEAD_AT_MOST)
        digest = hashlib.sha256(first + stream.read(length))
    digest.update(str(size).encode())
    return digest.hexdigest()[:32]


def haystack(*parts: Any) -> str:
    """Return the text that searches look in."""
    texts = (" ".join(part) if isinstance(part, list | tuple) else part for part in parts)
    return "\n".join(texts).casefold()


def _of_info(info: AdapterInfo) -> dict[str, Any]:
    about = info.about
    return {
        "name": clean_text(info.name),
        "base": info.base,
        "format": info.format,
        "algorithms": list(info.algorithms),
        "ranks": list(info.ranks),
        "title": clean_text(about.title)[:_WORD_AT_MOST],
        "words": [clean_text(word)[:_WORD_AT_MOST] for word in info.trigger_words],
        "tags": [clean_text(tag)[:_WORD_AT_MOST] for tag in islice(about.training_tags, _TAGS)],
        "notes": clean_text(about.notes)[:_TEXT_AT_MOST],
        "weight": about.preferred_weight,
        "explicit": about.explicit,
        "negative_text": clean_text(about.negative_text)[:_TEXT_AT_MOST],
        "declared": as_hash(info.metadata.get("sshs_model_hash")),
    }
