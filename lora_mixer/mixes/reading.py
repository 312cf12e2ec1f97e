"""One reading of a mix: its problems so far, and what names in it may stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_mixer.parsing.problems import Problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Reading(Problems):
    """
    The problems of a mix that is being read, and what may be named in it.

    Attributes:
        presets: Block weights that the user gave names.
        masks: The only masks that may be named, by digest; None allows paths.
        folder: What paths of masks are relative to; None is the current folder.
    """

    def __init__(
        self,
        presets: Mapping[str, Sequence[float]] | None = None,
        masks: Mapping[str, object] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        """Start with no problems."""
        super().__init__()
        self.presets: Mapping[str, Sequence[float]] = presets or {}
        self.masks = masks
        self.folder = folder

    def placed(self, path: str) -> str:
        """Return a path as seen from the current folder."""
        return path if self.folder is None else str(Path(self.folder) / Path(path).expanduser())
