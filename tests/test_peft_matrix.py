"""The table of architectures and methods: some of its cells, and that the page is the table's."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from benchmarks.peft_matrix import ARCHITECTURES, METHODS, cell

PAGE = Path(__file__).resolve().parent.parent / "docs" / "peft-matrix.md"
SOME = [
    *(("Gemma", method) for method in ("lookup", "DoRA", "tokens")),
    *(("Phi-3", method) for method in ("LoKr", "OFT", "AdaLoRA")),
    *(("BLOOM", method) for method in ("IA3", "LoRA on head", "biases")),
    *(("RoBERTa", method) for method in ("saved head", "norms")),
    *(("BART", method) for method in ("saved head", "all-linear")),
    *(("Qwen2-MoE", method) for method in ("experts", "PiSSA")),
    *(("GPT-2", method) for method in ("PiSSA", "IA3", "AdaLoRA")),
]


@pytest.mark.parametrize(("architecture", "method"), SOME)
def test_a_cell_of_the_table_is_equal(architecture: str, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses words of transformers that go
        assert cell(ARCHITECTURES[architecture], METHODS[method]) == ("equal", "")


def test_the_page_has_every_cell_and_none_is_different() -> None:
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert [name.strip() for name in lines[0][1:]] == list(ARCHITECTURES)
    assert [row[0].strip() for row in lines[2:]] == list(METHODS)
    words = re.findall(r"\| ([^|]*?) (?=\|)", PAGE.read_text())
    assert words.count("equal") > 400
    assert not any("**" in word for word in words)
