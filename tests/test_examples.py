"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Importing __main__ would run the command line.
FILES = [
    path.relative_to(ROOT)
    for folder in ("lora_mixer", "ui")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__main__.py"
]
MODULES = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES]
INSTALLED = [f"lora_mixer.{name}" if name.startswith("ui") else name for name in MODULES]


@pytest.mark.parametrize("name", INSTALLED)
def test_examples_run_as_shown(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert result.failed == 0
