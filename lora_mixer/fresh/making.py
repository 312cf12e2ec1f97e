"""
A configuration and a live model to a fresh adapter: its tensors by the keys of a file, and the configuration that belongs to them.

What comes out is what a file of the finished adapter would hold, so that it is read, bound, trained and written as any other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.errors import AdapterConfigError
from lora_mixer.formats.fronts import PEFT_ROOT
from lora_mixer.formats.peft_config import scale_rule
from lora_mixer.fresh.kinds.tokens import refuses_tokens, rows_of
from lora_mixer.fresh.parameters import parameter_pairs
from lora_mixer.fresh.starts import STARTS, start_of
from lora_mixer.fresh.targets import (
    ALL_LINEAR,
    ModuleTree,
    Target,
    biases,
    find_targets,
    resolved,
    saved_modules,
)
from lora_mixer.mixes.lbw import id_of
from lora_mixer.parsing.module_ends import ends
from lora_mixer.parsing.module_patterns import ModulePatterns
from lora_mixer.problem import Problem
from lora_mixer.sources import AdapterSource
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_mixer.binding.index import LiveModule
    from lora_mixer.fresh.config import AdapterConfig
    from lora_mixer.fresh.kinds.kind import FreshKind
    from lora_mixer.fresh.starts import Spread

_SHOWN = 8


class UnmatchedTargetsWarning(UserWarning):
    """
    A configuration names something that the model does not have, beside what it has.

    Example:
        >>> import torch, warnings
        >>> from lora_mixer import LoraConfig, LoraMixer
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     report = LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).add_adapter(LoraConfig(r=1, target_modules=["0", "to_q"]))
        >>> told[0].category is UnmatchedTargetsWarning, report.matched
        (True, 1)
    """


@dataclass(frozen=True)
class Asked:
    """
    What is asked of a fresh adapter beside its configuration.

    Attributes:
        label: What to call it in messages.
        trusted: Whether the configuration's regular expressions are the caller's own.
        blocks: Blocks that targets must be in: paths such as ``mid_block`` or ``transformer_blocks.3``, or a UNet's or Flux's by LBW's ids
            such as ``M00``; None for all.
        eva_data: Batches for ``init_lora_weights="eva"``; None where there are none.
    """

    label: str
    trusted: bool = True
    blocks: Sequence[str] | None = None
    eva_data: Iterable[Any] | None = None


def needs_data(config: AdapterConfig) -> bool:
    """Say whether a configuration's start is found by running the base on data."""
    start = start_of(config)
    return start is not None and start.by_data is not None


def fresh_source(
    config: AdapterConfig,
    kind: FreshKind,
    component: str,
    root: nn.Module,
    clean: Callable[[LiveModule], torch.Tensor],
    asked: Asked,
) -> AdapterSource:
    """
    Make a fresh adapter.

    Args:
        config: Its configuration.
        kind: The configuration's kind.
        component: The component that it is for.
        root: The component's module.
        clean: Gives the clean weight of a live module as (out, in, *kernel).
        asked: What else is asked of it.

    Returns:
        Tensors and configuration, as a file would hold them.

    Raises:
        AdapterConfigError: With everything that does not fit the model.

    Warns:
        UnmatchedTargetsWarning: When names match nothing, beside others that do.
    """
    start = start_of(config)
    if asked.eva_data is not None and not needs_data(config):
        names = " or ".join(repr(row.name) for row in STARTS.values() if row.by_data is not None)
        raise AdapterConfigError(
            problems=(
                Problem("eva_data", f"has no meaning without init_lora_weights={names}; leave it out."),
            )
        )
    tree = ModuleTree(component, root, lambda live: _wide(clean(live)))
    problems: list[Problem] = []
    config = resolved(config, kind.usual(tree.model_type))
    saved = saved_modules(config, tree, problems)
    paths, notes = _paths(config, kind, tree, saved, problems, asked)
    if problems:
        raise AdapterConfigError(problems=tuple(problems))
    config = _written(config, kind, tree, paths, saved, asked)
    targets = _targets(config, tree, paths)
    refused = [f"{one.path} {why}" for one in targets if (why := kind.refuses(config, one))]
    if refused:
        listed = first_of(refused, _SHOWN, between="; ", last="; ")
        raise AdapterConfigError(problems=(Problem("target_modules", f"{listed}."),))
    notes += _idle_patterns(config, paths, tree)
    if notes:
        warnings.warn(
            f"{asked.label}: {first_of(notes, _SHOWN, between='; ')}", UnmatchedTargetsWarning, stacklevel=4
        )
    if start is not None and start.by_data is not None:
        return _by_data(config, kind, tree, targets, saved, asked, start.by_data)
    return _source(config, kind, tree, targets, saved, asked, {})


def _paths(
    config: AdapterConfig,
    kind: FreshKind,
    tree: ModuleTree,
    saved: Sequence[str],
    problems: list[Problem],
    asked: Asked,
) -> tuple[list[str], list[str]]:
    """Return the paths of the targets, and remarks."""
    if kind.takes_tokens and config.target_modules is None:
        embedding = tree.asked("get_input_embeddings")
        if embedding is None:
            problems.append(
                Problem(
                    "target_modules",
                    "is not given, and the model does not say which its input embedding is; name it.",
                )
            )
        return [] if embedding is None else [embedding], []
    if _only_values(config, saved):
        return [], []
    paths, notes = find_targets(config, tree, saved, problems, trusted=asked.trusted)
    if asked.blocks is not None:
        odd = [name for name in asked.blocks if not any(in_block(path, name) for path in tree.modules)]
        paths = [path for path in paths if any(in_block(path, name) for name in asked.blocks)]
        if odd:
            problems.append(
                Problem(
                    "blocks",
                    f"{', '.join(map(repr, odd))}: no such part of {type(tree.root).__name__}; name paths of modules "
                    "such as 'mid_block', or the blocks of a UNet or of Flux by LBW's ids such as 'M00' and 'S07'.",
                )
            )
        elif not paths and not problems:
            problems.append(Problem("blocks", f"none of the targets is in {', '.join(asked.blocks)}."))
    for path in paths:
        if not tree.has_weight(path):
            kinds = type(tree.modules[path]).__name__
            problems.append(
                Problem(
                    "target_modules", f"{path} is a {kinds}, which has no weight of its own; name layers."
                )
            )
    return paths, notes


def _idle_patterns(config: AdapterConfig, paths: Sequence[str], tree: ModuleTree) -> list[str]:
    """Return a remark on each pattern of ranks or alphas that counts for no target."""
    names = set(getattr(config, "target_parameters", None) or ())
    bare = [
        spelled
        for path, module in (tree.modules.items() if names else ())
        for name, _ in module.named_parameters(recurse=False)
        if not names.isdisjoint(ends(spelled := f"{path}.{name}"))
    ]
    found = []
    for field in ("rank_pattern", "alpha_pattern"):
        table = getattr(config, field, None)
        if not isinstance(table, dict) or not table:
            continue
        patterns = ModulePatterns({pattern: pattern for pattern in table})
        count = {patterns.find(path) for path in (*paths, *bare)}
        found += [f"{field}[{pattern!r}] counts for no target" for pattern in table if pattern not in count]
    return found


def in_block(path: str, name: str) -> bool:
    """
    Say whether a layer is in a block.

    Example:
        >>> in_block("mid_block.attentions.0.proj_in", "mid_block"), in_block("mid_block.attentions.0.proj_in", "M00")
        (True, True)
    """
    return path == name or path.startswith(f"{name}.") or id_of(path) == name


def _only_values(config: AdapterConfig, saved: Sequence[str]) -> bool:
    """Say whether a configuration means modules that are saved whole, or tokens, and no targets at all."""
    if getattr(config, "target_parameters", None) and not config.target_modules:
        return True
    has_others = bool(saved) or bool(getattr(config, "trainable_token_indices", None))
    return has_others and config.target_modules == []


def _targets(config: AdapterConfig, tree: ModuleTree, paths: Sequence[str]) -> list[Target]:
    """Return the targets with the ranks and scales that patterns give them, as files are read."""
    rule = scale_rule(config.to_dict(), "the configuration")
    targets = []
    for path in paths:
        rank, alpha = rule.rank_of(path) or 0, rule.alpha_of(path)
        scale = 1.0 if not rank or alpha is None else alpha / (rank**0.5 if rule.rank_stabilised else rank)
        targets.append(replace(tree.target(path), rank=rank, scale=scale))
    return targets


def _written(
    config: AdapterConfig,
    kind: FreshKind,
    tree: ModuleTree,
    paths: Sequence[str],
    saved: Sequence[str],
    asked: Asked,
) -> AdapterConfig:
    """Return the configuration as it is saved: targets by names that mean the same on any such model, the base's name."""
    fields: dict[str, Any] = {}
    said = config.target_modules
    lacked = any(getattr(config, name) is not None for name in kind.lacks)
    if asked.blocks is not None or lacked or (isinstance(said, str) and said.lower() == ALL_LINEAR):
        fields["target_modules"] = list(paths)
        fields |= {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    elif isinstance(said, list):
        fields["target_modules"] = list(dict.fromkeys(said))
    names = list(config.modules_to_save or ())
    heads = [path.rpartition(".")[2] for path in saved if set(names).isdisjoint(ends(path))]
    if heads:
        fields["modules_to_save"] = [*names, *dict.fromkeys(heads)]
    if config.base_model_name_or_path is None:
        name = getattr(tree.root, "name_or_path", None) or getattr(
            getattr(tree.root, "config", None), "_name_or_path", None
        )
        fields["base_model_name_or_path"] = name if isinstance(name, str) and name else None
    if hasattr(config, "fan_in_fan_out"):
        fields["fan_in_fan_out"] = any(tree.target(path).live.transposed for path in paths)
    start = start_of(config)
    if start is not None and start.settings is not None:
        name, settings = start.settings
        fields |= {name: settings()} if getattr(config, name) is None else {}
    return replace(config, **fields)


def _by_data(
    config: Any,
    kind: FreshKind,
    tree: ModuleTree,
    targets: Sequence[Target],
    saved: Sequence[str],
    asked: Asked,
    by_data: Callable[[Any, nn.Module, Sequence[Target], Iterable[Any]], Spread],
) -> AdapterSource:
    """Make an adapter that starts from the inputs of its targets on some data."""
    if asked.eva_data is None:
        why = f"{config.init_lora_weights!r} needs eva_data: batches that the model is called with."
        raise AdapterConfigError(problems=(Problem("init_lora_weights", why),))
    spread = by_data(config, tree.root, targets, asked.eva_data)
    directions = spread.downs
    kept = [replace(one, rank=len(directions[one.path])) for one in targets if len(directions[one.path])]
    ranks = {one.path: one.rank for one in kept if one.rank != config.r}
    alphas = {}
    before = {one.path: one for one in targets}
    for number, one in enumerate(kept):
        old = before[one.path]
        alpha = old.scale * (old.rank**0.5 if config.use_rslora else old.rank)
        if spread.alpha_follows_rank:
            alpha = alpha * one.rank / old.rank
        if alpha != config.lora_alpha:
            alphas[one.path] = alpha
        kept[number] = replace(one, scale=alpha / (one.rank**0.5 if config.use_rslora else one.rank))
    config = replace(
        config,
        target_modules=[one.path for one in kept],
        layers_to_transform=None,
        layers_pattern=None,
        exclude_modules=None,
        rank_pattern={_literal(path): rank for path, rank in ranks.items()},
        alpha_pattern={_literal(path): alpha for path, alpha in alphas.items()},
    )
    return _source(
        config,
        kind,
        tree,
        kept,
        saved,
        asked,
        {f"{path}.lora_A.weight": down for path, down in directions.items()},
    )


def _literal(path: str) -> str:
    """Return the pattern that means one path only."""
    return "^" + path.replace(".", r"\.")


def _source(
    config: AdapterConfig,
    kind: FreshKind,
    tree: ModuleTree,
    targets: Sequence[Target],
    saved: Sequence[str],
    asked: Asked,
    given: Mapping[str, torch.Tensor],
) -> AdapterSource:
    front = PEFT_ROOT if kind.is_peft else ""
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for target in targets:
            for leaf, tensor in kind.start(config, target).items():
                key = f"{target.path}{leaf}"
                tensors[front + key] = given.get(key, tensor).float().cpu().contiguous()
        _add_values(config, tree, [one.path for one in targets], saved, tensors, front)
        _add_tokens(config, tree, tensors)
        _add_parameters(config, tree, tensors)
    start = start_of(config)
    if start is not None and not start.is_peft:
        config = replace(config, init_lora_weights=True)  # type: ignore[call-arg]
    table = config.to_dict() if kind.is_peft else None
    return AdapterSource(asked.label, tensors, table, is_fresh=True)


def _add_values(
    config: AdapterConfig,
    tree: ModuleTree,
    targets: Sequence[str],
    saved: Sequence[str],
    tensors: dict[str, torch.Tensor],
    front: str,
) -> None:
    """Add the weights and biases that are trained as they are, under their own names."""
    values = _saved_values(tree, saved)
    which = getattr(config, "bias", "none")
    if which != "none":
        wrapped = set(targets)  # PEFT's files know the layers of targets by where its own wrappers keep them
        for path, bias in biases(tree, targets, which):
            if f"{path}.bias" not in values:
                values[f"{path}{'.base_layer' if path in wrapped else ''}.bias"] = bias.detach()
    if values and front != PEFT_ROOT:
        raise AdapterConfigError(
            problems=(
                Problem(
                    "modules_to_save", f"has no place in {config.peft_type}; name the modules as targets."
                ),
            )
        )
    tensors |= {f"{front}{key}": tensor.float().cpu().contiguous() for key, tensor in values.items()}


def _saved_values(tree: ModuleTree, saved: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return what the modules that are saved whole hold."""
    values: dict[str, torch.Tensor] = {}
    odd = []
    for name, module in tree.modules.items():
        if not any(name == path or name.startswith(f"{path}.") for path in saved):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if leaf == "weight":
                target = tree.target(name)
                values[f"{name}.weight"] = target.clean().T if target.live.transposed else target.clean()
            elif leaf == "bias":
                values[f"{name}.bias"] = parameter.detach()
            else:
                odd.append(f"{name}.{leaf}")
    if odd:
        raise AdapterConfigError(
            problems=(
                Problem(
                    "modules_to_save",
                    f"{', '.join(odd[:_SHOWN])}: only weights and biases can be trained whole.",
                ),
            )
        )
    return values


def _add_parameters(config: AdapterConfig, tree: ModuleTree, tensors: dict[str, torch.Tensor]) -> None:
    """Add pairs on bare parameters."""
    names = getattr(config, "target_parameters", None)
    if not names:
        return
    problems: list[Problem] = []
    rule = scale_rule(config.to_dict(), "the configuration")
    idle = bool(getattr(config, "init_lora_weights", True))
    pairs = parameter_pairs(names, tree, lambda path: rule.rank_of(path) or 1, problems, idle=idle)
    if problems:
        raise AdapterConfigError(problems=tuple(problems))
    tensors |= {f"{PEFT_ROOT}{key}": tensor for key, tensor in pairs.items()}


def _add_tokens(config: AdapterConfig, tree: ModuleTree, tensors: dict[str, torch.Tensor]) -> None:
    """Add the rows of tokens that a pair's configuration has trained."""
    table: Any = getattr(config, "trainable_token_indices", None)
    if not table:
        return
    if isinstance(table, list):
        path = tree.asked("get_input_embeddings")
        if path is None:
            raise AdapterConfigError(
                problems=(
                    Problem(
                        "trainable_token_indices",
                        "the model does not say which its input embedding is; name it in a dict, such as {'embed_tokens': [1, 2]}.",
                    ),
                )
            )
        tables = {path: table}
    else:
        tables = {}
        for name, tokens in table.items():
            paths = tree.ending_with(name)
            if not paths:
                raise AdapterConfigError(
                    problems=(
                        Problem("trainable_token_indices", f"no module of the model ends with {name!r}."),
                    )
                )
            tables |= dict.fromkeys(paths, tokens)
    for path, tokens in tables.items():
        target = tree.target(path)
        why = refuses_tokens(tokens, target)
        if why:
            raise AdapterConfigError(problems=(Problem("trainable_token_indices", f"{path} {why}."),))
        tensors[f"{PEFT_ROOT}{path}.token_adapter.trainable_tokens_delta"] = (
            rows_of(tokens, target).float().cpu()
        )


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.dtype.itemsize > 2 else tensor.detach().float()
