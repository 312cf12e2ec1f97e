"""One reading of a mix: its problems so far, where what it says stands, and what names in it may stand for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.data import load_located
from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.problems import Problems, path_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.parsing.data import Form, Located
    from lora_mixer.parsing.problems import EntryPath


class Reading(Problems):
    r"""
    The problems of a mix that is being read, and what may be named in it.

    Attributes:
        presets: Block weights that the user gave names.
        masks: The only masks that may be named, by digest; None allows paths.
        folder: What paths of masks are relative to; None is the current folder.

    Example:
        >>> reading = Reading()
        >>> values = reading.load("yaml", "a:\n  unet: 0.5\n  te: high\n")
        >>> reading.number("a.te", values["a"]["te"])
        0.0
        >>> print(reading.problems[0])
        line 3: a.te: expected a finite number, got 'high'.
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
        self._located: Located | None = None
        self._roots: dict[str, EntryPath] = {}
        self._by_text: dict[str, int] = {}

    def placed(self, path: str) -> str:
        """Return a path as seen from the current folder."""
        return path if self.folder is None else str(Path(self.folder) / at_home(path))

    # --- lines -----------------------------------------------------------------------------------------------------

    def load(self, form: Form, text: str) -> Any:
        """Read the text of a mix; where it has several lines, problems of what it says have theirs from now on."""
        located = load_located(form, text, self)
        if (
            "\n" in text.strip() and find_spec("yaml") is not None
        ):  # which tells where things are, in JSON too
            self._located = located
        return located.value

    def root(self, name: object, path: EntryPath) -> None:
        """Say where in the text an adapter, or the method, has what it is called by in places."""
        if isinstance(name, str):
            self._roots.setdefault(name, path)

    def line_at(self, where: str) -> int | None:
        """Return the line of an entry, or of the nearest thing around it; None where the mix is not of several lines."""
        if self._located is None:
            return None
        if not self._by_text:
            self._located.line(())  # lines of JSON are looked for when somebody asks
            self._by_text = self._places(self._located)
        place = where
        while place and place not in self._by_text:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return self._by_text.get(place, 1)

    def _places(self, located: Located) -> dict[str, int]:
        """Return the line of each entry by how places name it: by its adapter, wherever in the text that stands."""
        table = {path_text(path): line for path, line in located.lines.items()}
        names = {root: name for name, root in self._roots.items()}
        for path, line in located.lines.items():
            for depth in range(len(path) + 1):
                if (name := names.get(path[:depth])) is not None:
                    table[path_text((name, *path[depth:]))] = line
        return table
