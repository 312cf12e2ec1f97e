"""Arguments of diffusers' loaders that mean nothing to a mixer: refused by name, with what there is instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from lora_mixer.errors import ArgumentError
from lora_mixer.problem import Problem
from lora_mixer.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class NotOfLoads(TypedDict, total=False):
    """What diffusers' ``load_lora_weights``, ``lora_state_dict`` and ``load_lora_adapter`` take, and a mixer does not."""

    prefix: Any
    metadata: Any
    network_alphas: Any
    lora_scale: Any
    return_lora_metadata: Any
    return_alphas: Any
    unet_config: Any
    _pipeline: Any


class NotOfSaves(TypedDict, total=False):
    """What diffusers' ``save_lora_weights`` takes, which writes layers of the caller, and a mixer's does not."""

    save_directory: Any
    weight_name: Any
    is_main_process: Any
    save_function: Any
    safe_serialization: Any


_INSTEAD: Mapping[str, str] = {
    "prefix": "the keys of a file say which component they are for; name one by component= where they do not",
    "metadata": "scales are read from the file's header or the adapter_config.json beside it; write them into a state dict as "
    "'MODULE.alpha', or pass the folder",
    "network_alphas": "alphas stand in the state dict itself, as 'MODULE.alpha'",
    "lora_scale": "weights are set by set_adapters()",
    "return_lora_metadata": "a load answers with its report; read_adapter(source).metadata and mixer.adapters[name].metadata have it",
    "return_alphas": "alphas are read with the file, and a load answers with its report",
    "unet_config": "names are resolved against the live model",
    "_pipeline": "adapters follow the layers that they change, offloaded or not",
    "save_directory": "the place is the first argument, save_directory_or_path: a .safetensors file, or a folder",
    "weight_name": "pass the file's whole path as the first argument",
    "is_main_process": "call it in the process that is to write",
    "save_function": "files are written beside their place, read back and put there",
    "safe_serialization": "adapters are written as safetensors only",
    "fuse_unet": "name the parts to fuse by components=['unet']",
    "fuse_transformer": "name the parts to fuse by components=['transformer']",
    "fuse_text_encoder": "name the parts to fuse by components=['text_encoder']",
    "unfuse_unet": "name the parts to unfuse by components=['unet']",
    "unfuse_transformer": "name the parts to unfuse by components=['transformer']",
    "unfuse_text_encoder": "name the parts to unfuse by components=['text_encoder']",
}
_LAYERS = ("_lora_layers", "_lora_adapter_metadata")
"""How arguments end in which diffusers takes the caller's own layers, and what it writes of them."""


def refuse_arguments(word: str, given: Iterable[str], known: Iterable[str]) -> None:
    """
    Refuse arguments that a word does not have.

    Args:
        word: The method's name.
        given: The names of these arguments.
        known: Those that it has, for one that is misspelt.

    Raises:
        ArgumentError: Naming each, and what there is instead.

    Example:
        >>> refuse_arguments("load_lora_weights", ["adaptername"], ["adapter_name"])
        Traceback (most recent call last):
        lora_mixer.errors.ArgumentError: load_lora_weights() has no argument adaptername. Did you mean "adapter_name"?
    """
    problems, told = [], []
    for name in given:
        why = _INSTEAD.get(name)
        if why is None and name.endswith(_LAYERS):
            why = "the layers are those of the loaded adapters, named by adapter_names="
        told.append(f"{name}: {why}" if why is not None else f"{name}.{did_you_mean(name, known)}")
        problems.append(Problem(name, why if why is not None else did_you_mean(name, known).strip()))
    if problems:
        raise ArgumentError(
            f"{word}() has no argument {'; nor '.join(told)}", argument=problems[0].place, problems=problems
        )
