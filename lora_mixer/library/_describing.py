"""A file's row in the index: what its header and the files beside it say; a file that cannot be read is one with a reason."""

from __future__ import annotations

import hashlib
import heapq
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError
from lora_mixer.inspection import read_adapter
from lora_mixer.recall.values import as_float, as_hash, as_table, as_text, clean_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.library._walking import Found

_HEAD_AT_MOST = 4 << 20
_SIDECAR_AT_MOST = 4 << 20
_TAGS, _TAGS_TEXT_AT_MOST = 30, 4_000_000
_TEXT_AT_MOST = 20_000
_WORD_AT_MOST = 500


def describe(found: Found) -> dict[str, Any]:
    """
    Give the row of a file.

    Args:
        found: The file.

    Returns:
        Values by column, for the part of the index that a scan fills.
    """
    path = Path(found.path)
    row: dict[str, Any] = {
        "path": found.path,
        "folder": found.folder,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "beside": found.beside,
        "preview": found.preview,
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
        "declared": None,
        "content": "",
        "problem": "",
    }
    try:
        row["content"] = content_key(path, found.size)
        row |= _of_info(read_adapter(path), path)
    except (LoraMixerError, OSError) as error:
        row["problem"] = clean_text(error)[:_TEXT_AT_MOST]
    except Exception as error:  # noqa: BLE001  (one odd file must not keep the others away)
        row["problem"] = f"cannot be read ({type(error).__name__}: {clean_text(error)[:500]})"
    row["rank"] = max(row["ranks"], default=0)
    row["haystack"] = haystack(row["name"], row["title"], row["words"], row["tags"], path.name, found.folder)
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}


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
    """Give the text that searches look in."""
    texts = (" ".join(part) if isinstance(part, list | tuple) else part for part in parts)
    return "\n".join(texts).casefold()


def _of_info(info: AdapterInfo, path: Path) -> dict[str, Any]:
    about = getattr(info, "about", None)
    said = _of_about(about) if about is not None else _of_json(path)
    if info.trigger_words:
        said.pop("words", None)  # the header's own count more
    return {
        "name": clean_text(info.name),
        "base": info.base,
        "format": info.format,
        "algorithms": list(info.algorithms),
        "ranks": list(info.ranks),
        "title": clean_text(
            info.metadata.get("modelspec.title") or info.metadata.get("ss_output_name") or ""
        )[:500],
        "words": [clean_text(word)[:_WORD_AT_MOST] for word in info.trigger_words],
        "tags": _tags(info.metadata),
        "declared": as_hash(info.metadata.get("sshs_model_hash")),
        **{key: value for key, value in said.items() if value},
    }


def _of_about(about: Any) -> dict[str, Any]:
    return {
        "title": about.title[:500],
        "notes": about.notes[:_TEXT_AT_MOST],
        "weight": about.preferred_weight,
        "negative_text": about.negative_text[:_TEXT_AT_MOST],
    }


def _of_json(path: Path) -> dict[str, Any]:
    """Read AUTOMATIC1111's user metadata beside a file."""
    beside = path.with_suffix(".json")
    try:
        if beside.is_symlink() or beside.stat().st_size > _SIDECAR_AT_MOST:
            return {}
        table = as_table(json.loads(beside.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}
    words = (as_text(table.get("activation text")) or "").split(",")
    return {
        "words": [word.strip()[:_WORD_AT_MOST] for word in words if word.strip()][:100],
        "notes": (as_text(table.get("notes")) or "")[:_TEXT_AT_MOST],
        "weight": as_float(table.get("preferred weight")),
        "negative_text": (as_text(table.get("negative text")) or "")[:_TEXT_AT_MOST],
    }


def _tags(metadata: Mapping[str, str]) -> list[str]:
    text = metadata.get("ss_tag_frequency", "")
    if not text or len(text) > _TAGS_TEXT_AT_MOST:
        return []
    try:
        folders = as_table(json.loads(text))
    except (ValueError, RecursionError):
        return []
    counts: dict[str, int] = {}
    for table in map(as_table, folders.values()):
        for tag, count in table.items():
            if type(count) is int and count > 0:
                counts[tag] = counts.get(tag, 0) + count
    best = heapq.nsmallest(_TAGS, counts, key=lambda tag: (-counts[tag], tag))
    return [name for tag in best if (name := clean_text(tag).strip()[:100])]
