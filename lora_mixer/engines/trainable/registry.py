"""
What is trained, where optimizers, trainers and ``model.to`` look for parameters: in the model's own tree.

While an adapter is in training, each component that it reaches has one more child, whose parameters are the adapter's. So
``model.parameters()``, a Trainer's groups, the clipping of gradients, DDP and ``model.to(device)`` find them. The child is in no state
dict: the model's keys, what it saves and what it loads are the base's. It goes with the last adapter in training.

Names are those of PEFT's files, so that weight decay by name falls on the same side as there: a parameter of a
``LayerNorm`` is the child of one here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CHILD = "lora_mixer"
"""The name of the child, the front of its parameters' names."""
_NORMS = "norms"
_HAS_ADAPTER = "_hf_peft_config_loaded"
"""What transformers asks of a model before it trains beside packed weights or through checkpoints."""


class _NoKeys(nn.Module):
    """A module whose parameters are in no state dict; names may have dots."""

    holds_adapters: ClassVar[bool] = True
    """What tells it from the model's own modules."""

    def state_dict(self, *args: Any, destination: Any = None, **_: Any) -> Any:
        """Add nothing."""
        return destination if destination is not None else (args[0] if args else {})

    def _load_from_state_dict(self, *_: Any) -> None:
        """Miss nothing."""

    def forward(self, *args: Any) -> Any:
        """Pass on what a component gives that calls all of its children, such as ``nn.Sequential``."""
        return args[0] if len(args) == 1 else args

    def extra_repr(self) -> str:
        """Return the parameters' names; there are no sizes to tell."""
        return ", ".join(self._parameters)


class _Norms(_NoKeys, nn.LayerNorm):
    """The same for parameters of norms, which optimizers' groups know by the class."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def register(
    root: nn.Module, name: str, parameters: Mapping[str, nn.Parameter], norms: Collection[str]
) -> None:
    """
    Show an adapter's parameters in a component.

    Args:
        root: The component.
        name: The adapter's name.
        parameters: By key.
        norms: Which of the keys are of norms.
    """
    child = root._modules.get(CHILD)  # noqa: SLF001 -- no hooks of registration
    if not isinstance(child, _NoKeys):
        child = _NoKeys()
        child._modules[_NORMS] = _Norms()  # noqa: SLF001
        child.train(root.training)
        root._modules[CHILD] = child  # noqa: SLF001
        if hasattr(type(root), _HAS_ADAPTER):
            vars(root)[_HAS_ADAPTER] = True
    for key, parameter in parameters.items():
        owner = child._modules[_NORMS] if key in norms else child  # noqa: SLF001
        assert owner is not None  # noqa: S101 -- made above
        owner._parameters[f"{name}.{key}"] = parameter  # noqa: SLF001 -- names with dots


def unregister(root: nn.Module, name: str) -> None:
    """Take an adapter's parameters out of a component; with the last one, the child goes."""
    child = root._modules.get(CHILD)  # noqa: SLF001
    if not isinstance(child, _NoKeys):
        return
    norms = child._modules[_NORMS]  # noqa: SLF001
    assert norms is not None  # noqa: S101
    for owner in (child, norms):
        for key in [key for key in owner._parameters if key.startswith(f"{name}.")]:  # noqa: SLF001
            del owner._parameters[key]  # noqa: SLF001
    if not child._parameters and not norms._parameters:  # noqa: SLF001
        del root._modules[CHILD]  # noqa: SLF001
        vars(root).pop(_HAS_ADAPTER, None)
