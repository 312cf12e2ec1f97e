"""
diffusers' and PEFT's own words for adapters on a pipeline that a mixer works on: refused, by name, not silently nothing.

They know the adapters of PEFT only. While there are none of these, ``pipe.disable_lora()`` or ``unet.set_adapters(...)`` would
do nothing to a mix and say so nowhere. (Scales that a call passes are honoured: ``engines/denoiser/scaled.py``.) What saves a model is refused while
a part of the mix is in no parameter. Where a picture begins, the mix goes to parts that were replaced since. Guards stand
in the dictionaries of objects, and go without trace.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from lora_mixer.engines.denoiser.scaled import scale_of
from lora_mixer.errors import PipelineStateError
from lora_mixer.problem import Problem, Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from types import FrameType

    from torch import nn
    from torch.utils.hooks import RemovableHandle

_INSTEAD = {
    "disable_lora": "disable_lora()",
    "disable_adapters": "disable_lora()",
    "enable_lora": "enable_lora()",
    "enable_adapters": "enable_lora()",
    "unload_lora_weights": "unload_lora_weights()",
    "unload_lora": "unload_lora_weights()",
    "fuse_lora": "save_lora_weights(...); a mix is in the weights already, and `lora-mixer bake` makes it a model's own",
    "unfuse_lora": "disable_lora()",
    "set_adapters": "set_adapters(...)",
    "set_adapter": "set_adapters(...)",
    "delete_adapters": "delete_adapters(...)",
    "delete_adapter": "delete_adapters(...)",
    "active_adapters": "get_active_adapters()",
    "get_active_adapters": "get_active_adapters()",
    "get_list_adapters": "get_list_adapters()",
    "set_lora_device": "memory(), to see where they are: adapters follow their layers",
    "load_lora_weights": "load_lora_weights(...)",
    "load_lora_adapter": "load_lora_weights(...)",
    "load_adapter": "load_lora_weights(...)",
    "add_adapter": "load_lora_weights(...)",
}
"""Words of diffusers' pipelines and of models, and what a mixer has for them."""

_BASE_FIRST = ("enable_layerwise_casting", "enable_group_offload")
"""Words that make something of the weights: of the base, with the mix again afterwards, where it can be then."""
_ENCODE = "encode_prompt"
"""Has the scale for text encoders, also where they are compiled and have no room to look at who is calling."""
_READS = ("check_inputs", _ENCODE, "_encode_prompt", "_encode_image")
"""What a picture begins with: parts that were put into the pipeline since the last call have the mix from there on."""
_STEPS_BEGIN = "progress_bar"
"""What its steps begin with, also in pipelines that have none of these words."""
_BEGINS = (*_READS, _STEPS_BEGIN)
_PARTS = "_get_signature_keys"
"""What ``pipe.components`` asks: another pipeline is made of the parts (``from_pipe``), and has the mix with them."""
_SAVES = ("save_pretrained", "push_to_hub")


class Guard:
    """
    Stands for a method of a pipeline or model.

    Args:
        owner: Whose method it is.
        word: The method's name.
        state: What a mixer holds on it.
    """

    def __init__(self, owner: Any, word: str, state: Any) -> None:
        """Hold all three; copies of the owner have copies of this."""
        self._owner, self._word, self._state = owner, word, state

    @property
    def __signature__(self) -> inspect.Signature:
        """The method's own: pipelines look at it before they save their parts."""
        return inspect.signature(self._method)

    @property
    def _method(self) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(type(self._owner), self._word).__get__(self._owner)
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, or pass on where the word is for PEFT's adapters, or a save can hold the whole mix."""
        where = f"{type(self._owner).__name__}.{self._word}()"
        names = ", ".join(self._state.loaded)
        if self._word in _BEGINS:
            is_late = self._word == _STEPS_BEGIN and not any(hasattr(type(self._owner), w) for w in _READS)
            self._state.follow(is_late=is_late)
            if self._word != _ENCODE:
                return self._method(*args, **kwargs)
        if self._word == _ENCODE:
            with self._state.scaled_texts(self._lora_scale(args, kwargs)):
                return self._method(*args, **kwargs)
        if self._word in _BASE_FIRST:
            kind, reached = self._beyond_rewriting(args, kwargs)
            merged = self._state.asked_to_merge(self._owner, reached) if kind else []
            if merged:
                raise PipelineStateError(
                    f"{where} would leave weights {kind}, into which no mix can be written, and the mix of {', '.join(merged)} "
                    "is asked for as engine='merged': set it with engine='auto' first, which runs beside such weights, or call "
                    "disable_lora(). Nothing was changed",
                    problems=[Problem(name, "is asked for as engine='merged'") for name in merged],
                )
            return self._state.on_base(lambda: self._method(*args, **kwargs))
        if self._word in _SAVES:
            self._state.follow()
            learnt = (
                self._state.trained_on(self._owner)
                if hasattr(type(self._owner), "_hf_peft_config_loaded")
                else []
            )
            if learnt:
                return self._save_trained(learnt, *args, **kwargs)
            if self._state.controller.is_in_parameters:
                return self._method(*args, **kwargs)
            raise PipelineStateError(
                f"{where} would save a model without the mix that is in effect ({names}), or with half of it: a schedule, a "
                "mask or a side path is in no parameter. Call the mixer's disable_lora() to save the base, set a constant "
                "mix (engine='merged') to save that, or save adapters by save_lora_weights()",
                problems=[Problem(name, "is in effect") for name in self._state.loaded],
            )
        if _has_peft(self._owner):
            return self._method(*args, **kwargs)
        raise PipelineStateError(
            f"{where} knows adapters of PEFT only, and those on this model ({names}) are a LoraMixer's: call the mixer's "
            f"{_INSTEAD[self._word]}. LoraMixer.of(pipe) gives the mixer",
            problems=[Problem(name, "is a LoraMixer's") for name in self._state.loaded],
        )

    def _save_trained(
        self,
        names: Sequence[str],
        save_directory: Any,
        is_main_process: bool = True,
        *_: Any,
        push_to_hub: bool = False,
        **__: Any,
    ) -> None:
        """Write what is trained on a model of transformers, as it does itself while an adapter of PEFT is on one."""
        if self._word != "save_pretrained" or push_to_hub:
            raise PipelineStateError(
                f"{', '.join(names)}: an adapter in training is saved to a folder, and nothing is uploaded; upload that",
                adapter=names[0],
                problems=[Problem(name, "is in training, and is saved to a folder") for name in names],
            )
        if is_main_process:
            self._state.write_trained(Path(save_directory), names)

    def _beyond_rewriting(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, set[nn.Module] | None]:
        """Say how a word would leave weights where no mix can be written into them, and whose, None for all; empty where it can."""
        try:
            bound = inspect.signature(self._method).bind(*args, **kwargs)
        except TypeError:  # the method says so in its own words
            return "", None
        bound.apply_defaults()
        given = bound.arguments.get
        if given("offload_to_disk_path") is not None:
            return "in files that are read at each call", None
        dtype = given("storage_dtype")
        if getattr(dtype, "itemsize", 0) != 1:
            return "", None
        cast = cast_modules(self._owner, given("skip_modules_pattern"), given("skip_modules_classes"))
        return f"stored as {dtype}", cast

    def _lora_scale(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        try:
            given = inspect.signature(self._method).bind(*args, **kwargs).arguments.get("lora_scale")
        except TypeError:  # the method says so in its own words
            return 1.0
        return scale_of(given, "lora_scale")


class PartsGuard(Guard):
    """Stands for what ``pipe.components`` asks the class: a pipeline that is made of its parts has the mix with them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Bring the mix to replaced parts before they are given to others."""
        # its own frame in a variable would be a circle that keeps a mixer alive which nobody has any more
        if self._gives_parts(getattr(inspect.currentframe(), "f_back", None)):
            self._state.follow_beforehand()
        return self._method(*args, **kwargs)

    def _gives_parts(self, caller: FrameType | None) -> bool:
        """Tell whether the parts go to others than this package; what else asks for their names begins nothing."""
        gives = getattr(inspect.getattr_static(type(self._owner), "components", None), "fget", None)
        if caller is None or caller.f_back is None or caller.f_code is not getattr(gives, "__code__", None):
            return False
        return not str(caller.f_back.f_globals.get("__name__")).startswith("lora_mixer.")


def place(pipe: Any, roots: Iterable[nn.Module], state: Any) -> None:
    """Put guards on a pipeline and on the parts that adapters reach."""
    for owner in (pipe, *roots):
        if hasattr(owner, "__dict__"):
            for word in (*_INSTEAD, *_SAVES, *_BASE_FIRST, *_BEGINS):
                if inspect.isfunction(inspect.getattr_static(type(owner), word, None)) and word not in vars(
                    owner
                ):
                    vars(owner)[word] = Guard(owner, word, state)
    if isinstance(inspect.getattr_static(type(pipe), _PARTS, None), classmethod) and _PARTS not in vars(pipe):
        vars(pipe)[_PARTS] = PartsGuard(pipe, _PARTS, state)


def take_away(pipe: Any, roots: Iterable[nn.Module]) -> None:
    """Take guards away."""
    for owner in (pipe, *roots):
        for word, value in list(getattr(owner, "__dict__", {}).items()):
            if isinstance(value, Guard):
                del vars(owner)[word]


class StepGuard:
    """
    A hook of all optimizers that refuses a step on weights that a mix is in.

    The step would train the base through the mix, and the next mix, written from the kept base, would wipe it out. Fused
    optimizers raise no version counter, so that nobody could tell afterwards.

    Args:
        mixed: Names those of some parameters, by identity, that a mix is in.
    """

    def __init__(self, mixed: Callable[[Collection[int]], list[str]]) -> None:
        """Hold the question."""
        self._mixed = mixed

    def __call__(self, optimizer: Any, *_: Any) -> None:
        """Look at what would be changed."""
        wanted = {
            id(p)
            for group in optimizer.param_groups
            for p in group["params"]
            if getattr(p, "grad", None) is not None
        }
        names = self._mixed(wanted) if wanted else []
        if names:
            raise PipelineStateError(
                f"{type(optimizer).__name__}.step() would train {len(names)} weights of the base that a LoraMixer has a mix "
                f"in ({', '.join(names[:3])}), and the next change of the mix would wipe that out. Nothing was changed.",
                problems=[Problem(name, "a LoraMixer has a mix in it") for name in names],
                remedy=Remedy(
                    "Call disable_lora() before the base is trained, or rebase(bake=True) to make the mix a part of it."
                ),
            )


_STEPS: list[RemovableHandle] = []


def guard_steps(mixed: Callable[[Collection[int]], list[str]], *, active: bool) -> None:
    """Refuse optimizer steps on weights that a mix is in, as long as any is in effect."""
    if active and not _STEPS:
        _STEPS.append(register_optimizer_step_pre_hook(StepGuard(mixed)))
    while _STEPS and not active:
        _STEPS.pop().remove()


def cast_modules(owner: Any, patterns: Any, classes: Any) -> set[nn.Module] | None:
    """
    Find the modules that diffusers' layerwise casting of a model would store in another type.

    Args:
        owner: The model.
        patterns: What ``enable_layerwise_casting`` is given as ``skip_modules_pattern``.
        classes: And as ``skip_modules_classes``.

    Returns:
        The modules; None where it cannot be told, so that any may be among them.
    """
    try:
        from diffusers.hooks import layerwise_casting as casting

        leaves: Any = vars(casting)[
            "_GO_LC_SUPPORTED_PYTORCH_LAYERS"
        ]  # no public name says which layers these are
        usual: Any = vars(casting)["DEFAULT_SKIP_MODULES_PATTERN"]
        skipped = [*(usual if patterns is None else patterns)]
        for name in ("_keep_in_fp32_modules", "_skip_layerwise_casting_patterns"):
            skipped += getattr(owner, name, None) or ()
        left_out = re.compile("|".join(f"(?:{each})" for each in skipped)) if skipped else None
        waiting, found = [("", owner)], set()
        while waiting:
            path, module = waiting.pop()
            if (classes is not None and isinstance(module, classes)) or (left_out and left_out.search(path)):
                continue
            if isinstance(module, leaves):
                found.add(module)
            else:
                waiting += [
                    (f"{path}.{name}" if path else name, child) for name, child in module.named_children()
                ]
    except (ImportError, KeyError, TypeError, re.error):
        return None
    return found


def _has_peft(owner: Any) -> bool:
    parts = getattr(owner, "components", None)
    models = parts.values() if isinstance(parts, dict) else (owner,)
    return any(bool(getattr(model, "peft_config", None)) for model in models)
