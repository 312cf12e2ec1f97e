"""Pictures on disk: the names they get, and the text inside that says how they were made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from PIL.Image import Image

FIELDS = ("seed", "index")


class OutputError(LoraMixerError):
    """``--out`` cannot name the pictures."""


@dataclass(frozen=True)
class Settings:
    """What a picture was made with."""

    prompt: str
    negative_prompt: str
    steps: int | None
    guidance_scale: float | None
    model: str
    mix: str
    version: str
    negative_mix: str = ""

    def text(self, seed: int, size: tuple[int, int]) -> str:
        """
        Return the ``parameters`` text, in the form that AUTOMATIC1111 made common and image viewers read.

        Example:
            >>> print(Settings("a castle", "", 20, None, "tiny", "a:0.7, b:1", "0.1.0").text(7, (64, 64)))
            a castle
            Steps: 20, Seed: 7, Size: 64x64, Model: tiny, LoRA mix: "a:0.7, b:1", Version: lora-mixer 0.1.0
        """
        facts = {
            "Steps": self.steps,
            "CFG scale": self.guidance_scale,
            "Seed": seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": self.model,
            "LoRA mix": self.mix or None,
            "Negative LoRA mix": self.negative_mix or None,
            "Version": f"lora-mixer {self.version}",
        }
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(
            ", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None)
        )
        return "\n".join(lines)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text


def picture_paths(template: str, seeds: list[int]) -> list[Path]:
    """
    Return one path for each seed.

    Args:
        template: A ``.png`` path, in which ``{seed}`` and ``{index}`` stand for these, or a folder.
        seeds: The pictures' seeds, in order.

    Raises:
        OutputError: It has other fields, another ending, or one of its folders is a file.

    Example:
        >>> [path.name for path in picture_paths("out/castle.png", [7, 8])]
        ['castle-0.png', 'castle-1.png']
    """
    if template.endswith(("/", "\\")) or Path(template).is_dir():
        template = str(Path(template) / "{seed}.png")
    if not template.lower().endswith(".png"):
        raise OutputError(
            f"--out must be a .png path or a folder (got {template!r}): other formats lose the settings."
        )
    try:
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        unknown = used - set(FIELDS)
        if unknown:
            raise OutputError(
                f"--out knows the fields {{seed}} and {{index}} (got {{{min(unknown)}}} in {template!r}); "
                f"braces that are meant as such are written twice."
            )
        if not used and len(seeds) > 1:
            template = template[: -len(".png")] + "-{index}" + template[-len(".png") :]
        return [Path(template.format(seed=seed, index=index)) for index, seed in enumerate(seeds)]
    except ValueError as error:
        raise OutputError(
            f"--out {template!r} is no path or template: {error}. Example: out/{{seed}}.png"
        ) from error


def save(image: Image, path: Path, text: str) -> None:
    """
    Write a PNG with its ``parameters`` text.

    Raises:
        OutputError: It cannot be written there.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, pnginfo=info)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}. Choose another place with --out.") from error
