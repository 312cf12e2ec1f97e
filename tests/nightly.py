"""
All that looks for faults by chance, behind one command: mutated files, faults in a mixer's calls and in calls that write, damaged plans.

``python -m tests.nightly --seed 20261130 --seconds 3600`` is a nightly run: the day is the seed. The time is shared out by
:data:`SHARES`; ``--only files faults writes plans`` says which. What fails is printed and written as a case, files to
``tests/fuzz_cases`` and all else as a line of ``tests/fault_cases.txt``; the suite replays both, and a case stays there once it is mended.
"""

from __future__ import annotations

import argparse
import collections
import json
import signal
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.bad_plans import bad_plan, make_files, verdict
from lora_mixer.pictures import load_outline
from tests import faults, file_faults, fuzz

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = Path(__file__).parent / "fault_cases.txt"
SHARES = {"files": 0.4, "faults": 0.4, "writes": 0.1, "plans": 0.1}


def hunt(
    what: str, seed: int, until: float, *, cases: Path, tell: Callable[[str], object]
) -> collections.Counter[str]:
    """
    Look for faults of one kind until a time comes.

    Args:
        what: Of :data:`SHARES`.
        seed: What is drawn goes by this.
        until: When to stop, by ``time.monotonic``; one at least is tried.
        cases: Where files that fail are kept.
        tell: Called with the line of any other case, as it is found.

    Returns:
        How many were ``tried``, and how many were ``wrong``.
    """
    found: collections.Counter[str] = collections.Counter(tried=0, wrong=0)
    left = max(0.0, until - time.monotonic())
    if what == "files":
        with TemporaryDirectory() as folder:
            outcomes = fuzz.run(
                range(seed * 1000, seed * 1000 + 10**6), Path(folder), until=until, keep=cases
            )
        found["tried"] = sum(count for name, count in outcomes.items() if name.startswith("("))
        found["wrong"] = outcomes["FAILED"]
    elif what == "faults":
        done, wrong = faults.inject(seed, seconds=left, each=4, tell=lambda line: tell(f"faults: {line}"))
        found.update(tried=done.total(), wrong=len(wrong))
    elif what == "writes":
        while not found["tried"] or time.monotonic() < until:
            done, wrong = file_faults.inject(
                seed + found["tried"], 10, tell=lambda line: tell(f"writes: {line}")
            )
            found.update(tried=done.total(), wrong=len(wrong))
    else:
        with TemporaryDirectory() as folder:
            place, outline = Path(folder), load_outline("demo")
            make_files(place)
            while not found["tried"] or time.monotonic() < until:
                number = seed * 1000 + found["tried"]
                problem = _plan(number, place, outline)
                found.update(tried=1, wrong=problem is not None)
                if problem:
                    tell(f"plans: {number}: {problem}")
    return found


def _plan(number: int, place: Path, outline: object) -> str | None:
    raw, kind, what = bad_plan(number)
    said = verdict(raw, kind, place, outline)
    return None if said == "line" else f"{kind}, {what}: {said}"


def again(line: str) -> str | None:
    """
    Try a case again.

    Args:
        line: As it was written.

    Returns:
        What is wrong, or None.
    """
    what, _, rest = line.partition(": ")
    if what == "faults":
        return faults.again(rest)
    if what == "writes":
        call, kind = rest.split(" / ", 1)
        name, place = kind.partition(":")[0].rsplit(" ", 1)
        return file_faults.run(call, name, int(place))
    with TemporaryDirectory() as folder:
        make_files(Path(folder))
        return _plan(int(rest.partition(":")[0]), Path(folder), load_outline("demo"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="in all")
    parser.add_argument("--only", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--cases", type=Path, default=fuzz.CASES, help="where files that fail are kept")
    parser.add_argument("--lines", type=Path, default=LINES, help="where all other cases are")
    parser.add_argument("--again", help="a line that was written")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if chosen.again:
        print(again(chosen.again) or "consistent")  # noqa: T201
        return

    def tell(line: str) -> None:
        print(line, flush=True)  # noqa: T201
        with chosen.lines.open("a", encoding="utf-8") as stream:
            stream.write(line.replace("\n", " ")[:500] + "\n")

    whole, wrong = sum(SHARES[what] for what in chosen.only), 0
    for what in chosen.only:
        until = time.monotonic() + chosen.seconds * SHARES[what] / whole
        found = hunt(what, chosen.seed, until, cases=chosen.cases, tell=tell)
        print(json.dumps({"what": what, "seed": chosen.seed, **found}), flush=True)  # noqa: T201
        wrong += found["wrong"]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
