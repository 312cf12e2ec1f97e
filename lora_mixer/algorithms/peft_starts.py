"""
How the pairs of files may have started: what ``init_lora_weights`` of PEFT's configurations says, a row for each name.

How pairs are started anew stands in ``fresh/starts``, by the same names. Headers are read by these rows, so nothing here
imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeftStart:
    """
    One start, as files have it.

    Attributes:
        name: What ``init_lora_weights`` calls it; with numbers behind it where ``counted``.
        refused: Why files with it cannot be applied, where that is so: the base is another one after them, in a way that they do not tell.
        from_base: Whether training took a part of the base away, which ``algorithms/started.py`` works out again.
        without: Fields of configurations that do not go together with it.
        counted: Whether a number follows the name.
    """

    name: str
    refused: str = ""
    from_base: bool = False
    without: tuple[str, ...] = ()
    counted: bool = False


_ROWS = (
    PeftStart("gaussian"),
    PeftStart("pissa", from_base=True, without=("use_dora", "target_parameters")),
    PeftStart("olora", from_base=True, without=("use_dora", "target_parameters", "fan_in_fan_out")),
    PeftStart("eva"),
    PeftStart("orthogonal"),
    PeftStart("mica"),
    PeftStart(
        "pissa_niter",
        "pairs that started from a randomised SVD of the base (PiSSA), which cannot be worked out again",
        counted=True,
    ),
    PeftStart(
        "corda",
        "pairs that started from a part of the base chosen by data (CorDA), which the file does not hold",
    ),
    PeftStart("lora_ga", "pairs that started from gradients (LoRA-GA), which the file does not hold"),
    PeftStart("loftq", "pairs for a base that LoftQ quantised, which the file does not hold"),
)

PEFT_STARTS: dict[str, PeftStart] = {row.name: row for row in _ROWS}
"""Every start that PEFT has a name for; ``True`` and ``False`` need none."""


def peft_start(value: object) -> PeftStart | None:
    """
    Return the start that ``init_lora_weights`` names; None where it is no text, or no known one.

    Example:
        >>> peft_start("pissa_niter_16").name, peft_start("olora").from_base, peft_start(True)
        ('pissa_niter', True, None)
    """
    if not isinstance(value, str):
        return None
    counted = (row for row in PEFT_STARTS.values() if row.counted and value.startswith(row.name))
    return PEFT_STARTS.get(value) or next(counted, None)


def is_from_base(value: object) -> bool:
    """Say whether ``init_lora_weights`` names a start that took a part of the base."""
    start = peft_start(value)
    return start is not None and start.from_base
