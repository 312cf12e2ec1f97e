"""The front door: adapters under names on one pipeline, mixed by weight, and the base back bit for bit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import torch

from lora_mixer.binding import (
    MatchReport,
    bind,
    check_components,
    find_components,
    refuse_unusable,
    without_effect,
)
from lora_mixer.components import DENOISERS, TEXT_ENCODERS
from lora_mixer.diffusers_arguments import NotOfLoads, NotOfSaves, refuse_arguments
from lora_mixer.diffusers_words import DiffusersWords
from lora_mixer.engines import BASE, ActiveMixes, KeepBase
from lora_mixer.engines.denoiser.cuda_graph import captured
from lora_mixer.engines.denoiser.steps import schedules_without_steps
from lora_mixer.engines.pipeline_ref import callers
from lora_mixer.engines.placement import check_finite, computes_on_cuda, copy_to_devices
from lora_mixer.engines.trainable.parameters import Trained, trained
from lora_mixer.errors import AdapterNameError, MatchError, MixError, MixLostError, PipelineStateError
from lora_mixer.formats import check_held, paused_gc, read_embeddings, read_source, read_trainable
from lora_mixer.fresh.making import Asked, fresh_source, needs_data
from lora_mixer.fresh.rates import groups_of
from lora_mixer.fresh.reading import read_config
from lora_mixer.holding import ReadingLock
from lora_mixer.interrupts import Interruptible, uninterrupted
from lora_mixer.memory import MemoryReport
from lora_mixer.mixes import Mix, parse_prompt
from lora_mixer.ownership import Before, Loaded, MixerState, refuse_beside, state_of
from lora_mixer.problem import Problem, Remedy, Surface
from lora_mixer.sources import resolve_source
from lora_mixer.textual_inversion import Token, checked, choose_embeddings, named, with_words
from lora_mixer.word_keys import token_of
from lora_mixer.wording import shown
from lora_mixer.writing import live as saving
from lora_mixer.writing.compose import RankCut
from lora_mixer.writing.formats.table import FORMATS
from lora_mixer.writing.originals import Original
from lora_mixer.writing.trained import write_peft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn
    from typing_extensions import Unpack

    from lora_mixer.adapter import Adapter, AdapterInfo
    from lora_mixer.algorithms.dora import DoraStrength
    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.denoiser.cuda_graph import Captured
    from lora_mixer.engines.trainable.allocation import RankAllocation
    from lora_mixer.merging import MergeMethod
    from lora_mixer.ownership import Parts
    from lora_mixer.sources import AdapterSource
    from lora_mixer.writing.report import SaveReport


_RESERVED_AT_MOST = 1 << 16
"""Ranks and rows that can be reserved: far beyond any layer's width and any batch."""


class PartialMatchWarning(UserWarning):
    """
    An adapter was loaded, but parts of it found no module; the message is the report.

    Example:
        >>> import torch, warnings
        >>> pair = {"lora_A.weight": torch.ones(1, 2), "lora_B.weight": torch.ones(2, 1)}
        >>> file = {f"{number}.{key}": value for number in "07" for key, value in pair.items()}
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     report = LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).load_lora_weights(file, "ink")
        >>> told[0].category is PartialMatchWarning, report.unmatched
        (True, 1)
    """


class UnusedWeightWarning(UserWarning):
    """
    A mix says something of an adapter that changes nothing, such as a weight for a part in which it has no layers.

    Example:
        >>> import torch, warnings
        >>> mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2)))
        >>> _ = mixer.load_lora_weights({"0.lora_A.weight": torch.ones(1, 2), "0.lora_B.weight": torch.ones(2, 1)}, "ink")
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     mixer.set_mix("ink:1,start=5")
        >>> told[0].category is UnusedWeightWarning, str(told[0].message)[:39]
        (True, 'ink: its schedule changes nothing after')
    """


@dataclass(frozen=True)
class TokenInfo:
    """
    A word that a mixer has taught the text encoders.

    Attributes:
        token: The word, as it stands in prompts.
        vectors: Number of its vectors by text encoder; a word of n vectors becomes ``token token_1 ...``, which
            diffusers pipelines write into the prompt by themselves.
        adapter: The adapter that it came with; None for one that was loaded by itself.

    Example:
        >>> TokenInfo("<cat-toy>", {"text_encoder": 2}, None).vectors
        {'text_encoder': 2}
    """

    token: str
    vectors: Mapping[str, int]
    adapter: str | None


class LoraMixer:
    """
    Load, mix and remove LoRA adapters on a pipeline; the pipeline itself stays what it is.

    Weights are rewritten in place from a kept base, so a picture costs what the base costs, whatever the mix. Calls
    are serialised by a lock; :meth:`applied` holds it while pictures are made.

    Args:
        pipe: A diffusers pipeline, or a bare ``torch.nn.Module``.
        keep_base: Where the base of touched weights is kept: ``"device"`` beside them (fastest); ``"host"`` in host memory,
            which saves GPU memory and takes the bus at each switch; ``"patch"`` in the mixed weights themselves, from which the
            mix is subtracted and a small patch put on, bit for bit (a tenth of a copy or less; a switch costs several times as
            much, and what is written over weights under a mix takes the base with it); ``"none"`` nowhere, every mix runs beside the weights, which
            costs time in each step; ``"auto"`` on the device while 2 GiB stay free there, else in host memory.
        take_over: Put this mixer behind the pipeline's own ``load_lora_weights``, ``set_adapters``, ``fuse_lora``, ... and those
            of its parts, with diffusers' arguments and meaning, until :meth:`hand_back` (docs/diffusers.md).

    Raises:
        PipelineStateError: When ``pipe`` has no modules.
        MixError: When there is no such ``keep_base``.

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
        >>> mixer.enable_lora()  # the mix from before, which stays in effect around a block with another one
        >>> with mixer.applied({"ones": 0.25}):
        ...     mixer.get_active_adapters(), torch.allclose(model[0].weight, base + 0.25)
        (['ones'], True)
        >>> mixer.set_mix("ones:1 "), mixer.check_mix({"ones": {"weight": 0.5}}), mixer.set_adapter("ones")
        (None, None, None)
        >>> prompt, mix = mixer.parse_prompt("a castle <lora:ones:0.7>")
        >>> prompt, mix.to_text()
        ('a castle', 'ones:0.7')
        >>> mixer.reserve(rank=2)  # a side path that stays, for compiled models; without it the mix goes into the weights again
        >>> mixer.release(), mixer.is_in_parameters
        (None, True)
        >>> mixer.get_list_adapters(), LoraMixer.of(model) is mixer, mixer.memory().adapters
        ({'model': ['ones']}, True, {'ones': 32})
        >>> import tempfile
        >>> mixer.save_lora_weights(f"{tempfile.mkdtemp()}/mine.safetensors", weights={"ones": 0.5}).format
        'diffusers'
        >>> mixer.disable_adapters(), mixer.enable_adapters(), mixer.restore_base(), torch.equal(model[0].weight, base)
        (None, None, None, True)
        >>> model[0].weight.data += 1  # on purpose: this is the base from now on
        >>> mixer.rebase(), mixer.delete_adapters("ones"), mixer.unload_lora_weights(), mixer.hand_back()
        (None, None, None, None)
    """

    def __init__(self, pipe: Any, *, keep_base: KeepBase = "device", take_over: bool = False) -> None:
        """Take the pipeline, and over what a mixer that is gone has left on it; nothing else is changed or copied yet."""
        if keep_base not in get_args(KeepBase):
            raise MixError(
                f"keep_base must be one of {', '.join(get_args(KeepBase))}, got {keep_base!r}",
                argument="keep_base",
            )
        find_components(pipe)  # a clear error now rather than at the first load
        self.pipe = pipe
        self._keep_base: KeepBase = keep_base
        self._own = MixerState(pipe, keep_base)
        if (
            take_over
        ):  # the words first: what is left of another mixer is not moved where they cannot be placed
            DiffusersWords(self).place(then=self._begin)
        else:
            self._begin()

    def hand_back(self) -> None:
        """
        Give the pipeline its own words for adapters back that ``take_over=True`` has put this mixer behind.

        Adapters and the mix in effect stay as they are; without ``take_over`` nothing happens.

        Example:
            >>> LoraMixer(pipe, take_over=True).hand_back()  # doctest: +SKIP
        """
        with self._look() as state:
            DiffusersWords(self).take_away(state.guard)

    @classmethod
    def of(cls, pipe: Any) -> LoraMixer:
        """
        Return the mixer whose adapters are on a pipeline, also where its variable is lost; else a new one.

        One of a pipeline that has another module under a name that both have is not this one's, whatever they share: what it loads
        would go there.

        Args:
            pipe: A diffusers pipeline, or a bare ``torch.nn.Module``.

        Raises:
            PipelineStateError: When ``pipe`` has no modules, or several mixers have left adapters on it.

        Example:
            >>> LoraMixer.of(pipe).unload_lora_weights()  # doctest: +SKIP
        """
        state = state_of(pipe)
        mixer = None if state is None else state.mixer
        if not isinstance(mixer, cls):
            return cls(pipe)
        theirs, mine = find_components(mixer.pipe), find_components(pipe)
        is_same = all(theirs.get(part, root) is root for part, root in mine.items())
        return mixer if mixer.pipe is pipe or is_same else cls(pipe)

    # --- loading -----------------------------------------------------------------------------------------

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
        proxies: Mapping[str, str] | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,  # noqa: ARG002 -- diffusers' argument; nothing is built here to save on
        load_into_transformer_2: bool = False,
        load_into_transformer_ref: bool = False,
        component: str | None = None,
        strict: bool = False,
        hotswap: bool = False,
        allow_pickle: bool = False,
        allow_nonfinite: bool = False,
        max_rank: int | None = None,
        dora_strength: DoraStrength | None = None,
        activate: bool = True,
        trainable: bool = False,
        load_embeddings: bool | Mapping[str, str] = False,
        **others: Unpack[NotOfLoads],
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
            proxies: As in diffusers; refused where something would be downloaded, since huggingface_hub takes them from
                the environment only.
            use_safetensors: True refuses pickles; False wants one.
            low_cpu_mem_usage: Taken for diffusers' sake: no module is built here, so there is nothing to save.
            load_into_transformer_2: As in diffusers (Wan 2.2): short for ``component="transformer_2"``.
            load_into_transformer_ref: The same for ``component="transformer_ref"``.
            component: The component to load into, whatever the keys say.
            strict: Refuse a file that is not matched in full.
            hotswap: Replace the loaded adapter of this name and keep its place and weight in the mix. With ``trainable=True``:
                write the values of another state of it, such as a checkpoint's, into the parameters that it has.
            allow_pickle: Read ``.pt`` and ``.bin`` files (through torch's ``weights_only`` loader).
            allow_nonfinite: Load tensors with NaN or Inf; they are gone without trace when the adapter is.
            max_rank: Use the first ranks only, as DyLoRA files are made for.
            dora_strength: What weights other than 1 mean for DoRA layers: ``"linear"``, ``"peft"`` or ``"lycoris"``
                (docs/formats.md); None is linear for ``dora_scale``, PEFT's own for its files.
            activate: False leaves the mix in effect as it is.
            trainable: Load it to be trained on: it runs beside the weights, its tensors are parameters
                (:meth:`named_trainable_parameters`), and no parameter of the components that it reaches asks for a
                gradient until it is deleted.
            load_embeddings: Teach the text encoders the textual inversions in the file, too, until the adapter is
                deleted; a dict gives them other words, such as ``{"<s1>": "<disney>"}``.
            **others: Arguments of diffusers' loaders that mean nothing here: refused, each with what there is instead.

        Returns:
            What was matched and what was not; print it.

        Raises:
            ArgumentError: When an argument is none of these.
            SourceError: When there is no such file, or several.
            FormatError: When it holds no adapter that can be used.
            MatchError: When it does not fit this pipeline, or not in full under ``strict``.
            AdapterNameError: When the name is in use, or unknown with ``hotswap``.
            MixError: When there is no such ``dora_strength`` or ``max_rank``.
            PipelineStateError: When the weights cannot be rewritten (meta, quantised).

        Warns:
            PartialMatchWarning: When only a part of the file was matched.
        """
        refuse_arguments("load_lora_weights", others, signature(LoraMixer.load_lora_weights).parameters)
        component = _one_component(
            component, transformer_2=load_into_transformer_2, transformer_ref=load_into_transformer_ref
        )
        with self._call(loads=True) as state:
            name = _free_name(state) if adapter_name is None else _checked_name(adapter_name)
            _check_free(state, name, hotswap=hotswap, trainable=trainable)
            source = resolve_source(
                pretrained_model_name_or_path_or_dict,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                proxies=proxies,
                use_safetensors=use_safetensors,
                allow_pickle=allow_pickle,
            )
            held = state.trained(name)
            if held is not None and hotswap:
                with _all_or_nothing(state, lambda: [held.record()]):
                    held.take_values(read_trainable(source, name=name)[1], source.config or {}, source.label)
                return state.loaded[name].report
            report = self._load(
                state,
                source,
                name,
                component=component,
                max_rank=max_rank,
                dora_strength=dora_strength,
                trainable=trainable,
                strict=strict,
                load_embeddings=load_embeddings,
                allow_nonfinite=allow_nonfinite,
                activate=activate and not hotswap,
            )
            if _is_partial(
                report
            ):  # before the call is over: who makes errors of warnings has nothing loaded then
                warnings.warn(
                    f"only a part of the adapter was matched:\n{report}", PartialMatchWarning, stacklevel=2
                )
        return report

    def add_adapter(
        self,
        config: Any,
        adapter_name: str | None = None,
        *,
        component: str | None = None,
        blocks: Sequence[str] | None = None,
        eva_data: Iterable[Any] | None = None,
        activate: bool = True,
    ) -> MatchReport:
        """
        Make a fresh adapter to be trained, and the only active one, at weight 1.0; others stay loaded, of whatever kind.

        It begins without an effect, the base is left as it is, and the tensors are those of an adapter that was loaded with
        ``trainable=True``: see :meth:`named_trainable_parameters`. They are drawn by torch's generator on the CPU, so that
        ``torch.manual_seed`` before the call repeats them.

        Args:
            config: A configuration of :mod:`lora_mixer.fresh`, one of PEFT's, a dict with ``peft_type``, or the path of an
                ``adapter_config.json``.
            adapter_name: The name; ``default_0``, ``default_1``, ... when None.
            component: The component that it is for; None takes the denoiser of a pipeline, or the only component.
            blocks: Only targets in these blocks: paths such as ``"mid_block"`` and ``"transformer_blocks.3"``, or a UNet's blocks
                by LBW's ids such as ``"M00"``.
            eva_data: Batches for ``init_lora_weights="eva"``: dicts of the model's arguments.
            activate: False leaves the mix in effect as it is.

        Returns:
            Which modules it is on; print it.

        Raises:
            AdapterConfigError: With everything that is wrong with the configuration, or that does not fit the model.
            AdapterNameError: When the name is in use.
            MatchError: When there is no such component.
            SourceError: When there is no such file.
            PipelineStateError: When weights that the start needs cannot be read.

        Warns:
            UnmatchedTargetsWarning: When names match nothing, beside others that do.

        Example:
            >>> import torch
            >>> from lora_mixer import LoraConfig
            >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2))
            >>> mixer = LoraMixer(model)
            >>> report = mixer.add_adapter(LoraConfig(r=2, target_modules=["0"]), "mine")
            >>> [tuple(p.shape) for _, p in mixer.named_trainable_parameters("mine")]
            [(2, 6), (4, 2)]
        """
        fresh, kind = read_config(config)
        with self._call(loads=True) as state:
            name = _free_name(state) if adapter_name is None else _checked_name(adapter_name)
            _check_free(state, name, hotswap=False, trainable=True)
            components = state.components()
            part = _fresh_component(component, components)
            asked = Asked(
                f"adapter {name!r}",
                trusted=not isinstance(config, str | os.PathLike),
                blocks=[blocks] if isinstance(blocks, str) else blocks,
                eva_data=eva_data,
            )
            if needs_data(fresh):  # directions are those of the base's inputs
                state.controller.apply(BASE, components)
            source = fresh_source(fresh, kind, part, components[part], state.controller.clean_of, asked)
            report = self._load(
                state, source, name, component=part, trainable=True, strict=True, activate=activate
            )
            if not activate:
                self._apply(state, state.held if state.enabled else BASE)
        return report

    def _load(
        self,
        state: MixerState,
        source: AdapterSource,
        name: str,
        *,
        component: str | None,
        trainable: bool,
        strict: bool,
        activate: bool,
        max_rank: int | None = None,
        dora_strength: DoraStrength | None = None,
        load_embeddings: bool | Mapping[str, str] = False,
        allow_nonfinite: bool = False,
    ) -> MatchReport:
        """Read an adapter, bind it, take it, and put it into effect where it is asked or has a place in the mix."""
        components = state.components()
        with paused_gc():
            adapter, tensors = _read(
                source,
                name,
                max_rank,
                dora_strength,
                trainable=trainable,
                pinned=computes_on_cuda(components.values()),
            )
            words: tuple[Token, ...] = ()
            if load_embeddings:
                embeddings = choose_embeddings(adapter, load_embeddings, allow_nonfinite=allow_nonfinite)
                words = state.tokens.fit(embeddings, name, adapter.info.source)
                adapter = with_words(adapter, words)
            binding = bind(adapter, components, name, component=component, memory=state.memory)
            refuse_unusable(binding, self.pipe)
            report = binding.report
            if strict and not report.complete:
                raise MatchError(
                    f"not all of the file was matched, as strict asks for:\n"
                    f"{report.table_on(Surface.PYTHON)}",
                    file=adapter.info.source,
                    problems=report.problems,
                )
            reached = {live.component for live in binding.lives}
            reached |= {word.component for word in words}
            state.claim(
                {part: components[part] for part in reached},
                [live.module for live in binding.lives],
            )
            layers, learnt = _own_layers(binding.layers, tensors, source)
            original = (
                Original.of(adapter.config, adapter.file, binding.layers)
                if learnt is None and adapter.config
                else None
            )
            if not allow_nonfinite:
                check_finite(layers, report.source)
            state.tokens.change({name: words}, shown=True if activate else None)
            loaded = Loaded(replace(adapter.info, base=binding.base), report, original)
            state.take(name, loaded, layers, learnt, [components[part] for part in reached])
            if activate:
                state.held, state.enabled = ActiveMixes.of({name: 1.0}), True
            if name in state.held.names:
                self._apply(state, state.held if state.enabled else BASE)
        return report

    @property
    def trained_adapters(self) -> list[str]:
        """The names of the adapters in training, in the order in which they were loaded."""
        with self._look() as state:
            return [name for name in state.loaded if state.trained(name) is not None]

    def named_trainable_parameters(self, adapter_name: str) -> list[tuple[str, nn.Parameter]]:
        """
        List what is trained of an adapter, for an optimizer.

        Args:
            adapter_name: An adapter that was loaded with ``trainable=True``.

        Returns:
            The keys of the adapter's file, and the parameters: the adapter's own tensors, which every call of the model
            computes with, in fp32 at least.

        Raises:
            AdapterNameError: When there is no such adapter, or it was not loaded to be trained.

        Warns:
            UserWarning: When it is not in the mix in effect, so that no gradient would reach it.

        Example:
            >>> parameters = [p for _, p in mixer.named_trainable_parameters("mine")]  # doctest: +SKIP
            >>> optimizer = torch.optim.AdamW(parameters, lr=1e-4)  # doctest: +SKIP
        """
        with self._look() as state:
            learnt = _learnt(state, adapter_name, "named_trainable_parameters")
            if not state.enabled or adapter_name not in state.held.names:
                warnings.warn(
                    f"{adapter_name!r} is not in the mix in effect, so that training would change nothing: "
                    f"set_adapters({adapter_name!r})",
                    stacklevel=2,
                )
            return list(learnt.parameters.items())

    def parameter_groups(
        self,
        adapter_name: str,
        lr: float,
        *,
        rates: Mapping[str, float] | None = None,
        lora_plus_ratio: float = 1.0,
    ) -> list[dict[str, Any]]:
        """
        List what is trained of an adapter as groups for an optimizer, each with its learning rate.

        Args:
            adapter_name: An adapter in training.
            lr: The rate of all that no pattern names.
            rates: Other rates by pattern, as ``rank_pattern`` has them: names or regular expressions that the end of a module's path
                must match; the first that matches counts.
            lora_plus_ratio: What the rates of B are multiplied by (LoRA+, arXiv:2402.12354); 16 is usual there.

        Returns:
            Groups with ``params`` and ``lr``.

        Raises:
            AdapterNameError: When there is no such adapter, or it is not in training.
            AdapterConfigError: When a rate is no number above 0, or a pattern matches no module.

        Warns:
            UserWarning: When it is not in the mix in effect, so that no gradient would reach it.

        Example:
            >>> groups = mixer.parameter_groups("mine", 1e-4, rates={"mid_block.*": 5e-5})  # doctest: +SKIP
            >>> optimizer = torch.optim.AdamW(groups)  # doctest: +SKIP
            >>> from lora_mixer import LoraConfig
            >>> mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
            >>> _ = mixer.add_adapter(LoraConfig(r=1, target_modules=["0", "1"]), "mine")
            >>> [(len(group["params"]), group["lr"]) for group in mixer.parameter_groups("mine", 1e-4, rates={"1": 5e-5})]
            [(2, 0.0001), (2, 5e-05)]
        """
        return groups_of(
            self.named_trainable_parameters(adapter_name), lr, {} if rates is None else rates, lora_plus_ratio
        )

    def adapter_loss(self, adapter_name: str) -> torch.Tensor:
        """
        Return what an adapter in training adds to the loss: AdaLoRA's orthogonality, 0 for every other kind.

        Args:
            adapter_name: An adapter in training.

        Returns:
            One number, through which gradients flow, weighted by ``orth_reg_weight`` of its configuration.

        Raises:
            AdapterNameError: When there is no such adapter, or it was not loaded to be trained.

        Example:
            >>> loss = model(**batch).loss + mixer.adapter_loss("mine")  # doctest: +SKIP
            >>> from lora_mixer import AdaLoraConfig
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
            >>> mixer = LoraMixer(model)
            >>> _ = mixer.add_adapter(AdaLoraConfig(init_r=2, target_r=1, total_step=10, target_modules=["0"]), "mine")
            >>> (model(torch.ones(1, 2)).sum() + mixer.adapter_loss("mine")).backward()
            >>> mixer.after_step(0)
        """
        with self._look() as state:
            learnt = _learnt(state, adapter_name, "adapter_loss")
            if learnt.allocation is not None:
                return learnt.allocation.loss()
            first = next(iter(learnt.parameters.values()), None)
            return torch.zeros(()) if first is None else first.new_zeros(())

    def after_step(self, step: int) -> None:
        """
        Let adapters in training do what they do after an optimizer's step: AdaLoRA gives ranks up, others do nothing.

        Call it behind ``optimizer.step()`` and before ``optimizer.zero_grad()``; all adapters in training that are in
        the mix in effect take part.

        Args:
            step: The number of the optimizer's step, counted from 0.

        Raises:
            PipelineStateError: When gradients are gone already, or the configuration does not say ``total_step``.

        Example:
            >>> optimizer.step()  # doctest: +SKIP
            >>> mixer.after_step(step)  # doctest: +SKIP
            >>> optimizer.zero_grad()  # doctest: +SKIP
        """
        state = self._state

        def allocations() -> list[RankAllocation]:
            names = state.held.names if state.enabled else ()
            found = [learnt.allocation for name in names if (learnt := state.trained(name)) is not None]
            return [allocation for allocation in found if allocation is not None]

        with _all_or_nothing(state, lambda: [partial(x.roll_back, x.record()) for x in allocations()]):
            for allocation in allocations():
                allocation.after_step(step)

    def training_state(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """
        Return what a run needs beside the adapter's file to go on exactly: AdaLoRA's ranks and what it knows of them.

        What is saved of an AdaLoRA is cut to the ranks that stay, while the run still weighs all of them.

        Args:
            adapter_name: An adapter in training.

        Returns:
            Copies of tensors by name, for safetensors or ``torch.save``; none for every other kind.

        Raises:
            AdapterNameError: When there is no such adapter, or it was not loaded to be trained.

        Example:
            >>> import torch
            >>> from lora_mixer import AdaLoraConfig, LoraMixer
            >>> mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(4, 4)))
            >>> config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["0"])
            >>> _ = mixer.add_adapter(config, "mine")
            >>> sorted(name.rpartition(".")[2] for name in mixer.training_state("mine"))
            ['lora_A', 'lora_B', 'lora_E']
        """
        with self._look() as state:
            learnt = _learnt(state, adapter_name, "training_state")
            return {} if learnt.allocation is None else learnt.allocation.state()

    def load_training_state(self, adapter_name: str, state: Mapping[str, torch.Tensor]) -> None:
        """
        Go on from what :meth:`training_state` returned, in the parameters that the optimizer has.

        Args:
            adapter_name: An adapter in training.
            state: The tensors; none for kinds that have none.

        Raises:
            AdapterNameError: When there is no such adapter, or it was not loaded to be trained.
            MatchError: When they are of another adapter; nothing is changed then.

        Example:
            >>> import torch
            >>> from lora_mixer import AdaLoraConfig, LoraMixer
            >>> mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(4, 4)))
            >>> config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["0"])
            >>> _ = mixer.add_adapter(config, "mine")
            >>> state = mixer.training_state("mine")  # a file of its own beside the optimizer's
            >>> mixer.load_training_state("mine", state)
        """
        held = self._state
        with _all_or_nothing(held, lambda: [_learnt(held, adapter_name, "load_training_state").record()]):
            learnt = _learnt(held, adapter_name, "load_training_state")
            if learnt.allocation is not None:
                learnt.allocation.take_state(state)
            elif state:
                raise MatchError(
                    f"{adapter_name!r} is of a kind without a training state, and one of {len(state)} tensors was given",
                    adapter=adapter_name,
                )

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str] | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        hf_token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
        allow_pickle: bool = False,
        allow_nonfinite: bool = False,
    ) -> tuple[str, ...]:
        """
        Teach the text encoders the word of a textual inversion file; words that come with a LoRA load with it.

        The pipeline knows the word until :meth:`unload_textual_inversion`, ``disable_lora`` or
        ``unload_lora_weights``. No weight changes: the embedding answers for the new tokens by hooks.

        Args:
            pretrained_model_name_or_path: A file, a folder, a Hub repo id, an open binary file, a state dict, or the
                vectors themselves, (n, width).
            token: The word; None takes the file's own, or its name where it has none. Several name the file's words in
                their order, or each row of its only word (``["<s0>", "<s1>"]`` of pivotal tuning).
            weight_name: The file in a folder or repository that has several.
            subfolder: A folder inside the repository.
            revision: Branch, tag or commit of the repository.
            hf_token: Token for private repositories.
            cache_dir: The Hub cache to use.
            local_files_only: Never go to the network.
            force_download: Download again what is cached.
            allow_pickle: Read ``.pt`` and ``.bin`` files (through torch's ``weights_only`` loader).
            allow_nonfinite: Load vectors with NaN or Inf.

        Returns:
            The words; :attr:`tokens` has the details.

        Raises:
            SourceError: When there is no such file, or several.
            FormatError: When it holds no textual inversion, or a broken one.
            MatchError: When no text encoder of the pipeline is as wide, or its tokenizer knows the word already.
            PipelineStateError: When the tokenizers cannot learn it.

        Example:
            >>> mixer.load_textual_inversion("cat-toy.safetensors", token="<cat-toy>")  # doctest: +SKIP
            ('<cat-toy>',)
        """
        if isinstance(pretrained_model_name_or_path, torch.Tensor):
            pretrained_model_name_or_path = {"vectors": pretrained_model_name_or_path}
        with self._call(loads=True) as state:
            source = resolve_source(
                pretrained_model_name_or_path,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                token=hf_token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_pickle=allow_pickle,
            )
            embeddings = read_embeddings(source, name=token if isinstance(token, str) else None)
            embeddings = named(embeddings, token, source.label)
            embeddings = tuple(checked(e, source.label, allow_nonfinite=allow_nonfinite) for e in embeddings)
            state.let_go({embedding.token for embedding in embeddings})
            words = state.tokens.fit(embeddings, "", source.label)
            components = state.components()
            state.claim({word.component: components[word.component] for word in words}, ())
            state.tokens.change({None: (*state.tokens.held.get(None, ()), *words)})
            state.inherited_tokens -= {word.token for word in words}
            return tuple(dict.fromkeys(word.token for word in words))

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """
        Take words away that were loaded by themselves; the tokenizers and embeddings are as they were before.

        Args:
            tokens: One or several words; all of them when None.

        Raises:
            AdapterNameError: When a word is unknown or came with an adapter; nothing is taken away then.

        Example:
            >>> mixer.unload_textual_inversion("<cat-toy>")  # doctest: +SKIP
        """
        with self._call() as state:
            held = state.tokens.held.get(None, ())
            names = (
                {word.token for word in held}
                if tokens is None
                else {tokens}
                if isinstance(tokens, str)
                else set(tokens)
            )
            odd = [name for name in names if name not in {word.token for word in held}]
            if odd:
                known = ", ".join(dict.fromkeys(word.token for word in held)) or "none"
                raise AdapterNameError(
                    f"unload_textual_inversion names {', '.join(map(repr, sorted(odd)))}; loaded by themselves are: {known}. "
                    "Words that came with an adapter go with it (delete_adapters)",
                    argument="tokens",
                    problems=[Problem(name, "is not loaded by itself") for name in sorted(odd)],
                )
            state.tokens.change({None: [word for word in held if word.token not in names]})

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """
        Take adapters out of the mix and out of memory; the others keep their weights.

        Args:
            adapter_names: One name, or several.

        Raises:
            AdapterNameError: When a name is unknown; nothing is deleted then.
        """
        names = _names_in(adapter_names)
        with self._call("leave") as state:
            unknown = [name for name in names if name not in state.loaded]
            if unknown:
                raise _unknown(state, unknown, "delete_adapters")
            kept = state.held.without(names)
            state.tokens.change(drop=names)
            self._apply(state, kept if state.enabled else BASE)
            state.held = kept
            state.forget(names)

    def unload_lora_weights(self) -> None:
        """Give the base back, bit for bit, and forget every adapter, kept copy and textual inversion."""
        with self._call("leave") as state:
            state.tokens.change(drop=state.tokens.held, shown=True)
            self._apply(state, BASE)
            state.held, state.enabled = BASE, True
            state.forget(list(state.loaded))

    # --- mixing ------------------------------------------------------------------------------------------

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
            MixError: When weights are not finite, lists differ in length, a component is unknown, or an adapter has weights
                only where it has no layers.

        Warns:
            UnusedWeightWarning: When some of an adapter's weights are for components that it does not change.

        Example:
            >>> mixer.set_adapters(["watercolor", "3d"], [0.7, {"unet": 0.4, "te": 0}])  # doctest: +SKIP
        """
        if isinstance(adapter_names, Mapping):
            raise MixError(
                "set_adapters takes names and weights apart; a dict of weights by name goes to set_mix",
                argument="adapter_names",
            )
        names = _names_in(adapter_names)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise AdapterNameError(
                f"{', '.join(repeated)}: named more than once in set_adapters; give one weight per adapter",
                adapter=repeated[0],
                argument="adapter_names",
                problems=[Problem(name, "is named more than once") for name in repeated],
            )
        self.set_mix(Mix.from_weights(names, adapter_weights))

    def set_mix(
        self,
        mix: Any,
        *,
        negative: Any = None,
        engine: str = "auto",
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
            MixError: When it cannot be applied, or an adapter has weights only where it has no layers.

        Warns:
            UnusedWeightWarning: When something that it says of an adapter changes nothing, since that has no layers there.
        """
        wanted = ActiveMixes.of(mix, engine, guidance_copies, negative)
        with self._call() as state:
            state.tokens.change(shown=True)
            told = self._apply(state, wanted)
            state.held, state.enabled = wanted, True
            for text in told:
                warnings.warn(text, UnusedWeightWarning, stacklevel=2)

    def check_mix(self, mix: Any) -> None:
        """
        Check that a mix names loaded adapters and components that are there; nothing changes.

        Args:
            mix: A mix in any form that :meth:`set_mix` takes.

        Raises:
            AdapterNameError: When it names an unknown adapter.
            MixError: When it makes no sense.
        """
        with self._look() as state:
            _check_mix(state, Mix.of(mix), state.components())

    def applied(
        self,
        mix: Any,
        *,
        negative: Any = None,
        engine: str = "auto",
        guidance_copies: int | None = None,
    ) -> AbstractContextManager[LoraMixer]:
        """
        Hold a mix for a block of code, then put back what was there, whatever happens inside.

        Other threads that set or apply mixes on this mixer wait until the block ends; a thread that ends without ending it is not
        waited for, and the next call puts back what was there before. Another asyncio task of the same thread cannot wait and is
        refused.

        Args:
            mix: A mix, such as ``{"watercolor": 0.7, "3d": -0.3}``, or a list of them, one for each prompt.
            negative: As in :meth:`set_mix`.
            engine: As in :meth:`set_mix`.
            guidance_copies: As in :meth:`set_mix`.

        Returns:
            A context manager, which gives the mixer.

        Raises:
            PipelineStateError: As the block begins, when another asyncio task of this thread is inside of one; as it ends, in
                another thread or task than it began in.

        Example:
            >>> with mixer.applied({"watercolor": 0.7}):  # doctest: +SKIP
            ...     image = pipe("a castle").images[0]
        """
        wanted = ActiveMixes.of(mix, engine, guidance_copies, negative)
        state = self._state
        if state.is_empty:
            refuse_beside(state, self.pipe)
        before: list[Before] = []

        @uninterrupted
        def begin() -> LoraMixer:
            if state.has_lost_blocks:
                with self._call():  # ends them
                    pass
            before.append(Before(state.held, state.enabled))
            state.blocks.append(before[-1])
            if not (
                state.enabled and wanted == state.held
            ):  # else in effect already: nothing is written twice
                try:
                    self.set_mix(mix, negative=negative, engine=engine, guidance_copies=guidance_copies)
                except BaseException as error:
                    end(error)
                    raise
            return self

        @uninterrupted
        def end(_: BaseException | None) -> None:
            block = before.pop()
            if (
                block not in state.blocks
            ):  # its thread has ended, and another call has put back what was there
                return
            at = state.blocks.index(block)
            for later in state.blocks[
                at + 1 : at + 2
            ]:  # still open: it ends with what was there before this one
                later.held, later.enabled = block.held, block.enabled
            del state.blocks[at]
            held, enabled = block.held, block.enabled
            try:
                self._back_to(state, held, enabled=enabled)
            except BaseException as error:
                self._try_again(state, held, enabled=enabled, error=error)
                raise

        return Interruptible(begin, end, state.lock)

    def disable_lora(self) -> None:
        """Give the base back, bit for bit; the adapters stay loaded and ``enable_lora`` brings the mix again."""
        with self._call("leave") as state:
            state.tokens.change(shown=False)
            self._apply(state, BASE)
            state.enabled = False

    def enable_lora(self) -> None:
        """Bring the mix back that was active before ``disable_lora``."""
        with self._call() as state:
            state.tokens.change(shown=True)
            self._apply(state, state.held)
            state.enabled = True

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """
        Make one adapter, or several, the only active ones, each at weight 1: the word of Transformers models.

        Args:
            adapter_name: The name, or names.

        Raises:
            AdapterNameError: When one is unknown.

        Example:
            >>> mixer.set_adapter("adapter_2")  # doctest: +SKIP
        """
        self.set_adapters(adapter_name)

    def enable_adapters(self) -> None:
        """Bring the mix back that was active before: the word of Transformers models for :meth:`enable_lora`."""
        self.enable_lora()

    def disable_adapters(self) -> None:
        """Give the base back, bit for bit: the word of Transformers models for :meth:`disable_lora`."""
        self.disable_lora()

    def parse_prompt(
        self, prompt: str, *, presets: Mapping[str, Sequence[float]] | None = None
    ) -> tuple[str, Mix]:
        """
        Take ``<lora:name:weight>`` tags out of a prompt; the names are those of loaded adapters.

        Args:
            prompt: The prompt, or a negative prompt, as it was typed.
            presets: LBW lists that may be named, beside the built-in ones.

        Returns:
            The prompt without the tags, and the mix that they say, for ``applied`` and ``set_mix``.

        Raises:
            MixError: With everything that is wrong: names that are not loaded, names given twice, odd weights.

        Example:
            >>> prompt, mix = mixer.parse_prompt("a castle <lora:watercolor:0.7>")  # doctest: +SKIP
            >>> unwanted, less = mixer.parse_prompt("blurry <lora:3d:0.4>")  # doctest: +SKIP
            >>> with mixer.applied(mix, negative=less):  # doctest: +SKIP
            ...     pipe(prompt, negative_prompt=unwanted)
        """
        with self._look() as state:
            return parse_prompt(prompt, list(state.loaded), presets)

    # --- what is loaded and in effect --------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """What is loaded, by name: source, format, base family, ranks, sizes, hashes, trigger words, metadata."""
        with self._look() as state:
            return MappingProxyType({name: loaded.info for name, loaded in state.loaded.items()})

    @property
    def reports(self) -> Mapping[str, MatchReport]:
        """The report of each load, by adapter name."""
        with self._look() as state:
            return MappingProxyType({name: loaded.report for name, loaded in state.loaded.items()})

    @property
    def mix(self) -> Mix:
        """
        The mix in effect: empty while disabled or when nothing is active.

        Where each image of a batch has its own, this is the first; :attr:`mixes` has all.
        """
        return next(iter(self.mixes), Mix.of({}))

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The mixes in effect: one for all images, or one for each prompt of a batch."""
        with self._look() as state:
            return state.held.mixes if state.enabled else ()

    def get_active_adapters(self) -> list[str]:
        """
        List the names in effect, in the order given to ``set_adapters``; none while disabled.

        Returns:
            Names of loaded adapters.
        """
        with self._look() as state:
            return list(state.held.names) if state.enabled else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """
        List the loaded adapters of each component that has any.

        Returns:
            Names by component, in the order in which they were loaded.
        """
        with self._look() as state:
            table: dict[str, list[str]] = {}
            for name, loaded in state.loaded.items():
                for part in loaded.report.components:
                    if part.matched:
                        table.setdefault(part.component, []).append(name)
            return table

    @property
    def is_in_parameters(self) -> bool:
        """Whether the whole mix is in the pipeline's parameters, so that ``save_pretrained`` saves it."""
        with self._look() as state:
            return state.controller.is_in_parameters

    def memory(self) -> MemoryReport:
        """
        Count the bytes of adapters and kept bases.

        Returns:
            Bytes of each adapter, and of kept bases by device.
        """
        with self._look() as state:
            sizes = {name: loaded.info.bytes for name, loaded in state.loaded.items()}
            return MemoryReport(
                sizes, state.controller.base_bytes(), state.keep_base, state.controller.whole_bases()
            )

    @property
    def tokens(self) -> Mapping[str, TokenInfo]:
        """The words that are loaded, whether the pipeline knows them now or, while disabled, not."""
        with self._look() as state:
            table: dict[str, TokenInfo] = {}
            for owner, words in state.tokens.held.items():
                for word in words:
                    vectors = {**table[word.token].vectors} if word.token in table else {}
                    vectors[word.component] = len(word.vectors)
                    table[word.token] = TokenInfo(word.token, vectors, owner)
            return MappingProxyType(table)

    # --- compiled and captured models --------------------------------------------------------------------

    def reserve(self, rank: int = 64, *, rows: int = 1) -> None:
        """
        Keep a side path beside the denoiser's layers, with room for mixes to come, until :meth:`release`.

        Whatever mix is set then, it is written into tensors that stay where they are: a denoiser compiled by
        ``torch.compile`` is not compiled again, and one that was captured as a CUDA graph stays valid. The layers are
        those that the loaded adapters change; adapters that are loaded later may change the same ones.

        Args:
            rank: The ranks that all active adapters may have together in a layer.
            rows: 1 where all images of a batch have one mix; else the rows of the largest denoiser batch (prompts x
                images per prompt x guidance), each of which may have its own.

        Raises:
            MixError: When no adapter is loaded, or the mix in effect needs more room; nothing has changed then.

        Example:
            >>> mixer.reserve(rank=64)  # doctest: +SKIP
            >>> pipe.unet = torch.compile(pipe.unet)  # doctest: +SKIP
            >>> mixer.set_mix({"watercolor": 0.7, "3d": "0@0,1@1"})  # doctest: +SKIP
        """
        for name, value in (("rank", rank), ("rows", rows)):
            if type(value) is not int or not 1 <= value <= _RESERVED_AT_MOST:
                raise MixError(
                    f"{name} must be a whole number from 1 to {_RESERVED_AT_MOST}, got {shown(value)}",
                    argument=name,
                )
        with self._call() as state:
            state.controller.reserve(rank, rows, state.components())

    def release(self) -> None:
        """Take the reserved side path away; the mix in effect goes on without it."""
        with self._call() as state:
            state.controller.release(state.components())

    @contextmanager
    def capture(self) -> Iterator[dict[str, Captured]]:
        """
        Run the denoiser as a CUDA graph inside a block: one for each shape of its inputs, captured at the first call.

        Graphs stay valid while mixes are merged (whatever the weights, also by step), and, once the side path is
        reserved, for all others; without that, a mix beside the weights has them captured anew. Outputs are copies.

        Yields:
            By component, what runs in its place; ``captures`` counts the graphs.

        Raises:
            PipelineStateError: When the denoiser is not whole on one CUDA device.

        Example:
            >>> with mixer.capture():  # doctest: +SKIP
            ...     for mix in mixes:
            ...         with mixer.applied(mix):
            ...             pipe("a castle")
        """
        with self._look() as state:
            parts = {
                name: module
                for name, module in callers(self.pipe).items()
                if name in DENOISERS and name not in TEXT_ENCODERS
            }
            with captured(parts, state.controller.generation) as held:
                yield held

    # --- writing -----------------------------------------------------------------------------------------

    def save_lora_weights(
        self,
        save_directory_or_path: Any,
        adapter_names: str | Sequence[str] | None = None,
        *,
        format: str = "diffusers",  # noqa: A002 -- the word for it
        rank: int | None = None,
        conv_rank: int | None = None,
        energy: float | None = None,
        sv_ratio: float | None = None,
        method: MergeMethod | str = "sum",
        dtype: torch.dtype | str | None = None,
        weights: Any = None,
        **others: Unpack[NotOfSaves],
    ) -> SaveReport:
        """
        Write an adapter as it was loaded, or a mix as one adapter, to files that other programs read.

        Args:
            save_directory_or_path: A ``.safetensors`` file, or a folder. PEFT's format is always a folder, with one
                folder per component inside where there are several.
            adapter_names: One name, which at weight 1 is written with its own tensors and scales, or several, which
                become one adapter; the mix in effect when None.
            format: ``"diffusers"``, ``"kohya"``, ``"comfyui"`` or ``"peft"``.
            rank: The rank to cut to; None is exact, at the sum of the ranks. Beside ``energy`` or ``sv_ratio``, the
                most that a layer gets.
            conv_rank: The same for convolutions with kernels above 1x1.
            energy: The share of each layer's squared norm to keep.
            sv_ratio: Keep a layer's singular values above its largest divided by this.
            method: How several come together: a name of ``lora_mixer.merging.METHODS``, also with settings as
                ``"ties(density=0.2)"``; those that make full matrices need a rank, an energy or an ``sv_ratio``.
            dtype: ``float32``, ``float16`` or ``bfloat16``; by default each tensor's own, float32 for sums.
            weights: Weights for the names as in ``set_adapters``; without names, a mix in any form.
            **others: Arguments of diffusers' method, which writes layers of the caller: refused, each with what there is instead.

        Returns:
            The files, and what the rank left out of each layer.

        Raises:
            ArgumentError: When an argument is none of these.
            AdapterNameError: When a name is unknown.
            MixError: When there is nothing to save, or the mix changes from step to step.
            SaveError: When the format or the disk cannot take it; what was there before is still there.

        Example:
            >>> mixer.save_lora_weights("mine.safetensors", weights={"a": 0.7, "b": 0.3}, rank=32)  # doctest: +SKIP
        """
        refuse_arguments("save_lora_weights", others, signature(LoraMixer.save_lora_weights).parameters)
        with self._look() as state:
            choice = saving.read_save_options(
                state.held.every if state.enabled else (),
                save_directory_or_path,
                adapter_names,
                weights,
                format=format,
                cut=RankCut(rank, conv_rank, energy, sv_ratio),
                dtype=dtype,
                method=method,
            )
            components = state.components()
            for text in _check_mix(state, choice.mix, components, "save_lora_weights"):
                warnings.warn(text, UnusedWeightWarning, stacklevel=2)
            as_read = (
                state.peft_tensors(choice.one)
                if choice.one and FORMATS[choice.format].keeps_what_was_read
                else None
            )
            if as_read is not None:
                return write_peft(choice.path, *as_read, dtype=choice.dtype)
            infos = {name: state.loaded[name].info for name in choice.mix.names}
            return saving.save(choice, saving.hold(choice.mix, infos, state.controller), components)

    # --- when others changed the weights -----------------------------------------------------------------

    def rebase(self, *, bake: bool = False) -> None:
        """
        Take what something else has written into weights on purpose as the new base, and put the kept one back into all others.

        Weight by weight: what was written, replaced or packed by anything else since the mix was set is the base from now on, as
        it is; what holds the mix exactly as the mixer wrote it gets its own base back, bit for bit. So a checkpoint that was
        loaded into the UNet under a mix of UNet and text encoders costs no text encoder its base. Writes past autograd
        (``parameter.data.copy_(...)``) are found by their values.

        No adapter is active afterwards; call ``set_adapters`` or ``enable_lora`` again.

        Args:
            bake: Take all weights that adapters touch as they are: the mix in those that nothing else has written becomes a part of
                the base, too, and the kept one is gone.

        Raises:
            PipelineStateError: When ``bake`` is asked for and the mix in effect is not in weights alone, or fused projections
                hold something else than what they were fused from; nothing was changed then.

        Warns:
            UserWarning: When a mix was in weights and nothing else has written any of them: the base is back, nothing is baked.

        Example:
            >>> mixer.rebase()  # doctest: +SKIP
        """
        with self._call("take") as state:
            is_new = state.has_new_parts
            state.tokens.change(shown=False)
            is_untouched = state.controller.rebase(state.components(), bake=bake)
            state.enabled = False
            if is_untouched and not is_new:
                told = (
                    "nothing else has written any of the weights that a mix was in, so rebase() put their kept base back, and no "
                    "adapter is active"
                )
                warnings.warn(
                    Remedy("rebase(bake=True) makes the mix a part of the base").after(told, Surface.PYTHON),
                    UserWarning,
                    stacklevel=2,
                )

    def restore_base(self) -> None:
        """Write the kept base over whatever the weights hold now; no adapter is active afterwards."""
        with self._call("put back") as state:
            state.tokens.change(shown=False)
            state.controller.restore(state.components())
            state.enabled = False

    # --- inside ------------------------------------------------------------------------------------------

    @property
    def _state(self) -> MixerState:
        """The state of the pipeline, where nothing is changed by looking at it."""
        return self._take_up("bind")

    def _begin(self) -> None:
        """Take over what a mixer that is gone has left, where that can be done."""
        try:
            self._take_up("bind")
        except MixLostError:  # said once: nothing is in effect any more
            raise
        except PipelineStateError:
            pass  # the first call says it, with the way out of that

    def _take_up(self, parts: Parts) -> MixerState:
        """Return the state of the pipeline: this mixer's own, or what another one that is gone has left on its parts."""
        if self._own.is_empty:
            left = state_of(self.pipe)
            if left is not None and left is not self._own and left.adopt(self):
                left.take_over(self, self.pipe, self._keep_base, parts)
                self._own = left
        return self._own

    def _look(self) -> Interruptible[MixerState]:
        """Hold the state still; what is asked here has to be this mixer's own, or nobody else's."""
        state = self._state
        if state.is_empty:
            refuse_beside(state, self.pipe)
        return Interruptible(lambda: state, lambda _: None, ReadingLock(state.lock))

    def _call(self, parts: Parts = "bind", *, loads: bool = False) -> Interruptible[MixerState]:
        """Change the state, all or nothing; what is not a load has to have something to change, or nobody else may have it."""
        state = self._take_up(parts)
        if not loads and state.is_empty:
            refuse_beside(state, self.pipe)
        return state.transaction(self, parts)

    def _said(self) -> Interruptible[MixerState]:
        """Make several calls one: all of them or nothing."""
        return self._call("leave", loads=True)

    @staticmethod
    def _apply(state: MixerState, wanted: ActiveMixes) -> list[str]:
        """Put mixes into effect; say what of them changes nothing."""
        components = state.components()
        told = [text for mix in wanted.every for text in _check_mix(state, mix, components)]
        state.controller.apply(wanted, components)
        return list(dict.fromkeys(told))

    def _try_again(
        self, state: MixerState, before: ActiveMixes, *, enabled: bool, error: BaseException
    ) -> None:
        """Put mixes into effect again after that has failed, as memory may be free by now; else none is in effect."""
        try:
            self._back_to(state, before, enabled=enabled)
        except MixLostError:
            raise
        except BaseException as again:
            self._back_to(state, before, enabled=False)
            raise MixLostError(
                f"{type(error).__name__} ({error}) as the block ended, and again {type(again).__name__} ({again}): no adapter "
                "is active, the base is back; enable_lora() brings the mix from before the block again"
            ) from again

    def _back_to(self, state: MixerState, before: ActiveMixes, *, enabled: bool) -> None:
        """Put mixes into effect again; adapters that were deleted since are gone from them, too."""
        kept = before.without(name for name in before.names if name not in state.loaded)
        if (state.held, state.enabled) == (kept, enabled):
            return
        with self._call():
            state.tokens.change(shown=enabled)
            self._apply(state, kept if enabled else BASE)
            state.held, state.enabled = kept, enabled


def _all_or_nothing(state: MixerState, record: Callable[[], list[Callable[[], None]]]) -> Interruptible[None]:
    """Change what is trained, alone; if that fails, the ways back that were recorded as it began are gone."""
    back: list[Callable[[], None]] = []

    @uninterrupted
    def begin() -> None:
        back.extend(record())

    @uninterrupted
    def end(error: BaseException | None) -> None:
        for roll_back in back if error is not None else ():
            roll_back()

    return Interruptible(begin, end, state.lock)


def _check_mix(
    state: MixerState, mix: Mix, components: Mapping[str, nn.Module], where: str = "the mix"
) -> list[str]:
    """Check that a mix means something here; say what of it changes nothing."""
    unknown = [name for name in mix.names if name not in state.loaded]
    if unknown:
        raise _unknown(state, unknown, where)
    check_components(mix, components)
    layers = state.controller.layers
    reached = {name: layers[name].components for name in mix.names}
    return without_effect(mix, layers) + schedules_without_steps(mix, reached, components)


def _read(
    source: AdapterSource,
    name: str,
    max_rank: int | None,
    dora_strength: DoraStrength | None,
    *,
    trainable: bool,
    pinned: bool,
) -> tuple[Adapter, dict[str, torch.Tensor] | None]:
    """Read an adapter, and where it is to be trained, its tensors by key."""
    adapter, tensors = (
        read_trainable(source, name=name)
        if trainable
        else (read_source(source, name=name, pinned=pinned, moulded=True), None)
    )
    check_held(adapter)
    if max_rank is not None:
        adapter = adapter.limited(max_rank)
    if dora_strength is not None:
        adapter = adapter.with_dora_strength(dora_strength)
    return adapter, tensors


def _own_layers(
    layers: Sequence[BoundLayer], tensors: dict[str, torch.Tensor] | None, source: AdapterSource
) -> tuple[tuple[BoundLayer, ...], Trained | None]:
    """Return layers with tensors of the mixer's own: copies, or parameters where they are to be trained."""
    if tensors is None:
        return copy_to_devices(layers), None
    return trained(layers, tensors, source.config or {}, source.label)


def _learnt(state: MixerState, name: str, where: str) -> Trained:
    """Return what is trained of an adapter."""
    if name not in state.loaded:
        raise _unknown(state, [name], where)
    learnt = state.trained(name)
    if learnt is None:
        raise AdapterNameError(
            f"{name!r} was not loaded to be trained",
            remedy=Remedy("load it with trainable=True, or make a fresh one with add_adapter"),
            adapter=name,
        )
    return learnt


def _fresh_component(component: str | None, components: Mapping[str, nn.Module]) -> str:
    """Choose the component that a fresh adapter is for."""
    there = ", ".join(sorted(components))
    if component is not None:
        if component not in components:
            raise MatchError(
                f"there is no component {component!r}; this pipeline has {there}", component=component
            )
        return component
    denoiser = next((name for name in DENOISERS if name in components), None)
    if denoiser is None and len(components) > 1:
        raise MatchError(
            f"it cannot be told which component the adapter is for; this pipeline has {there}",
            remedy=Remedy("say it with component="),
            argument="component",
        )
    return denoiser or next(iter(components))


def _free_name(state: MixerState) -> str:
    number = len(state.loaded)
    while f"default_{number}" in state.loaded:
        number += 1
    return f"default_{number}"


def _check_free(state: MixerState, name: str, *, hotswap: bool, trainable: bool) -> None:
    if hotswap and name not in state.loaded:
        raise _unknown(state, [name], "hotswap")
    if hotswap and trainable != (state.trained(name) is not None):
        raise AdapterNameError(
            f"{name}: an adapter in training keeps its parameters",
            remedy=Remedy(
                "hotswap=True with trainable=True writes other values into them, and any other adapter is deleted first and loaded "
                "without hotswap"
            ),
            adapter=name,
        )
    if name in state.loaded and not hotswap and name not in state.inherited:
        raise AdapterNameError(
            f"adapter name {name!r} is in use",
            remedy=Remedy(
                "choose another, delete it first, or pass hotswap=True", "choose another", "choose another"
            ),
            adapter=name,
        )


def _unknown(state: MixerState, names: Sequence[str], where: str) -> AdapterNameError:
    loaded = ", ".join(state.loaded) or "none"
    texts = [name for name in names if ":" in name and name.partition(":")[0].strip() in state.loaded]
    hint = (
        f" (a list of names has no weights in it: write one text, {', '.join(texts)!r}, for one mix, and a list of dicts, "
        "[{'name': weight}, ...], for a mix per image)"
        if texts
        else ""
    )
    return AdapterNameError(
        f"{where} names {', '.join(map(repr, names))}, which is not loaded; loaded are: {loaded}{hint}",
        adapter=names[0],
        problems=[Problem(name, "is not loaded") for name in names],
    )


def _one_component(component: str | None, **short: bool) -> str | None:
    """Return the component that is named, by itself or by diffusers' short ways."""
    named = {name for name, wanted in short.items() if wanted}
    if len(named | {component} - {None}) > 1:
        ways = " and ".join(f"load_into_{name}=True" for name in sorted(named))
        also = "" if component is None else f"component={component!r} and "
        raise MatchError(
            f"{also}{ways} name two components; leave one out", argument="component", component=component
        )
    return next(iter(named), component)


def _is_partial(report: MatchReport) -> bool:
    # words of textual inversions have a note and an argument of their own
    return report.unmatched > 0 or any(token_of(key) is None for key in report.unused_keys)


def _names_in(value: Any) -> list[str]:
    """Return one name, or several."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise MixError(f"expected a name or a list of names, got {shown(value)}", argument="adapter_names")
    return list(value)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise AdapterNameError(
            f"an adapter name must be printable text, got {name!r}", argument="adapter_name"
        )
    return name
