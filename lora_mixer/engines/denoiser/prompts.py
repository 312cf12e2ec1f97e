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
    the first call of an encoder is that of the prompts and the second one that of the negative prompts; a third one is
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
        self._calls: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; a call that runs is none of its."""
        return {**vars(self), "_frame": None, "_calls": {}}

    def restart(self) -> None:
        """Take the next call for prompts again."""
        self._frame = None
        self._calls.clear()

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
        turn = self._calls.get(part, 0)
        self._calls[part] = turn + 1
        if len(known) == 2 and (None in halves or self._images > 1):
            raise _cannot_tell(caller, part, turn)
        if not known:
            known = {self._half_by_turn(caller, part, turn)}
        if len(known) == 2:
            return torch.tensor([int(bool(half)) for half in halves])
        return torch.full((batch,), int(known.pop()))

    @staticmethod
    def _half_by_turn(caller: Caller, part: str, turn: int) -> bool:
        """Tell the half of a call by how many there were; only where the texts do not tell."""
        if caller.flag("do_classifier_free_guidance", "do_true_cfg") is False:
            return False
        for half, front in ((False, "negative_"), (True, "")):  # embeddings that were passed are not read
            given = caller.outermost(f"{front}prompt_embeds")
            if given is not None and caller.outermost(f"{front}prompt") is None:
                return half
        if turn > 1:
            raise _cannot_tell(caller, part, turn)
        return turn == 1


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
            for text in _each(texts[f"{front}{name}"], missing=front)
        ]
        for front in ("", "negative_")
    )
    halves: list[bool | None] = []
    for row in ids.tolist():
        tokens = _bare(row, special)
        positive = any(_is_piece(tokens, whole) for whole in with_prompt)
        negative = any(_is_piece(tokens, whole) for whole in without)
        halves.append(negative if positive != negative else None)
    return halves


def _each(text: Any, *, missing: str) -> Iterable[str]:
    if isinstance(text, str):
        return [text]
    if isinstance(text, list | tuple):
        return [one for one in text if isinstance(one, str)]
    return [""] if missing and text is None else []  # a negative prompt that is not given is an empty one


def _encoded(caller: Caller, tokenizer: Any, text: str) -> Sequence[int]:
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
