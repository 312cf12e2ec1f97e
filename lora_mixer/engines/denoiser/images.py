"""Which image each row of a denoiser's batch belongs to."""

from __future__ import annotations

from typing import Any

import torch

from lora_mixer.errors import MixError


def guidance_copies(pipe: Any) -> int:
    """Count how often a pipeline's guidance repeats the batch in one denoiser call."""
    copies = 1
    for name in ("do_classifier_free_guidance", "do_perturbed_attention_guidance"):
        copies += bool(_flag(pipe, name))
    return copies


def _flag(pipe: Any, name: str) -> bool:
    try:
        return bool(getattr(pipe, name, False))
    except (AttributeError, TypeError):  # properties of a pipeline that has not run yet
        return False


def image_rows(
    pipe: Any, batch: int, images: int, copies: int | None, *, negatives: bool = False
) -> torch.Tensor | None:
    """
    Give the mix of each row.

    diffusers repeats a batch for guidance as a whole, ``[all without, all with]``, and the images of one prompt side by
    side.

    Args:
        pipe: The pipeline, asked for its guidance.
        batch: Rows of the call.
        images: How many mixes there are, one for each prompt.
        copies: How often guidance repeats the batch; None asks the pipeline.
        negatives: Whether rows without the prompt have mixes of their own, which follow those of the prompts.

    Returns:
        (batch,) numbers of mixes; None for a single one.

    Raises:
        MixError: When the batch is no multiple of what mixes and guidance need.

    Example:
        >>> image_rows(None, 8, 2, copies=2).tolist()
        [0, 0, 1, 1, 0, 0, 1, 1]
        >>> image_rows(None, 4, 2, copies=2, negatives=True).tolist()
        [2, 3, 0, 1]
    """
    if images == 1 and not negatives:
        return None
    repeats = guidance_copies(pipe) if copies is None else copies
    if batch % (images * repeats):
        # guidance in separate calls, or none at all in this one
        if batch % images:
            msg = f"{images} mixes do not fit a batch of {batch} rows: pass one prompt for each mix"
            raise MixError(msg)
        if negatives:
            msg = (
                f"a batch of {batch} rows does not hold {repeats} copies for guidance: this pipeline calls its denoiser "
                "for each of them, so that the half without the prompt cannot have a mix of its own"
            )
            raise MixError(msg)
        repeats = 1
    each = batch // (images * repeats)
    rows = torch.arange(images).repeat_interleave(each).repeat(repeats)
    if negatives and repeats > 1:
        rows[: images * each] += images
    return rows
