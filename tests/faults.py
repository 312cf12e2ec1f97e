"""
Faults injected into a mixer's calls: at tensor operations and calls, and Ctrl-C wherever Python looks for it.

``python -m tests.faults --seed 1 --seconds 600`` goes through the states and calls in a drawn order, with some places of each, as
long as there is time; ``--count`` is another end, ``--each`` says how many faults each pair has, ``--all`` takes every pair once,
``--kinds`` says which faults. What is found is printed with the words that bring it again
(``--only "STATE / CALL / AROUND / KIND PLACE SECOND"``). What writes files has ``tests/file_faults.py``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import gc
import pickle
import random
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import cpu_offload
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import Self

from lora_mixer import LoraMixer, LoraMixerError, Mix, MixLostError, PipelineStateError
from lora_mixer.diffusers_words import Word
from lora_mixer.interrupts import WHOLE
from lora_mixer.mixes import Composite, KLora, Method, Switch
from tests.models import text_encoder, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
PLANES = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(9))


class Denoiser(nn.Module):
    """Three layers, one of them without bias, that are called with a timestep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4)

    def forward(self, sample: torch.Tensor, timestep: float = 0.0) -> torch.Tensor:
        """Run: (n, 8) to (n, 4)."""
        return self.three(self.two(self.one(sample)) + timestep)


class Planes(nn.Module):
    """The same three layers as convolutions, on pictures: where masks have a place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, sample: torch.Tensor, timestep: float = 0.0) -> torch.Tensor:
        """Run: (n, 4, h, w) to (n, 4, h, w)."""
        return self.three(self.two(self.one(sample)) + timestep)


def _word(self: Any, *args: Any, **kwargs: Any) -> None:
    """Stand where diffusers' own word does."""
    raise NotImplementedError


class SaidDenoiser(Denoiser):
    """The layers, with diffusers' words for models."""

    set_adapters = set_adapter = delete_adapters = unload_lora = load_lora_adapter = save_lora_adapter = _word
    disable_lora = enable_lora = fuse_lora = unfuse_lora = active_adapters = _word


class Pipe:
    """A denoiser and a text encoder with its tokenizer."""

    unet: type[nn.Module] = Denoiser

    def __init__(self) -> None:
        words, text = copy.deepcopy(_text())
        self.components: dict[str, Any] = {
            "unet": self.unet(), "text_encoder": text, "tokenizer": words, "scheduler": object()
        }  # fmt: skip


class SaidPipe(Pipe):
    """The same with diffusers' words for adapters."""

    unet = SaidDenoiser
    _merged_adapters: frozenset[str] = frozenset()
    load_lora_weights = unload_lora_weights = set_adapters = delete_adapters = disable_lora = enable_lora = (
        _word
    )
    fuse_lora = unfuse_lora = get_active_adapters = get_list_adapters = _word


@functools.cache
def _text() -> tuple[Any, nn.Module]:
    return tokenizer(), text_encoder(8)


TEXT = "layers.0.mlp.fc1"


def lora(seed: int, *, bias: bool = False, model: Any = None) -> dict[str, torch.Tensor]:
    """Make an adapter of rank 2 for two of the layers, and for the text encoder where there is one."""
    draw = torch.Generator().manual_seed(seed)
    parts = model.components if isinstance(model, Pipe) else {"": model or Denoiser()}
    root = parts.get("unet", parts.get(""))
    front = "unet." if "unet" in parts else ""
    file = {}
    for name in ("one", "two", "three")[seed % 2 : seed % 2 + 2]:
        shape = getattr(root, name).weight.shape
        file[f"{front}{name}.lora_A.weight"] = torch.randn(2, *shape[1:], generator=draw)
        file[f"{front}{name}.lora_B.weight"] = torch.randn(
            shape[0], 2, *[1] * (len(shape) - 2), generator=draw
        )
    if bias:
        file[f"{front}two.lora_B.bias"] = torch.randn(8, generator=draw)
    if "text_encoder" in parts:
        path = next(n for n, _ in parts["text_encoder"].named_modules() if n.endswith(TEXT))
        width = dict(parts["text_encoder"].named_modules())[path].weight.shape
        file[f"text_encoder.{path}.lora_A.weight"] = torch.randn(2, width[1], generator=draw)
        file[f"text_encoder.{path}.lora_B.weight"] = torch.randn(width[0], 2, generator=draw)
    return file


def words(seed: int, word: str) -> dict[str, torch.Tensor]:
    """Make a textual inversion of two vectors."""
    return {word: torch.randn(2, 8, generator=torch.Generator().manual_seed(seed))}


@dataclass
class Held:
    """What a call works on: a model, its mixer, parts that were replaced, and blocks that are open."""

    pipe: Any
    folder: Path
    own: LoraMixer | None = None
    old: list[nn.Module] = field(default_factory=list)
    blocks: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    begun: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    has_begun: bool = False
    keep: Any = "device"

    def lora(self, seed: int, *, bias: bool = False) -> dict[str, torch.Tensor]:
        """Make an adapter for this model."""
        return lora(seed, bias=bias, model=self.pipe)

    def begin(self, block: contextlib.AbstractContextManager[Any]) -> None:
        """Begin a block that the call does not end."""
        self.begun.enter_context(block)
        self.has_begun = True

    def leave(self) -> None:
        """Leave blocks open, as those do who forget them."""
        self.blocks.pop_all()
        self.begun.pop_all()

    @property
    def mixer(self) -> LoraMixer:
        """The mixer; where the last one is gone, the next."""
        if self.own is None:
            self.own = LoraMixer(self.pipe, keep_base=self.keep)
            try:
                self.own.memory()
            except PipelineStateError:  # a block that is open holds the last one
                self.own = LoraMixer.of(self.pipe)
        return self.own

    @property
    def is_said(self) -> bool:
        """Whether diffusers' words are the mixer's."""
        return "set_adapters" in vars(self.pipe)

    @property
    def roots(self) -> list[nn.Module]:
        """All modules, those that were replaced too."""
        own = self.pipe.components.values() if isinstance(self.pipe, Pipe) else [self.pipe]
        return [*(root for root in own if isinstance(root, nn.Module)), *self.old]

    def run(self, time: float = 500.0) -> list[torch.Tensor]:
        """Compute what the model makes of its inputs."""
        root = self.pipe.components["unet"] if isinstance(self.pipe, Pipe) else self.pipe
        found = [root(PLANES if isinstance(root, Planes) else X, time)]
        if isinstance(self.pipe, Pipe):
            ids = self.pipe.components["tokenizer"]("a <cat> <fox> sits")["input_ids"]
            found.append(self.pipe.components["text_encoder"](torch.tensor([ids])).last_hidden_state)
        return found


SCHEDULE = {"a": {"weight": 0.9, "schedule": "0@0.2,1@0.5"}}
LEFT = np.repeat(np.array([[255, 255, 0, 0]], dtype=np.uint8), 4, axis=0)


def _replaced(held: Held) -> None:
    held.mixer.set_adapters(["a", "b"], [0.7, -0.5])
    other = Denoiser()
    with torch.no_grad():
        other.two.weight.mul_(0.5)
    held.old.append(held.pipe.components["unet"])
    held.pipe.components["unet"] = other


def _offloaded(held: Held) -> None:
    cpu_offload(held.pipe, execution_device=torch.device("cpu"))
    held.mixer.set_mix({"a": 0.5, "b": 0.2})


def _trainable(held: Held) -> None:
    held.mixer.load_lora_weights(held.lora(3), "t", trainable=True)
    held.mixer.set_adapters(["t", "a"], [1.0, 0.5])


def _words(held: Held) -> None:
    held.mixer.load_textual_inversion(words(1, "<cat>"))
    held.mixer.set_adapters(["a"], [0.7])


ADALORA = {
    "peft_type": "ADALORA", "init_r": 4, "target_r": 1, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 8,
    "target_modules": ["one", "two"],
}  # fmt: skip


def _adalora(held: Held) -> None:
    torch.manual_seed(3)
    held.mixer.add_adapter(ADALORA, "t")
    held.mixer.set_adapters(["t", "a"], [1.0, 0.5])
    with torch.no_grad():
        for number, (_, parameter) in enumerate(held.mixer.named_trainable_parameters("t")):
            parameter.add_(0.1 * (number + 1))
    held.run()[0].square().sum().backward()
    held.mixer.after_step(0)


def _said(held: Held) -> None:
    held.own = None
    held.own = LoraMixer(held.pipe, take_over=True)
    held.pipe.set_adapters(["a", "b"], [0.7, -0.5])


def _said_apart(held: Held) -> None:
    """Have each part another mix, and one of them fused."""
    _said(held)
    held.pipe.components["unet"].set_adapters("b", 0.3)
    held.pipe.fuse_lora(components=["text_encoder"], lora_scale=0.5)


def _bias(held: Held) -> None:
    held.mixer.load_lora_weights(held.lora(5, bias=True), "c")
    held.mixer.set_adapters(["c", "a"])


def _reserved_rows(held: Held) -> None:
    held.mixer.reserve(rank=8, rows=6)
    held.mixer.set_mix([{"a": 1.0}, {"b": 0.5}, {}], guidance_copies=1)


def _left(held: Held) -> None:
    """Let a mixer go that has adapters: the next one takes over."""
    held.mixer.set_adapters(["a", "b"], [0.7, -0.5])
    held.own = None


def mixed(method: Method, **weights: float) -> Mix:
    """Make a mix by a method."""
    return replace(Mix.of(weights), method=method)


ROWS = [{"a": 1.0}, {"b": 0.5}, {}]
K_LORA = mixed(KLora("a", "b"), a=1.0, b=1.0)
STATES: dict[str, tuple[Callable[[], Any], Callable[[Held], Any]]] = {
    "base": (Denoiser, lambda held: None),
    "merged": (Denoiser, lambda held: held.mixer.set_adapters(["a", "b"], [0.7, -0.5])),
    "side": (Denoiser, lambda held: held.mixer.set_mix({"a": 0.5, "b": 0.2}, engine="side")),
    "schedule": (Denoiser, lambda held: held.mixer.set_mix(SCHEDULE)),
    "steps": (Denoiser, lambda held: held.mixer.set_mix(SCHEDULE, engine="merged")),
    "disabled": (
        Denoiser,
        lambda held: (held.mixer.set_adapters("a", 0.7), held.mixer.disable_lora()),
    ),
    "reserved": (Denoiser, lambda held: (held.mixer.set_adapters("a", 0.7), held.mixer.reserve(rank=8))),
    "reserved rows": (Denoiser, _reserved_rows),
    "bias": (Denoiser, _bias),
    "rows": (Denoiser, lambda held: held.mixer.set_mix(ROWS, guidance_copies=1)),
    "composite": (
        Denoiser,
        lambda held: held.mixer.set_mix(mixed(Composite(), a=1.0, b=0.5)),
    ),
    "switch": (Denoiser, lambda held: held.mixer.set_mix(mixed(Switch(), a=1.0, b=0.5))),
    "k-lora": (Denoiser, lambda held: held.mixer.set_mix(K_LORA)),
    "k-lora merged": (Denoiser, lambda held: held.mixer.set_mix(K_LORA, engine="merged")),
    "mask": (
        Planes,
        lambda held: held.mixer.set_mix({"a": {"weight": 1.0, "mask": LEFT}, "b": 0.5}),
    ),
    "pictures": (Planes, lambda held: held.mixer.set_adapters(["a", "b"], [0.7, -0.5])),
    "training": (Denoiser, _trainable),
    "adalora": (Denoiser, _adalora),
    "hotswapped": (
        Denoiser,
        lambda held: (
            held.mixer.set_adapters(["a", "b"], [0.7, -0.5]),
            held.mixer.load_lora_weights(held.lora(12), "a", hotswap=True),
        ),
    ),
    "kept on the host": (Denoiser, lambda held: held.mixer.set_adapters(["a", "b"], [0.7, -0.5])),
    "kept in the mix": (Denoiser, lambda held: held.mixer.set_adapters(["a", "b"], [0.07, -0.05])),
    "kept nowhere": (Denoiser, lambda held: held.mixer.set_adapters(["a", "b"], [0.7, -0.5])),
    "kept by itself": (Denoiser, lambda held: held.mixer.set_adapters(["a", "b"], [0.7, -0.5])),
    "offloaded": (Denoiser, _offloaded),
    "applied": (
        Denoiser,
        lambda held: (
            held.mixer.set_adapters("a", 0.7),
            held.blocks.enter_context(held.mixer.applied({"b": 1.0}, engine="side")),
        ),
    ),
    "left": (Denoiser, _left),
    "pipe": (Pipe, lambda held: held.mixer.set_adapters(["a", "b"], [{"unet": 0.7, "te": 0.1}, -0.5])),
    "words": (Pipe, _words),
    "replaced": (Pipe, _replaced),
    "left with words": (Pipe, lambda held: (_words(held), _left(held))),
    "diffusers' words": (SaidPipe, _said),
    "diffusers' words, apart": (SaidPipe, _said_apart),
    "diffusers' words, fused": (SaidPipe, lambda held: (_said(held), held.pipe.fuse_lora(lora_scale=0.5))),
}
KEEP = {
    "kept on the host": "host",
    "kept in the mix": "patch",
    "kept nowhere": "none",
    "kept by itself": "auto",
}


def _applied(held: Held) -> None:
    with held.mixer.applied({"b": 1.0}):
        held.run()


def _applied_rows(held: Held) -> None:
    with held.mixer.applied([{"a": 0.3}, {"b": 1.0}, {}], guidance_copies=1):
        pass


def _nested(held: Held) -> None:
    with held.mixer.applied({"b": 1.0}), held.mixer.applied({"a": 0.1}, engine="side"):
        held.run()


def _take_over(held: Held) -> None:
    held.own = None
    next_one = LoraMixer(held.pipe, keep_base=held.keep)
    next_one.get_active_adapters()
    held.own = next_one if next_one.adapters else None


def _hand_over(held: Held) -> None:
    held.own = None
    LoraMixer(held.pipe, keep_base=held.keep, take_over=True)


def _state_taken(held: Held) -> None:
    state = held.mixer.training_state("t")
    held.mixer.load_training_state(
        "t", {k: v * 0.5 if v.is_floating_point() else v for k, v in state.items()}
    )


def _of(held: Held, part: str) -> Any:
    return held.pipe.components[part]


def _pickled(held: Held) -> None:
    with contextlib.suppress(AttributeError):  # accelerate's hooks are functions in functions
        pickle.loads(pickle.dumps(held.roots[0]))


def _captured(held: Held) -> None:
    with held.mixer.capture():
        pass


def _embeddings(held: Held) -> None:
    file = {**held.lora(11), "bundle_emb.<fox>.string_to_param.*": words(2, "<fox>")["<fox>"]}
    held.mixer.load_lora_weights(file, "both", load_embeddings=True)


CALLS: dict[str, Callable[[Held], Any]] = {
    "set_adapters": lambda held: held.mixer.set_adapters(["b", "a"], [0.3, 0.1]),
    "set_adapters none": lambda held: held.mixer.set_adapters([]),
    "set_mix side": lambda held: held.mixer.set_mix({"b": 0.4}, engine="side"),
    "set_mix schedule": lambda held: held.mixer.set_mix({"b": {"weight": 1.0, "schedule": "0@1,1@0"}}),
    "set_mix steps": lambda held: held.mixer.set_mix(SCHEDULE, engine="merged"),
    "set_mix rows": lambda held: held.mixer.set_mix([{"b": 1.0}, {}, {"a": 0.2}], guidance_copies=1),
    "set_mix negative": lambda held: held.mixer.set_mix({"a": 1.0}, negative={"b": 0.5}, guidance_copies=2),
    "set_mix mask": lambda held: held.mixer.set_mix({"b": {"weight": 1.0, "mask": LEFT}}),
    "set_mix composite": lambda held: held.mixer.set_mix(mixed(Composite(), b=1.0, a=0.5)),
    "set_mix k-lora": lambda held: held.mixer.set_mix(K_LORA),
    "load": lambda held: held.mixer.load_lora_weights(held.lora(7), "new"),
    "load inactive": lambda held: held.mixer.load_lora_weights(held.lora(8), "new", activate=False),
    "load trainable": lambda held: held.mixer.load_lora_weights(held.lora(10), "new", trainable=True),
    "load embeddings": _embeddings,
    "add_adapter": lambda held: held.mixer.add_adapter(
        {"peft_type": "LORA", "r": 2, "target_modules": ["one", "two"]}, "made"
    ),
    "add_adapter adalora": lambda held: held.mixer.add_adapter(
        {"peft_type": "ADALORA", "init_r": 2, "target_r": 1, "total_step": 10, "target_modules": ["two"]},
        "made",
    ),
    "after_step": lambda held: held.mixer.after_step(1),
    "adapter_loss": lambda held: held.mixer.adapter_loss("t"),
    "training_state": lambda held: held.mixer.training_state("t"),
    "load_training_state": _state_taken,
    "hotswap trained": lambda held: held.mixer.load_lora_weights(
        held.lora(9), "t", hotswap=True, trainable=True
    ),
    "trained_adapters": lambda held: held.mixer.trained_adapters,
    "hand_back": lambda held: held.mixer.hand_back(),
    "load twice": lambda held: held.mixer.load_lora_weights(held.lora(7), "a"),
    "hotswap": lambda held: held.mixer.load_lora_weights(held.lora(9), "a", hotswap=True),
    "load_textual_inversion": lambda held: held.mixer.load_textual_inversion(words(2, "<fox>")),
    "unload_textual_inversion": lambda held: held.mixer.unload_textual_inversion(),
    "delete": lambda held: held.mixer.delete_adapters("a"),
    "unload": lambda held: held.mixer.unload_lora_weights(),
    "disable": lambda held: held.mixer.disable_lora(),
    "enable": lambda held: held.mixer.enable_lora(),
    "disable_adapters": lambda held: held.mixer.disable_adapters(),
    "enable_adapters": lambda held: held.mixer.enable_adapters(),
    "set_adapter": lambda held: held.mixer.set_adapter("b"),
    "parameter_groups": lambda held: held.mixer.parameter_groups("t", lr=1e-3),
    "applied": _applied,
    "applied rows": _applied_rows,
    "nested": _nested,
    "reserve": lambda held: held.mixer.reserve(rank=6),
    "reserve rows": lambda held: held.mixer.reserve(rank=6, rows=3),
    "release": lambda held: held.mixer.release(),
    "restore_base": lambda held: held.mixer.restore_base(),
    "rebase": lambda held: held.mixer.rebase(),
    "bake": lambda held: held.mixer.rebase(bake=True),
    "capture": _captured,
    "save": lambda held: held.mixer.save_lora_weights(held.folder / "a.safetensors"),
    "save sum": lambda held: held.mixer.save_lora_weights(
        held.folder / "sum.safetensors", ["a", "b"], weights=[0.5, 0.5], rank=2
    ),
    "run": lambda held: held.run(100.0),
    "copy": lambda held: copy.deepcopy(held.roots[0]),
    "pickle": _pickled,
    "look": lambda held: (held.mixer.adapters, held.mixer.memory(), held.mixer.tokens, held.mixer.reports),
    "check_mix": lambda held: held.mixer.check_mix({"a": 1.0}),
    "parse_prompt": lambda held: held.mixer.parse_prompt("a <lora:a:0.5> b"),
    "named_trainable_parameters": lambda held: held.mixer.named_trainable_parameters("t"),
    "take over": _take_over,
    "of": lambda held: LoraMixer.of(held.pipe).get_active_adapters(),
    "take_over": _hand_over,
    "hotswap another kind": lambda held: held.mixer.load_lora_weights(
        {"unet.one.diff" if isinstance(held.pipe, Pipe) else "one.diff": torch.ones_like(
            (_of(held, "unet") if isinstance(held.pipe, Pipe) else held.pipe).one.weight)},
        "a", hotswap=True,
    ),
    "applied many": lambda held: held.begin(held.mixer.applied([{"a": 0.3}, {"b": 1.0}])),
    "applied, open": lambda held: held.begin(held.mixer.applied({"a": 0.3})),
    "delete all": lambda held: held.mixer.delete_adapters(list(held.mixer.adapters)),
}  # fmt: skip
SAID: dict[str, Callable[[Held], Any]] = {
    "load_lora_weights": lambda held: held.pipe.load_lora_weights(held.lora(7), "new"),
    "load_lora_weights hotswap": lambda held: held.pipe.load_lora_weights(held.lora(9), "a", hotswap=True),
    "unload_lora_weights": lambda held: held.pipe.unload_lora_weights(),
    "set_adapters": lambda held: held.pipe.set_adapters(["b", "a"], [{"unet": 0.2, "text_encoder": 0.4}, 0.1]),
    "delete_adapters": lambda held: held.pipe.delete_adapters("a"),
    "disable_lora": lambda held: held.pipe.disable_lora(),
    "enable_lora": lambda held: held.pipe.enable_lora(),
    "fuse_lora": lambda held: held.pipe.fuse_lora(components=["unet"], lora_scale=0.5),
    "unfuse_lora": lambda held: held.pipe.unfuse_lora(components=["unet", "text_encoder"]),
    "get_active_adapters": lambda held: (held.pipe.get_active_adapters(), held.pipe.get_list_adapters()),
    "unet.load_lora_adapter": lambda held: _of(held, "unet").load_lora_adapter(held.lora(7), adapter_name="new"),
    "unet.save_lora_adapter": lambda held: _of(held, "unet").save_lora_adapter(held.folder / "part", "a"),
    "unet.unload_lora": lambda held: _of(held, "unet").unload_lora(),
    "unet.set_adapters": lambda held: _of(held, "unet").set_adapters("a", 0.2),
    "unet.set_adapter": lambda held: _of(held, "unet").set_adapter("a"),
    "unet.delete_adapters": lambda held: _of(held, "unet").delete_adapters("a"),
    "unet.disable_lora": lambda held: _of(held, "unet").disable_lora(),
    "unet.enable_lora": lambda held: _of(held, "unet").enable_lora(),
    "unet.fuse_lora": lambda held: _of(held, "unet").fuse_lora(0.5),
    "unet.unfuse_lora": lambda held: _of(held, "unet").unfuse_lora(),
    "unet.active_adapters": lambda held: _of(held, "unet").active_adapters(),
}  # fmt: skip
"""What is said in diffusers' words, where these are the mixer's."""
RUNNING = ("run", "applied", "nested")
KINDS = ("operation", "call", "signal", "signals", "fault and signal", "two operations")
"""
``operation``: an error at a tensor operation. ``call``: one as a function of the package begins, or one in C ends. ``signal``:
SIGINT there, as Ctrl-C sends it. ``signals``: a second one while the first is dealt with. ``fault and signal``: an error at an
operation, and SIGINT on the way back. ``two operations``: an error at an operation, and another one later.
"""


AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
"""What a call is made in; it has to be there afterwards as it was."""


def surroundings() -> tuple[Any, ...]:
    """Give what a thread has set of torch, which a call must leave as it is."""
    matmul = torch.backends.cuda.matmul
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(), torch.get_default_dtype(),
        torch.get_float32_matmul_precision(), matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction, torch.backends.cudnn.allow_tf32, torch.initial_seed(),
    )  # fmt: skip


class FaultError(Exception):
    """What is raised in the middle of a call."""


class AtOperation(TorchDispatchMode):
    """Raise at some tensor operations; none only counts."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count in self.at:
            raise FaultError(f"operation {self.count}")
        return func(*args, **(kwargs or {}))


class AtCall:
    """
    Do something at the n-th place where Python itself looks for signals; 0 only counts.

    Those are the entries of functions of the package, and the ends of functions in C that it has called. Between the lines of a
    ``with`` that ends Python looks for none, so that to raise there would be a fault that does not exist.

    Args:
        n: Where.
        fault: What is done.
        whole: Without it, those few functions are left out with which a call begins and ends.
        by_trace: Look by ``sys.settrace``, at entries only: what is found by ``sys.setprofile`` ends that.
    """

    def __init__(
        self, n: int, fault: Callable[[], None], *, whole: bool = True, by_trace: bool = False
    ) -> None:
        self.n, self.fault, self.whole, self.count = n, fault, whole, 0
        self.inner = 0
        self._set = sys.settrace if by_trace else sys.setprofile

    def __enter__(self) -> Self:
        self._set(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._set(None)

    def _seen(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event not in ("call", "c_return") or "lora_mixer/" not in frame.f_code.co_filename:
            return
        if frame.f_code in WHOLE:
            if not self.whole:
                return
            self.inner -= 1
        self.inner += 1  # those that are counted without ``whole``
        self.count += 1
        if self.count == self.n:
            self._set(None)
            self.fault()


def _fault() -> None:
    raise FaultError("at a call")


def _is_own_mistake(error: BaseException) -> bool:
    """Whether an error is neither a fault nor the package's, and comes from its code; libraries make others of faults."""
    if isinstance(error, FaultError | KeyboardInterrupt | LoraMixerError):
        return False
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and "lora_mixer/" in at.tb_frame.f_code.co_filename


def _ignored(_: Any) -> None:
    """Leave out what Python says of a fault that came while a generator was thrown away, which it takes back itself."""


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@torch.no_grad()
def seen(held: Held | nn.Module) -> dict[str, torch.Tensor]:
    """Give all that a model is to others: its values, what it computes, its hooks, who has gradients, its words."""
    if isinstance(held, nn.Module):
        held = Held(held, Path())
    table: dict[str, torch.Tensor] = {}
    for number, root in enumerate(held.roots):
        for key, value in root.state_dict().items():
            table[f"{number}.{key}"] = (
                value.clone() if value.device.type != "meta" else torch.tensor(value.shape)
            )
        hooks = [len(m._forward_hooks) + 10 * len(m._forward_pre_hooks) for m in root.modules()]
        table[f"{number} (hooks)"] = torch.tensor(hooks)
        table[f"{number} (gradients)"] = torch.tensor([p.requires_grad for p in root.parameters()])
    try:
        outputs = held.run()
    except LoraMixerError as error:
        outputs = [torch.tensor(list(str(error).encode()[:100]))]
    table.update({f"{number} (output)": output.clone() for number, output in enumerate(outputs)})
    if isinstance(held.pipe, Pipe):
        table["(words)"] = torch.tensor(len(held.pipe.components["tokenizer"]))
        owners = (held.pipe, *held.pipe.components.values())
        said_ = [
            isinstance(value, Word) for owner in owners for value in getattr(owner, "__dict__", {}).values()
        ]
        table["(said)"] = torch.tensor(sum(said_))
    return table


def said(mixer: LoraMixer) -> tuple[Any, ...]:
    """Give all that a mixer says."""
    return (
        list(mixer.adapters), mixer.mixes, mixer.get_active_adapters(), mixer.is_in_parameters, mixer.memory().adapters,
        list(mixer.reports), dict(mixer.tokens), mixer.get_list_adapters(),
    )  # fmt: skip


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Compare bit for bit, outputs closely: they are summed anew where something stands beside the weights."""
    return one.keys() == other.keys() and all(
        value.shape == other[key].shape
        and value.dtype == other[key].dtype
        and (
            torch.allclose(value, other[key], atol=1e-5)
            if "(output)" in key
            else torch.equal(value, other[key])
        )
        for key, value in one.items()
    )


class Bench:
    """One state and one call, as they are without faults."""

    def __init__(self, state: str, call: str, around: str = "plain") -> None:
        self.state, self.call, self.around = state, call, around
        self.folder = Path(tempfile.gettempdir())
        held = self.made()
        before = self._said(held)
        self.before = seen(held), before
        held.leave()
        held, counter = self.made(), AtOperation()
        with self._quiet(), AROUND[around](), counter, AtCall(0, _fault) as places:
            self.refused = True
            self.do(held)
            self.refused = False
        self.operations, self.calls, self.signals = counter.count, places.inner, places.count
        after = self._said(held)
        self.after = seen(held), after
        with self._quiet():
            held.begun.close()
        after = self._said(held)
        self.ended = seen(held), after
        held.leave()

    @property
    def do(self) -> Callable[[Held], Any]:
        """What is called."""
        said_as = self.call.removeprefix("say ")
        return CALLS[self.call] if said_as == self.call else SAID[said_as]

    @staticmethod
    @contextlib.contextmanager
    def _quiet() -> Iterator[None]:
        with contextlib.suppress(LoraMixerError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def _said(self, held: Held) -> tuple[Any, ...]:
        """Give what a mixer says, in diffusers' words too, and what is trained; where none is, one takes over."""
        mixer = held.mixer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learnt = {
                name: {
                    key: value.tolist()
                    for key, value in (
                        *mixer.named_trainable_parameters(name),
                        *mixer.training_state(name).items(),
                    )
                }
                for name in mixer.trained_adapters
            }
        words_: tuple[Any, ...] = ()
        if held.is_said:
            try:
                active = [held.pipe.get_active_adapters(), held.pipe.get_list_adapters()]
            except LoraMixerError as error:  # a mix that diffusers' words cannot say
                active = [str(error)]
            words_ = (*active, frozenset(held.pipe._merged_adapters))
        return (*said(mixer), learnt, *words_)

    def make(self) -> tuple[Any, LoraMixer]:
        """Make a model in this state, and its mixer."""
        held = self.made()
        return held.pipe, held.mixer

    def made(self) -> Held:
        """Make a model in this state."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kind, change = STATES[self.state]
        held = Held(kind(), self.folder, keep=KEEP.get(self.state, "device"))
        self.base = seen(held)
        for seed, name in enumerate("ab"):
            held.mixer.load_lora_weights(held.lora(seed), name, activate=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(held)
        return held

    def places(self, kind: str) -> int:
        """How many places there are for a fault."""
        if kind == "call":
            return self.calls
        return self.signals if kind in ("signal", "signals") else self.operations

    def run(self, kind: str, k: int, second: int = 1) -> str | None:
        """Inject one fault; say what is inconsistent afterwards, or None."""
        held = self.made()
        handler = signal.getsignal(signal.SIGINT)  # that of an open block, in some states
        lost: BaseException | None = None
        failed = interrupted = False
        around = AROUND[self.around]()
        around.__enter__()
        before = surroundings()
        try:
            with warnings.catch_warnings(), injected(kind, k, second):
                warnings.simplefilter("ignore")
                self.do(held)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- libraries make others of faults
            if _is_own_mistake(error):
                around.__exit__(None, None, None)
                held.leave()
                return f"a foreign error: {type(error).__name__}: {str(error)[:200]}"
            failed = not isinstance(error, LoraMixerError) and kind in (
                "operation",
                "call",
                "fault and signal",
            )
            interrupted = isinstance(error, KeyboardInterrupt)
            lost = error
            while lost is not None and not isinstance(lost, MixLostError):
                lost = lost.__context__
            del error
        after = surroundings()
        around.__exit__(None, None, None)
        if after != before:
            return f"torch is set otherwise: {before} before, {after} after"
        is_there = signal.signal(signal.SIGINT, signal.default_int_handler)
        if is_there is not handler and not held.has_begun:  # a block that is open has one of its own
            return "the handler of Ctrl-C is another one"
        try:
            return self._verdict(held, lost, kind, failed=failed, interrupted=interrupted)
        except Exception as error:  # noqa: BLE001 -- any error here is a state that cannot be used
            return f"unusable: {type(error).__name__}: {str(error)[:200]}"
        finally:
            held.leave()

    def _verdict(
        self, held: Held, lost: MixLostError | None, kind: str, *, failed: bool, interrupted: bool
    ) -> str | None:
        if lost is not None:
            # a call that is refused is taken back, too: a fault on that way is the second one
            if kind == "two operations" or (self.refused and kind not in ("signal", "signals")):
                return self._of_lost(held, lost)
            return f"lost the mix after one fault: {lost}"
        table = seen(
            held
        )  # first: where no mixer is left, the one that is asked takes over, and moves a mix to what replaced its part
        now = table, self._said(held)
        right = {"before": self.before, "after": self.after}
        if interrupted:  # a block that Ctrl-C ends as it begins has begun and ended
            right["ended"] = self.ended
        whole = [
            name
            for name, (model_then, said_then) in right.items()
            if same(now[0], model_then) and now[1] == said_then
        ]
        if not whole:
            odd = [
                key
                for key in now[0]
                if not any(
                    key in then[0] and same({key: now[0][key]}, {key: then[0][key]})
                    for then in right.values()
                )
            ]
            return f"neither before nor after: {odd[:4]}; says {now[1]}"
        if failed and "before" not in whole and self.before[1] != self.after[1]:
            return "changed, though it failed"
        return self._way_back(held)

    def _way_back(self, held: Held) -> str | None:
        held.mixer.release()
        held.mixer.unload_lora_weights()
        held.mixer.unload_textual_inversion()
        held.mixer.hand_back()
        now = seen(held)
        if self.call != "bake" and self.state not in ("replaced", "offloaded") and not same(now, self.base):
            odd = [
                key for key in now if key not in self.base or not same({key: now[key]}, {key: self.base[key]})
            ]
            return f"no way back to the base: {odd[:4]}"
        if self.state != "offloaded" and any(value.any() for key, value in now.items() if "(hooks)" in key):
            return "hooks left after unload"
        return f"{held.mixer.memory().total} bytes left after unload" if held.mixer.memory().total else None

    def _of_lost(self, held: Held, lost: Any) -> str | None:
        """Check what the mixer says after the way back has failed, too."""
        if held.mixer.mixes:  # the end of a block has brought it again, perhaps by other means
            now, (then, spoken) = seen(held), self.before
            right = held.mixer.mixes == spoken[1] and all(
                same({k: now[k]}, {k: then[k]})
                for k in then
                if "(output)" in k and self.state != "replaced"  # the next call has moved it to the new part
            )
            return self._way_back(held) if right else f"lost, and says that {held.mixer.mixes} are active"
        if not lost.unwritten and self.state not in ("replaced", "offloaded") and self.call != "bake":
            now = seen(held)
            values = [key for key in now if "(" not in key]
            if not all(torch.equal(now[key], self.base[key]) for key in values):
                return "lost, and the base is not back, though it says so"
        held.mixer.disable_lora()
        held.mixer.enable_lora()
        if sorted(held.mixer.adapters) != sorted(self.before[1][0]):
            return f"lost, and has {sorted(held.mixer.adapters)}"
        return self._way_back(held)


@contextlib.contextmanager
def injected(kind: str, k: int, second: int) -> Iterator[None]:
    """Let one fault of a kind happen at its k-th place, and where it is two, the other one some places later."""
    later = AtCall(second, _interrupt, by_trace=True)

    def both() -> None:
        later.__enter__()
        _interrupt()

    class First(AtOperation):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if self.count + 1 in self.at:
                later.__enter__()
            return super().__torch_dispatch__(func, types, args, kwargs)

    ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "operation": lambda: AtOperation(k),
        "two operations": lambda: AtOperation(k, k + second),
        "call": lambda: AtCall(k, _fault, whole=False),
        "signal": lambda: AtCall(k, _interrupt),
        "signals": lambda: AtCall(k, both),
        "fault and signal": lambda: First(k),
    }
    told, sys.unraisablehook = sys.unraisablehook, _ignored
    try:
        with ways[kind]():
            yield
    finally:
        later.__exit__()
        sys.unraisablehook = told


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Let Ctrl-C be what Python makes of it, also in a job that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def pairs(states: Iterable[str] = tuple(STATES)) -> list[tuple[str, str]]:
    """List what may be called in which states."""
    return [
        (state, call)
        for state in states
        for call in (*CALLS, *(f"say {name}" for name in SAID if STATES[state][0] is SaidPipe))
        if state != "offloaded"
        or call not in RUNNING  # accelerate leaves weights on the device when a call fails
    ]


def inject(
    seed: int,
    count: int | None = None,
    kinds: tuple[str, ...] = KINDS,
    *,
    seconds: float | None = None,
    states: tuple[str, ...] = tuple(STATES),
    each: int = 2,
    once: bool = False,
    tell: Callable[[str], object] = lambda _: None,
    ended: Callable[[], bool] = lambda: False,
) -> tuple[collections.Counter[str], list[str]]:
    """
    Inject faults.

    Args:
        seed: Of what is drawn.
        count: How many; None is no end.
        kinds: Of :data:`KINDS`.
        seconds: When to stop.
        states: Which ones to draw from.
        each: How many faults a state and a call have, before the next ones are drawn.
        once: Stop when all states and calls have had theirs.
        tell: Called with what was inconsistent, as it is found.
        ended: Asked between faults whether that was enough.

    Returns:
        How many were injected by kind, and what was inconsistent.
    """
    draw = random.Random(seed)
    end = None if seconds is None else time.monotonic() + seconds
    done: collections.Counter[str] = collections.Counter()
    wrong = []
    left: list[tuple[str, str]] = []
    with _keys():
        while (
            (count is None or done.total() < count)
            and (end is None or time.monotonic() < end)
            and not ended()
        ):
            if not left:
                if once and done:
                    break
                left = draw.sample(pairs(states), len(pairs(states)))
            one = Bench(*left.pop(), draw.choice(("plain", *AROUND)))
            for _ in range(each if count is None else min(each, count - done.total())):
                kind = draw.choice(kinds)
                places = one.places(kind)
                if not places:
                    continue
                k, second = draw.randint(1, places), draw.randint(1, 60)
                done[kind] += 1
                problem = one.run(kind, k, second)
                if problem:
                    wrong.append(f"{one.state} / {one.call} / {one.around} / {kind} {k} {second}: {problem}")
                    tell(wrong[-1])
    return done, wrong


def again(words_: str) -> str | None:
    """Inject one fault that was printed: ``STATE / CALL / AROUND / KIND PLACE SECOND``."""
    state, call, around, rest = (part.strip() for part in words_.split(" / ", 3))
    kind, k, second = rest.partition(":")[0].rsplit(" ", 2)
    with _keys():
        return Bench(state, call, around).run(kind, int(k), int(second))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--states", nargs="+", default=list(STATES), choices=list(STATES))
    parser.add_argument("--each", type=int, default=2, help="how many faults a state and a call have in turn")
    parser.add_argument("--all", action="store_true", help="stop when every state and call has had them")
    parser.add_argument("--only", help="a line that was printed")
    options = parser.parse_args()
    if options.only:
        sys.stdout.write(f"{again(options.only) or 'consistent'}\n")
        return
    if options.count is None and options.seconds is None and not options.all:
        options.seconds = 300.0
    asked: list[int] = []  # who is told to end says how far it came
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    done, wrong = inject(
        options.seed,
        options.count,
        tuple(options.kinds),
        seconds=options.seconds,
        states=tuple(options.states),
        each=options.each,
        once=options.all,
        tell=lambda line: print(line, flush=True),  # noqa: T201
        ended=lambda: bool(asked),
    )
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(done.items()))
    sys.stdout.write(
        f"{done.total()} faults ({kinds}) in {len(pairs(options.states))} pairs of a state and a call, {len(wrong)} inconsistent\n"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    gc.collect()
    main()
