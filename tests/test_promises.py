"""Each line of docs/promises.md and SECURITY.md names tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_NAMED = re.compile(r"`(tests/\w+\.py)::(\w+)`")


@pytest.mark.parametrize("page", ["docs/promises.md", "SECURITY.md"])
def test_every_line_of_a_table_names_tests_that_are_there(page: str) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    rows = [
        line
        for line in lines
        if line.startswith("| ") and not line.startswith(("| ---", "| fault", "| from"))
    ]
    assert len(rows) > 15
    for row in rows:
        named = _NAMED.findall(row)
        assert named, row
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row
