"""Long runs are watched by ``python -m tests.long_runs``; here a short one, and that growth would be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import long_runs
from tests.long_runs import MORE, Sample, grown, sample

if TYPE_CHECKING:
    from pathlib import Path


def test_people_who_come_and_go_leave_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_runs, "LEAVES", 0.4)
    samples, came = long_runs.page(12, 4, tmp_path, seed=3)
    assert set(came) == {"made", "left"}
    assert came["made"] + came["left"] == 12
    assert came["left"] > 0
    late = samples[-1]
    assert late.handles - samples[0].handles <= MORE.handles
    assert late.threads <= samples[0].threads + MORE.threads
    assert late.temporary - samples[0].temporary <= MORE.temporary


def test_calls_of_many_threads_make_the_pictures_of_one() -> None:
    came = long_runs.calls(12, 4, seed=6)
    assert set(came) == set(long_runs.KINDS)  # none unlike, none wrong, nothing of the base changed
    assert sum(came.values()) == 12


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ((0.0, 0, 0, 0), []),
        ((5.0, 0, 0, 0), ["mib"]),
        ((0.0, 1, 0, 0), ["handles"]),
        ((0.0, 0, 1, 0), ["threads"]),
        ((0.0, 0, 0, 1), ["temporary"]),
        ((5.0, 1, 1, 1), ["mib", "handles", "threads", "temporary"]),
    ],
)
def test_what_grows_all_the_time_is_named(step: tuple[float, int, int, int], named: list[str]) -> None:
    samples = [Sample(*(100 + number * each for each in step)) for number in range(40)]
    assert [text.partition(" ")[0] for text in grown(samples)] == named


def test_what_it_takes_to_get_warm_is_no_growth() -> None:
    assert grown([Sample(min(100 + 50 * n, 600), 10 + min(n, 9), 20, 0) for n in range(40)]) == []


def test_a_sample_counts_what_is_open(tmp_path: Path) -> None:
    before = sample(tmp_path)
    with (tmp_path / "a").open("w"):
        now = sample(tmp_path)
    assert (now.handles - before.handles, now.temporary - before.temporary) == (1, 1)
