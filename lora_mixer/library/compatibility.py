"""Whether an adapter is made for a pipeline's base, told from names alone, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lora_mixer.binding import find_components
from lora_mixer.families.of_pipeline import UNKNOWN, family_name
from lora_mixer.families.telling import EITHER, alike

if TYPE_CHECKING:
    from lora_mixer.library.entry import Entry


class Compatibility(NamedTuple):
    """Whether an adapter fits, and why not or why that is not sure; the reason is empty where it is."""

    fits: bool
    reason: str


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
        Whether it fits, and the reason in words; what is not known fits, with a remark.

    Example:
        >>> from pathlib import Path
        >>> from lora_mixer.library import Entry
        >>> compatible(Entry("1", "ink", Path("ink.safetensors"), Path(), base="SDXL"), "SD 1.x")
        Compatibility(fits=False, reason='made for SDXL, this pipeline is SD 1.x')
    """
    if entry.problem:
        return Compatibility(fits=False, reason=entry.problem)
    if entry.offline:
        return Compatibility(fits=False, reason="the file is not there now: its disk or folder is away")
    if entry.base == base or base in EITHER.get(entry.base, ()):
        return Compatibility(fits=True, reason="")
    if alike(entry.base, base):
        reason = f"files for {entry.base} and {base} have the same names; loading tells whether it fits"
        return Compatibility(fits=True, reason=reason)
    if UNKNOWN in (entry.base, base):
        what = (
            "the file does not say which base it is for"
            if entry.base == UNKNOWN
            else "this pipeline is of no known family"
        )
        return Compatibility(fits=True, reason=what)
    return Compatibility(fits=False, reason=f"made for {entry.base}, this pipeline is {base}")
