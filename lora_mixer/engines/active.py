"""What is to be in effect: the mixes of a batch's images, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.mixes import Mix

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class ActiveMixes:
    """
    A value that says what adapters do.

    Attributes:
        mixes: One mix for all images, or one for each prompt of a batch; none is the base.
        engine: The name of an engine in ``engines/table.py``; ``auto`` takes the cheapest that can serve the mixes.
        copies: How often guidance repeats the batch in a denoiser call; None asks the pipeline.
        negatives: The mixes of the halves without the prompt, one for each of ``mixes``; none where they are the same.
    """

    mixes: tuple[Mix, ...] = ()
    engine: str = "auto"
    copies: int | None = None
    negatives: tuple[Mix, ...] = ()

    @classmethod
    def of(
        cls, mix: Any, engine: str = "auto", copies: int | None = None, negative: Any = None
    ) -> ActiveMixes:
        """
        Read one mix, or a list of mixes for the images of a batch.

        Args:
            mix: Anything that ``Mix.of`` reads; or a list of mixes and dicts, one for each prompt.
            engine: Which engine to use.
            copies: As above.
            negative: The same for the halves of the batch that guidance makes without the prompt; None is ``mix``.

        Raises:
            MixError: When a mix makes no sense, or there are not as many negative ones.

        Example:
            >>> ActiveMixes.of([{"a": 1.0}, {"b": 0.5}]).names
            ('a', 'b')
        """
        mixes = _read(mix)
        negatives = mixes if negative is None else _read(negative)
        if len(negatives) != len(mixes):
            raise MixError(
                f"expected one negative mix for each of the {len(mixes)} mixes, got {len(negatives)}",
                argument="negative",
            )
        return cls(mixes, engine, copies, negatives if negatives != mixes else ())

    @property
    def every(self) -> tuple[Mix, ...]:
        """All mixes that rows of a batch can have: those of the prompts, then those of the halves without."""
        return self.mixes + self.negatives

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that any of the mixes names, in the order given."""
        return tuple(dict.fromkeys(name for mix in self.every for name in mix.names))

    def without(self, names: Iterable[str]) -> ActiveMixes:
        """Leave adapters out of all mixes."""
        gone = tuple(names)
        mixes = tuple(mix.without(*gone) for mix in self.mixes)
        negatives = tuple(mix.without(*gone) for mix in self.negatives)
        return replace(self, mixes=mixes, negatives=negatives if negatives != mixes else ())


def _read(mix: Any) -> tuple[Mix, ...]:
    if isinstance(mix, list | tuple) and mix and all(isinstance(one, Mix | dict) for one in mix):
        return tuple(Mix.of(one) for one in mix)
    return (Mix.of(mix),)


BASE = ActiveMixes()
"""No adapter at all."""
