"""The mixer's side of textual inversions: new words for the prompt, and the tokenizers as they were afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_mixer.binding import find_components
from lora_mixer.errors import AdapterNameError, MatchError
from lora_mixer.formats import read_embeddings
from lora_mixer.formats.embeddings import checked
from lora_mixer.ownership import claim
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from lora_mixer.adapter import Adapter
    from lora_mixer.engines import Word, Words
    from lora_mixer.formats.embeddings import Embedding


@dataclass(frozen=True)
class TokenInfo:
    """
    A word that a mixer has taught the text encoders.

    Attributes:
        token: The word, as it stands in prompts.
        vectors: Number of its vectors by text encoder; a word of n vectors becomes ``token token_1 ...``, which
            diffusers pipelines write into the prompt by themselves.
        adapter: The adapter that it came with; None for one that was loaded by itself.
    """

    token: str
    vectors: Mapping[str, int]
    adapter: str | None


class Wording:
    """The words of a :class:`~lora_mixer.LoraMixer`."""

    pipe: Any
    _lock: threading.RLock
    _words: Words

    @property
    def tokens(self) -> Mapping[str, TokenInfo]:
        """The words that are loaded, whether the pipeline knows them now or, while disabled, not."""
        with self._lock:
            table: dict[str, TokenInfo] = {}
            for owner, words in self._words.held.items():
                for word in words:
                    vectors = {**table[word.token].vectors} if word.token in table else {}
                    vectors[word.component] = len(word.vectors)
                    table[word.token] = TokenInfo(word.token, vectors, owner)
            return MappingProxyType(table)

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        hf_token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
        allow_pickle: bool = False,
        allow_nonfinite: bool = False,
    ) -> tuple[str, ...]:
        """
        Teach the text encoders the word of a textual inversion file; words that come with a LoRA load with it.

        The pipeline knows the word until :meth:`unload_textual_inversion`, ``disable_lora`` or
        ``unload_lora_weights``. No weight changes: the embedding answers for the new tokens by hooks.

        Args:
            pretrained_model_name_or_path: A file, a folder, a Hub repo id, an open binary file or a state dict.
            token: The word; None takes the file's own, or its name where it has none.
            weight_name: The file in a folder or repository that has several.
            subfolder: A folder inside the repository.
            revision: Branch, tag or commit of the repository.
            hf_token: Token for private repositories.
            cache_dir: The Hub cache to use.
            local_files_only: Never go to the network.
            force_download: Download again what is cached.
            allow_pickle: Read ``.pt`` and ``.bin`` files (through torch's ``weights_only`` loader).
            allow_nonfinite: Load vectors with NaN or Inf.

        Returns:
            The words; :attr:`tokens` has the details.

        Raises:
            SourceError: When there is no such file, or several.
            FormatError: When it holds no textual inversion, or a broken one.
            MatchError: When no text encoder of the pipeline is as wide, or its tokenizer knows the word already.
            PipelineStateError: When the tokenizers cannot learn it.

        Example:
            >>> mixer.load_textual_inversion("cat-toy.safetensors", token="<cat-toy>")  # doctest: +SKIP
            ('<cat-toy>',)
        """
        with self._lock:
            source = resolve_source(
                pretrained_model_name_or_path,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                token=hf_token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_pickle=allow_pickle,
            )
            found = read_embeddings(source, name=token)
            if token is not None and len(found) > 1:
                raise MatchError(
                    f"{source.label}: holds {len(found)} words ({', '.join(e.token for e in found[:5])}), and "
                    f"token={token!r} can rename one only; leave it out"
                )
            if token is not None:
                found = (dataclasses.replace(found[0], token=token),)
            found = tuple(checked(e, source.label, allow_nonfinite=allow_nonfinite) for e in found)
            claim(self, find_components(self.pipe).values())  # type: ignore[arg-type]
            words = self._words.fit(found, "", source.label)
            with self._words.changed({None: (*self._words.held.get(None, ()), *words)}):
                return tuple(dict.fromkeys(word.token for word in words))

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """
        Take words away that were loaded by themselves; the tokenizers and embeddings are as they were before.

        Args:
            tokens: One or several words; all of them when None.

        Raises:
            AdapterNameError: When a word is unknown or came with an adapter; nothing is taken away then.
        """
        with self._lock:
            held = self._words.held.get(None, ())
            names = (
                {word.token for word in held}
                if tokens is None
                else {tokens}
                if isinstance(tokens, str)
                else set(tokens)
            )
            odd = [name for name in names if name not in {word.token for word in held}]
            if odd:
                known = ", ".join(dict.fromkeys(word.token for word in held)) or "none"
                raise AdapterNameError(
                    f"unload_textual_inversion names {', '.join(map(repr, sorted(odd)))}; loaded by themselves are: {known}. "
                    "Words that came with an adapter go with it (delete_adapters)"
                )
            with self._words.changed({None: [word for word in held if word.token not in names]}):
                pass


def choose(
    adapter: Adapter, wanted: bool | Mapping[str, str], *, allow_nonfinite: bool
) -> tuple[Embedding, ...]:
    """
    Give the textual inversions of an adapter's file under the words that the caller wants for them.

    Raises:
        MatchError: When other words are wanted for words that the file does not have.
        InvalidAdapterError: When one of them is broken.
    """
    renamed = dict(wanted) if isinstance(wanted, Mapping) else {}
    odd = sorted(renamed.keys() - {e.token for e in adapter.embeddings})
    if odd:
        there = ", ".join(e.token for e in adapter.embeddings) or "none"
        raise MatchError(
            f"{adapter.info.source}: load_embeddings names {', '.join(odd)}; the file's words are: {there}"
        )
    return tuple(
        checked(
            dataclasses.replace(e, token=renamed.get(e.token, e.token)),
            adapter.info.source,
            allow_nonfinite=allow_nonfinite,
        )
        for e in adapter.embeddings
    )


def with_words(adapter: Adapter, words: Sequence[Word]) -> Adapter:
    """Give the adapter with its words' keys used, and a note that says which words they are."""
    used = {key for e in adapter.embeddings for key in e.keys}
    notes = [note for note in adapter.notes if not note.startswith("holds textual inversions")]
    lines = [f"{w.token} ({len(w.vectors)} vectors, {w.component})" for w in words]
    notes.append(
        f"words: {', '.join(lines)}" if lines else "load_embeddings: no textual inversions in this file"
    )
    unused = {key: why for key, why in adapter.unused.items() if key not in used}
    return dataclasses.replace(adapter, unused=unused, notes=tuple(notes))
