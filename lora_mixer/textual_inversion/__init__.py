"""Textual inversions: files with new words, and pipelines that know them for a while."""

from __future__ import annotations

from lora_mixer.textual_inversion.files import Embedding, checked, named
from lora_mixer.textual_inversion.loading import choose_embeddings, with_words
from lora_mixer.textual_inversion.tokens import Token, TokenSet

__all__ = ["Embedding", "Token", "TokenSet", "checked", "choose_embeddings", "named", "with_words"]
