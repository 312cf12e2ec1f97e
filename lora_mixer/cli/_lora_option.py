"""What ``--lora F:0.7`` means: where the adapter is, the name it gets and its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from lora_mixer.cli._completing import adapters
from lora_mixer.errors import MixError
from lora_mixer.parsing import at_home

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_mixer.mixes import AdapterMix


Loras = Annotated[
    list[str],
    typer.Option(
        metavar="FILE[:WEIGHTS]",
        help="F, F:0.7 or F:te=0.2,unet=0.9. May be given several times.",
        autocompletion=adapters,
    ),
]
"""The option of commands that cannot do without adapters."""


@dataclass(frozen=True)
class LoraOption:
    """One ``--lora``: what to load, under which name, and how strong."""

    source: str
    name: str
    weights: AdapterMix


def read_options(texts: Iterable[str]) -> list[LoraOption]:
    """
    Read all ``--lora`` options; adapters are named after their files, and twins get numbers.

    Raises:
        MixError: What stands after the last colon is meant as weights and cannot be read as such.

    Example:
        >>> [(option.source, option.name) for option in read_options(["a/x.safetensors:0.7", "b/x.safetensors"])]
        [('a/x.safetensors', 'x'), ('b/x.safetensors', 'x_2')]
    """
    options: list[LoraOption] = []
    for text in texts:
        source, weights = split_weights(text)
        name = stem = _stem(source)
        number = 1
        while name in {option.name for option in options}:
            number += 1
            name = f"{stem}_{number}"
        options.append(LoraOption(source, name, weights))
    return options


def split_weights(text: str) -> tuple[str, AdapterMix]:
    """
    Split at the last colon where weights follow it, so that drives, addresses and repositories stay whole.

    Args:
        text: ``F``, ``F:0.7`` or ``F:te=0.2,unet=0.9``.

    Raises:
        MixError: Weights follow, or are meant to, and make no sense.

    Example:
        >>> source, weights = split_weights("https://huggingface.co/u/r:0.5")
        >>> source, weights.weight
        ('https://huggingface.co/u/r', 0.5)
    """
    from lora_mixer.mixes import AdapterMix, Mix

    source, colon, tail = text.rpartition(":")
    # A file may have a colon in its name; weights never have a slash, and a drive's name is one letter.
    if not colon or _exists(text) or re.search(r"[/\\]", tail) or not source:
        return text, AdapterMix()
    front, inner, before = source.rpartition(":")
    if front and inner and "=" in before and not re.search(r"[/\\]", before):
        source, tail = front, f"{before}:{tail}"  # a colon inside the weights: blocks=b-lora:style
    try:
        mix = Mix.of(f"x:{tail}")
    except MixError as error:
        if "=" in tail or _is_number(tail) or _exists(source):
            raise MixError(
                f"--lora {text!r}: expected FILE, FILE:0.7 or FILE:te=0.2,unet=0.9 "
                f"(got {tail!r} for the weights: {error})",
                argument="lora",
            ) from error
        return text, AdapterMix()
    if mix.names != ("x",):
        raise MixError(
            f"--lora {text!r}: expected one adapter's weights after the colon; give each its own --lora.",
            argument="lora",
        )
    return source, mix["x"]


def _stem(source: str) -> str:
    last = PurePosixPath(source.removeprefix("demo:").replace("\\", "/").rstrip("/")).name
    # A query (?download=true) is not a part of a file's name, nor is what cannot be shown.
    stem = re.sub(r"\.(safetensors|bin|pt|pth|ckpt)$", "", last.partition("?")[0], flags=re.IGNORECASE)
    return "".join(letter for letter in stem if letter.isprintable()).strip() or "lora"


def _exists(path: str) -> bool:
    try:
        return at_home(path).exists()
    except (OSError, ValueError):
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
