"""
Parts of adapters to the layers of a new one: as loaded, or several made one.

Sums are made in fp32 (fp64 for fp64 tensors). A layer whose parts are all low-rank never becomes a full matrix, unless
the method asks for that; one with parts that are no pair does, alone, and needs a rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import SaveError
from lora_mixer.merging import MergeMethod, truncate, truncate_pair
from lora_mixer.writing.layers import NewLayer, Part, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lora_mixer.algorithms import Factors
    from lora_mixer.merging.weighted_sum import Pair

    Watch = Callable[[Iterable[Place]], Iterable[Place]]
    """Wraps the places, to show how far the work is."""

_SHOWN = 8


def same(places: Iterable[Place]) -> Iterable[Place]:
    """Show nothing."""
    return places


def as_loaded(parts: Sequence[Part], *, keep_leaves: bool, rank: int | None = None) -> list[NewLayer]:
    """
    Give the layers of one adapter with its own tensors and scales.

    Args:
        parts: All parts of the adapter.
        keep_leaves: Whether tensors of other algorithms may be kept under their own leaf names.
        rank: For layers that are no pair: the rank to write them at.

    Returns:
        One layer for each part.

    Raises:
        SaveError: When layers are no pair and no rank is given; all are named.
    """
    layers, refused = [], []
    for part in parts:
        layer = _own_layer(part, keep_leaves=keep_leaves)
        if layer is None:
            layer = _dense_layer(part.place, [(part, 1.0)], rank, None)
        if layer is None:
            refused.append(_reason(part))
        else:
            layers.append(layer)
    _refuse(refused)
    return layers


def mixed(
    parts: Mapping[Place, Sequence[tuple[Part, float]]],
    *,
    rank: int | None = None,
    energy: float | None = None,
    method: MergeMethod | None = None,
    watch: Watch = same,
) -> list[NewLayer]:
    """
    Make one adapter of several.

    Args:
        parts: For each module the parts of the adapters and their weights.
        rank: The rank to cut to; None keeps the sum of the ranks, exactly.
        energy: Instead of a rank, the share of each layer's squared norm to keep.
        method: How they come together; the weighted sum when None.
        watch: Wraps the places, to show how far the work is.

    Returns:
        One layer for each module that changes; alpha is the rank, so scales are in the tensors.

    Raises:
        SaveError: When full matrices come in (by the method, or an algorithm that is no pair) and no rank is given.
    """
    chosen = method or MergeMethod()
    if chosen.is_dense and rank is None and energy is None:
        raise SaveError(
            f"{chosen.name} makes full matrices: say with rank= (--rank) at which rank to write them"
        )
    layers, refused = [], []
    for place in watch(list(parts)):
        own = [(part, gain) for part, gain in parts[place] if gain]
        if not own:
            continue
        layer = _mixed_layer(place, own, rank, energy, chosen)
        if layer is None:
            refused += [_reason(part) for part, _ in own if _pair(part) is None]
        else:
            layers.append(layer)
    _refuse(refused)
    return layers


def _own_layer(part: Part, *, keep_leaves: bool) -> NewLayer | None:
    """Give a part as it is, or None if it is no pair and has no leaves to keep."""
    place, weights = part.place, part.weights
    if len(place.shape) < 2 and not (keep_leaves and part.leaves):
        return _vector_layer(place, [(part, 1.0)])
    plain = weights.algorithm == "lora"
    if keep_leaves and part.leaves and (not plain or any("mid" in leaf for leaf in part.leaves)):
        return NewLayer(place, leaves=part.leaves)
    pair = weights.factors(place.shape) if len(place.shape) > 1 else None
    if pair is None:
        return None
    own_rank = pair.up.shape[1]
    known = weights.alpha is not None and weights.alpha / own_rank == pair.scale
    alpha = weights.alpha if known and weights.alpha is not None else pair.scale * own_rank
    note = "" if plain else f"{weights.algorithm} is written as the pair that it equals"
    return NewLayer(place, pair.up, pair.down, alpha, _own_bias(part, pair), note=note)


def _own_bias(part: Part, pair: Factors) -> torch.Tensor | None:
    """Give the change of the bias before the pair's scale is applied."""
    stored: torch.Tensor | None = getattr(part.weights, "up_bias", None)
    if stored is not None and getattr(part.weights, "set_bias", None) is None:
        return stored
    change = part.weights.bias_delta(_wide(part.bias), 1.0)
    return None if change is None or not pair.scale else (change.double() / pair.scale).to(change)


def _mixed_layer(
    place: Place,
    own: Sequence[tuple[Part, float]],
    rank: int | None,
    energy: float | None,
    method: MergeMethod,
) -> NewLayer | None:
    if len(place.shape) < 2:
        return _vector_layer(place, own)
    pairs = [_pair(part) for part, _ in own]
    gains = [gain for _, gain in own]
    if method.is_dense:
        deltas = []
        for (part, _), pair in zip(own, pairs, strict=True):
            delta = pair[0] @ pair[1] if pair is not None else _delta(part, 1.0)
            if delta is None:
                return None
            deltas.append(delta.flatten(1))
        form = truncate(method.merge_deltas(deltas, gains, str(place)), rank, energy)
        return NewLayer(place, form.up, form.down, form.rank, _bias(own), error=form.error)
    found = [pair for pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return _dense_layer(place, own, rank, energy)
    up, down = method.merge_pairs(found, gains)
    if (rank is not None and up.shape[1] > rank) or energy is not None:
        form = truncate_pair(up, down, rank, energy)
        return NewLayer(place, form.up, form.down, form.rank, _bias(own), error=form.error)
    return NewLayer(place, _narrow(up), _narrow(down), up.shape[1], _bias(own))


def _dense_layer(
    place: Place, own: Sequence[tuple[Part, float]], rank: int | None, energy: float | None
) -> NewLayer | None:
    """Sum full weight changes of one layer and cut them to a rank; None if there is no rank or no base."""
    if rank is None and energy is None:
        return None
    total: torch.Tensor | None = None
    for part, gain in own:
        delta = _delta(part, gain)
        if delta is None:
            return None
        total = delta if total is None else total + delta
    if total is None:
        return None
    form = truncate(total.flatten(1), rank, energy)
    names = sorted({part.weights.algorithm for part, _ in own if part.weights.algorithm != "lora"})
    note = f"{', '.join(names)} is written by singular values, as it is at these weights"
    return NewLayer(place, form.up, form.down, form.rank, _bias(own), error=form.error, note=note)


def _vector_layer(place: Place, own: Sequence[tuple[Part, float]]) -> NewLayer | None:
    total: torch.Tensor | None = None
    for part, gain in own:
        delta = _delta(part, gain)
        if delta is None:
            return None
        total = delta if total is None else total + delta
    return NewLayer(place, vector=total, bias=_bias(own))


def _pair(part: Part) -> Pair | None:
    """Give the pair with its scale in it, in fp32 at least; None where there is none."""
    pair = part.weights.factors(part.place.shape) if len(part.place.shape) > 1 else None
    if pair is None:
        return None
    wide = torch.float64 if torch.float64 in (pair.up.dtype, pair.down.dtype) else torch.float32
    return pair.up.to(wide) * pair.scale, pair.down.to(wide)


def _delta(part: Part, gain: float) -> torch.Tensor | None:
    """Give the full change; algorithms that look at the base have none without it."""
    pair = _pair(part)
    if pair is not None:
        return ((pair[0] @ pair[1]) * gain).reshape(part.place.shape)
    base = _wide(part.base)
    return None if base is None else part.weights.delta(base, gain)


def _bias(own: Sequence[tuple[Part, float]]) -> torch.Tensor | None:
    changes = [part.weights.bias_delta(_wide(part.bias), gain) for part, gain in own]
    found = [change for change in changes if change is not None]
    return torch.stack(found).sum(0) if found else None


def _wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.float()


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()


def _reason(part: Part) -> str:
    why = "" if part.base is not None else ", and no base weights at hand"
    return f"{part.place} ({part.weights.algorithm}{why})"


def _refuse(refused: Sequence[str]) -> None:
    if refused:
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        bases = any("no base" in reason for reason in refused)
        advice = "name the base model (--model) and a rank" if bases else "give a rank (rank=, --rank)"
        raise SaveError(
            f"{len(refused)} modules are no low-rank pair: {', '.join(refused[:_SHOWN])}{more}; to write them as the "
            f"best pair of a rank, {advice}"
        )
