"""One thing that is wrong with what somebody wrote: facts first, the sentence last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """
    One thing that is wrong with what was read.

    Attributes:
        place: The path of the entry, such as ``3d.unet.down[1]``; empty for the whole.
        text: What was expected, what was there and how to put it right.
        line: The line of the file, counted from 1, where there is a file.

    Example:
        >>> print(Problem("ink.weight", "expected a finite number, got nan."))
        ink.weight: expected a finite number, got nan.
        >>> print(Problem("jobs[0]", "is missing", line=3))
        line 3: jobs[0]: is missing
    """

    place: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        said = f"{self.place}: {self.text}" if self.place else self.text
        return said if self.line is None else f"line {self.line}: {said}"

    def within(self, outer: str) -> Problem:
        """
        Return the problem with its place as seen from around.

        Example:
            >>> str(Problem("[1]", "expected a name.").within("adapters")), Problem("", "odd").within("a").place
            ('adapters[1]: expected a name.', 'a')
        """
        apart = "." if outer and self.place and not self.place.startswith("[") else ""
        return replace(self, place=f"{outer}{apart}{self.place}")


@dataclass(frozen=True)
class SaveProblem:
    """
    One module or key that cannot be written as asked.

    Attributes:
        place: The module, by component and path, or the key of the file.
        reason: ``rank``: it is not a low-rank pair, so a rank has to be given; ``base``: its change depends on the
            base's weights, which are not at hand, and it needs a rank as well; ``unread``: no layer uses the key;
            ``format``: the format has no place for it.
        detail: What it is: the algorithm, or why the key is not used.
    """

    place: str
    reason: Literal["rank", "base", "unread", "format"]
    detail: str = ""
