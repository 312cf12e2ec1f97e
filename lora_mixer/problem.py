"""One thing that is wrong with what somebody wrote: facts first, the sentence last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

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
        reason: Why, where programs decide on it, such as an ``AbsenceReason``; else None.

    Example:
        >>> print(Problem("ink.weight", "expected a finite number, got nan."))
        ink.weight: expected a finite number, got nan.
        >>> print(Problem("jobs[0]", "is missing", line=3))
        line 3: jobs[0]: is missing
    """

    place: str
    text: str
    line: int | None = None
    reason: Enum | None = None

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


class Surface(Enum):
    """Where a message is read, which decides how it names what its reader can do."""

    PYTHON = "python"
    """A program: arguments and calls."""
    COMMAND = "command line"
    """A terminal: options."""
    PAGE = "page"
    """The web page: its fields, or how it is started."""
    PLAN = "plan"
    """A plan of pictures and what is written about its run: its entries."""


@dataclass(frozen=True)
class Remedy:
    """
    What its reader can do about a problem, in the words of each surface; empty where that one has no way.

    Attributes:
        python: For programs.
        command: For the command line.
        page: For the web page.
        plan: For plans, whose entries mostly bear the names of arguments: those of ``python`` where it is empty.

    Example:
        >>> remedy = Remedy("pass rank=", "give --rank")
        >>> remedy.after("no rank is given", Surface.COMMAND), remedy.after("no rank is given", Surface.PAGE)
        ('no rank is given; give --rank', 'no rank is given')
    """

    python: str = ""
    command: str = ""
    page: str = ""
    plan: str = ""

    @classmethod
    def option(cls, what: str, name: str) -> Remedy:
        """
        Return how an option of the model, which has one name everywhere, is given.

        Args:
            what: What it does, such as "name a folder".
            name: The attribute of ``ModelOptions``.

        Example:
            >>> Remedy.option("name its VAE", "vae").page
            'name its VAE with --vae when the page is started'
        """
        option = option_text(name)
        return cls(
            f"{what} with {name}=",
            f"{what} with {option}",
            f"{what} with {option} when the page is started",
            f"{what} with the model's entry {name}",
        )

    @classmethod
    def same(cls, text: str) -> Remedy:
        """
        Return what is said alike everywhere, behind the message.

        Args:
            text: What can be done.

        Example:
            >>> Remedy.same("wait a little").on(Surface.PAGE)
            'wait a little'
        """
        return cls(text, text, text)

    def on(self, surface: Surface) -> str:
        """
        Return the words of a surface.

        Args:
            surface: Where they are read.
        """
        words = {
            Surface.PYTHON: self.python,
            Surface.COMMAND: self.command,
            Surface.PAGE: self.page,
            Surface.PLAN: self.plan or self.python,
        }
        return words[surface]

    def after(self, text: str, surface: Surface) -> str:
        """
        Return a message with the words of a surface behind it.

        Args:
            text: The message.
            surface: Where it is read.
        """
        words = self.on(surface)
        if not words or not text:
            return text or words
        return f"{text}{' ' if text.endswith(('.', '!', '?')) else '; '}{words}"


class ErrorFacts(TypedDict, total=False):
    """
    What every error can carry beside its message and its problems, as ``LoraMixerError`` explains it.

    Example:
        >>> from lora_mixer.errors import MixError
        >>> facts: ErrorFacts = {"adapter": "ink", "argument": "weight"}
        >>> MixError("is odd", **facts).adapter
        'ink'
    """

    file: str | None
    key: str | None
    component: str | None
    adapter: str | None
    argument: str | None
    remedy: Remedy | None


def option_text(name: str) -> str:
    """
    Return an option's name as the command line spells it.

    Example:
        >>> option_text("vae_tiling")
        '--vae-tiling'
    """
    return f"--{name.replace('_', '-')}"


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

    Example:
        >>> print(SaveProblem("unet.conv_in", SaveReason.RANK, "loha"))
        unet.conv_in: loha
    """

    place: str
    reason: SaveReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.detail or self.reason.value}"


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
    """None of its modules changes anything: they hold zeros, or a scale of zero."""
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
        remedy: What can be done about it; its words for programs end the sentence.

    Attributes:
        kind: As above.
        remedy: As above, or None.

    Example:
        >>> remark = Remark("no such module", AbsenceReason.NO_MODULE)
        >>> remark, remark.kind
        ('no such module', <AbsenceReason.NO_MODULE: 'no module'>)
    """

    __slots__ = ("_text", "kind", "remedy")
    kind: K
    remedy: Remedy | None
    _text: str

    def __new__(cls, text: str, kind: K, remedy: Remedy | None = None) -> Self:
        """Keep all."""
        remark = super().__new__(cls, text if remedy is None else remedy.after(text, Surface.PYTHON))
        remark.kind, remark.remedy, remark._text = kind, remedy, text
        return remark

    def text_on(self, surface: Surface) -> str:
        """Return the sentence with the words of a surface."""
        return self._text if self.remedy is None else self.remedy.after(self._text, surface)

    def __getnewargs__(self) -> tuple[str, K, Remedy | None]:  # type: ignore[override]
        return self._text, self.kind, self.remedy
