"""
Parts of adapters to the layers of a new one: as loaded, or several made one.

Sums are made in fp32 (fp64 for fp64 tensors, and by methods that go by directions); what is stored is rounded once. A
layer whose parts are all low-rank never becomes a full matrix, unless the method asks for that; one with parts that are
not a pair does, alone, and needs a rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms import Dora
from lora_mixer.algorithms.full import Full
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.errors import SaveError
from lora_mixer.merging import LowRankForm, MergeMethod, pair_of, truncate, truncate_pair
from lora_mixer.parsing.values import is_number
from lora_mixer.problem import Problem, Remedy, SaveProblem, SaveReason
from lora_mixer.wording import first_of, shown
from lora_mixer.writing.layers import ModulePlace, NewLayer, Part, Share, of_one_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from lora_mixer.algorithms import Factors
    from lora_mixer.merging.weighted_sum import Pair

    Progress = Callable[[Iterable[Any]], Iterable[Any]]
    """Wraps what is gone through, to show how far the work is."""

_SHOWN = 8
_RANK_AT_MOST = 1 << 20  # far beyond the width of any layer


def same(places: Iterable[Any]) -> Iterable[Any]:
    """Show nothing."""
    return places


CUT_REMEDY = Remedy(
    "give a rank, an energy or an sv_ratio",
    "give --rank, --energy or --sv-ratio",
    "give a Rank, an Energy or an SV ratio",
)
"""What can be done where nothing says how far to cut."""


@dataclass(frozen=True)
class RankCut:
    """
    To which rank each layer is cut by its singular values.

    Attributes:
        rank: The rank; beside ``energy`` or ``sv_ratio``, the most that a layer gets.
        conv_rank: The same for convolutions with kernels above 1x1; ``rank`` where it is None.
        energy: The share of a layer's squared norm to keep, at the lowest rank that does.
        sv_ratio: Keep singular values above the largest divided by this.

    Raises:
        SaveError: When one is impossible.

    Example:
        >>> RankCut(rank=8, energy=0.9).to_text(), RankCut(rank=8).to_text()
        ('rank 8, energy 0.9', '8')
    """

    rank: int | None = None
    conv_rank: int | None = None
    energy: float | None = None
    sv_ratio: float | None = None

    def __post_init__(self) -> None:
        """Check everything."""
        problems: list[Problem] = []
        for name in ("rank", "conv_rank"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= _RANK_AT_MOST):
                problems.append(
                    Problem(name, f"must be a whole number from 1 to {_RANK_AT_MOST}, got {shown(value)}")
                )
        if self.energy is not None and not (is_number(self.energy) and 0 < self.energy <= 1):
            problems.append(Problem("energy", f"must be above 0 and at most 1, got {shown(self.energy)}"))
        if self.sv_ratio is not None and not (is_number(self.sv_ratio) and self.sv_ratio >= 1):
            problems.append(Problem("sv_ratio", f"must be at least 1, got {shown(self.sv_ratio)}"))
        if self.conv_rank is not None and self.rank is None and self.energy is None and self.sv_ratio is None:
            problems.append(
                Problem(
                    "conv_rank", "is for convolutions beside a rank, an energy or an sv_ratio for all layers"
                )
            )
        if problems:
            raise SaveError(
                "; ".join(f"{one.place} {one.text}" for one in problems),
                argument=problems[0].place,
                problems=problems,
            )

    @property
    def is_wanted(self) -> bool:
        """Whether anything is cut at all."""
        return self != RankCut()

    def rank_at(self, place: ModulePlace) -> int | None:
        """Return the rank, or the most, for a module; None where there is no limit."""
        kernel = math.prod(place.shape[2:]) > 1 and not place.embedding
        return self.conv_rank if kernel and self.conv_rank is not None else self.rank

    def of_matrix(self, matrix: torch.Tensor, place: ModulePlace) -> LowRankForm:
        """Cut a full matrix (out, in * kernel)."""
        return truncate(matrix, self.rank_at(place), self.energy, self.sv_ratio)

    def of_pair(self, pair: Pair, place: ModulePlace) -> LowRankForm | None:
        """Cut a pair; None where there is nothing to cut."""
        rank = self.rank_at(place)
        dynamic = self.energy is not None or self.sv_ratio is not None
        if not dynamic and (rank is None or pair[0].shape[1] <= rank):
            return None
        return truncate_pair(*pair, rank, self.energy, self.sv_ratio)

    def to_text(self) -> str:
        """Return what is set, as headers say it; nothing where nothing is."""
        names = ("rank", "conv_rank", "energy", "sv_ratio")
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if set(values) == {"rank"}:
            return f"{self.rank}"
        return ", ".join(f"{name} {value:g}" for name, value in values.items())


def as_loaded(
    parts: Sequence[Part],
    *,
    keep_leaves: bool,
    alone: frozenset[str] = frozenset(),
    cut: RankCut | None = None,
) -> list[NewLayer]:
    """
    Return the layers of one adapter with its own tensors and scales.

    Args:
        parts: All parts of the adapter.
        keep_leaves: Whether tensors of other algorithms may be kept under their own leaf names.
        alone: Algorithms whose tensors may be kept where all parts have the same one.
        cut: For layers that are not a pair: the rank to write them at.

    Returns:
        One layer for each part.

    Raises:
        SaveError: When layers are not a pair and no rank is given; all are named.
    """
    chosen = cut or RankCut()
    layers, refused = [], []
    kinds = {part.weights.algorithm for part in parts}
    by_kind = (keep_leaves or (len(kinds) == 1 and kinds <= alone)) and not chosen.is_wanted
    for each in parts:
        part = of_one_width(each.place, [Share("", each, 1.0)])[1][0].part
        layer = _own_layer(part, keep_leaves=keep_leaves, by_kind=by_kind)
        if layer is None:
            layer = _summed_layer(part.place, [Share("", part, 1.0)], chosen)
        if layer is None:
            refused.append(_problem(part))
        else:
            layers.append(layer)
    _refuse(refused)
    return layers


def mixed(
    shares: Mapping[ModulePlace, Sequence[Share]],
    *,
    cut: RankCut | None = None,
    method: MergeMethod | None = None,
    progress: Progress = same,
) -> list[NewLayer]:
    """
    Make one adapter of several.

    Args:
        shares: For each module what the adapters add to it.
        cut: The rank to cut to; None keeps the sum of the ranks, exactly.
        method: How they come together; the weighted sum when None.
        progress: Wraps the places, to show how far the work is.

    Returns:
        One layer for each module that changes; alpha is the rank, so scales are in the tensors.

    Raises:
        SaveError: When full matrices come in (by the method, or an algorithm that is not a pair) and no rank is given.
    """
    chosen, ranks = method or MergeMethod(), cut or RankCut()
    if chosen.needs_rank and not ranks.is_wanted:
        raise SaveError(
            f"{chosen.name} makes full matrices, and nothing says at which rank to write them",
            remedy=CUT_REMEDY,
            argument="method",
        )
    layers: list[NewLayer] = []
    refused: list[SaveProblem] = []
    for own in progress(list(shares)):
        place, acting = of_one_width(own, [share for share in shares[own] if share.gain])
        if not acting:
            continue
        layer = _mixed_layer(place, acting, ranks, chosen)
        if layer is None:
            refused += [_problem(share.part) for share in acting if _pair(share.part) is None]
        else:
            layers.append(layer)
    _refuse(refused)
    return layers


def _own_layer(part: Part, *, keep_leaves: bool, by_kind: bool = False) -> NewLayer | None:
    """
    Return a part as it is, or None if it is not a pair and has no leaves to keep.

    Args:
        part: The part.
        keep_leaves: Whether it may keep leaves of the file that it was read from.
        by_kind: Whether it may have those that its kind has with LyCORIS, whatever file it was read from.
    """
    place, weights = part.place, part.weights
    if isinstance(weights, Dora) and not (keep_leaves and part.leaves):
        return _dora_layer(part, weights)
    if (_is_bare(part) or len(place.shape) < 2) and not (keep_leaves and part.leaves):
        in_full = _bare_layer if _is_bare(part) else _vector_layer
        return in_full(place, [Share("", part, 1.0)], MergeMethod())
    plain = weights.algorithm == "lora"
    if keep_leaves and part.leaves and (not plain or any("mid" in leaf for leaf in part.leaves)):
        return NewLayer(place, leaves=part.leaves)
    pair = _factors(part)
    leaves = {leaf: t.detach() for leaf, t in weights.lycoris_tensors().items()} if by_kind else {}
    if pair is None and leaves:
        return NewLayer(place, leaves=leaves)
    if pair is None:
        return _dense_layer(part, weights) if keep_leaves and isinstance(weights, Full) else None
    own_rank = pair.up.shape[1]
    known = weights.alpha is not None and weights.alpha / own_rank == pair.scale
    alpha = weights.alpha if known and weights.alpha is not None else pair.scale * own_rank
    note = "" if plain or leaves else f"{weights.algorithm} is written as the pair that it equals"
    # the pair is for rows of a layer that this format has as one with others
    return NewLayer(place, pair.up, pair.down, alpha, _own_bias(part, pair), leaves=leaves, note=note)


def _dora_layer(part: Part, weights: Dora) -> NewLayer | None:
    """Return the pair that a magnitude lies over, with its lengths; None where it is not a pair."""
    turned = _own_layer(replace(part, weights=weights.inner, leaves={}), keep_leaves=False)
    if turned is None or turned.up is None:
        return None
    by_output = weights.is_by_output(part.place.shape)
    return replace(turned, lengths=weights.magnitude.flatten(), by_output=by_output)


def _dense_layer(part: Part, weights: Full) -> NewLayer:
    """Return a change that is given in full under the leaf names that all readers of Kohya's layout know."""
    scale = weights.scale
    leaves = {".diff": weights.weight, ".diff_b": weights.bias}
    kept = {
        leaf: tensor if scale == 1 else tensor * scale
        for leaf, tensor in leaves.items()
        if tensor is not None
    }
    return NewLayer(part.place, leaves=kept)


def _own_bias(part: Part, pair: Factors) -> torch.Tensor | None:
    """Return the change of the bias before the pair's scale is applied."""
    stored: torch.Tensor | None = getattr(part.weights, "up_bias", None)
    if stored is not None:
        return stored
    change = part.weights.bias_delta(_wide(part.bias), 1.0)
    return None if change is None or not pair.scale else (change.double() / pair.scale).to(change)


def _mixed_layer(
    place: ModulePlace, shares: Sequence[Share], cut: RankCut, method: MergeMethod
) -> NewLayer | None:
    """Merge what the adapters add to one module; None if a rank or a base is missing."""
    if all(_is_bare(share.part) for share in shares):
        return _bare_layer(place, shares, method)
    if len(place.shape) < 2:
        return _vector_layer(place, shares, method)
    if method.needs_rank:
        return _merged_changes(place, shares, cut, method)
    if method.spec.is_sum and any(_pair(share.part) is None for share in shares):
        return _summed_layer(place, shares, cut)  # the same, without a decomposition of each
    return _merged_pairs(place, shares, cut, method)


def _merged_changes(
    place: ModulePlace, shares: Sequence[Share], cut: RankCut, method: MergeMethod
) -> NewLayer | None:
    changes = {}
    for share in shares:
        change = _change(share)
        if change is None:
            return None
        changes[share.adapter] = change.flatten(1)
    form = cut.of_matrix(method.merge_changes(changes, _gains(shares), str(place)), place)
    return NewLayer(place, form.up, form.down, form.rank, _bias(place, shares, method), error=form.error)


def _merged_pairs(
    place: ModulePlace, shares: Sequence[Share], cut: RankCut, method: MergeMethod
) -> NewLayer | None:
    pairs, names = {}, set()
    for share in shares:
        pair = _pair(share.part)
        if pair is None:
            # in fp64, so that rounding is not taken for directions of its own
            change = _change(share, exact=True) if cut.is_wanted else None
            if change is None:
                return None
            pair = pair_of(change.flatten(1))
            names.add(share.part.weights.algorithm)
        pairs[share.adapter] = pair
    up, down = method.merge_pairs(pairs, _gains(shares), str(place))
    note = f"{', '.join(sorted(names))} takes part by the singular values of its change" if names else ""
    bias = _bias(place, shares, method)
    short = cut.of_pair((up, down), place)
    if short is None:
        return NewLayer(place, up, down, up.shape[1], bias, note=note)
    return NewLayer(place, short.up, short.down, short.rank, bias, error=short.error, note=note)


FULL_AT_MOST = 1 << 30
"""Numbers of one layer in full, 4 GiB in fp32: those of the largest table of words of any model that is known here."""


def _gains(shares: Sequence[Share]) -> dict[str, float]:
    return {share.adapter: share.gain for share in shares}


def _summed_layer(place: ModulePlace, shares: Sequence[Share], cut: RankCut) -> NewLayer | None:
    """Sum full weight changes of one layer and cut them to a rank; None if there is no rank or no base."""
    if not cut.is_wanted:
        return None
    total: torch.Tensor | None = None
    for share in shares:
        delta = _delta(share.part, share.gain)
        if delta is None:
            return None
        total = delta if total is None else total + delta
    if total is None:
        return None
    form = cut.of_matrix(total.flatten(1), place)
    names = sorted({s.part.weights.algorithm for s in shares if s.part.weights.algorithm != "lora"})
    note = f"{', '.join(names)} is written by singular values, as it is at these weights"
    bias = _bias(place, shares, MergeMethod())
    return NewLayer(place, form.up, form.down, form.rank, bias, error=form.error, note=note)


def _vector_layer(place: ModulePlace, shares: Sequence[Share], method: MergeMethod) -> NewLayer | None:
    changes = {}
    for share in shares:
        change = _change(share)
        if change is None:
            return None
        changes[share.adapter] = change
    total = method.merge_vectors(changes, _gains(shares), str(place))
    return NewLayer(place, vector=total, bias=_bias(place, shares, method))


def _is_bare(part: Part) -> bool:
    """Tell the full change of a parameter that is no module's weight, for which no reader knows a pair."""
    return part.place.bare and isinstance(part.weights, Full)


def _bare_layer(place: ModulePlace, shares: Sequence[Share], method: MergeMethod) -> NewLayer | None:
    """Merge full changes of a bare parameter, entry by entry as those of norms are."""
    whole = _vector_layer(place, shares, method)
    return None if whole is None or whole.vector is None else NewLayer(place, leaves={".diff": whole.vector})


def _factors(part: Part) -> Factors | None:
    """Return the exact pair, or None; what is not a pair in the file, and would be a huge one, is refused."""
    if len(part.place.shape) < 2:
        return None
    if not isinstance(part.weights, LowRank) or part.weights.mid is not None:
        _check_size(part)
    return part.weights.factors(part.place.shape)


def _pair(part: Part) -> Pair | None:
    """Return the pair with its scale in it, in fp32 at least; None where there is none."""
    pair = _factors(part)
    if pair is None:
        return None
    wide = torch.float64 if torch.float64 in (pair.up.dtype, pair.down.dtype) else torch.float32
    return pair.up.to(wide) * pair.scale, pair.down.to(wide)


def _change(share: Share, *, exact: bool = False) -> torch.Tensor | None:
    """Return a change at its weight, divided by the weight: what depends on the base is taken as it is there."""
    delta = _delta(share.part, share.gain, exact=exact)
    return None if delta is None else delta / share.gain


def _delta(part: Part, gain: float, *, exact: bool = False) -> torch.Tensor | None:
    """
    Return the full change, of the weight's shape; None where it depends on a base that is not at hand.

    It is in fp64 where that is asked for, or what it is made of is.
    """
    pair = _pair(part)
    if pair is not None:
        _check_size(part)
        return ((pair[0] @ pair[1]) * gain).reshape(part.place.shape)
    base = _wide(part.base)
    if base is not None:
        return part.weights.delta(base.double() if exact else base, gain)
    _check_size(part)
    # What comes out alike from two bases does not depend on the base.
    kind = torch.float64 if exact else torch.float32
    zeros = torch.zeros(part.place.shape, dtype=kind)
    change = part.weights.delta(zeros, gain)
    other = torch.randn(part.place.shape, generator=torch.Generator().manual_seed(0)).to(kind)
    return change if torch.equal(change, part.weights.delta(other, gain)) else None


def _check_size(part: Part) -> None:
    """Refuse a full matrix that no layer has: a few KB can name one of any size."""
    elements = math.prod(part.place.shape)
    if elements > FULL_AT_MOST:
        raise SaveError(
            f"its change of {' x '.join(map(str, part.place.shape))} in full would have {elements:,} numbers, and "
            f"{FULL_AT_MOST:,} is the most; merge LoRA pairs by a method for pairs (sum, ...), or leave the layer out",
            key=str(part.place),
        )


def _bias(place: ModulePlace, shares: Sequence[Share], method: MergeMethod) -> torch.Tensor | None:
    changes, gains = {}, {}
    for share in shares:
        change = share.part.weights.bias_delta(_wide(share.part.bias), share.gain)
        if change is not None:
            changes[share.adapter] = change / share.gain
            gains[share.adapter] = share.gain
    return method.merge_vectors(changes, gains, f"{place}.bias") if changes else None


def _wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.float()


def _problem(part: Part) -> SaveProblem:
    lost = part.base is None and _delta(part, 1.0) is None
    return SaveProblem(
        str(part.place), SaveReason.BASE if lost else SaveReason.RANK, "+".join(part.weights.algorithms)
    )


def _refuse(refused: Sequence[SaveProblem]) -> None:
    """
    Raise what cannot be written, all of it at once.

    Raises:
        SaveError: When there is anything.
    """
    if not refused:
        return
    lacks = {SaveReason.BASE: ", and no base weights at hand"}
    listed = first_of([f"{x.place} ({x.detail}{lacks.get(x.reason, '')})" for x in refused], _SHOWN)
    bases = any(problem.reason is SaveReason.BASE for problem in refused)
    wanted = "to write them as the best pair of a rank,"
    named = "name the base model and a rank" if bases else "give a rank"
    raise SaveError(
        f"{len(refused)} modules are not low-rank pairs: {listed}",
        problems=refused,
        remedy=Remedy(
            f"{wanted} {named} ({'model= and rank=' if bases else 'rank='})",
            f"{wanted} {named} ({'--model and --rank' if bases else '--rank'})",
            f"{wanted} give a Rank",
        ),
    )
