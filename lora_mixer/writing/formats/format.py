"""What a format of adapter files says of itself; every format is a file beside this one and a row in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from lora_mixer.writing.container import write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_mixer.writing.layers import ModulePlace, NewLayer
    from lora_mixer.writing.names import Names

    Spelling = Callable[[ModulePlace], str]
    Content = Callable[[IO[bytes]], None]

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""What a file is called in a folder, where a format does not say otherwise: diffusers' name for it."""


@dataclass(frozen=True)
class NewAdapter:
    """
    An adapter to be written, whatever the format.

    Attributes:
        path: A ``.safetensors`` file or a folder.
        layers: Its layers.
        names: How the layouts spell their modules.
        dtype: To store in; None keeps each tensor's own.
        metadata: Texts for the header.
        family: The base family.
        title: The adapter's name.
    """

    path: Path
    layers: Sequence[NewLayer]
    names: Names
    dtype: torch.dtype | None
    metadata: Mapping[str, str]
    family: str
    title: str

    @property
    def file(self) -> Path:
        """The one file of formats that have one."""
        return self.path if self.path.suffix.lower() == ".safetensors" else self.path / WEIGHT_NAME

    @property
    def components(self) -> dict[str, list[NewLayer]]:
        """The layers of each component."""
        table: dict[str, list[NewLayer]] = {}
        for layer in self.layers:
            table.setdefault(layer.place.component, []).append(layer)
        return table


@dataclass(frozen=True)
class OutputFormat:
    """
    A format that adapters are written in.

    Attributes:
        name: What users call it.
        summary: What is written, for help.
        files: Returns what to write into which file; a :class:`~lora_mixer.SaveError` names layers that it has no place for.
        spelling: How files of the format name modules, which tells them when a file is read back without a model; None where
            the live path says it.
        holds_every_algorithm: Whether each algorithm's own tensors, norms and biases have a place, not pairs alone.
        holds_alone: Algorithms whose own tensors have a place where all modules have the same one.
        is_folder: Whether it is a folder of several files.
        keeps_what_was_read: Whether an adapter that was read from this format goes back with its own keys and configuration.
        dora: What readers of the format do with weights other than 1 of a DoRA.

    Example:
        >>> from lora_mixer.writing import FORMATS
        >>> [name for name, row in FORMATS.items() if row.holds_every_algorithm], FORMATS["peft"].is_folder
        (['kohya', 'comfyui'], True)
    """

    name: str
    summary: str
    files: Callable[[NewAdapter], Mapping[Path, Content]]
    spelling: Callable[[Names], Spelling] | None = None
    holds_every_algorithm: bool = False
    holds_alone: frozenset[str] = frozenset()
    is_folder: bool = False
    keeps_what_was_read: bool = False
    dora: str = "as PEFT's own forward does (lora_magnitude_vector)"


def safetensors(tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> Content:
    """Return the content of a file of tensors with texts in its header."""

    def write(stream: IO[bytes]) -> None:
        write_safetensors(stream, tensors, texts)

    return write
