r"""
Emphasis as people write it: AUTOMATIC1111's grammar, which most shared prompts are in.

    (word)        1.1 times as strong, each pair of brackets again       [word]    divided by 1.1
    (word:1.3)    1.3 times                                              \( \[     the bracket itself
    BREAK         what follows begins a new chunk of 75 tokens

``AND``, prompt editing (``[a:b:0.5]``) and alternation (``[a|b]``) steer the denoiser there, which pipelines of diffusers do not:
they are refused by name. Pure text; nothing is encoded here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lora_mixer.errors import PictureError

STEP = 1.1
"""What a pair of brackets multiplies by."""
_DEPTH_AT_MOST = 50
_WEIGHT_AT_MOST = 100.0
_TOKEN = re.compile(r"\\[()\[\]\\]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[()\[\]]|[^\\()\[\]:]+|\\|:")
_MARKS = re.compile(r"(?<!\\)[(\[]|\bBREAK\b")
_BREAK = re.compile(
    r"\bBREAK\b"
)  # without the spaces around it: a long run of them would be gone through again at each
_AND = re.compile(r"(?:^|\s)AND(?:\s|$)")
_EDITING = re.compile(r"\[[^\[\]()]*:[^\[\]()]*:?\s*[\d.]+\s*\]|\[[^\[\]]*\|[^\[\]]*\]")


@dataclass(frozen=True)
class Fragment:
    """Text and how strong it is."""

    text: str
    weight: float = 1.0


def has_emphasis(prompt: str) -> bool:
    r"""
    Tell whether a prompt is written with emphasis.

    Example:
        >>> has_emphasis("a (red:1.2) castle"), has_emphasis(r"a castle \(painting\)"), has_emphasis("a castle")
        (True, False, False)
    """
    return _MARKS.search(prompt) is not None


def parse_emphasis(prompt: str) -> list[list[Fragment]]:
    """
    Take a prompt apart.

    Args:
        prompt: As it was written.

    Returns:
        The parts between ``BREAK``, each as fragments of one weight; neighbours of equal weight are one.

    Raises:
        PictureError: When a bracket is not closed, a weight cannot be, or the prompt has what is refused by name.

    Example:
        >>> parse_emphasis("a (red:1.5) castle")
        [[Fragment(text='a ', weight=1.0), Fragment(text='red', weight=1.5), Fragment(text=' castle', weight=1.0)]]
    """
    if _AND.search(prompt):
        raise PictureError(
            "AND joins several predictions elsewhere, which pipelines of diffusers do not; "
            "write BREAK, or 'and' in small letters",
            field="prompt",
        )
    if (editing := _EDITING.search(prompt)) is not None:
        raise PictureError(
            f"{editing[0][:60]!r} changes the prompt between steps elsewhere (editing, alternation), which is not "
            "supported; a mix can do so by its schedule",
            field="prompt",
        )
    parts = _BREAK.split(prompt)
    inner = [text.strip() for text in parts[1:-1]]
    trimmed = [parts[0].rstrip(), *inner, parts[-1].lstrip()] if len(parts) > 1 else parts
    return [_part(text) for text in trimmed if text.strip()] or [[Fragment("")]]


def _part(text: str) -> list[Fragment]:
    pieces: list[list[object]] = []  # text and weight
    opened: dict[str, list[tuple[int, int]]] = {
        "(": [],
        "[": [],
    }  # the piece where each begins, its place in the text
    for match in _TOKEN.finditer(text):
        sign = match[0]
        closed = _closed(sign, opened)
        if closed is not None:
            start, factor = closed
            for piece in pieces[start:]:
                piece[1] = float(str(piece[1])) * factor
        elif sign in opened:
            opened[sign].append((len(pieces), match.start()))
            if sum(map(len, opened.values())) > _DEPTH_AT_MOST:
                raise PictureError(f"brackets are nested more than {_DEPTH_AT_MOST} times", field="prompt")
        else:  # a closing bracket that nothing opened is a sign like others
            pieces.append([sign[1] if sign[0] == "\\" and len(sign) == 2 else sign, 1.0])
    left = [place for places in opened.values() for _, place in places]
    if left:
        at = min(left)
        raise PictureError(
            f"the bracket at {text[at : at + 30]!r} is not closed; close it, write \\{text[at]} for the sign "
            "itself, or turn emphasis off (emphasis: none)",
            field="prompt",
        )
    return _joined(pieces)


def _closed(sign: str, opened: dict[str, list[tuple[int, int]]]) -> tuple[int, float] | None:
    """Say from which piece on a closing sign counts, and by how much; None for other signs."""
    if sign == "]" and opened["["]:
        return opened["["].pop()[0], 1 / STEP
    if sign == ")" and opened["("]:
        return opened["("].pop()[0], STEP
    if sign[0] == ":" and len(sign) > 1 and opened["("]:
        return opened["("].pop()[0], _weight(sign)
    return None


def _weight(sign: str) -> float:
    weight = float(sign[1:-1])
    if not math.isfinite(weight) or not 0 <= weight <= _WEIGHT_AT_MOST:
        raise PictureError(
            f"a weight goes from 0 to {_WEIGHT_AT_MOST:g}, got {sign[1:-1].strip()}", field="prompt"
        )
    return weight


def _joined(pieces: list[list[object]]) -> list[Fragment]:
    joined: list[Fragment] = []
    for text, weight in pieces:
        number = float(str(weight))
        if joined and joined[-1].weight == number:
            joined[-1] = Fragment(joined[-1].text + str(text), number)
        else:
            joined.append(Fragment(str(text), number))
    return joined or [Fragment("")]
