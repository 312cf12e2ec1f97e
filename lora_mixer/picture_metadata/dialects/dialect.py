"""What a dialect of settings in pictures says of itself: one row of the table of dialects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_mixer.picture_metadata.settings import PictureSettings


@dataclass(frozen=True)
class Dialect:
    """
    The form in which a program writes settings into pictures.

    Attributes:
        name: What it is called.
        program: The program that writes it, as people know it.
        read: Makes settings of a picture's texts: None where the picture is not its own; it adds a note where it is and cannot be read.
        clip_skip_is_told: Whether ``clip_skip`` counts for every family as it is written; elsewhere programs leave out the last layer of
            families that are made so by themselves.
        brackets_weaken: Whether ``[a word]`` in a prompt makes it weaker, rather than being plain text.
    """

    name: str
    program: str
    read: Callable[[Mapping[str, str], list[str]], PictureSettings | None]
    clip_skip_is_told: bool = False
    brackets_weaken: bool = True
