"""In which order pictures are made: those with the same adapters and the same mix side by side."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from lora_mixer.batches.expansion import PlannedPicture

Names = tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """
    What a worker gets at once: the pictures of one pipeline call.

    Attributes:
        pictures: The pictures.
        adapters: What they need, sorted.
        failures: How often it failed before.
        losses: How often a worker was lost over it.
    """

    pictures: tuple[PlannedPicture, ...]
    adapters: Names
    failures: int = 0
    losses: int = 0

    def alone(self, **changes: int) -> list[Task]:
        """Return a task for each picture, so that one that cannot be made costs no other."""
        return [
            replace(self, pictures=(picture,), adapters=tuple(sorted(picture.request.adapters)), **changes)
            for picture in self.pictures
        ]


def make_tasks(pictures: Iterable[PlannedPicture], batch_size: int, *, mixed: bool) -> list[Task]:
    """
    Group pictures into tasks.

    Args:
        pictures: What is to be made.
        batch_size: The most in one task.
        mixed: Whether different mixes may share a task.

    Returns:
        The tasks in an order in which adapters are loaded and weights rewritten rarely.

    Example:
        >>> from lora_mixer.batches.expansion import PlannedPicture
        >>> from lora_mixer.pictures import PictureRequest
        >>> asked = [PlannedPicture(i, 0, "0", i, PictureRequest("x", mix=mix), f"{i}.png")
        ...          for i, mix in enumerate(["b:1", "a:1", "b:1"])]
        >>> [(task.adapters, [x.index for x in task.pictures]) for task in make_tasks(asked, 4, mixed=False)]
        [(('a',), [1]), (('b',), [0, 2])]
    """
    rows: dict[tuple[object, ...], list[PlannedPicture]] = {}
    for picture in sorted(pictures, key=_place):
        request = picture.request
        key = request.call_shape if mixed else (*request.call_shape, request.mix_key)
        rows.setdefault(key, []).append(picture)
    tasks = []
    for row in rows.values():
        for start in range(0, len(row), batch_size):
            part = tuple(row[start : start + batch_size])
            tasks.append(Task(part, tuple(sorted({name for x in part for name in x.request.adapters}))))
    return sorted(tasks, key=lambda task: _place(task.pictures[0]))


def _place(picture: PlannedPicture) -> tuple[Names, str, int]:
    request = picture.request
    return (tuple(sorted(request.adapters)), request.mix_key, picture.index)


class TaskQueue:
    """
    Tasks that workers pull: each works through one set of adapters and goes on with what it has in memory.

    Args:
        tasks: The tasks, in order.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Group the tasks by their adapters."""
        self._groups: dict[Names, deque[Task]] = {}
        self._held: dict[int, Names] = {}
        for task in tasks:
            self.put(task)

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def put(self, task: Task) -> None:
        """Add a task behind the others of its adapters."""
        self._groups.setdefault(task.adapters, deque()).append(task)

    def take(self, worker: int, resident: Collection[str]) -> Task | None:
        """
        Return the next task of a worker.

        Args:
            worker: Its number.
            resident: The adapters that it has in memory.
        """
        group = self._choose(worker, resident)
        if group is None:
            return None
        self._held[worker] = group
        task = self._groups[group].popleft()
        if not self._groups[group]:
            del self._groups[group]
        return task

    def peek(self, worker: int, resident: Collection[str]) -> Names:
        """Return the adapters that a worker will most likely need next."""
        return self._choose(worker, resident) or ()

    def leave(self, worker: int) -> None:
        """Let others have what a worker was at."""
        self._held.pop(worker, None)

    def _choose(self, worker: int, resident: Collection[str]) -> Names | None:
        held = self._held.get(worker)
        if held in self._groups:
            return held
        if not self._groups:
            return None
        others = {group for number, group in self._held.items() if number != worker}
        free = [group for group in self._groups if group not in others]
        if not free:  # help where most is left
            return max(self._groups, key=lambda group: len(self._groups[group]))
        present = set(resident)
        # first what needs the fewest reads, then the plan's order; max keeps the first of equals
        return max(free, key=lambda group: -len(set(group) - present))
