"""
Textual inversions (arXiv:2208.01618): vectors that stand for a new word, in files of their own or beside a LoRA.

One word has vectors for one or for several text encoders. Which of a pipeline's encoders they are for, the key says
(``clip_l``, ``clip_g``) or their width does; that is decided where the pipeline is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import InvalidAdapterError, MatchError, NotAnAdapterError
from lora_mixer.problem import Problem, Remark, Remedy, UnusedReason
from lora_mixer.word_keys import WORD_KEY, token_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5", "t5xxl": "t5"}
_LONGEST = 64  # letters of a word
_AT_MOST = 1024  # vectors of a word; prompts of today's models hold 75 to 512


@dataclass(frozen=True, eq=False)
class Embedding:
    """
    One new word.

    Attributes:
        token: The word.
        vectors: Its vectors (n, width) by the encoder that the file names: ``clip_l``, ``clip_g``, ``t5``; the empty
            name where it names none.
        keys: The keys of the file that they are from.
    """

    token: str
    vectors: Mapping[str, torch.Tensor]
    keys: tuple[str, ...]


def bundled(
    tensors: Mapping[str, torch.Tensor], own_name: str
) -> tuple[tuple[Embedding, ...], dict[str, Remark[UnusedReason]]]:
    """
    Find the words in a file that also holds other things.

    Args:
        tensors: The file.
        own_name: The word of vectors whose keys name none: the file's name.

    Returns:
        The words, and the keys of parts that cannot be used, with the reason.
    """
    words: dict[str, dict[str, torch.Tensor]] = {}
    keys: dict[str, list[str]] = {}
    odd: dict[str, Remark[UnusedReason]] = {}
    for key, tensor in tensors.items():
        match = WORD_KEY.match(key)
        if match is None:
            continue
        if match["odd"] is not None:
            odd[key] = _odd(f"a part of a textual inversion that is not known ({match['odd'][:40]})")
            continue
        token = match["token"] or match["angle"] or own_name
        encoder = _ENCODERS.get(match["part"] or "", "")
        if encoder in words.setdefault(token, {}):
            odd[key] = _odd(f"the vectors of {token!r} stand twice in the file")
            continue
        words[token][encoder] = tensor
        keys.setdefault(token, []).append(key)
    return tuple(Embedding(t, table, tuple(keys[t])) for t, table in words.items() if table), odd


def _odd(why: str) -> Remark[UnusedReason]:
    return Remark(why, UnusedReason.ODD_TEXTUAL_INVERSION)


def alone(content: Any, own_name: str, label: str) -> tuple[Embedding, ...]:
    """
    Read a file that holds textual inversions only.

    Args:
        content: The file: tensors by key, or the nested dict that A1111 pickles.
        own_name: The word where the file has none.
        label: What to call it in messages.

    Raises:
        NotAnAdapterError: When it is not a textual inversion.
    """
    if isinstance(content, dict) and isinstance(content.get("string_to_param"), dict):
        name, table = content.get("name"), content["string_to_param"]
        if len(table) == 1 and torch.is_tensor(first := next(iter(table.values()))):
            word = name if isinstance(name, str) and name.strip() else own_name
            return (Embedding(word, {"": first.detach()}, ("string_to_param",)),)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in content.items()
    ):
        raise NotAnAdapterError("no textual inversion: expected vectors by word", file=label)
    words, odd = bundled(content, own_name)
    rest = {key: v for key, v in content.items() if token_of(key) is None}
    if rest and rest.keys() <= _ENCODERS.keys():
        vectors = {_ENCODERS[key]: value for key, value in rest.items()}
        words, rest = (*words, Embedding(own_name, vectors, tuple(rest))), {}
    if rest and not words and all(value.ndim <= 2 for value in rest.values()):
        words = tuple(Embedding(key, {"": value}, (key,)) for key, value in rest.items())
        rest = {}
    if rest or odd or not words:
        shown = ", ".join(list(rest or odd or content)[:5]) or "no keys at all"
        raise NotAnAdapterError(
            f"no textual inversion: expected vectors by word (got {shown}).",
            file=label,
            remedy=Remedy(
                "A LoRA with words in it goes to load_lora_weights(..., load_embeddings=True)",
                "A LoRA with words in it goes to --lora, with --load-embeddings",
            ),
        )
    return words


def named(
    embeddings: tuple[Embedding, ...], tokens: str | Sequence[str] | None, label: str
) -> tuple[Embedding, ...]:
    """
    Return the words of a file with the names that a caller has for them.

    Args:
        embeddings: The file's words.
        tokens: None leaves them; one name is that of the only word; several are those of the words in their order, or of the
            rows of the only word, one each, as pivotal tuning has them (``["<s0>", "<s1>"]``).
        label: What to call the file in messages.

    Raises:
        MatchError: When there are not as many.
    """
    if tokens is None:
        return embeddings
    names: tuple[object, ...] = (tokens,) if isinstance(tokens, str) else tuple(tokens)
    words = [name for name in names if isinstance(name, str)]
    if not names or len(set(words)) != len(names):
        raise MatchError(
            f"token must be a word, or different words, got {names[:5]!r}", file=label, argument="token"
        )
    if len(words) == len(embeddings):
        return tuple(replace(word, token=name) for word, name in zip(embeddings, words, strict=True))
    if len(embeddings) > 1:
        raise MatchError(
            f"holds {len(embeddings)} words ({', '.join(e.token for e in embeddings[:5])}), and token={tokens!r} names "
            f"{len(names)}; leave it out, or name each",
            file=label,
            argument="token",
        )
    (word,) = embeddings
    rows = {part: vectors.shape[0] if vectors.ndim > 1 else 1 for part, vectors in word.vectors.items()}
    if set(rows.values()) != {len(names)}:
        told = ", ".join(f"{count} in {part or 'the file'}" for part, count in rows.items())
        raise MatchError(
            f"token names {len(names)} words, and there are vectors for {told}",
            file=label,
            argument="token",
            problems=[Problem(part or "", f"has vectors for {count}") for part, count in rows.items()],
        )
    return tuple(
        replace(
            word,
            token=name,
            vectors={part: vectors[number : number + 1] for part, vectors in word.vectors.items()},
        )
        for number, name in enumerate(words)
    )


def checked(embedding: Embedding, label: str, *, allow_nonfinite: bool = False) -> Embedding:
    """
    Return the word with vectors of shape (n, width).

    Raises:
        InvalidAdapterError: When the word cannot stand in a prompt, or the vectors are none.
    """
    token, vectors, problems = embedding.token, {}, []
    remedy: Remedy | None = None
    if not token.isprintable() or not token or len(token) > _LONGEST or any(c.isspace() for c in token):
        problems.append(f"a word of 1 to {_LONGEST} printable letters without spaces (got {token[:80]!r})")
    for encoder, tensor in embedding.vectors.items():
        rows = tensor.reshape(1, -1) if tensor.ndim == 1 else tensor
        if (
            rows.ndim != 2
            or not 0 < rows.shape[0] <= _AT_MOST
            or not rows.shape[1]
            or not rows.is_floating_point()
        ):
            problems.append(
                f"1 to {_AT_MOST} vectors for {encoder or 'an encoder'} "
                f"(got shape {tuple(tensor.shape)} of {tensor.dtype})"
            )
        elif not allow_nonfinite and not torch.isfinite(rows.float()).all():
            problems.append("finite numbers (got NaN or Inf)")
            remedy = Remedy("allow_nonfinite=True loads them all the same")
        vectors[encoder] = rows
    if problems:
        raise InvalidAdapterError(
            f"textual inversion {token[:80]!r}: expected {'; '.join(problems)}",
            file=label,
            problems=[Problem(token[:80], f"expected {text}") for text in problems],
            remedy=remedy,
        )
    return Embedding(token, vectors, embedding.keys)
