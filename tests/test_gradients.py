"""Gradients of a call are those of the mix that it was made under, or there are none: whatever changes the mix before the backward pass."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_mixer import LoraConfig, LoraMixer, LoraMixerError, PipelineStateError
from lora_mixer.engines.merged.engine import _key
from lora_mixer.engines.merged.versions import Contents
from tests.small_pipe import SmallPipe, mixed, pairs_for, written
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLOSE = 1e-9
CHECKPOINTS = ["none", "blocks", "reentrant blocks", "around"]
"""Whether blocks, or the whole call, are computed once more for their gradients."""


class Denoiser(nn.Module):
    """Three blocks between layers that no adapter changes, so that nothing but what we do tells of a change within checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 7), nn.SiLU(), nn.Linear(7, 6)) for _ in range(3)
        )
        self.checkpoint = "none"

    def forward(
        self, sample: torch.Tensor, timestep: Any, cross_attention_kwargs: Any = None
    ) -> tuple[torch.Tensor]:
        del cross_attention_kwargs
        x = self.first(sample) + float(timestep) / 1000
        for block in self.blocks:
            if torch.is_grad_enabled() and "blocks" in self.checkpoint:
                x = x + checkpoint(block, x, use_reentrant=self.checkpoint != "blocks")
            else:
                x = x + block(x)
        return (self.last(x.tanh()),)


def made() -> SmallPipe:
    torch.manual_seed(3)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    pipe = SmallPipe(unet=Denoiser().double().requires_grad_(False))
    pipe.components["scheduler"] = pipe.scheduler = scheduler  # type: ignore[attr-defined]
    return pipe


PIPE = made()
PAIRS = {
    name: pairs_for(PIPE, seed, lambda _, path: "blocks" in path) for seed, name in enumerate("ab", start=1)
}
SAMPLE = torch.randn(2, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def gradient(*steps: tuple[float, float, float]) -> torch.Tensor:
    """Return the gradient of a run's calls (timestep, weight of a, weight of b), computed with weights written by hand, in fp64."""
    x = SAMPLE.clone().requires_grad_()
    y = x
    for timestep, a, b in steps:
        unet: Any = copy.deepcopy(PIPE.components["unet"])
        for (_, path), change in mixed((PAIRS["a"], a), (PAIRS["b"], b)).items():
            unet.get_submodule(path).weight += change
        y = y - 0.3 * unet(y, timestep)[0]
    y.square().sum().backward()
    assert x.grad is not None
    return x.grad


class Run:
    """A mixer with two adapters, and forward passes through its denoiser."""

    def __init__(self, engine: Any, kind: str) -> None:
        self.pipe = made()
        self.unet: Any = self.pipe.components["unet"]
        self.unet.checkpoint = kind
        self.mixer = LoraMixer(self.pipe, keep_base="patch" if engine == "patched" else "device")
        for name, pairs in PAIRS.items():
            self.mixer.load_lora_weights(written(pairs), name, activate=False)
        self.engine = "merged" if engine == "patched" else engine
        self.x = SAMPLE.clone().requires_grad_()
        self.y: torch.Tensor = self.x

    def set(self, mix: Any) -> None:
        self.mixer.set_mix(mix, engine=self.engine)

    @contextmanager
    def applied(self, mix: Any) -> Iterator[None]:
        with self.mixer.applied(mix, engine=self.engine):
            yield

    def call(self, timestep: Any = 500, **more: Any) -> None:
        if self.unet.checkpoint == "around":
            out = checkpoint(self.unet, self.y, timestep, use_reentrant=False, **more)[0]
        else:
            out = self.unet(self.y, timestep, **more)[0]
        self.y = self.y - 0.3 * out

    def backward(self) -> torch.Tensor:
        self.y.square().sum().backward(retain_graph=True)
        assert self.x.grad is not None
        return self.x.grad

    def look(self, **more: Any) -> None:
        with torch.no_grad():
            self.unet(SAMPLE, 500, **more)


def one(run: Run) -> None:
    run.set({"a": 1})
    run.call()


def nothing(run: Run) -> None:
    one(run)


def twice(run: Run) -> None:
    one(run)
    run.call()


def set_again(run: Run) -> None:
    one(run)
    run.set({"a": 1})


def other_mix(run: Run) -> None:
    one(run)
    run.set({"a": 0.5})


def other_adapter(run: Run) -> None:
    one(run)
    run.set({"b": 1})


def weights_in_between(run: Run) -> None:
    one(run)
    run.set({"a": 0.5})
    run.call()
    run.set({"a": 1})


def end_of_applied(run: Run) -> None:
    with run.applied({"a": 1}):
        run.call()


def applied_in_between(run: Run) -> None:
    one(run)
    with run.applied({"b": 1}):
        run.look()


def nothing_applied_in_between(run: Run) -> None:
    one(run)
    with run.applied({}):
        run.look()


def disabled(run: Run) -> None:
    one(run)
    run.mixer.disable_lora()


def disabled_and_enabled(run: Run) -> None:
    one(run)
    run.mixer.disable_lora()
    run.mixer.enable_lora()


def enabled_for_a_while(run: Run) -> None:
    run.mixer.disable_lora()
    run.call()
    run.set({"a": 1})
    run.look()
    run.mixer.disable_lora()


def unloaded(run: Run) -> None:
    one(run)
    run.mixer.unload_lora_weights()


def deleted(run: Run) -> None:
    one(run)
    run.mixer.delete_adapters("a")


def restored(run: Run) -> None:
    one(run)
    run.mixer.restore_base()


def another_loaded(run: Run) -> None:
    one(run)
    run.mixer.load_lora_weights(written(PAIRS["b"]), "c", activate=False)


def replaced(run: Run) -> None:
    one(run)
    run.mixer.load_lora_weights(written(PAIRS["b"]), "a", replace=True)


def other_engine(run: Run) -> None:
    one(run)
    run.mixer.set_mix({"a": 1}, engine={"merged": "side", "side": "merged"}[run.engine])


def scale_in_between(run: Run) -> None:
    one(run)
    run.look(cross_attention_kwargs={"scale": 0.5})


def scaled_call(run: Run) -> None:
    run.set({"a": 1})
    run.x = SAMPLE.clone().requires_grad_()
    run.y = run.x
    run.call(cross_attention_kwargs={"scale": 0.5})


def run_of(run: Run, mix: Any, *, each: bool = False) -> None:
    scheduler: Any = run.pipe.components["scheduler"]
    run.set(mix)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        run.call(t)
        if each:
            run.backward()
            run.x = SAMPLE.clone().requires_grad_()
            run.y = run.x


def schedule(run: Run) -> None:
    run_of(run, "a:1,schedule=linear(0.2, 1)")


def switch(run: Run) -> None:
    run_of(run, "a:1, b:1 | switch(tau=1)")


def schedule_at_rest(run: Run) -> None:
    run_of(run, "a:1,schedule=window(0, 0.1)", each=True)
    run.call(0)


def composite(run: Run) -> None:
    run.set("a:1, b:1 | composite")
    scheduler: Any = run.pipe.components["scheduler"]
    scheduler.set_timesteps(3)
    run.call(int(scheduler.timesteps[0]))


ONE = ((500, 1, 0),)
BASE = ((500, 0, 0),)
RIGHT: dict[Callable[[Run], None], Any] = {
    nothing: ONE,
    twice: ONE * 2,
    another_loaded: ONE,
    enabled_for_a_while: BASE,
    disabled_and_enabled: ONE,
    schedule_at_rest: ((0, 0, 0),),
}
"""What has the gradients of these calls, whatever the engine."""
BACK_IN_WEIGHTS: dict[Callable[[Run], None], Any] = {
    set_again: ONE,
    applied_in_between: ONE,
    nothing_applied_in_between: ONE,
    scale_in_between: ONE,
}
"""What has them where the mix is in the weights, bit for bit what it was; beside them it was written in place."""
STEPS: dict[Callable[[Run], None], Any] = {
    schedule: ((666, 0.2, 0), (333, 0.6, 0), (0, 1, 0)),
    switch: ((666, 1, 0), (333, 0, 1), (0, 1, 0)),
}
"""What has them where each call is made once more for its gradients, at its own step."""
WRONG = [
    other_mix,
    other_adapter,
    weights_in_between,
    end_of_applied,
    disabled,
    unloaded,
    deleted,
    restored,
    replaced,
    other_engine,
    scaled_call,
    composite,
]
"""What has none."""


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("engine", ["merged", "patched", "side"])
@pytest.mark.parametrize("act", [*RIGHT, *BACK_IN_WEIGHTS, *STEPS, *WRONG], ids=lambda act: act.__name__)
def test_gradients_are_those_of_the_mix_of_the_call_or_refused(
    act: Callable[[Run], None], engine: Any, kind: str
) -> None:
    run = Run(engine, kind)
    expected = RIGHT.get(act) or BACK_IN_WEIGHTS.get(act) or (STEPS.get(act) if kind == "around" else None)
    try:
        act(run)
        found = run.backward()
    except LoraMixerError:
        assert act not in RIGHT
        assert act not in STEPS or kind != "around"
        assert act not in BACK_IN_WEIGHTS or engine == "side"
        assert run.x.grad is None
        return
    if expected is None:
        raise AssertionError("gradients of no mix")
    assert torch.allclose(found, gradient(*expected), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("is_block", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [({"a": 1}, {"a": 0.5}), ({"a": 1}, {}), ({}, {"a": 1})], ids=["other", "off", "on"]
)
def test_calls_that_nobody_sees_are_told_of_by_torch(before: Any, after: Any, is_block: bool) -> None:
    """Of a block by itself, and while no mix is in effect."""
    run = Run("merged", "none")
    run.set(before)
    x = torch.randn(2, 6 if is_block else 5, dtype=torch.double, requires_grad=True)
    output = run.unet.blocks[0](x) if is_block else run.unet(x, 500)[0]
    run.set(after)
    with pytest.raises(RuntimeError, match=r"another one now|modified by an inplace operation"):
        output.square().sum().backward()
    assert x.grad is None


def test_an_adapter_is_trained_beside_a_mix_that_another_takes_the_place_of_for_a_while() -> None:
    """As preference training looks at the model that it started from between a forward and its backward pass."""
    grads = []
    for is_interrupted in (False, True):
        run = Run("merged", "none")
        run.mixer.add_adapter(LoraConfig(r=2, target_modules=r"blocks\.\d\.[02]"), "t")
        trained = dict(run.mixer.named_trainable_parameters("t"))
        for number, parameter in enumerate(trained.values()):
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
        run.set({"a": 1, "t": 1})
        run.call()
        if is_interrupted:
            with run.applied({"b": 0.5}):
                run.look()
        run.backward()
        grads.append([parameter.grad for parameter in trained.values()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_versions_move_only_while_a_graph_has_saved_weights() -> None:
    run = Run("merged", "none")

    def versions() -> list[int]:
        return [parameter._version for parameter in run.unet.parameters()]

    before = versions()
    one(run)
    run.y = run.x
    run.set({"a": 0.5, "b": 1})
    run.mixer.disable_lora()
    assert versions() == before
    run.call()
    run.set({"a": 1})
    assert versions() != before
    run.mixer.disable_lora()
    assert versions() == before


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("change", [other_mix, disabled, disabled_and_enabled], ids=lambda act: act.__name__)
def test_what_others_write_is_noticed_whatever_versions_are(
    change: Callable[[Run], None], is_saved: bool
) -> None:
    run = Run("merged", "none")
    change(run)
    if not is_saved:
        run.y = run.x
    run.set({"b": 1})
    with torch.no_grad():
        run.unet.blocks[1][0].weight.add_(1)
    with pytest.raises(PipelineStateError, match="changed by something else"):
        run.set({"a": 1})


@pytest.mark.parametrize("engine", ["merged", "side"])
def test_the_base_comes_back_while_graphs_are_alive(engine: Any) -> None:
    run = Run(engine, "none")
    clean = Snapshot.of(run.pipe)
    one(run)
    run.set({"b": 1})
    run.call()
    with run.applied({"a": 0.3}):
        run.call()
    run.mixer.unload_lora_weights()
    clean.assert_untouched(run.pipe)
    run.mixer.load_lora_weights(written(PAIRS["a"]), "a")
    run.mixer.unload_lora_weights()
    clean.assert_untouched(run.pipe)


@pytest.mark.parametrize("engine", ["merged", "side"])
def test_copies_look_after_their_own_gradients(engine: Any) -> None:
    run = Run(engine, "none")
    one(run)
    other = copy.deepcopy(run.pipe)
    x = SAMPLE.clone().requires_grad_()
    y = x - 0.3 * other.components["unet"](x, 500)[0]
    run.mixer.disable_lora()
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient(*ONE), rtol=CLOSE, atol=CLOSE)
    with pytest.raises(PipelineStateError, match="is another one now"):
        run.backward()


def test_what_a_graph_is_told_of_lives_as_long_as_it_is_compared():
    """An adapter that is loaded in the place of one that is gone may have its identity, and must not have its number."""

    class Layers(list[Any]):
        pass

    layers = Layers([SimpleNamespace(entry=SimpleNamespace(weight=SimpleNamespace(name="unet.one.weight")))])
    contents, there = Contents(), weakref.ref(layers)
    contents.begin(None)
    first = contents.number(_key({"a": ((1.0,), layers)}, of_text=False))
    again = contents.number(_key({"a": ((1.0,), layers)}, of_text=False))
    equal = Layers(layers)
    del layers
    gc.collect()

    assert first == again
    assert there() is not None
    assert contents.number(_key({"a": ((1.0,), equal)}, of_text=False)) != first
    contents.forget()
    gc.collect()
    assert there() is None
