"""The handlers of the Export page: the mix as one adapter file, or baked into a folder."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.writing import bake

from .. import checks
from ..mix_rows import read_rows

if TYPE_CHECKING:
    from ..app_state import AppState

FORMATS = ("diffusers", "kohya")
DTYPES = ("as they are", "float32", "float16", "bfloat16")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,80}")


def _place(app: AppState, name: Any, suffix: str) -> Path:
    wanted = checks.text(name, "name", 81).strip()
    if not _NAME.fullmatch(wanted) or wanted.endswith((".", " ")):
        raise PictureError(
            "name: use letters, digits, space, '-', '_' and '.', and begin with a letter or digit"
        )
    place = app.exports / f"{wanted.removesuffix('.safetensors')}{suffix}"
    if place.exists():
        raise PictureError(f"there is an export {place.name!r} already; choose another name")
    return place


def one_file(
    app: AppState, owner: str, mix_rows: Any, name: Any, form: Any, rank: Any, dtype: Any
) -> tuple[Path, str]:
    """
    Write the mix as one adapter file.

    Returns:
        Its path, and what was written, with the error of the rank.

    Raises:
        LoraMixerError: When it cannot be written so.
    """
    place = _place(app, name, ".safetensors")
    form = checks.choice(form, "format", FORMATS)
    number = None if rank in (None, "", 0) else checks.whole(rank, "rank", 1, 4096)
    kind = checks.choice(dtype or DTYPES[0], "type", DTYPES)
    mix = read_rows(mix_rows).mix(app)
    if not mix.names:
        raise PictureError("the mix is empty: there is nothing to export; switch an adapter on")
    app.exports.mkdir(parents=True, exist_ok=True)
    with app.queue.turn(owner):
        app.ready(mix.names)
        report = app.mixer.save_lora_weights(
            place, weights=mix, format=form, rank=number, dtype=None if kind == DTYPES[0] else kind
        )
    return place, str(report).replace(str(place), place.name)


def offered(place: Path, cache: str) -> str:
    """
    Put a copy where this one download is served from: the folder of exports itself is not.

    Args:
        place: The file.
        cache: The folder that uploads and downloads lie in.
    """
    folder = Path(cache) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return str(shutil.copyfile(place, folder / place.name))


def baked(app: AppState, owner: str, mix_rows: Any, name: Any) -> str:
    """
    Write the model with the mix in its weights, as a folder on the server.

    Returns:
        What was written.

    Raises:
        LoraMixerError: When it cannot be written so.
    """
    place = _place(app, name, "")
    mix = read_rows(mix_rows).mix(app)
    with app.queue.turn(owner):
        app.ready(mix.names)
        bake(app.mixer, place, mix, model=app.options.model)
    return f"exports/{place.name}: {app.options.model} with {mix.to_text() or 'no adapters'}"
