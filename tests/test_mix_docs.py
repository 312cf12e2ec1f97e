"""The examples on the docs' pages do what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("page", "at_least"),
    [("mixes.md", 10), ("picture-metadata.md", 8), ("library.md", 8), ("training.md", 20)],
)
def test_examples_run_as_shown(page: str, at_least: int) -> None:
    """One session from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, str(DOCS / page), 0)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test)

    assert len(test.examples) >= at_least
    assert runner.summarize(verbose=False).failed == 0
