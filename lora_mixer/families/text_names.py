"""
The names that files give to a text encoder's modules, from their live paths.

What stands before the layers differs between versions of transformers, and between a language model by itself and one inside
of another; files leave it out, or a part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CLIP_ROOT = "text_model."
"""transformers 5 dropped it from CLIPTextModel; files are from before and after."""
_LANGUAGE_ROOTS = ("model.language_model.", "language_model.model.", "language_model.", "model.")
"""What stands before ``layers`` in language models that encode text."""


def is_clip(paths: Iterable[str]) -> bool:
    """Tell from the live paths whether this is a CLIP without its root."""
    return any(path.startswith("encoder.layers.") for path in paths)


def text_names(path: str, *, clip: bool, language: bool) -> Iterator[str]:
    """
    Return the other names of one live path.

    Args:
        path: The dotted path.
        clip: Whether the component is a CLIP without its root.
        language: Whether it encodes text at all.

    Example:
        >>> list(text_names("encoder.layers.0.mlp.fc1", clip=True, language=True))
        ['text_model.encoder.layers.0.mlp.fc1']
        >>> list(text_names("language_model.model.layers.0.mlp", clip=False, language=True))
        ['layers.0.mlp', 'model.layers.0.mlp']
    """
    if path.startswith(_CLIP_ROOT):
        yield path.removeprefix(_CLIP_ROOT)
    elif clip:
        yield _CLIP_ROOT + path
    root = next((root for root in _LANGUAGE_ROOTS if path.startswith(root)), None) if language else None
    if root is not None:
        yield path.removeprefix(root)
        yield f"model.{path.removeprefix(root)}"
    elif language and path.startswith("layers."):
        yield f"model.{path}"
