"""The base comes back bit for bit on every path, whatever the weights are and whatever fails on the way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_mixer import LoraMixer, PipelineStateError
from lora_mixer.engines.merged import cores
from lora_mixer.engines.merged import engine as merged
from tests.small_pipe import Bench, assert_same, mixed, pairs_for, pointers, small_pipe, values, written
from tests.weights import Pair, Snapshot, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS: dict[str, Callable[[LoraMixer], object]] = {
    "disable": lambda mixer: mixer.disable_lora(),
    "unload": lambda mixer: mixer.unload_lora_weights(),
    "delete": lambda mixer: mixer.delete_adapters(list(mixer.adapters)),
    "empty set": lambda mixer: mixer.set_adapters([]),
    "weight 0": lambda mixer: mixer.set_adapters(["a", "b"], 0),
    "restore_base": lambda mixer: mixer.restore_base(),
}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["in this thread"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A small pipeline with adapters; its weights are written by this thread, or "on all cores"."""
    threads = torch.get_num_threads()
    if request.param == "on all cores":
        monkeypatch.setattr(cores, "WORTH_IT", 1)
        torch.set_num_threads(3)
    yield Bench()
    torch.set_num_threads(threads)


on_either = pytest.mark.parametrize("bench", ["in this thread", "on all cores"], indirect=True)


def model_pair(shape: tuple[int, ...], seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(s, generator=generator) for s in ((shape[0], 2), (2, *shape[1:])))
    return Pair(up, down)


def assert_comes_back(pipe: Any, files: dict[str, dict[str, torch.Tensor]]) -> None:
    """Load, mix, and take every way back; nothing may differ afterwards, while mixes do change weights."""
    clean, places = Snapshot.of(pipe), pointers(pipe)
    for way in WAYS.values():
        mixer = LoraMixer(pipe)
        for name, file in files.items():
            mixer.load_lora_weights(file, name)
        mixer.set_adapters(list(files), [0.7, -1.3])
        assert pointers(pipe) == places
        with pytest.raises(AssertionError):
            clean.assert_untouched(pipe)
        way(mixer)
        clean.assert_untouched(pipe)
        assert pointers(pipe) == places
        mixer.unload_lora_weights()
        clean.assert_untouched(pipe)


# --- kinds of weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_back_gives_the_base(dtype: torch.dtype, file_dtype: torch.dtype) -> None:
    pipe = small_pipe(dtype)

    assert_comes_back(pipe, {name: written(pairs_for(pipe, i), file_dtype) for i, name in enumerate("ab")})


def test_channels_last_convolutions_stay_channels_last() -> None:
    pipe = small_pipe()
    conv = pipe.components["unet"].to(memory_format=torch.channels_last).conv
    stride = conv.weight.stride()
    assert not conv.weight.is_contiguous()
    clean, pairs = Snapshot.of(pipe), pairs_for(pipe, 1)
    mixer = LoraMixer(pipe)

    mixer.load_lora_weights(written(pairs), "a")

    clean.assert_holds(pipe, mixed((pairs, 1.0)))
    assert conv.weight.stride() == stride
    mixer.disable_lora()
    clean.assert_untouched(pipe)
    assert conv.weight.stride() == stride


def test_a_weight_that_is_a_view_changes_alone() -> None:
    whole = torch.arange(24.0).view(6, 4)
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    model[0].weight = nn.Parameter(whole[1:4])
    pair = model_pair((3, 4))
    mixer = LoraMixer(model)

    mixer.load_lora_weights({"0.lora_A.weight": pair.down, "0.lora_B.weight": pair.up}, "a")

    assert not torch.equal(whole, torch.arange(24.0).view(6, 4))
    assert torch.equal(whole[[0, 4, 5]], torch.arange(24.0).view(6, 4)[[0, 4, 5]])
    mixer.disable_lora()
    assert torch.equal(whole, torch.arange(24.0).view(6, 4))


def test_a_tied_head_changes_once_its_twin_stays_and_both_come_back() -> None:
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False)))
    model.head.weight = model.embed.weight
    base = model.head.weight.detach().clone()
    one, two = model_pair((7, 4), 1), model_pair((7, 4), 2)
    mixer = LoraMixer(model)

    mixer.load_lora_weights({"head.lora_A.weight": one.down, "head.lora_B.weight": one.up}, "a")
    mixer.load_lora_weights({"head.lora_A.weight": two.down, "head.lora_B.weight": two.up}, "b")
    mixer.set_adapters(["a", "b"], [0.5, 2.0])

    assert model.head.weight is model.embed.weight
    expected = base.double() + 0.5 * one.delta() + 2.0 * two.delta()
    assert torch.allclose(model.head(torch.eye(4)).T.double(), expected, rtol=0, atol=1e-5)
    assert same_bits(model.embed.weight.detach(), base)
    mixer.disable_lora()
    assert same_bits(model.head(torch.eye(4)).T.contiguous().detach(), base)
    assert same_bits(model.embed.weight.detach(), base)


def test_an_adapter_for_both_ends_of_a_tie_gives_each_its_own_part() -> None:
    model = nn.Sequential(OrderedDict(one=nn.Linear(4, 4), two=nn.Linear(4, 4)))
    model.two.weight = model.one.weight
    clean = Snapshot.of(model)
    pairs = {name: model_pair((4, 4), seed) for seed, name in enumerate(("one", "two"))}
    file = {f"{name}.lora_A.weight": pair.down for name, pair in pairs.items()}
    file |= {f"{name}.lora_B.weight": pair.up for name, pair in pairs.items()}
    mixer = LoraMixer(model)

    mixer.load_lora_weights(file, "a")

    for name, pair in pairs.items():
        layer, total = getattr(model, name), clean.state["model.one.weight"].double() + pair.delta()
        found = layer(torch.eye(4)) - layer.bias
        assert torch.allclose(found.T.double(), total, rtol=0, atol=1e-5)
    mixer.unload_lora_weights()
    clean.assert_untouched(model)


def test_parameters_made_in_inference_mode_change_and_come_back() -> None:
    with torch.inference_mode():
        pipe = small_pipe()
    weight = pipe.components["unet"].linear.weight
    assert weight.is_inference()
    clean, pairs = values(pipe), pairs_for(small_pipe(), 1)
    mixer = LoraMixer(pipe)

    mixer.load_lora_weights(written(pairs), "a")
    mixer.set_adapters("a", 0.5)

    expected = clean["unet.linear.weight"].double() + 0.5 * pairs["unet", "linear"].delta()
    assert torch.allclose(weight.double(), expected, rtol=0, atol=1e-6)
    mixer.disable_lora()
    assert_same(values(pipe), clean)


def test_calls_in_and_out_of_inference_mode_mix_alike(bench: Bench) -> None:
    with torch.inference_mode():
        bench.pairs["d"] = pairs_for(bench.pipe, 4)
        bench.mixer.load_lora_weights(written(bench.pairs["d"]), "d")
    bench.mixer.set_adapters(["a", "d"], [0.5, 0.2])
    bench.assert_mix(a=0.5, d=0.2)

    with torch.inference_mode():
        bench.mixer.set_adapters(["b", "d"], [0.5, 0.2])
        bench.assert_mix(b=0.5, d=0.2)
        bench.mixer.disable_lora()

    bench.assert_base()
    assert not any(p.is_inference() for p in bench.pipe.components["unet"].parameters())


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_conv1d_of_gpt2_is_stored_the_other_way_round(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(c_attn=Conv1D(6, 4), c_proj=Conv1D(4, 4))).to(dtype)
    clean, pair = Snapshot.of(model), model_pair((6, 4))
    mixer = LoraMixer(model)

    mixer.load_lora_weights({"c_attn.lora_A.weight": pair.down, "c_attn.lora_B.weight": pair.up}, "a")

    assert model.c_attn.weight.shape == (4, 6)
    expected = (clean.state["model.c_attn.weight"].double() + pair.delta().T).to(dtype)
    assert torch.allclose(model.c_attn.weight, expected, atol=2 * torch.finfo(dtype).eps)
    mixer.disable_lora()
    clean.assert_untouched(model)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_a_bias_is_added_and_comes_off_without_a_trace(layer: str, has_bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3, bias=has_bias) if layer == "linear" else nn.Conv2d(4, 3, 1, bias=has_bias)
    model = nn.Sequential(module)
    x = torch.randn(2, 4) if layer == "linear" else torch.randn(2, 4, 5, 5)
    clean, before = Snapshot.of(model), model(x)
    pair, bias = model_pair(tuple(module.weight.shape)), torch.tensor([1.0, -2.0, 3.0])
    up = pair.up.reshape(*pair.up.shape, *[1] * (pair.down.ndim - 2))
    mixer = LoraMixer(model)

    mixer.load_lora_weights({"0.lora_A.weight": pair.down, "0.lora_B.weight": up, "0.lora_B.bias": bias}, "a")
    mixer.set_adapters("a", 0.5)

    assert [f"model.{key}" for key in model.state_dict()] == list(clean.state)
    change = torch.einsum("oi,bi...->bo...", 0.5 * pair.delta().float(), x)
    expected = before + change + 0.5 * bias.view(-1, *[1] * (x.ndim - 2))
    assert torch.allclose(model(x), expected, atol=1e-5)
    for _ in range(3):
        mixer.set_adapters("a", 0.5)
    assert torch.allclose(model(x), expected, atol=1e-5)
    mixer.disable_lora()
    clean.assert_untouched(model)
    assert torch.equal(model(x), before)
    mixer.enable_lora()
    mixer.delete_adapters("a")
    clean.assert_untouched(model)


def test_a_thousand_mixes_later_the_base_is_the_base() -> None:
    pipe = small_pipe(torch.bfloat16)
    clean, places = Snapshot.of(pipe), pointers(pipe)
    mixer = LoraMixer(pipe)
    for name, seed in (("a", 1), ("b", 2)):
        mixer.load_lora_weights(written(pairs_for(pipe, seed)), name)
    mixer.set_adapters(["a", "b"], [0.25, -0.5])
    early = values(pipe)

    for number in range(1000):
        mixer.set_adapters(["a", "b"][: 1 + number % 2], (number % 13) - 6.5)
    mixer.set_adapters(["b", "a"], [-0.5, 0.25])

    assert_same(values(pipe), early)
    mixer.disable_lora()
    clean.assert_untouched(pipe)
    assert pointers(pipe) == places


# --- failures half-way ----------------------------------------------------------------------------------------------


class Fuse:
    """Calls through until it has burnt down, then raises, once or for good."""

    def __init__(self, call: Callable[..., Any], after: int, error: BaseException, times: int = 1) -> None:
        self.call, self.after, self.error, self.times = call, after, error, times

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.after -= 1
        if self.after < 0 and self.times > 0:
            self.times -= 1
            raise self.error
        return self.call(*args, **kwargs)


@on_either
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("before", [{}, {"a": 1.0}, {"a": 0.3, "b": -2.0}])
def test_a_write_that_fails_half_way_leaves_the_mix_from_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, before: dict[str, float], after: int, error: BaseException
) -> None:
    bench.mixer.set_mix(before)
    held = bench.bits()
    monkeypatch.setattr(merged, "blend_weight", Fuse(merged.blend_weight, after, error))

    with pytest.raises(type(error)) as caught:
        bench.mixer.set_adapters(["b", "c"], [0.5, 0.5])

    assert caught.value is error
    assert_same(bench.bits(), held)
    assert bench.mixer.get_active_adapters() == list(before)
    bench.mixer.set_adapters(["b", "c"], [0.5, 0.5])
    bench.assert_mix(b=0.5, c=0.5)
    bench.mixer.disable_lora()
    bench.assert_base()


@on_either
def test_a_load_whose_write_fails_leaves_no_trace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.5, 2.0])
    held, memory = bench.bits(), bench.mixer.memory()
    monkeypatch.setattr(merged, "blend_weight", Fuse(merged.blend_weight, 2, MemoryError()))

    with pytest.raises(MemoryError):
        bench.mixer.load_lora_weights(written(bench.pairs["c"]), "d")

    assert_same(bench.bits(), held)
    assert list(bench.mixer.adapters) == ["a", "b", "c"]
    assert bench.mixer.memory() == memory
    bench.assert_mix(a=0.5, b=2.0)


@on_either
def test_when_the_way_back_fails_too_the_base_is_in_effect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.5, 2.0])
    monkeypatch.setattr(merged, "blend_weight", Fuse(merged.blend_weight, 2, MemoryError(), times=100))

    with pytest.raises(PipelineStateError, match="the base is back"):
        bench.mixer.set_adapters("c")

    bench.assert_base()
    monkeypatch.undo()
    bench.mixer.enable_lora()
    bench.assert_mix(a=0.5, b=2.0)


def test_a_failure_while_the_base_is_put_back_can_be_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mixer.set_adapters(["a", "b"], [0.5, 2.0])
    held = bench.bits()
    whole = torch._foreach_copy_

    def half(to: list[torch.Tensor], of: list[torch.Tensor]) -> None:
        whole(to[: len(to) // 2], of[: len(of) // 2])
        raise MemoryError

    monkeypatch.setattr(torch, "_foreach_copy_", half)
    with pytest.raises(MemoryError):
        bench.mixer.disable_lora()
    monkeypatch.undo()

    assert_same(bench.bits(), held)
    bench.assert_mix(a=0.5, b=2.0)
    bench.mixer.disable_lora()
    bench.assert_base()


def test_writes_on_all_cores_are_those_of_one_thread_and_leave_no_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mixer.set_adapters(["a", "b", "c"], [0.5, 2.0, -0.3])
    alone = bench.bits()
    bench.mixer.disable_lora()
    monkeypatch.setattr(cores, "WORTH_IT", 1)
    before, running = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(3)
    writers = set()
    blend = merged.blend_weight

    def seen(*args: Any, **kwargs: Any) -> None:
        writers.add((threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()))
        blend(*args, **kwargs)

    monkeypatch.setattr(merged, "blend_weight", seen)
    try:
        bench.mixer.set_adapters(["a", "b", "c"], [0.5, 2.0, -0.3])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

    assert_same(bench.bits(), alone)
    assert all(name.startswith("lora_mixer writes") for name, _, _ in writers)
    assert {(count, grads) for _, count, grads in writers} == {(1, False)}
    assert threading.active_count() == running


def test_a_machine_without_a_thread_left_says_so_and_nothing_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.mixer.set_adapters("a", 0.5)
    held, before = bench.bits(), torch.get_num_threads()
    monkeypatch.setattr(cores, "WORTH_IT", 1)
    torch.set_num_threads(3)
    refused = Fuse(threading.Thread.start, 1, RuntimeError("can't start new thread"))

    def start(thread: threading.Thread) -> None:
        refused(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    try:
        with pytest.raises(RuntimeError, match="new thread"):
            bench.mixer.set_adapters("b")
    finally:
        torch.set_num_threads(before)

    assert_same(bench.bits(), held)
    bench.mixer.set_adapters("b")
    bench.assert_mix(b=1)


# --- copies and files -----------------------------------------------------------------------------------------------


def test_a_deep_copy_holds_the_mix_and_lives_alone(bench: Bench) -> None:
    bench.mixer.set_adapters("a", 0.5)
    held = bench.bits()

    copy = deepcopy(bench.pipe)

    assert_same(values(copy), held)
    second = LoraMixer(copy)
    assert list(second.adapters) == ["a", "b", "c"]
    assert second.mix == bench.mixer.mix
    second.load_lora_weights(written(bench.pairs["b"]), "b")
    bench.assert_mix(a=0.5)
    second.set_adapters("a", 0.5)
    assert_same(values(copy), held)
    second.disable_lora()
    bench.assert_mix(a=0.5)
    bench.mixer.disable_lora()
    bench.assert_base()
    assert_same(values(copy), values(bench.pipe))


def test_memory_counts_the_bytes_of_bases_and_adapters() -> None:
    pipe = small_pipe(torch.float16)
    pairs = pairs_for(pipe, 1, lambda component, path: path in ("linear", "conv"))
    for keep in ("device", "host", "patch"):
        mixer = LoraMixer(pipe, keep_base=keep)
        assert mixer.memory().total == 0
        mixer.load_lora_weights(written(pairs), "a")
        touched = [pipe.components["unet"].linear.weight, pipe.components["unet"].conv.weight]
        memory = mixer.memory()
        assert memory.keep_base == keep
        copies = sum(w.numel() * 2 for w in touched)
        assert memory.base["cpu"] == copies if keep != "patch" else 0 < memory.base["cpu"] <= copies
        assert memory.adapters == {"a": sum(4 * t.numel() for p in pairs.values() for t in (p.up, p.down))}
        assert memory.total == memory.base["cpu"] + memory.adapters["a"]
        mixer.unload_lora_weights()
        assert mixer.memory().total == 0
