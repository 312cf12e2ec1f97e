"""
The adapters that a picture names, found among those that are here: by hash first, then by name.

Hashes decide, since files are renamed and names are common; a name decides where the picture or the file has no hash.
What is not found keeps its place, its weight and its order, so that nothing moves up into it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.mixes import Mix
from lora_mixer.mixes.method import Method
from lora_mixer.recall.values import as_hash, file_stem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.mixes import AdapterMix
    from lora_mixer.recall.settings import PictureSettings, RecalledAdapter

    Known = Mapping[str, Mapping[str, str] | AdapterInfo]

_FOREIGN_KINDS = {"blake3"}  # nobody else computes it


@dataclass(frozen=True)
class Slot:
    """
    The place of one adapter in a recalled mix.

    Attributes:
        adapter: What the picture says.
        match: The name of the adapter that is meant, or None.
        found_by: ``hash`` or ``name``; ``missing`` or ``ambiguous`` where there is no match.
        candidates: The names that could be meant, where there are several.
        note: A remark for people, or an empty text.
    """

    adapter: RecalledAdapter
    match: str | None
    found_by: str
    candidates: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Recall:
    """
    What a picture's adapters are here.

    Attributes:
        slots: One for each adapter of the picture, in its order.
        mix: Those that were found, under their names here, with all that the picture says; weight 0 included.
        cleared: Names here that the picture does not have: they take no part.
        notes: Remarks on the whole.
    """

    slots: tuple[Slot, ...]
    mix: Mix
    cleared: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[RecalledAdapter, ...]:
        """The picture's adapters that have no match."""
        return tuple(slot.adapter for slot in self.slots if slot.match is None)


def match_adapters(settings: PictureSettings, known: Known) -> Recall:
    """
    Find a picture's adapters among those that are here.

    Args:
        settings: As :func:`read_picture` gives them.
        known: What is here, by name: hashes by kind, or an ``AdapterInfo`` (as in ``mixer.adapters``).

    Returns:
        The places with their matches, and the mix of what was found.

    Example:
        >>> from lora_mixer.recall import PictureSettings
        >>> found = match_adapters(PictureSettings(mix="ink:0.5, gone:1"), {"ink": {}, "oil": {}})
        >>> found.mix.to_text(), found.cleared, found.missing[0].name
        ('ink:0.5', ('oil',), 'gone')
    """
    taken: dict[str, str] = {}
    slots: list[Slot] = []
    for adapter in settings.adapters:
        slot = _find(adapter, known)
        if slot.match in taken:
            note = f'"{slot.match}" is taken by "{taken[slot.match]}" of the picture already'
            slot = Slot(adapter, None, "ambiguous", (slot.match,), note)
        if slot.match is not None:
            taken[slot.match] = adapter.name
        slots.append(slot)
    notes: list[str] = []
    mix = _mix(settings, slots, notes)
    return Recall(tuple(slots), mix, tuple(name for name in known if name not in taken), tuple(notes))


def same_hash(one: str, other: str) -> bool:
    """
    Tell whether two hashes can be of one file: the shorter one, of 8 digits or more, is how the longer one begins.

    Example:
        >>> same_hash("0123456789", "0123456789ab"), same_hash("0123456789", "0123456789")
        (True, True)
    """
    a, b = as_hash(one), as_hash(other)
    return a is not None and b is not None and (a.startswith(b) or b.startswith(a))


def _find(adapter: RecalledAdapter, known: Known) -> Slot:
    digits = [text for kind, text in adapter.hashes.items() if kind not in _FOREIGN_KINDS and as_hash(text)]
    by_name = _by_name(adapter.name, known)
    # Files of that name first: computing a hash reads the whole file.
    for name in (*by_name, *(each for each in known if each not in by_name)) if digits else ():
        if any(same_hash(text, own) for own in _hashes(known[name]).values() for text in digits):
            note = "" if name == adapter.name else f'"{adapter.name}" is called "{name}" here'
            return Slot(adapter, name, "hash", (), note)
    if len(by_name) > 1:
        note = f'"{adapter.name}" could be {", ".join(by_name)}'
        return Slot(adapter, None, "ambiguous", tuple(by_name), note)
    if not by_name:
        return Slot(adapter, None, "missing", (), f'"{adapter.name}" is not here')
    (name,) = by_name
    note = ""
    if digits and _hashes(known[name]):
        note = f'"{name}" has another hash than the picture says: it may be another version'
    return Slot(adapter, name, "name", (), note)


def _by_name(wanted: str, known: Known) -> list[str]:
    """Give the names that are the wanted one: exactly, or else but for case, folders and endings."""
    if wanted in known:
        return [wanted]
    folded: Callable[[str], str] = lambda name: (file_stem(name) or name).casefold()  # noqa: E731
    alike = [name for name in known if folded(name) == folded(wanted)]
    if alike:
        return alike
    return [name for name in known if folded(wanted) in {folded(alias) for alias in _aliases(known[name])}]


def _aliases(entry: Any) -> Iterable[str]:
    """What else an adapter may be called: AUTOMATIC1111 writes the name that the trainer gave it."""
    metadata = getattr(entry, "metadata", {})
    return [name for name in (metadata.get("ss_output_name"), getattr(entry, "source", None)) if name]


def _hashes(entry: Any) -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(entry, "hashes", entry)
    return found


def _mix(settings: PictureSettings, slots: list[Slot], notes: list[str]) -> Mix:
    whole = settings.mix
    adapters: dict[str, AdapterMix] = {}
    renamed: dict[str, str] = {}
    for slot in slots:
        if slot.match is not None:
            own = whole is not None and slot.adapter.name in whole
            adapters[slot.match] = (
                whole[slot.adapter.name] if whole is not None and own else slot.adapter.adapter_mix()
            )
            renamed[slot.adapter.name] = slot.match
    if whole is None or type(whole.method) is Method:
        return Mix(adapters)
    try:
        return Mix(adapters, _with_names(whole.method, renamed))
    except MixError as error:
        notes.append(f"the mix's method ({whole.method.name}) needs an adapter that is not here: {error}")
        return Mix(adapters)


def _with_names(method: Method, renamed: Mapping[str, str]) -> Method:
    changed: dict[str, Any] = {}
    for each in dataclasses.fields(method):
        value = getattr(method, each.name)
        if isinstance(value, str):
            changed[each.name] = renamed.get(value, value)
        elif isinstance(value, tuple):
            changed[each.name] = tuple(
                renamed.get(part, part) if isinstance(part, str) else part for part in value
            )
    same: Any = method
    result: Method = replace(same, **changed)
    return result
