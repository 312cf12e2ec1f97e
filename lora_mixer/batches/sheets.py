"""Contact sheets of jobs that ask for one, made of the finished files."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.axes import JobAxis, read_axes
from lora_mixer.batches.expansion import sheet_name
from lora_mixer.batches.manifest import SHEET
from lora_mixer.batches.wildcards import read_wildcards
from lora_mixer.picture_metadata import PictureSettings
from lora_mixer.pictures import Band, contact_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_mixer.batches.checking import CheckedPlan
    from lora_mixer.batches.expansion import PlannedPicture
    from lora_mixer.batches.manifest import Manifest
    from lora_mixer.batches.storage import Storage

_CELLS_AT_MOST = 400
_SIDE = 256


def sheet_names(checked: CheckedPlan) -> list[str]:
    """Return the names of the sheets that a plan asks for."""
    firsts: dict[int, PlannedPicture] = {}
    if any(job.sheet for job in checked.plan.jobs):
        for picture in checked.pictures:
            firsts.setdefault(picture.job, picture)
    return [sheet_name(first) for job, first in firsts.items() if checked.plan.jobs[job].sheet]


def make_sheets(checked: CheckedPlan, storage: Storage, manifest: Manifest) -> Iterator[str]:
    """
    Draw the sheets of a plan whose pictures are all there.

    Args:
        checked: The plan.
        storage: Where its pictures are, and the sheets go.
        manifest: Where they are noted.

    Returns:
        The names of the sheets' files, as they are written.

    Raises:
        SaveError: When one cannot be written.
    """
    wanted = [i for i, job in enumerate(checked.plan.jobs) if job.sheet]
    by_job: dict[int, list[PlannedPicture]] = {i: [] for i in wanted}
    for picture in checked.pictures if wanted else ():
        if picture.job in by_job and len(by_job[picture.job]) < _CELLS_AT_MOST:
            by_job[picture.job].append(picture)
    for job, pictures in by_job.items():
        images = [_small(storage.read(picture.file)) for picture in pictures]
        if not images or any(image is None for image in images):
            continue
        name = sheet_name(pictures[0])
        sheet = contact_sheet([_band(checked, job, pictures, images)])
        manifest.add({"file": name, "status": SHEET}, at_once=True)
        storage.save(name, sheet, PictureSettings(model=checked.plan.options.title), {}, None)
        yield name


def _small(raw: bytes | None) -> Any:
    from PIL import Image

    if raw is None:
        return None
    with Image.open(io.BytesIO(raw)) as image:
        image.thumbnail((_SIDE, _SIDE))
        square = Image.new("RGB", (max(image.size),) * 2, (255, 255, 255))
        square.paste(
            image.convert("RGB"), ((square.width - image.width) // 2, (square.height - image.height) // 2)
        )
        return square.resize((min(_SIDE, square.width),) * 2)


def _band(checked: CheckedPlan, job: int, pictures: Sequence[PlannedPicture], images: Sequence[Any]) -> Band:
    columns, rows = _labels(checked, job, len(pictures))
    width = len(columns)
    if len({image.size for image in images}) > 1:
        images = [image.resize((_SIDE, _SIDE)) for image in images]
    blank = images[0].copy()
    blank.paste((255, 255, 255), (0, 0, *blank.size))
    filled = [*images, *[blank] * (width * len(rows) - len(images))]
    return Band(columns, [(row, filled[i * width : (i + 1) * width]) for i, row in enumerate(rows)])


def _labels(checked: CheckedPlan, job: int, count: int) -> tuple[list[str], list[str]]:
    """Return what stands above and beside: the axes of a grid of one or two, else the number of the picture."""
    plan = checked.plan
    problems = plan.problems()
    axes = read_axes(plan, job, "grid", read_wildcards(plan, problems), problems)
    plain = not plan.jobs[job].zip and plan.jobs[job].repeat == 1
    if plain and len(axes) in (1, 2) and math.prod(len(axis.values) for axis in axes) == count:
        return _texts(axes[-1]), _texts(axes[0]) if len(axes) == 2 else [plan.jobs[job].name or f"{job}"]
    width = min(count, max(1, math.isqrt(count - 1) + 1))
    return [f"+{i}" for i in range(width)], [f"{i}" for i in range(0, count, width)]


def _texts(axis: JobAxis) -> list[str]:
    return [axis.label(value) for value in axis.values]
