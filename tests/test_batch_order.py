"""Which adapters a worker holds, which pictures it gets next, and what becomes of a worker that is lost."""

from __future__ import annotations

import pytest
from diffusers import DiffusionPipeline

from lora_mixer import LoraMixer
from lora_mixer.batches import check_plan
from lora_mixer.batches.cache import AdapterCache
from lora_mixer.batches.expansion import PlannedPicture
from lora_mixer.batches.order import Task, TaskQueue
from lora_mixer.batches.worker import Outcome, Reply
from lora_mixer.batches.worker_pool import STARTS_AT_MOST, Ready, WorkerGoneError, WorkerPool
from lora_mixer.errors import WorkersError
from lora_mixer.pictures import PictureRequest
from tests.batch_plans import plan_for


def test_the_cache_keeps_no_more_adapters_than_it_may_and_those_used_last(model_folder):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(model_folder / "model"))
    places = check_plan(plan_for(model_folder, "out", [{}])).adapters
    cache = AdapterCache(mixer, places, most=2, most_bytes=1e9)

    for names in (["a"], ["b"], ["a"], ["c"]):
        cache.expect(names)
        cache.want(names)

    assert cache.resident == ("a", "c")
    assert sorted(mixer.adapters) == ["a", "c"]
    assert cache.loads == 3
    cache.want(["a", "b", "c"])  # what one picture needs is there, whatever the bound
    assert sorted(cache.resident) == ["a", "b", "c"]
    cache.close()


def test_the_cache_is_bounded_by_bytes(model_folder):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(model_folder / "model"))
    places = check_plan(plan_for(model_folder, "out", [{}])).adapters
    size = check_plan(plan_for(model_folder, "out", [{}])).infos["a"].bytes
    cache = AdapterCache(mixer, places, most=99, most_bytes=2.5 * size)

    for name in "abc":
        cache.want([name])

    assert cache.resident == ("b", "c")
    assert sum(mixer.memory().adapters.values()) == 2 * size
    cache.close()


def test_workers_keep_to_their_adapters_and_help_where_most_is_left():
    tasks = [Task((), names) for names in (("a",),) * 2 + (("b",),) * 4]
    queue = TaskQueue(tasks)

    first = [queue.take(0, ()).adapters, queue.take(1, ()).adapters]
    then = [queue.take(0, ("a",)).adapters, queue.take(0, ("a",)).adapters, queue.take(1, ("b",)).adapters]

    assert first == [("a",), ("b",)]
    assert then == [("a",), ("b",), ("b",)]
    assert len(queue) == 1


def test_a_worker_takes_up_first_what_it_has_in_memory():
    queue = TaskQueue([Task((), ("a",)), Task((), ("b",)), Task((), ("b", "c"))])

    assert queue.take(0, ("b", "c")).adapters == ("b",)
    assert queue.peek(0, ("b", "c")) == ("b", "c")


# --- workers that are lost ---------------------------------------------------------------------------------------------


class Scripted:
    """Workers that do what a list says: a value is their answer, and None is their end."""

    count = 2

    def __init__(self, answers):
        self.answers, self.told = iter(answers), []

    def launch(self, worker):
        self.told.append(("launch", worker))
        return object()

    def send(self, worker, task, ahead):
        self.told.append(("send", worker))
        return object()

    def poll(self, handles, seconds):
        return handles[:1]

    def result(self, handle):
        answer = next(self.answers)
        if answer is None:
            raise WorkerGoneError("killed")
        return answer

    def close(self, *, at_once=False):
        """There is nothing to end."""


def asked(*indices):
    return Task(tuple(PlannedPicture(i, 0, "0", i, PictureRequest("x"), f"{i}.png") for i in indices), ())


def started(*answers):
    """A pool of two that has begun."""
    pool = WorkerPool(Scripted([Ready(1, 1, False, 0), Ready(1, 1, False, 0), *answers]))
    pool.wait(0)
    pool.wait(0)
    return pool


def test_a_lost_worker_is_launched_again_and_gets_work_when_it_is_ready():
    task, made = asked(3), Reply((Outcome(asked(3).pictures[0], "5ha"),))
    pool = started(None, Ready(1, 1, False, 0), made)

    pool.submit(0, task, ())
    (lost,) = pool.wait(0)
    between = pool.idle
    pool.wait(0)
    after = pool.idle
    pool.submit(0, task, ())
    (done,) = pool.wait(0)

    assert (lost.worker, lost.lost, str(lost.result)) == (0, (task,), "killed")
    assert (between, after) == ([1], [0, 1])
    assert (done.worker, done.outcomes, done.result) == (0, ((task, made.outcomes[0]),), made)
    assert pool.backend.told == [("launch", 0), ("launch", 1), ("send", 0), ("launch", 0), ("send", 0)]


def test_pictures_that_were_made_and_not_told_of_are_lost_with_their_worker():
    first, second = asked(1, 2), asked(3)
    pool = started(Reply((Outcome(first.pictures[1], "5ha"),)), None)

    pool.submit(0, first, ())
    (told,) = pool.wait(0)
    pool.submit(0, second, ())
    (gone,) = pool.wait(0)

    assert told.outcomes == ((first, Outcome(first.pictures[1], "5ha")),)
    assert [[x.index for x in task.pictures] for task in gone.lost] == [[1], [3]]


def test_idle_workers_are_asked_for_what_they_have_not_told():
    task = asked(1)
    pool = started(Reply(()), Reply((Outcome(task.pictures[0], "5ha"),)))

    pool.submit(0, task, ())
    pool.wait(0)
    working = pool.working
    pool.ask_the_idle()
    (told,) = pool.wait(0)
    pool.ask_the_idle()

    assert (working, pool.working) == (1, 0)
    assert told.outcomes == ((task, Outcome(task.pictures[0], "5ha")),)
    assert [what for what, _ in pool.backend.told] == ["launch", "launch", "send", "send"]


def test_a_worker_thought_lost_that_tells_of_it_later_is_not_heard_twice():
    task = asked(1)
    outcome = Outcome(task.pictures[0], "5ha")
    pool = started(Reply((outcome, outcome)))

    pool.submit(0, task, ())
    (told,) = pool.wait(0)

    assert told.outcomes == ((task, outcome),)


def test_workers_that_never_begin_end_the_run():
    pool = WorkerPool(Scripted([None] * 99))

    def work():
        for _ in range(99):
            pool.wait(0)

    with pytest.raises(WorkersError, match=rf"{STARTS_AT_MOST} times in a row.*killed"):
        work()
