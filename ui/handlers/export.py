"""The handlers of the Export page: the mix as one adapter file, or baked into a folder."""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lora_mixer.errors import MixError, PictureError
from lora_mixer.merging import METHODS, MergeMethod, Setting
from lora_mixer.writing import FORMATS, bake

from .. import checks
from ..messages import FieldError
from ..mix_rows import read_rows

if TYPE_CHECKING:
    from lora_mixer.writing import SaveReport

    from ..app_state import AppState

SMALL_LOSS, LARGE_LOSS = 0.05, 0.25
DTYPES = ("as they are", "float32", "float16", "bfloat16")
_NOT_SAID = (None, "", 0, "0")
_LARGEST_RATIO = 1e9
KEPT_DOWNLOADS = 32
"""How many copies for downloads are kept; the exports themselves stay."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,80}")


def _place(app: AppState, name: Any, suffix: str, field: str) -> Path:
    wanted = checks.text(name, "Name", 81, field).strip()
    if not _NAME.fullmatch(wanted) or wanted.endswith((".", " ")):
        raise FieldError(
            "Name: use letters, digits, space, '-', '_' and '.', and begin with a letter or digit", field
        )
    place = app.exports / f"{wanted.removesuffix('.safetensors')}{suffix}"
    if place.exists():
        raise FieldError(f"Name: there is an export {place.name} already; choose another", field)
    return place


@dataclass(frozen=True)
class Exported:
    """
    What an export wrote.

    Attributes:
        files: The files to be had.
        report: What was written, in words.
        lost: The share of the worst layer's change that the rank left out.
        method: How the adapters came together.
    """

    files: tuple[Path, ...]
    report: str
    lost: float = 0.0
    method: str = "sum"

    @property
    def verdict(self) -> dict[str, Any]:
        """What the loss means, for the page to show in its colour."""
        if not self.lost:
            what = "the mix does" if METHODS[self.method].is_sum else f"{self.method} makes of the mix"
            return {"level": "good", "text": f"Exact: the file does what {what}."}
        text = f"At most {self.lost:.0%} of what a layer does is lost."
        if self.lost < SMALL_LOSS:
            return {"level": "good", "text": f"{text} That is hard to see."}
        return {
            "level": "fair" if self.lost < LARGE_LOSS else "bad",
            "text": f"{text} A higher rank keeps more.",
        }


def setting_field(method: str, setting: Setting) -> str:
    """Return the id of a setting's field on the page."""
    return f"export-{method}-{setting.name}"


def _method(fields: dict[str, Any]) -> MergeMethod:
    name = checks.choice(fields.get("export-method") or "sum", "Method", tuple(METHODS), "export-method")
    settings = {}
    for setting in METHODS[name].settings:
        field = setting_field(name, setting)
        given = fields.get(field)
        if given is None or given == "":
            continue
        try:
            settings[setting.name] = setting.read(
                checks.text(given, setting.name.capitalize(), 40, field) if isinstance(given, str) else given
            )
        except MixError as error:
            text = str(error)
            raise FieldError(text[:1].upper() + text[1:], field) from None
    return MergeMethod(name, **settings)


def _cut(fields: dict[str, Any], field: str, what: str, low: float, high: float) -> float | None:
    """Read how far to cut, which 0 or nothing does not say."""
    given = fields.get(field)
    if isinstance(given, dict | list) or given not in _NOT_SAID:
        return checks.number(given, what, low, high, field) or None
    return None


def one_file(app: AppState, owner: str, mix_rows: Any, given: Any) -> Exported:
    """
    Write the mix as one adapter file, or as PEFT's folder of two.

    Args:
        app: Where.
        owner: Whose turn of the device it takes.
        mix_rows: The mix, as the browser has it.
        given: The page's fields by their names: ``export-name``, ``export-format``, ``export-rank``, ``export-dtype``,
            ``export-energy``, ``export-sv-ratio``, ``export-conv-rank``, ``export-method``, and the settings of the method as ``setting_field`` names them.

    Returns:
        What was written, with what the rank costs.

    Raises:
        LoraMixerError: When it cannot be written so.
    """
    fields = checks.table(given, "the fields")
    form = checks.choice(fields.get("export-format"), "Format", tuple(FORMATS), "export-format")
    rank, dtype = fields.get("export-rank"), fields.get("export-dtype")
    suffix = "" if FORMATS[form].is_folder else ".safetensors"
    place = _place(app, fields.get("export-name"), suffix, "export-name")
    number = None if rank in _NOT_SAID else checks.whole(rank, "Rank", 1, 4096, "export-rank")
    energy = _cut(fields, "export-energy", "Energy", 0.0, 1.0)
    sv_ratio = _cut(fields, "export-sv-ratio", "SV ratio", 1.0, _LARGEST_RATIO)
    conv = fields.get("export-conv-rank")
    conv_rank = None if conv in _NOT_SAID else checks.whole(conv, "Conv rank", 1, 4096, "export-conv-rank")
    is_cut = not (number is None and energy is None and sv_ratio is None)
    if conv_rank is not None and not is_cut:
        raise FieldError(
            "Conv rank: say a rank, an energy or an SV ratio for all layers, too", "export-conv-rank"
        )
    kind = checks.choice(dtype or DTYPES[0], "Type", DTYPES, "export-dtype")
    method = _method(fields)
    if method.needs_rank and not is_cut:
        raise FieldError(
            f"Rank: {method.name} makes full matrices; say the rank to cut them to, an energy or an SV ratio",
            "export-rank",
        )
    mix = read_rows(mix_rows).mix(app)
    if not mix.names:
        raise PictureError("The mix is empty: there is nothing to export. Switch an adapter on.")
    app.exports.mkdir(parents=True, exist_ok=True)
    with app.queue.turn(owner):
        app.ready(mix.names)
        report = app.mixer.save_lora_weights(
            place,
            weights=mix,
            format=form,
            rank=number,
            conv_rank=conv_rank,
            energy=energy,
            sv_ratio=sv_ratio,
            method=method,
            dtype=None if kind == DTYPES[0] else kind,
        )
    return Exported(report.files, _words_of(report, place.name), report.worst_error, method.name)


def _words_of(report: SaveReport, name: str) -> str:
    """Say what was written; what its rank costs is the verdict's to say, in percent."""
    ranks = sorted({rank for rank in report.ranks.values() if rank})
    shown = (
        "no rank"
        if not ranks
        else f"rank {ranks[0]}"
        if len(ranks) == 1
        else f"ranks {ranks[0]} to {ranks[-1]}"
    )
    lines = [f"{name}: {report.format}, {len(report.ranks)} layers, {shown}"]
    if report.worst_error:
        lines.append(f"Most is lost in {max(report.errors, key=report.errors.__getitem__)}")
    if report.left_out:
        lines.append(f"Left out: {len(report.left_out)} biases and norms that changed, too")
    return "\n".join([*lines, *report.notes])


def offered(app: AppState, place: Path) -> dict[str, Any]:
    """
    Put a copy where this one download is served from, which nobody can guess: the folder of exports itself is not.

    Args:
        app: Its ``downloads`` are served.
        place: The file.

    Returns:
        Its name, its address under the page, without a path of the server, and its size in bytes.
    """
    token = secrets.token_hex(16)
    old = sorted(app.downloads.iterdir(), key=lambda each: each.stat().st_mtime)
    for each in old[: max(0, len(old) + 1 - KEPT_DOWNLOADS)]:
        shutil.rmtree(each, ignore_errors=True)
    folder = app.downloads / token
    folder.mkdir(parents=True)
    copied = Path(shutil.copyfile(place, folder / place.name))
    return {
        "name": place.name,
        "url": f"exports/{token}/{quote(place.name)}",
        "bytes": copied.stat().st_size,
    }


def baked(app: AppState, owner: str, mix_rows: Any, given: Any) -> str:
    """
    Write the model with the mix in its weights, as a folder on the server.

    Args:
        app: Where.
        owner: Whose turn of the device it takes.
        mix_rows: The mix, as the browser has it.
        given: The page's fields by their names: ``bake-name``.

    Returns:
        What was written.

    Raises:
        LoraMixerError: When it cannot be written so.
    """
    place = _place(app, checks.table(given, "the fields").get("bake-name"), "", "bake-name")
    mix = read_rows(mix_rows).mix(app)
    with app.queue.turn(owner):
        app.ready(mix.names)
        model = app.models.loaded().facts
        bake(app.mixer, place, mix, model=model.options.model)
    return f"exports/{place.name}: {model.title} with {mix.to_text() or 'no adapters'}"
