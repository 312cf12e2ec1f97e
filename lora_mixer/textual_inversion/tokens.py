"""
New words on a pipeline: tokenizers that know them and embeddings that answer for them, and both as before at any time.

The embedding's weight stays as it is: a weight cannot grow in place, and another one would be lost to kept bases,
optimisers and compiled graphs. Two hooks answer for the new ids instead. A tokenizer works on a copy of its insides
while it knows words, and gets its own insides back afterwards.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.engines.hooks import forget_removed, hook_input, hook_output
from lora_mixer.engines.pipeline_ref import PipelineRef
from lora_mixer.errors import MatchError, PipelineStateError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_mixer.textual_inversion.files import Embedding

_COMPONENTS = {
    "clip_l": ("text_encoder",),
    "clip_g": ("text_encoder_2", "text_encoder"),
    "t5": ("text_encoder_3", "text_encoder_2", "text_encoder"),
}


@dataclass(frozen=True, eq=False)
class Token:
    """
    A word as one text encoder gets it.

    Attributes:
        token: The word.
        component: The text encoder's name in the pipeline.
        vectors: (n, width): n tokens, ``token``, ``token_1``, ..., as diffusers spells words of several vectors.
    """

    token: str
    component: str
    vectors: torch.Tensor

    @property
    def pieces(self) -> tuple[str, ...]:
        """The tokens that the word becomes."""
        return (self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors))))


class _Rows:
    """Hooks on an embedding that answer for the ids from ``start`` on with vectors of their own."""

    def __init__(self, start: int, vectors: torch.Tensor) -> None:
        self.start, self.vectors = start, vectors
        self._placed: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._seen = threading.local()
        self._traced: list[torch.Tensor] = []  # the same while code is compiled, which knows no threads

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the model needs; what another thread is looking at is not that."""
        return {"start": self.start, "vectors": self.vectors}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _mine(self, ids: torch.Tensor) -> torch.Tensor:
        return (ids >= self.start) & (ids < self.start + len(self.vectors))

    def before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note the ids, and let the embedding look up an id that it has in place of the new ones."""
        ids = args[0] if args else kwargs["input"]
        if torch.compiler.is_compiling():
            self._traced.append(ids)
        else:
            self._seen.ids = ids
        known = ids.masked_fill(self._mine(ids), 0)
        return ((known, *args[1:]), kwargs) if args else (args, {**kwargs, "input": known})

    def after(self, _: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Put the vectors where the new ids stand."""
        ids = self._traced.pop() if torch.compiler.is_compiling() else self._seen.ids
        vectors = self._at(output)  # (n, width)
        rows = vectors[(ids - self.start).clamp(0, len(vectors) - 1)]  # (b, tokens, width)
        return torch.where(self._mine(ids).unsqueeze(-1), rows, output)

    def _at(self, output: torch.Tensor) -> torch.Tensor:
        place = (output.device, output.dtype)
        if torch.compiler.is_compiling():  # a cache is Python's, and would be in the graph as it was then
            return self.vectors.to(*place)
        if place not in self._placed:
            self._placed[place] = self.vectors.to(*place)
        return self._placed[place]


class _Taught:
    """A tokenizer and an embedding that know words from :meth:`teach` until :meth:`forget`."""

    def __init__(self, tokenizer: Any, encoder: nn.Module, words: Sequence[Token]) -> None:
        self.tokenizer, self.component = tokenizer, words[0].component
        self.embedding = input_embedding(encoder)
        self._words = words
        self._own: dict[str, Any] = dict(vars(tokenizer))
        self._left: dict[str, Any] = {}
        self._done = False
        self._size = len(tokenizer)

    def teach(self) -> None:
        """Let the tokenizer know the words and the embedding answer for them; what fails half-way is for forget."""
        self._left = vars(copy.deepcopy(self.tokenizer))
        vars(self.tokenizer).update(self._left)
        start = self._add(self._words)
        rows = _Rows(start, torch.cat([word.vectors for word in self._words]))  # (all vectors, width)
        hook_input(self.embedding, rows.before)
        hook_output(self.embedding, rows.after)
        self._done = True

    def _add(self, words: Sequence[Token]) -> int:
        pieces = [piece for word in words for piece in word.pieces]
        self.tokenizer.add_tokens(pieces)
        ids = [self.tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
        if ids != list(range(ids[0], ids[0] + len(ids))):
            raise PipelineStateError(
                f"{self.component}: its tokenizer ({type(self.tokenizer).__name__}) gives new words the ids {ids[:10]}, "
                "expected consecutive ones; load the pipeline with its own tokenizer",
                component=self.component,
            )
        self._size, self._left = len(self.tokenizer), dict(vars(self.tokenizer))
        return int(ids[0])

    def check(self) -> None:
        """Raise where something else has taught the tokenizer since: its words would be lost without a word."""
        now = len(self.tokenizer)
        if now != self._size:
            raise PipelineStateError(
                f"{self.component}: its tokenizer had {self._size} words when textual inversions were loaded and has "
                f"{now} now; take back what was changed since (such as pipe.unload_textual_inversion) first",
                component=self.component,
            )

    def forget(self) -> None:
        """Take the hooks off and give the tokenizer its own insides back; done twice it does no harm."""
        module = self.embedding
        for hooks, with_kwargs in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),  # noqa: SLF001
            (module._forward_hooks, module._forward_hooks_with_kwargs),  # noqa: SLF001
        ):
            for number in [
                n for n, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Rows)
            ]:
                del hooks[number]
                with_kwargs.pop(number, None)
        forget_removed(module)
        now, left = vars(self.tokenizer), self._left
        if not self._done and left:
            now.update(self._own)
            left = {name: value for name, value in now.items() if name not in self._own}
        for name in list(now):
            if (
                name in left and now[name] is left[name]
            ):  # what was set since, such as a side to pad on, stays
                if name in self._own:
                    now[name] = self._own[name]
                else:
                    del now[name]


@dataclass(frozen=True)
class TokenRecord:
    """What a pipeline's words were at one time."""

    held: Mapping[str | None, tuple[Token, ...]]
    shown: bool


class TokenSet:
    """
    The words on one pipeline, by owner: an adapter's name, or None for those loaded by themselves.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = PipelineRef(pipe)
        self._held: Mapping[str | None, tuple[Token, ...]] = {}
        self._taught: list[_Taught] = []
        self._shown = True
        self._changing = False

    @property
    def held(self) -> Mapping[str | None, tuple[Token, ...]]:
        """The words by owner, in the order in which they came."""
        return self._held

    @property
    def names(self) -> tuple[str, ...]:
        """All words, each once."""
        return tuple(dict.fromkeys(word.token for words in self._held.values() for word in words))

    @property
    def components(self) -> set[str]:
        """The text encoders that words are for."""
        return {word.component for words in self._held.values() for word in words}

    def fit(self, embeddings: Sequence[Embedding], owner: str | None, label: str) -> tuple[Token, ...]:
        """
        Find the encoders that embeddings are for; nothing is changed.

        Args:
            embeddings: Checked embeddings.
            owner: Whose they will be; what that owner holds now makes room for them.
            label: What to call the file in messages.

        Raises:
            MatchError: With every word that fits no encoder or that the tokenizer knows already.
        """
        encoders = self._encoders()
        words: list[Token] = []
        problems: list[Problem] = []
        taken = {
            (w.component, p)
            for key, held in self._held.items()
            if key != owner
            for w in held
            for p in w.pieces
        }
        for embedding in embeddings:
            for kind, vectors in embedding.vectors.items():
                component = _component(kind, vectors.shape[1], encoders)
                if component is None:
                    widths = ", ".join(f"{n} {_width(e)}" for n, (_, e) in encoders.items()) or "none at all"
                    problem = (
                        f"{kind or 'its encoder'} of width {vectors.shape[1]} is not in this pipeline; "
                        f"text encoders with a tokenizer are: {widths}"
                    )
                    problems.append(Problem(embedding.token, problem))
                    continue
                word = Token(embedding.token, component, vectors.detach().clone())
                known = self._vocabulary(component, encoders[component][0])
                odd = [p for p in word.pieces if p in known or (component, p) in taken]
                if odd:
                    problem = f"{component}'s tokenizer knows this already; choose another word"
                    problems.append(Problem(", ".join(odd[:5]), problem))
                taken |= {(component, piece) for piece in word.pieces}
                words.append(word)
        if problems:
            listed = "\n  ".join(map(str, problems))
            raise MatchError(
                f"{len(problems)} textual inversions do not fit:\n  {listed}", file=label, problems=problems
            )
        return tuple(words)

    def record(self) -> TokenRecord:
        """Note what is held and shown, for :meth:`roll_back`."""
        return TokenRecord(self._held, self._shown)

    def roll_back(self, record: TokenRecord) -> None:
        """Teach again what was recorded, whatever state a change was left in."""
        if (self._held, self._shown) == (record.held, record.shown) and not self._changing:
            return
        self._teach(record.held if record.shown else {})
        self._held, self._shown, self._changing = record.held, record.shown, False

    def move_to(self, pipe: Any) -> None:
        """Belong to another pipeline that has the same parts."""
        self._pipe = PipelineRef(pipe)

    @property
    def is_behind(self) -> bool:
        """Whether other tokenizers or embeddings stand in the place of those that know words."""
        encoders = self._encoders() if self._taught else {}
        for taught in self._taught:
            tokenizer, encoder = encoders.get(taught.component, (None, None))
            if encoder is not None and (
                tokenizer is not taught.tokenizer or input_embedding(encoder) is not taught.embedding
            ):
                return True
        return False

    def follow(self) -> None:
        """Teach the tokenizers and embeddings that are there now, where others stand in the place of those that know."""
        if self.is_behind:
            self._changing = True
            self._teach(self._held if self._shown else {})
            self._changing = False

    def drop_all(self) -> None:
        """Let the pipeline know no word any more; what is held can be shown again."""
        while self._taught:
            self._taught[-1].forget()
            self._taught.pop()
        self._shown, self._changing = False, False

    def change(
        self,
        put: Mapping[str | None, Sequence[Token]] | None = None,
        *,
        drop: Iterable[str | None] = (),
        shown: bool | None = None,
    ) -> None:
        """
        Change what is held; where that fails half-way, :meth:`roll_back` is for the caller.

        Args:
            put: Owners and the words that each holds from now on, and no others.
            drop: Owners that hold none any more.
            shown: Whether the pipeline knows the words; None leaves that as it is.
        """
        gone = set(drop)
        held = {owner: words for owner, words in self._held.items() if owner not in gone}
        held.update({owner: tuple(words) for owner, words in (put or {}).items()})
        held = {owner: words for owner, words in held.items() if words}
        shown = self._shown if shown is None else shown
        if held == self._held and shown == self._shown:
            return
        for taught in self._taught:
            taught.check()
        self._changing = True
        self._teach(held if shown else {})
        self._held, self._shown, self._changing = held, shown, False

    def _teach(self, held: Mapping[str | None, tuple[Token, ...]]) -> None:
        while self._taught:
            self._taught[-1].forget()
            self._taught.pop()
        lessons: dict[str, list[Token]] = {}
        for words in held.values():
            for word in words:
                lessons.setdefault(word.component, []).append(word)
        encoders = self._encoders() if lessons else {}
        for component, lesson in lessons.items():
            if component not in encoders:
                raise PipelineStateError(
                    f"{component} or its tokenizer is gone from the pipeline, and the words "
                    f"{', '.join(w.token for w in lesson)} are for it; put it back, or unload them",
                    component=component,
                )
            self._taught.append(
                _Taught(*encoders[component], lesson)
            )  # before it teaches: so it is forgotten, too
            self._taught[-1].teach()

    def _encoders(self) -> dict[str, tuple[Any, nn.Module]]:
        """Return (tokenizer, encoder) of each text encoder that has a tokenizer."""
        table = getattr(self._pipe.pipe, "components", None) or {}
        encoders = {}
        for number in ("", "_2", "_3"):
            tokenizer, encoder = table.get(f"tokenizer{number}"), table.get(f"text_encoder{number}")
            if isinstance(encoder, nn.Module) and hasattr(tokenizer, "add_tokens"):
                encoders[f"text_encoder{number}"] = (tokenizer, encoder)
        return encoders

    def _vocabulary(self, component: str, tokenizer: Any) -> Mapping[str, int]:
        """Return the tokenizer's own words, without those that are held here."""
        added = {
            p for words in self._held.values() for w in words if w.component == component for p in w.pieces
        }
        known: dict[str, int] = tokenizer.get_vocab()
        return {word: number for word, number in known.items() if word not in added} if added else known


def input_embedding(encoder: nn.Module) -> nn.Module:
    """Return the module that turns token ids into vectors."""
    encoder = getattr(encoder, "_orig_mod", encoder)
    # a wrapper of another layout of module names has no such method, but the model inside has
    for module in encoder.modules():
        get: Any = getattr(module, "get_input_embeddings", None)
        if get is not None:
            embedding: nn.Module = get()
            return embedding
    raise PipelineStateError(f"{type(encoder).__name__} has no input embeddings, so it cannot learn words")


def _width(encoder: nn.Module) -> int:
    return int(input_embedding(encoder).weight.shape[1])  # type: ignore[index]


def _component(kind: str, width: int, encoders: Mapping[str, tuple[Any, nn.Module]]) -> str | None:
    names = _COMPONENTS.get(kind, tuple(encoders))
    return next((name for name in names if name in encoders and _width(encoders[name][1]) == width), None)
