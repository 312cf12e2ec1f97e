"""
Whether weights still hold what was written into them: how writes past autograd, which move no counter, are found.

It reads every weight, so it is asked where a base is at stake only: before one that was kept earlier is used again, and when
somebody says that he has written something.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes."""

_flat: Any = torch._C._nn.flatten_dense_tensors  # noqa: SLF001 -- as DistributedDataParallel does

_Lot = tuple[list[int], list[torch.Tensor], list[torch.Tensor]]
"""The places of some pairs, the first tensor of each and the second."""

_NO_LOT: _Lot = ([], [], [])

_TOGETHER = 1 << 19
"""Bytes that are laid together in a CPU's memory: what its caches hold."""

_TOGETHER_ON_DEVICE = 1 << 26
"""The same on other devices, where a call is dearer."""

_OTHERS = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""What a pipeline may have been converted to and back."""

_RARE = 256
"""One number in so many may be its neighbour: products that are arranged otherwise end in the other of two nearest numbers."""


def that_differ(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[bool]:
    """
    Tell which tensors do not hold the same bits as another of their shape and type; one question to a device for all on it.

    Small ones of one type and place are laid together: one look at each costs more than its numbers.

    Example:
        >>> ones = torch.ones(2)
        >>> that_differ([(ones, ones.clone()), (ones, -ones), (ones, ones.half())])
        [False, True, True]
    """
    pairs = list(pairs)
    answers = [None if _alike(a, b) else True for a, b in pairs]
    _compare_at_once(pairs, answers)
    lots = _laid_together(pairs, [place for place, answer in enumerate(answers) if answer is None])
    odd: list[_Lot] = []
    for lot, differs in zip(lots, _unlike(lots), strict=True):
        if differs and len(lot[0]) > 1:
            odd += [([place], [a], [b]) for place, a, b in zip(*lot, strict=True)]
        for place in lot[0]:
            answers[place] = differs
    for (places, *_), differs in zip(odd, _unlike(odd), strict=True):
        answers[places[0]] = differs
    return [bool(answer) for answer in answers]


def _laid_together(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], places: Sequence[int]) -> list[_Lot]:
    """Lay those of some pairs together that are of one type and place, until a lot is full."""
    lots: list[_Lot] = []
    begun: dict[object, tuple[int, _Lot]] = {}
    for place in places:
        a, b = pairs[place]
        kind, added = (a.device, b.device, a.dtype), a.numel() * a.dtype.itemsize
        most = _TOGETHER if a.device.type == "cpu" else _TOGETHER_ON_DEVICE
        size, lot = begun.get(kind, (most, _NO_LOT))
        if size + added > most or a.dtype.itemsize == 1 or lot is _NO_LOT:
            size, lot = 0, ([], [], [])
            lots.append(lot)
        lot[0].append(place)
        lot[1].append(a)
        lot[2].append(b)
        begun[kind] = size + added, lot
    return lots


def _compare_at_once(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], answers: list[bool | None]) -> None:
    """Fill in what one kernel for each GPU can tell; the rest is asked tensor by tensor."""
    alike: dict[torch.device, list[int]] = {}
    for place, (one, other) in enumerate(pairs):
        if answers[place] is None and one.is_cuda and _are_words(one, other):
            alike.setdefault(one.device, []).append(place)
    compare = _differ() if alike else None
    if compare is None:
        return
    for places in alike.values():
        for place, odd in zip(places, compare([pairs[place] for place in places]).tolist(), strict=True):
            answers[place] = bool(odd)


def _are_words(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two tensors lie alike on one device, without gaps, and begin and end at whole words of 8 bytes."""
    return (
        one.device == other.device
        and one.stride() == other.stride()
        and (one.is_contiguous() or (one.ndim == 4 and one.is_contiguous(memory_format=torch.channels_last)))
        and not (one.data_ptr() | other.data_ptr() | one.nbytes) % 8
    )


@cache
def _differ() -> Any:
    """Return the function that launches the kernel, or None where Triton is missing or cannot compile."""
    try:
        from lora_mixer.engines.merged.kernel_compare import differ

        ones = torch.ones(3, 8, device="cuda")
        odd = ones.clone()
        odd[2, 7] = 0
        return differ if differ([(ones, ones.clone()), (ones, odd)]).tolist() == [0, 1] else None
    except Exception:  # noqa: BLE001 -- no compiler, an old driver, another vendor: there is the other way
        return None


def is_as_written(held: torch.Tensor, written: torch.Tensor) -> bool:
    """
    Tell whether a tensor holds what was written, also after changes of its type or device.

    Args:
        held: What is there now.
        written: What was written, computed anew in the type that it had then.

    Example:
        >>> written = torch.tensor([1.0, 0.1])
        >>> is_as_written(written.half(), written), is_as_written(written.half().float(), written), is_as_written(-written, written)
        (True, True, False)
    """
    if held.shape != written.shape:
        return False
    now = written.to(held.device, held.dtype)
    ways = [dtype for dtype in _OTHERS if dtype.itemsize <= held.dtype.itemsize]
    hops = [now, *(written.to(held.device, dtype).to(held.dtype) for dtype in ways)]
    if not all(that_differ((held, hop) for hop in hops)):
        return True
    if held.dtype.itemsize == 1:
        return False
    wide = torch.float64 if held.dtype == torch.float64 else torch.float32
    a, b = held.to(wide), now.to(wide)
    odd = ~((a == b) | (a.isnan() & b.isnan()))
    near = (a - b).abs() <= torch.finfo(held.dtype).eps * torch.maximum(a.abs(), b.abs())
    return bool((~odd | near).all()) and int(odd.sum()) * _RARE <= held.numel()


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


@torch.no_grad()
def _unlike(together: Sequence[_Lot]) -> list[bool]:
    """Tell for each lot whether any of its pairs differ."""
    answers: list[bool] = []
    waiting: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for _, ones, others in together:
        one = ones[0] if len(ones) == 1 else _end_to_end(ones)
        other = (others[0] if len(others) == 1 else _end_to_end(others)).to(
            one.device, non_blocking=one.is_cuda
        )
        a, b = _bits(one, other)
        if one.device.type == "cpu":
            answers.append(not np.array_equal(a.numpy(), b.numpy()))  # four times as fast as torch.equal
        else:
            waiting.setdefault(one.device, []).append((len(answers), (a != b).any()))
            answers.append(True)
    for asked in waiting.values():
        flags = torch.stack([any_other for _, any_other in asked]).tolist()
        for (place, _), differs in zip(asked, flags, strict=True):
            answers[place] = bool(differs)
    return answers


def _end_to_end(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lay tensors together as integers: autocast refuses halves of another type than its own."""
    kind = _BITS[tensors[0].dtype.itemsize]
    laid: torch.Tensor = _flat([each.view(kind) for each in tensors])
    return laid


def _bits(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors as integers: of eight bytes each where that can be, which halves and quarters what is compared."""
    one, other = one.detach(), other.detach()
    eights = one.nbytes % 8 == 0 and all(
        each.is_contiguous() and each.storage_offset() * each.itemsize % 8 == 0 for each in (one, other)
    )
    if eights:
        return one.view(-1).view(torch.int64), other.view(-1).view(torch.int64)
    kind = _BITS[one.dtype.itemsize]
    return one.view(kind), other.view(kind)
