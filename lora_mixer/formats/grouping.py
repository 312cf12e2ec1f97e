"""Keys to modules: gather the tensors of each module, tell apart what is not a layer, refuse what cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from lora_mixer.algorithms.table import ALGORITHMS, prefixes
from lora_mixer.errors import InvalidAdapterError, NotAnAdapterError, UnsupportedAdapterError
from lora_mixer.formats import safeloras
from lora_mixer.formats.fronts import PEFT_ROOT, KeyTarget, modernise, split_component
from lora_mixer.formats.leaves import Leaf, split_key
from lora_mixer.parsing.module_patterns import LONGEST_NAME
from lora_mixer.problem import Problem, Remark, Remedy, UnusedReason
from lora_mixer.word_keys import token_of
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    import torch

_IP_ADAPTER = re.compile(r"^(?:image_proj|ip_adapter)\.")
_OTHER_KINDS = (
    (
        "a full checkpoint",
        re.compile(r"^model\.diffusion_model\.|^first_stage_model\.|^cond_stage_model\.|^conditioner\."),
    ),
    ("a ControlNet", re.compile(r"controlnet_|input_hint_block|^zero_convs|^control_model|lora_controlnet")),
    ("an IP-Adapter", _IP_ADAPTER),
    (
        "a full model (UNet, transformer, text encoder or VAE)",
        re.compile(
            r"(?:^|\.)(?:conv_in|to_q|q_proj|proj_in|norm\w*|attn\w*|linear\w*|ff\.net\S*|qkv)\.(?:weight|bias)$"
        ),
    ),
)


_AGAIN = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|original_module)(?=\.(?:weight|bias)$)")
_NORM = re.compile(r"(?:^|[._])(?:norm\w*|\w+_norm)$")
_LONGEST_KEY = LONGEST_NAME + 96
"""Letters of a key: a path, with an ending behind it."""
_WORD = Remark(
    "textual inversion, loaded only where words are asked for",
    UnusedReason.TEXTUAL_INVERSION,
    Remedy("load_embeddings=True", "--load-embeddings"),
)
_UNKNOWN = Remark("no known ending of an adapter key", UnusedReason.UNKNOWN_ENDING)
_LONE = Remark("alpha or scale of a module that has no weights here", UnusedReason.LONE_SCALE)


@dataclass
class ModuleKeys:
    """The tensors of one module, by role, and the keys that they came from."""

    target: KeyTarget
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    """The algorithm of each role; roles that any algorithm may use, such as alpha, have none."""
    keys: list[str] = field(default_factory=list)

    @property
    def algorithms(self) -> set[str]:
        """The algorithms that the roles name."""
        return {name for name in self.roles.values() if name}


@dataclass(frozen=True)
class FileGroups:
    """A file sorted into modules, embeddings and the rest."""

    modules: list[ModuleKeys]
    layouts: set[str]
    embeddings: list[str]
    unused: dict[str, Remark[UnusedReason]]


def group_keys(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], label: str, *, has_config: bool = False
) -> FileGroups:
    """
    Sort the keys of a file.

    Args:
        tensors: The file.
        metadata: Its header's metadata.
        label: What to call it in messages.
        has_config: Whether a PEFT configuration lies beside it: then bare weights are trained values.

    Raises:
        NotAnAdapterError: When no key belongs to an adapter; the message says what the file seems to be.
        InvalidAdapterError: When a key is too long, a module's part stands twice, or several named adapters share the file.
        UnsupportedAdapterError: When keys beside a PEFT configuration are of no known part.
    """
    modules: dict[tuple[str | None, str], ModuleKeys] = {}
    layouts: set[str] = set()
    embeddings: dict[str, None] = {}
    unused: dict[str, Remark[UnusedReason]] = {}
    inner_names: dict[str, None] = {}
    twice: list[str] = []
    _check_lengths(tensors, label)
    for key, tensor in tensors.items():
        if (token := token_of(key)) is not None:
            embeddings.setdefault(token)
            unused[key] = _WORD
            continue
        plain = said_again(key, tensors)
        target, leaf, layout = locate(plain or key, tensors, metadata)
        if target is None or leaf is None:
            unused[key] = _UNKNOWN
            continue
        group = _group_of(target, modules)
        if plain is not None:
            group.keys.append(key)
            continue
        if leaf.inner:
            inner_names.setdefault(leaf.inner)
        layouts.add(layout)
        if leaf.role in group.tensors:
            twice.append(key)
        group.tensors[leaf.role] = tensor
        group.roles[leaf.role] = leaf.algorithm
        group.keys.append(key)
    _check_once(list(inner_names), twice, label)
    nothing = not any(group.algorithms for group in modules.values())
    # FaceID's IP-Adapters bring a LoRA along, which is of no use without them
    foreign = any(_IP_ADAPTER.match(key) for key in tensors)
    if nothing or foreign or _only_values(modules.values(), has_config=has_config):
        raise _not_an_adapter(tensors, list(embeddings), label)
    if has_config:
        _refuse_unknown([key for key, why in unused.items() if why is _UNKNOWN], label)
    lone = [group for group in modules.values() if not group.algorithms]
    for group in lone:  # an alpha whose pair is gone
        unused.update(dict.fromkeys(group.keys, _LONE))
    return FileGroups([g for g in modules.values() if g.algorithms], layouts, list(embeddings), unused)


def _check_lengths(keys: Iterable[str], label: str) -> None:
    """
    Refuse keys that are longer than any module's path.

    Raises:
        InvalidAdapterError: When there is one.
    """
    longest = max(keys, key=len, default="")
    if len(longest) > _LONGEST_KEY:
        raise InvalidAdapterError(
            f"a key of {len(longest)} letters: no module of a model has such a path",
            file=label,
            key=f"{longest[:60]}...",
        )


def _group_of(target: KeyTarget, modules: dict[tuple[str | None, str], ModuleKeys]) -> ModuleKeys:
    place = (target.hint, target.module)
    if place not in modules:
        modules[place] = ModuleKeys(target)
    return modules[place]


def _refuse_unknown(keys: Sequence[str], label: str) -> None:
    """
    Refuse keys that no rule reads beside a PEFT configuration: they are a sign of a method that is not known.

    Raises:
        UnsupportedAdapterError: When there are any.
    """
    if keys:
        raise UnsupportedAdapterError(
            f"{len(keys)} keys beside the PEFT configuration are of no part that this version knows "
            f"({first_of([key[:200] for key in keys], 5)}), so that a part of what was trained would be left out; take "
            "them out of the file to load the rest",
            file=label,
            problems=[Problem(key[:200], "is of no part that this version knows") for key in keys],
        )


def _check_once(names: Sequence[str], twice: Sequence[str], label: str) -> None:
    """Refuse files of several adapters, and parts that two keys stand for."""
    if len(names) > 1:
        raise InvalidAdapterError(
            f"holds {len(names)} adapters ({', '.join(names)}); save each to a file of its own",
            file=label,
            problems=[Problem("", f"holds the adapter {name}") for name in names],
        )
    if twice:
        raise InvalidAdapterError(
            f"{len(twice)} parts of modules stand twice under different spellings: {', '.join(twice[:5])}",
            file=label,
            problems=[Problem(part, "stands twice under different spellings") for part in twice],
        )


def said_again(key: str, tensors: Container[str]) -> str | None:
    """
    Return the key that says what a key says again: PEFT writes saved modules of a resized vocabulary three times.

    Example:
        >>> names = ("base_model.model.lm_head.weight", "base_model.model.lm_head.original_module.weight")
        >>> [said_again(name, names) for name in names]
        [None, 'base_model.model.lm_head.weight']
    """
    plain = _AGAIN.sub("", key) if PEFT_ROOT in key else key
    return plain if plain != key and plain in tensors else None


def _only_values(groups: Iterable[ModuleKeys], *, has_config: bool) -> bool:
    """Say whether a file holds nothing but plain weights: a model rather than an adapter, unless a configuration says so."""
    return not has_config and all(group.algorithms <= {"set"} for group in groups)


def is_foreign(key: str) -> bool:
    """Say whether a key is of a kind that decides about its whole file: a word's vectors, an IP-Adapter's part."""
    return token_of(key) is not None or _IP_ADAPTER.match(key) is not None


def locate(
    key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[KeyTarget | None, Leaf | None, str]:
    """
    Find the module and the part that a key names.

    Args:
        key: The key.
        tensors: The file, for endings that mean one thing or another by what stands beside them.
        metadata: Its header's metadata.

    Returns:
        Target, leaf and layout; None where the key is not a part of an adapter.
    """
    counted = safeloras.split_key(key, metadata)
    if counted:
        hint, module, role = counted
        return KeyTarget(hint, module, key.rpartition(":")[0]), Leaf(role, "lora"), "safeloras"
    split = split_key(key) or _bare_value(key, tensors)
    if split is None:
        return None, None, ""
    spelling, leaf = split
    if spelling.startswith(safeloras.PREFIX):
        return KeyTarget(None, spelling, spelling), leaf, "safeloras"
    if (
        leaf.role == "scale" and tensors[key].numel() > 1
    ):  # a norm's own scale (BFL's control LoRAs), not a number
        leaf = Leaf("set_weight", "set")
    target, layout = split_component(spelling)
    if leaf.algorithm and leaf.role in ALGORITHMS[leaf.algorithm].shared:
        layout = "peft"
    if leaf.inner == "default" and layout == "plain":  # PEFT's own keys have its root in front
        layout = "diffsynth"
    if leaf.attn_processor or ".processor." in target.module:
        layout = (
            "xlabs"
            if "_blocks." in target.module and ".attn" not in target.module
            else "diffusers-attn-procs"
        )
        target = replace(target, module=modernise(target.module))
    return target, leaf, layout


def _bare_value(key: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, Leaf] | None:
    """Read keys that end like a model's own: IA3's vectors, PEFT's modules_to_save and trained biases."""
    module, _, last = key.rpartition(".")
    if last == "weight" and f"{module}.on_input" in tensors:
        return module, Leaf("ia3_weight", "ia3")
    if last not in ("weight", "bias") or module.rpartition(".")[2].startswith(prefixes()):
        return None
    # norms beside pairs, as control LoRAs have them; in a file of nothing else they are a model's own
    if PEFT_ROOT in key or (_NORM.search(module) and tensors[key].ndim == 1):
        return module, Leaf(f"set_{last}", "set")
    return None


def _not_an_adapter(
    tensors: Mapping[str, torch.Tensor], embeddings: list[str], label: str
) -> NotAnAdapterError:
    if not tensors:
        return NotAnAdapterError("holds no tensors at all", file=label)
    if embeddings or set(tensors) <= {"clip_l", "clip_g", "emb_params"}:
        return NotAnAdapterError(
            "a textual inversion (embedding), not an adapter",
            file=label,
            remedy=Remedy("load it with mixer.load_textual_inversion"),
        )
    first = [key[:200] for key in islice(tensors, 5)]
    for kind, pattern in _OTHER_KINDS:
        if any(pattern.search(key) for key in tensors):
            return NotAnAdapterError(
                f"{kind}, not an adapter (first key {first[0]!r})",
                file=label,
                problems=[Problem(first[0], f"is the first key of {kind}")],
            )
    return NotAnAdapterError(
        f"none of its {len(tensors)} keys belongs to a known adapter format: {', '.join(first)}",
        file=label,
        problems=[Problem(key, "belongs to no known adapter format") for key in first],
    )
