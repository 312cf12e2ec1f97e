"""JSON and YAML, read strictly: a key given twice is a problem, not a silent replacement, and each value has its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from lora_mixer.extras import require
from lora_mixer.parsing.json_text import NotJsonError, strict_json
from lora_mixer.parsing.problems import Problems
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
    return load_located(form, text, reading, where).value


def load_located(form: Form, text: str, reading: Problems, where: str = "") -> Located:
    """Read JSON or YAML as :func:`load` does, and keep where everything stands; nothing where there was a problem."""
    inner = Problems()
    located = locate(form, text, inner)
    for problem in inner.problems:
        if "\n" in text:
            reading.problem(where, f"{problem.text}.", line=problem.line)
        else:
            reading.problem(where, f"{problem.text}, got {shown(text)}.")
    return Located() if inner.problems else located


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
