"""The handlers of the Library: search, details, uploads."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lora_mixer.errors import LoraMixerError, PictureError
from lora_mixer.library import layer_norms, safe_name

from .. import checks
from ..messages import FieldError, words_of
from ..mix_rows import MAX_WEIGHT, facts_line, trigger_list
from ..thumbs import thumbnail_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.library import Entry

    from ..app_state import AppState

PAGE = 24
SORTS = {
    "Name": ("name", False),
    "Newest": ("date", True),
    "Largest": ("size", True),
    "Rank": ("rank", True),
    "Most used": ("uses", True),
}
ANY_BASE = "Any base"
MAX_UPLOADS, MAX_ALIKE = 50, 20
PEFT_NAME = "PEFT adapter"
HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#]+/[^/?#]+)"
    r"(?:/(?:blob|resolve|raw)/[^/?#]+/(?P<file>[^?#]+)|/tree/[^?#]*)?/?(?:[?#].*)?"
)
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model"
_SHOWN_METADATA, _LAYERS = 60, 3000
_LONGEST_METADATA = 160


def search(app: AppState, text: Any, base: Any, sort: Any, page: Any = 0, status: str = "") -> dict[str, Any]:
    """
    Return a page of cards.

    Raises:
        PictureError: When an argument makes no sense.
    """
    words = checks.text(text, "search", 200).strip()
    wanted = None if base in (None, "", ANY_BASE) else checks.text(base, "base", 80)
    key, descending = SORTS[checks.choice(sort or "Name", "sort", tuple(SORTS))]
    number = checks.whole(page, "page", 0, 100_000)
    found = app.library.search(
        words, base=wanted, sort=key, descending=descending, page=number, page_size=PAGE
    )
    return {
        "entries": [_card(app, entry) for entry in found.entries],
        "total": found.total,
        "page": found.page,
        "pages": found.pages,
        "searched": bool(words or wanted),
        "status": app.scanning or status,
    }


def _card(app: AppState, entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "title": app.name_of(entry),
        "called": "" if entry.title == entry.name else entry.title[:200],
        "about": facts_line(app, entry),
        "bytes": entry.bytes,
        "triggers": trigger_list(entry.trigger_words),
        "weight": entry.weight if entry.weight is not None and abs(entry.weight) <= MAX_WEIGHT else None,
        "problem": app.refusal(entry),
        "thumb": thumbnail_uri(app.library, entry, 256),
    }


def details(app: AppState, entry_id: Any) -> dict[str, Any]:
    """
    Say all that is known of an adapter; this reads its file.

    Raises:
        PictureError: When there is none.
    """
    entry = app.entry(checks.opaque(entry_id, "adapter"))
    found: dict[str, Any] = {"strengths": [], "layers": [], "hashes": [], "metadata": []}
    try:
        found["hashes"] = [[kind, digits] for kind, digits in app.library.hashes(entry.id).items()]
        metadata = app.library.info(entry.id).metadata
        found["metadata"] = [
            [str(k)[:80], _short(str(v))] for k, v in list(metadata.items())[:_SHOWN_METADATA]
        ]
        known = layer_norms(app.library.source(entry.id))
        found["strengths"] = [
            [block.replace("text_encoder", "text"), size] for block, size in known.blocks.items()
        ]
        found["layers"] = [[layer[:200], round(size, 4)] for layer, size in known.layers.items()][:_LAYERS]
        if known.unknown:
            found["strengthNote"] = f"Depends on the base: {', '.join(known.unknown)}."
    except (LoraMixerError, OSError) as error:
        found["strengthNote"] = (
            words_of(error) if isinstance(error, LoraMixerError) else "The file cannot be read."
        )
    facts = {
        "Title": entry.title,
        "Base": app.called(entry.base),
        "Algorithm": ", ".join(entry.algorithms),
        "Rank": ", ".join(map(str, entry.ranks)),
        "Size": f"{entry.bytes / 1e6:.2f} MB",
        "Folder": f"{entry.root.name}/{entry.folder}".rstrip("/"),
    }
    return {
        **_card(app, entry),
        **found,
        "thumb": thumbnail_uri(app.library, entry, 384),
        "facts": [[key, text] for key, text in facts.items() if text],
        "tags": list(entry.tags[:40]),
        "weight": entry.weight,
        "notes": entry.notes,
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_METADATA else f"{text[:_LONGEST_METADATA]} …"


def keep(app: AppState, entry_id: Any, weight: Any, notes: Any) -> None:
    """
    Keep a person's own default weight and notes for an adapter.

    Raises:
        PictureError: When they make no sense.
    """
    wanted = checks.opaque(entry_id, "adapter")
    number = None if weight in (None, "") else checks.number(weight, "weight", -100, 100)
    app.library.set_default(wanted, weight=number, notes=checks.text(notes, "notes", 4000))


def upload(app: AppState, files: Any, cache: str, name: Any = "") -> tuple[str, str]:
    """
    Take uploaded adapters into the library, under names that nothing had before.

    Args:
        app: Where.
        files: Paths of what the browser uploaded: safetensors files, or the two files of a PEFT folder.
        cache: The folder that uploads lie in; nothing outside of it is read.
        name: What to call a single one; its file's name where empty.

    Returns:
        What was added, with what is to be said of it, and what was refused and why.
    """
    given: Sequence[Any] = files if isinstance(files, list) else [files] if files else []
    paths = [Path(str(each)) for each in given[:MAX_UPLOADS]]
    configs = [path for path in paths if path.suffix.lower() == ".json"]
    weights = [path for path in paths if path not in configs]
    added, refused = [], []
    config = configs[0] if len(configs) == len(weights) == 1 and configs[0].name == PEFT_CONFIG else None
    if configs and config is None:
        refused.append(
            f"{configs[0].name}: a PEFT folder is added by dropping its two files, adapter_model.safetensors and "
            f"{PEFT_CONFIG}, and nothing else with them"
        )
        weights = [
            path for path in weights if path.stem != PEFT_WEIGHTS
        ]  # half of it would be another adapter
    called = checks.text(name, "Name", checks.MAX_NAME, "upload-name").strip() if len(weights) == 1 else ""
    for path in weights:
        try:
            file = _uploaded(path, cache)
            wanted = safe_name(called or path.name)
            if not called and wanted.lower() == PEFT_WEIGHTS:
                wanted = PEFT_NAME
            same = _same_file(app, file, wanted)
            if same is not None and same.name.lower() == wanted.lower():
                refused.append(
                    f"{path.name}: it is here already, as {app.name_of(same)}; it is not added twice"
                )
                continue
            entry = app.library.add(
                file,
                app.free_name(wanted),
                folder=app.uploads,
                limit=app.options.max_upload,
                config=None if config is None else _uploaded(config, cache),
            )
            added.append(_told(app, entry, wanted, same))
        except LoraMixerError as error:
            refused.append(words_of(error))
        except (OSError, ValueError) as error:
            refused.append(f"{path.name}: it cannot be read ({type(error).__name__})")
    return ", ".join(added), "\n".join(refused)


def _told(app: AppState, entry: Entry, wanted: str, same: Entry | None) -> str:
    remarks = []
    if entry.name != wanted:
        remarks.append(f"there is another {wanted} already")
    if same is not None:
        remarks.append(f"the same file as {app.name_of(same)}")
    reason = app.refusal(entry)
    if reason:
        remarks.append(f"it cannot be used here: {reason}")
    return f"{app.name_of(entry)} ({'; '.join(remarks)})" if remarks else app.name_of(entry)


def _same_file(app: AppState, file: Path, wanted: str) -> Entry | None:
    """Find an entry with the same bytes, one of the wanted name first; only files of the same size are read."""
    size = file.stat().st_size
    alike = [entry for entry in app.every_entry() if entry.bytes == size and not entry.offline]
    for entry in sorted(alike, key=lambda entry: entry.name.lower() != wanted.lower())[:MAX_ALIKE]:
        try:
            if filecmp.cmp(file, app.library.source(entry.id), shallow=False):
                return entry
        except (LoraMixerError, OSError):
            continue
    return None


def _uploaded(path: Path, cache: str) -> Path:
    real = path.resolve(strict=True)
    if not real.is_relative_to(Path(cache).resolve()) or path.is_symlink() or not real.is_file():
        raise PictureError(f"{path.name}: it is not an upload")
    return real


def from_hub(app: AppState, repo: Any, weight_name: Any) -> str:
    """
    Take an adapter from the Hub into the library.

    Args:
        app: Where.
        repo: ``owner/name``, or the address of its page or of a file there, as copied from the browser.
        weight_name: Which file, where it has several.

    Returns:
        Its name, with what is to be said of it.

    Raises:
        LoraMixerError: When there is none, or it cannot be read.
    """
    given = checks.text(repo, "Hub repository", 400, "hub-repo").strip()
    found = HUB_PAGE.fullmatch(given)
    repo_id, file = (found["repo"], found["file"] or "") if found else (given, "")
    if repo_id.count("/") != 1 or not all(part and not part.startswith(".") for part in repo_id.split("/")):
        raise FieldError(
            "A Hub repository is written as owner/name, such as ostris/ikea-instructions-lora-sdxl, or as its page's address.",
            "hub-repo",
        )
    wanted = checks.text(weight_name, "File in it", 200, "hub-file").strip() or unquote(file)
    before = app.names()
    entry = app.library.add_from_hub(repo_id, weight_name=wanted or None, folder=app.uploads)
    name = app.name_of(entry)
    taken = entry.name in before and name != entry.name
    return (
        _told(app, entry, entry.name, None)
        if not taken
        else f"{name} (there is another {entry.name} already)"
    )
