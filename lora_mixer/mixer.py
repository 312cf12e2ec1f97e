"""The front door: adapters under names on one pipeline, mixed by weight, and the base back bit for bit."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_mixer.binding import BoundLayer, MatchReport, bind, find_components
from lora_mixer.engines import BASE, BaseDevice, Engine, MixLostError, Setting, Stage, Word, Words
from lora_mixer.engines.residence import check_finite, settle
from lora_mixer.errors import AdapterNameError, MatchError, MixError
from lora_mixer.formats import read
from lora_mixer.keeping import check_components
from lora_mixer.looking import Loaded
from lora_mixer.memory import paused_gc
from lora_mixer.mixes import Mix
from lora_mixer.ownership import claim
from lora_mixer.running import Running
from lora_mixer.sources import resolve_source
from lora_mixer.textual_inversion import Wording, choose, with_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from lora_mixer.algorithms.dora import DoraStrength


class PartialMatchWarning(UserWarning):
    """An adapter was loaded, but parts of it found no module; the message is the report."""


class LoraMixer(Running, Wording):
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
        self._stage = Stage(pipe, keep_base)
        self._words = Words(pipe)
        self._loaded: dict[str, Loaded] = {}
        self._held = BASE
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
        max_rank: int | None = None,
        dora_strength: DoraStrength | None = None,
        activate: bool = True,
        load_embeddings: bool | Mapping[str, str] = False,
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
            max_rank: Use the first ranks only, as DyLoRA files are made for.
            dora_strength: What weights other than 1 mean for DoRA layers: ``"linear"``, ``"peft"`` or ``"lycoris"``
                (docs/formats.md); None is linear for ``dora_scale``, PEFT's own for its files.
            activate: False leaves the mix in effect as it is.
            load_embeddings: Teach the text encoders the textual inversions in the file, too, until the adapter is
                deleted; a dict gives them other words, such as ``{"<s1>": "<disney>"}``.

        Returns:
            What was matched and what was not; print it.

        Raises:
            SourceError: When there is no such file, or several.
            FormatError: When it holds no adapter that can be used.
            MatchError: When it does not fit this pipeline, or not in full under ``strict``.
            AdapterNameError: When the name is in use, or unknown with ``hotswap``.
            MixError: When there is no such ``dora_strength``.
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
            with paused_gc():
                adapter = read(source, name=name)
                if max_rank is not None:
                    adapter = adapter.limited(max_rank)
                if dora_strength is not None:
                    adapter = adapter.with_dora_strength(dora_strength)
                words: tuple[Word, ...] = ()
                if load_embeddings:
                    embeddings = choose(adapter, load_embeddings, allow_nonfinite=allow_nonfinite)
                    words = self._words.fit(embeddings, name, adapter.info.source)
                    adapter = with_words(adapter, words)
                binding = bind(adapter, components, name, component=component)
                report = binding.report
                if strict and not report.complete:
                    msg = f"strict=True, and not all of the file was matched:\n{report}"
                    raise MatchError(msg)
                layers = settle(binding.layers)
                if not allow_nonfinite:
                    check_finite(layers, report.source)
                with self._words.changed({name: words}, shown=True if activate and not hotswap else None):
                    self._swap_in(
                        name, Loaded(adapter.info, report), layers, hotswap=hotswap, activate=activate
                    )
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
        if isinstance(adapter_names, Mapping):
            msg = "set_adapters takes names and weights apart; a dict of weights by name goes to set_mix"
            raise MixError(msg)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            msg = f"{', '.join(repeated)}: named more than once in set_adapters; give one weight per adapter"
            raise AdapterNameError(msg)
        self.set_mix(Mix.from_weights(names, adapter_weights))

    def check_mix(self, mix: Any) -> None:
        """
        Check that a mix names loaded adapters and components that are there; nothing changes.

        Raises:
            AdapterNameError: When it names an unknown adapter.
            MixError: When it makes no sense.
        """
        with self._lock:
            self._check_mix(Mix.of(mix), find_components(self.pipe))

    def set_mix(
        self,
        mix: Any,
        *,
        negative: Any = None,
        engine: Engine = "auto",
        guidance_copies: int | None = None,
    ) -> None:
        """
        Make a mix active, given as a :class:`~lora_mixer.mixes.Mix` or anything that ``Mix.of`` reads.

        Args:
            mix: A mix; or a list of mixes, one for each prompt of a batch: each image then gets its own mix in one
                pipeline call, guidance and ``num_images_per_prompt`` included.
            negative: The mix of the half of the batch that guidance makes without the prompt, and of the negative prompt;
                the same as ``mix`` when None. With a list of mixes, a list of as many.
            engine: ``"merged"`` rewrites weights, ``"side"`` runs beside them, ``"auto"`` takes the cheaper that can.
            guidance_copies: How often guidance repeats the batch in a denoiser call, for lists of mixes on pipelines
                that do not tell (2 for classifier-free guidance in one call).

        Raises:
            AdapterNameError: When it names an unknown adapter.
            MixError: When it cannot be applied.
        """
        wanted = Setting.of(mix, engine, guidance_copies, negative)
        with self._lock, self._words.changed(shown=True):
            self._apply(wanted)
            self._held, self._enabled = wanted, True

    @contextmanager
    def applied(
        self,
        mix: Any,
        *,
        negative: Any = None,
        engine: Engine = "auto",
        guidance_copies: int | None = None,
    ) -> Iterator[LoraMixer]:
        """
        Hold a mix for a block of code, then put back what was there, whatever happens inside.

        Other threads that set or apply mixes on this mixer wait until the block ends.

        Args:
            mix: A mix, such as ``{"watercolor": 0.7, "3d": -0.3}``, or a list of them, one for each prompt.
            negative: As in :meth:`set_mix`.
            engine: As in :meth:`set_mix`.
            guidance_copies: As in :meth:`set_mix`.

        Example:
            >>> with mixer.applied({"watercolor": 0.7}):  # doctest: +SKIP
            ...     image = pipe("a castle").images[0]
        """
        with self._lock:
            before, enabled = self._held, self._enabled
            wanted = Setting.of(mix, engine, guidance_copies, negative)
            if not (enabled and wanted == before):  # else it is in effect already: nothing is written twice
                self.set_mix(mix, negative=negative, engine=engine, guidance_copies=guidance_copies)
            try:
                yield self
            finally:
                # adapters that were deleted inside the block are gone from what was there, too
                kept = before.without(name for name in before.names if name not in self._loaded)
                if (self._held, self._enabled) != (kept, enabled):
                    with self._words.changed(shown=enabled):
                        self._apply(kept if enabled else BASE)
                self._held, self._enabled = kept, enabled

    def disable_lora(self) -> None:
        """Give the base back, bit for bit; the adapters stay loaded and ``enable_lora`` brings the mix again."""
        with self._lock, self._words.changed(shown=False):
            self._apply(BASE)
            self._enabled = False

    def enable_lora(self) -> None:
        """Bring the mix back that was active before ``disable_lora``."""
        with self._lock, self._words.changed(shown=True):
            self._apply(self._held)
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
            kept = self._held.without(names)
            with self._words.changed(drop=names):
                self._apply(kept if self._enabled else BASE)
            self._held = kept
            for name in dict.fromkeys(names):
                del self._loaded[name]
                self._stage.remove(name)

    def unload_lora_weights(self) -> None:
        """Give the base back, bit for bit, and forget every adapter, kept copy and textual inversion."""
        with self._lock, self._words.changed(drop=self._words.held, shown=True):
            self._apply(BASE)
            self._held, self._enabled = BASE, True
            for name in list(self._loaded):
                del self._loaded[name]
                self._stage.remove(name)

    # --- inside --------------------------------------------------------------------------------------------------

    def _check_mix(self, mix: Mix, components: Mapping[str, nn.Module]) -> None:
        unknown = [name for name in mix.names if name not in self._loaded]
        if unknown:
            raise self._unknown(unknown, "the mix")
        check_components(mix, components)

    def _apply(self, wanted: Setting) -> None:
        components = find_components(self.pipe)
        for mix in wanted.every:
            self._check_mix(mix, components)
        try:
            self._stage.apply(wanted, components)
        except MixLostError:
            self._enabled = False
            raise

    def _swap_in(
        self, name: str, loaded: Loaded, layers: Sequence[BoundLayer], *, hotswap: bool, activate: bool
    ) -> None:
        """Let an adapter take effect under its name; if that fails, all is as it was."""
        before = self._loaded.get(name)
        spare = f"{name}\n"  # no adapter can be called so: names are printable
        if before is not None:
            self._apply(BASE)
            self._stage.rename(name, spare)
        try:
            self._stage.add(name, layers)
            self._loaded[name] = loaded
            wanted = self._held if hotswap else Setting.of({name: 1.0})
            if activate or hotswap:
                self._apply(wanted if self._enabled or not hotswap else BASE)
        except BaseException:
            self._stage.remove(name)
            if before is None:
                self._loaded.pop(name, None)
            else:
                self._stage.rename(spare, name)
                self._loaded[name] = before
                self._apply(self._held if self._enabled else BASE)
            raise
        if before is not None:
            self._stage.remove(spare)
        if activate and not hotswap:
            self._held, self._enabled = wanted, True

    def _free_name(self) -> str:
        number = len(self._loaded)
        while f"default_{number}" in self._loaded:
            number += 1
        return f"default_{number}"


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        msg = f"an adapter name must be printable text, got {name!r}"
        raise AdapterNameError(msg)
    return name
