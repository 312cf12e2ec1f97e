"""Which adapters a worker holds, which pictures it gets next, and what becomes of a worker that is lost."""

from __future__ import annotations

import pytest
from diffusers import DiffusionPipeline

from lora_mixer import LoraMixer
from lora_mixer.batches import check_plan
from lora_mixer.batches.cache import AdapterCache
from lora_mixer.batches.crew import STARTS_AT_MOST, Crew, Ready, WorkerGoneError
from lora_mixer.batches.order import Task, TaskQueue
from lora_mixer.batches.worker import Reply
from lora_mixer.errors import WorkersError
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


def test_a_lost_worker_is_launched_again_and_gets_work_when_it_is_ready():
    ready, task = Ready(1, 1, False, 0), Task((), ("a",))
    backend = Scripted([ready, ready, None, ready, Reply(())])
    crew = Crew(backend)
    crew.wait(0)
    crew.wait(0)

    crew.submit(0, task, ())
    (lost,) = crew.wait(0)
    between = crew.idle
    crew.wait(0)
    after = crew.idle
    crew.submit(0, task, ())
    (done,) = crew.wait(0)

    assert (lost.worker, lost.task, str(lost.result)) == (0, task, "killed")
    assert (between, after) == ([1], [0, 1])
    assert (done.worker, done.task, done.result) == (0, task, Reply(()))
    assert backend.told == [("launch", 0), ("launch", 1), ("send", 0), ("launch", 0), ("send", 0)]


def test_workers_that_never_begin_end_the_run():
    crew = Crew(Scripted([None] * 99))

    def work():
        for _ in range(99):
            crew.wait(0)

    with pytest.raises(WorkersError, match=rf"{STARTS_AT_MOST} times in a row.*killed"):
        work()
