"""Every format that adapters are written in; a new one is a file beside this one and a row here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.writing.formats.comfyui import COMFYUI
from lora_mixer.writing.formats.diffusers import DIFFUSERS
from lora_mixer.writing.formats.kohya import KOHYA
from lora_mixer.writing.formats.peft import PEFT

if TYPE_CHECKING:
    from lora_mixer.writing.formats.format import OutputFormat

FORMATS: dict[str, OutputFormat] = {row.name: row for row in (DIFFUSERS, KOHYA, COMFYUI, PEFT)}
"""By name; checks, help, the command's choices and the page's list are these."""
