"""The page of results is what its command makes of the raw figures, so that neither goes on without the other."""

from __future__ import annotations

import json

from benchmarks.results import ROOT, drawn, page

FACTS = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())


def test_the_page_and_its_plots_are_those_of_the_figures() -> None:
    assert (ROOT / "docs" / "results.md").read_text() == page(FACTS)
    for name, each in FACTS["plots"].items():
        assert (ROOT / "docs" / "images" / f"results-{name}.svg").read_text() == drawn(each), name
        longest = max(len(line) for line in each["lines"].values())
        assert (
            drawn(each).count("<circle") == sum(len(line) for line in each["lines"].values()) >= longest > 1
        )
