"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Importing __main__ would run the command line; kernels need Triton, which comes with torch's CUDA builds.
SKIPPED = (
    ("__main__.py",)
    if importlib.util.find_spec("triton")
    else ("__main__.py", "kernel.py", "kernel_compare.py", "kernel_beside.py")
)
FILES = [
    path.relative_to(ROOT)
    for folder in ("lora_mixer", "ui")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name not in SKIPPED
]
MODULES = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES]
INSTALLED = [f"lora_mixer.{name}" if name.startswith("ui") else name for name in MODULES]


@pytest.mark.parametrize("name", INSTALLED)
def test_examples_run_as_shown(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert result.failed == 0
