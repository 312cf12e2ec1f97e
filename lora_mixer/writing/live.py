"""A mixer's adapters to a file: one as loaded, or a mix made one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.errors import MixError
from lora_mixer.merging import MergeMethod
from lora_mixer.mixes import Mix
from lora_mixer.parsing.files import at_home
from lora_mixer.writing.adapter_file import check_format
from lora_mixer.writing.encode import as_dtype
from lora_mixer.writing.export import write_adapters
from lora_mixer.writing.layers import AdapterParts, ModulePlace, Part
from lora_mixer.writing.names import names_of
from lora_mixer.writing.parts import located

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.engines import EngineController
    from lora_mixer.writing.compose import RankCut
    from lora_mixer.writing.report import SaveReport


@dataclass(frozen=True)
class SaveOptions:
    """
    What a save shall write, and how.

    Attributes:
        mix: The adapters and their weights.
        one: The adapter to write as it was loaded, or None for the mix made one.
        path: Where to.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        cut: The rank to cut to.
        dtype: The dtype to store in, or None.
        method: How adapters come together.
    """

    mix: Mix
    one: str | None
    path: Path
    format: str
    cut: RankCut
    dtype: torch.dtype | None
    method: MergeMethod


def read_save_options(
    present: Sequence[Mix],
    path: Any,
    adapter_names: str | Sequence[str] | None,
    weights: Any,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    cut: RankCut,
    dtype: torch.dtype | str | None,
    method: MergeMethod | str = "sum",
) -> SaveOptions:
    """
    Read the arguments of ``save_lora_weights``.

    Args:
        present: The mixes in effect: one, or one for each image of a batch.
        path: Where to.
        adapter_names: One name or several; None is the mix in effect.
        weights: Weights as ``set_adapters`` takes them, or, without names, a mix in any form.
        format: The format.
        cut: The rank to cut to.
        dtype: The dtype to store in.
        method: How adapters come together.

    Returns:
        The choice.

    Raises:
        MixError: When there is nothing to save, or the mix is not the same at all steps.
        SaveError: When an argument is impossible.
    """
    place = at_home(path)
    check_format(format, place)
    chosen = MergeMethod.of(method)
    names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
    if names is not None:
        mix = Mix.from_weights(list(names), weights)
    else:
        if weights is None and len(present) > 1:
            raise MixError(
                f"{len(present)} mixes are in effect, one for each image; weights have to say which",
                argument="weights",
            )
        mix = next(iter(present), Mix.of({})) if weights is None else Mix.of(weights)
    if not mix.names:
        raise MixError(
            "there is nothing to save: no adapter is active; name one with adapter_names",
            argument="adapter_names",
        )
    if not mix.is_constant:
        raise MixError(
            "this mix has schedules, masks or a method that changes it from step to step, which no adapter file can "
            "hold; save each adapter, or give plain weights"
        )
    alone = len(mix.names) == 1 and mix == Mix.of({mix.names[0]: 1.0})
    one = mix.names[0] if alone and not cut.is_wanted and chosen.spec.is_sum else None
    return SaveOptions(mix, one, place, format, cut, as_dtype(dtype), chosen)


def hold(mix: Mix, infos: Mapping[str, AdapterInfo], controller: EngineController) -> list[AdapterParts]:
    """
    Gather the layers of a mix's adapters.

    Args:
        mix: The mix to save.
        infos: The adapters' descriptions by name.
        controller: What holds their tensors, and the clean base.

    Returns:
        The adapters in the mix's order, ready to be written.
    """
    adapters = []
    for name in mix.names:
        parts = []
        for layer, _, weights, base, bias in controller.held(name):
            place = ModulePlace.of(layer.live)
            parts.append(Part(place, weights, base, bias, columns=layer.columns))
        adapters.append(AdapterParts(infos[name], parts))
    return adapters


@torch.no_grad()  # adapters in training hold parameters
def save(
    choice: SaveOptions, adapters: Sequence[AdapterParts], components: Mapping[str, nn.Module]
) -> SaveReport:
    """
    Write what was chosen.

    Args:
        choice: What and how.
        adapters: The adapters of the mix, in its order.
        components: The pipeline's modules by name, for the spelling.

    Returns:
        What was written.

    Raises:
        MixError: When block weights do not fit the pipeline.
        SaveError: When the format cannot carry a layer, a rank is needed, or the disk refuses.
    """
    return write_adapters(
        adapters,
        choice.path,
        names=names_of(components),
        locate=lambda adapter: located(adapter, components),
        mix=None if choice.one is not None else choice.mix,
        method=choice.method,
        format=choice.format,
        cut=choice.cut,
        dtype=choice.dtype,
    )
