"""Plans as text: YAML, JSON, JSONL and CSV become plain values, and the line of each is kept."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from lora_mixer.batches.problems import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_mixer.batches.problems import Problems

Path = tuple[str | int, ...]

PLAN_BYTES_AT_MOST = 256 * 1024 * 1024
_VALUES_AT_MOST = 5_000_000
_VALUES_OF_SHORT, _VALUES_PER_BYTE = 500_000, 10  # aliases of aliases can make a short text endless
_DEPTH_AT_MOST = 200  # mixes in jobs, the deepest that plans have, take about ten
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)  # type: ignore[arg-type]
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")
)
_TEXT_COLUMNS = frozenset(("name", "prompt", "negative_prompt", "mix", "size"))
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Located:
    """
    Plain values, and where each stands.

    Attributes:
        value: What the text says.
        lines: The line of a value by its path.
    """

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Return the line of a value, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_text(text: str, kind: str, problems: Problems) -> Located:
    r"""
    Read a plan's text.

    Args:
        text: The text.
        kind: ``yaml``, ``json``, ``jsonl`` or ``csv``.
        problems: Where problems are noted.

    Returns:
        The values; of JSONL and CSV in the form of the others, with each row under ``jobs``.

    Example:
        >>> from lora_mixer.batches.problems import Problems
        >>> found = read_text("model: demo\njobs:\n- prompt: a cat\n", "yaml", Problems("x"))
        >>> found.value["jobs"], found.line(("jobs", 0, "prompt"))
        ([{'prompt': 'a cat'}], 3)
    """
    readers: dict[str, Callable[[str, Problems], Located]] = {
        "yaml": _yaml,
        "json": _json,
        "jsonl": _jsonl,
        "csv": _csv,
    }
    return readers[kind](text, problems)


def decode(raw: bytes, problems: Problems) -> str:
    """Read UTF-8, with or without its mark, and note the line of what is none."""
    if len(raw) > PLAN_BYTES_AT_MOST:
        problems.add(1, f"a plan has at most {PLAN_BYTES_AT_MOST >> 20} MiB, got {len(raw)} bytes")
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(raw.count(b"\n", 0, error.start) + 1, "expected text in UTF-8, got other bytes")
        return ""
    if "\0" in text:
        problems.add(text.count("\n", 0, text.index("\0")) + 1, "expected text, got a zero byte")
        return ""
    return text


# --- YAML ----------------------------------------------------------------------------------------------------------


def _yaml(text: str, problems: Problems) -> Located:
    found = Located()
    most = min(_VALUES_AT_MOST, _VALUES_OF_SHORT + _VALUES_PER_BYTE * len(text))
    try:
        node = _compose(text)
        if node is not None:
            _Tree(found, problems, most).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else 1, f"expected YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        problems.add(
            text.count("\n", 0, position if isinstance(position, int) else 0) + 1, f"expected YAML: {error}"
        )
    except _TooDeepError as error:
        problems.add(error.line, f"the plan is nested too deeply (more than {_DEPTH_AT_MOST} levels)")
    except _TooLargeError:
        problems.add(1, f"the plan has more than {most} values once its aliases are written out")
    return found


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


class _Tree:
    """Makes values of YAML's nodes: numbers, true, false and null as in YAML 1.2, and all else is text."""

    def __init__(self, found: Located, problems: Problems, most: int = _VALUES_AT_MOST) -> None:
        self.found, self.problems, self.count, self.most = found, problems, 0, most

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > self.most:
            raise _TooLargeError
        self.found.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        else:
            value = self._scalar(node)
        if not path:
            self.found.value = value
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        table: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(line, "expected a name before the colon, got a list or a mapping")
                continue
            key = key_node.value
            if key == "<<" and not key_node.style:
                parts = child.value if isinstance(child, yaml.SequenceNode) else [child]
                for part in parts:
                    value = self.build(part, (*path, "<<"))
                    if isinstance(value, dict):
                        merged = {**value, **merged}
                    else:
                        self.problems.add(line, "<<: expected a mapping to take values from")
                continue
            if key in table:
                self.problems.add(line, f"{shown(key)} is named twice; give it one entry")
                continue
            # the line of the key: where a value is missing, that is where one looks
            below = (*path, key)
            self.found.lines[below] = line
            table[key] = self.build(child, below)
        return {**merged, **table}

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        if node.tag not in _PLAIN_TAGS and node.tag != "!":
            self.problems.add(
                node.start_mark.line + 1, f"expected a plain value, got the tag {shown(node.tag)}"
            )
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
        return float(
            text.replace(".inf", "inf")
            .replace(".nan", "nan")
            .replace(".Inf", "inf")
            .replace(".NaN", "nan")
            .replace(".INF", "inf")
            .replace(".NAN", "nan")
        )
    return text


# --- JSON ----------------------------------------------------------------------------------------------------------


class _RepeatedKeyError(ValueError):
    """A key stands twice."""


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _RepeatedKeyError(key)
        table[key] = value
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unrepeated, parse_constant=_no_constant)


def _json(text: str, problems: Problems) -> Located:
    found = Located()
    try:
        found.value = _load_json(text)
    except json.JSONDecodeError as error:
        problems.add(error.lineno, f"expected JSON: {error.msg}")
    except _RepeatedKeyError as error:
        problems.add(
            _line_of_repeat(text, str(error)), f"{shown(str(error))} is named twice; give it one entry"
        )
    except ValueError as error:
        problems.add(1, f"expected JSON: {error}")
    except RecursionError:
        problems.add(1, "the plan is nested too deeply")
    else:
        # JSON is YAML but for tabs, which stand between values only; YAML's reader tells where things are.
        where = Located()
        try:
            node = _compose(text.replace("\t", " "))
            if node is not None:
                _Tree(where, type(problems)(problems.label)).build(node, ())
        except (yaml.YAMLError, _TooDeepError, _TooLargeError):
            pass
        found.lines = where.lines
    return found


def _line_of_repeat(text: str, key: str) -> int:
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)), text)]
    return text.count("\n", 0, places[1]) + 1 if len(places) > 1 else 1


def _jsonl(text: str, problems: Problems) -> Located:
    found = Located({"jobs": []}, {(): 1})
    jobs: list[Any] = found.value["jobs"]
    for number, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        value = _json_row(row, number, problems)
        if isinstance(value, dict) and set(value) == {"plan"}:
            if jobs or len(found.value) > 1:
                problems.add(number, "the line with the plan's own settings must be the first")
            elif isinstance(value["plan"], dict):
                found.value = {**value["plan"], "jobs": jobs}
                found.lines |= {(key,): number for key in value["plan"]}
            else:
                problems.add(number, f"plan: expected an object, got {shown(value['plan'])}")
            continue
        found.lines["jobs", len(jobs)] = number
        jobs.append(value)
    return found


def _json_row(row: str, number: int, problems: Problems) -> Any:
    try:
        return _load_json(row)
    except json.JSONDecodeError as error:
        problems.add(number, f"expected one JSON object per line: {error.msg} at character {error.colno}")
    except _RepeatedKeyError as error:
        problems.add(number, f"{shown(str(error))} is named twice; give it one entry")
    except (ValueError, RecursionError) as error:
        problems.add(number, f"expected one JSON object per line: {error}")
    return {}


# --- CSV -----------------------------------------------------------------------------------------------------------


def _csv(text: str, problems: Problems) -> Located:
    rows = text.splitlines(keepends=True)
    head = 0
    while head < len(rows) and rows[head].startswith("#"):
        head += 1
    found = _yaml("".join(re.sub(r"^# ?", "", row) for row in rows[:head]), problems) if head else Located({})
    if found.value is None:
        found.value = {}
    if not isinstance(found.value, dict) or "jobs" in found.value:
        problems.add(1, "the lines that begin with # must be YAML with the plan's own settings, without jobs")
        found.value = {}
    found.lines[()] = 1
    jobs: list[dict[str, Any]] = []
    columns: list[str] | None = None
    for line, row in _csv_rows("".join(rows[head:]), head, problems):
        if columns is None:
            columns = [name.strip() for name in row]
            for name in {name for name in columns if columns.count(name) > 1 or not name}:
                problems.add(
                    line, f"the column {shown(name)} stands twice" if name else "a column has no name"
                )
            continue
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(columns):
            problems.add(line, f"expected at most {len(columns)} cells, as the first row has, got {len(row)}")
        found.lines["jobs", len(jobs)] = line
        cells = {name: _cell(name, cell) for name, cell in zip(columns, row, strict=False) if cell.strip()}
        jobs.append(cells)
    found.value["jobs"] = jobs
    return found


def _csv_rows(text: str, before: int, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = before + 1
    try:
        for row in reader:
            yield line, row
            line = before + reader.line_num + 1
    except csv.Error as error:
        problems.add(line, f"expected CSV: {error}")


def _cell(column: str, cell: str) -> Any:
    return cell if column in _TEXT_COLUMNS else plain_value(cell.strip())
