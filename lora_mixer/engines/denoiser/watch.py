"""
Looking in on the calls of a component, from outside of what ``torch.compile`` made of it, and going without trace.

A plain module is watched by hooks, and so is the wrapper of ``torch.compile(module)``; ``module.compile()`` runs hooks
inside of the compiled code, so there the compiled call itself is wrapped. A module that is compiled while it is watched
has the hooks inside: they break its graph, and still run.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from lora_mixer.engines.compiling import outside, refuse_recorded
from lora_mixer.engines.denoiser.standing_in import StandIns

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from lora_mixer.engines.denoiser.turns import Turns

    Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
    After = Callable[[tuple[Any, ...], dict[str, Any], Any, Callable[..., Any]], Any]


class _BeforeCall:
    """A pre-hook; an object, so that copies of the module have copies of what it calls."""

    def __init__(self, before: Before) -> None:
        self._before = before

    @outside
    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._before(args, kwargs)


class _AfterCall:
    """A hook that may call the module again."""

    def __init__(self, after: After) -> None:
        self._after = after

    @outside
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self._after(args, kwargs, output, module.forward)


class _AroundCall:
    """What makes the calls of a module that was compiled in place."""

    def __init__(self, before: Before, after: After | None) -> None:
        self._before, self._after = before, after

    @outside
    def __call__(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._before(args, kwargs)
        output = call(*args, **kwargs)
        return output if self._after is None else self._after(args, kwargs, output, call)


class _MethodCall:
    """Stands for a method of a module that pipelines call in the place of its forward; copies of the module have a copy of it."""

    def __init__(self, module: nn.Module, name: str, before: Before, turns: Turns) -> None:
        self.module, self.name, self._before, self._turns = module, name, before, turns
        self.inner = vars(module).get(name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._method)

    @property
    def _method(self) -> Callable[..., Any]:
        method: Callable[..., Any] = (
            getattr(type(self.module), self.name).__get__(self.module) if self.inner is None else self.inner
        )
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        refuse_recorded()
        with self._turns.taken(alone=True):
            self._before(args, kwargs)
            return self._method(*args, **kwargs)


class Calls:
    """
    Holds what watches the calls of components.

    Args:
        turns: Says when a call may be made, beside those of other threads.
    """

    def __init__(self, turns: Turns) -> None:
        """Start with none."""
        self._turns = turns
        self._handles: list[RemovableHandle] = []
        self._around = StandIns()
        self._methods: list[_MethodCall] = []

    def watch_method(self, module: nn.Module, name: str, before: Before) -> bool:
        """
        Watch the calls of one of a module's methods, where it has that one.

        Args:
            module: The module.
            name: The method.
            before: Called with the arguments before each call.

        Returns:
            Whether it has.
        """
        if not inspect.isfunction(inspect.getattr_static(type(module), name, None)):
            return False
        self._methods.append(_MethodCall(module, name, before, self._turns))
        vars(module)[name] = self._methods[-1]
        return True

    def watch(self, outer: nn.Module, before: Before, after: After | None = None) -> None:
        """
        Watch the calls of a component.

        Args:
            outer: The component as the pipeline calls it.
            before: Called with the arguments before each call.
            after: Called with the arguments, the output and a function that calls the component again unwatched;
                what it returns is the output.
        """
        if getattr(outer, "_compiled_call_impl", None) is not None:
            self._around.place(outer, _AroundCall(before, after))  # nn.Module calls no hooks around it
            return

        self._handles.append(outer.register_forward_pre_hook(_BeforeCall(before), with_kwargs=True))
        if after is not None:
            self._handles.append(outer.register_forward_hook(_AfterCall(after), with_kwargs=True))

    @property
    def watching(self) -> bool:
        """Whether any component is watched."""
        return bool(self._handles or self._around or self._methods)

    def clear(self) -> None:
        """Take everything away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._around.clear()
        for method in reversed(self._methods):
            own = vars(method.module)
            if own.get(method.name) is method:
                if method.inner is None:
                    del own[method.name]
                else:
                    own[method.name] = method.inner
        self._methods.clear()
