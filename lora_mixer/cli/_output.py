"""The names that pictures on disk get."""

from __future__ import annotations

from pathlib import Path
from string import Formatter

from lora_mixer import picture_metadata
from lora_mixer.errors import LoraMixerError

FIELDS = ("seed", "index")


class OutputError(LoraMixerError):
    """``--out`` cannot name the pictures."""


def picture_paths(template: str, seeds: list[int]) -> list[Path]:
    """
    Return one path for each seed.

    Args:
        template: A path with the ending of a picture, in which ``{seed}`` and ``{index}`` stand for these, or a folder.
        seeds: The pictures' seeds, in order.

    Raises:
        OutputError: It has other fields, another ending, or one of its folders is a file.

    Example:
        >>> [path.name for path in picture_paths("out/castle.png", [7, 8])]
        ['castle-0.png', 'castle-1.png']
    """
    if template.endswith(("/", "\\")) or Path(template).is_dir():
        template = str(Path(template) / "{seed}.png")
    ending = Path(template).suffix
    if ending.lower() not in picture_metadata.FORMATS:
        raise OutputError(
            f"--out must be a folder or a path that ends with {', '.join(picture_metadata.FORMATS)} (got {template!r}).",
            argument="out",
        )
    try:
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        unknown = used - set(FIELDS)
        if unknown:
            raise OutputError(
                f"--out knows the fields {{seed}} and {{index}} (got {{{min(unknown)}}} in {template!r}); "
                f"braces that are meant as such are written twice.",
                argument="out",
            )
        if not used and len(seeds) > 1:
            template = f"{template.removesuffix(ending)}-{{index}}{ending}"
        return [Path(template.format(seed=seed, index=index)) for index, seed in enumerate(seeds)]
    except ValueError as error:
        raise OutputError(
            f"--out {template!r} is not a path or template: {error}. Example: out/{{seed}}.png",
            argument="out",
        ) from error
