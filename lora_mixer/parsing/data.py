"""JSON and YAML, read strictly: a key given twice is a problem, not a silent replacement, and each value has its line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from lora_mixer.extras import require
from lora_mixer.parsing.problems import Problems, named_twice
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.parsing.problems import EntryPath

Form = Literal["json", "yaml"]


class Located:
    """
    Plain values, and where each stands.

    Args:
        value: What the text says.
        lines: The line of a value by its path.

    Example:
        >>> Located({"a": [1, 2]}, {(): 1, ("a",): 2}).line(("a", 1))
        2
    """

    def __init__(self, value: Any = None, lines: Mapping[EntryPath, int] | None = None) -> None:
        """Keep both."""
        self.value = value
        self.lines: dict[EntryPath, int] = dict(lines or {})

    def line(self, path: EntryPath) -> int:
        """Return the line of a value, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _LocatedJson(Located):
    """Values of JSON; where they stand is looked for when somebody asks, which is when something is wrong."""

    def __init__(self, value: Any, text: str) -> None:
        super().__init__(value)
        self._text: str | None = text

    def line(self, path: EntryPath) -> int:
        if self._text is not None:
            # JSON is YAML but for tabs, which stand between values only; YAML's reader tells where things are.
            self.lines = _yaml(self._text.replace("\t", " "), Problems()).lines
            self._text = None
        return super().line(path)


def load(form: Form, text: str, reading: Problems, where: str = "") -> Any:
    """
    Read JSON or YAML.

    Args:
        form: ``json`` or ``yaml``.
        text: The text.
        reading: Where problems are noted, with their lines where the text has several.
        where: The path of the text, for messages.

    Returns:
        What the text says, or None where there was a problem.

    Raises:
        MissingExtraError: YAML is asked for and PyYAML is not installed.

    Example:
        >>> load("json", '{"a": 0.5}', Problems()), load("yaml", "a: {unet: 0.5}", Problems())
        ({'a': 0.5}, {'a': {'unet': 0.5}})
    """
    own = Problems()
    located = locate(form, text, own)
    for problem in own.problems:
        if "\n" in text:
            reading.problem(where, f"{problem.text}.", line=problem.line)
        else:
            reading.problem(where, f"{problem.text}, got {shown(text)}.")
    return None if own.problems else located.value


def locate(form: Form, text: str, problems: Problems) -> Located:
    r"""
    Read JSON or YAML, and keep where everything stands.

    Args:
        form: ``json`` or ``yaml``.
        text: The text.
        problems: Where problems are noted, with their lines.

    Returns:
        The values; what of them cannot be read is left out.

    Raises:
        MissingExtraError: YAML is asked for and PyYAML is not installed.

    Example:
        >>> problems = Problems()
        >>> locate("yaml", "jobs:\n- prompt: a cat\n", problems).line(("jobs", 0, "prompt"))
        2
        >>> locate("json", '{"a": 1,\n "a": 2}', problems).value is None, str(problems.problems[0])
        (True, "line 2: 'a' is named twice; give it one entry")
    """
    if form == "yaml":
        return _yaml(text, problems)
    try:
        return _LocatedJson(strict_json(text), text)
    except NotJsonError as error:
        problems.problem("", error.text, line=error.line)
    return Located()


def _yaml(text: str, problems: Problems) -> Located:
    require("yaml", "batch")
    from lora_mixer.parsing.yaml_nodes import read_nodes

    lines: dict[EntryPath, int] = {}
    return Located(read_nodes(text, problems, lines), lines)


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
    Read JSON that names no key twice and has no numbers that JSON does not have.

    Raises:
        NotJsonError: It is something else, or nested too deeply.

    Example:
        >>> strict_json('{"a": NaN}')
        Traceback (most recent call last):
        lora_mixer.parsing.data.NotJsonError: expected JSON: NaN is not a number there
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


def _line_of_second(text: str, key: str) -> int:
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)), text)]
    return text.count("\n", 0, places[1]) + 1 if len(places) > 1 else 1


def parsed(form: Form, text: str) -> Any:
    """
    Read a text, and raise where it cannot be read.

    Args:
        form: ``json`` or ``yaml``.
        text: The text.

    Returns:
        What the text says.

    Raises:
        MixError: The text is not of that form.

    Example:
        >>> parsed("yaml", "a: 0.5")
        {'a': 0.5}
    """
    reading = Problems()
    data = load(form, text, reading)
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
        # PyYAML leaves some unusual line breaks unescaped in its readable form, and numbers without a point unquoted.
        if load("yaml", text, Problems()) == value:
            return text
    return json.dumps(value, ensure_ascii=False) + "\n"  # which is YAML, too
