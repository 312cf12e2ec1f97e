"""Grouped keys to layers: give every module's tensors to the algorithms that they belong to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.adapter import AdapterLayer
from lora_mixer.algorithms import Combined, Dora, LayerWeights, ModuleTensors
from lora_mixer.algorithms.table import ALGORITHMS, builder, shared_roles, whole_numbers
from lora_mixer.errors import FormatError, InvalidAdapterError, UnsupportedAdapterError
from lora_mixer.formats.peft_config import rule_for
from lora_mixer.parsing.module_ends import Configuration, ends, places
from lora_mixer.problem import Problem
from lora_mixer.wording import first_line, first_of, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.formats.fronts import KeyTarget
    from lora_mixer.formats.grouping import ModuleKeys
    from lora_mixer.formats.peft_config import ScaleRule

_OUT_OF_ATTENTION = ".base_layer.out_proj"
"""How only PEFT spells the output of ``nn.MultiheadAttention``: inside of its wrapper."""
_SHOWN = 10  # problems listed in one message
_PARAMETERS = 64  # bare parameters of one module


def build_layers(
    modules: Sequence[ModuleKeys], rules: Mapping[str | None, ScaleRule], label: str
) -> tuple[AdapterLayer, ...]:
    """
    Return the layers of all modules, each built by its algorithms.

    Args:
        modules: The grouped keys.
        rules: Scales from configurations, by component; those of None hold where no component is named.
        label: What to call the file in messages.

    Raises:
        UnsupportedAdapterError: When an algorithm cannot be applied; all of them are named.
        InvalidAdapterError: With every broken module, when parts are missing or do not fit together.
    """
    refused = {name for group in modules for name in group.algorithms if ALGORITHMS[name].refused}
    if refused:
        count = sum(1 for group in modules if group.algorithms & refused)
        names = sorted(ALGORITHMS[name].refused for name in refused)
        raise UnsupportedAdapterError(
            f"{'; '.join(names)}: in {count} of {len(modules)} modules; it cannot be applied, the file is left untouched",
            file=label,
            problems=[
                Problem(group.target.written, ALGORITHMS[name].refused)
                for group in modules
                for name in sorted(group.algorithms & refused)
            ],
        )
    common = shared_roles()
    shared = {group.target.hint: group for group in modules if group.roles.keys() <= common}
    layers = []
    problems: list[Problem] = []
    unsupported = False
    for group in modules:
        if shared.get(group.target.hint) is group:
            continue
        try:
            layers.append(_layer(_with_shared(group, shared), rules))
        except FormatError as error:
            unsupported = unsupported or isinstance(error, UnsupportedAdapterError)
            problems.append(Problem(error.key or group.target.written, str(error.args[0])))
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # what torch makes of values that it has not, or of sizes that nothing has
            problems.append(
                Problem(group.target.written, f"cannot be built of its tensors: {first_line(error)}")
            )
    if problems:
        state = "cannot be applied" if unsupported else "are broken"
        listed = first_of([str(problem) for problem in problems], _SHOWN, between="\n  ", last="\n  ")
        kind = UnsupportedAdapterError if unsupported else InvalidAdapterError
        raise kind(
            f"{len(problems)} of {len(modules)} modules {state}:\n  {listed}", file=label, problems=problems
        )
    return tuple(layers)


def _with_shared(group: ModuleKeys, shared: Mapping[str | None, ModuleKeys]) -> ModuleKeys:
    # PEFT's own stand at the root, also where a model's paths begin like a component's name
    common = shared.get(group.target.hint) or shared.get(None)
    if common is None or not any(ALGORITHMS[name].shared for name in group.algorithms):
        return group
    return replace(group, tensors={**common.tensors, **group.tensors}, roles={**common.roles, **group.roles})


def _layer(group: ModuleKeys, rules: Mapping[str | None, ScaleRule]) -> AdapterLayer:
    tensors = dict(group.tensors)
    label = group.target.written
    alpha = _scalar(tensors.pop("alpha", None), "alpha", label)
    scale = _scalar(tensors.pop("scale", None), "scale", label)
    scalar = _scalar(tensors.pop("scalar", None), "scalar", label)
    # ComfyUI pads the weight to this shape first; here the module must have it already, which its fit will show
    tensors.pop("reshape_weight", None)
    times = 1.0
    if group.target.module.endswith(_OUT_OF_ATTENTION):
        times = 2.0  # PEFT (seen in 0.21) merges this pair twice around each forward, but its bias once; so it was trained
        if "up_bias" in tensors:
            tensors["up_bias"] = tensors["up_bias"] / times
    rule = rule_for(group.target, rules)
    if alpha is None and rule is not None:
        alpha = rule.alpha_of(*group.target.spellings)
    # AdaLoRA keeps no singular value at all in some modules
    cut = "lora_E" in tensors and tensors["lora_E"].numel() == 0
    for role, tensor in tensors.items():
        if not tensor.is_floating_point() and (tensor.is_complex() or role not in whole_numbers()):
            raise InvalidAdapterError(f"{role} has dtype {tensor.dtype}, expected floating point", key=label)
        if tensor.numel() == 0 and not role.startswith("bias_") and not cut:
            raise InvalidAdapterError(f"{role} is empty, shape {tuple(tensor.shape)}", key=label)
    parts = ModuleTensors(
        tensors,
        alpha,
        scale,
        rank_stabilised=rule is not None and rule.rank_stabilised,
        label=label,
        module=group.target.module,
        scalar=times * (1.0 if scalar is None else scalar),
        config=Configuration() if rule is None else rule.config,
        rank=None if rule is None else rule.rank_of(*group.target.spellings),
        spellings=group.target.spellings,
        parameters=_parameters(rule, group.target, tensors["down"].shape[0])
        if rule is not None and "down" in tensors and tensors["down"].ndim
        else (),
    )
    return AdapterLayer(group.target, _weights(group, parts), tuple(group.keys))


def _weights(group: ModuleKeys, parts: ModuleTensors) -> LayerWeights:
    """Build the parts of one module and put them together: a magnitude over what it turns, the rest beside it."""
    if len(group.algorithms) == 1:  # nearly all files, and some have thousands of modules
        (name,) = group.algorithms
        if ALGORITHMS[name].builder:
            return builder(name)(parts)
    by_algorithm: dict[str, dict[str, torch.Tensor]] = {}
    for role, tensor in parts.tensors.items():
        by_algorithm.setdefault(group.roles[role], {})[role] = tensor
    for name in [name for name in by_algorithm if ALGORITHMS[name].pair]:  # its A and B are spelled as LoRA's
        pair = by_algorithm.get("lora", {})
        by_algorithm[name].update(pair)
        if ALGORITHMS[name].pair == "takes":
            by_algorithm.pop("lora", None)
    magnitude = by_algorithm.pop("dora", None)
    built = {
        name: builder(name)(
            replace(parts, tensors=tensors, beside=frozenset(parts.tensors.keys() - tensors.keys()))
        )
        for name, tensors in sorted(by_algorithm.items())
        if name
    }
    if magnitude is None:
        return _together(list(built.values()), parts)
    turned = [built.pop(name) for name in list(built) if ALGORITHMS[name].is_turned]
    if not turned:
        raise InvalidAdapterError(
            "a DoRA magnitude without a change beside it; the file is incomplete", key=parts.label
        )
    return _together(
        [Dora.wrap(_together(turned, parts), replace(parts, tensors=magnitude)), *built.values()], parts
    )


def _parameters(rule: ScaleRule, target: KeyTarget, rank: int) -> tuple[tuple[str, float, float | None], ...]:
    """Return scale and alpha of a pair for each parameter of its module that the configuration names."""
    if not rule.config.get("target_parameters"):
        return ()
    by_owner = rule.config.once(_by_owner)
    owners = [spelling.replace(".base_layer", "") for spelling in target.spellings]
    known = {end: by_owner[end] for owner in owners for end in (*ends(owner), "") if end in by_owner}
    count = sum(map(len, known.values()))
    if count > _PARAMETERS:
        raise InvalidAdapterError(
            f"target_parameters names {count} parameters of this module, at most {_PARAMETERS} are read",
            key=target.written,
        )
    named = {name: place for part in known.values() for name, place in part.items()}
    parameters = []
    for name in sorted(named, key=named.__getitem__):
        spelled = [f"{owner}.{name}" for owner in owners]
        alpha, own_rank = rule.alpha_of(*spelled), rule.rank_of(*spelled) or rank
        divisor = math.sqrt(own_rank) if rule.rank_stabilised else own_rank
        parameters.append((name, 1.0 if alpha is None else alpha / divisor, alpha))
    return tuple(parameters)


def _by_owner(config: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """
    Return the names of parameters by the end of their module's path, each with its place among all names.

    Raises:
        InvalidAdapterError: When they are not a list of names.
    """
    names = config["target_parameters"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidAdapterError(f"target_parameters is {shown(names)}, expected a list of names")
    order = places(name.rpartition(".")[2] for name in names)
    found: dict[str, dict[str, int]] = {}
    for entry in names:
        owner, _, name = entry.rpartition(".")
        found.setdefault(owner, {})[name] = order[name]
    return found


def _together(weights: Sequence[LayerWeights], parts: ModuleTensors) -> LayerWeights:
    """
    Add up parts of one module.

    Raises:
        InvalidAdapterError: When they change biases of different lengths, which no module has.
    """
    if len(weights) == 1:
        return weights[0]
    biases = [change.numel() for part in weights if (change := part.bias_delta(None, 1.0)) is not None]
    if len(set(biases)) > 1:
        raise parts.broken(
            f"change biases of {' and '.join(map(str, biases))} values, and a module has one bias"
        )
    return Combined(tuple(weights), next((w.alpha for w in weights if w.alpha), None))


def _scalar(tensor: torch.Tensor | None, role: str, label: str) -> float | None:
    if tensor is None:
        return None
    if tensor.numel() != 1 or tensor.is_complex() or tensor.is_meta:
        raise InvalidAdapterError(
            f"{role} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected one number",
            key=label,
        )
    value = float(tensor.float().item())
    if not math.isfinite(value):
        raise InvalidAdapterError(f"{role} is {value}, expected a finite number", key=label)
    return value
