"""What a contributor would write for each recipe of CONTRIBUTING: the one file; the row is put in by ``test_recipes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lora_mixer.algorithms import LayerWeights
from lora_mixer.algorithms.table import AlgorithmKind
from lora_mixer.batches import PlanForm, WorkerEngine
from lora_mixer.batches.in_process import InProcess
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.engines.engine import Engine
from lora_mixer.engines.hooks import hook_output
from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds.kind import FreshKind, whole
from lora_mixer.fresh.starts import Start
from lora_mixer.merging.method import MethodSpec, Setting
from lora_mixer.mixes import Method
from lora_mixer.parsing.data import Located
from lora_mixer.sources._memory import from_bytes
from lora_mixer.writing import OutputFormat
from lora_mixer.writing.formats.format import safetensors

# --- a merging method -----------------------------------------------------------------------------------------------


def clipped_sum(deltas, weights, limit=1.0):
    """Add changes, no entry beyond a limit."""
    total = sum(weight * delta for delta, weight in zip(deltas, weights, strict=True))
    return total.clamp(-limit, limit)


CLIPPED = MethodSpec(
    "clipped",
    "add, and cut every entry at a limit",
    "changes",
    clipped_sum,
    clipped_sum,
    (Setting("limit", 1.0, "the largest entry", 0, above_low=True),),
)

# --- an output format -----------------------------------------------------------------------------------------------


def _blunt_files(adapter):
    tensors = {}
    for layer in adapter.layers:
        up, down = layer.pair
        name = f"unet.{layer.place.path}" if layer.place.component == "unet" else layer.place.path
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up * (layer.alpha / layer.rank)
    return {adapter.file: safetensors(tensors, {"blunt": "yes", **adapter.metadata})}


BLUNT = OutputFormat("blunt", "pairs by their live paths, scale and all", _blunt_files)

# --- a method of a mix ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loudest(Method):
    """Each layer of a denoiser has the adapter alone whose change is the largest there, after so many steps."""

    name: ClassVar[str] = "loudest"
    example: ClassVar[str] = "loudest(after=2)"
    goes_by_steps: ClassVar[bool] = True
    after: int = 0

    def compared(self, names):
        return tuple(names)

    def compare(self, layers):
        norms = [
            {(layer.live.component, layer.live.path): self._norm(layer) for layer in own} for own in layers
        ]
        return {
            place: max(range(len(norms)), key=lambda n, p=place: norms[n].get(p, 0.0)) for place in norms[0]
        }

    @staticmethod
    def _norm(layer):
        return float(layer.weights.delta(torch.zeros(layer.live.shape), 1.0).norm())

    def layer_shares(self, name, names, layers, comparison, step, steps):
        del steps
        if step < self.after:
            return None
        mine = list(names).index(name)
        return [
            1.0 if comparison.get((layer.live.component, layer.live.path), mine) == mine else 0.0
            for layer in layers
        ]

    def to_spec(self):
        return {"name": self.name, "after": self.after}

    def to_text(self):
        return f"{self.name}(after={self.after})"


# --- an algorithm ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outer(LayerWeights):
    """W' = W + gain * a b^T * W, entry by entry."""

    algorithm: ClassVar[str] = "outer"

    a: torch.Tensor
    b: torch.Tensor

    @classmethod
    def from_parts(cls, parts):
        return cls(*parts.need("outer_a", "outer_b"))

    def misfit(self, shape):
        own = (self.a.numel(), self.b.numel())
        return None if own == tuple(shape) else f"made for {own}, the module has {tuple(shape)}"

    def delta(self, base, gain):
        return gain * torch.outer(self.a.to(base), self.b.to(base)) * base


OUTER = AlgorithmKind(
    "outer",
    "tests.recipe_parts:Outer.from_parts",
    leaves=((r"\.outer_(?P<part>[ab])<name>", "outer"),),
    peft_types=("OUTER",),
    peft_fields=("outer_sides",),
    prefixes=("outer_",),
)

# --- an engine ------------------------------------------------------------------------------------------------------


class ProductEngine(Engine):
    """Adds the product of every change beside its layer, whatever the algorithm; linear layers only."""

    name = "product"
    is_asked_for = True

    def __init__(self, bases):
        self._bases = bases
        self._handles = []

    def share(self, wish):
        return {name: [True] * len(wish.layers[name]) for name in wish.names}

    def refusal(self, wish, name, place):
        return None

    def clear(self):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def enter(self, effect):
        for name, shares in effect.served[self.name].items():
            gains = effect.mixes[0].at(START)[name] if any(shares) else []
            for layer, mine, gain, clean in zip(
                effect.layers[name], shares, gains, self._bases.clean_weights(name), strict=False
            ):
                if mine and gain:
                    change = layer.weights.delta(clean().float(), gain)  # (out, in)
                    self._handles.append(hook_output(layer.live.module, _Product(change)))

    @property
    def acts(self):
        return bool(self._handles)


class _Product:
    def __init__(self, change):
        self.change = change

    def __call__(self, _module, args, output):
        return output + args[0] @ self.change.T


# what ``sweep`` takes off again has to be known as an engine's
_Product.__module__ = "lora_mixer.engines.product"

# --- a fresh kind of an algorithm that is there -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HRAConfig(AdapterConfig):
    """Reflections of the inputs of each target."""

    peft_type: ClassVar[str] = "HRA"

    r: int = 8


REFLECTIONS = FreshKind(
    HRAConfig,
    lambda config: whole(config, "r"),
    lambda config, target: None if target.layer == "linear" else "is not a linear layer",
    # two of each are equal, so that nothing is turned as training begins
    lambda config, target: {
        ".hra_u": torch.eye(target.shape[1], config.r).repeat_interleave(2, 1)[:, : config.r]
    },
    usual=lambda model_type: {"target_modules": ["two"]} if model_type == "net" else {},
)

# --- a start of fresh pairs -------------------------------------------------------------------------------------------


def _halves(target):
    """Return A with ones at its first inputs, B of zeros."""
    rank, (outputs, inputs) = target.rank, target.shape
    return torch.eye(rank, inputs), torch.zeros(outputs, rank)


FIRST_INPUTS = Start("first-inputs", _halves, only_linear=True)

# --- a source of adapters -------------------------------------------------------------------------------------------------

SHELF = {}
"""What lies on the shelf, by its name."""


def from_shelf(label, request):
    """Return what lies on the shelf."""
    if not label.startswith("shelf:"):
        return None
    return from_bytes(SHELF[label.removeprefix("shelf:")], request)


# --- a form of plans ------------------------------------------------------------------------------------------------------


def _prompts(text, problems):
    """Read a prompt for each line."""
    plan = Located({"jobs": []}, {(): 1})
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            problems.problem("", "a line without a prompt", line=number)
        plan.lines["jobs", len(plan.value["jobs"])] = number
        plan.value["jobs"].append({"prompt": line, "steps": 2})
    return plan


PROMPTS = PlanForm("prompts", (".prompts", ".txt"), _prompts)

# --- an engine of batches ---------------------------------------------------------------------------------------------


class CountedInProcess(InProcess):
    """This process, with a count of the tasks it was sent."""

    sent = 0

    def send(self, worker, task, ahead):
        CountedInProcess.sent += task is not None
        return super().send(worker, task, ahead)


COUNTED = WorkerEngine(
    "counted", "this process, counting", lambda spec, shapes, *_: CountedInProcess(spec, shapes)
)
