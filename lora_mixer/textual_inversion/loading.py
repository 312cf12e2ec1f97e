"""Which textual inversions of a file a load takes, under which words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_mixer.errors import MatchError
from lora_mixer.problem import NoteKind, Problem, Remark
from lora_mixer.textual_inversion.files import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.adapter import Adapter
    from lora_mixer.textual_inversion.files import Embedding
    from lora_mixer.textual_inversion.tokens import Token


def choose_embeddings(
    adapter: Adapter, wanted: bool | Mapping[str, str], *, allow_nonfinite: bool
) -> tuple[Embedding, ...]:
    """
    Return the textual inversions of an adapter's file under the words that the caller wants for them.

    Raises:
        MatchError: When other words are wanted for words that the file does not have.
        InvalidAdapterError: When one of them is broken.
    """
    renamed = dict(wanted) if isinstance(wanted, Mapping) else {}
    odd = sorted(renamed.keys() - {e.token for e in adapter.embeddings})
    if odd:
        there = ", ".join(e.token for e in adapter.embeddings) or "none"
        raise MatchError(
            f"load_embeddings names {', '.join(odd)}; the file's words are: {there}",
            file=adapter.info.source,
            argument="load_embeddings",
            problems=[Problem(word, "is not a word of the file") for word in odd],
        )
    return tuple(
        checked(
            dataclasses.replace(e, token=renamed.get(e.token, e.token)),
            adapter.info.source,
            allow_nonfinite=allow_nonfinite,
        )
        for e in adapter.embeddings
    )


def with_words(adapter: Adapter, words: Sequence[Token]) -> Adapter:
    """Return the adapter with its words' keys used, and a note that says which words they are."""
    used = {key for e in adapter.embeddings for key in e.keys}
    notes = [note for note in adapter.notes if note.kind is not NoteKind.WORDS_LEFT]
    lines = [f"{w.token} ({len(w.vectors)} vectors, {w.component})" for w in words]
    said = f"words: {', '.join(lines)}" if lines else "load_embeddings: no textual inversions in this file"
    notes.append(Remark(said, NoteKind.WORDS))
    unused = {key: why for key, why in adapter.unused.items() if key not in used}
    return dataclasses.replace(adapter, unused=unused, notes=tuple(notes))
