"""LoRA, LoCon, rsLoRA and DoRA: pairs on linear layers, convolutions and lookup tables, from any start that leaves the base alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora_mixer.errors import AdapterConfigError
from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.draws import kaiming
from lora_mixer.fresh.kinds.kind import FreshKind, flags, number, one_of, rank_beyond, ranks, whole
from lora_mixer.fresh.starts import STARTS, start_named
from lora_mixer.fresh.starts.eva import EvaConfig
from lora_mixer.problem import Problem
from lora_mixer.wording import did_you_mean, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.starts import Start
    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class LoraConfig(AdapterConfig):
    """
    A low-rank pair on each target: LoRA on linear layers and lookup tables, LoCon on convolutions.

    Attributes:
        r: The rank.
        lora_alpha: The scale is ``lora_alpha / r``.
        lora_dropout: The share of a layer's inputs that the pair does not see in training.
        rank_pattern: Other ranks by pattern: names or regular expressions that the end of a path must match.
        alpha_pattern: Other alphas by pattern.
        use_rslora: Whether the scale is ``lora_alpha / sqrt(r)`` (arXiv:2312.03732).
        use_dora: Whether a magnitude is trained as well (arXiv:2402.09353).
        lora_bias: Whether the pair has a bias.
        bias: ``"none"``, ``"lora_only"`` (biases of targets are trained) or ``"all"`` (those of the whole model).
        init_lora_weights: The start: True as PEFT's, ``"gaussian"``, ``"pissa"``, ``"olora"``, ``"orthogonal"``, ``"eva"`` (needs
            ``eva_data``); False draws both halves, so that the adapter changes outputs from the start.
        eva_config: For ``"eva"``.
        trainable_token_indices: Tokens whose rows of the lookup table are trained; a dict names other tables.
        target_parameters: Ends of the paths of bare parameters, such as the experts' ``"experts.gate_up_proj"``.
        fan_in_fan_out: Whether weights lie as (in, out); found out where an adapter is made.

    Example:
        >>> LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]).r
        4
    """

    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    eva_config: EvaConfig | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    target_parameters: list[str] | None = None
    fan_in_fan_out: bool = False


def _problems(config: LoraConfig) -> Iterator[Problem]:
    yield from whole(config, "r")
    yield from number(config, "lora_alpha")
    yield from number(config, "lora_dropout", below=1.0)
    yield from ranks(config, "rank_pattern", "alpha_pattern")
    yield from flags(config, "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")
    yield from one_of(config, "bias", "none", "lora_only", "all")
    start = start_named(config.init_lora_weights)
    if start is None:
        yield Problem(
            "init_lora_weights",
            f"expected one of {', '.join(map(repr, STARTS))}, got {shown(config.init_lora_weights)}; other starts change the "
            "base, or need what is not in it.",
        )
        return
    if start.from_base and config.use_dora:
        yield Problem("use_dora", f"cannot be trained together with init_lora_weights={start.name!r}.")
    if start.from_base and not config.lora_alpha:
        yield Problem("lora_alpha", f"{start.name} divides by the scale, which is 0.")
    if config.lora_bias and config.use_dora:
        yield Problem("lora_bias", "has no place beside a magnitude; choose one of lora_bias and use_dora.")
    if config.lora_bias and isinstance(start.name, str):
        yield Problem(
            "lora_bias", f"is started with init_lora_weights True or False only, not {start.name!r}."
        )
    eva: Any = config.eva_config
    if eva is not None and not isinstance(eva, EvaConfig):
        yield Problem("eva_config", f"expected the fields of EvaConfig, got {shown(eva)}.")
    elif eva is not None:
        yield from number(eva, "rho", least=1.0)
        yield from flags(eva, "use_label_mask", "whiten", "adjust_scaling_factors")
    yield from token_problems(config.trainable_token_indices, "trainable_token_indices")
    yield from _parameter_problems(config)


def _parameter_problems(config: LoraConfig) -> Iterator[Problem]:
    """Find what bare parameters cannot have."""
    names: Any = config.target_parameters
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        yield Problem("target_parameters", f"expected a list of names, got {shown(names)}.")
    odd = [name for name in ("use_dora", "lora_bias", "lora_dropout") if getattr(config, name)]
    odd += ["init_lora_weights"] if isinstance(config.init_lora_weights, str) else []
    for name in odd:
        yield Problem(name, "has no place on bare parameters (target_parameters).")


def token_problems(table: Any, name: str) -> Iterator[Problem]:
    """Find tokens that are not lists of numbers from 0, each once."""
    for key, ids in (
        (table or {}).items() if isinstance(table, dict) else [("", table)] if table is not None else []
    ):
        place = f"{name}[{shown(key)}]" if key else name
        if not isinstance(ids, list) or not ids or any(type(one) is not int or one < 0 for one in ids):
            yield Problem(place, f"expected a list of token numbers from 0, got {shown(ids)}.")
        elif len(set(ids)) < len(ids):
            yield Problem(place, "names a token twice.")


def refuses(config: LoraConfig, target: Target) -> str | None:
    """Say why a module cannot have a pair, or None."""
    embedding = target.layer == "embedding"
    reasons = (
        (target.layer == "other", "has no pair: pairs are for linear layers, convolutions and lookup tables"),
        (
            target.groups > 1,
            f"is a convolution in {target.groups} groups, where a pair would hear all inputs, which no weight of it can hold",
        ),
        (config.lora_bias and embedding, "is a lookup table, which has no place for lora_bias"),
    )
    why = next((why for wrong, why in reasons if wrong), None)
    return why or _start(config).refuses(target) or rank_beyond(target.rank, target)


def pair(config: LoraConfig, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in, *kernel) and B (out, rank, 1, ...) at the start; of a lookup table A (rank, rows), B (width, rank)."""
    start = _start(config)
    return start.lookup(target) if target.layer == "embedding" else start.pair(target)


def _start(config: LoraConfig) -> Start:
    """Return the start, which was checked."""
    return STARTS[config.init_lora_weights]


def start_pair(config: LoraConfig, target: Target) -> dict[str, torch.Tensor]:
    """Return the tensors of a target."""
    down, up = pair(config, target)
    embedding = target.layer == "embedding"
    names = (".lora_embedding_A", ".lora_embedding_B") if embedding else (".lora_A.weight", ".lora_B.weight")
    tensors = dict(zip(names, (down, up), strict=True))
    if config.lora_bias:
        tensors[".lora_B.bias"] = (
            kaiming(1, target.shape[0])[0] if not config.init_lora_weights else torch.zeros(target.shape[0])
        )
    if config.use_dora:
        tensors[".lora_magnitude_vector"] = _magnitude(target, down, up)
    return tensors


def _magnitude(target: Target, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return the length of each output of the weight with the pair as it starts; of each column of a lookup table."""
    clean = target.clean()
    if target.layer == "embedding":
        columns: torch.Tensor = torch.linalg.vector_norm(
            clean.T + target.scale * (up @ down).to(clean), dim=1
        )
        return columns
    change = (up.flatten(1) @ down.flatten(1)).to(clean).reshape(clean.shape)
    lengths: torch.Tensor = torch.linalg.vector_norm((clean + target.scale * change).flatten(1), dim=1)
    return lengths if clean.ndim == 2 else lengths.view(1, -1, *[1] * (clean.ndim - 2))


def _converted(name: str, value: Any) -> Any:
    if name != "eva_config" or not isinstance(value, Mapping):
        return value
    known = [one.name for one in fields(EvaConfig)]
    odd = [key for key in value if key not in known]
    if odd:
        raise AdapterConfigError(
            problems=tuple(
                Problem(f"eva_config.{key}", f"there is no such field.{did_you_mean(str(key), known)}")
                for key in odd
            )
        )
    return EvaConfig(**value)


LORA = FreshKind(LoraConfig, _problems, refuses, start_pair, converted=_converted)
