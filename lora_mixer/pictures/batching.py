"""Which requests share a pipeline call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.pictures.request import PictureRequest


def batches(requests: Sequence[PictureRequest], size: int) -> list[list[int]]:
    """
    Group requests of one shape, those with equal mixes side by side, so that weights are rewritten rarely.

    Args:
        requests: With defaults filled in.
        size: The most in one batch.

    Returns:
        Places in ``requests``; groups come in the order of their first request.

    Example:
        >>> from lora_mixer.pictures import PictureRequest
        >>> asked = [PictureRequest("a", mix={"x": 1}), PictureRequest("b"), PictureRequest("c", mix={"x": 1})]
        >>> batches(asked, 2)
        [[0, 2], [1]]
        >>> batches(asked, 1)
        [[0], [2], [1]]
    """
    shapes: dict[object, dict[str, list[int]]] = {}
    for i, request in enumerate(requests):
        shapes.setdefault(request.call_shape, {}).setdefault(request.mix_key, []).append(i)
    groups = []
    for by_mix in shapes.values():
        row = [i for group in by_mix.values() for i in group]
        groups += [row[start : start + size] for start in range(0, len(row), size)]
    return groups
