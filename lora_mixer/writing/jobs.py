"""What the command line does with adapter files: convert, merge and resize, without a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.errors import MixError, SaveError
from lora_mixer.merging import MergeMethod, b_lora_gains
from lora_mixer.mixes import BlockLayout
from lora_mixer.writing import provenance
from lora_mixer.writing.compose import as_loaded, mixed, same
from lora_mixer.writing.formats import write
from lora_mixer.writing.kohya import with_one_alpha

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from lora_mixer.mixes import Mix
    from lora_mixer.writing.compose import Watch
    from lora_mixer.writing.files import FileSet
    from lora_mixer.writing.layers import Part, Place
    from lora_mixer.writing.report import SaveReport


def convert(
    files: FileSet,
    path: Path,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    dtype: torch.dtype | None = None,
    rank: int | None = None,
) -> SaveReport:
    """
    Write one adapter in another format, its tensors and scales kept.

    Args:
        files: The adapter.
        path: Where to.
        format: The format.
        dtype: To store in; None keeps each tensor's own.
        rank: For layers that are no pair, where the format needs one.

    Returns:
        What was written.

    Raises:
        SaveError: When the format cannot carry something.
    """
    (adapter,) = files.adapters
    _refuse_unused(files)
    layers = as_loaded(adapter.parts, keep_leaves=format == "kohya", rank=rank)
    return write(
        path,
        layers,
        files.names,
        format=format,
        dtype=dtype,
        metadata=provenance.of_one(adapter.info),
        family=adapter.info.base,
        title=adapter.info.name,
    )


def merge(
    files: FileSet,
    mix: Mix,
    path: Path,
    *,
    format: str,  # noqa: A002
    method: MergeMethod | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    watch: Watch = same,
) -> SaveReport:
    """
    Write several adapters as one.

    Args:
        files: The adapters.
        mix: Their weights, by component and block too.
        path: Where to.
        format: The format.
        method: How they come together; the weighted sum when None.
        rank: The rank to cut to.
        energy: Instead of a rank, the share of each layer's squared norm to keep.
        dtype: To store in.
        watch: Wraps the places, to show how far the work is.

    Returns:
        What was written, with the error of each layer.

    Raises:
        MixError: When the mix changes from step to step, or does not fit the method.
        SaveError: When the format cannot carry something, or a rank is needed.
    """
    chosen = method or MergeMethod()
    _refuse_unused(files)
    if not mix.is_constant:
        raise MixError(
            "a mix with schedules, masks or a switch changes from step to step; no file can hold that"
        )
    infos = [adapter.info for adapter in files.adapters]
    layers = mixed(_gather(files, mix, chosen), rank=rank, energy=energy, method=chosen, watch=watch)
    cut = None if rank is None and energy is None else f"{rank}" if rank is not None else f"energy {energy:g}"
    return write(
        path,
        with_one_alpha(layers) if format == "kohya" else layers,
        files.names,
        format=format,
        dtype=dtype,
        metadata=provenance.of_mix(infos, mix.to_text(), chosen.to_text(), cut),
        family=provenance.common_family(infos),
        title=" + ".join(mix.names),
    )


def _gather(files: FileSet, mix: Mix, method: MergeMethod) -> dict[Place, list[tuple[Part, float]]]:
    layouts = {
        part: BlockLayout.from_module_names(paths)
        for part, paths in (files.skeleton.paths if files.skeleton is not None else {}).items()
    }
    if method.name == "b-lora" and len(files.adapters) != 2:
        raise MixError(
            f"b-lora takes two adapters, content and style in this order; got {len(files.adapters)}"
        )
    table: dict[Place, list[tuple[Part, float]]] = {}
    for number, adapter in enumerate(files.adapters):
        name = adapter.info.name
        for part in adapter.parts:
            place = part.place
            gain = mix.gain(name, place.component, place.path, layouts.get(place.component))
            if method.name == "b-lora":
                both = b_lora_gains(place.path, gain, gain) if place.component == "unet" else (0.0, 0.0)
                gain = both[number]
            table.setdefault(place, []).append((part, gain))
    return table


def _refuse_unused(files: FileSet) -> None:
    """Refuse keys that no layer uses: they would be lost without a word."""
    for adapter in files.adapters:
        lost = {key: why for key, why in adapter.unused.items() if "alpha or scale" not in why}
        if lost:
            shown = ", ".join(f"{key} ({why})" for key, why in list(lost.items())[:5])
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            raise SaveError(f"{adapter.info.source}: {len(lost)} keys would be lost: {shown}{more}")
