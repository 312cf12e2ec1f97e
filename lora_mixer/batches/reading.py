"""Plans as text: YAML, JSON, JSONL and CSV become plain values, and the line of each is kept."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PlanError
from lora_mixer.parsing.data import Located, locate
from lora_mixer.parsing.json_text import NotJsonError, strict_json
from lora_mixer.parsing.yaml_nodes import plain_value
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_mixer.parsing.problems import Problems

PLAN_BYTES_AT_MOST = 256 * 1024 * 1024


@dataclass(frozen=True)
class PlanForm:
    """
    One form that a plan's text has.

    Attributes:
        name: What it is called.
        suffixes: How the names of its files end.
        read: Reads a text, noting what is wrong: the plan's values, with the line of each; rows stand under ``jobs``.

    Example:
        >>> PLAN_FORMS["yaml"].suffixes
        ('.yaml', '.yml')
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[str, Problems], Located]


_TEXT_COLUMNS = frozenset(("name", "prompt", "negative_prompt", "mix", "size"))


def read_text(text: str, kind: str, problems: Problems) -> Located:
    r"""
    Read a plan's text.

    Args:
        text: The text.
        kind: One of :data:`PLAN_FORMS`.
        problems: Where problems are noted.

    Returns:
        The values; of JSONL and CSV in the form of the others, with each row under ``jobs``.

    Example:
        >>> from lora_mixer.parsing.problems import Problems
        >>> found = read_text("model: demo\njobs:\n- prompt: a cat\n", "yaml", Problems())
        >>> found.value["jobs"], found.line(("jobs", 0, "prompt"))
        ([{'prompt': 'a cat'}], 3)
    """
    if kind not in PLAN_FORMS:
        raise PlanError(f"a plan is one of {', '.join(PLAN_FORMS)}, got {shown(kind)}", argument="kind")
    return PLAN_FORMS[kind].read(text, problems)


def decode(raw: bytes, problems: Problems) -> str:
    """Read UTF-8, with or without its mark, and note the line of what is none."""
    if len(raw) > PLAN_BYTES_AT_MOST:
        problems.problem(
            "", f"a plan has at most {PLAN_BYTES_AT_MOST >> 20} MiB, got {len(raw)} bytes", line=1
        )
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.problem(
            "", "expected text in UTF-8, got other bytes", line=raw.count(b"\n", 0, error.start) + 1
        )
        return ""
    if "\0" in text:
        problems.problem("", "expected text, got a zero byte", line=text.count("\n", 0, text.index("\0")) + 1)
        return ""
    return text


def _jsonl(text: str, problems: Problems) -> Located:
    plan = Located({"jobs": []}, {(): 1})
    jobs: list[Any] = plan.value["jobs"]
    for number, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        value = _json_row(row, number, problems)
        if isinstance(value, dict) and set(value) == {"plan"}:
            if jobs or len(plan.value) > 1:
                problems.problem("", "the line with the plan's own settings must be the first", line=number)
            elif isinstance(value["plan"], dict):
                plan.value = {**value["plan"], "jobs": jobs}
                plan.lines |= {(key,): number for key in value["plan"]}
            else:
                problems.problem("plan", f"expected an object, got {shown(value['plan'])}", line=number)
            continue
        plan.lines["jobs", len(jobs)] = number
        jobs.append(value)
    return plan


def _json_row(row: str, number: int, problems: Problems) -> Any:
    try:
        return strict_json(row)
    except NotJsonError as error:
        at = f" at character {error.column}" if error.column else ""
        problems.problem("", f"{error.text}{at}; a line holds one JSON object", line=number)
    return {}


# --- CSV -----------------------------------------------------------------------------------------------------------


def _csv(text: str, problems: Problems) -> Located:
    rows = text.splitlines(keepends=True)
    head = 0
    while head < len(rows) and rows[head].startswith("#"):
        head += 1
    plan = (
        locate("yaml", "".join(re.sub(r"^# ?", "", row) for row in rows[:head]), problems)
        if head
        else Located({})
    )
    if plan.value is None:
        plan.value = {}
    if not isinstance(plan.value, dict) or "jobs" in plan.value:
        problems.problem(
            "", "the lines that begin with # must be YAML with the plan's own settings, without jobs", line=1
        )
        plan.value = {}
    plan.lines[()] = 1
    jobs: list[dict[str, Any]] = []
    columns: list[str] | None = None
    for line, row in _csv_rows("".join(rows[head:]), head, problems):
        if columns is None:
            columns = [name.strip() for name in row]
            for name in (name for name, count in Counter(columns).items() if count > 1 or not name):
                problems.problem(
                    "",
                    f"the column {shown(name)} stands twice" if name else "a column has no name",
                    line=line,
                )
            continue
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(columns):
            problems.problem(
                "", f"expected at most {len(columns)} cells, as the first row has, got {len(row)}", line=line
            )
        plan.lines["jobs", len(jobs)] = line
        cells = {name: _cell(name, cell) for name, cell in zip(columns, row, strict=False) if cell.strip()}
        jobs.append(cells)
    plan.value["jobs"] = jobs
    return plan


def _csv_rows(text: str, before: int, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = before + 1
    try:
        for row in reader:
            yield line, row
            line = before + reader.line_num + 1
    except csv.Error as error:
        problems.problem("", f"expected CSV: {error}", line=line)


def _cell(column: str, cell: str) -> Any:
    return cell if column in _TEXT_COLUMNS else plain_value(cell.strip())


PLAN_FORMS: dict[str, PlanForm] = {
    form.name: form
    for form in (
        PlanForm("yaml", (".yaml", ".yml"), lambda text, problems: locate("yaml", text, problems)),
        PlanForm("json", (".json",), lambda text, problems: locate("json", text, problems)),
        PlanForm("jsonl", (".jsonl",), _jsonl),
        PlanForm("csv", (".csv",), _csv),
    )
}
"""Every form of a plan by its name."""


def form_endings() -> dict[str, str]:
    """Return the names of the forms by the endings of their files."""
    return {suffix: form.name for form in PLAN_FORMS.values() for suffix in form.suffixes}
