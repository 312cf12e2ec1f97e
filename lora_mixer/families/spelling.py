"""
The language of the families' tables: which live modules, and which of their rows, a spelling of a file means.

A table has one rule a line, ``spelling -> module``, both dotted::

    double_blocks.N.img_attn.qkv -> transformer_blocks.N.attn.to_q .to_k .to_v

* ``N`` stands for any number, ``L`` for the last block's, ``*`` for any number of names; ``blockN`` is a name with a number
  at its end.
* Several modules share the rows of the file's layer in this order, each as many as it has itself; a leading dot means
  the first module's parent.
* ``norm_out.linear[1/2,0/2]``: the file's rows fill the second half of the module's rows and then the first;
  ``[swap]`` says the same, ``[0/2]`` alone means that another layer of the file fills the rest.
* ``to_q[heads] .to_k[heads]``: the rows of the file alternate head by head; a head has as many as ``norm_q`` beside it.
* ``a & b``: both modules take all rows of the file's layer.
* ``{img,txt}`` stands for two rules; groups in one line go in step.
* The first rule that gives a spelling counts.

Sizes are nowhere in it: they are those of the live modules. Underscored names are found by flattening what the rules
give on the live model, so no underscore is ever guessed to be a dot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_BRACES = re.compile(r"\{([^{}]*)\}")
_TOKEN = {"N": r"(\d+)", "L": r"(\d+)", "*": r"(.+)"}
_NUMBERED = re.compile(r"[a-z]+N\Z")


@dataclass(frozen=True)
class Piece:
    """
    A live module's part of a file's layer.

    Attributes:
        path: The module's path, in rules a pattern.
        chunks: Which of its rows the file's fill, in the file's order: the k-th of n equal parts; empty for all.
        by_head: Whether the file's rows alternate among the modules head by head.
    """

    path: str
    chunks: tuple[tuple[int, int], ...] = ()
    by_head: bool = False


Pieces = tuple[Piece, ...]
"""The modules that share the rows of one layer of the file, in its order."""


@dataclass(frozen=True)
class Rule:
    """
    One line of a table.

    Attributes:
        spelling: How files spell the layer.
        shares: For each set of modules that takes all of the layer, these modules.
    """

    spelling: str
    shares: tuple[Pieces, ...]


@cache
def read_table(text: str) -> tuple[Rule, ...]:
    """
    Read a table.

    Example:
        >>> read_table("final.mod -> norm_out.linear[swap]")[0].shares[0][0].chunks
        ((1, 2), (0, 2))
    """
    rules = []
    for line in text.splitlines():
        plain = line.partition("#")[0].strip()
        for one in _expand(plain) if plain else ():
            spelling, _, modules = one.partition(" -> ")
            rules.append(Rule(spelling.strip(), tuple(_pieces(share) for share in modules.split(" & "))))
    return tuple(rules)


def _expand(line: str) -> Iterator[str]:
    groups = [group.split(",") for group in _BRACES.findall(line)]
    for number in range(max(map(len, groups), default=1)):
        choices = iter(groups)
        yield _BRACES.sub(lambda _: next(choices)[number], line)  # noqa: B023 -- used up in this very step


def _pieces(text: str) -> Pieces:
    pieces: list[Piece] = []
    for word in text.split():
        path, _, rows = word.partition("[")
        if path.startswith("."):
            path = pieces[0].path.rpartition(".")[0] + path
        if rows == "heads]":
            pieces.append(Piece(path, by_head=True))
            continue
        chunks = "1/2,0/2" if rows == "swap]" else rows.removesuffix("]")
        parts = [part.split("/") for part in chunks.split(",") if part]
        pieces.append(Piece(path, tuple((int(k), int(n)) for k, n in parts)))
    return tuple(pieces)


def pattern_of(path: str, separator: str = r"\.") -> re.Pattern[str]:
    """Return the expression that the tables' language means by a path; groups are what ``N``, ``L`` and ``*`` stand for."""
    return re.compile(separator.join(_expression(name) for name in path.split(".")) + r"\Z")


def _expression(name: str) -> str:
    return _TOKEN.get(name) or (rf"{name[:-1]}(\d+)" if _NUMBERED.match(name) else re.escape(name))


def fill(path: str, values: tuple[str, ...]) -> str:
    """Put values for the placeholders of a path, in order."""
    numbers = iter(values)
    return ".".join(
        next(numbers) if name in _TOKEN else name[:-1] + next(numbers) if _NUMBERED.match(name) else name
        for name in path.split(".")
    )


def spell(table: str, paths: Collection[str]) -> dict[str, tuple[Pieces, ...]]:
    """
    Return every spelling that a table has for the modules of a live model.

    Args:
        table: The family's table.
        paths: Paths of the live modules and parameters.

    Returns:
        Dotted spelling to the modules that it means, with their paths.

    Example:
        >>> spell("b.N.qkv -> blocks.N.to_q .to_k", ["blocks.3.to_q", "blocks.3.to_k"])["b.3.qkv"]
        ((Piece(path='blocks.3.to_q', chunks=(), by_head=False), Piece(path='blocks.3.to_k', chunks=(), by_head=False)),)
    """
    meanings: dict[str, tuple[Pieces, ...]] = {}
    by_leaf: dict[str, list[str]] = {}
    for path in paths:
        by_leaf.setdefault(path.rpartition(".")[2], []).append(path)
    for rule in read_table(table):
        first = rule.shares[0][0].path
        leaf = first.rpartition(".")[2]
        near = paths if leaf in _TOKEN else by_leaf.get(leaf, ())
        matched = [m.groups() for path in near if (m := pattern_of(first).match(path))]
        if matched and "L" in first.split("."):
            place = [name for name in first.split(".") if name in _TOKEN].index("L")
            matched = [max(matched, key=lambda groups: int(groups[place]))]
        for groups in matched:
            shares = tuple(
                tuple(replace(piece, path=fill(piece.path, groups)) for piece in share)
                for share in rule.shares
            )
            if all(piece.path in paths for share in shares for piece in share):
                for spelling, meaning in _with_aliases(fill(rule.spelling, groups), shares):
                    meanings.setdefault(spelling, meaning)
    return meanings


def _with_aliases(spelling: str, shares: tuple[Pieces, ...]) -> Iterator[tuple[str, tuple[Pieces, ...]]]:
    yield spelling, shares
    if spelling.endswith(".scale"):  # the leaf of a replaced norm, which reading takes off
        yield spelling.removesuffix(".scale"), shares
    pieces = shares[0]
    if len(pieces) > 1 and len(shares) == 1:  # OneTrainer's OMI numbers the parts of a fused layer
        for number, piece in enumerate(pieces):
            yield f"{spelling}.{number}", ((piece,),)


@cache
def _sides(text: str) -> tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]]:
    """Return the expressions of a table's spellings, and of the live modules that they mean."""
    rules = read_table(text)
    live = dict.fromkeys(piece.path for rule in rules for share in rule.shares for piece in share)
    return tuple(pattern_of(rule.spelling) for rule in rules), tuple(pattern_of(path) for path in live)


def is_translated(layouts: Mapping[str, str], name: str) -> bool:
    """
    Say whether a dotted name is one of a family's spellings, and not that of a live module.

    Example:
        >>> layouts = {"original": "b.N.qkv -> blocks.N.to_q .to_k"}
        >>> is_translated(layouts, "b.3.qkv"), is_translated(layouts, "blocks.3.to_q")
        (True, False)
    """
    sides = [_sides(text) for text in layouts.values()]
    return any(x.match(name) for spellings, _ in sides for x in spellings) and not any(
        x.match(name) for _, lives in sides for x in lives
    )


@cache
def _listed(text: str) -> tuple[re.Pattern[str], ...]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(pattern_of(one, "[._]") for line in lines if line for one in _expand(line))


def is_listed(text: str, spelling: str) -> bool:
    """
    Say whether a family's list of modules, one a line, names a spelling, dotted or flat.

    Example:
        >>> is_listed("guidance_in.*", "guidance_in_in_layer")
        True
    """
    return any(pattern.match(spelling) for pattern in _listed(text))


def flatten(table: Mapping[str, tuple[Pieces, ...]]) -> dict[str, str | None]:
    """Return the underscored form of every spelling, None where two that mean different things share one."""
    flat: dict[str, str | None] = {}
    for spelling, meaning in table.items():
        key = spelling.replace(".", "_")
        other = flat.get(key, spelling)
        flat[key] = spelling if other is not None and table[other] == meaning else None
    return flat
