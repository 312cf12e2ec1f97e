"""
Faults injected into a mixer's calls: at each tensor operation, and Ctrl-C at each line.

``python -m tests.faults --seed 1 --count 2000`` runs as many, drawn from all states, calls and places.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_mixer import LoraMixer, LoraMixerError, MixLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))


class Denoiser(nn.Module):
    """Three layers, one of them without bias, that are called with a timestep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, sample: torch.Tensor, timestep: float = 0.0) -> torch.Tensor:
        """Run: (n, 8) to (n, 4)."""
        return self.three(self.two(self.one(sample)) + timestep)


def lora(seed: int, *, bias: bool = False) -> dict[str, torch.Tensor]:
    """Make an adapter of rank 2 for two of the layers."""
    draw = torch.Generator().manual_seed(seed)
    names = ("one", "two", "three")[seed % 2 : seed % 2 + 2]
    file = {
        f"{name}.lora_{side}.weight": torch.randn(*shape, generator=draw)
        for name in names
        for side, shape in (("A", (2, 8)), ("B", (4 if name == "three" else 8, 2)))
    }
    if bias:
        file["two.lora_B.bias"] = torch.randn(8, generator=draw)
    return file


SCHEDULE = {"a": {"weight": 0.9, "schedule": "0@0.2,1@0.5"}}
STATES: dict[str, Callable[[LoraMixer], None]] = {
    "base": lambda mixer: None,
    "merged": lambda mixer: mixer.set_adapters(["a", "b"], [0.7, -0.5]),
    "side": lambda mixer: mixer.set_mix({"a": 0.5, "b": 0.2}, engine="side"),
    "schedule": lambda mixer: mixer.set_mix(SCHEDULE),
    "steps": lambda mixer: mixer.set_mix(SCHEDULE, engine="merged"),
    "disabled": lambda mixer: (mixer.set_adapters("a", 0.7), mixer.disable_lora())[0],
    "reserved": lambda mixer: (mixer.set_adapters("a", 0.7), mixer.reserve(rank=8))[0],
    "bias": lambda mixer: (mixer.load_lora_weights(lora(5, bias=True), "c"), mixer.set_adapters(["c", "a"]))[
        0
    ],
}


def _applied(mixer: LoraMixer) -> None:
    with mixer.applied({"b": 1.0}):
        pass


CALLS: dict[str, Callable[[LoraMixer], Any]] = {
    "set_adapters": lambda mixer: mixer.set_adapters(["b", "a"], [0.3, 0.1]),
    "set_adapters none": lambda mixer: mixer.set_adapters([]),
    "set_mix side": lambda mixer: mixer.set_mix({"b": 0.4}, engine="side"),
    "set_mix schedule": lambda mixer: mixer.set_mix({"b": {"weight": 1.0, "schedule": "0@1,1@0"}}),
    "load": lambda mixer: mixer.load_lora_weights(lora(7), "new"),
    "load inactive": lambda mixer: mixer.load_lora_weights(lora(8), "new", activate=False),
    "hotswap": lambda mixer: mixer.load_lora_weights(lora(9), "a", hotswap=True),
    "delete": lambda mixer: mixer.delete_adapters("a"),
    "unload": LoraMixer.unload_lora_weights,
    "disable": LoraMixer.disable_lora,
    "enable": LoraMixer.enable_lora,
    "applied": _applied,
    "reserve": lambda mixer: mixer.reserve(rank=6),
    "release": LoraMixer.release,
    "restore_base": LoraMixer.restore_base,
    "rebase": LoraMixer.rebase,
}


class FaultError(Exception):
    """What is raised in the middle of a call."""


class AtOperation(TorchDispatchMode):
    """Raise at the k-th tensor operation; 0 only counts."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.count = k, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.k:
            raise FaultError(f"operation {self.k}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def at_line(k: int, counted: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt at the k-th line of the package; 0 only counts."""

    def local(frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            counted[0] += 1
            if counted[0] == k:
                raise KeyboardInterrupt
        return local

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        return local if "lora_mixer/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@torch.no_grad()
def seen(net: nn.Module) -> dict[str, torch.Tensor]:
    """Give all that a model is to others: its values, what it computes, its hooks."""
    hooks = [len(m._forward_hooks) + 10 * len(m._forward_pre_hooks) for m in net.modules()]
    return {
        **{k: v.clone() for k, v in net.state_dict().items()},
        "(output)": net(X, 500.0).clone(),
        "(hooks)": torch.tensor(hooks),
    }


def said(mixer: LoraMixer) -> tuple[Any, ...]:
    """Give all that a mixer says."""
    return (
        list(mixer.adapters), mixer.mixes, mixer.get_active_adapters(), mixer.is_in_parameters, mixer.memory().adapters,
        list(mixer.reports),
    )  # fmt: skip


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare bit for bit, outputs closely: they are summed anew where something stands beside the weights."""
    return one.keys() == other.keys() and all(
        torch.allclose(value, other[key], atol=1e-6) if key == "(output)" else torch.equal(value, other[key])
        for key, value in one.items()
    )


class Bench:
    """One state and one call, as they are without faults."""

    def __init__(self, state: str, call: str) -> None:
        self.state, self.call = state, call
        net, mixer = self.made()
        self.before = seen(net), said(mixer)
        counter = AtOperation(0)
        with counter, contextlib.suppress(LoraMixerError):
            CALLS[call](mixer)
        self.operations = counter.count
        self.after = seen(net), said(mixer)
        net, mixer = self.made()
        lines = [0]
        with at_line(0, lines), contextlib.suppress(LoraMixerError):
            CALLS[call](mixer)
        self.lines = lines[0]

    def made(self) -> tuple[nn.Module, LoraMixer]:
        net = Denoiser()
        self.base = {key: value.clone() for key, value in net.state_dict().items()}
        mixer = LoraMixer(net)
        for seed, name in enumerate("ab"):
            mixer.load_lora_weights(lora(seed), name, activate=False)
        STATES[self.state](mixer)
        return net, mixer

    def run(self, kind: str, k: int) -> str | None:
        """Inject one fault; say what is inconsistent afterwards, or None."""
        net, mixer = self.made()
        lost = False
        counted = [0]
        try:
            with AtOperation(k) if kind == "operation" else at_line(k, counted):
                CALLS[self.call](mixer)
        except MixLostError:
            lost = True
        except (FaultError, KeyboardInterrupt, LoraMixerError):
            pass
        now = seen(net), said(mixer)
        if lost:
            return f"lost the mix after one fault: {now[1]}"
        whole = [
            name
            for name, (model_then, said_then) in (("before", self.before), ("after", self.after))
            if same(now[0], model_then) and now[1] == said_then
        ]
        if not whole:
            return f"neither before nor after: says {now[1]}"
        if kind == "operation" and "before" not in whole and self.before[1] != self.after[1]:
            return "changed, though it failed"
        mixer.release()
        mixer.unload_lora_weights()
        if self.call != "rebase" and not all(
            torch.equal(v, self.base[k]) for k, v in net.state_dict().items()
        ):
            return "no way back to the base"
        if any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()) or mixer.memory().total:
            return "hooks or memory left after unload"
        return None


def inject(
    seed: int, count: int | None = None, kinds: tuple[str, ...] = ("operation", "line")
) -> tuple[int, list[str]]:
    """
    Inject faults.

    Args:
        seed: Of what is drawn.
        count: How many; None is all places of all calls in all states.
        kinds: ``operation`` and ``line``.

    Returns:
        How many were injected, and what was inconsistent.
    """
    warnings.simplefilter("ignore")
    draw = random.Random(seed)
    places: list[tuple[Bench, str, int]] = []
    for state in STATES:
        for call in CALLS:
            bench = Bench(state, call)
            places += [
                (bench, "operation", k) for k in range(1, bench.operations + 1) if "operation" in kinds
            ]
            places += [(bench, "line", k) for k in range(1, bench.lines + 1) if "line" in kinds]
    chosen = places if count is None else draw.sample(places, min(count, len(places)))
    wrong = []
    for bench, kind, k in chosen:
        problem = bench.run(kind, k)
        if problem:
            wrong.append(f"{bench.state} / {bench.call} / {kind} {k}: {problem}")
    return len(chosen), wrong


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", default=["operation", "line"])
    options = parser.parse_args()
    done, wrong = inject(options.seed, options.count, tuple(options.kinds))
    for line in wrong:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{done} faults, {len(wrong)} inconsistent\n")


if __name__ == "__main__":
    main()
