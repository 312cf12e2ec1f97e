"""JSON and YAML, read strictly: a key given twice is a problem, not a silent replacement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_mixer.extras import require
from lora_mixer.parsing.problems import Problems, shown

if TYPE_CHECKING:
    from collections.abc import Callable


class _RepeatedKeyError(ValueError):
    """A mapping names one key twice."""


def load_json(text: str, reading: Problems, where: str = "") -> object:
    """
    Read JSON.

    Args:
        text: The text.
        reading: Where problems are noted.
        where: The path of the text, for messages.

    Returns:
        What the text says, or None where there was a problem.

    Example:
        >>> from lora_mixer.extras import require
        >>> from lora_mixer.parsing.problems import Problems
        >>> load_json('{"a": 0.5}', Problems())
        {'a': 0.5}
    """
    return _loaded("JSON", lambda: json.loads(text, object_pairs_hook=_unrepeated), text, reading, where)


def load_yaml(text: str, reading: Problems, where: str = "") -> object:
    """
    Read YAML.

    Args:
        text: The text.
        reading: Where problems are noted.
        where: The path of the text, for messages.

    Returns:
        What the text says, or None where there was a problem.

    Example:
        >>> from lora_mixer.extras import require
        >>> from lora_mixer.parsing.problems import Problems
        >>> load_yaml("a: {unet: 0.5}", Problems())
        {'a': {'unet': 0.5}}
    """
    yaml = require("yaml", "batch")

    def parse() -> object:
        if (node := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
            _refuse_repeats(node, set())
        return yaml.safe_load(text)

    return _loaded("YAML", parse, text, reading, where, yaml.YAMLError)


def _loaded(
    kind: str,
    parse: Callable[[], object],
    text: str,
    reading: Problems,
    where: str,
    own: type[Exception] = ValueError,
) -> object:
    """Parse, and note what is wrong."""
    try:
        return parse()
    except _RepeatedKeyError as error:
        reading.problem(where, str(error))
    except (own, ValueError, TypeError, RecursionError) as error:
        reading.problem(where, f"expected {kind}, got {shown(text)}: {' '.join(str(error).split())}.")
    return None


def parsed(load: Callable[[str, Problems], object], text: str) -> object:
    """
    Read a text, and raise where it cannot be read.

    Args:
        load: ``load_json`` or ``load_yaml``.
        text: The text.

    Returns:
        What the text says.

    Raises:
        MixError: The text is not of that form.

    Example:
        >>> parsed(load_yaml, "a: 0.5")
        {'a': 0.5}
    """
    reading = Problems()
    data = load(text, reading)
    reading.finish()
    return data


def dump_yaml(value: object) -> str:
    r"""
    Write YAML that reads back as the same value.

    Args:
        value: Numbers, texts, lists and dicts.

    Returns:
        The text, with the keys in their order.

    Example:
        >>> dump_yaml({"b": 1.0, "a": 0.5})
        'b: 1.0\na: 0.5\n'
    """
    yaml = require("yaml", "batch")
    for readable in (True, False):
        text = str(yaml.safe_dump(value, sort_keys=False, allow_unicode=readable, width=10_000))
        # PyYAML leaves some unusual line breaks unescaped in its readable form.
        if yaml.safe_load(text) == value:
            break
    return text


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise _RepeatedKeyError(_repeated(key))
        seen[key] = value
    return seen


def _repeated(key: object) -> str:
    return f"{key!r} is named twice; give it one entry."


def _refuse_repeats(node: Any, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "mapping":
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise _RepeatedKeyError(_repeated(key))
        for _, value in node.value:
            _refuse_repeats(value, seen)
    elif node.id == "sequence":
        for value in node.value:
            _refuse_repeats(value, seen)
