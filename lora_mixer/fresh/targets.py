"""Which modules of a live model a configuration means."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lora_mixer.binding import ModuleIndex
from lora_mixer.binding.index import plain_paths
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.parsing.module_ends import ends, fronts, places
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError, compiled
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import torch

    from lora_mixer.binding.index import LiveModule
    from lora_mixer.fresh.config import AdapterConfig

ALL_LINEAR = "all-linear"
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_STEPS = 100_000_000
_Layer = Literal["linear", "conv", "embedding", "other"]


@dataclass(frozen=True)
class Target:
    """
    A module that is to have an adapter.

    Attributes:
        path: Its path in the component, as configurations and keys name it.
        live: The module.
        layer: What it is.
        clean: Gives the clean weight as (out, in, *kernel), fp32 at least.
        rank: The rank that the configuration gives it; 0 for kinds without ranks.
        scale: What a pair's product is multiplied by.
    """

    path: str
    live: LiveModule
    layer: _Layer
    clean: Callable[[], torch.Tensor]
    rank: int = 0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as (out, in, *kernel)."""
        return self.live.shape

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix: (out, in * kernel)."""
        shape = self.shape
        return shape[0], math.prod(shape[1:])

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for all else."""
        return int(getattr(self.live.module, "groups", 1))

    @property
    def bias(self) -> torch.Tensor | None:
        """The module's own bias, or None."""
        bias: torch.Tensor | None = getattr(self.live.module, "bias", None)
        return bias


class ModuleTree:
    """
    The modules of a component by the paths that configurations know.

    Args:
        component: Its name.
        root: Its module.
        clean: Gives the clean weight of a live module.
    """

    def __init__(self, component: str, root: nn.Module, clean: Callable[[LiveModule], torch.Tensor]) -> None:
        """Walk the tree once."""
        self.component, self.root, self._clean = component, root, clean
        self._index = ModuleIndex(component, root)
        self.modules: dict[str, nn.Module] = {
            path: module for path, module in plain_paths(root) if module is not root
        } or {"": root}

    @property
    def model_type(self) -> str | None:
        """What kind of model it is, as Transformers names it; None for others."""
        name = getattr(getattr(self.root, "config", None), "model_type", None)
        return name if isinstance(name, str) else None

    def target(self, path: str) -> Target:
        """Return the module at a path as a target; it must have a weight."""
        live = self._index.live(path)
        return Target(path, live, _layer(live.module), lambda: self._clean(live))

    def has_weight(self, path: str) -> bool:
        """Say whether there is a module with a weight at a path."""
        return getattr(self.modules[path], "weight", None) is not None

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.modules:
            for end in ends(path):
                found.setdefault(end, []).append(path)
        return found

    def ending_with(self, name: str) -> list[str]:
        """Return the paths that are a name, or end with it behind a dot."""
        return self._by_end.get(name, [])

    def path_of(self, wanted: object) -> str | None:
        """Return the path of a module, or None where it is not in the tree."""
        return next((path for path, module in self.modules.items() if module is wanted), None)

    def asked(self, name: str) -> str | None:
        """Return the path of what one of Transformers' getters returns, such as ``get_input_embeddings``; None where there is none."""
        getter = getattr(self.root, name, None)
        if not callable(getter):
            return None
        try:
            module = getter()
        except (NotImplementedError, AttributeError):
            return None
        return None if module is None else self.path_of(module)


def _layer(module: nn.Module) -> _Layer:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if hasattr(module, "kernel_size"):
        return "other" if getattr(module, "transposed", False) else "conv"
    return "linear" if layer_kind(module) == "linear" else "other"


def saved_modules(config: AdapterConfig, tree: ModuleTree, problems: list[Problem]) -> list[str]:
    """Return the paths of the modules that are trained and saved whole, the heads of the task included."""
    names = list(config.modules_to_save or ())
    matches: dict[str, None] = {}
    for name in names:
        paths = tree.ending_with(name)
        if not paths:
            problems.append(Problem("modules_to_save", f"no module of the model ends with {name!r}."))
        matches |= dict.fromkeys(paths)
    for name in _HEADS.get(config.task_type or "", ()):
        matches |= dict.fromkeys(tree.ending_with(name))
    return [path for path in matches if not any(front in matches for front in fronts(path) if front != path)]


def resolved(config: AdapterConfig, usual: Mapping[str, Any]) -> AdapterConfig:
    """Return a configuration with the fields that are usual where it names no targets."""
    if config.target_modules is not None or getattr(config, "target_parameters", None):
        return config
    return replace(config, **{name: value for name, value in usual.items() if getattr(config, name) is None})


def find_targets(
    config: AdapterConfig, tree: ModuleTree, saved: Sequence[str], problems: list[Problem], *, trusted: bool
) -> tuple[list[str], list[str]]:
    """
    Find the modules that a configuration means.

    Args:
        config: The configuration.
        tree: The component's modules.
        saved: Paths of modules that are trained whole, which are not targets.
        problems: What is wrong is added to these.
        trusted: Whether its regular expressions are the caller's own, and not a file's, which have bounded work.

    Returns:
        The paths of the targets, and remarks on what was left out.
    """
    wanted, notes = config.target_modules, list[str]()
    if wanted is None:
        problems.append(
            Problem(
                "target_modules",
                f"is not given, and no usual targets are known for {tree.model_type or type(tree.root).__name__}: name suffixes of "
                "module paths, a regular expression, or 'all-linear'.",
            )
        )
        return [], []
    try:
        is_excluded = _excluder(config, tree, saved, trusted=trusted)
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            paths = _all_linear(tree, notes)
            notes += _left_out(config, tree)
        elif isinstance(wanted, str):
            paths = _whole("target_modules", wanted, tree.modules, trusted=trusted)
        else:
            paths = _by_suffix(config, wanted, tree, saved, problems, notes)
        if isinstance(ahead := getattr(config, "feedforward_modules", None), str):
            _whole("feedforward_modules", ahead, tree.modules, trusted=trusted)
    except _BadPatternError as error:
        problems.append(error.problem)
        return [], []
    targets = [path for path in paths if path not in is_excluded]
    if not targets and not problems:
        problems.append(_nothing(wanted, tree, len(paths)))
    return targets, notes


def _by_suffix(
    config: AdapterConfig,
    wanted: Sequence[str],
    tree: ModuleTree,
    saved: Sequence[str],
    problems: list[Problem],
    notes: list[str],
) -> list[str]:
    """Return the paths that end with one of the names; a name for nothing but what is saved whole is a problem."""
    matches: dict[str, None] = {}
    whole = set(saved)
    for name in wanted:
        named = tree.ending_with(name)
        if named and all(_within(path, whole) for path in named):
            problems.append(
                Problem(
                    "target_modules",
                    f"{name!r} is trained and saved whole (modules_to_save or the task's head: {first_of(saved, 5)}), so it "
                    "cannot have an adapter as well; take it out of one of them.",
                )
            )
        elif not named:
            notes.append(f"no module ends with {name!r}, which target_modules names")
        matches |= dict.fromkeys(named)
    if config.layers_to_transform is not None:
        layers = config.layers_to_transform
        numbers = {layers} if isinstance(layers, int) else set(layers)
        names = config.layers_pattern
        lists = places([names] if isinstance(names, str) else names or ())
        with _pattern_of("layers_pattern"):
            patterns = ModulePatterns(lists) if lists else None
            there = {path: _number(path, patterns) for path in matches}
        matches = {path: None for path, number in there.items() if number in numbers}
        if there and not matches:
            known = sorted({number for number in there.values() if number is not None})
            problems.append(
                Problem(
                    "layers_to_transform",
                    f"none of {len(there)} targets is in layers {first_of([*map(str, sorted(numbers))], 20)}; "
                    f"theirs are {first_of([*map(str, known)], 20) or 'none: no numbers in their paths'}.",
                )
            )
    return [path for path in tree.modules if path in matches]


def _number(path: str, patterns: ModulePatterns[int] | None) -> int | None:
    """
    Return the number of the layer that a path is in: the first behind a name, or as in PEFT the first but for the root's own lists.

    Example:
        >>> _number("model.layers.1.experts.0.w1", None), _number("blocks.3.to_q", None)
        (1, None)
        >>> _number("blocks.3.to_q", ModulePatterns({"blocks": 0}))
        3
    """
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts[:-1]) if part.isdecimal()]
    if patterns is None:
        return next((int(parts[place]) for place in numbers if place > 1), None)
    found = [(patterns.find(".".join(parts[:place])), place) for place in numbers]
    named = [(first, place) for first, place in found if first is not None]
    return int(parts[min(named)[1]]) if named else None


def _all_linear(tree: ModuleTree, notes: list[str]) -> list[str]:
    """Return every linear layer but the output embedding; what looks like one and is not called is left out with a remark."""
    head = tree.asked("get_output_embeddings")
    paths = []
    for path, module in tree.modules.items():
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            notes.append(f"{path} is left out: nn.MultiheadAttention uses its weight without calling it")
        elif _layer(module) == "linear" and path != head:
            paths.append(path)
    return paths


def _left_out(config: AdapterConfig, tree: ModuleTree) -> list[str]:
    """Return a remark on matrices in one tensor, such as experts, which are no linear layers and which nothing names."""
    named = set(getattr(config, "target_parameters", None) or ())
    bare = [
        spelled
        for path, module in tree.modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1 and name not in ("weight", "bias")
        if named.isdisjoint(ends(spelled := f"{path}.{name}"))
    ]
    if not bare:
        return []
    ending = dict.fromkeys(".".join(path.rsplit(".", 2)[1:]) for path in bare)
    remark = f"{bare[0]} ({len(bare)} such tensors) is left out: it is several matrices in one tensor and no linear layer"
    return [f"{remark}; name target_parameters={list(ending)} to train them, too"]


def _excluder(config: AdapterConfig, tree: ModuleTree, saved: Sequence[str], *, trusted: bool) -> set[str]:
    """Return the paths that are not targets."""
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        left_out = set(_whole("exclude_modules", excluded, tree.modules, trusted=trusted))
    else:
        left_out = {path for name in excluded or () for path in tree.ending_with(name)}
    whole = set(saved)
    return left_out | {path for path in tree.modules if _within(path, whole)}


class _BadPatternError(Exception):
    """A field's pattern cannot be used."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.problem = Problem(field, text)


@contextmanager
def _pattern_of(field: str) -> Iterator[None]:
    """Say which field a pattern that cannot be used stands in."""
    try:
        yield
    except PatternTooHardError as error:
        raise _BadPatternError(field, f"{error}.") from None
    except re.error as error:
        raise _BadPatternError(field, f"expected a regular expression ({error}).") from None


def _whole(field: str, pattern: str, paths: Mapping[str, object], *, trusted: bool) -> list[str]:
    """Return the paths that a regular expression matches whole; one from a file gets bounded work."""
    with _pattern_of(field):
        if not trusted:
            compiled_pattern = compiled(pattern)
            if (
                compiled_pattern is not None
                and sum(len(path) ** min(compiled_pattern[1], 8) for path in paths) > _STEPS
            ):
                raise PatternTooHardError(
                    f"the pattern {pattern[:200]!r} needs too much work on this model; name suffixes"
                )
        expression = re.compile(pattern)
        return [path for path in paths if expression.fullmatch(path)]


def _nothing(wanted: Sequence[str] | str, tree: ModuleTree, count: int) -> Problem:
    text = shown(wanted) if isinstance(wanted, str) else first_of([*map(shown, wanted)], 20)
    if count:
        return Problem(
            "target_modules",
            f"all {count} modules that {text} matches are excluded or trained whole; nothing is left.",
        )
    kinds: dict[str, None] = {}
    for path in tree.modules:
        if tree.has_weight(path):
            kinds.setdefault(path.rpartition(".")[2])
    names = [name for name in kinds if not name.isdecimal()]
    ends = ", ".join(names[:24]) + (", ..." if len(names) > 24 else "")
    there = f"its layers end with {ends}" if names else "it has no layers with names of their own"
    return Problem(
        "target_modules",
        f"no module of {type(tree.root).__name__} matches {text}; {there}.",
    )


def _within(path: str, above: AbstractSet[str]) -> bool:
    return any(front in above for front in fronts(path))


def biases(tree: ModuleTree, targets: Sequence[str], which: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the biases that are trained with an adapter: those of the targets, or all."""
    for path in tree.modules if which == "all" else targets:
        bias = getattr(tree.modules[path], "bias", None)
        if isinstance(bias, nn.Parameter):
            yield path, bias
