"""
Standing for what calls a module, from outside of what ``torch.compile`` made of it.

``module(...)`` is ``module._compiled_call_impl(...)`` where there is one, after ``module.compile()``, else
``module._call_impl(...)``. Either can be another object's for a while: no hook, parameter or key of the module is touched, and
what stands there sees the call end, whatever it ends by. A copy of a compiled module is a plain one, so both are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
    """Makes a call: it is given what makes it by itself, and the arguments."""


class _StandIn:
    """Stands in one of the two places."""

    def __init__(self, module: nn.Module, inner: Any, around: Around, *, is_compiled: bool) -> None:
        self._module, self._inner, self._around = module, inner, around
        self._is_compiled = is_compiled
        self.active = True

    def __getstate__(self) -> dict[str, Any]:
        # compiled code is none of a copy's
        return {**vars(self), "_inner": None if self._is_compiled else self._inner}

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        # the name is that of what it stands for: torch.compile looks through calls by it
        return self._around(self._pass_on, args, kwargs) if self.active else self._pass_on(*args, **kwargs)

    def _pass_on(self, *args: Any, **kwargs: Any) -> Any:
        if self._inner is not None:
            return self._inner(*args, **kwargs)
        module: Any = self._module
        return type(module)._call_impl(module, *args, **kwargs)  # noqa: SLF001


class StandIns:
    """What stands for the calls of modules; it goes without trace."""

    def __init__(self) -> None:
        """Start with none."""
        self._held: list[_StandIn] = []

    def __bool__(self) -> bool:
        """Whether any module is stood for."""
        return bool(self._held)

    def place(self, module: nn.Module, around: Around) -> None:
        """
        Let something make the calls of a module.

        Args:
            module: The module, as it is called.
            around: What makes them; copies of the module have a copy of it.
        """
        attributes = module.__dict__
        plain = _StandIn(module, attributes.get("_call_impl"), around, is_compiled=False)
        self._held.append(plain)  # first: it is found again, whatever fails in between
        attributes["_call_impl"] = plain._call_impl  # noqa: SLF001
        compiled = attributes.get("_compiled_call_impl")
        if compiled is not None:
            outer = _StandIn(module, compiled, around, is_compiled=True)
            self._held.append(outer)
            attributes["_compiled_call_impl"] = outer._call_impl  # noqa: SLF001

    def clear(self) -> None:
        """Take everything away; what was compiled with it inside passes calls on."""
        for one in reversed(self._held):
            one.active = False
            attributes = one._module.__dict__  # noqa: SLF001
            name = "_compiled_call_impl" if one._is_compiled else "_call_impl"  # noqa: SLF001
            if getattr(attributes.get(name), "__self__", None) is not one:
                continue
            if one._inner is None:  # noqa: SLF001
                del attributes[name]
            else:
                attributes[name] = one._inner  # noqa: SLF001
        self._held.clear()
