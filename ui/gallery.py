"""The pictures on disk: written whole, with their settings inside, and found again by ids that are not paths."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from lora_mixer import __version__
from lora_mixer.atomic import write_files
from lora_mixer.errors import PictureError, PictureMetadataError
from lora_mixer.picture_metadata import PictureSettings, read_picture, save_picture
from lora_mixer.pictures import SAMPLERS

from . import checks
from .thumbs import data_uri, file_uri

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from lora_mixer import Picture

    from .app_state import AppState

PAGE = 24
THUMB = 320
TRASH, TRASHED = "trash", 500
"""Where deleted pictures go, and how many of them are kept."""
_NAME = re.compile(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{6}(?:-sheet)?")


def new_id(*, sheet: bool = False) -> str:
    """Make an id that sorts by time."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{stamp}-{int(now * 1000) % 1000:03}-{secrets.token_hex(3)}{'-sheet' if sheet else ''}"


def keep(app: AppState, picture: Picture) -> str:
    """
    Write a finished picture with its settings inside.

    Args:
        app: Where to.
        picture: The picture.

    Returns:
        Its id. The file is there, whole, when this returns.
    """
    settings = PictureSettings.of_request(picture.request, model=app.models.facts.title, version=__version__)
    picture_id, hashes = new_id(), app.hashes(picture.request.adapters)
    save_picture(picture.image, app.pictures / f"{picture_id}.png", settings, hashes=hashes)
    return picture_id


def keep_sheet(app: AppState, sheet: Image) -> str:
    """Write a labelled grid; its cells have the settings."""
    sheet_id = new_id(sheet=True)
    write_files({app.pictures / f"{sheet_id}.png": lambda stream: sheet.save(stream, format="png")})
    return sheet_id


def path_of(app: AppState, value: Any) -> Path:
    """
    Find a picture by the id that the page gave.

    Raises:
        PictureError: When there is none.
    """
    name = checks.opaque(value, "picture")
    path = app.pictures / f"{name}.png"
    if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
        raise PictureError("there is no such picture any more", file=name)
    return path


def url_of(path: Path) -> str:
    """Return the address under which the page finds a picture; the guard knows where it lies, the address does not."""
    return f"pictures/{path.name}"


def card(app: AppState, name: str, image: Image | None = None) -> dict[str, Any]:
    """Return what the page shows of a picture."""
    path = app.pictures / f"{name}.png"
    thumb = data_uri(image, THUMB) if image is not None else file_uri(path, THUMB)
    return {"id": name, "url": url_of(path), "thumb": thumb}


def usual_name(sampler: str | None) -> str | None:
    """Return what people call a sampler; a class of diffusers that has no such name loses its ending."""
    named = next((each.name for each in SAMPLERS if each.scheduler == sampler and not each.config), None)
    return named or (None if sampler is None else sampler.removesuffix("Scheduler"))


def about(settings: PictureSettings) -> dict[str, Any]:
    """Say in words how a picture was made."""
    facts = {
        "Seed": settings.seed,
        "Steps": settings.steps,
        "Guidance": None if settings.guidance_scale is None else f"{settings.guidance_scale:g}",
        "Size": f"{settings.width}×{settings.height}" if settings.width else None,
        "Model": settings.model,
        "Sampler": usual_name(settings.sampler),
    }
    mix = settings.mix
    adapters = (
        mix.to_text()
        if mix is not None
        else ", ".join(f"{adapter.name}:{adapter.weight:g}" for adapter in settings.adapters)
    )
    return {
        "prompt": settings.prompt,
        "negative": settings.negative_prompt,
        "mix": adapters,
        "facts": [[key, str(value)] for key, value in facts.items() if value is not None],
    }


def details(app: AppState, value: Any) -> dict[str, Any]:
    """
    Return a picture and how it was made.

    Args:
        app: Where it is.
        value: Its id.

    Raises:
        PictureError: When there is none.
    """
    path = path_of(app, value)
    facts = {"id": path.stem, "url": url_of(path), "sheet": path.stem.endswith("-sheet")}
    try:
        return {**facts, **about(read_picture(path))}
    except PictureMetadataError:
        return {**facts, "prompt": "", "mix": "", "facts": []}


def listing(app: AppState, page: Any = 0) -> dict[str, Any]:
    """
    List a page of pictures, the newest first.

    Args:
        app: Where they are.
        page: From 0.
    """
    names = sorted((p.stem for p in app.pictures.glob("*.png") if _NAME.fullmatch(p.stem)), reverse=True)
    pages = max(1, -(-len(names) // PAGE))
    number = min(checks.whole(page, "page", 0, 1_000_000), pages - 1)
    cards = [card(app, name) for name in names[number * PAGE : (number + 1) * PAGE]]
    return {"pictures": cards, "total": len(names), "page": number, "pages": pages}


def remove(app: AppState, value: Any) -> str:
    """
    Put a picture into the trash, from which it can be had back; the oldest beyond ``TRASHED`` go for good.

    Returns:
        Its id.

    Raises:
        PictureError: When there is none.
    """
    path = path_of(app, value)
    trash = app.out / TRASH
    trash.mkdir(exist_ok=True)
    path.replace(trash / path.name)
    old = sorted(trash.glob("*.png"), key=lambda each: each.stat().st_ctime_ns)
    for each in old[: max(0, len(old) - TRASHED)]:
        each.unlink(missing_ok=True)
    return path.stem


def restore(app: AppState, value: Any) -> str:
    """
    Take a picture out of the trash again.

    Returns:
        Its id.

    Raises:
        PictureError: When it is not there any more.
    """
    name = checks.opaque(value, "picture")
    path = app.out / TRASH / f"{name}.png"
    if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
        raise PictureError("This picture is not in the trash any more.")
    path.replace(app.pictures / path.name)
    return name
