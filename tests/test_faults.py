"""After any error the pipeline is as before; where nothing can be written any more, what the mixer says is true."""

from __future__ import annotations

import importlib
import inspect
import signal
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_mixer import LoraMixer, MixError, MixLostError, PartialMatchWarning, UnusedWeightWarning
from lora_mixer.diffusers_words import _OF_MODELS, _OF_PIPELINES
from lora_mixer.engines.merged.engine import MergedEngine
from lora_mixer.engines.side import engine as side
from lora_mixer.interrupts import Interruptible
from tests import faults, file_faults
from tests.faults import AROUND, KINDS, SCHEDULE, Bench, inject, said, same, seen, surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_leaves_a_state_unlike_what_the_mixer_says(kind: str) -> None:
    """``python -m tests.faults`` runs as many as there is time for; here some are drawn."""
    done, wrong = inject(seed=20261130, count=40, kinds=(kind,))
    assert done == {kind: 40}
    assert wrong == []


@pytest.mark.parametrize(
    ("state", "call"),
    [
        ("merged", "set_adapters"), ("merged", "hotswap"), ("merged", "reserve"), ("merged", "rebase"),
        ("merged", "hotswap another kind"), ("rows", "run"), ("adalora", "after_step"), ("adalora", "load_training_state"),
        ("training", "hotswap trained"), ("diffusers' words", "say load_lora_weights hotswap"),
        ("diffusers' words, fused", "say unload_lora_weights"),
    ],
)  # fmt: skip
def test_each_operation_of_a_call_may_fail(state: str, call: str) -> None:
    bench = Bench(state, call)
    assert bench.operations or call == "rebase"
    places = range(1, bench.operations + 1, max(1, bench.operations // 40))
    assert {k: bench.run("operation", k) for k in places} == dict.fromkeys(places)


@pytest.mark.parametrize("call", ["applied many", "applied, open"])
@pytest.mark.parametrize("state", ["merged", "replaced"])
def test_a_block_that_ctrl_c_ends_as_it_begins_leaves_what_one_leaves_that_has_ended(
    state: str, call: str
) -> None:
    """Also where a part was replaced: the mix from before is on the new part, as after any call."""
    with faults._keys():
        bench = Bench(state, call)
        places = range(bench.signals // 2, bench.signals + 1, max(1, bench.signals // 16))
        assert {k: bench.run("signal", k) for k in places} == dict.fromkeys(places)


@contextmanager
def failing(owner: Any, name: str, times: int) -> Iterator[None]:
    """Let the next calls of a function raise."""
    whole, count = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count <= times:
            raise MemoryError(name)
        return whole(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, whole)


def test_when_the_way_back_fails_too_no_adapter_is_said_to_be_active() -> None:
    bench = Bench("base", "disable")
    net, mixer = bench.make()
    base = seen(net)
    mixer.set_mix({"a": 0.5}, engine="side")

    with (
        failing(side, "make_layers", times=2),
        pytest.raises(MixLostError, match="the base is back") as caught,
    ):
        mixer.set_mix({"b": 0.5}, engine="side")

    assert caught.value.unwritten == ()
    assert mixer.get_active_adapters() == []
    assert torch.equal(seen(net)["0 (output)"], base["0 (output)"])
    mixer.enable_lora()
    assert mixer.get_active_adapters() == ["a"]
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in seen(net).items())


def test_a_base_that_could_not_be_written_is_told_and_not_lost() -> None:
    bench = Bench("base", "disable")
    net, mixer = bench.make()
    base = {key: value.clone() for key, value in net.state_dict().items()}
    mixer.set_adapters("a", 0.7)

    with ExitStack() as stack:
        stack.enter_context(failing(torch, "_foreach_copy_", times=99))
        stack.enter_context(failing(MergedEngine, "_write", times=99))
        with pytest.raises(MixLostError, match=r"could not be given their base back") as caught:
            mixer.disable_lora()

    assert caught.value.unwritten == ("model.one.weight", "model.two.weight")
    assert mixer.get_active_adapters() == []
    net.double()
    mixer.disable_lora()
    assert all(torch.equal(value.float(), base[key]) for key, value in net.state_dict().items())


def test_the_end_of_applied_is_tried_again() -> None:
    net, mixer = Bench("base", "disable").make()
    mixer.set_adapters("a", 0.7)
    before = seen(net)
    with ExitStack() as stack, pytest.raises(MemoryError), mixer.applied({"b": 1.0}):
        stack.enter_context(failing(MergedEngine, "_write", times=1))
    assert mixer.get_active_adapters() == ["a"]
    assert all(torch.equal(value, before[key]) for key, value in seen(net).items())


def test_a_step_that_cannot_be_written_leaves_the_step_before() -> None:
    net, mixer = Bench("base", "disable").make()
    mixer.set_mix(SCHEDULE, engine="merged")
    before = seen(net)
    timesteps = [900.0, 100.0]  # a loop's own run
    net(torch.ones(1, 8), timesteps[0])
    with failing(MergedEngine, "_write", times=1), pytest.raises(MemoryError):
        net(torch.ones(1, 8), timesteps[1])
    mixer.disable_lora()
    mixer.enable_lora()
    assert all(torch.equal(value, before[key]) for key, value in seen(net).items())


@pytest.fixture
def keys() -> Iterator[None]:
    """Let Ctrl-C be what Python makes of it, also in a job that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("place", ["begin", "block", "end"])
@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_waits_until_the_pipeline_is_whole(place: str, times: int) -> None:
    """What begins a block is taken back whole, and what ends it is done whole, however often keys are pressed."""
    done = []
    lock = threading.RLock()

    def at(here: str) -> None:
        for _ in range(times if here == place else 0):
            interrupt()
        done.append(here)

    with pytest.raises(KeyboardInterrupt), Interruptible(lambda: at("begin"), lambda _: at("end"), lock):
        at("block")
    assert (
        done
        == {"begin": ["begin", "end"], "block": ["begin", "end"], "end": ["begin", "block", "end"]}[place]
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert lock.acquire(blocking=False)


@pytest.mark.usefixtures("keys")
def test_ctrl_c_within_a_block_inside_of_what_is_whole_waits_for_the_outer_one() -> None:
    done = []

    def end(_: BaseException | None) -> None:
        with Interruptible(lambda: None, lambda _: done.append("inner")):
            interrupt()
            done.append("block")
        done.append("outer")

    with pytest.raises(KeyboardInterrupt), Interruptible(lambda: None, end):
        pass
    assert done == ["block", "inner", "outer"]


@pytest.mark.usefixtures("keys")
def test_ctrl_c_ends_waiting_for_another_thread() -> None:
    lock, stop = threading.RLock(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            stop.wait(60)

    held, main = threading.Event(), threading.main_thread().ident
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), Interruptible(lambda: None, lambda _: None, lock):
        pytest.fail("another thread has the lock")
    stop.set()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("keys")
def test_a_handler_that_raises_nothing_goes_on() -> None:
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(1))
    with Interruptible(interrupt, lambda _: interrupt()):
        interrupt()
    assert came == [1, 1, 1]


@pytest.mark.usefixtures("keys")
def test_real_ctrl_c_leaves_what_the_mixer_says() -> None:
    net, mixer = Bench("base", "disable").make()
    mixer.set_adapters("a", 0.7)
    one = seen(net)
    mixer.set_adapters(["b", "a"], [0.3, 0.1])
    other = seen(net)
    main = threading.main_thread().ident
    for number in range(30):
        timer = threading.Timer(0.0005 * (number % 10 + 1), lambda: signal.pthread_kill(main, signal.SIGINT))
        try:
            timer.start()
            for _ in range(200):
                mixer.set_adapters("a", 0.7)
                mixer.set_adapters(["b", "a"], [0.3, 0.1])
            timer.join()
        except KeyboardInterrupt:
            pass
        expected = one if mixer.get_active_adapters() == ["a"] else other
        assert all(torch.equal(value, expected[key]) for key, value in seen(net).items())


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_ctrl_c_as_a_guard_of_torch_ends_leaves_torch_as_it_was(
    around: str, guard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes before the guard has put anything back."""
    with torch.inference_mode(guard is torch.inference_mode):
        _, mixer = Bench("base", "disable").make()
    whole, left = guard.__exit__, 0

    def leave(self: Any, *error: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            interrupt()
        whole(self, *error)

    interrupted, kept = 0, []
    for number in range(1, 40):
        with AROUND[around]():
            before = surroundings()
            with monkeypatch.context() as patch:
                patch.setattr(guard, "__exit__", leave)
                left = number
                try:
                    mixer.set_adapters("ab"[number % 2], 0.7)
                except KeyboardInterrupt as error:
                    interrupted += 1
                    kept.append(
                        error
                    )  # what its frames hold would put torch back later, in the middle of something
                left = 0
            assert surroundings() == before
    assert interrupted
    kept.clear()
    assert surroundings()[:2] == (True, False)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_is_set_as_before_whatever_a_call_is_made_in(around: str, kind: str) -> None:
    bench = Bench("merged", "set_mix steps", around)
    places = bench.places(kind)
    for k in range(1, places + 1, max(1, places // 6)):
        assert bench.run(kind, k, 7) is None


@pytest.mark.parametrize("call", ["rebase", "set_adapters", "hotswap", "unload"])
@pytest.mark.parametrize("state", ["merged", "side"])
def test_a_fault_at_any_call_while_a_change_is_committed_takes_it_back_or_lets_it_stand(
    state: str, call: str
) -> None:
    """The last calls of each are those that let the way back go."""
    bench = Bench(state, call)
    assert [bench.run("call", k) for k in range(max(1, bench.calls - 45), bench.calls + 1)] == [None] * 46


@pytest.mark.parametrize("state", ["merged", "side"])
def test_what_could_not_be_let_go_is_let_go_by_the_next_call(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, mixer = Bench(state, "disable").make()
    with failing(MergedEngine, "settle", times=1):
        mixer.rebase(bake=state == "merged")
    assert mixer.get_active_adapters() == []
    now = seen(net)
    with failing(MergedEngine, "_write", times=1), pytest.raises(MemoryError):
        mixer.set_adapters("b", 0.3)
    assert all(torch.equal(value, now[key]) for key, value in seen(net).items())


def test_a_block_that_can_end_neither_time_leaves_the_base_and_says_so() -> None:
    net, mixer = Bench("base", "disable").make()
    base = seen(net)
    mixer.set_adapters("a", 0.7)
    before = seen(net)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(MixLostError, match="the base is back"))
        with mixer.applied({"b": 1.0}):
            whole, count = mixer._apply, 0  # its ends and their ways back write by the engine, too

            def apply(state: Any, wanted: Any) -> Any:
                nonlocal count
                count += 1
                if count <= 2:
                    raise MemoryError(f"{count}")
                return whole(state, wanted)

            mixer._apply = apply
    del mixer._apply
    assert mixer.get_active_adapters() == []
    assert all(torch.equal(value, base[key]) for key, value in seen(net).items())
    mixer.enable_lora()
    assert mixer.get_active_adapters() == ["a"]
    assert all(torch.equal(value, before[key]) for key, value in seen(net).items())


@pytest.mark.parametrize("kind", file_faults.KINDS)
def test_no_fault_in_a_call_that_writes_files_leaves_anything_but_what_was_or_what_is_to_be(
    kind: str,
) -> None:
    """``python -m tests.file_faults`` runs as many as there is time for."""
    done, wrong = file_faults.inject(seed=20261130, count=8, kinds=(kind,))
    assert done == {kind: 8}
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "places"),
    [("convert, peft over another", 3), ("Library.restore", 4), ("Library.rename, beside", 4)],
)
def test_whatever_a_disk_refuses_and_whatever_comes_last_is_taken_back(call: str, places: int) -> None:
    with faults._keys():
        _, _, found = file_faults.around(call)
        last = {kind: range(max(1, found[kind] - places), found[kind] + 1) for kind in ("call", "signal")}
        cases = [("disk", k) for k in range(1, found["disk"] + 1)] + [
            (kind, k) for kind in last for k in last[kind]
        ]
        assert {case: file_faults.run(call, *case) for case in cases} == dict.fromkeys(cases)


def test_every_public_name_of_a_mixer_has_a_call_that_faults_are_injected_into() -> None:
    source = inspect.getsource(faults)
    public = [name for name in dir(LoraMixer) if not name.startswith("_")]
    assert [name for name in public if f"mixer.{name}" not in source and f"Mixer.{name}" not in source] == []


def test_every_word_of_diffusers_that_changes_something_has_one_too() -> None:
    words = {*_OF_PIPELINES, *(f"unet.{word}" for word in _OF_MODELS)} - {
        f"{front}{word}" for front in ("", "unet.") for word in ("set_lora_device", "enable_lora_hotswap")
    }
    twice = {"unet.disable_adapters", "unet.enable_adapters", "get_list_adapters"}  # the same functions
    assert words - twice - {name.partition(" ")[0] for name in faults.SAID} == set()


NO_FAULTS = {
    "values: nothing is held or written": (
        "AdapterInfo AdapterMatches AdapterMix BatchResult BlockLayout BlockShape BlockTree Blocks Checkpoint CheckedPlan "
        "Compatibility ComponentMatch Composite Constant DemoAdapter DryRun Entry EvaConfig Fit GridAxis KLora Keyframes "
        "LayerNorms LayerPatterns LbwWeights LowRankForm Mask MatchReport Measurement MemoryReport MergeMethod Method "
        "MethodSpec Mix ModelOptions OutputFormat Page Picture PictureAdapter PictureField PictureFields PictureRequest "
        "PictureSettings Plan PlannedPicture Problem Proposal Ramp Recalled Refreshed Remedy Sampler SaveReport Schedule Setting "
        "SliderStart SpeedReport StepProgress Switch TokenInfo Window AdapterMatch Band"
    ),
    "functions of values, or of files that they only read": (
        "base_family block_layouts breadcrumbs check_plan compatible concatenate contact_sheet dare della demo_adapters "
        "draw_lbw dry_run find_models fitting_samplers format_prompt free_folder grid_requests grid_sheet infotext "
        "knots layer_norms load_demo load_outline load_pipeline load_plan magnitude_prune match_adapter match_adapters "
        "model_card names_in_prompt orthogonal_sum own_defaults pair_of parse_plan parse_prompt plan_schema propose propose_for "
        "read_adapter read_checkpoint read_config read_manifest read_picture read_presets recalled_request safe_name "
        "schedule_of ties truncate truncate_pair usual_name weighted_sum with_adapter"
    ),
    "made of a mixer's calls: loading, applied, save_lora_weights": (
        "LoraMixer PictureMaker from_adapter measure_speed push_to_hub"
    ),
    "killed at any moment by test_batch_failures, full disks by test_batch_ends": "run_plan",
    "turns of a queue, which end with their block by test_picture_queue": "FairQueue",
    "the writing of resize, from whole models": "extract",
    "their save is that of LoraConfig": (
        "AdaLoraConfig AdapterConfig FullConfig IA3Config LoHaConfig LoKrConfig OFTConfig TrainableTokensConfig"
    ),
}
ASKING = {
    "add_from_hub", "by_hash", "common_problems", "compatible", "duplicates", "export_text", "facets", "find", "get", "hashes",
    "info", "known", "list", "load", "search", "source", "thumbnail", "to_dict", "tree",
}  # fmt: skip
"""Methods of what is changed by others of their methods; adding from the Hub is ``add`` with another source."""


def public_calls() -> Iterator[str]:
    for name in (
        "",
        ".batches",
        ".fresh",
        ".library",
        ".merging",
        ".mixes",
        ".picture_metadata",
        ".pictures",
        ".writing",
    ):
        module = importlib.import_module(f"lora_mixer{name}")
        for each in module.__all__:
            found = getattr(module, each)
            if inspect.isclass(found) and not issubclass(found, BaseException):
                own = [
                    key for key, value in vars(found).items() if inspect.isfunction(value) and key[0] != "_"
                ]
                yield each if any(each in listed.split() for listed in NO_FAULTS.values()) else ""
                yield from (f"{each}.{key}" for key in own)
            elif inspect.isfunction(found):
                yield each


def test_every_public_call_has_faults_or_a_reason_to_have_none() -> None:
    listed = {name for names in NO_FAULTS.values() for name in names.split()}
    covered = {name.partition(",")[0] for name in file_faults.CALLS}
    calls = set(public_calls()) - {""}
    missing = {
        call
        for call in calls
        if call not in covered
        and call.partition(".")[0] not in listed
        and not ("." in call and call.partition(".")[2] in ASKING)
    }
    assert missing == set()
    assert covered <= calls | {"LoraConfig.save"}


@pytest.mark.parametrize("state", ["base", "merged", "side", "schedule", "rows"])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_warning_that_is_made_an_error_is_one_and_changes_nothing(state: str, engine: str) -> None:
    held = Bench(state, "disable").made()
    before = seen(held), said(held.mixer)
    partial = {
        **held.lora(7),
        "nothing.lora_A.weight": torch.ones(2, 8),
        "nothing.lora_B.weight": torch.ones(8, 2),
    }
    useless = {"a": {"weight": 1.0, "components": {"unet": 0.2}}}
    calls = [
        (PartialMatchWarning, lambda: held.mixer.load_lora_weights(partial, "new")),
        (PartialMatchWarning, lambda: held.mixer.load_lora_weights(partial, "a", hotswap=True)),
        ((UnusedWeightWarning, MixError), lambda: held.mixer.set_mix(useless, engine=engine)),
        ((UnusedWeightWarning, MixError), lambda: held.mixer.applied(useless, engine=engine).__enter__()),
    ]
    for kinds, call in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(kinds):
                call()
        assert same(seen(held), before[0])
        assert said(held.mixer) == before[1]
