"""What a save wrote, as values and as a short text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class SaveReport:
    """
    The outcome of one ``save_lora_weights``.

    Attributes:
        files: Every file written.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        ranks: The rank of each layer, by component and path; 0 for layers that are not pairs.
        errors: What the rank left out of each layer, as a share of the norm of its change; 0 is exact up to the
            rounding of the dtype.
        left_out: Parameters that changed, too, and are in no layer, as ``extract(pairs_only=True)`` leaves them.
        notes: Remarks, such as layers of other algorithms that were written as pairs.
    """

    files: tuple[Path, ...]
    format: str
    ranks: Mapping[str, int]
    errors: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def worst_error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain values, for JSON.

        Example:
            >>> SaveReport((), "kohya", {"unet.a": 4}).to_dict()["ranks"]
            {'unet.a': 4}
        """
        return {
            "files": [str(file) for file in self.files],
            "format": self.format,
            "ranks": dict(self.ranks),
            "errors": dict(self.errors),
            "worst_error": self.worst_error,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Say what was written, at which ranks and how exactly."""
        ranks = sorted({rank for rank in self.ranks.values() if rank})
        shown = (
            f"rank {ranks[0]}"
            if len(ranks) == 1
            else f"ranks {ranks[0]} to {ranks[-1]}"
            if ranks
            else "no pairs"
        )
        kept = "exact" if not self.worst_error else f"error at most {self.worst_error:.3g} of a layer's norm"
        lines = [
            f"{', '.join(map(str, self.files))}: {self.format}, {len(self.ranks)} modules, {shown}, {kept}"
        ]
        if self.left_out:
            listed = first_of(self.left_out, 3)
            lines.append(
                f"  left out: {len(self.left_out)} biases, norms and other parameters that changed, too: {listed}"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
