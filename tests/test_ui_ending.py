"""A process that ends while something computes for the page ends as it was told, and not by an abort."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, torch
from ui import ending
inside = threading.Event()
def compute():
    for number in range({rounds}):
        torch.randn(300, 300) @ torch.randn(300, 300)
        inside.set()
    print("computed", flush=True)
ending.PATIENCE = {patience}
ending.start_computing(compute, "work")
inside.wait()
print("ends", flush=True)
"""


def ended(rounds: int, patience: float) -> subprocess.CompletedProcess[str]:
    code = SCRIPT.format(rounds=rounds, patience=patience)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_end_waits_for_what_computes() -> None:
    done = ended(200, 60.0)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ends", "computed"]


def test_the_end_does_not_wait_for_ever() -> None:
    assert "computed" not in ended(10**9, 0.0).stdout
