"""
Hooks on layers that compiled code sees.

``torch.compile`` puts no guard on a module whose hooks are none: what was compiled before a hook came goes on without
it. It does guard that such a module has no ``forward`` of its own. So a module with one of our hooks gets one, its
class' own: code compiled without the hook is passed over, code compiled with it, whose hooks are guarded one by one,
is passed over once it is gone, and each is taken again when its time comes. Nothing else is compiled anew.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

_KEY = "_lora_mixer_hooks"
_WITHIN = -1
"""In the place of torch's number, for the hook that is within ``forward``."""


class _Attached:
    """The hooks of ours on one module by torch's numbers, and the ``forward`` in its dictionary for their sake."""

    def __init__(self, module: nn.Module, within: Within | None = None) -> None:
        self.after: dict[int, Callable[..., Any]] = {}
        self.numbers: list[int] = []
        self.before = module.__dict__.get("forward")
        self.within = within
        if within is not None:
            self.after[_WITHIN] = within
        self.forward: Callable[..., Any] = (
            _ForwardWithin(module, within)
            if within is not None
            else MethodType(type(module).forward, module)
            if self.before is None
            else _PassOn(self.before)
        )

    def detach(self, module: nn.Module) -> None:
        if isinstance(self.forward, _ForwardWithin):
            self.forward.hook = None  # who has wrapped it since gets the class' own
        # where another library has wrapped it since, it goes on to what it wrapped
        if module.__dict__.get("forward") is self.forward:
            if self.before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = self.before
        module.__dict__.pop(_KEY, None)

    def let_go(self) -> None:
        """Take the hook within ``forward`` away."""
        self.after.pop(_WITHIN, None)
        self.within = None
        if isinstance(self.forward, _ForwardWithin):
            self.forward.hook = None


class _PassOn:
    """Calls a ``forward`` that another library has put in the place of the class' own."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class Within(Protocol):
    """A hook that can also compute what a module returns, in the place of the module's own ``forward``."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with the hook's part, of the module's own output."""

    def at_once(self, args: Any) -> Any:
        """Return the output with the hook's part, of the inputs; None where the module's own is needed."""


class _ForwardWithin:
    """Stands for the ``forward`` of a module's class, with a hook's part in what it gives."""

    def __init__(self, module: nn.Module, hook: Within) -> None:
        self.module = module
        self.hook: Within | None = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hook, module = self.hook, self.module
        if hook is None:
            return type(module).forward(module, *args, **kwargs)
        given = args or tuple(kwargs.values())
        if not torch.compiler.is_compiling() and (output := hook.at_once(given)) is not None:
            return output
        return hook(module, given, type(module).forward(module, *args, **kwargs))


class _WithInput:
    """Calls a hook with the inputs, by whatever names they were given; a value, so that copied modules have a copied hook."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self.hook(
            module, args or tuple(kwargs.values()), output
        )  # motion modules give the input by name

    @property
    def __self__(self) -> object:
        """Whose method the hook is, for those who look for their own."""
        return getattr(self.hook, "__self__", None)


def _inner(hook: Any) -> Any:
    return hook.hook if isinstance(hook, _WithInput) else hook


class HookHandle:
    """
    Takes a hook away again.

    Args:
        module: The hooked module.
        handle: torch's own handle; None for a hook that is within the module's ``forward``.
    """

    def __init__(self, module: nn.Module, handle: RemovableHandle | None) -> None:
        """Hold both."""
        self._module: nn.Module | None = module
        self._handle = handle

    def remove(self) -> None:
        """Take the hook away; with the last one, the module is what it was."""
        module, self._module = self._module, None
        if module is None:
            return
        if self._handle is not None:
            self._handle.remove()
        elif (attached := module.__dict__.get(_KEY)) is not None:
            attached.let_go()
        forget_removed(module)


def _attached(module: nn.Module) -> _Attached:
    if _KEY not in module.__dict__:
        module.__dict__[_KEY] = made = _Attached(module)
        module.__dict__["forward"] = (
            made.forward
        )  # after it is known: it is found again, whatever fails in between
    attached: _Attached = module.__dict__[_KEY]
    return attached


def forget_removed(module: nn.Module) -> None:
    """Let a module be what it was once none of our hooks is on it, however they were removed."""
    attached: _Attached | None = module.__dict__.get(_KEY)
    if attached is None:
        return
    left = module._forward_hooks.keys() | module._forward_pre_hooks.keys()  # noqa: SLF001
    attached.numbers = [number for number in attached.numbers if number in left]
    attached.after = {number: hook for number, hook in attached.after.items() if number in left}
    if not attached.numbers and attached.within is None:
        attached.detach(module)


def sweep(modules: Iterable[nn.Module]) -> None:
    """Take all hooks of engines off modules, also those that were registered and never noted."""
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # noqa: SLF001
            ours = [
                n
                for n, hook in hooks.items()
                if type(_inner(hook)).__module__.startswith("lora_mixer.engines.")
            ]
            for number in ours:
                del hooks[number]
                module._forward_hooks_with_kwargs.pop(number, None)  # noqa: SLF001
                module._forward_pre_hooks_with_kwargs.pop(number, None)  # noqa: SLF001
        if (attached := module.__dict__.get(_KEY)) is not None:
            attached.let_go()
        forget_removed(module)


def hook_output(module: nn.Module, hook: Callable[..., Any], *, first: bool = False) -> HookHandle:
    """
    Let a hook change what a module returns, before the hooks of others see it: they have what a mix in the weight would give them.

    Args:
        module: A layer.
        hook: Called with the module, its arguments and its output; what it returns is the output.
        first: Whether it runs before those of this package, too, for one that computes the output anew.

    Returns:
        What takes it away again.

    Example:
        >>> import torch
        >>> layer = torch.nn.Identity()
        >>> handle = hook_output(layer, lambda module, args, output: output + 1)
        >>> layer(torch.zeros(2))
        tensor([1., 1.])
        >>> handle.remove()
        >>> layer(torch.zeros(2)), sorted(layer.__dict__) == sorted(torch.nn.Identity().__dict__)
        (tensor([0., 0.]), True)
    """
    attached = _attached(module)
    ours = [number for number in attached.after if number in module._forward_hooks]  # noqa: SLF001
    handle = module.register_forward_hook(_WithInput(hook), with_kwargs=True, prepend=True)
    attached.numbers.append(handle.id)
    for number in () if first else reversed(ours):
        module._forward_hooks.move_to_end(number, last=False)  # type: ignore[attr-defined] # noqa: SLF001
    attached.after = {handle.id: hook, **attached.after} if first else {**attached.after, handle.id: hook}
    return HookHandle(module, handle)


def hook_input(module: nn.Module, hook: Callable[..., Any]) -> HookHandle:
    """
    Let a hook change what a module is given.

    Args:
        module: A layer.
        hook: Called with the module, its arguments and those by name; what it returns takes their place.
    """
    attached = _attached(module)
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    attached.numbers.append(handle.id)
    return HookHandle(module, handle)


def hook_within(module: nn.Module, hook: Within) -> HookHandle:
    """
    Let a hook compute what a module returns together with the module's own part, in the place of its ``forward``.

    A module whose ``forward`` is another library's, or that has hooks of this package, keeps it: the hook then works on the output,
    before all others.

    Args:
        module: A layer.
        hook: Asked for the output of the inputs, else called with the module, its inputs and its output.

    Returns:
        What takes it away again.
    """
    if _KEY in module.__dict__ or "forward" in module.__dict__:
        return hook_output(module, hook, first=not output_hooks(module))
    module.__dict__[_KEY] = made = _Attached(module, hook)
    module.__dict__["forward"] = made.forward
    return HookHandle(module, None)


def output_hooks(module: nn.Module) -> Sequence[Callable[..., Any]]:
    """Return the hooks of this package that change what a module returns, in the order in which they run."""
    attached = module.__dict__.get(_KEY)
    return () if attached is None else tuple(attached.after.values())


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module may have any of these."""
    return _KEY in module.__dict__
