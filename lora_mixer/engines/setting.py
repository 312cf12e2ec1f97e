"""What is to be in effect: the mixes of a batch's images, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from lora_mixer.errors import MixError
from lora_mixer.mixes import Mix

if TYPE_CHECKING:
    from collections.abc import Iterable

Engine = Literal["auto", "merged", "side"]
"""``merged`` rewrites weights, ``side`` runs beside them; ``auto`` takes the cheaper one that can serve a mix."""


@dataclass(frozen=True)
class Setting:
    """
    A value that says what adapters do.

    Attributes:
        mixes: One mix for all images, or one for each prompt of a batch; none is the base.
        engine: Which engine to use.
        copies: How often guidance repeats the batch in a denoiser call; None asks the pipeline.
    """

    mixes: tuple[Mix, ...] = ()
    engine: Engine = "auto"
    copies: int | None = None

    @classmethod
    def of(cls, mix: Any, engine: Engine = "auto", copies: int | None = None) -> Setting:
        """
        Read one mix, or a list of mixes for the images of a batch.

        Args:
            mix: Anything that ``Mix.of`` reads; or a list of mixes and dicts, one for each prompt.
            engine: Which engine to use.
            copies: As above.

        Raises:
            MixError: When a mix or the engine makes no sense.

        Example:
            >>> Setting.of([{"a": 1.0}, {"b": 0.5}]).names
            ('a', 'b')
        """
        if engine not in get_args(Engine):
            msg = f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}"
            raise MixError(msg)
        if isinstance(mix, list | tuple) and mix and all(isinstance(one, Mix | dict) for one in mix):
            return cls(tuple(Mix.of(one) for one in mix), engine, copies)
        return cls((Mix.of(mix),), engine, copies)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that any of the mixes names, in the order given."""
        return tuple(dict.fromkeys(name for mix in self.mixes for name in mix.names))

    def without(self, names: Iterable[str]) -> Setting:
        """Leave adapters out of all mixes."""
        gone = tuple(names)
        return replace(self, mixes=tuple(mix.without(*gone) for mix in self.mixes))


BASE = Setting()
"""No adapter at all."""
