"""The forms in which a whole mix may come: dict, list, JSON, YAML, one line; each becomes names with what they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from lora_mixer.mixes import _text
from lora_mixer.mixes._adapter_forms import read_adapter
from lora_mixer.mixes._plain import load_json, load_yaml
from lora_mixer.mixes._reading import shown
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.method import Method, read_method

if TYPE_CHECKING:
    from lora_mixer.mixes._reading import Reading

FULL_KEYS = ("adapters", "method")
_PAIR = 2


@dataclass
class Entries:
    """
    A mix before its parts are read.

    Attributes:
        adapters: Names with what was said about them, repeated names included.
        method: What was said about the method, or None.
    """

    adapters: list[tuple[object, object]] = field(default_factory=list)
    method: object = None


def is_name(name: object, reading: Reading) -> TypeGuard[str]:
    """
    Tell whether something can be an adapter's name, and note it where not.

    Args:
        name: What stands where a name is expected.
        reading: Where problems are noted.

    Returns:
        Whether it is a text that is not empty.
    """
    if isinstance(name, str) and name.strip() and not any("\ud800" <= char <= "\udfff" for char in name):
        return True
    reading.problem("", f"expected a name (text that is not empty), got {shown(name)}; numbers need quotes.")
    return False


def is_full(data: Mapping[Any, object]) -> bool:
    """
    Tell the form with "adapters" (and "method") from weights by name.

    Args:
        data: A dict that says a whole mix.

    Returns:
        Whether its keys are those of the full form.

    Example:
        >>> is_full({"adapters": {"a": 1}}), is_full({"adapters": 1})
        (True, False)
    """
    return (
        "adapters" in data and isinstance(data["adapters"], (Mapping, list)) and set(data) <= set(FULL_KEYS)
    )


def read_parts(obj: object, reading: Reading) -> tuple[dict[str, AdapterMix], Method]:
    """
    Read a mix in any form.

    Args:
        obj: A dict, a list of names or pairs, or text.
        reading: Where problems are noted.

    Returns:
        The adapters by name, and the method.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read_parts("a:0.5 | switch(3)", Reading())[1]
        Switch(tau=3, adapters=())
    """
    entries = entries_of(obj, reading)
    adapters: dict[str, AdapterMix] = {}
    for name, spec in entries.adapters:
        if not is_name(name, reading):
            continue
        if name in adapters:
            reading.problem(
                name, "is named twice; give each adapter one entry with the weight that it shall have."
            )
            continue
        adapters[name] = read_adapter(spec, name, reading) or AdapterMix()
    method = read_method(entries.method, "method", reading)
    if not reading.problems:
        reading.problems.extend(method.misfits(tuple(adapters)))
    return adapters, method


def entries_of(obj: object, reading: Reading) -> Entries:
    """
    Take a mix in any form apart.

    Args:
        obj: A dict, a list of names or pairs, or text.
        reading: Where problems are noted.

    Returns:
        What is said, unread.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> entries_of(["a", ("b", 0.5)], Reading()).adapters
        [('a', 1.0), ('b', 0.5)]
    """
    if isinstance(obj, str):
        return _entries_of_text(obj, reading)
    if isinstance(obj, Mapping):
        if not is_full(obj):
            return Entries(list(obj.items()))
        inner = obj["adapters"]
        # An adapter may itself be named "adapters", so a dict in here is never taken for the full form again.
        adapters = list(inner.items()) if isinstance(inner, Mapping) else entries_of(inner, reading).adapters
        return Entries(adapters, obj.get("method"))
    if isinstance(obj, (list, tuple)):
        pairs: list[tuple[object, object]] = []
        for index, entry in enumerate(obj):
            if isinstance(entry, str):
                pairs.append((entry, 1.0))
            elif isinstance(entry, (list, tuple)) and len(entry) == _PAIR:
                pairs.append((entry[0], entry[1]))
            else:
                reading.problem(
                    f"[{index}]", f"expected a name or a pair (name, weights), got {shown(entry)}."
                )
        return Entries(pairs)
    reading.problem("", f"expected a Mix, a dict, a list of names or pairs, or text, got {shown(obj)}.")
    return Entries()


def _entries_of_text(text: str, reading: Reading) -> Entries:
    stripped = text.strip()
    if not stripped:
        return Entries()
    if stripped[0] in "{[":
        plain = load_json(stripped, reading)
    elif "\n" in stripped:
        plain = load_yaml(text, reading)
    else:
        return Entries(*_text.read(stripped, reading))
    if reading.problems:
        return Entries()
    if isinstance(plain, str):
        reading.problem("", f"expected YAML that maps names to weights, got the text {shown(plain)}.")
        return Entries()
    return entries_of(plain, reading)
