"""The examples in docs/mixes.md do what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "mixes.md"


def test_examples_of_the_page_on_mixes_run_as_shown() -> None:
    """One session from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "mixes.md", str(DOCS), 0)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test)

    assert len(test.examples) >= 10
    assert runner.summarize(verbose=False).failed == 0
