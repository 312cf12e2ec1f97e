"""The front door: adapters under names on one pipeline, mixed by weight, and the base back bit for bit."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_mixer.binding import BoundLayer, MatchReport, bind, find_components
from lora_mixer.engines import BaseDevice, MergedEngine
from lora_mixer.engines.residence import check_finite, settle
from lora_mixer.errors import AdapterNameError, MatchError, MixError
from lora_mixer.formats import read
from lora_mixer.memory import MemoryReport
from lora_mixer.mixes import BlockLayout, Mix
from lora_mixer.ownership import claim
from lora_mixer.sources import resolve_source
from lora_mixer.writing import live as saving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.writing import SaveReport


class PartialMatchWarning(UserWarning):
    """An adapter was loaded, but parts of it found no module; the message is the report."""


@dataclass(frozen=True)
class _Loaded:
    info: AdapterInfo
    places: tuple[tuple[str, str], ...]  # component and path of each layer, in the engine's order
    report: MatchReport


class LoraMixer:
    """
    Load, mix and remove LoRA adapters on a pipeline; the pipeline itself stays what it is.

    Weights are rewritten in place from a kept base, so a picture costs what the base costs, whatever the mix. Calls
    are serialised by a lock; :meth:`applied` holds it while pictures are made.

    Args:
        pipe: A diffusers pipeline, or a bare ``torch.nn.Module``.
        keep_base: Where the base of touched weights is kept: ``"device"`` beside them (fastest), or ``"host"`` in
            host memory, which saves GPU memory.

    Raises:
        PipelineStateError: When ``pipe`` has no modules.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
        >>> mixer = LoraMixer(model)
        >>> lora = {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)}
        >>> base = model[0].weight.clone()
        >>> print(mixer.load_lora_weights(lora, adapter_name="ones"))
        ones: state dict (plain)
          model     1 of    1 modules,    2 of    2 keys
        >>> mixer.set_adapters("ones", 0.5)
        >>> torch.allclose(model[0].weight, base + 0.5)
        True
        >>> mixer.disable_lora()
        >>> torch.equal(model[0].weight, base)
        True
    """

    def __init__(self, pipe: Any, *, keep_base: BaseDevice = "device") -> None:
        """Take the pipeline; nothing is changed or copied yet."""
        if keep_base not in ("device", "host"):
            msg = f"keep_base must be 'device' or 'host', got {keep_base!r}"
            raise ValueError(msg)
        find_components(pipe)  # a clear error now rather than at the first load
        self.pipe = pipe
        self._keep_base: BaseDevice = keep_base
        self._engine = MergedEngine(keep_base)
        self._loaded: dict[str, _Loaded] = {}
        self._mix = Mix.of({})
        self._enabled = True
        self._lock = threading.RLock()

    # --- loading -----------------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
        component: str | None = None,
        strict: bool = False,
        hotswap: bool = False,
        allow_pickle: bool = False,
        allow_nonfinite: bool = False,
    ) -> MatchReport:
        """
        Load an adapter and make it the only active one, at weight 1.0, as diffusers does.

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a Hub repo id, an open binary file or a state dict.
            adapter_name: The name to load it under; ``default_0``, ``default_1``, ... when None.
            weight_name: The file in a folder or repository that has several.
            subfolder: A folder inside the repository.
            revision: Branch, tag or commit of the repository.
            token: Token for private repositories.
            cache_dir: The Hub cache to use.
            local_files_only: Never go to the network.
            force_download: Download again what is cached.
            component: The component to load into, for files whose keys do not name one.
            strict: Refuse a file that is not matched in full.
            hotswap: Replace the loaded adapter of this name and keep its place and weight in the mix.
            allow_pickle: Read ``.pt`` and ``.bin`` files (through torch's ``weights_only`` loader).
            allow_nonfinite: Load tensors with NaN or Inf; they are gone without trace when the adapter is.

        Returns:
            What was matched and what was not; print it.

        Raises:
            SourceError: When there is no such file, or several.
            FormatError: When it holds no adapter that can be used.
            MatchError: When it does not fit this pipeline, or not in full under ``strict``.
            AdapterNameError: When the name is in use, or unknown with ``hotswap``.
            PipelineStateError: When the weights cannot be rewritten (meta, quantised).

        Warns:
            PartialMatchWarning: When only a part of the file was matched.
        """
        with self._lock:
            name = self._free_name() if adapter_name is None else _checked_name(adapter_name)
            if hotswap and name not in self._loaded:
                raise self._unknown([name], "hotswap")
            if name in self._loaded and not hotswap:
                msg = (
                    f"adapter name {name!r} is in use; choose another, delete it first, or pass hotswap=True"
                )
                raise AdapterNameError(msg)
            source = resolve_source(
                pretrained_model_name_or_path_or_dict,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_pickle=allow_pickle,
            )
            components = find_components(self.pipe)
            claim(self, components.values())
            adapter = read(source, name=name)
            binding = bind(adapter, components, name, component=component)
            report = binding.report
            if strict and not report.complete:
                msg = f"strict=True, and not all of the file was matched:\n{report}"
                raise MatchError(msg)
            layers = settle(binding.layers)
            if not allow_nonfinite:
                check_finite(layers, report.source)
            places = tuple((layer.live.component, layer.live.path) for layer in layers)
            self._swap_in(name, _Loaded(adapter.info, places, report), layers, hotswap=hotswap)
        if report.unmatched:
            warnings.warn(
                f"only a part of the adapter was matched:\n{report}", PartialMatchWarning, stacklevel=2
            )
        return report

    # --- mixing ------------------------------------------------------------------------------------------------

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """
        Make these adapters, and no others, active at these weights; this also ends ``disable_lora``.

        Args:
            adapter_names: One name or several. An empty list is the base.
            adapter_weights: One weight for all, or a list with one each: a number, or a dict by component such as
                ``{"unet": 0.8, "text_encoder": 0.3}`` (a component not named has 1.0, as in diffusers; ``te`` means
                every text encoder). None is 1.0. Weights may be negative, zero or above 1.

        Raises:
            AdapterNameError: When a name is unknown or stands twice.
            MixError: When weights are not finite, lists differ in length or a component is unknown.

        Example:
            >>> mixer.set_adapters(["watercolor", "3d"], [0.7, {"unet": 0.4, "te": 0}])  # doctest: +SKIP
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            msg = f"{', '.join(repeated)}: named more than once in set_adapters; give one weight per adapter"
            raise AdapterNameError(msg)
        self.set_mix(Mix.from_weights(names, adapter_weights))

    def set_mix(self, mix: Any) -> None:
        """
        Make a mix active, given as a :class:`~lora_mixer.mixes.Mix` or anything that ``Mix.of`` reads.

        Raises:
            AdapterNameError: When it names an unknown adapter.
            MixError: When it cannot be applied.
        """
        wanted = Mix.of(mix)
        with self._lock:
            self._apply(wanted)
            self._mix, self._enabled = wanted, True

    @contextmanager
    def applied(self, mix: Any) -> Iterator[LoraMixer]:
        """
        Hold a mix for a block of code, then put back what was there, whatever happens inside.

        Other threads that set or apply mixes on this mixer wait until the block ends.

        Args:
            mix: A mix, such as ``{"watercolor": 0.7, "3d": -0.3}``.

        Example:
            >>> with mixer.applied({"watercolor": 0.7}):  # doctest: +SKIP
            ...     image = pipe("a castle").images[0]
        """
        wanted = Mix.of(mix)
        with self._lock:
            before, enabled = self._mix, self._enabled
            self.set_mix(wanted)
            try:
                yield self
            finally:
                # adapters that were deleted inside the block are gone from what was there, too
                kept = _without(before, [name for name in before.names if name not in self._loaded])
                self._apply(kept if enabled else Mix.of({}))
                self._mix, self._enabled = kept, enabled

    def disable_lora(self) -> None:
        """Give the base back, bit for bit; the adapters stay loaded and ``enable_lora`` brings the mix again."""
        with self._lock:
            self._apply(Mix.of({}))
            self._enabled = False

    def enable_lora(self) -> None:
        """Bring the mix back that was active before ``disable_lora``."""
        with self._lock:
            self._apply(self._mix)
            self._enabled = True

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """
        Take adapters out of the mix and out of memory; the others keep their weights.

        Raises:
            AdapterNameError: When a name is unknown; nothing is deleted then.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with self._lock:
            unknown = [name for name in names if name not in self._loaded]
            if unknown:
                raise self._unknown(unknown, "delete_adapters")
            kept = _without(self._mix, names)
            self._apply(kept if self._enabled else Mix.of({}))
            self._mix = kept
            for name in dict.fromkeys(names):
                del self._loaded[name]
                self._engine.remove(name)

    def unload_lora_weights(self) -> None:
        """Give the base back, bit for bit, and forget every adapter and kept copy."""
        with self._lock:
            self._apply(Mix.of({}))
            self._mix, self._enabled = Mix.of({}), True
            for name in list(self._loaded):
                del self._loaded[name]
                self._engine.remove(name)

    # --- writing -----------------------------------------------------------------------------------------------

    def save_lora_weights(
        self,
        save_directory_or_path: Any,
        adapter_names: str | Sequence[str] | None = None,
        *,
        format: str = "diffusers",  # noqa: A002 -- the word for it
        rank: int | None = None,
        dtype: torch.dtype | str | None = None,
        weights: Any = None,
    ) -> SaveReport:
        """
        Write an adapter as it was loaded, or a mix as one adapter, to files that other programs read.

        Args:
            save_directory_or_path: A ``.safetensors`` file, or a folder. PEFT's format is always a folder, with one
                folder per component inside where there are several.
            adapter_names: One name, which at weight 1 is written with its own tensors and scales, or several, which
                become one adapter; the mix in effect when None.
            format: ``"diffusers"``, ``"kohya"`` or ``"peft"``.
            rank: The rank to cut to; None is exact, at the sum of the ranks.
            dtype: ``float32``, ``float16`` or ``bfloat16``; by default each tensor's own, float32 for sums.
            weights: Weights for the names as in ``set_adapters``; without names, a mix in any form.

        Returns:
            The files, and what the rank left out of each layer.

        Raises:
            AdapterNameError: When a name is unknown.
            MixError: When there is nothing to save, or the mix changes from step to step.
            SaveError: When the format or the disk cannot take it; what was there before is still there.

        Example:
            >>> mixer.save_lora_weights("mine.safetensors", weights={"a": 0.7, "b": 0.3}, rank=32)  # doctest: +SKIP
        """
        with self._lock:
            choice = saving.choose(
                self.mix,
                save_directory_or_path,
                adapter_names,
                weights,
                format=format,
                rank=rank,
                dtype=dtype,
            )
            self._check_mix(choice.mix)
            held = {
                name: saving.hold(
                    self._loaded[name].info,
                    self._loaded[name].places,
                    self._engine.held(name),
                    self._gains(choice.mix, name),
                )
                for name in choice.mix.names
            }
            return saving.save(choice, held, find_components(self.pipe))

    # --- looking -----------------------------------------------------------------------------------------------

    def get_active_adapters(self) -> list[str]:
        """List the names in effect, in the order given to ``set_adapters``; none while disabled."""
        with self._lock:
            return list(self._mix.names) if self._enabled else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """List the loaded adapters of each component that has any."""
        with self._lock:
            table: dict[str, list[str]] = {}
            for name, loaded in self._loaded.items():
                for part in loaded.report.components:
                    if part.matched:
                        table.setdefault(part.component, []).append(name)
            return table

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """What is loaded, by name: source, format, base family, ranks, sizes, hashes, trigger words, metadata."""
        with self._lock:
            return MappingProxyType({name: loaded.info for name, loaded in self._loaded.items()})

    @property
    def reports(self) -> Mapping[str, MatchReport]:
        """The report of each load, by adapter name."""
        with self._lock:
            return MappingProxyType({name: loaded.report for name, loaded in self._loaded.items()})

    @property
    def mix(self) -> Mix:
        """The mix in effect: empty while disabled or when nothing is active."""
        with self._lock:
            return self._mix if self._enabled else Mix.of({})

    @property
    def is_in_parameters(self) -> bool:
        """Whether the whole mix is in the pipeline's parameters, so that ``save_pretrained`` saves it."""
        with self._lock:
            return not self._engine.has_hooks

    def memory(self) -> MemoryReport:
        """Count the bytes of adapters and kept bases."""
        with self._lock:
            sizes = {name: loaded.info.bytes for name, loaded in self._loaded.items()}
            return MemoryReport(sizes, self._engine.base_bytes(), self._keep_base)

    # --- when others changed the weights -------------------------------------------------------------------------

    def rebase(self) -> None:
        """
        Take what the weights hold now as the new base, after something else has changed them on purpose.

        No adapter is active afterwards; call ``set_adapters`` or ``enable_lora`` again.
        """
        with self._lock:
            self._engine.rebase()
            self._enabled = False

    def restore_base(self) -> None:
        """Write the kept base over whatever the weights hold now; no adapter is active afterwards."""
        with self._lock:
            self._engine.restore()
            self._enabled = False

    # --- inside --------------------------------------------------------------------------------------------------

    def _check_mix(self, mix: Mix) -> None:
        unknown = [name for name in mix.names if name not in self._loaded]
        if unknown:
            raise self._unknown(unknown, "the mix")
        self._check_components(mix)

    def _apply(self, mix: Mix) -> None:
        self._check_mix(mix)
        if not mix.is_constant:
            msg = "this mix has schedules or masks, which need the side engine; only constant mixes can be merged"
            raise MixError(msg)
        self._engine.apply({name: self._gains(mix, name) for name in mix.names})

    def _gains(self, mix: Mix, name: str) -> list[float]:
        places = self._loaded[name].places
        if mix[name].blocks is not None:
            layouts = {part: self._layout(part) for part in {part for part, _ in places}}
            return [mix.gain(name, part, path, layouts[part]) for part, path in places]
        by_component = {part: mix.gain(name, part, "") for part in {part for part, _ in places}}
        return [by_component[part] for part, _ in places]

    def _layout(self, component: str) -> BlockLayout | None:
        module = find_components(self.pipe).get(component)
        if module is None:
            return None
        return BlockLayout.from_module_names(name for name, _ in module.named_modules())

    def _check_components(self, mix: Mix) -> None:
        known = set(find_components(self.pipe))
        for name in mix.names:
            odd = [part for part in mix[name].named_components if part not in known and part != "te"]
            if odd:
                msg = f"{name}: no component {', '.join(odd)} in this pipeline; it has {', '.join(sorted(known))}, te"
                raise MixError(msg)

    def _swap_in(self, name: str, loaded: _Loaded, layers: Sequence[BoundLayer], *, hotswap: bool) -> None:
        """Let an adapter take effect under its name; if that fails, all is as it was."""
        before = self._loaded.get(name)
        spare = f"{name}\n"  # no adapter can be called so: names are printable
        if before is not None:
            self._engine.apply({})
            self._engine.rename(name, spare)
        try:
            self._engine.add(name, layers)
            self._loaded[name] = loaded
            wanted = self._mix if hotswap else Mix.of({name: 1.0})
            self._apply(wanted if self._enabled or not hotswap else Mix.of({}))
        except BaseException:
            self._loaded.pop(name, None)
            self._engine.discard(name)
            if before is not None:
                self._engine.rename(spare, name)
                self._loaded[name] = before
                self._apply(self._mix if self._enabled else Mix.of({}))
            raise
        if before is not None:
            self._engine.remove(spare)
        if not hotswap:
            self._mix, self._enabled = wanted, True

    def _free_name(self) -> str:
        number = len(self._loaded)
        while f"default_{number}" in self._loaded:
            number += 1
        return f"default_{number}"

    def _unknown(self, names: Sequence[str], where: str) -> AdapterNameError:
        loaded = ", ".join(self._loaded) or "none"
        return AdapterNameError(
            f"{where} names {', '.join(map(repr, names))}, which is not loaded; loaded are: {loaded}"
        )


def _checked_name(name: str) -> str:
    if not str(name).strip() or not str(name).isprintable():
        msg = f"an adapter name must be printable text, got {name!r}"
        raise AdapterNameError(msg)
    return name


def _without(mix: Mix, names: Sequence[str]) -> Mix:
    return Mix.of({name: mix[name] for name in mix.names if name not in names})
