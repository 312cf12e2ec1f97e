"""What ``python -m tests.nightly`` does: it looks, tells, keeps what fails, and the suite replays that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests import faults, file_faults, fuzz, nightly
from tests.nightly import LINES, SHARES, again, hunt

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_once_wrong_stays_mended() -> None:
    lines = LINES.read_text(encoding="utf-8").splitlines()
    assert {line: again(line) for line in lines} == dict.fromkeys(lines)


@pytest.mark.parametrize("what", SHARES)
def test_each_kind_is_looked_for_and_what_fails_is_a_case_until_it_is_mended(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def foreign(*_: object, **__: object) -> object:
        raise ZeroDivisionError("not ours")

    with monkeypatch.context() as broken:
        if what == "files":
            broken.setattr(fuzz, "read_adapter", foreign)
        elif what == "faults":
            broken.setattr(faults.Bench, "run", lambda *_: "unlike")
        elif what == "writes":
            broken.setattr(file_faults, "run", lambda *_: "unlike")
            broken.setattr(nightly.file_faults, "inject", lambda *_, tell: _one(tell))
        else:
            broken.setattr(nightly, "verdict", lambda *_: "traceback")
        found = hunt(what, 5, time.monotonic() + 0.2, cases=tmp_path, tell=told.append)
        assert found["tried"] > 0
        assert found["wrong"] > 0
        if what == "files":
            case = next(place for place in sorted(tmp_path.iterdir()) if list(place.glob("adapter_model.*")))
            with pytest.raises(ZeroDivisionError):
                fuzz.replay(case)
        else:
            assert again(told[0]) is not None
    assert fuzz.replay(case).total() if what == "files" else again(told[0]) is None


def _one(tell: object) -> tuple[object, list[str]]:
    import collections

    call = next(iter(file_faults.CALLS))
    tell(f"{call} / call 1: unlike")  # type: ignore[operator]
    return collections.Counter(call=1), ["x"]
