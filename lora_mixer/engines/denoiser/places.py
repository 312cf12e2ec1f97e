"""
Where the picture lies in the rows of tokens that a denoiser's layers see: for masks.

Transformers see pictures and films as one row of tokens, often packed before they are called, and some of their layers
have the text in the same row. How it lies is read from the call (its coordinates, shapes or sizes) and from the family's
row; a mask whose place cannot be told is refused, never spread over the whole picture.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import MixError
from lora_mixer.families import is_listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_mixer.families.family import Family

_PAD = 32
"""Z-Image fills its rows up to multiples of so many tokens."""
_TEXT_SIDE = re.compile(
    r"(?:^|[._])(?:add_[qkv]_proj|to_add_out|ff_context|norm\d_context|context_\w+|txt_\w+|text_\w+|(?:time_)?caption_\w+"
    r"|cap_\w+|attn2\.to_[kv]|cross_attention\.to_(?:key|value)|(?:image|y|t5)_embedder|refiner_blocks)(?:\.|$)"
)
"""Paths in transformers of layers that see the text, however many tokens it has."""
_ON_TIME = re.compile(r"(?:^|[._])(?:t_embedder|time|temb|guidance|adaln|adaLN|mod|norm)\w*(?:\.|$)")
"""Paths of layers on time, which films may give each token of its own."""
_POSITIONS = ("img_ids", "position_ids")
"""Arguments with the coordinates of tokens: another picture's number, row, column (and others that are 0)."""


def is_off_picture(path: str, family: Family | None) -> bool:
    """
    Say whether a layer of a transformer is known not to see the picture: one on text, on sound, on modulation.

    Args:
        path: Its dotted path in the transformer.
        family: Its family, whose row tells what names do not; or None.

    Example:
        >>> is_off_picture("blocks.0.ff_context.net.2", None), is_off_picture("blocks.0.ff.net.2", None)
        (True, False)
    """
    if family is not None and is_listed(family.on_picture, path):
        return False
    return _TEXT_SIDE.search(path) is not None or (family is not None and is_listed(family.off_picture, path))


@dataclass(frozen=True)
class Span:
    """
    A row of tokens with a picture in it.

    Attributes:
        before: Tokens before the picture: text, other pictures.
        frames: Frames of the picture.
        height: Its rows.
        width: Its columns.
        after: Tokens after it: text, other pictures, filling.
    """

    before: int
    frames: int
    height: int
    width: int
    after: int

    @property
    def tokens(self) -> int:
        """How many tokens the row has."""
        return self.before + self.frames * self.height * self.width + self.after


@dataclass(frozen=True)
class Places:
    """
    What holds for one call of a denoiser.

    Attributes:
        frames: Frames of the latents; 1 for a picture.
        height: Height of the latents; 0 where nothing is known.
        width: Their width.
        row: The picture among its own tokens, where that is known: layers with that many see it so.
        joint: The same where text is in the row as well.
        texts: How many tokens the texts of the call have.
        rows: Rows of the batch; 0 where they are not known.
        exact: Whether only ``row`` and ``joint`` hold the picture; else each halving of the latents may, as in UNets.
    """

    frames: int = 1
    height: int = 0
    width: int = 0
    row: Span | None = None
    joint: tuple[Span, ...] = ()
    texts: tuple[int, ...] = ()
    rows: int = 0
    exact: bool = False

    def find(self, tokens: int) -> Span | None:
        """
        Find the picture in a row of tokens.

        Args:
            tokens: Length of the row.

        Returns:
            Where it is; None where the tokens are not places (text, say).

        Raises:
            MixError: When the row must have the picture in it and it cannot be told where.

        Example:
            >>> Places(1, 8, 12).find(24), Places(1, 8, 12).find(77)
            (Span(before=0, frames=1, height=4, width=6, after=0), None)
        """
        if not self.exact:
            return self._halved(tokens)
        picture = self.row
        if picture is not None and tokens == picture.tokens:
            return picture
        for span in self.joint:
            if tokens == span.tokens:
                return span
        if (
            tokens in self.texts
            or picture is None
            or tokens < picture.frames * picture.height * picture.width
        ):
            return None
        raise MixError(
            f"a mask on a layer with rows of {tokens} tokens: the picture has {picture.frames * picture.height * picture.width} of them "
            f"({picture.frames} x {picture.height} x {picture.width}), the texts of the call {', '.join(map(str, self.texts)) or 'none'}, "
            "and it cannot be told where in the row it is; use block weights or no mask here"
        )

    def refuse_flat(self, name: str, batch: int) -> None:
        """
        Refuse a layer that sees tokens of all rows of the batch in one, where it may be the picture's.

        Args:
            name: Its path.
            batch: How many it sees.

        Raises:
            MixError: When these are more than the batch has rows.
        """
        if self.exact and batch > self.rows and not _ON_TIME.search(name):
            raise MixError(
                f"it has a mask, and is given {batch} tokens of {self.rows} rows in one, so that their places cannot be told "
                "(as in mixtures of experts); use block weights that leave such layers out, or no mask",
                key=name,
            )

    def _halved(self, tokens: int) -> Span | None:
        height, width = self.height, self.width
        while height * width > 1 and tokens not in (height * width, self.frames * height * width):
            height, width = -(-height // 2), -(-width // 2)
        if height * width == tokens:  # films in UNets have their frames as rows of the batch
            return Span(0, 1, height, width, 0)
        whole = height > 0 and self.frames * height * width == tokens
        return Span(0, self.frames, height, width, 0) if whole else None


def places_of(
    sample: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], root: Any, family: Family | None
) -> Places:
    """
    Read how a denoiser's call lays its picture out.

    Args:
        sample: What is denoised: (rows, channels, ...), or (rows, tokens, channels) where it is packed.
        args: The arguments of the call.
        kwargs: Those by name.
        root: The denoiser.
        family: Its family, or None.

    Raises:
        MixError: When the sample is packed and nothing says how.

    Example:
        >>> ids = torch.tensor([[0, row, column] for row in range(2) for column in range(3)])
        >>> places_of(torch.zeros(1, 6, 4), (), {"img_ids": ids}, None, None).row
        Span(before=0, frames=1, height=2, width=3, after=0)
    """
    known = family is not None and family.is_transformer and not hasattr(root, "down_blocks")
    if sample.ndim >= 4 and not known:
        frames = int(sample.shape[2]) if sample.ndim == 5 else 1
        return Places(frames, int(sample.shape[-2]), int(sample.shape[-1]))
    texts = _texts(args, kwargs, root)
    if sample.ndim >= 4:
        picture = _patched(sample, root, family)
        listed = isinstance(kwargs.get("x", args[0] if args else None), list)
        if listed:  # Z-Image: each row is filled up, and so is the text after it
            texts = tuple(-(-n // _PAD) * _PAD for n in texts)
            size = picture.tokens
            picture = Span(0, picture.frames, picture.height, picture.width, -size % _PAD)
    elif sample.ndim == 3:
        picture = _packed(int(sample.shape[1]), kwargs, root)
    else:
        raise MixError(
            f"a mask, and {type(root).__name__} is called with {tuple(sample.shape)}: no picture has that shape"
        )
    joint: list[Span] = []
    order = family.joint if family is not None else ""
    for text in texts if order else ():
        first = order == "text first"
        joint.append(
            Span(
                picture.before + text * first,
                picture.frames,
                picture.height,
                picture.width,
                picture.after + text * (not first),
            )
        )
    return Places(
        picture.frames,
        picture.height,
        picture.width,
        picture,
        tuple(joint),
        texts,
        int(sample.shape[0]),
        exact=True,
    )


def _patched(sample: torch.Tensor, root: Any, family: Family | None) -> Span:
    """Count the tokens of latents that the transformer cuts into patches itself."""
    axes = family.axes if family is not None and sample.ndim == 5 else "bcfhw"[: sample.ndim]
    sizes = dict(zip(axes if sample.ndim == 5 else "bchw", map(int, sample.shape), strict=True))
    config: Any = getattr(root, "config", None) or {}
    patch = config.get("patch_size", None)
    if patch is None:
        patch = (config.get("all_patch_size") or (1,))[0]
    deep, tall, wide = patch if isinstance(patch, list | tuple) and len(patch) == 3 else (1, patch, patch)
    if isinstance(tall, list | tuple):
        deep, (tall, wide) = 1, (tall[-2], tall[-1])
    deep = config.get("patch_size_t") or deep
    frames = -(-sizes.get("f", 1) // int(deep))
    return Span(0, frames, -(-sizes["h"] // int(tall)), -(-sizes["w"] // int(wide)), 0)


def _packed(tokens: int, kwargs: Mapping[str, Any], root: Any) -> Span:
    """Find the grid of latents that came as tokens."""
    shapes = kwargs.get("img_shapes")
    if isinstance(shapes, list | tuple) and shapes:
        first = shapes[0]
        first = first[0] if isinstance(first[0], list | tuple) else first
        frames, height, width = map(int, first)
        if frames * height * width <= tokens:
            return Span(0, frames, height, width, tokens - frames * height * width)
    sizes = [size for name in ("num_frames", "height", "width") if isinstance(size := kwargs.get(name), int)]
    if len(sizes) == 3 and math.prod(sizes) == tokens:
        return Span(0, sizes[0], sizes[1], sizes[2], 0)
    for name in _POSITIONS:
        ids = kwargs.get(name)
        if isinstance(ids, torch.Tensor) and (span := _by_coordinates(ids, tokens)) is not None:
            return span
    raise MixError(
        f"a mask, and {type(root).__name__} is called with {tokens} packed tokens and nothing that says how they lie in the "
        "picture (img_ids, img_shapes, or num_frames, height and width that fit); leave the mask out, or use block weights"
    )


def _by_coordinates(ids: torch.Tensor, tokens: int) -> Span | None:
    """
    Find the picture by its tokens' coordinates (tokens, axes): the first axis tells pictures apart, then come row and column.

    The picture that is made has the lowest number, and those that it is made from higher ones.
    """
    table = ids[0] if ids.ndim == 3 else ids
    if table.ndim != 2 or table.shape[1] < 3 or table.shape[0] < tokens:
        return None
    table = table[-tokens:].detach().cpu().double()  # those of the text come first
    of_picture = (table[:, 0] == table[:, 0].min()).nonzero().flatten()
    start, count = int(of_picture[0]), len(of_picture)
    rows, columns = table[of_picture, 1], table[of_picture, 2]
    height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
    raster = torch.arange(count)
    fits = (
        height * width == count
        and int(of_picture[-1]) - start + 1 == count
        and torch.equal(rows - rows.min(), (raster // width).double())
        and torch.equal(columns - columns.min(), (raster % width).double())
    )
    return Span(start, 1, height, width, tokens - start - count) if fits else None


def _texts(args: Sequence[Any], kwargs: Mapping[str, Any], root: Any) -> tuple[int, ...]:
    """Count the tokens of the texts of a call, in every way that transformers put them into a row with the picture."""
    given = kwargs.get("encoder_hidden_states", kwargs.get("cap_feats", args[2] if len(args) > 2 else None))
    counts: list[int] = []
    if isinstance(given, list | tuple) and given and isinstance(given[0], torch.Tensor):
        # rows of several lengths have the picture at one place all the same: text comes after it there
        counts.append(max(int(each.shape[0]) for each in given))
    elif isinstance(given, torch.Tensor) and given.ndim >= 3:
        counts.append(int(given.shape[1]))
        mask = kwargs.get("encoder_attention_mask")
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] == given.shape[1]:
            told = {int(n) for n in (mask != 0).sum(dim=1).tolist()}
            counts += told if len(told) == 1 else ()
        registers = getattr(root, "register_tokens", None)
        if isinstance(registers, torch.Tensor):
            counts.append(counts[0] + int(registers.shape[-2]))
        others = _others(kwargs)
        if others:
            counts.append(counts[0] + sum(others))
        counts += others
    if isinstance(ids := kwargs.get("input_ids"), torch.Tensor) and ids.ndim == 2:
        counts.append(int(ids.shape[1]) + 1)  # and a token of the time
    return tuple(dict.fromkeys(counts))


def _others(kwargs: Mapping[str, Any]) -> list[int]:
    inputs: Iterable[Any] = (
        value for name, value in kwargs.items() if name.startswith("encoder_hidden_states_")
    )
    return [int(value.shape[1]) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 3]
