"""
EVA: pairs start from the directions in which the inputs of their layers vary most, and those that vary more get more ranks.

arXiv:2410.07170. PEFT finds the directions step by step until they settle; here they are those of all batches, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.errors import AdapterConfigError
from lora_mixer.fresh.starts.drawn import usual
from lora_mixer.fresh.starts.start import Spread, Start
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class EvaConfig:
    """
    How EVA spreads ranks (arXiv:2410.07170).

    Attributes:
        rho: How many times its rank a layer may get; 1 keeps the ranks as they are.
        tau: Taken for PEFT's sake, which stops by it: all batches are used here.
        use_label_mask: Whether places whose label is ``label_mask_value`` are left out.
        label_mask_value: As above.
        whiten: Whether directions are divided by the root of their singular values.
        adjust_scaling_factors: Whether a layer's alpha follows its rank, so that its scale stays.

    Example:
        >>> EvaConfig(rho=2.0).rho
        2.0
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True


class _Inputs:
    """Sums up the inputs of one layer."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, width, dtype=torch.float64)
        self.mask: torch.Tensor | None = None

    def __call__(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows = args[0].detach()
        mask = self.mask
        if mask is not None and rows.ndim > 2 and rows.shape[: mask.ndim] == mask.shape:
            rows = rows[mask.to(rows.device)]
        rows = rows.reshape(-1, rows.shape[-1]).to("cpu", torch.float64)
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.squares += rows.T @ rows

    def directions(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the directions (n, width), their singular values and their shares of the variance, largest first."""
        mean = self.total / self.count
        scatter = self.squares - self.count * torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(scatter)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T
        return vectors, values.sqrt(), values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)


def spread(config: EvaConfig, root: nn.Module, targets: Sequence[Target], batches: Iterable[Any]) -> Spread:
    """
    Run a model on data and return each target's A.

    Args:
        config: How ranks are spread.
        root: The model, which is run in evaluation mode and as it was before afterwards.
        targets: Linear layers, with their ranks.
        batches: Dicts of arguments, or what the model takes as its one argument.

    Raises:
        AdapterConfigError: When there is no batch, or too few inputs for a layer's rank.
    """
    held = {one.path: _Inputs(one.shape[1]) for one in targets}
    handles = [one.live.module.register_forward_pre_hook(held[one.path]) for one in targets]
    training = {module: module.training for module in root.modules()}
    try:
        root.eval()
        with torch.no_grad():
            for batch in batches:
                mask = _mask(batch, config)
                for inputs in held.values():
                    inputs.mask = mask
                root(**batch) if isinstance(batch, Mapping) else root(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    most = {one.path: min(round(one.rank * config.rho), one.shape[1]) for one in targets}
    few = [
        f"{path} saw {held[path].count} of at least {count}"
        for path, count in most.items()
        if held[path].count < count
    ]
    if few:
        raise AdapterConfigError(
            problems=(
                Problem("eva_data", f"too few inputs for the ranks: {', '.join(few[:5])}; give more data."),
            )
        )
    directions = {path: inputs.directions() for path, inputs in held.items()}
    shares = sorted(
        ((float(share), path) for path, (_, _, ratio) in directions.items() for share in ratio[: most[path]]),
        key=lambda entry: -entry[0],
    )
    budget = sum(one.rank for one in targets)
    counts = dict.fromkeys(directions, 0)
    for _, path in shares[:budget]:
        counts[path] += 1
    result = {}
    for path, (vectors, values, _) in directions.items():
        chosen = vectors[: counts[path]]
        if config.whiten:
            chosen = chosen / values[: counts[path]].sqrt()[:, None]
        result[path] = chosen.float()
    return Spread(result, config.adjust_scaling_factors)


def _mask(batch: Any, config: EvaConfig) -> torch.Tensor | None:
    """Return which places of a batch count (rows, places); None for all."""
    if not isinstance(batch, Mapping):
        return None
    mask: torch.Tensor | None = batch.get("attention_mask")
    mask = None if mask is None or mask.ndim != 2 else mask.bool()
    labels = batch.get("labels")
    if config.use_label_mask and labels is not None and labels.ndim == 2:
        counted = labels != config.label_mask_value
        mask = counted if mask is None else mask & counted.to(mask.device)
    return mask


def _by_data(config: Any, root: nn.Module, targets: Sequence[Target], batches: Iterable[Any]) -> Spread:
    return spread(config.eva_config, root, targets, batches)


EVA = Start("eva", usual, only_linear=True, by_data=_by_data, settings=("eva_config", EvaConfig))
