"""
Functions of ours that ``torch.compile`` meets in what it traces: kept out of the code, or run before it.

Values are read at a call (steps, rows, scales) outside of compiled code, so a graph is broken there; what is worked out once for
each mix is run while the graph is traced, which begins with what came of it.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch._guards import TracingContext

from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")

_JIT: Any = torch.jit  # its words have no types


def while_traced(function: Function) -> Function:
    """Have a function run for good while it is traced, and what it returns be a constant of the graph."""
    constant: Any = torch.compiler.assume_constant_result
    return cast("Function", constant(function))


def outside(function: Function) -> Function:
    """
    Keep a function out of compiled code: it breaks a graph that it is called in, and still runs.

    Raises:
        PipelineStateError: When the graph may not be broken (``fullgraph=True``, ``torch.export``), or the call is recorded once for
            all (``torch.jit.trace``), as the function is called.
    """
    disabled: Any = torch.compiler.disable
    kept = disabled(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _break_graph()
        refuse_recorded()
        return kept(*args, **kwargs)

    return cast("Function", call)


def refuse_recorded() -> None:
    """
    Refuse a call that is recorded to be repeated as it is: what goes by the call would be that of this one for good.

    Raises:
        PipelineStateError: While ``torch.jit.trace`` or ``torch.onnx.export`` records.
    """
    if _JIT.is_tracing():
        raise PipelineStateError(
            "what changes the mix at this call (a schedule, a mask, a mix for each image, a call's scale) would be recorded by "
            "torch.jit.trace or torch.onnx.export as it is now, and stay so at each call: set a constant mix "
            "(engine='merged') before the module is recorded"
        )


@while_traced
def _break_graph() -> None:
    """Tell who traces to break the graph; where it may not be, callers get the error."""
    if TracingContext.try_get() is not None:
        raise _graph_error()(
            "what changes the mix at this call (a schedule, a mask, a mix for each image, a call's scale) is inside of code "
            "that was compiled with fullgraph after the mix was set, and can only be read outside of it: set the mix "
            "once more (mixer.set_mix), now that the module is compiled, or leave fullgraph out; to export a module, set a "
            "constant mix (engine='merged')"
        )


@cache
def _graph_error() -> type[PipelineStateError]:
    """Return an error of this package that ``torch.compile`` takes for its own: it breaks a graph where that may be broken."""
    from torch._dynamo.exc import Unsupported

    class CompiledInsideError(PipelineStateError, Unsupported):
        def __init__(self, message: str) -> None:
            PipelineStateError.__init__(self, message)
            Unsupported.__init__(self, message)

    return CompiledInsideError
