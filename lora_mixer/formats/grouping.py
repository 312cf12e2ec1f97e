"""Keys to modules: gather the tensors of each module, tell apart what is no layer, refuse what cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.adapter import AdapterLayer
from lora_mixer.algorithms import ALGORITHMS, UPCOMING, Parts
from lora_mixer.errors import FormatError, InvalidAdapterError, NotAnAdapterError, UnsupportedAdapterError
from lora_mixer.formats import safeloras
from lora_mixer.formats.leaves import Leaf, split_key
from lora_mixer.formats.names import Target, modernise, split_component
from lora_mixer.formats.peft_config import ScaleRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_SHOWN = 10  # problems listed in one message
_EMBEDDING = re.compile(r"bundle_emb\.(?P<token>[^.]+)\.|(?P<angle><[^>]*>)$|(?P<bare>emb_params|string_to_param\b|string_to_param\..*)$")
_IP_ADAPTER = re.compile(r"^image_proj\.|^ip_adapter\.")
_OTHER_KINDS = (
    ("a full checkpoint", re.compile(r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.|^conditioner\.")),
    ("a ControlNet", re.compile(r"controlnet_|input_hint_block|^zero_convs|^control_model|lora_controlnet")),
    ("an IP-Adapter", _IP_ADAPTER),
    ("a full model (UNet, transformer, text encoder or VAE)", re.compile(r"(?:^|\.)(?:conv_in|to_q|q_proj|proj_in|norm\w*|attn\w*|linear\w*|ff\.net\S*|qkv)\.(?:weight|bias)$")),
)


@dataclass
class ModuleKeys:
    """The tensors of one module, by role, and the keys that they came from."""

    target: Target
    algorithms: set[str] = field(default_factory=set)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Groups:
    """A file sorted into modules, embeddings and the rest."""

    modules: list[ModuleKeys]
    layouts: set[str]
    embeddings: list[str]
    unused: dict[str, str]
    notes: list[str]


def group_keys(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], label: str) -> Groups:
    """
    Sort the keys of a file.

    Raises:
        NotAnAdapterError: When no key belongs to an adapter; the message says what the file seems to be.
        InvalidAdapterError: When a module's part stands twice, or several named adapters share the file.
    """
    modules: dict[tuple[str | None, str], ModuleKeys] = {}
    layouts: set[str] = set()
    embeddings: dict[str, None] = {}
    unused: dict[str, str] = {}
    inner_names: dict[str, None] = {}
    twice: list[str] = []
    has_on_input = any(key.endswith(".on_input") for key in tensors)
    for key, tensor in tensors.items():
        token = _EMBEDDING.match(key)
        if token:
            embeddings.setdefault(next(g for g in token.groups() if g))
            unused[key] = "textual inversion, not applied by this loader"
            continue
        target, leaf, layout = _locate(key, metadata, has_on_input=has_on_input)
        if target is None or leaf is None:
            unused[key] = "no known ending of an adapter key"
            continue
        if leaf.inner:
            inner_names.setdefault(leaf.inner)
        layouts.add(layout)
        group = modules.setdefault((target.hint, target.module), ModuleKeys(target))
        if leaf.role in group.tensors:
            twice.append(key)
        group.tensors[leaf.role] = tensor
        group.keys.append(key)
        if leaf.algorithm:
            group.algorithms.add(leaf.algorithm)
    if len(inner_names) > 1:
        msg = f"{label}: holds {len(inner_names)} adapters ({', '.join(inner_names)}); save each to a file of its own"
        raise InvalidAdapterError(msg)
    if twice:
        msg = f"{label}: {len(twice)} parts of modules stand twice under different spellings: {', '.join(twice[:5])}"
        raise InvalidAdapterError(msg)
    # FaceID's IP-Adapters bring a LoRA along, which is of no use without them
    if not any(group.algorithms for group in modules.values()) or any(_IP_ADAPTER.search(key) for key in tensors):
        raise _not_an_adapter(tensors, list(embeddings), label)
    lone = [group for group in modules.values() if not group.algorithms]
    for group in lone:  # an alpha whose pair is gone
        unused.update(dict.fromkeys(group.keys, "alpha or scale of a module that has no weights here"))
    notes = [f"holds textual inversions {', '.join(embeddings)}: not part of the LoRA"] if embeddings else []
    return Groups([g for g in modules.values() if g.algorithms], layouts, list(embeddings), unused, notes)


def _locate(key: str, metadata: Mapping[str, str], *, has_on_input: bool) -> tuple[Target | None, Leaf | None, str]:
    counted = safeloras.split_key(key, metadata)
    if counted:
        hint, module, role = counted
        return Target(hint, module, key.rpartition(":")[0]), Leaf(role, "lora"), "safeloras"
    found = split_key(key)
    if found is None:
        if has_on_input and key.endswith(".weight"):
            target, layout = split_component(key.removesuffix(".weight"))
            return target, Leaf("ia3_weight", "ia3"), layout
        return None, None, ""
    spelling, leaf = found
    if spelling.startswith(safeloras.PREFIX):
        return Target(None, spelling, spelling), leaf, "safeloras"
    target, layout = split_component(spelling)
    if leaf.attn_processor or ".processor." in target.module:
        layout = "diffusers-attn-procs"
        target = Target(target.hint, modernise(target.module), target.written)
    elif "self_attn.to_" in target.module:  # the text encoders of the same age
        target = Target(target.hint, modernise(target.module), target.written)
    return target, leaf, layout


def _not_an_adapter(tensors: Mapping[str, torch.Tensor], embeddings: list[str], label: str) -> NotAnAdapterError:
    if not tensors:
        return NotAnAdapterError(f"{label}: holds no tensors at all")
    if embeddings or set(tensors) <= {"clip_l", "clip_g", "emb_params"}:
        what = "a textual inversion (embedding); load it with pipe.load_textual_inversion"
        return NotAnAdapterError(f"{label}: {what}")
    for kind, pattern in _OTHER_KINDS:
        if any(pattern.search(key) for key in tensors):
            return NotAnAdapterError(f"{label}: {kind}, not an adapter (first key {next(iter(tensors))!r})")
    shown = ", ".join(list(tensors)[:5])
    return NotAnAdapterError(f"{label}: none of its {len(tensors)} keys belongs to a known adapter format: {shown}")


def build_layers(
    modules: list[ModuleKeys], rules: Mapping[str | None, ScaleRule], label: str
) -> tuple[AdapterLayer, ...]:
    """
    Give every module's tensors to its algorithm.

    Args:
        modules: The grouped keys.
        rules: Scales from configurations, by component; those of None hold where no component is named.
        label: What to call the file in messages.

    Raises:
        UnsupportedAdapterError: When an algorithm is not applied yet; all of them are named.
        InvalidAdapterError: With every broken module, when parts are missing or do not fit together.
    """
    missing = {name for group in modules for name in group.algorithms if name not in ALGORITHMS}
    if missing:
        names = ", ".join(sorted(UPCOMING.get(name, name) for name in missing))
        count = sum(1 for group in modules if group.algorithms & missing)
        msg = (
            f"{label}: {names} in {count} of {len(modules)} modules: this algorithm is not supported yet; "
            "the file is left untouched"
        )
        raise UnsupportedAdapterError(msg)
    layers, problems = [], []
    for group in modules:
        try:
            layers.append(_layer(group, rules))
        except FormatError as error:
            problems.append(str(error))
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        msg = f"{label}: {len(problems)} of {len(modules)} modules are broken:\n  " + "\n  ".join(problems[:_SHOWN]) + more
        raise InvalidAdapterError(msg)
    return tuple(layers)


def _layer(group: ModuleKeys, rules: Mapping[str | None, ScaleRule]) -> AdapterLayer:
    tensors = dict(group.tensors)
    label = group.target.written
    alpha = _scalar(tensors.pop("alpha", None), "alpha", label)
    scale = _scalar(tensors.pop("scale", None), "scale", label)
    rule = _rule_for(group.target, rules)
    if alpha is None and rule is not None:
        alpha = rule.alpha_of(group.target.module)
    for role, tensor in tensors.items():
        if not tensor.is_floating_point():
            msg = f"{label}: {role} has dtype {tensor.dtype}, expected floating point"
            raise InvalidAdapterError(msg)
        if tensor.numel() == 0:
            msg = f"{label}: {role} is empty, shape {tuple(tensor.shape)}"
            raise InvalidAdapterError(msg)
    parts = Parts(tensors, alpha, scale, rank_stabilised=rule is not None and rule.rank_stabilised, label=label)
    (algorithm,) = group.algorithms  # mixed ones of one module are of algorithms that are refused above
    return AdapterLayer(group.target, ALGORITHMS[algorithm](parts), tuple(group.keys))


def _rule_for(target: Target, rules: Mapping[str | None, ScaleRule]) -> ScaleRule | None:
    names = {"denoiser": ("unet", "transformer")}.get(target.hint or "", (target.hint,))
    return next((rules[name] for name in names if name in rules), rules.get(None))


def _scalar(tensor: torch.Tensor | None, role: str, label: str) -> float | None:
    if tensor is None:
        return None
    if tensor.numel() != 1 or tensor.is_complex():
        msg = f"{label}: {role} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, expected one number"
        raise InvalidAdapterError(msg)
    value = float(tensor.float().item())
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 -- NaN is not itself
        msg = f"{label}: {role} is {value}, expected a finite number"
        raise InvalidAdapterError(msg)
    return value
