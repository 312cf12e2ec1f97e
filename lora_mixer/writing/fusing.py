"""
Layers of a live model to layers of the original code: a family's table read backwards.

Queries, keys and values of one block become the rows of one ``qkv``. Where they share their ``down``, as parts of a fused
layer do that was read, so does what is written; else the ``up`` is block-diagonal, which is the same change, exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import SaveError
from lora_mixer.problem import Remedy, SaveProblem, SaveReason
from lora_mixer.writing.layers import OTHER_FORMAT, ModulePlace, NewLayer

_DENSE = frozenset((".diff", ".diff_b"))

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.families import Piece, Pieces


def fuse(
    layers: Mapping[str, NewLayer], table: Mapping[str, tuple[Pieces, ...]], rows: Mapping[str, int]
) -> list[NewLayer]:
    """
    Return layers under the names of the original code.

    Args:
        layers: Those of one component, by live path.
        table: Spelling to live modules, as :func:`lora_mixer.families.spell` gives it.
        rows: Rows of every live module.

    Returns:
        One layer for each of the original's; those that it does not name under their live paths.

    Raises:
        SaveError: When a layer that has to be a part of another is not a pair.
    """
    left = dict(layers)
    taken: dict[str, set[tuple[int, int]]] = {}  # chunks of live modules that several layers there share
    written: list[NewLayer] = []
    for spelling, shares in table.items():
        pieces = shares[0]
        present = [piece.path for piece in pieces if piece.path in left]
        chunks = {(piece.path, chunk) for piece in pieces for chunk in piece.chunks if piece.path in left}
        known = any(chunk in taken.get(path, ()) for path, chunk in chunks)
        begun = any(piece.path in taken for piece in pieces if not piece.chunks)
        if len(shares) > 1 or not present or known or begun:
            continue
        alone = len(pieces) == 1 and not pieces[0].chunks
        written.append(
            replace(left[present[0]], place=replace(left[present[0]].place, path=spelling))
            if alone
            else _fused(spelling, pieces, left, rows)
        )
        for path, chunk in chunks:
            taken.setdefault(path, set()).add(chunk)
        for path in present:
            offsets = taken.get(path)
            if offsets is None or len(offsets) == next(iter(offsets))[1]:
                left.pop(path, None)
                taken.pop(path, None)
    if taken:  # a half of a layer that has a name there, the other has none
        raise SaveError(
            f"{', '.join(taken)}: the names of the original code are not known for all of its rows",
            problems=[
                SaveProblem(path, SaveReason.FORMAT, "not all of its rows have names there") for path in taken
            ],
            remedy=OTHER_FORMAT,
        )
    return [*written, *left.values()]


def _fused(
    spelling: str, pieces: Sequence[Piece], layers: Mapping[str, NewLayer], rows: Mapping[str, int]
) -> NewLayer:
    members = {piece.path: layers[piece.path] for piece in pieces if piece.path in layers}
    first = next(iter(members.values()))
    if all(layer.leaves and layer.leaves.keys() <= _DENSE for layer in members.values()):
        return _dense(spelling, pieces, members, rows)
    _refuse_no_pairs(spelling, pieces, members)
    downs = [layer.pair[1] for layer in members.values()]
    scales = {layer.alpha / layer.rank for layer in members.values()}
    shared = len(scales) == 1 and all(
        down.shape == downs[0].shape and torch.equal(down, downs[0]) for down in downs
    )
    width = downs[0].shape[0] if shared else sum(down.shape[0] for down in downs)
    starts = {}
    start = 0
    for path, layer in members.items():
        starts[path] = 0 if shared else start
        start += layer.rank
    ups, biases, lengths = [], [], []
    for piece in pieces:
        for part, parts in piece.chunks or ((0, 1),):
            height = rows[piece.path] // parts
            span = slice(part * height, (part + 1) * height)
            block = downs[0].new_zeros(height, width, dtype=torch.float32)  # (rows, R)
            bias = torch.zeros(height)
            if piece.path in members:
                layer = members[piece.path]
                scale = 1.0 if shared else layer.alpha / layer.rank
                begin = starts[piece.path]
                block[:, begin : begin + layer.rank] = layer.pair[0].flatten(1)[span].float() * scale
                if layer.bias is not None:
                    bias = layer.bias[span].float() * scale
                if layer.lengths is not None:
                    lengths.append(layer.lengths[span])
            ups.append(block)
            biases.append(bias)
    up = torch.cat(ups)  # (out, R)
    alpha = first.alpha if shared else float(width)
    down = downs[0] if shared else torch.cat([down.float() for down in downs])  # (R, in * kernel)
    if shared:
        up = up.to(first.pair[0].dtype)
    whole_bias = torch.cat(biases) if any(layer.bias is not None for layer in members.values()) else None
    place = ModulePlace(first.place.component, spelling, (up.shape[0], *first.place.shape[1:]))
    worst = max(layer.error for layer in members.values())
    magnitude = torch.cat(lengths) if lengths else None  # (out,)
    return NewLayer(place, up, down, alpha, whole_bias, magnitude, error=worst, note=first.note)


def _refuse_no_pairs(spelling: str, pieces: Sequence[Piece], members: Mapping[str, NewLayer]) -> None:
    """
    Refuse what cannot be rows of one pair.

    Raises:
        SaveError: Naming the layers.
    """
    odd = [(str(layer.place), "it is not a pair") for layer in members.values() if layer.up is None]
    turned = [layer for layer in members.values() if layer.lengths is not None]
    # the length of an output is its row's own, that of an input belongs to all rows
    if turned and not (len(turned) == len({p.path for p in pieces}) and all(x.by_output for x in turned)):
        why = "a DoRA with lengths of inputs, or without the layers beside it"
        odd += [(str(layer.place), why) for layer in turned]
    if odd:
        raise SaveError(
            f"{', '.join(f'{place} ({why})' for place, why in odd)}: is written as a part of {spelling} in the names of the "
            "original code, which only a pair can be",
            problems=[SaveProblem(place, SaveReason.FORMAT, why) for place, why in odd],
            remedy=Remedy(
                "give a rank (rank=), or use format='diffusers'",
                "give a rank (--rank), or use --format diffusers",
                "give a Rank, or take the format diffusers",
            ),
        )


def _dense(
    spelling: str, pieces: Sequence[Piece], members: Mapping[str, NewLayer], rows: Mapping[str, int]
) -> NewLayer:
    """Lay changes that are given in full one below the other, zeros where a module has none."""
    first = next(iter(members.values()))
    leaves = {}
    for leaf in sorted({leaf for layer in members.values() for leaf in layer.leaves}):
        like = next(layer.leaves[leaf] for layer in members.values() if leaf in layer.leaves)
        parts = []
        for piece in pieces:
            for part, count in piece.chunks or ((0, 1),):
                height = rows[piece.path] // count
                change = members[piece.path].leaves.get(leaf) if piece.path in members else None
                parts.append(
                    like.new_zeros(height, *like.shape[1:])
                    if change is None
                    else change[part * height : (part + 1) * height].to(like)
                )
        leaves[leaf] = torch.cat(parts)
    height = next(iter(leaves.values())).shape[0]
    place = ModulePlace(first.place.component, spelling, (height, *first.place.shape[1:]))
    return NewLayer(place, leaves=leaves)
