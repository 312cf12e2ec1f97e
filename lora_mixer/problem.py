"""One thing that is wrong with what somebody wrote: facts first, the sentence last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self


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

        Args:
            outer: The place of what it is in; empty for the whole.

        Example:
            >>> str(Problem("[1]", "expected a name.").within("adapters")), Problem("", "odd").within("a").place
            ('adapters[1]: expected a name.', 'a')
        """
        apart = "." if outer and self.place and not self.place.startswith("[") else ""
        return replace(self, place=f"{outer}{apart}{self.place}")


class SaveReason(str, Enum):
    """Why something cannot be written as asked."""

    RANK = "rank"
    """It is not a low-rank pair, so a rank has to be given."""
    BASE = "base"
    """Its change depends on the base's weights, which are not at hand, and it needs a rank as well."""
    UNREAD = "unread"
    """No layer uses the key."""
    FORMAT = "format"
    """The format has no place for it."""
    VALUES = "values"
    """It holds NaN or Inf."""


@dataclass(frozen=True)
class SaveProblem:
    """
    One module or key that cannot be written as asked.

    Attributes:
        place: The module, by component and path, or the key of the file.
        reason: Why it cannot be written.
        detail: What it is: the algorithm, or why the key is not used.
    """

    place: str
    reason: SaveReason
    detail: str = ""


class UnusedReason(Enum):
    """Why a key of a file is used by no layer."""

    TEXTUAL_INVERSION = "textual inversion"
    """It is a word's, which only ``load_embeddings=True`` loads."""
    ODD_TEXTUAL_INVERSION = "odd textual inversion"
    """It is a part of a word that is not known, or stands twice."""
    UNKNOWN_ENDING = "unknown ending"
    """It ends in nothing that an adapter's key ends in."""
    LONE_SCALE = "lone scale"
    """It is an alpha or a scale of a module that has no weights in the file."""


class AbsenceReason(Enum):
    """Why a module of a file is not in a pipeline."""

    NO_COMPONENT = "no component"
    """The pipeline has no such component."""
    NOT_IN_FAMILY = "not in family"
    """Siblings of the model's family have it, this model need not."""
    NO_MODULE = "no module"
    """The component has no module of that name."""


class NoteKind(Enum):
    """What a remark on a file is about."""

    WORDS_LEFT = "words left"
    """It holds textual inversions that were not loaded."""
    WORDS = "words"
    """Which words were loaded, or that there are none."""
    NOT_TENSORS = "not tensors"
    """It holds entries that are not tensors."""
    ALPHA_ZERO = "alpha zero"
    """Some of its modules have alpha 0 and change nothing."""
    ALL_ZERO = "all zero"
    """All of its modules hold zeros."""
    NOT_HELD = "not held"
    """Its configuration speaks of tensors that it does not hold."""
    BESIDE = "beside"
    """Some of its changes are in no weight, whatever the mix: they run beside their layers."""
    TRAINED_APART = "trained apart"
    """Parts of its fused layers were trained apart, at a strength that no reader gives them."""
    EXPERT = "expert"
    """It does not say which of two experts it is for, and went to the first."""
    LEFT_OUT = "left out"
    """Adapters lie in folders beside it that are named after no component, and were not read."""


K = TypeVar("K", bound=Enum)


class Remark(str, Generic[K]):
    """
    A sentence for people that carries what it is about for programs.

    Args:
        text: The sentence.
        kind: What it is about.

    Attributes:
        kind: As above.

    Example:
        >>> remark = Remark("no such module", AbsenceReason.NO_MODULE)
        >>> remark, remark.kind
        ('no such module', <AbsenceReason.NO_MODULE: 'no module'>)
    """

    __slots__ = ("kind",)
    kind: K

    def __new__(cls, text: str, kind: K) -> Self:
        """Keep both."""
        remark = super().__new__(cls, text)
        remark.kind = kind
        return remark

    def __getnewargs__(self) -> tuple[str, K]:  # type: ignore[override]
        return str(self), self.kind
