"""Turns on one device: in a circle among owners, passed on whatever happens, given up when stopped."""

from __future__ import annotations

import threading

import pytest

from lora_mixer import FairQueue, PictureCancelled, PictureError


def run_all(queue, jobs):
    """Hold the queue, let the jobs line up in the given order, then note the order in which they run."""
    order, threads = [], []
    with queue.turn("holder"):
        for number, (owner, name) in enumerate(jobs, start=2):
            lined_up = threading.Event()

            def work(owner=owner, name=name, lined_up=lined_up):
                with queue.turn(owner, on_move=lambda _: lined_up.set()):
                    order.append(name)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            assert lined_up.wait(60)
            assert len(queue) == number
    for thread in threads:
        thread.join()
    return order


def test_an_owner_with_many_turns_delays_another_by_one_only():
    jobs = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]

    assert run_all(FairQueue(), jobs) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_the_number_ahead_is_what_runs_before():
    queue = FairQueue()
    told = {}
    lined_up = []
    threads = []
    with queue.turn("holder"):
        for owner, name in [("a", "a1"), ("a", "a2"), ("b", "b1")]:
            seen = threading.Event()

            def work(owner=owner, name=name, seen=seen):
                def moved(ahead):
                    told.setdefault(name, []).append(ahead)
                    seen.set()

                with queue.turn(owner, on_move=moved) as place:
                    lined_up.append((name, place.ahead))

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            assert seen.wait(60)
    for thread in threads:
        thread.join()

    assert [told[name][0] for name in ("a1", "a2", "b1")] == [1, 2, 2]
    assert lined_up == [("a1", 0), ("b1", 0), ("a2", 0)]


def test_a_turn_that_fails_is_passed_on():
    queue = FairQueue()
    with pytest.raises(ZeroDivisionError), queue.turn("a"):
        raise ZeroDivisionError
    with queue.turn("b") as place:
        assert place.ahead == 0
    assert len(queue) == 0


def test_a_stopped_place_leaves_the_queue():
    queue = FairQueue()
    with queue.turn("a"):
        with pytest.raises(PictureCancelled, match="stopped"), queue.turn("b", stopped=lambda: True):
            pytest.fail("it had no turn")
        assert len(queue) == 1


def test_a_full_queue_refuses_and_stays_as_it_is():
    queue = FairQueue(limit=0)
    with pytest.raises(PictureError, match="full"), queue.turn("a"):
        pytest.fail("it had no turn")
    assert len(queue) == 0
