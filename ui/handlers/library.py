"""The handlers of the Library: search, details, uploads."""

from __future__ import annotations

import filecmp
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lora_mixer.errors import LoraMixerError, PictureError
from lora_mixer.library import SORTS as ORDERS
from lora_mixer.library import layer_norms, safe_name

from .. import checks, gallery
from ..messages import FieldError, words_of
from ..mix_rows import MAX_ROWS, MAX_WEIGHT, facts_line, trigger_list
from ..thumbs import thumbnail_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.library import Entry

    from ..app_state import AppState

PAGE = 24
SORTS = {order.title: order.name for order in ORDERS.values()}
"""Orders by what people call them."""
DESCENDING = {order.greatest_first: order.title for order in ORDERS.values() if order.greatest_first}
"""Orders with the greatest first, by the names that programs may use for them."""
ANY_BASE = "Any base"
MAX_UPLOADS, MAX_ALIKE = 50, 20
PEFT_NAME = "PEFT adapter"
HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#]+/[^/?#]+)"
    r"(?:/(?:blob|resolve|raw)/[^/?#]+/(?P<file>[^?#]+)|/tree/[^?#]*)?/?(?:[?#].*)?"
)
NO_NAMES = ("adapter_model", "pytorch_lora_weights", "lora", "last", "model", "output")
"""What trainers call every file: whoever adds one is asked for a name."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model"
_SHOWN_METADATA, _LAYERS = 60, 3000
_LONGEST_METADATA = 160


def search(app: AppState, asked: Any, status: str = "") -> dict[str, Any]:
    """
    Return a page of cards.

    Args:
        app: Where.
        asked: ``text``, ``base``, ``root`` (a number), ``folder``, ``label``, ``favourites``, ``fits``, ``sort``, ``descending``,
            ``first`` (ids) and ``page``; what is not said is not asked for.
        status: What is said above the cards, where nothing else is.

    Raises:
        PictureError: When an argument makes no sense.
    """
    given = {} if asked is None else checks.table(asked, "search")
    words = checks.text(given.get("text"), "Search", 200).strip()
    sort = checks.choice(given.get("sort") or "Name", "Sort", tuple(SORTS))
    listed: Any = given.get("first")
    first = listed if isinstance(listed, list) else []
    options: dict[str, Any] = {
        "base": _said(given, "base", ANY_BASE),
        "label": _said(given, "label"),
        "favourite": True if given.get("favourites") is True else None,
        **_place(app, given),
    }
    fits = app.base if given.get("fits") is True else None
    hits = app.library.search(
        words,
        **options,
        fits=fits,
        sort=SORTS[sort],
        descending=given.get("descending") is True,
        first=[checks.opaque(each, "adapter") for each in first[:MAX_ROWS]],
        page=checks.whole(given.get("page") or 0, "page", 0, 100_000),
        page_size=PAGE,
    )
    return {
        "entries": [_card(app, entry) for entry in hits.entries],
        "total": hits.total,
        "page": hits.page,
        "pages": hits.pages,
        "searched": bool(words or any(each is not None for each in options.values()) or fits),
        "read_as": hits.read_as,
        "left_out": _left_out(app, words, options, hits.total) if fits else "",
        "status": app.scanning or status,
        "bases": [[app.called(base), base] for base in app.library.facets()["base"]],
        "labels": list(app.library.facets()["label"]),
        "tree": _tree(app),
    }


def _said(given: dict[str, Any], name: str, nothing: str = "") -> str | None:
    value = given.get(name)
    return None if value in (None, "", nothing) else checks.text(value, name, 200)


def _place(app: AppState, given: dict[str, Any]) -> dict[str, Any]:
    """Read which folder is asked for: the number of one of the library's, and one below it."""
    if given.get("root") in (None, ""):
        return {"root": None, "folder": None}
    roots = app.library.folders
    number = checks.whole(given["root"], "folder", 0, len(roots) - 1)
    return {"root": roots[number], "folder": checks.text(given.get("folder"), "folder", 2000) or None}


def _left_out(app: AppState, words: str, options: dict[str, Any], shown: int) -> str:
    """Say how many do not fit, and why, by their bases."""
    total = app.library.search(words, **options, page_size=1).total
    if total == shown:
        return ""
    reasons = []
    told = 0
    for base in () if options["base"] else app.library.facets()["base"]:
        if not app.suits(base):
            count = app.library.search(words, **{**options, "base": base}, page_size=1).total
            told += count
            reasons += [f"{count} made for {app.called(base)}"] if count else []
    if total - shown - told > 0:
        reasons.append(f"{total - shown - told} away or broken")
    return f"Not shown: {', '.join(reasons)}."


def _tree(app: AppState) -> list[dict[str, Any]]:
    return [
        {"root": number, "name": root.name, "folders": [[folder, count] for folder, count in folders.items()]}
        for number, (root, folders) in enumerate(app.library.tree().items())
    ]


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
        "notes": entry.notes[:200],
        "folder": entry.folder,
        "favourite": entry.favourite,
        "labels": list(entry.labels),
        "explicit": entry.explicit,
    }


def details(app: AppState, entry_id: Any) -> dict[str, Any]:
    """
    Say all that is known of an adapter; this reads its file.

    Raises:
        PictureError: When there is none.
    """
    entry = app.entry(checks.opaque(entry_id, "adapter"))
    shown: dict[str, Any] = {"strengths": [], "layers": [], "hashes": [], "metadata": []}
    try:
        shown["hashes"] = [[kind, digits] for kind, digits in app.library.hashes(entry.id).items()]
        metadata = app.library.info(entry.id).metadata
        shown["metadata"] = [
            [str(k)[:80], _short(str(v))] for k, v in list(metadata.items())[:_SHOWN_METADATA]
        ]
        known = layer_norms(app.library.source(entry.id))
        shown["strengths"] = [
            [block.replace("text_encoder", "text"), size] for block, size in known.blocks.items()
        ]
        shown["layers"] = [[layer[:200], round(size, 4)] for layer, size in known.layers.items()][:_LAYERS]
        if known.unknown:
            shown["strengthNote"] = f"Depends on the base: {', '.join(known.unknown)}."
    except (LoraMixerError, OSError) as error:
        shown["strengthNote"] = (
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
        **shown,
        "thumb": thumbnail_uri(app.library, entry, 384),
        "facts": [[key, text] for key, text in facts.items() if text],
        "tags": list(entry.tags[:40]),
        "weight": entry.weight,
        "notes": entry.notes,
        "changeable": app.changeable(entry),
        "own_preview": entry.preview is not None and not entry.preview.is_relative_to(entry.root),
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_METADATA else f"{text[:_LONGEST_METADATA]} …"


def keep(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Keep what a person says of an adapter: ``weight``, ``notes``, ``favourite``, ``labels``, ``explicit``; what is not said stays.

    Returns:
        Its card.

    Raises:
        LoraMixerError: When it makes no sense.
    """
    given = checks.table(asked, "adapter")
    said: dict[str, Any] = {}
    if "weight" in given:
        weight = given["weight"]
        said["weight"] = None if weight in (None, "") else checks.number(weight, "Weight", -100, 100)
    if "notes" in given:
        said["notes"] = checks.text(given["notes"], "Notes", 4000)
    if "labels" in given:
        said["labels"] = checks.text(given["labels"], "Labels", 2000).split(",")
    said |= {name: given[name] is True for name in ("favourite", "explicit") if name in given}
    return _card(app, app.library.set_default(checks.opaque(given.get("id"), "adapter"), **said))


def set_preview(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Make a picture of the gallery an adapter's preview; none takes the one that came with its file again.

    Raises:
        LoraMixerError: When one of the two is gone.
    """
    given = checks.table(asked, "preview")
    picture = given.get("picture")
    place = None if picture in (None, "") else gallery.path_of(app, picture)
    if given.get("name"):
        entry = app.entry_named(checks.text(given["name"], "adapter", 256))
        if entry is None:
            raise PictureError("This adapter is not in the library here.")
    else:
        entry = app.entry(checks.opaque(given.get("id"), "adapter"))
    return _card(app, app.library.set_preview(entry.id, place))


def _mine(app: AppState, entry_id: Any) -> Entry:
    entry = app.entry(checks.opaque(entry_id, "adapter"))
    if not app.changeable(entry):
        raise PictureError(
            f"{app.name_of(entry)} belongs to the demo: its file stays as it is.", adapter=app.name_of(entry)
        )
    return entry


def rename(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Give an adapter's file another name.

    Returns:
        Its card, and ``before``, its former name.

    Raises:
        LoraMixerError: When it cannot be called so.
    """
    given = checks.table(asked, "adapter")
    entry = _mine(app, given.get("id"))
    wanted = checks.text(given.get("name"), "Name", checks.MAX_NAME, "adapter-name").strip()
    if not wanted:
        raise FieldError("Name: it is empty", "adapter-name")
    before = app.name_of(entry)
    other = app.entry_named(safe_name(wanted))
    if (
        other is not None and other.id != entry.id
    ):  # by its name, in other letters, by its id, or by what it was called
        raise FieldError(
            f"Name: there is another {other.name} already"
            if other.name == safe_name(wanted)
            else f"Name: mixes mean {app.name_of(other)} by {safe_name(wanted)}",
            "adapter-name",
        )
    with app.given_name(safe_name(wanted)):
        return {**_card(app, app.library.rename(entry.id, wanted)), "before": before}


def move(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Put an adapter's file into another folder of the library.

    Returns:
        Its card, and ``before``, its former folder.

    Raises:
        LoraMixerError: When it cannot be there.
    """
    given = checks.table(asked, "adapter")
    entry = _mine(app, given.get("id"))
    folder = checks.text(given.get("folder"), "Folder", 500, "adapter-folder").strip()
    return {**_card(app, app.library.move(entry.id, folder)), "before": entry.folder}


def to_trash(app: AppState, entry_id: Any) -> dict[str, Any]:
    """
    Put an adapter's file into the trash of its folder.

    Returns:
        ``token``, by which :func:`from_trash` has it back, its ``title``, and ``heir``: the folder of another of its name, which mixes
        mean from now on; empty where there is none.

    Raises:
        LoraMixerError: When it cannot be moved.
    """
    entry = _mine(app, entry_id)
    title = app.name_of(entry)
    token = app.library.trash(entry.id)
    heir = app.entry_named(title)
    place = "" if heir is None else f"{heir.root.name}/{heir.folder}".rstrip("/")
    return {"title": title, "token": token, "heir": place}


def from_trash(app: AppState, token: Any) -> dict[str, Any]:
    """
    Have an adapter back from the trash.

    Raises:
        LoraMixerError: When it is not there any more.
    """
    return {"back": len(app.library.restore(checks.opaque(token, "adapter")))}


def duplicates(app: AppState) -> dict[str, Any]:
    """Return the groups of files that are the same to the byte; those that look alike are read for their hashes."""
    return {"groups": [[_card(app, entry) for entry in group] for group in app.library.duplicates()]}


def upload(app: AppState, files: Any, cache: str, name: Any = "") -> tuple[str, str]:
    """Take uploaded adapters as :func:`take_uploads` does; return what was added, and what was refused and why."""
    added = take_uploads(app, files, cache, name)
    return added.words, added.refused


@dataclass(frozen=True)
class Added:
    """
    What came into the library.

    Attributes:
        words: What was added, with what is to be said of it.
        ids: The ids of these.
        refused: What was refused and why.
        nameless: The id of one whose name says nothing.
    """

    words: str
    ids: tuple[str, ...] = ()
    refused: str = ""
    nameless: str = ""


def take_uploads(app: AppState, files: Any, cache: str, name: Any = "") -> Added:
    """
    Take uploaded adapters into the library, under names that nothing had before.

    Args:
        app: Where.
        files: Paths of what the browser uploaded: safetensors files, or the two files of a PEFT folder.
        cache: The folder that uploads lie in; nothing outside of it is read.
        name: What to call a single one; its file's name where empty.

    Returns:
        What was added, and what was not.
    """
    given: Sequence[Any] = files if isinstance(files, list) else [files] if files else []
    paths = [Path(str(each)) for each in given[:MAX_UPLOADS]]
    configs = [path for path in paths if path.suffix.lower() == ".json"]
    weights = [path for path in paths if path not in configs]
    added, ids, refused, nameless = [], [], [], ""
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
            with app.new_name(wanted) as free:
                entry = app.library.add(
                    file,
                    free,
                    folder=app.uploads,
                    limit=app.options.max_upload,
                    config=None if config is None else _uploaded(config, cache),
                )
            added.append(told_of(app, entry, wanted, same))
            ids.append(entry.id)
            if not called and (wanted == PEFT_NAME or wanted.lower() in NO_NAMES):
                nameless = entry.id
        except LoraMixerError as error:
            refused.append(words_of(error))
        except (OSError, ValueError) as error:
            refused.append(f"{path.name}: it cannot be read ({type(error).__name__})")
    return Added(", ".join(added), tuple(ids), "\n".join(refused), nameless)


def told_of(app: AppState, entry: Entry, wanted: str, same: Entry | None) -> str:
    """Return what is said of an entry that came in: its name, another one's, its double, and why it does not fit."""
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
        raise PictureError("it is not an upload", file=path.name)
    return real


def from_hub(app: AppState, repo: Any, weight_name: Any) -> Added:
    """
    Take an adapter from the Hub into the library.

    Args:
        app: Where.
        repo: ``owner/name``, or the address of its page or of a file there, as copied from the browser.
        weight_name: Which file, where it has several.

    Returns:
        What was added.

    Raises:
        LoraMixerError: When there is none, or it cannot be read.
    """
    given = checks.text(repo, "Hub repository", 400, "hub-repo").strip()
    page = HUB_PAGE.fullmatch(given)
    repo_id, file = (page["repo"], page["file"] or "") if page else (given, "")
    if repo_id.count("/") != 1 or not all(part and not part.startswith(".") for part in repo_id.split("/")):
        raise FieldError(
            "A Hub repository is written as owner/name, such as ostris/ikea-instructions-lora-sdxl, or as its page's address.",
            "hub-repo",
        )
    wanted = checks.text(weight_name, "File in it", 200, "hub-file").strip() or unquote(file)
    there: list[str] = []

    with ExitStack() as names:

        def called(name: str) -> str:
            there.append(safe_name(name))
            return names.enter_context(app.new_name(name))

        entry = app.library.add_from_hub(repo_id, weight_name=wanted or None, folder=app.uploads, name=called)
    return Added(told_of(app, entry, there[-1], None), (entry.id,))
