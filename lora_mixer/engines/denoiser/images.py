"""
Which image each row of a denoiser's batch belongs to, and which half of guidance.

The pipeline that is calling says how many pictures it is making, so how often guidance has repeated them, and which texts
are those of the half without the prompt. What it does not say is refused before the first step, never guessed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.denoiser.caller import Caller

_PICTURES = ("latents", "intermediate_images")
"""Local names of what a pipeline denoises, one row for each picture."""
_EACH = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_GUIDED = ("do_classifier_free_guidance", "do_true_cfg")
_PERTURBED = "do_perturbed_attention_guidance"
_SAY = "or say how often guidance repeats the batch in a call: guidance_copies=1, 2, ..."


@dataclass(frozen=True)
class BatchLayout:
    """
    How the rows of a denoiser's batch are laid out.

    diffusers repeats a batch for guidance as a whole, ``[all without, all with]``, and the images of one prompt side by
    side.

    Attributes:
        images: How many mixes there are, one for each prompt.
        each: How many rows of a copy each of them has.
        without: For each copy, whether it is the half without the prompt.
    """

    images: int
    each: int
    without: tuple[bool, ...]

    def rows(self, *, negatives: bool) -> torch.Tensor:
        """
        Return the mix of each row.

        Args:
            negatives: Whether rows without the prompt have mixes of their own, which follow those of the prompts.

        Example:
            >>> BatchLayout(2, 2, (True, False)).rows(negatives=False).tolist()
            [0, 0, 1, 1, 0, 0, 1, 1]
            >>> BatchLayout(2, 1, (True, False)).rows(negatives=True).tolist()
            [2, 3, 0, 1]
        """
        half_rows = torch.arange(self.images).repeat_interleave(self.each)  # (images * each,)
        return torch.cat([half_rows + self.images * (negatives and half) for half in self.without])  # (rows,)


def stated_layout(batch: int, images: int, copies: int, *, negatives: bool) -> BatchLayout:
    """
    Lay a batch out as the caller of the mixer has said: ``copies`` copies, the first one without the prompt.

    A call with one row for each image is one copy, as where guidance has calls of its own.

    Raises:
        MixError: When the batch is not a multiple of what mixes and guidance need.

    Example:
        >>> stated_layout(6, 3, 2, negatives=False)
        BatchLayout(images=3, each=1, without=(True, False))
    """
    if batch % (images * copies) == 0:
        return BatchLayout(images, batch // (images * copies), (copies > 1, *[False] * (copies - 1)))
    if batch == images and not negatives:
        return BatchLayout(images, 1, (False,))
    raise MixError(
        f"{_mixes(images)} with guidance_copies={copies} do not fit a batch of {batch} rows: pass one prompt for each mix"
        + (
            "; the half without the prompt needs both halves in one call of the denoiser" if negatives else ""
        ),
        argument="guidance_copies",
    )


def rows_of_pictures(caller: Caller, call: str, sample: torch.Tensor, images: int) -> torch.Tensor:
    """
    Return the mix of each picture where pictures are read or written, which has no steps and no half without the prompt.

    Args:
        caller: Who is calling.
        call: What is called, such as ``vae.decode``.
        sample: The batch, (pictures, ...).
        images: How many mixes there are.

    Returns:
        (pictures,), those of one mix side by side.

    Raises:
        MixError: When it cannot be told whose pictures they are.

    Example:
        >>> from lora_mixer.engines.denoiser.caller import Caller
        >>> rows_of_pictures(Caller(), "vae.decode", torch.zeros(2, 4, 8, 8), 2).tolist()
        [0, 1]
    """
    batch = int(sample.shape[0])
    if images == 1:
        return torch.zeros(batch, dtype=torch.long)
    held = caller.local("latents") if caller.pipe is not None else None
    whole = int(held.shape[0]) if isinstance(held, torch.Tensor) and held.ndim > 1 else None
    if batch == images and whole in (None, batch):
        return torch.arange(images)
    if whole != batch or batch % images:
        raise MixError(
            f"{call}() is called with {batch} pictures for {images} mixes, and it cannot be told whose they are: call it with one "
            "picture for each mix, in one batch, or give each its own mix, with applied(mix)"
        )
    return torch.arange(images).repeat_interleave(batch // images)


def check_stated(
    layout: BatchLayout, caller: Caller, sample: torch.Tensor, text: Any, *, negatives: bool, first: bool
) -> None:
    """
    Refuse a layout that the caller of the mixer has said, and that what can be seen of the call contradicts.

    A pipeline that tells has the last word. Of a loop there are the rows themselves: guidance repeats a batch as a whole, so
    copies have what is denoised in common, and what has no copies does not repeat itself.

    Args:
        layout: What was said.
        caller: Who is calling.
        sample: The batch of a denoiser, (rows, ...).
        text: What the rows attend to, or None.
        negatives: Whether the half without the prompt has mixes of its own.
        first: Whether it is one of the first steps, where the rows are looked at.

    Raises:
        MixError: Naming what was said and what is seen.
    """
    said, batch = len(layout.without), int(sample.shape[0])
    stated = f"guidance_copies={said} for {_mixes(layout.images)} was said, and"
    told = None
    if caller.pipe is not None:
        with suppress(MixError):  # such a pipeline does not tell: that is what the argument is for
            told = layout_of(caller, sample, text, layout.images, negatives=negatives, first=first)
    if told is not None:
        if not torch.equal(told.rows(negatives=negatives), layout.rows(negatives=negatives)):
            raise MixError(
                f"{stated} {type(caller.pipe).__name__} calls the denoiser with {_times(len(told.without))} of its batch, "
                f"{told.each} rows for each: leave guidance_copies out, since this pipeline tells it itself",
                argument="guidance_copies",
            )
        return
    if not first or sample.ndim < 3:
        return
    if said > 1 and not _agree(sample, said):
        raise MixError(
            f"{stated} the batch of {batch} rows is not {said} copies of one behind the other: rows of prompts and rows without "
            "must be two blocks ([all without, all with]), or be told apart by calls of their own",
            argument="guidance_copies",
        )
    seen = _repeats(sample, layout.images)
    if seen > said:
        raise MixError(
            f"{stated} the batch of {batch} rows is {seen} copies of one behind the other, as guidance makes it: say "
            f"guidance_copies={seen}, or give pictures of one noise a call each",
            argument="guidance_copies",
        )


def _agree(sample: torch.Tensor, copies: int) -> bool:
    """Tell whether copies have any channel, row of tokens, ... in common; what guidance is made from may differ beside it."""
    parts = sample.reshape(copies, -1, *sample.shape[1:])
    same = (parts[1:] == parts[:1]).all(0).all(0)  # (...) of one row
    return any(
        bool(same.all(tuple(other for other in range(same.ndim) if other != axis)).any())
        if same.ndim > 1
        else bool(same.any())
        for axis in range(same.ndim)
    )


def _repeats(sample: torch.Tensor, images: int) -> int:
    """Count how often a batch repeats itself as a whole, by copies with a row for each mix; 1 where all rows are alike."""
    rows = sample.flatten(1)
    batch = rows.shape[0]
    first = (rows == rows[:1]).all(1).tolist()  # what repeats has the first row again where each copy begins
    if all(first):
        return 1
    periods = (n for n in range(images, batch, images) if batch % n == 0 and first[n])
    return next((batch // n for n in periods if torch.equal(rows[n:], rows[:-n])), 1)


def layout_of(
    caller: Caller, sample: torch.Tensor, text: Any, images: int, *, negatives: bool, first: bool
) -> BatchLayout:
    """
    Lay the batch of a call out as the pipeline that makes it says.

    Args:
        caller: Who is calling.
        sample: The batch, (rows, ...).
        text: What the rows attend to, (rows, tokens, width), or None.
        images: How many mixes there are.
        negatives: Whether the half without the prompt has mixes of its own.
        first: Whether it is one of the first steps, where the rows themselves are looked at, too.

    Raises:
        MixError: When it cannot be told which rows belong to which mix.
    """
    batch = int(sample.shape[0])
    if caller.sequences is not None and not negatives:
        if caller.sequences != images or batch % images:
            raise MixError(
                f"{_mixes(images)}, and generate() is called with {caller.sequences} sequences: pass one for each mix"
            )
        return BatchLayout(images, batch // images, (False,))
    latents = caller.local(*_PICTURES) if caller.pipe is not None else None
    if not isinstance(latents, torch.Tensor) or latents.ndim < 2:
        if batch == images and not negatives:
            return BatchLayout(images, 1, (False,))
        who = "a loop" if caller.pipe is None else type(caller.pipe).__name__
        raise MixError(
            f"{who} that does not say how it lays its batches out calls the denoiser with {batch} rows for "
            f"{_mixes(images)}: call it with one row for each mix, {_SAY}"
        )
    kind = type(caller.pipe).__name__
    pictures = int(latents.shape[0])
    each = _rows_each(caller, kind, pictures, images)
    if batch % pictures:
        raise MixError(
            f"{kind} calls the denoiser with {batch} rows for {pictures} pictures, so that {_mixes(images)} cannot be told "
            f"apart in them: make one picture at a time, {_SAY}"
        )
    copies = batch // pictures
    if first and copies > 1 and not _is_repeated(sample, latents, copies):
        raise MixError(
            f"{kind} does not repeat its batch as a whole for guidance, so that {_mixes(images)} cannot be told apart in "
            "it: make one picture at a time"
        )
    halves = _halves(caller, kind, text, copies) if negatives else (False,) * copies
    return BatchLayout(images, each, halves)


def _rows_each(caller: Caller, kind: str, pictures: int, images: int) -> int:
    """Return the pictures that each mix has; one mix has them all."""
    if images == 1:
        return pictures
    said = caller.local(*_EACH)
    each = said if isinstance(said, int) and said > 0 else 1
    if pictures != images * each:
        prompts = f"{pictures // each} prompts" if pictures % each == 0 else f"{pictures} pictures"
        raise MixError(
            f"{images} mixes, but {kind} is called with {prompts}: pass a list of {images} prompts, one for each mix"
        )
    return each


def _is_repeated(sample: torch.Tensor, latents: torch.Tensor, copies: int) -> bool:
    """Tell whether a batch is copies of all pictures one after the other; what is beside the latents may differ."""
    if sample.ndim != latents.ndim:
        return True  # packed in another way: nothing to compare
    piece = sample
    for axis, size in enumerate(latents.shape[1:], start=1):
        piece = piece.narrow(axis, 0, min(size, piece.shape[axis]))
    parts = piece.chunk(copies)
    return all(torch.equal(part, parts[0]) for part in parts[1:])


def _halves(caller: Caller, kind: str, text: Any, copies: int) -> tuple[bool, ...]:
    """Tell which copies are those without the prompt."""
    guided = caller.flag(*_GUIDED)
    if guided and caller.flag(_PERTURBED):
        raise MixError(
            f"{kind} splits its batch inside of layers for perturbed attention, so that the half without the prompt "
            "cannot have a mix of its own: leave negative= out, or set pag_scale=0",
            argument="negative",
        )
    if guided is False:
        return (False,) * copies
    if guided and copies == 2:
        if isinstance(text, list) and text:  # Z-Image: a list of texts, with those of the prompts first
            without = caller.local("negative_prompt_embeds")
            first = isinstance(without, list) and any(text[0] is each for each in without)
            return (True, False) if first else (False, True)
        return (True, False)
    if copies == 1 and (half := _half_of(caller, text)) is not None:
        return (half,)
    raise MixError(
        f"{kind} calls the denoiser with {_times(copies)} of its batch, and it cannot be told which of them are without "
        "the prompt: leave negative= out" + (", or turn guidance off" if guided else ""),
        argument="negative",
    )


def _half_of(caller: Caller, text: Any) -> bool | None:
    """Tell by its text whether a call is that without the prompt; None where both have the same, or it has another."""
    without, prompted = caller.local("negative_prompt_embeds"), caller.local("prompt_embeds")
    if not isinstance(text, torch.Tensor) or not isinstance(without, torch.Tensor):
        return None
    if text is without or text is prompted:  # guidance in two calls: no need to wait for the values
        return text is without
    rows = text.shape[0]
    same = [
        isinstance(one, torch.Tensor) and one.shape[1:] == text.shape[1:] and torch.equal(one[-rows:], text)
        for one in (without, prompted)
    ]
    return same[0] if same[0] != same[1] else None


def repeated_rows(
    gains: torch.Tensor, rows: torch.Tensor | None, count: int, batch: int
) -> torch.Tensor | None:
    """
    Return the gains of a layer whose batch is not that of the denoiser's call.

    Layers inside of video models see each frame or place as a row, those of one picture side by side. Perturbed attention
    splits the batch into copies, which is no matter where all copies have the same mixes. Encoders of language models see
    once what is repeated for beams.

    Args:
        gains: Of the rows of the call, (count or more, ...).
        rows: The mix of each row of the call.
        count: Rows of the call.
        batch: Rows of the layer.

    Returns:
        (batch, ...), or (1, ...) where all have the same; None where it cannot be told.

    Example:
        >>> gains = torch.tensor([[1.0], [2.0], [1.0], [2.0], [1.0], [2.0]])
        >>> repeated_rows(gains, torch.tensor([0, 1, 0, 1, 0, 1]), 6, 4).tolist()
        [[1.0], [2.0], [1.0], [2.0]]
        >>> repeated_rows(gains[:2], torch.tensor([0, 1]), 2, 4).tolist()
        [[1.0], [1.0], [2.0], [2.0]]
    """
    if count == 1:  # for any number of rows
        return gains[:1]
    if batch % count == 0:
        return gains[:count].repeat_interleave(batch // count, 0)
    if rows is None or batch > count:
        return None
    period = next(n for n in range(1, count + 1) if count % n == 0 and _has_period(rows, n))
    if batch % period == 0:
        return gains[:batch]
    # an encoder sees what a decoder's beams repeat, once
    each = count // batch if count % batch == 0 else 0
    beside = rows[:count].view(batch, each) if each else None
    if beside is None or not (beside == beside[:, :1]).all():
        return None
    return gains[:count:each]


def _has_period(rows: torch.Tensor, period: int) -> bool:
    parts = rows.view(-1, period)  # (repetitions, period)
    return bool((parts == parts[0]).all())


def _mixes(images: int) -> str:
    return "a mix and that of the half without the prompt" if images == 1 else f"{images} mixes"


def _times(copies: int) -> str:
    return "one copy" if copies == 1 else f"{copies} copies"


def text_of(args: Sequence[Any], kwargs: Any) -> Any:
    """Find what the rows attend to in a denoiser call: the argument of that name, or the third one."""
    return kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
