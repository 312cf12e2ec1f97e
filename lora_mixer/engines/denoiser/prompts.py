"""Which mix each text of a text encoder's batch is read with: that of its prompt, or that of the half without the prompt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.denoiser.caller import calling
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType

    from lora_mixer.engines.denoiser.caller import Caller

_NAMES = ("prompt", "prompt_2", "prompt_3", "prompt_4")


class Prompts:
    """
    Which mix each prompt of a text encoder's batch has.

    Where the half without the prompt has a mix of its own, the texts tell which half they are of: those that the pipeline
    was called with are compared with those that are read. Where both are the same, or written over before they are read,
    an encoder has to be called once for each half, the prompts first; any other number of calls, and two of one half, are
    refused.

    Args:
        images: How many mixes there are.
        negatives: How many of the halves without the prompt.
    """

    def __init__(self, images: int, negatives: int) -> None:
        """Begin before the first call."""
        self._images = images
        self._negatives = negatives
        self._frame: FrameType | None = None  # of the call that is counted: no later one can be taken for it
        self._read: dict[str, list[set[bool]]] = {}  # the halves of each call of an encoder
        self._guessed: set[str] = set()  # the encoders of which a call was told by the other one

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; a call that runs is none of its."""
        return {**vars(self), "_frame": None, "_read": {}, "_guessed": set()}

    def restart(self) -> None:
        """Take the next call for prompts again."""
        self._frame = None
        self._read.clear()
        self._guessed.clear()

    def before(
        self, part: str, show: Callable[[torch.Tensor], None]
    ) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        """
        Make what is called before a text encoder.

        Args:
            part: The text encoder's name.
            show: Takes the mix of each text.
        """
        return partial(self._call, part, show)

    def _call(
        self,
        part: str,
        show: Callable[[torch.Tensor], None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        ids = ids if isinstance(ids, torch.Tensor) else None
        batch = self._images if ids is None else len(ids)
        if self._images > 1 and batch != self._images:
            raise MixError(
                f"{self._images} mixes, but {part} was called with {batch} texts: pass a list of {self._images} prompts, "
                "one for each mix; texts that are read ahead need the mix of each of them, applied one by one",
                component=part,
            )
        owners = torch.arange(batch) % self._images
        if self._negatives:
            owners = owners + self._images * self._are_without(part, ids, batch)
        show(owners)

    def _are_without(self, part: str, ids: torch.Tensor | None, batch: int) -> torch.Tensor:
        """Tell which texts of a batch are of the half without the prompt: ones, else zeros."""
        caller = calling(part)
        if caller.pipe is None:
            raise MixError(
                f"{part} was called by itself, and negative= gives the prompt and the negative prompt mixes of their own: "
                "it cannot be told which of them this text is. Read each under its own mix, with applied(mix), and pass "
                "the pipeline prompt_embeds and negative_prompt_embeds",
                component=part,
            )
        if caller.frame is not self._frame:
            self.restart()
            self._frame = caller.frame
        halves = _halves_of_texts(caller, part, ids)
        known = {half for half in halves if half is not None}
        read = self._read.setdefault(part, [])
        if len(known) == 2 and (None in halves or self._images > 1):
            raise _cannot_tell(caller, part, len(read))
        sure = None if known else _half_without_texts(caller)
        if sure is None and None in halves and _has_more_than_prompts(caller, batch):
            raise _cannot_tell(caller, part, len(read))  # both halves, or pieces of one
        if not known and sure is None:
            self._guessed.add(part)
        known = known or {read == [{False}] if sure is None else sure}
        read.append(known)
        # two calls of one half are pieces of a text, of which the one that was guessed may be the other's
        if part in self._guessed and (len(read) > 2 or (len(read) == 2 and len(read[0] ^ read[1]) != 2)):
            raise _cannot_tell(caller, part, len(read) - 1)
        if len(known) == 2:
            return torch.tensor([int(bool(half)) for half in halves])
        return torch.full((batch,), int(known.copy().pop()))


def _half_without_texts(caller: Caller) -> bool | None:
    """Tell the half of a call whose texts do not tell it, where only one can be read; else None."""
    if caller.flag("do_classifier_free_guidance", "do_true_cfg") is False:
        return False
    for half, front in ((False, "negative_"), (True, "")):  # embeddings that were passed are not read
        given = caller.outermost(f"{front}prompt_embeds")
        if given is not None and caller.outermost(f"{front}prompt") is None:
            return half
    return None


def _has_more_than_prompts(caller: Caller, batch: int) -> bool:
    """Tell whether a batch has more texts than there are prompts."""
    prompt = caller.outermost("prompt")
    return prompt is not None and batch > (len(prompt) if isinstance(prompt, list | tuple) else 1)


def _cannot_tell(caller: Caller, part: str, turn: int) -> MixError:
    return MixError(
        f"{type(caller.pipe).__name__} called {part} {turn + 1} times, and it cannot be told which of the texts are negative "
        "prompts: read the prompt under applied(mix) and the negative prompt under applied(negative), and pass "
        "prompt_embeds and negative_prompt_embeds",
        component=part,
    )


def _texts(caller: Caller) -> dict[str, Any]:
    """Return the prompts and negative prompts that the outermost method was called with."""
    names = [*_NAMES, *(f"negative_{name}" for name in _NAMES)]
    return {name: caller.outermost(name) for name in names}


def _halves_of_texts(caller: Caller, part: str, ids: torch.Tensor | None) -> list[bool | None]:
    """Tell for each row of token ids whether it is a piece of a negative prompt only (True) or of a prompt only (False)."""
    number = part.removeprefix("text_encoder")
    tokenizer = getattr(caller.pipe, f"tokenizer{number}", None)
    if ids is None or ids.ndim != 2 or not callable(tokenizer):
        return [None] * (1 if ids is None else len(ids))
    special = set(getattr(tokenizer, "all_special_ids", ()))
    texts = _texts(caller)
    with_prompt, without = (
        [
            _bare(_encoded(caller, tokenizer, text), special)
            for name in _NAMES
            for text in _each(texts[f"{front}{name}"])
        ]
        for front in ("", "negative_")
    )
    without = without or [[]]  # a negative prompt that is not given is an empty one
    halves: list[bool | None] = []
    for row in ids.tolist():
        tokens = _bare(row, special)
        halves.append(_half_of_text(tokens, with_prompt, without))
    return halves


def _half_of_text(
    tokens: list[int], with_prompt: Sequence[list[int]], without: Sequence[list[int]]
) -> bool | None:
    """Tell the half by the closest way in which tokens are of a text of one; None where they are of both, or of none."""
    for is_of in (_is_piece, _is_around, _is_shortened):
        positive = any(is_of(tokens, whole) for whole in with_prompt)
        negative = any(is_of(tokens, whole) for whole in without)
        if positive or negative:
            return negative if positive != negative else None
    return None


def _each(text: Any) -> Iterable[str]:
    if isinstance(text, str):
        return [text]
    return [one for one in text if isinstance(one, str)] if isinstance(text, list | tuple) else []


def _encoded(caller: Caller, tokenizer: Any, text: str) -> list[int]:
    convert = getattr(caller.pipe, "maybe_convert_prompt", None)  # words of several vectors
    if callable(convert):
        text = convert(text, tokenizer)
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def _bare(ids: Sequence[int], special: set[int]) -> list[int]:
    return [token for token in ids if token not in special]


def _is_piece(piece: list[int], whole: list[int]) -> bool:
    """Tell whether tokens stand in a text one after the other; no tokens are a piece of an empty text only."""
    if not piece or not whole:
        return not piece and not whole
    return any(whole[start : start + len(piece)] == piece for start in range(len(whole) - len(piece) + 1))


def _is_around(row: list[int], whole: list[int]) -> bool:
    """Tell whether a text stands in what is read, as it does in a template."""
    return bool(whole) and _is_piece(whole, row)


def _is_shortened(piece: list[int], whole: list[int]) -> bool:
    """Tell whether tokens stand in a text in their order, as they do in one whose brackets and weights are not read."""
    rest = iter(whole)
    return bool(piece) and all(token in rest for token in piece)
