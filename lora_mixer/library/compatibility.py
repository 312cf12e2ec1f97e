"""Whether an adapter is made for a pipeline's base, told from names alone, before anything is loaded."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_mixer.binding import find_components
from lora_mixer.families.of_pipeline import UNKNOWN, family_name
from lora_mixer.families.telling import EITHER, alike
from lora_mixer.problem import Remark

if TYPE_CHECKING:
    from lora_mixer.library.entry import Entry


class Fit(Enum):
    """How an adapter and a pipeline's base go together."""

    SAME = "same"
    """They are of one family."""
    ALIKE = "alike"
    """Their families' files have the same names; loading tells."""
    FILE_UNKNOWN = "file unknown"
    """The file does not say which base it is for."""
    PIPELINE_UNKNOWN = "pipeline unknown"
    """The pipeline is of no known family."""
    OTHER_BASE = "other base"
    """The adapter was made for another family."""
    OFFLINE = "offline"
    """The file is not there now."""
    UNREADABLE = "unreadable"
    """The file cannot be used at all."""


class Compatibility(NamedTuple):
    """
    Whether an adapter fits, and why not or why that is not sure.

    Attributes:
        fits: Whether it does, as far as names tell.
        reason: A text, empty where they are of one family; its ``kind`` is a :class:`Fit`.

    Example:
        >>> found = Compatibility(False, Remark("made for SDXL, this pipeline is SD 1.x", Fit.OTHER_BASE))
        >>> found.fits, found.reason.kind.name
        (False, 'OTHER_BASE')
    """

    fits: bool
    reason: Remark[Fit]


def base_family(pipe: Any) -> str:
    """
    Name the base family of a pipeline, as adapters' descriptions name theirs.

    Args:
        pipe: A diffusers pipeline, or one of its modules.

    Returns:
        A name such as ``SD 1.x``, ``SDXL``, ``Flux.1``; ``unknown`` where nothing tells.

    Raises:
        PipelineStateError: When there is no module in it.

    Example:
        >>> import torch
        >>> base_family(torch.nn.Linear(2, 2))
        'unknown'
    """
    return family_name(find_components(pipe))


def compatible(entry: Entry, base: str) -> Compatibility:
    """
    Tell whether an adapter is for a base.

    Args:
        entry: The adapter.
        base: The base's family, as :func:`base_family` names it.

    Returns:
        Whether it fits, and the reason; what is not known fits, with a remark.

    Example:
        >>> from pathlib import Path
        >>> from lora_mixer.library import Entry
        >>> found = compatible(Entry("1", "ink", Path("ink.safetensors"), Path(), base="SDXL"), "SD 1.x")
        >>> found, found.reason.kind.name
        (Compatibility(fits=False, reason='made for SDXL, this pipeline is SD 1.x'), 'OTHER_BASE')
    """
    fit, text = _fit(entry, base)
    return Compatibility(fits=fit not in _MISFITS, reason=Remark(text, fit))


_MISFITS = frozenset((Fit.UNREADABLE, Fit.OFFLINE, Fit.OTHER_BASE))


def _fit(  # noqa: PLR0911 -- one return for each kind
    entry: Entry, base: str
) -> tuple[Fit, str]:
    if entry.problem:
        return Fit.UNREADABLE, entry.problem
    if entry.offline:
        return Fit.OFFLINE, "the file is not there now: its disk or folder is away"
    if entry.base == base or base in EITHER.get(entry.base, ()):
        return Fit.SAME, ""
    if alike(entry.base, base):
        return (
            Fit.ALIKE,
            f"files for {entry.base} and {base} have the same names; loading tells whether it fits",
        )
    if entry.base == UNKNOWN:
        return Fit.FILE_UNKNOWN, "the file does not say which base it is for"
    if base != UNKNOWN:
        return Fit.OTHER_BASE, f"made for {entry.base}, this pipeline is {base}"
    return Fit.PIPELINE_UNKNOWN, "this pipeline is of no known family"
