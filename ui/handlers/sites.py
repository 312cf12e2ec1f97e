"""The handlers that ask a model site for adapters that a picture names and that are not here: by their hashes, when a person says so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lora_mixer import PictureAdapter
from lora_mixer.errors import PictureError
from lora_mixer.library import safe_name
from lora_mixer.sites import ModelSite

from .. import checks
from .library import Added, told_of

if TYPE_CHECKING:
    from lora_mixer.picture_metadata import AdapterMatches
    from lora_mixer.sites import SiteFile

    from ..app_state import AppState

MAX_ASKED = 32


def missing(matches: AdapterMatches) -> list[dict[str, Any]]:
    """Return the adapters of a picture that are not here and have hashes to ask by, as browsers keep them."""
    return [
        {"name": slot.adapter.name, "hashes": dict(slot.adapter.hashes)}
        for slot in matches.slots
        if slot.match is None and slot.adapter.hashes
    ]


def asked_host() -> str:
    """Return the name of the site that would be asked."""
    return urlsplit(ModelSite().endpoint).netloc


def ask(given: Any) -> dict[str, Any]:
    """
    Ask the site; nothing but the hashes is sent.

    Args:
        given: ``adapters`` as :func:`missing` gives them.

    Returns:
        ``found``: what the site knows, each with the picture's ``name`` for it.

    Raises:
        LoraMixerError: When the site does not answer.
    """
    named = checks.table(given, "adapters").get("adapters")
    if not isinstance(named, list) or len(named) > MAX_ASKED:
        raise PictureError(f"At most {MAX_ASKED} adapters are asked for at a time.")
    adapters = [_adapter(each) for each in named]
    known = ModelSite().find(adapters)
    return {"found": [{"name": name, **_facts(file)} for name, file in known.items()]}


def get(app: AppState, given: Any) -> Added:
    """
    Fetch one file from the site into the library, under the name that the picture has for it; its hash is checked.

    Args:
        app: Where.
        given: ``name`` and ``digits``, as :func:`ask` gave them.

    Raises:
        LoraMixerError: When the site does not give it, or it is not what the hash says.
    """
    asked = checks.table(given, "adapter")
    name = checks.text(asked.get("name"), "Name", checks.MAX_NAME).strip()
    site = ModelSite()
    offered = site.by_hash(checks.text(asked.get("digits"), "Hash", 64))
    if offered is None:
        raise PictureError("The site does not have it any more.")
    if offered.size > app.options.max_upload:
        raise PictureError("is larger than what is taken here; get it from its page.", file=offered.name)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=app.uploads) as folder:
        file = site.download(offered, Path(folder))
        wanted = safe_name(name)
        with app.new_name(wanted) as free:
            entry = app.library.add(file, free, folder=app.uploads, limit=app.options.max_upload)
    return Added(told_of(app, entry, wanted, None), (entry.id,))


def _adapter(given: Any) -> PictureAdapter:
    each = checks.table(given, "adapter")
    hashes = checks.table(each.get("hashes"), "hashes")
    return PictureAdapter(
        checks.text(each.get("name"), "Name", checks.MAX_NAME),
        hashes={
            checks.text(kind, "Hash", 40): checks.text(digits, "Hash", 64)
            for kind, digits in list(hashes.items())[:8]
        },
    )


def _facts(file: SiteFile) -> dict[str, Any]:
    about = " · ".join(part for part in (file.title, file.version, file.base) if part)
    return {
        "about": about,
        "bytes": file.size,
        "page": file.page,
        "words": list(file.words[:8]),
        "licence": file.licence,
        "digits": file.hashes.get("sha256", ""),
    }
