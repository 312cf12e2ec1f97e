"""
What an adapter says of its base: its configuration, its repository's card, its file's header.

The first of them that names a base counts. A name from a header is that of the model which its architecture is usually trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.families import FAMILIES
from lora_mixer.formats.header import open_weights, read_header
from lora_mixer.formats.peft_config import HEADER_KEY
from lora_mixer.parsing.json_text import json_or_none
from lora_mixer.sources import repository_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_mixer.sources import AdapterSource

_CARD_BYTES_AT_MOST = 1 << 20
_FOREIGN = re.compile(r"^(?:[A-Za-z]:[\\/]|[\\/~.])|\\|/.*/")


@dataclass(frozen=True)
class NamedBase:
    """
    A base that an adapter names.

    Attributes:
        name: A folder, a file or a Hub repository.
        revision: The base's revision, where it is said.
        where: What names it, for messages.
    """

    name: str
    revision: str | None
    where: str

    @property
    def is_path(self) -> bool:
        """Whether this can be a path only, and no repository's name."""
        return is_path(self.name)


def is_path(name: str) -> bool:
    r"""
    Say whether a name can be a path only, of this machine or of another, and no repository's.

    Example:
        >>> [is_path(name) for name in ("facebook/opt-350m", "gpt2", "/data/opt", r"C:\models\opt", "runs/7/base")]
        [False, False, True, True, True]
    """
    return _FOREIGN.search(name) is not None


def header_of(source: AdapterSource) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return a file's header: its metadata, and its tensors' shapes; empty for what is no safetensors file."""
    weights = source.weights
    if not isinstance(weights, Path) or weights.suffix != ".safetensors":
        return {}, {}
    with open_weights(weights, source.label) as stream:
        header = read_header(stream, source.label)
    return dict(header.metadata), {key: tuple(spec.shape) for key, spec in header.tensors.items()}


def named_bases(source: AdapterSource, request: Mapping[str, Any]) -> Iterator[NamedBase]:
    """
    Return the bases that an adapter names, the most certain first.

    Args:
        source: The adapter.
        request: What was said of the adapter's repository: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.
    """
    config = source.config or {}
    name = config.get("base_model_name_or_path")
    if isinstance(name, str) and name.strip():
        revision = config.get("revision")
        yield NamedBase(
            name.strip(),
            revision if isinstance(revision, str) else None,
            "base_model_name_or_path of adapter_config.json",
        )
    for name in _of_card(source, request):
        yield NamedBase(name, None, "base_model of its card (README.md)")
    metadata, _ = header_of(source)
    for name in _of_configs(metadata):
        yield NamedBase(name, None, f"base_model_name_or_path in {HEADER_KEY} of its header")
    for key in ("modelspec.architecture", "ss_base_model_version"):
        said = metadata.get(key, "")
        bases = [
            (len(start), name)
            for family in FAMILIES
            for start, name in family.bases
            if said.lower().startswith(start)
        ]
        if bases:
            yield NamedBase(max(bases)[1], None, f"{key} = {said[:80]!r} of its header")


def _of_card(source: AdapterSource, request: Mapping[str, Any]) -> list[str]:
    """Return what the card beside an adapter names as its base."""
    from huggingface_hub.repocard import metadata_load

    if source.repo_id is not None:
        card = repository_file(
            source.repo_id, "README.md", {**request, "revision": source.revision or request.get("revision")}
        )
    else:
        card = source.weights.parent / "README.md" if isinstance(source.weights, Path) else None
    if card is None or not card.is_file() or (card.is_symlink() and source.repo_id is None):
        return []
    if card.stat().st_size > _CARD_BYTES_AT_MOST:
        return []
    try:
        card_data: Any = metadata_load(card)
    except MemoryError:  # none of the card's own
        raise
    except Exception:  # noqa: BLE001 -- a card that cannot be read names nothing
        return []
    names = card_data.get("base_model") if isinstance(card_data, dict) else None
    names = [names] if isinstance(names, str) else names
    return (
        [name.strip() for name in names if isinstance(name, str) and name.strip()]
        if isinstance(names, list)
        else []
    )


def _of_configs(metadata: Mapping[str, str]) -> list[str]:
    """Return what the configurations in a header of diffusers' name as their base."""
    table = json_or_none(metadata.get(HEADER_KEY, "{}"))
    if not isinstance(table, dict):
        return []
    values = [value for key, value in table.items() if str(key).endswith("base_model_name_or_path")]
    return list(dict.fromkeys(value for value in values if isinstance(value, str) and value.strip()))
