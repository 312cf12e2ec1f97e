"""A mixer's adapters to a file: one as loaded, or a mix made one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lora_mixer.errors import MixError, SaveError
from lora_mixer.mixes import BlockLayout, Mix
from lora_mixer.writing import provenance
from lora_mixer.writing.compose import as_loaded, mixed
from lora_mixer.writing.encode import as_dtype
from lora_mixer.writing.formats import check_format, write
from lora_mixer.writing.kohya import with_one_alpha
from lora_mixer.writing.layers import Part, Place
from lora_mixer.writing.names import Names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.engines import EngineController
    from lora_mixer.writing.report import SaveReport


@dataclass(frozen=True)
class Held:
    """
    An adapter of a mixer, with the gain of each of its layers in the mix to save.

    Attributes:
        info: Its description.
        parts: Its layers.
        gains: One for each.
    """

    info: AdapterInfo
    parts: Sequence[Part]
    gains: Sequence[float]


@dataclass(frozen=True)
class Choice:
    """
    What a save shall write, and how.

    Attributes:
        mix: The adapters and their weights.
        one: The adapter to write as it was loaded, or None for the mix made one.
        path: Where to.
        format: ``diffusers``, ``kohya`` or ``peft``.
        rank: The rank to cut to, or None.
        dtype: The dtype to store in, or None.
    """

    mix: Mix
    one: str | None
    path: Path
    format: str
    rank: int | None
    dtype: torch.dtype | None


def choose(
    present: Sequence[Mix],
    path: Any,
    adapter_names: str | Sequence[str] | None,
    weights: Any,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    rank: int | None,
    dtype: torch.dtype | str | None,
) -> Choice:
    """
    Read the arguments of ``save_lora_weights``.

    Args:
        present: The mixes in effect: one, or one for each image of a batch.
        path: Where to.
        adapter_names: One name or several; None is the mix in effect.
        weights: Weights as ``set_adapters`` takes them, or, without names, a mix in any form.
        format: The format.
        rank: The rank to cut to.
        dtype: The dtype to store in.

    Returns:
        The choice.

    Raises:
        MixError: When there is nothing to save, or the mix is not the same at all steps.
        SaveError: When an argument is impossible.
    """
    place = Path(path).expanduser()
    check_format(format, place)
    if rank is not None and (type(rank) is not int or rank < 1):
        raise SaveError(f"rank must be a whole number of at least 1, got {rank!r}")
    names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
    if names is not None:
        mix = Mix.from_weights(list(names), weights)
    else:
        if weights is None and len(present) > 1:
            raise MixError(f"{len(present)} mixes are in effect, one for each image; say which with weights=")
        mix = next(iter(present), Mix.of({})) if weights is None else Mix.of(weights)
    if not mix.names:
        raise MixError("there is nothing to save: no adapter is active; name one with adapter_names")
    if not mix.is_constant:
        raise MixError(
            "this mix has schedules, masks or a method that changes it from step to step, which no adapter file can "
            "hold; save each adapter, or give weights="
        )
    alone = len(mix.names) == 1 and mix == Mix.of({mix.names[0]: 1.0})
    one = mix.names[0] if alone and rank is None else None
    return Choice(mix, one, place, format, rank, as_dtype(dtype))


def hold(
    mix: Mix,
    infos: Mapping[str, AdapterInfo],
    controller: EngineController,
    components: Mapping[str, nn.Module],
) -> dict[str, Held]:
    """
    Gather the layers of a mix's adapters, with the gain of each.

    Args:
        mix: The mix to save.
        infos: The adapters' descriptions by name.
        controller: What holds their tensors, and the clean base.
        components: The pipeline's modules by name.

    Returns:
        The adapters by name, ready to be written.

    Raises:
        MixError: When block weights do not fit the pipeline.
    """
    layouts = {part: BlockLayout.from_module_names(paths) for part, paths in module_paths(components).items()}
    table = {}
    for name in mix.names:
        parts, gains = [], []
        for layer, module, weights, base, bias in controller.held(name):
            live = layer.live
            embedding = isinstance(module, nn.Embedding)
            parts.append(Part(Place(live.component, live.path, live.shape, embedding), weights, base, bias))
            gains.append(mix.gain(name, live.component, live.path, layouts.get(live.component)))
        table[name] = Held(infos[name], parts, gains)
    return table


def save(choice: Choice, held: Mapping[str, Held], components: Mapping[str, nn.Module]) -> SaveReport:
    """
    Write what was chosen.

    Args:
        choice: What and how.
        held: The adapters of the mix by name.
        components: The pipeline's modules by name, for the spelling.

    Returns:
        What was written.

    Raises:
        SaveError: When the format cannot carry a layer, a rank is needed, or the disk refuses.
    """
    infos = [held[name].info for name in choice.mix.names]
    if choice.one is not None:
        layers = as_loaded(held[choice.one].parts, keep_leaves=choice.format == "kohya")
        metadata, title = provenance.of_one(infos[0]), infos[0].name
    else:
        table: dict[Place, list[tuple[Part, float]]] = {}
        for name in choice.mix.names:
            for part, gain in zip(held[name].parts, held[name].gains, strict=True):
                table.setdefault(part.place, []).append((part, gain))
        layers = mixed(table, rank=choice.rank)
        if choice.format == "kohya":
            layers = with_one_alpha(layers)
        rank = None if choice.rank is None else str(choice.rank)
        metadata = provenance.of_mix(infos, choice.mix.to_text(), "sum", rank)
        title = " + ".join(choice.mix.names)
    return write(
        choice.path,
        layers,
        Names(module_paths(components)),
        format=choice.format,
        dtype=choice.dtype,
        metadata=metadata,
        family=provenance.common_family(infos),
        title=title,
    )


def module_paths(components: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """
    List the paths of all modules of each component, without the wrappers of PEFT and ``torch.compile``.

    Example:
        >>> from torch import nn
        >>> module_paths({"model": nn.Sequential(nn.Linear(1, 1))})
        {'model': ['', '0']}
    """
    return {
        name: [
            path.replace("_orig_mod.", "").replace(".base_layer", "") for path, _ in module.named_modules()
        ]
        for name, module in components.items()
    }
