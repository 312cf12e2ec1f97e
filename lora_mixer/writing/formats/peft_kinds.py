"""
LoHa and LoKr to PEFT's names: the tensors that LyCORIS has for them, under configurations that make PEFT build the same shapes.

PEFT works out from rank, factor and flags which factors of a LoKr are whole and which are pairs, so those are looked for by which it
comes to what is there. One configuration is for all modules of a component, but for ranks and alphas.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_mixer.fresh.kinds.lokr import split
from lora_mixer.writing.encode import cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from lora_mixer.writing.layers import NewLayer

PEFT_ALONE = ("loha", "lokr")


class OneKind(NamedTuple):
    """
    The layers of one component as PEFT has them.

    Attributes:
        config: The fields that say what the tensors mean.
        tensors: By what follows ``base_model.model.``.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def of_one_kind(layers: Sequence[NewLayer], dtype: torch.dtype | None) -> OneKind | None:
    """
    Return layers that are all LoHa, or all LoKr, as PEFT has them; None where it has no place for them.

    Args:
        layers: The layers of one component.
        dtype: To store in; None keeps each tensor's own.
    """
    if not all(_fits_peft(layer) for layer in layers):
        return None
    for prefix, fields_of in ((".hada_", _loha_fields), (".lokr_", _lokr_fields)):
        if all(any(leaf.startswith(prefix) for leaf in layer.leaves) for layer in layers):
            found = fields_of(layers)
            if found is None:
                return None
            config, ranks = found
            paths = [layer.place.path for layer in layers]
            alphas = [_scale(layer) * rank for layer, rank in zip(layers, ranks, strict=True)]
            config |= {"target_modules": sorted(paths)}
            for name, values in (("r", ranks), ("alpha", [plain(alpha) for alpha in alphas])):
                config[name], config[_PATTERNS[name]] = by_pattern(values, paths)
            tensors = {
                f"{layer.place.path}{leaf}": cast(tensor, dtype, layer.place)
                for layer in layers
                for leaf, tensor in layer.leaves.items()
                if leaf != ".alpha"
            }
            return OneKind(config, tensors)
    return None


_PATTERNS = {"r": "rank_pattern", "alpha": "alpha_pattern"}


def by_pattern(values: Sequence[Any], paths: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """
    Return the commonest of values, and patterns for the modules that have another.

    Example:
        >>> by_pattern([4, 4, 8], ["a.q", "b.q", "q"])
        (4, {'^q': 8})
    """
    common = Counter(values).most_common(1)[0][0]
    others = {
        _pattern(path, paths): value for path, value in zip(paths, values, strict=True) if value != common
    }
    return common, others


def _pattern(path: str, paths: Sequence[str]) -> str:
    """Name one path so that it matches no other that ends alike; patterns match the ends of paths."""
    return f"^{path}" if any(other.endswith(f".{path}") for other in paths) else path


def plain(number: float) -> float:
    """Return whole numbers as such: some readers want them so."""
    return int(number) if number == int(number) else number


def _fits_peft(layer: NewLayer) -> bool:
    """Say whether PEFT has these kinds on such a layer."""
    return bool(layer.leaves) and 2 <= len(layer.place.shape) <= 4 and not layer.place.embedding


def _scale(layer: NewLayer) -> float:
    """Return what a layer's product is multiplied by."""
    rank = _own_rank(layer)
    return 1.0 if rank is None else float(layer.leaves[".alpha"]) / rank


def _own_rank(layer: NewLayer) -> int | None:
    """Return the rank that a layer's alpha is over; None where all factors are whole."""
    names = (".hada_w1_b", ".lokr_w2_b", ".lokr_w1_b")
    return next((layer.leaves[name].shape[0] for name in names if name in layer.leaves), None)


def _is_wide(layer: NewLayer) -> bool:
    """Say whether a layer's kernel has more than one place, so that it may have a core."""
    return any(size > 1 for size in layer.place.shape[2:])


def _has_cores(layers: Sequence[NewLayer], core: str, may_have: Callable[[NewLayer], bool]) -> bool | None:
    """Return whether layers that may have a core have one; None where some have and some have not, or others have."""
    has = {core in layer.leaves for layer in layers if may_have(layer)} or {False}
    odd = any(core in layer.leaves for layer in layers if not may_have(layer))
    return None if odd or len(has) > 1 else has.pop()


def _loha_fields(layers: Sequence[NewLayer]) -> tuple[dict[str, Any], list[int]] | None:
    cores = _has_cores(layers, ".hada_t1", _is_wide)
    ranks = [layer.leaves[".hada_w1_b"].shape[0] for layer in layers]
    same = all(layer.leaves[".hada_w2_b"].shape[0] == rank for layer, rank in zip(layers, ranks, strict=True))
    return (
        None if cores is None or not same else ({"peft_type": "LOHA", "use_effective_conv2d": cores}, ranks)
    )


class _Sides(NamedTuple):
    """A LoKr's factors: w1 (a, c), w2 (b, d), and the ranks of those that are pairs."""

    a: int
    c: int
    b: int
    d: int
    first: int | None
    second: int | None


def _lokr_fields(layers: Sequence[NewLayer]) -> tuple[dict[str, Any], list[int]] | None:
    sides = [_sides(layer) for layer in layers]
    known = [one for one in sides if one is not None]
    if len(known) < len(sides):
        return None
    factors: Iterable[int] = dict.fromkeys([-1, *sorted({size for one in known for size in (one.a, one.c)})])
    factor = next(
        (
            factor
            for factor in factors
            if all(
                (split(layer.place.shape[0], factor), split(layer.place.shape[1], factor))
                == ((one.a, one.b), (one.c, one.d))
                for layer, one in zip(layers, known, strict=True)
            )
        ),
        None,
    )
    both = any(one.first is not None for one in known)
    ranks = [_rank_for(one, both=both) for one in known]
    cores = _has_cores(layers, ".lokr_t2", lambda layer: _is_wide(layer) and ".lokr_w2" not in layer.leaves)
    chosen = [rank for rank in ranks if rank is not None]
    if factor is None or cores is None or len(chosen) < len(ranks):
        return None
    config = {
        "peft_type": "LOKR",
        "decompose_factor": factor,
        "decompose_both": both,
        "use_effective_conv2d": cores,
    }
    return config, chosen


def _sides(layer: NewLayer) -> _Sides | None:
    """Return the sizes of a layer's factors; None where they are not those of its outputs and inputs."""
    get, kernel = layer.leaves.get, layer.place.shape[2:]
    w1, w1_a, w1_b = get(".lokr_w1"), get(".lokr_w1_a"), get(".lokr_w1_b")
    w2, w2_a, w2_b, core = (get(f".lokr_{name}") for name in ("w2", "w2_a", "w2_b", "t2"))
    if w1 is not None:
        a, c, first = w1.shape[0], w1.shape[1], None
    elif w1_a is not None and w1_b is not None:
        a, c, first = w1_a.shape[0], w1_b.shape[1], w1_b.shape[0]
    else:
        return None
    second = None if w2_b is None else int(w2_b.shape[0])
    if w2 is not None:
        if tuple(w2.shape[2:]) != tuple(kernel) or w2.ndim == 3:  # PEFT multiplies lines in another order
            return None
        b, d = w2.shape[:2]
    elif w2_a is not None and w2_b is not None:
        places = 1
        for size in kernel:
            places *= size
        b, d = (w2_a.shape[0], w2_b.shape[1] // places) if core is None else (w2_a.shape[1], w2_b.shape[1])
    else:
        return None
    return _Sides(a, c, b, d, first, second)


def _rank_for(one: _Sides, *, both: bool) -> int | None:
    """Return a rank at which PEFT has pairs and whole factors as they are here; None where there is none."""
    rank = one.second or one.first or max(one[:4])
    pairs = (both and rank < max(one.a, one.c) / 2, rank < max(one.b, one.d) / 2)
    fits = pairs == (one.first is not None, one.second is not None) and one.first in (None, rank)
    return rank if fits else None
