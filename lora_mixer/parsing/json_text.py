"""
JSON, read once for all: as people write it, as strangers write it, as programs write it.

Whatever is wrong with a text, a :class:`NotJsonError` says it: nesting without end, numbers of more digits than Python
reads and bytes that are no text included.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from lora_mixer.parsing.problems import named_twice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pairs = Callable[[list[tuple[str, Any]]], Any]

LONGEST_JSON = 8_000_000
"""Characters of a stranger's text; ComfyUI's largest workflows have some hundred thousand."""


class NotJsonError(ValueError):
    """
    A text that is not JSON, or names a key twice.

    Attributes:
        text: What was expected, and what was there.
        line: Where, from 1.
        column: Where in that line, from 1; 0 where only the line is known.
    """

    def __init__(self, text: str, line: int = 1, column: int = 0) -> None:
        super().__init__(text)
        self.text, self.line, self.column = text, line, column


def strict_json(text: str) -> Any:
    r"""
    Read JSON that a person wrote: it names no key twice and has no numbers that JSON does not have.

    Raises:
        NotJsonError: It is something else, or nested too deeply.

    Example:
        >>> strict_json('{"a": NaN}')
        Traceback (most recent call last):
        lora_mixer.parsing.json_text.NotJsonError: expected JSON: NaN is not a number there
    """
    try:
        return json.loads(text, object_pairs_hook=_unrepeated, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"expected JSON: {error.msg}", error.lineno, error.colno) from None
    except _RepeatedKeyError as error:
        raise NotJsonError(named_twice(error.key), _line_of_second(text, error.key)) from None
    except NotJsonError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise NotJsonError(f"expected JSON: {error}") from None
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None


def loose_json(text: str | bytes, take: Pairs | None = None) -> Any:
    """
    Read JSON that a program wrote: NaN is a number, and of a key that stands twice the last counts.

    Args:
        text: The text, or its bytes in UTF-8, UTF-16 or UTF-32.
        take: Makes something of an object's keys and values; a ``ValueError`` of it is a problem of the text.

    Returns:
        What it says.

    Raises:
        NotJsonError: It is something else.

    Example:
        >>> loose_json(b'{"a": [1, 2], "a": 3}')
        {'a': 3}
    """
    try:
        return json.loads(text, object_pairs_hook=take)
    except json.JSONDecodeError as error:
        raise NotJsonError(str(error), error.lineno, error.colno) from None
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None


def loose_json_at(text: str, start: int, take: Pairs) -> tuple[Any, int]:
    """
    Read the JSON value that begins at a place in a text, as ``loose_json`` does.

    Returns:
        The value, and the place behind it.

    Raises:
        NotJsonError: It is something else.

    Example:
        >>> loose_json_at('a {"b": 1} c', 2, dict)
        ({'b': 1}, 10)
    """
    try:
        return json.JSONDecoder(object_pairs_hook=take).raw_decode(text, start)
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None


def json_or_none(text: str | bytes) -> Any:
    """
    Read JSON that a program wrote; None for what is none.

    Example:
        >>> json_or_none("[1, 2]"), json_or_none("[" * 100_000)
        ([1, 2], None)
    """
    try:
        return loose_json(text)
    except NotJsonError:
        return None


def read_json(text: str) -> Any:
    """
    Read JSON that a stranger wrote.

    Raises:
        NotJsonError: It is too long or too deep, has numbers that are none, or is not JSON.

    Example:
        >>> read_json('{"a": Infinity}')
        Traceback (most recent call last):
        lora_mixer.parsing.json_text.NotJsonError: has Infinity for a number
    """
    return _limited(text, lambda: _DECODER.decode(text))


def json_at(text: str, start: int) -> tuple[Any, int]:
    """
    Read the JSON value that begins at a place in a text.

    Returns:
        The value, and the place behind it.

    Raises:
        NotJsonError: As ``read_json``.
    """
    value: tuple[Any, int] = _limited(text, lambda: _DECODER.raw_decode(text, start))
    return value


def without_trailing_commas(text: str) -> str:
    """
    Drop commas before closing brackets, outside of strings.

    Example:
        >>> without_trailing_commas('{"a, }": [1, 2, ], }')
        '{"a, }": [1, 2 ] }'
    """
    return "".join(_untrailed(text))


def _untrailed(text: str) -> Iterator[str]:
    quoted = escaped = False
    waiting = ""  # a comma, and the spaces behind it
    for letter in text:
        if waiting:
            if letter.isspace():
                waiting += letter
                continue
            yield waiting[1:] if letter in "}]" else waiting
            waiting = ""
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == ",":
            waiting = letter
            continue
        else:
            quoted = letter == '"'
        yield letter
    yield waiting


def _limited(text: str, decode: Callable[[], Any]) -> Any:
    if len(text) > LONGEST_JSON:
        raise NotJsonError(f"is {len(text)} characters long, at most {LONGEST_JSON} are read")
    try:
        return decode()
    except json.JSONDecodeError as error:
        raise NotJsonError(str(error), error.lineno, error.colno) from None
    except NotJsonError:
        raise
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None


class _RepeatedKeyError(Exception):
    """A mapping names one key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _RepeatedKeyError(key)
        seen[key] = value
    return seen


def _no_constant(name: str) -> NoReturn:
    raise NotJsonError(f"expected JSON: {name} is not a number there")


def _no_strange_constant(name: str) -> NoReturn:
    raise NotJsonError(f"has {name} for a number")


def _line_of_second(text: str, key: str) -> int:
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)), text)]
    return text.count("\n", 0, places[1]) + 1 if len(places) > 1 else 1


_DECODER = json.JSONDecoder(parse_constant=_no_strange_constant)
