"""``applied`` holds a mix for a block of code: nested, with errors, with deletions, and with other threads waiting."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from lora_mixer import AdapterNameError, MixError, PipelineStateError
from tests.small_pipe import Bench, assert_same, pairs_for, written
from tests.weights import same_bits

if TYPE_CHECKING:
    from collections.abc import Generator

WAIT = 30.0  # seconds until a test that hangs fails; none waits for it


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("before", [{}, {"a": 1.0}, {"c": 0.3, "a": {"unet": 0.5}}])
def test_applied_puts_back_what_was_there(bench: Bench, before: dict[str, Any]) -> None:
    bench.mixer.set_mix(before)
    held = bench.bits()

    with bench.mixer.applied({"a": 0.7, "b": -0.3}) as inside:
        assert inside is bench.mixer
        bench.assert_mix(a=0.7, b=-0.3)

    assert_same(bench.bits(), held)
    bench.assert_mix(**before)


def test_applied_puts_back_after_an_error_inside(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    held = bench.bits()

    with pytest.raises(KeyboardInterrupt), bench.mixer.applied({"a": 0.7}):
        raise KeyboardInterrupt

    assert_same(bench.bits(), held)
    bench.assert_mix(b=0.5)


def test_applied_stays_disabled_where_it_was(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    bench.mixer.disable_lora()

    with bench.mixer.applied({"a": 0.7}):
        bench.assert_mix(a=0.7)

    bench.assert_base()
    bench.mixer.enable_lora()
    bench.assert_mix(b=0.5)


def test_applied_nests(bench: Bench) -> None:
    with bench.mixer.applied({"a": 0.7}):
        with bench.mixer.applied("b:0.5, a:-1"):
            bench.assert_mix(b=0.5, a=-1.0)
            with bench.mixer.applied({}):
                bench.assert_base()
            bench.assert_mix(b=0.5, a=-1.0)
        bench.assert_mix(a=0.7)

    bench.assert_mix(c=1.0)


@pytest.mark.parametrize(
    ("mix", "error"),
    [({"x": 1.0}, AdapterNameError), ({"a": {"vea": 1}}, MixError), ({"a": "much"}, MixError)],
)
def test_applied_with_a_mix_that_cannot_be_changes_nothing(
    bench: Bench, mix: Any, error: type[Exception]
) -> None:
    held = bench.bits()

    with pytest.raises(error), bench.mixer.applied(mix):
        pytest.fail("the block must not run")

    assert_same(bench.bits(), held)
    bench.assert_mix(c=1.0)


def test_calls_inside_are_undone(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "c"], [0.5, 2.0])

    with bench.mixer.applied({"b": 0.7}):
        bench.mixer.disable_lora()
        bench.assert_base()
        bench.mixer.set_adapters("c", -1)
        bench.mixer.load_lora_weights(written(pairs_for(bench.pipe, 4)), "d")

    bench.assert_mix(a=0.5, c=2.0)
    assert list(bench.mixer.adapters) == ["a", "b", "c", "d"]


def test_an_adapter_deleted_inside_is_missing_afterwards(bench: Bench) -> None:
    bench.mixer.set_adapters(["a", "c"], [0.5, 2.0])

    with bench.mixer.applied({"b": 0.7, "a": 1.0}):
        bench.mixer.delete_adapters("a")
        bench.assert_mix(b=0.7)

    bench.assert_mix(c=2.0)


def test_unloading_inside_leaves_the_base(bench: Bench) -> None:
    with bench.mixer.applied({"b": 0.7}):
        bench.mixer.unload_lora_weights()

    bench.assert_base()
    assert bench.mixer.memory().total == 0


def test_another_thread_waits_until_the_block_ends(bench: Bench) -> None:
    begun = threading.Event()
    order: list[str] = []

    def other() -> None:
        begun.set()
        bench.mixer.set_adapters("b", 0.5)
        order.append("set")

    with bench.mixer.applied({"a": 0.7}):
        thread = threading.Thread(target=other)
        thread.start()
        assert begun.wait(WAIT)
        # the other thread can do nothing but wait here, however long this takes
        for _ in range(100):
            assert bench.mixer.get_active_adapters() == ["a"]
        bench.assert_mix(a=0.7)
        order.append("block")
    thread.join(WAIT)

    assert order == ["block", "set"]
    bench.assert_mix(b=0.5)


def test_threads_never_see_the_mix_of_another(bench: Bench) -> None:
    mixes = [{"a": 0.7}, {"b": -0.3, "a": 0.1}, {}]
    weight = bench.pipe.components["unet"].linear.weight
    expected = []
    for mix in mixes:
        bench.mixer.set_mix(mix)
        expected.append(weight.detach().clone())
    bench.mixer.set_adapters("c", 2.0)
    start = threading.Barrier(len(mixes))

    def work(number: int) -> int:
        start.wait(WAIT)
        wrong = 0
        for _ in range(40):
            with bench.mixer.applied(mixes[number]):
                # as a picture does: look at the weights more than once, and let others run in between
                wrong += sum(not same_bits(weight.detach().clone(), expected[number]) for _ in range(3))
        return wrong

    with ThreadPoolExecutor(len(mixes)) as pool:
        assert list(pool.map(work, range(len(mixes)))) == [0, 0, 0]

    bench.assert_mix(c=2.0)


def test_threads_that_load_delete_and_mix_leave_the_base(bench: Bench) -> None:
    file = written(bench.pairs["a"])
    start = threading.Barrier(3)

    def work(number: int) -> None:
        start.wait(WAIT)
        for _ in range(10):
            name = f"own_{number}"
            bench.mixer.load_lora_weights(file, name)
            with bench.mixer.applied({name: 0.5, "b": 1.0}):
                assert bench.mixer.get_active_adapters() == [name, "b"]
            bench.mixer.delete_adapters(name)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))

    assert list(bench.mixer.adapters) == ["a", "b", "c"]
    bench.mixer.disable_lora()
    bench.assert_base()


def test_blocks_that_end_in_another_order_leave_what_was_there_before_the_first(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    mixes: tuple[dict[str, float], ...] = ({"a": 0.7}, {"c": 0.3}, {"a": -0.2, "b": 1.0})
    for order in itertools.permutations(range(3)):
        blocks = [bench.mixer.applied(mix) for mix in mixes]
        for block in blocks:
            block.__enter__()
        bench.assert_mix(**mixes[2])
        for number in order:
            blocks[number].__exit__(None, None, None)
            if number == 0:  # what is still open does not keep the first one from putting back what was there
                bench.assert_mix(b=0.5)
        bench.assert_mix(b=0.5)


def test_a_generator_that_outlives_the_block_around_it_brings_nothing_back(bench: Bench) -> None:
    def held() -> Generator[None]:
        with bench.mixer.applied({"a": 0.7}):
            yield

    bench.mixer.set_adapters("b", 0.5)
    with bench.mixer.applied({"c": 0.3}):
        one = held()
        next(one)
    bench.assert_mix(b=0.5)
    one.close()
    bench.assert_mix(b=0.5)


def test_a_block_is_not_ended_by_another_thread_nor_twice(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    block = bench.mixer.applied({"a": 0.7})
    with pytest.raises(PipelineStateError, match="not open"):
        block.__exit__(None, None, None)
    block.__enter__()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(block.__exit__, None, None, None)
        with pytest.raises(PipelineStateError, match="began in another thread"):
            ended.result(WAIT)
        bench.assert_mix(a=0.7)
        block.__exit__(None, None, None)
        bench.assert_mix(b=0.5)
        pool.submit(bench.mixer.set_adapters, "c", 0.3).result(WAIT)  # the lock is free
    bench.assert_mix(c=0.3)
    with pytest.raises(PipelineStateError, match="not open"):
        block.__exit__(None, None, None)


def in_a_thread_that_ends(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()


def in_a_block(bench: Bench) -> None:
    with bench.mixer.applied({"c": 1.0}):
        bench.assert_mix(c=1.0)


CALLS: dict[str, Any] = {
    "set_adapters": (lambda bench: bench.mixer.set_adapters("c", 0.3), {"c": 0.3}),
    "enable_lora": (lambda bench: bench.mixer.enable_lora(), {"b": 0.5}),
    "disable and enable": (lambda bench: (bench.mixer.disable_lora(), bench.mixer.enable_lora()), {"b": 0.5}),
    "load beside": (
        lambda bench: bench.mixer.load_lora_weights(written(bench.pairs["a"]), "d", activate=False), {"b": 0.5},
    ),
    "delete": (lambda bench: bench.mixer.delete_adapters("a"), {"b": 0.5}),
    "another block": (in_a_block, {"b": 0.5}),
    "from a pool": (
        lambda bench: ThreadPoolExecutor(1).submit(bench.mixer.enable_lora).result(WAIT), {"b": 0.5},
    ),
    "unload": (lambda bench: bench.mixer.unload_lora_weights(), {}),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_block_whose_thread_has_ended_keeps_nobody_out_and_leaves_nothing(
    bench: Bench, call: str, depth: int
) -> None:
    bench.mixer.set_adapters("b", 0.5)
    blocks = [bench.mixer.applied({"a": 0.7}), bench.mixer.applied({"a": 0.7, "c": 0.1})][:depth]
    in_a_thread_that_ends(lambda: [block.__enter__() for block in blocks])

    do, left = CALLS[call]
    do(bench)

    bench.assert_mix(**left)
    for block in blocks:  # such as that of a generator which is collected only now
        block.__exit__(None, None, None)
    bench.assert_mix(**left)
    bench.mixer.unload_lora_weights()
    bench.assert_base()


def test_a_block_whose_thread_has_ended_is_ended_by_any_other(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    block = bench.mixer.applied({"a": 0.7})
    in_a_thread_that_ends(block.__enter__)
    bench.assert_mix(a=0.7)
    block.__exit__(None, None, None)
    bench.assert_mix(b=0.5)
    with pytest.raises(PipelineStateError, match="not open"):
        block.__exit__(None, None, None)


def test_asyncio_tasks_of_one_thread_do_not_change_each_others_mix(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    told: list[str] = []

    async def draws(inside: asyncio.Event, end: asyncio.Event) -> None:
        with bench.mixer.applied({"a": 0.7}):
            with bench.mixer.applied({"c": 0.1}):  # of one's own
                bench.assert_mix(c=0.1)
            inside.set()
            await end.wait()
            bench.assert_mix(a=0.7)

    async def other(inside: asyncio.Event, end: asyncio.Event) -> None:
        await inside.wait()
        for call in (
            lambda: bench.mixer.set_adapters("c", 1.0),
            lambda: bench.mixer.applied({"c": 1.0}).__enter__(),
            bench.mixer.disable_lora,
            lambda: bench.mixer.load_lora_weights(written(bench.pairs["a"]), "d"),
        ):
            with pytest.raises(PipelineStateError, match="another asyncio task of this thread") as error:
                call()
            told.append(str(error.value))
        assert bench.mixer.get_active_adapters() == ["a"]  # what is only read
        assert list(bench.mixer.adapters) == ["a", "b", "c"]
        end.set()

    async def both() -> None:
        inside, end = asyncio.Event(), asyncio.Event()
        await asyncio.gather(draws(inside, end), other(inside, end))
        bench.mixer.set_adapters("c", 0.2)
        bench.assert_mix(c=0.2)

    with bench.mixer.applied({"b": 1.0}):  # of the thread, around all tasks
        asyncio.run(both())
        assert len(told) == 4
    bench.assert_mix(b=0.5)


def test_a_task_ends_its_own_blocks_alone(bench: Bench) -> None:
    bench.mixer.set_adapters("b", 0.5)
    block = bench.mixer.applied({"a": 0.7})

    async def ends() -> None:
        with pytest.raises(PipelineStateError, match="began in another asyncio task"):
            block.__exit__(None, None, None)

    async def begins() -> None:
        block.__enter__()
        await asyncio.create_task(ends())
        bench.assert_mix(a=0.7)

    asyncio.run(begins())
    block.__exit__(None, None, None)  # the task is over, and this is its thread
    bench.assert_mix(b=0.5)


def test_tasks_wait_for_each_other_in_threads(bench: Bench) -> None:
    mixes: list[dict[str, float]] = [{"a": 0.7}, {"b": -0.3}, {"c": 0.2, "a": 1.0}]

    def draw(mix: dict[str, float]) -> None:
        with bench.mixer.applied(mix):
            bench.assert_mix(**mix)

    async def all_of_them() -> None:
        await asyncio.gather(*(asyncio.to_thread(draw, mix) for mix in mixes * 3))

    asyncio.run(all_of_them())
    bench.mixer.unload_lora_weights()
    bench.assert_base()
