"""
Adapters to adapter files: convert, merge, resize and extract files, and what a mixer's save shares with them.

All end in :func:`write_adapters`: adapters' parts and a mix come in, one file or folder goes out. No pipeline is needed:
the modules of SD 1.x, SD 2.x and SDXL are known by name and shape, ``model`` names the base for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer import __version__
from lora_mixer.algorithms.base import all_finite
from lora_mixer.binding.reach import check_components, without_effect
from lora_mixer.components import TEXT_ENCODERS
from lora_mixer.errors import MatchError, MixError, SaveError
from lora_mixer.merging import MergeMethod
from lora_mixer.mixes import Mix, block_layouts
from lora_mixer.mixes.transformer_blocks import DepthThird
from lora_mixer.parsing.files import at_home
from lora_mixer.problem import SaveProblem, SaveReason, UnusedReason
from lora_mixer.wording import first_of
from lora_mixer.writing import provenance
from lora_mixer.writing.adapter_file import check_format, write_adapter
from lora_mixer.writing.compose import CUT_REMEDY, RankCut, as_loaded, mixed, same
from lora_mixer.writing.encode import as_dtype
from lora_mixer.writing.formats.kohya import with_one_alpha
from lora_mixer.writing.formats.table import FORMATS
from lora_mixer.writing.layers import Share
from lora_mixer.writing.names import names_of
from lora_mixer.writing.parts import BASE_REMEDY, located, open_files

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.writing.compose import Progress
    from lora_mixer.writing.layers import AdapterParts, ModulePlace, NewLayer, Part
    from lora_mixer.writing.names import Names
    from lora_mixer.writing.parts import FileSet
    from lora_mixer.writing.read_back import Locate
    from lora_mixer.writing.report import SaveReport


def convert(
    adapter: Any,
    path: str | Path,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    dtype: torch.dtype | str | None = None,
    rank: int | None = None,
    model: str | Path | None = None,
    allow_pickle: bool = False,
) -> SaveReport:
    """
    Write one adapter in another format, with its own tensors and scales.

    Args:
        adapter: A file, a folder, a Hub repository or a state dict.
        path: A ``.safetensors`` file or a folder; a folder for ``peft``.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        dtype: To store in: ``float32``, ``float16`` or ``bfloat16``; None keeps each tensor's own.
        rank: For layers that are not a low-rank pair, where the format has no place for them: the rank to write them at.
        model: The base, as ``load_pipeline`` takes it (a checkpoint in one file, a diffusers folder, ...): for bases other than SD 1.x, SD 2.x and SDXL whose files have no dotted
            names, and for algorithms whose change depends on the base's weights.
        allow_pickle: Open ``.pt`` and ``.bin`` files.

    Returns:
        What was written; it has been read back and compared.

    Raises:
        SourceError: When the file or the model is not there.
        FormatError: When the file is not an adapter.
        MatchError: When it does not fit the model in full.
        SaveError: When the format cannot carry something, or the disk refuses; what was there before still is.

    Example:
        >>> import tempfile
        >>> from lora_mixer import demo_adapters
        >>> out = tempfile.mkdtemp()
        >>> report = convert(demo_adapters()["ink"].path, f"{out}/ink.safetensors", format="diffusers", dtype="float32")
        >>> len(report.ranks), report.worst_error
        (124, 0.0)
    """
    place = _place(path, format)
    files = open_files([adapter], model=model, allow_pickle=allow_pickle)
    return write_adapters(
        files.adapters,
        place,
        names=files.names,
        locate=None if files.skeleton is None and FORMATS[format].holds_every_algorithm else files.locate,
        format=format,
        cut=RankCut(rank),
        dtype=as_dtype(dtype),
    )


def merge(
    adapters: Mapping[Any, Any] | Sequence[Any],
    path: str | Path,
    *,
    method: MergeMethod | str = "sum",
    format: str = "diffusers",  # noqa: A002
    rank: int | None = None,
    conv_rank: int | None = None,
    energy: float | None = None,
    sv_ratio: float | None = None,
    dtype: torch.dtype | str | None = None,
    model: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress = same,
) -> SaveReport:
    """
    Write several adapters as one.

    Args:
        adapters: Sources with their weights: a dict, or a list of sources and ``(source, weights)`` pairs. Weights are
            what a mix takes for one adapter: a number, a dict by component, block weights.
        path: A ``.safetensors`` file or a folder; a folder for ``peft``.
        method: How they come together: a name of ``METHODS``, also with settings as ``"ties(density=0.2)"``, or a
            ``MergeMethod``.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        rank: The rank to cut to; None is exact, at the sum of the ranks. Beside ``energy`` or ``sv_ratio``: the most.
        conv_rank: The same for convolutions with kernels above 1x1.
        energy: The share of each layer's squared norm to keep, above 0 and up to 1, at the lowest rank that does.
        sv_ratio: Keep a layer's singular values above its largest divided by this.
        dtype: To store in: ``float32`` (when None), ``float16`` or ``bfloat16``.
        model: The base, as for :func:`convert`.
        allow_pickle: Open ``.pt`` and ``.bin`` files.
        progress: Wraps the list of modules that is gone through, as ``tqdm.tqdm`` does.

    Returns:
        What was written, with the error of each layer that was cut; it has been read back and compared. Its notes say which
        weights change nothing.

    Raises:
        SourceError: When a file or the model is not there.
        FormatError: When a file is not an adapter.
        MatchError: When they are for different bases, or do not fit the model in full.
        MixError: When weights or the method make no sense, change from step to step, or are for components that are not there.
        SaveError: When the format cannot carry something, a rank is needed, or the disk refuses.

    Example:
        >>> import tempfile
        >>> from lora_mixer import demo_adapters
        >>> demo, out = demo_adapters(), tempfile.mkdtemp()
        >>> both = {demo["ink"].path: 0.7, demo["neon"].path: {"unet": 0.3}}
        >>> merge(both, f"{out}/both.safetensors").worst_error
        0.0
        >>> set(merge(both, f"{out}/small.safetensors", method="ties(density=0.2)", rank=4).ranks.values())
        {4}
    """
    place, cut = _place(path, format), RankCut(rank, conv_rank, energy, sv_ratio)
    chosen = MergeMethod.of(method)
    pairs = [
        entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
        for entry in (adapters.items() if isinstance(adapters, Mapping) else adapters)
    ]
    if not pairs:
        raise MixError("expected one adapter or more, got none", argument="adapters")
    files = open_files([source for source, _ in pairs], model=model, allow_pickle=allow_pickle)
    given = zip(files.adapters, pairs, strict=True)
    mix = Mix.of({one.info.name: weights for one, (_, weights) in given})
    idle = _idle(mix, files)
    report = write_adapters(
        files.adapters,
        place,
        names=files.names,
        locate=None if files.skeleton is None and FORMATS[format].holds_every_algorithm else files.locate,
        mix=mix,
        method=chosen,
        format=format,
        cut=cut,
        dtype=as_dtype(dtype),
        progress=progress,
    )
    return replace(report, notes=(*report.notes, *idle))


def _idle(mix: Mix, files: FileSet) -> list[str]:
    """Refuse weights for components that are not there; say which change nothing."""
    adapters = {adapter.info.name: adapter for adapter in files.adapters}
    if files.skeleton is None:  # which text encoders its model has is not known, nor how deep it is
        for name in mix.names:
            if isinstance(blocks := mix[name].blocks, DepthThird):
                raise MixError(
                    f"{name}: {blocks.to_spec()} is a part of the model's depth, which no file tells",
                    adapter=name,
                    remedy=BASE_REMEDY,
                )
        changed = {component for adapter in adapters.values() for component in adapter.components}
        check_components(mix, changed | set(TEXT_ENCODERS), "in these files; there may be")
    else:
        check_components(mix, files.names.paths, f"in {files.skeleton.name}; it has")
    return without_effect(mix, adapters)


def resize(
    adapter: Any,
    path: str | Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    energy: float | None = None,
    sv_ratio: float | None = None,
    format: str = "diffusers",  # noqa: A002
    dtype: torch.dtype | str | None = None,
    model: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress = same,
) -> SaveReport:
    """
    Write an adapter at lower ranks, by singular values.

    Args:
        adapter: A file, a folder, a Hub repository or a state dict.
        path: A ``.safetensors`` file or a folder; a folder for ``peft``.
        rank: The rank of every layer; beside ``energy`` or ``sv_ratio``, the most that one gets (Kohya's ``new_rank``).
        conv_rank: The same for convolutions with kernels above 1x1 (Kohya's ``new_conv_rank``).
        energy: The share of each layer's squared norm to keep; Kohya's ``sv_fro`` p is the energy p * p.
        sv_ratio: Keep a layer's singular values above its largest divided by this, as Kohya's ``sv_ratio``.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        dtype: To store in: ``float32`` (when None), ``float16`` or ``bfloat16``.
        model: The base, as for :func:`convert`.
        allow_pickle: Open ``.pt`` and ``.bin`` files.
        progress: Wraps the list of modules that is gone through, as ``tqdm.tqdm`` does.

    Returns:
        What was written, with what each layer lost; it has been read back and compared.

    Raises:
        SourceError: When the file or the model is not there.
        FormatError: When the file is not an adapter.
        MatchError: When it does not fit the model in full.
        SaveError: When nothing says how far to cut, the format cannot carry something, or the disk refuses.

    Example:
        >>> import tempfile
        >>> from lora_mixer import demo_adapters
        >>> small = f"{tempfile.mkdtemp()}/small.safetensors"
        >>> max(resize(demo_adapters()["ink"].path, small, rank=2, energy=0.9).ranks.values())
        2
    """
    if not RankCut(rank, conv_rank, energy, sv_ratio).is_wanted:
        raise SaveError("nothing says how far to cut", remedy=CUT_REMEDY)
    return merge(
        [(adapter, 1.0)],
        path,
        format=format,
        rank=rank,
        conv_rank=conv_rank,
        energy=energy,
        sv_ratio=sv_ratio,
        dtype=dtype,
        model=model,
        allow_pickle=allow_pickle,
        progress=progress,
    )


def extract(
    base: str | Path,
    tuned: str | Path,
    path: str | Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    energy: float | None = None,
    sv_ratio: float | None = None,
    pairs_only: bool = False,
    format: str | None = None,  # noqa: A002
    dtype: torch.dtype | str | None = None,
    allow_pickle: bool = False,
    progress: Progress = same,
) -> SaveReport:
    """
    Write what training changed in the denoiser and the text encoders as an adapter.

    Args:
        base: The model to start from, as ``load_pipeline`` takes it: a checkpoint in one file, a diffusers folder, a Hub
            repository, ``demo``.
        tuned: The same model after training, likewise.
        path: A ``.safetensors`` file or a folder; a folder for ``peft``.
        rank: The rank of every layer; beside ``energy`` or ``sv_ratio``, the most that one gets.
        conv_rank: The same for convolutions with kernels above 1x1.
        energy: The share of each layer's squared norm to keep.
        sv_ratio: Keep a layer's singular values above its largest divided by this.
        pairs_only: Leave changes of biases, norms and other single parameters out; the report names them.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``; when None, ``diffusers``, or ``kohya`` where norms, biases or
            other parameters changed that only this has a place for.
        dtype: To store in: ``float32`` (when None), ``float16`` or ``bfloat16``.
        allow_pickle: Whether single files may be pickles (.ckpt).
        progress: Wraps the list of modules that is gone through, as ``tqdm.tqdm`` does.

    Returns:
        What was written, with what the rank lost of each layer.

    Raises:
        SourceError: When a model is not there.
        MatchError: When the two are not the same model, nothing changed, or one has no weights in safetensors files.
        SaveError: When nothing says how far to cut, the format cannot carry something, or the disk refuses.

    Example:
        >>> extract("base", "tuned", "tuned.safetensors", rank=32)  # doctest: +SKIP
    """
    from lora_mixer.library import base_family
    from lora_mixer.pictures.outline import load_outline
    from lora_mixer.writing.differences import changes

    cut, place = RankCut(rank, conv_rank, energy, sv_ratio), at_home(path)
    if not cut.is_wanted:
        raise SaveError("nothing says how far to cut", remedy=CUT_REMEDY)
    if format is not None:
        check_format(format, place)
    before, after = (load_outline(str(x), allow_pickle=allow_pickle) for x in (base, tuned))
    difference = changes(before, after, cut=cut, pairs_only=pairs_only, progress=progress)
    only_kohya = [layer for layer in difference.layers if layer.vector is not None or layer.up is None]
    chosen = format or ("kohya" if only_kohya else "diffusers")
    names = names_of(before.components)
    report = write_adapter(
        place,
        difference.layers,
        names,
        format=chosen,
        dtype=as_dtype(dtype),
        metadata={
            "lora_mixer.version": __version__,
            "lora_mixer.extracted": f"{tuned} - {base}",
            "lora_mixer.rank": cut.to_text(),
        },
        family=_family(before.components, base_family),
        title=Path(tuned).name,
        locate=lambda adapter: located(adapter, before.components),
    )
    notes = report.notes
    if format is None and only_kohya:
        notes += (
            f"Kohya's format, since {len(only_kohya)} norms, biases or other parameters changed that the others cannot hold",
        )
    return replace(report, left_out=difference.left_out, notes=notes)


def write_adapters(
    adapters: Sequence[AdapterParts],
    path: Path,
    *,
    names: Names,
    locate: Locate | None = None,
    mix: Mix | None = None,
    method: MergeMethod | None = None,
    format: str,  # noqa: A002
    cut: RankCut | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = same,
) -> SaveReport:
    """
    Write one adapter as it was loaded, or several as one.

    Args:
        adapters: Their parts; one of them where there is no mix.
        path: Where to.
        names: The spelling of modules.
        locate: Finds the modules of what is read back.
        mix: Their weights; None writes the one adapter with its own tensors and scales.
        method: How they come together; the weighted sum when None.
        format: ``diffusers``, ``kohya``, ``comfyui`` or ``peft``.
        cut: The rank to cut to.
        dtype: To store in; None keeps each tensor's own, float32 for sums.
        progress: Wraps the list of modules.

    Returns:
        What was written.

    Raises:
        MixError: When the mix changes from step to step, or its block weights do not fit.
        SaveError: When the format cannot carry something, an adapter holds NaN or Inf, a rank is needed, or the disk
            refuses.
    """
    _refuse_unused(adapters)
    chosen, ranks = method or MergeMethod(), cut or RankCut()
    infos = [adapter.info for adapter in adapters]
    layers: Sequence[NewLayer]
    if mix is None:
        (adapter,) = adapters
        _refuse_nonfinite(adapter.info, adapter.parts)
        layers = as_loaded(
            adapter.parts,
            keep_leaves=FORMATS[format].holds_every_algorithm,
            alone=FORMATS[format].holds_alone,
            cut=ranks,
        )
        metadata, title = provenance.of_one(adapter.info), adapter.info.name
    else:
        if not mix.is_constant:
            raise MixError(
                "this mix has schedules, masks or a method that changes it from step to step, which no adapter file can "
                "hold; save each adapter, or give weights without them"
            )
        table = _shares(adapters, mix, names)
        for info in infos:
            acting = [
                x.part for shares in table.values() for x in shares if x.gain and x.adapter == info.name
            ]
            _refuse_nonfinite(info, acting)
        layers = mixed(table, cut=ranks, method=chosen, progress=progress)
        if FORMATS[format].holds_every_algorithm:
            layers = with_one_alpha(layers)
        metadata = provenance.of_mix(infos, mix.to_text(), chosen.to_text(), ranks.to_text() or None)
        title = " + ".join(mix.names)
        dtype = dtype or torch.float32
    return write_adapter(
        path,
        layers,
        names,
        format=format,
        dtype=dtype,
        metadata=metadata,
        family=provenance.common_family(infos),
        title=title,
        locate=locate,
    )


def _shares(adapters: Sequence[AdapterParts], mix: Mix, names: Names) -> dict[ModulePlace, list[Share]]:
    layouts = block_layouts(names.paths)
    mix.check(layouts)
    table: dict[ModulePlace, list[Share]] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for adapter in adapters:
        name = adapter.info.name
        for part in adapter.parts:
            place = part.place
            known = shapes.setdefault((place.component, place.path), place.shape)
            if known != place.shape:
                raise MatchError(
                    f"has another shape in it than in those before it ({place.shape} and {known}): adapters for models of "
                    "different sizes cannot become one",
                    file=adapter.info.source,
                    key=str(place),
                )
            gain = mix.gain(name, place.component, place.path, layouts.get(place.component))
            table.setdefault(place, []).append(Share(name, part, gain))
    return table


def _place(path: str | Path, format: str) -> Path:  # noqa: A002
    place = at_home(path)
    check_format(format, place)
    return place


def _family(components: Mapping[str, Any], told: Any) -> str:
    denoiser = next((components[name] for name in ("unet", "transformer") if name in components), None)
    return "unknown" if denoiser is None else str(told(denoiser))


def _refuse_unused(adapters: Sequence[AdapterParts]) -> None:
    """Refuse keys that no layer uses: they would be lost without a word. A lone alpha says nothing."""
    for adapter in adapters:
        lost = [
            SaveProblem(key, SaveReason.UNREAD, why)
            for key, why in adapter.unused.items()
            if why.kind is not UnusedReason.LONE_SCALE
        ]
        if lost:
            listed = first_of([f"{problem.place} ({problem.detail})" for problem in lost], 5)
            raise SaveError(
                f"{len(lost)} keys would be lost: {listed}", file=adapter.info.source, problems=lost
            )


def _refuse_nonfinite(info: AdapterInfo, parts: Sequence[Part]) -> None:
    """Refuse NaN and Inf, which no method can weigh and which would be in the file for good; all modules are named."""
    bad = [
        SaveProblem(str(part.place), SaveReason.VALUES, "+".join(part.weights.algorithms))
        for part in parts
        if not all(map(all_finite, part.weights.tensors()))
    ]
    if bad:
        listed = first_of([problem.place for problem in bad], 5)
        raise SaveError(
            f"{info.name} has NaN or Inf in {len(bad)} of {len(parts)} modules ({listed}): the training diverged or the file "
            "is damaged; leave it out, or download it again",
            file=info.source,
            problems=bad,
            adapter=info.name,
        )
