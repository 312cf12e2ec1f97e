"""
The adapters that a picture names, found among those that are here: by hash first, then by name.

Hashes decide, since files are renamed and names are common; a name decides where the picture or the file has no hash.
A hash that is not known yet takes reading the whole file: those that are known come first, then files of that name, those whose
headers state it, and the rest as far as a bound of bytes reaches. Of what is found, equal files are found, too, known or not: of the
others with as many bytes a little is read, and all of those that do not differ there.
What is not found keeps its place, its weight and its order, so that nothing moves up into it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, MixError
from lora_mixer.hashes import Hashes
from lora_mixer.mixes import Mix
from lora_mixer.parsing.values import as_hash, file_stem
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.mixes import AdapterMix
    from lora_mixer.mixes.methods.method import Method
    from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings

    Known = Mapping[str, Mapping[str, str] | AdapterInfo]

_SHORTEST = 8  # digits of a hash
_FOREIGN_KINDS = {"blake3"}  # nobody else computes it


@dataclass(frozen=True)
class AdapterMatch:
    """
    The place of one adapter in a recalled mix.

    Attributes:
        adapter: What the picture says.
        match: The name of the adapter that is meant, or None.
        found_by: ``hash`` or ``name``; ``header`` where the file could not be read and only says of itself that it is it;
            ``missing`` or ``ambiguous`` where there is no match.
        candidates: The names that could be meant, where there are several.
        note: A remark for people, or an empty text.

    Example:
        >>> from lora_mixer import PictureAdapter
        >>> AdapterMatch(PictureAdapter("ink", 0.8), None, "missing").match is None
        True
    """

    adapter: PictureAdapter
    match: str | None
    found_by: str
    candidates: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class AdapterMatches:
    """
    What a picture's adapters are here.

    Attributes:
        slots: One for each adapter of the picture, in its order.
        mix: Those that were found, under their names here, with all that the picture says; weight 0 included.
        cleared: Names here that the picture does not have: they take no part.
        notes: Remarks on the whole.

    Example:
        >>> AdapterMatches((), Mix(), ("oil",)).cleared
        ('oil',)
    """

    slots: tuple[AdapterMatch, ...]
    mix: Mix
    cleared: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[PictureAdapter, ...]:
        """The picture's adapters that have no match."""
        return tuple(slot.adapter for slot in self.slots if slot.match is None)


_STATED = "sshs_model_hash"  # in a file's metadata
_DECLARED = "declared"  # the same in the library's index
READ_AT_MOST = 1 << 30
"""How many bytes of files are read for hashes in one call, unless said otherwise."""


def match_adapters(
    settings: PictureSettings, known: Known, *, read_at_most: int = READ_AT_MOST
) -> AdapterMatches:
    """
    Find a picture's adapters among those that are here.

    Args:
        settings: As :func:`read_picture` gives them.
        known: What is here, by name: hashes by kind, or an ``AdapterInfo`` (as in ``mixer.adapters``).
        read_at_most: Bytes of files to read for hashes that are not known yet; those that a table of hashes has cost nothing.

    Returns:
        The places with their matches, and the mix of what was found; ``notes`` say how many files were not looked into.

    Example:
        >>> from lora_mixer.picture_metadata import PictureSettings
        >>> found = match_adapters(PictureSettings(mix="ink:0.5, gone:1"), {"ink": {}, "oil": {}})
        >>> found.mix.to_text(), found.cleared, found.missing[0].name
        ('ink:0.5', ('oil',), 'gone')
    """
    here = _Here(known, read_at_most)
    taken: dict[str, str] = {}
    slots: list[AdapterMatch] = []
    for adapter in settings.adapters:
        slot = _find(adapter, here)
        if slot.match in taken:
            note = f'"{slot.match}" is taken by "{taken[slot.match]}" of the picture already'
            slot = AdapterMatch(adapter, None, "ambiguous", (slot.match,), note)
        if slot.match is not None:
            taken[slot.match] = adapter.name
        slots.append(slot)
    notes = here.notes()
    mix = _mix(settings, slots, notes)
    return AdapterMatches(tuple(slots), mix, tuple(name for name in known if name not in taken), tuple(notes))


def same_hash(one: str, other: str) -> bool:
    """
    Tell whether two hashes can be of one file: the shorter one, of 8 digits or more, is how the longer one begins.

    Example:
        >>> same_hash("0123456789", "0123456789ab"), same_hash("0123456789", "0123456789")
        (True, True)
    """
    a, b = as_hash(one), as_hash(other)
    return a is not None and b is not None and (a.startswith(b) or b.startswith(a))


class _Here:
    """What is here, by hash and by name; each file is read once at most, and all together within a bound."""

    def __init__(self, known: Known, read_at_most: int) -> None:
        self._known, self._left = known, read_at_most
        self._computed: dict[str, list[str]] = {}
        self._skipped: dict[str, str] = {}

    def known_hashes(self, name: str) -> list[str]:
        """Return the hashes of one adapter that are known; nothing is read, and what its header states is not one."""
        entry: Any = self._known[name]
        table = getattr(entry, "hashes", entry)
        listed = [as_hash(text) for kind, text in getattr(table, "known", table).items() if kind != _DECLARED]
        return [digits for digits in listed if digits] + self._computed.get(name, [])

    def states(self, digits: list[str]) -> list[str]:
        """Return the adapters whose headers say that they have one of these hashes: headers are copied, and lie."""
        alike = [
            name
            for text in digits
            for name, stated in self._stated.get(text[:_SHORTEST], ())
            if same_hash(text, stated)
        ]
        return list(dict.fromkeys(alike))

    def unread(self, digits: list[str]) -> list[str]:
        """Return the adapters that say that they have one of these hashes, and whose own are not known."""
        return [name for name in self.states(digits) if not self.known_hashes(name)]

    def hashes(self, name: str) -> list[str]:
        """Return the hashes of one adapter; those of a file that nobody has computed yet as far as the bound reaches."""
        table: Any = getattr(self._known[name], "hashes", None)
        if name in self._computed or name in self._skipped or not hasattr(table, "known") or table.known:
            return self.known_hashes(name)
        size = int(getattr(self._known[name], "bytes", 0))
        if size > self._left:
            self._skipped[name] = "not read"
            return self.known_hashes(name)
        self._left -= size
        index = self._by_start
        try:
            self._computed[name] = [digits for text in table.values() if (digits := as_hash(text))]
        except (LoraMixerError, OSError) as error:
            self._skipped[name] = f"unreadable ({type(error).__name__})"
        for digits in self._computed.get(name, ()):
            index.setdefault(digits[:_SHORTEST], []).append((name, digits))
        return self.known_hashes(name)

    def notes(self) -> list[str]:
        """Say which files were not looked into."""
        if not self._skipped:
            return []
        said = first_of([f"{name}: {why}" for name, why in self._skipped.items()], 3)
        return [
            f"the hashes of {len(self._skipped)} adapters here are not known ({said}): a picture's adapter may be one of them"
        ]

    def named(self, wanted: str) -> list[str]:
        """Return the names that are the wanted one: exactly, or else but for case, folders and endings, or an alias."""
        if wanted in self._known:
            return [wanted]
        return self._names.get(_folded(wanted)) or self._aliases.get(_folded(wanted), [])

    def hashed(self, digits: list[str], by_name: list[str]) -> list[str]:
        """
        Return the adapters that have one of these hashes, the same ones whether theirs were known before or not.

        What is known comes first; else files are read until one is it: those of that name, those whose headers say so, the rest. Then
        what may be equal to it is read, too.
        """
        found = self._known_by(digits) or self._read_until(digits, by_name)
        for name in self._lazy if found else ():
            if name not in found and self._may_equal(name, found[0]):
                self.hashes(name)
        return self._known_by(digits) if found else []

    def _read_until(self, digits: list[str], by_name: list[str]) -> list[str]:
        """Read files that nobody has hashed yet until one has one of these hashes."""
        left = [name for name in self._lazy if name not in self._computed and name not in self._skipped]
        if digits and left:  # of what was read already all is known: a thousand hashes read no file twice
            stating = set(self.states(digits))
            for name in sorted(left, key=lambda name: (name not in by_name, name not in stating)):
                if _alike(digits, [name], self.hashes):
                    return [name]
        return []

    def _may_equal(self, name: str, found: str) -> bool:
        """Tell whether an adapter whose hashes nobody knows may be the file of another one."""
        one, other = self._known[name], self._known[found]
        mine, theirs = getattr(one, "hashes", None), getattr(other, "hashes", None)
        if not isinstance(mine, Hashes) or self.known_hashes(name) or name in self._skipped:
            return False
        if not isinstance(theirs, Hashes):  # a table of hashes alone: there is nothing to compare with
            return False
        if getattr(one, "bytes", None) != getattr(other, "bytes", None):
            return False
        try:
            return mine.may_equal(theirs)
        except (LoraMixerError, OSError):  # what reads all of it says so
            return True

    def _known_by(self, digits: list[str]) -> list[str]:
        """Return the adapters that are known to have one of these hashes; of several those with most digits in common."""
        lengths: dict[str, int] = {}
        for text in digits:
            for name, known in self._by_start.get(text[:_SHORTEST], ()):
                if same_hash(text, known):
                    lengths[name] = max(lengths.get(name, 0), min(len(text), len(known)))
        most = max(lengths.values(), default=0)
        return [name for name, common in lengths.items() if common == most]

    @cached_property
    def _lazy(self) -> list[str]:
        """The adapters whose hashes can be had by reading their files."""
        return [
            name for name, entry in self._known.items() if isinstance(getattr(entry, "hashes", None), Hashes)
        ]

    @cached_property
    def _stated(self) -> dict[str, list[tuple[str, str]]]:
        table: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self._known.items():
            hashes: Any = getattr(entry, "hashes", entry)
            said = (
                getattr(entry, "metadata", {}).get(_STATED),
                getattr(hashes, "known", hashes).get(_DECLARED),
            )
            for digits in {each for text in said if isinstance(text, str) and (each := as_hash(text))}:
                table.setdefault(digits[:_SHORTEST], []).append((name, digits))
        return table

    @cached_property
    def _by_start(self) -> dict[str, list[tuple[str, str]]]:
        table: dict[str, list[tuple[str, str]]] = {}
        for name in self._known:
            for digits in self.known_hashes(name):
                table.setdefault(digits[:_SHORTEST], []).append((name, digits))
        return table

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return _grouped((_folded(name), name) for name in self._known)

    @cached_property
    def _aliases(self) -> dict[str, list[str]]:
        # AUTOMATIC1111 writes the name that the trainer gave a file.
        return _grouped(
            (_folded(alias), name)
            for name, entry in self._known.items()
            for alias in (
                getattr(entry, "metadata", {}).get("ss_output_name"),
                getattr(entry, "source", None),
            )
            if alias
        )


def _folded(name: str) -> str:
    return (file_stem(name) or name).casefold()


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    table: dict[str, dict[str, None]] = {}
    for key, name in pairs:
        table.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in table.items()}


def _find(adapter: PictureAdapter, here: _Here) -> AdapterMatch:
    digits = [
        wanted_hash
        for kind, text in adapter.hashes.items()
        if kind not in _FOREIGN_KINDS and (wanted_hash := as_hash(text))
    ]
    by_name = here.named(adapter.name)
    found = here.hashed(digits, by_name)
    same = _alike(digits, by_name, here.known_hashes) or found
    if len(same) > 1:
        note = f'"{adapter.name}" could be {", ".join(same)}, whose hashes are equal'
        return AdapterMatch(adapter, None, "ambiguous", tuple(same), note)
    if same:
        (name,) = same
        note = "" if name == adapter.name else f'"{adapter.name}" is called "{name}" here'
        return AdapterMatch(adapter, name, "hash", (), note)
    if len(said := here.unread(digits)) == 1:
        note = f'"{said[0]}" says of itself that it is "{adapter.name}"; its file was not read'
        return AdapterMatch(adapter, said[0], "header", (), note)
    if len(by_name) > 1:
        note = f'"{adapter.name}" could be {", ".join(by_name)}'
        return AdapterMatch(adapter, None, "ambiguous", tuple(by_name), note)
    if not by_name:
        return AdapterMatch(adapter, None, "missing", (), f'"{adapter.name}" is not here')
    (name,) = by_name
    note = ""
    if digits and here.hashes(name):
        note = f'"{name}" has another hash than the picture says: it may be another version'
    return AdapterMatch(adapter, name, "name", (), note)


def _alike(digits: list[str], names: list[str], hashes: Callable[[str], list[str]]) -> list[str]:
    """Return those of some names that have one of these hashes."""
    return [each for each in names if digits and any(same_hash(a, b) for a in digits for b in hashes(each))]


def _mix(settings: PictureSettings, slots: list[AdapterMatch], notes: list[str]) -> Mix:
    whole = settings.mix
    adapters: dict[str, AdapterMix] = {}
    renamed: dict[str, str] = {}
    for slot in slots:
        if slot.match is not None:
            is_whole = whole is not None and slot.adapter.name in whole
            adapters[slot.match] = (
                whole[slot.adapter.name] if whole is not None and is_whole else slot.adapter.adapter_mix()
            )
            renamed[slot.adapter.name] = slot.match
    if whole is None or whole.method.is_sum:
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
