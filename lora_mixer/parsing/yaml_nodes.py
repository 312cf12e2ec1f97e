"""YAML's nodes as plain values, with the line of each: depth and aliases are bounded, tags are refused; needs PyYAML."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from lora_mixer.parsing.problems import named_twice
from lora_mixer.parsing.values import encodable
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from lora_mixer.parsing.problems import EntryPath, Problems

_VALUES_AT_MOST = 5_000_000
_VALUES_OF_SHORT, _VALUES_PER_BYTE = 500_000, 10  # aliases of aliases can make a short text endless
_DEPTH_AT_MOST = 200  # mixes in jobs, the deepest that plans have, take about ten
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)  # type: ignore[arg-type]
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")
)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_nodes(text: str, problems: Problems, lines: dict[EntryPath, int]) -> Any:
    """
    Read YAML.

    Args:
        text: The text.
        problems: Where problems are noted, with their lines.
        lines: Where the line of each value is noted by its path.

    Returns:
        The values; None where the text is not YAML.
    """
    most = min(_VALUES_AT_MOST, _VALUES_OF_SHORT + _VALUES_PER_BYTE * len(text))
    if encodable(text) != text:
        problems.problem("", "expected YAML, got half of a surrogate pair", line=1)
        return None
    try:
        node = _compose(text)
        return None if node is None else _ValueTree(lines, problems, most).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.problem(
            "", f"expected YAML: {error.problem or error.context}", line=mark.line + 1 if mark else 1
        )
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position if isinstance(position, int) else 0) + 1
        problems.problem("", f"expected YAML: {error}", line=line)
    except _TooDeepError as error:
        problems.problem("", f"is nested too deeply (more than {_DEPTH_AT_MOST} levels)", line=error.line)
    except _TooLargeError:
        problems.problem("", f"has more than {most} values once its aliases are written out", line=1)
    return None


def _compose(text: str) -> yaml.Node | None:
    """Make the tree of nodes; libyaml does so by recursion in C, so its depth is counted before."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_AT_MOST:
            raise _TooDeepError(event.start_mark.line + 1 if event.start_mark else 1)
    node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    return node


class _TooDeepError(Exception):
    """There is no end of levels; ``line`` is where it got too deep."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _TooLargeError(Exception):
    """There is no end of values."""


class _ValueTree:
    """Makes values of YAML's nodes: numbers, true, false and null as in YAML 1.2, and all else is text."""

    def __init__(self, lines: dict[EntryPath, int], problems: Problems, most: int) -> None:
        self.lines, self.problems, self.count, self.most = lines, problems, 0, most

    def build(self, node: yaml.Node, path: EntryPath) -> Any:
        self.count += 1
        if self.count > self.most:
            raise _TooLargeError
        if len(path) > _DEPTH_AT_MOST:  # an alias within what it stands for has no end
            raise _TooDeepError(node.start_mark.line + 1)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: EntryPath) -> dict[str, Any]:
        table: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._odd("expected a name before the colon, got a list or a mapping", line)
                continue
            key = key_node.value
            if key == "<<" and not key_node.style:
                parts = child.value if isinstance(child, yaml.SequenceNode) else [child]
                for part in parts:
                    value = self.build(part, (*path, "<<"))
                    if isinstance(value, dict):
                        merged = {**value, **merged}
                    else:
                        self._odd("<<: expected a mapping to take values from", line)
                continue
            if key in table:
                self._odd(named_twice(key), line)
                continue
            # the line of the key: where a value is missing, that is where one looks
            below = (*path, key)
            self.lines[below] = line
            table[key] = self.build(child, below)
        return {**merged, **table}

    def _odd(self, text: str, line: int) -> None:
        self.problems.problem("", text, line=line)

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        if node.tag not in _PLAIN_TAGS and node.tag != "!":
            self._odd(f"expected a plain value, got the tag {shown(node.tag)}", node.start_mark.line + 1)
            return None
        if getattr(node, "style", None):  # quoted, or a block of text
            return text
        return plain_value(text)


def plain_value(text: str) -> Any:
    """
    Read one unquoted value as YAML 1.2 does.

    Example:
        >>> [plain_value(text) for text in ("7", "1e-3", "true", "no", "1:30", "")]
        [7, 0.001, True, 'no', '1:30', None]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
    return text
