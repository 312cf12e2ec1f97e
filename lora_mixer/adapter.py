"""An adapter as values: its layers as the file spells them, and a description; no model in sight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.hashes import Hashes
from lora_mixer.sidecar_facts import About
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.algorithms.dora import DoraStrength
    from lora_mixer.formats.fronts import KeyTarget
    from lora_mixer.problem import NoteKind, Remark, UnusedReason
    from lora_mixer.textual_inversion.files import Embedding


@dataclass(frozen=True)
class AdapterLayer:
    """
    One module's part of an adapter.

    Attributes:
        target: The module as the file names it.
        weights: The tensors and their algorithm.
        keys: The keys of the file that it was read from.
    """

    target: KeyTarget
    weights: LayerWeights
    keys: tuple[str, ...]


@dataclass(frozen=True)
class AdapterInfo:
    """
    What an adapter is, as :func:`lora_mixer.read_adapter` and ``mixer.adapters`` tell it.

    Attributes:
        name: The name it is loaded under; the source's own name when it is not loaded.
        source: The path, repository or kind of object that it came from.
        format: The layout of its keys, such as ``kohya``, ``peft``, ``diffusers``; several joined by ``+``.
        base: The base family that it was made for, such as ``SD 1.x`` or ``SDXL``.
        algorithms: Names of the algorithms in it, sorted.
        ranks: The different ranks, ascending.
        alphas: The different alphas, ascending; empty where the file has none (then alpha is the rank).
        dtypes: The dtypes of its tensors, such as ``float16``.
        bytes: Size of its tensors in bytes.
        components: Number of modules by the component that the keys name; ``unnamed`` where they name none.
        embeddings: Words of textual inversions in the file, which ``load_embeddings=True`` loads as well.
        trigger_words: Words that call it up: the header's, else those of the files beside it.
        metadata: The header's free-form metadata: training facts, as the trainer wrote them.
        about: What people and programs say about it: preferred weight, notes, preview, training tags, and where each
            of these is from.
        hashes: ``sha256``, ``autov1``, ``autov2``, ``autov3``, ``sshs_model_hash``; computed at the first look.
    """

    name: str
    source: str
    format: str
    base: str
    algorithms: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    dtypes: tuple[str, ...]
    bytes: int
    components: Mapping[str, int]
    embeddings: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    about: About = field(default_factory=About)
    hashes: Mapping[str, str] = field(default_factory=lambda: Hashes(None), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """
        Return the description as plain values, ready for JSON; this computes the hashes.

        Example:
            >>> AdapterInfo("a", "a.safetensors", "kohya", "SDXL", ("lora",), (4,), (), ("float16",), 8,
            ...             {"unet": 1}).to_dict()["ranks"]
            [4]
        """
        table: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                table[f.name] = list(value)
            elif isinstance(value, str | int):
                table[f.name] = value
            elif isinstance(value, About):
                table[f.name] = value.to_dict()
            else:
                table[f.name] = dict(value)
        return table


@dataclass(frozen=True)
class Adapter:
    """
    A whole adapter: description, layers, and the keys that are none.

    Attributes:
        info: Its description.
        layers: One entry for each module that the file changes.
        unused: Keys that no layer uses, with the reason.
        notes: Remarks on the file as a whole, for the report.
        embeddings: Textual inversions that the file holds beside its layers.
        component: The component that its folder or header names, for layers whose keys name none; or None.
        file: The tensors of a PEFT folder by key, of which those of the layers are views; empty for others.
        config: The folder's configuration; empty for others.
    """

    info: AdapterInfo
    layers: Sequence[AdapterLayer]
    unused: Mapping[str, Remark[UnusedReason]]
    notes: tuple[Remark[NoteKind], ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    component: str | None = None
    file: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor of every layer."""
        for layer in self.layers:
            yield from layer.weights.tensors()

    def limited(self, rank: int) -> Adapter:
        """
        Return the adapter with at most ``rank`` ranks in each low-rank pair, the first ones.

        That is what DyLoRA trains for (arXiv:2210.07558); of an ordinary LoRA it keeps an arbitrary part.

        Raises:
            MixError: When ``rank`` is not a whole number above 0.
        """
        if type(rank) is not int or rank < 1:
            raise MixError(f"max_rank must be 1 or more, got {shown(rank)}", argument="max_rank")
        layers = tuple(dataclasses.replace(x, weights=x.weights.limited(rank)) for x in self.layers)
        ranks = tuple(sorted({x.weights.rank for x in layers if x.weights.rank is not None}))
        info = dataclasses.replace(self.info, ranks=ranks)
        return dataclasses.replace(self, layers=layers, info=info, file={}, config={})

    def with_dora_strength(self, strength: DoraStrength) -> Adapter:
        """
        Return the adapter with another meaning of weights other than 1 for its DoRA layers.

        Raises:
            MixError: When there is no strength of that name.
        """
        from lora_mixer.algorithms.dora import (
            DORA_STRENGTHS,
            with_dora_strength,
        )  # descriptions need no torch

        if strength not in DORA_STRENGTHS:
            raise MixError(
                f"dora_strength must be one of {', '.join(DORA_STRENGTHS)}, got {shown(strength)}",
                argument="dora_strength",
            )
        layers = tuple(
            dataclasses.replace(x, weights=with_dora_strength(x.weights, strength)) for x in self.layers
        )
        return dataclasses.replace(self, layers=layers)
