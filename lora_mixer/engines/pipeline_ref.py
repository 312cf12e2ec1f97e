"""The pipeline that parts belong to, as what stands on the parts knows it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lora_mixer.binding.components import component_name


class PipelineRef:
    """
    Holds a pipeline; a copy of a part alone does not copy it.

    Args:
        pipe: The pipeline, or a bare module.
        is_own: False where this stands on a copied part, and the pipeline is that of the first one.

    Example:
        >>> from copy import deepcopy
        >>> pipe = object()
        >>> deepcopy(PipelineRef(pipe)).pipe is pipe
        True
    """

    def __init__(self, pipe: Any, *, is_own: bool = True) -> None:
        """Hold it."""
        self.pipe, self.is_own = pipe, is_own

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler, or None."""
        return getattr(self.pipe, "scheduler", None)

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineRef:
        """Refer to the copy of the pipeline where that is being copied, else to the same one."""
        copied = memo.get(id(self.pipe))
        return (
            PipelineRef(self.pipe, is_own=False)
            if copied is None
            else PipelineRef(copied, is_own=self.is_own)
        )


def callers(pipe: Any) -> dict[str, nn.Module]:
    """
    Return the components as the pipeline calls them, ``torch.compile``'s wrappers included.

    Args:
        pipe: A pipeline, or a bare module.
    """
    if isinstance(pipe, nn.Module):
        return {component_name(pipe): pipe}
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
