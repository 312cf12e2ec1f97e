"""Trained tokens: some rows of a lookup table, and of the head that shares it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds.kind import FreshKind, flags
from lora_mixer.fresh.kinds.lora import token_problems
from lora_mixer.fresh.usual_targets import none_usual
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class TrainableTokensConfig(AdapterConfig):
    """
    Rows of the targets' lookup tables.

    Attributes:
        token_indices: The tokens.
        target_modules: The tables; the input embedding when None.
        init_weights: Whether they begin as the base has them; else they are drawn.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Embedding(8, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(TrainableTokensConfig(token_indices=[7], target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"

    token_indices: list[int] = field(default_factory=list)
    init_weights: bool = True


def _problems(config: TrainableTokensConfig) -> Iterator[Problem]:
    yield from flags(config, "init_weights")
    yield from token_problems(config.token_indices, "token_indices")
    for name in ("layers_to_transform", "modules_to_save"):
        if getattr(config, name) is not None:
            yield Problem(name, "has no place beside tokens.")


def refuses_tokens(tokens: Sequence[int], target: Target) -> str | None:
    """Say why a module cannot have trained tokens, or None."""
    if target.layer != "embedding":
        return "is not a lookup table, and tokens are rows of one"
    rows = target.shape[0]
    beyond = [token for token in tokens if token >= rows]
    if beyond:
        return (
            f"has {rows} rows, and tokens {', '.join(map(str, beyond[:5]))} are beyond: add them to the tokenizer and call "
            "resize_token_embeddings first"
        )
    return None


def rows_of(tokens: Sequence[int], target: Target) -> torch.Tensor:
    """Return the rows of tokens as the base has them."""
    clean = target.clean()
    return clean[torch.tensor(list(tokens), device=clean.device)].clone()


def _start(config: TrainableTokensConfig, target: Target) -> dict[str, torch.Tensor]:
    rows = rows_of(config.token_indices, target)
    return {".trainable_tokens_delta": rows if config.init_weights else torch.rand_like(rows)}


TOKENS = FreshKind(
    TrainableTokensConfig,
    _problems,
    lambda config, target: refuses_tokens(config.token_indices, target),
    _start,
    lacks=("exclude_modules",),
    takes_tokens=True,
    usual=none_usual,
)
