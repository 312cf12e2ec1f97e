"""
One session's mix as the browser has it: rows, some switched off, some without a file here.

The browser keeps the rows and sends them with each request. Only what is listed in :class:`Row` is read back; titles,
triggers and reasons are looked up again each time.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.mixes import AdapterMix, LbwWeights, Mix

from . import checks
from .thumbs import thumbnail_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.library import Entry
    from lora_mixer.picture_metadata import AdapterMatches

    from .app_state import AppState

MAX_ROWS = 32
MAX_WEIGHT = 100.0
MAX_STARS = 6
OFF = "off:"


@dataclass(frozen=True)
class Row:
    """
    One adapter of a mix.

    Attributes:
        name: Its name in the mix.
        on: Whether it takes part.
        unet: The denoiser's weight, and that of everything that has none of its own.
        te: The text encoders' weight; None where it is the same.
        blocks: A preset's name, a list of numbers, another form of blocks, or None.
        schedule: The schedule's text, or empty.
        mask: The digest of a painted mask, or empty.
        feather: How soft the mask's edges are, in pixels.
        more: Weights of other components.
    """

    name: str
    on: bool = True
    unet: float = 1.0
    te: float | None = None
    blocks: Any = None
    schedule: str = ""
    mask: str = ""
    feather: float = 0.0
    more: Any = None

    def spec(self) -> dict[str, Any]:
        """Return the row as ``Mix.of`` reads it."""
        components = dict(self.more or {})
        if self.te is not None:
            components["te"] = self.te
        spec: dict[str, Any] = {"weight": self.unet}
        if components:
            spec["components"] = components
        if self.blocks not in (None, "", []):
            spec["blocks"] = self.blocks
        if self.schedule:
            spec["schedule"] = self.schedule
        if self.mask:
            spec["mask"] = {"digest": self.mask, "feather": self.feather}
        return spec


@dataclass(frozen=True)
class MixRows:
    """
    The rows of a mix and its method.

    Attributes:
        rows: In the order of the page.
        method: As text, such as ``switch(tau=5)``; empty is the sum.
    """

    rows: tuple[Row, ...] = ()
    method: str = ""

    def mix(self, app: AppState) -> Mix:
        """
        Return the mix of the rows that are on and have a file here.

        Raises:
            MixError: With everything that makes no sense.
        """
        return _mix([row for row in self.rows if row.on and app.entry_named(row.name)], self.method, app)

    def whole(self, app: AppState) -> Mix:
        """
        Return the mix of the rows that are on, whether their files are here or not: what is saved and shared.

        Raises:
            MixError: With everything that makes no sense.
        """
        return _mix([row for row in self.rows if row.on], self.method, app)

    def text(self, app: AppState) -> str:
        """
        Write the mix as people share it: one line, and below it, after ``off:``, what is switched off.

        Raises:
            MixError: With everything that makes no sense.
        """
        written = self.whole(app).to_text()
        off = [row for row in self.rows if not row.on]
        return f"{written}\n{OFF} {_mix(off, '', app).to_text()}" if off else written

    def plain(self) -> dict[str, Any]:
        """Return what the browser may change, as JSON has it; :func:`read_rows` reads it back."""
        return {"rows": [asdict(row) for row in self.rows], "method": self.method}


def _mix(rows: Sequence[Row], method: str, app: AppState) -> Mix:
    adapters = {row.name: row.spec() for row in rows}
    if not method.strip() or not adapters:
        return Mix.of(adapters, masks=app.masks)
    return Mix.of({"adapters": adapters, "method": method.strip()}, masks=app.masks)


def read_rows(value: Any) -> MixRows:
    """
    Read what a browser sent.

    Args:
        value: The mix_rows's JSON; None is an empty one.

    Raises:
        PictureError: When it is none.
    """
    if value in (None, ""):
        return MixRows()
    given = checks.table(value, "the mix")
    rows = given.get("rows", [])
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise PictureError(f"the mix: expected at most {MAX_ROWS} adapters")
    read = tuple(_row(checks.table(row, "a row of the mix")) for row in rows)
    names = [row.name for row in read]
    if len(set(names)) < len(names):
        raise PictureError("the mix: an adapter stands in it twice; take one of the two out")
    return MixRows(read, checks.text(given.get("method"), "method", 300))


def _row(given: dict[str, Any]) -> Row:
    name = checks.text(given.get("name"), "name", 256)
    if not name:
        raise PictureError("a row of the mix: expected the name of an adapter")
    te = given.get("te")
    mask = given.get("mask") or ""
    return Row(
        name=name,
        on=given.get("on") is not False,
        unet=checks.number(given.get("unet", 1.0), f"{name}: weight", -MAX_WEIGHT, MAX_WEIGHT),
        te=None if te is None else checks.number(te, f"{name}: text weight", -MAX_WEIGHT, MAX_WEIGHT),
        blocks=_blocks(given.get("blocks"), name),
        schedule=checks.text(given.get("schedule"), f"{name}: schedule", 500),
        mask=checks.opaque(mask, f"{name}: mask") if mask else "",
        feather=checks.number(given.get("feather", 0), f"{name}: feather", 0, 1000),
        more=_more(given.get("more"), name),
    )


def _blocks(value: Any, name: str) -> Any:
    if value is None or (isinstance(value, str) and len(value) <= 100):
        return value or None
    if isinstance(value, list) and len(value) <= 32:
        return [checks.number(x, f"{name}: block weight", -MAX_WEIGHT, MAX_WEIGHT) for x in value]
    if isinstance(value, dict) and len(str(value)) <= 4000:
        _tame(value, name)
        return value
    raise PictureError(f"{name}: blocks: expected a preset, a list of numbers or an object", adapter=name)


def _tame(blocks: dict[str, Any], name: str) -> None:
    for key in (*blocks, *(blocks["patterns"] if isinstance(blocks.get("patterns"), dict) else ())):
        if str(key).startswith("re:") or str(key).count("*") > MAX_STARS:
            raise PictureError(
                f"{name}: blocks: the page takes patterns with at most {MAX_STARS} stars and no regular expressions",
                adapter=name,
            )


def read_text(text: Any, app: AppState) -> MixRows:
    """
    Read a mix that somebody wrote or shared, with the line ``off: ...`` of what is switched off.

    Raises:
        PictureError: When it is something else.
        MixError: When it makes no sense.
    """
    lines = checks.text(text, "The mix as text").strip().splitlines()
    off = [line[len(OFF) :] for line in lines if line.lower().startswith(OFF)]
    mix = read_mix("\n".join(line for line in lines if not line.lower().startswith(OFF)), app)
    rows = {row.name: row for line in off for row in rows_of(read_mix(line, app)).rows}
    read = rows_of(mix)
    others = (replace(row, on=False) for name, row in rows.items() if name not in mix.names)
    return replace(read, rows=(*read.rows, *others))


def read_mix(text: Any, app: AppState) -> Mix:
    """
    Read a mix that somebody wrote: one line or JSON, without files and without patterns that never end.

    Args:
        text: The text.
        app: Whose masks may be named.

    Raises:
        PictureError: When it is something else.
        MixError: When it makes no sense.
    """
    given = checks.text(text, "mix").strip()
    if not given:
        return Mix()
    if "\n" in given and not given.startswith(("{", "[")):
        raise PictureError("the mix: expected one line such as ink:0.8, neon:0.3, or JSON")
    mix = Mix.of(given, masks=app.masks)
    if len(mix) > MAX_ROWS:
        raise PictureError(f"the mix: expected at most {MAX_ROWS} adapters, got {len(mix)}")
    for name in mix:
        blocks: Any = mix[name].blocks and mix[name].to_spec()
        if isinstance(blocks, dict) and isinstance(blocks.get("blocks"), dict):
            _tame(blocks["blocks"], name)
    return mix


def _more(value: Any, name: str) -> Any:
    if value is None or (isinstance(value, dict) and len(str(value)) <= 1000):
        return value
    raise PictureError(f"{name}: expected weights by component", adapter=name)


def row_of(name: str, spec: AdapterMix) -> Row:
    """Return the row of an adapter of a mix."""
    plain: Any = spec.to_spec()
    given: dict[str, Any] = dict(plain) if isinstance(plain, dict) else {"weight": plain}
    components = dict(given.get("components", {}))
    te, unet = components.pop("te", None), components.pop("unet", given["weight"])
    if not isinstance(unet, int | float) or not isinstance(te, int | float | None):
        # a schedule of its own in a component's place: kept as it was said
        components, te, unet = dict(given.get("components", {})), None, given["weight"]
    mask = spec.mask
    return Row(
        name=name,
        unet=float(unet),
        te=te,
        blocks=given.get("blocks") if not isinstance(spec.blocks, LbwWeights) else spec.blocks.to_spec(),
        schedule=str(given.get("schedule", "")),
        mask=mask.digest if mask else "",
        feather=mask.feather if mask else 0.0,
        more=components or None,
    )


def rows_of(mix: Mix) -> MixRows:
    """Return the mix_rows of a mix; all rows are on."""
    method = "" if mix.method.is_sum else mix.method.to_text()
    return MixRows(tuple(row_of(name, mix[name]) for name in mix), method)


def halfway(first: MixRows, second: MixRows) -> tuple[MixRows, tuple[str, ...]]:
    """
    Return the mix that is half of each of two.

    Weights are the mean of both, 0 where one has no such adapter. Blocks, schedules, masks and the method cannot be halved: where
    both have others, those of the adapter's greater weight are taken, and the first's where they are alike.

    Args:
        first: A mix.
        second: Another.

    Returns:
        The rows, the first's order before the second's, and the names of what could be only one's.
    """
    ones, others = ({row.name: row for row in mix.rows} for mix in (first, second))
    rows, only = [], []
    for name in dict.fromkeys((*ones, *others)):
        pair = [mix[name] for mix in (ones, others) if name in mix]
        most = max(pair, key=lambda row: abs(row.unet))
        if any(_shape(row) != _shape(most) for row in pair if row.unet or row.te):
            only.append(name)
        own_text = any(row.te is not None for row in pair)
        text = _half(row.unet if row.te is None else row.te for row in pair) if own_text else None
        rows.append(replace(most, unet=_half(row.unet for row in pair), te=text))
    if first.method != second.method:
        only.append("the method")
    return MixRows(tuple(rows), first.method), tuple(only)


def _half(weights: Iterable[float]) -> float:
    """Return half of a sum, to a millionth: people read it."""
    return round(sum(weights) / 2, 6)


def _shape(row: Row) -> tuple[Any, ...]:
    return row.blocks, row.schedule, row.mask, row.feather if row.mask else 0, row.more


def recalled_rows(recall: AdapterMatches) -> MixRows:
    """Return the mix_rows of a picture: what it does not have is gone, what is missing here keeps its place."""
    kept = rows_of(recall.mix)
    rows = {row.name: row for row in kept.rows}
    recalled = [
        rows[slot.match] if slot.match is not None else row_of(slot.adapter.name, slot.adapter.adapter_mix())
        for slot in recall.slots
    ]
    return MixRows(tuple(recalled), kept.method)


def shown_rows(mix_rows: MixRows, app: AppState) -> dict[str, Any]:
    """Return the mix_rows as the page draws it: what the browser may change, and what it only shows."""
    return {
        "rows": [_shown_row(row, app) for row in mix_rows.rows],
        "method": mix_rows.method,
        "stamp": secrets.token_hex(8),  # told apart by this from what the browser itself put there
    }


def _shown_row(row: Row, app: AppState) -> dict[str, Any]:
    return {**asdict(row), **facts_of(row.name, app)}


def facts_of(name: str, app: AppState) -> dict[str, Any]:
    """Return what a row shows of its adapter and the browser may not change."""
    entry = app.entry_named(name)
    if entry is None:
        return {"title": name, "problem": "not in the library here: add its file, its place is kept"}
    return {
        "id": entry.id,
        "title": name,
        "about": facts_line(app, entry),
        "triggers": trigger_list(entry.trigger_words),
        "problem": app.refusal(entry),
        "thumb": thumbnail_uri(app.library, entry, 96),
        "notes": entry.notes[:300],
    }


def facts_line(app: AppState, entry: Entry) -> str:
    """Say in a few words what an adapter is."""
    ranks = f"rank {'/'.join(map(str, entry.ranks[:3]))}" if entry.ranks else ""
    return " · ".join(
        part
        for part in (
            app.called(entry.base),
            "+".join(entry.algorithms),
            ranks,
        )
        if part
    )


def trigger_list(words: Sequence[str]) -> list[str]:
    """Return trigger words, the first thirty, each of a length that fits a button."""
    return [word[:120] for word in words[:30]]
