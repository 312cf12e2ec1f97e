"""
What is recalled of a picture of each program, as a table in Markdown.

``python -m benchmarks.recall_table > docs/recall.md``. The pictures are those of ``tests/program_pictures.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.picture_metadata import read_picture, recalled_request
from lora_mixer.pictures.emphasis import has_emphasis
from lora_mixer.pictures.samplers import read_sampler
from tests.program_pictures import PICTURES

if TYPE_CHECKING:
    from lora_mixer.pictures import PictureRequest

HEAD = """# Pictures of other programs, made again

`python -m benchmarks.recall_table > docs/recall.md` reads one picture of each program (`tests/program_pictures.py`) and makes a
request of it (`recalled_request`; on the page: the recall of a picture; on the command line: `lora-mixer show`).
"""
COLUMNS = (
    "program",
    "read as",
    "sampler and schedule",
    "emphasis",
    "clip skip",
    "size, steps, guidance, seed",
    "adapters",
    "told as not used",
)


def row(program: str) -> str:
    """Write the row of a program."""
    settings = read_picture(PICTURES[program])
    found = recalled_request(settings)
    request = found.request
    choice = read_sampler(request.sampler, request.schedule)
    sampler = f"{settings.sampler} is `{choice.scheduler}`" + (
        f", {', '.join(choice.words)}" if choice.words else ""
    )
    adapters = ", ".join(
        f"{each.name}: {each.weight:g}"
        + ("" if each.text_weight is None else f" (text {each.text_weight:g})")
        + "".join(f", {kind}" for kind in each.hashes)
        for each in settings.adapters
    )
    numbers = f"{request.width}x{request.height}, {request.steps}, {request.guidance_scale:g}, {request.seed}"
    skip = "none" if request.clip_skip is None else f"{request.clip_skip} (there {request.clip_skip + 1})"
    if program == "InvokeAI" and request.clip_skip is not None:
        skip = f"{request.clip_skip} (there the same)"
    unused = "; ".join(each.place for each in found.unused) or "nothing"
    return f"| {' | '.join((program, settings.dialect, sampler, emphasis(request), skip, numbers, adapters, unused))} |"


def emphasis(request: PictureRequest) -> str:
    """Say how a request's prompts are written."""
    if request.emphasis is not None:
        return f"`{request.emphasis}`: `{request.prompt}`"
    texts = (request.prompt, request.negative_prompt)
    return f"`a1111`: `{request.prompt}`" if any(map(has_emphasis, texts)) else f"none: `{request.prompt}`"


def table() -> str:
    """Write the page."""
    lines = [HEAD, f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}", *map(row, PICTURES)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
