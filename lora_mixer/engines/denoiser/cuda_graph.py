"""
Running a denoiser as a CUDA graph that stays valid while the mix changes.

A graph replays kernels on fixed addresses. Merged mixes change values behind those addresses, and so does the reserved
side path; a side path that is not reserved has new tensors with each mix, so the graph is captured anew then.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from lora_mixer.errors import PipelineStateError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

_WARM_UP = 3
"""Runs before a capture: libraries pick kernels and allocate what they keep."""

_in_graph: ContextVar[bool] = ContextVar("in_graph", default=False)


def in_graph() -> bool:
    """Tell whether what is called now is recorded for replays, or warmed up for it: launching costs nothing then."""
    return _in_graph.get()


class Graph:
    """
    One captured call.

    Args:
        call: The denoiser's forward.
        leaves: The arguments, flattened.
        spec: How to put them together again.
    """

    def __init__(self, call: Callable[..., Any], leaves: list[Any], spec: Any) -> None:
        """Warm up on a stream of its own, then capture."""
        self._inputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(self._inputs, spec)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        self._graph = torch.cuda.CUDAGraph()
        token = _in_graph.set(True)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    call(*args, **kwargs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._output = call(*args, **kwargs)
        finally:
            _in_graph.reset(token)

    def __call__(self, leaves: list[Any]) -> Any:
        """Replay with other values in the inputs; the output is a copy that later replays leave alone."""
        for held, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(held, torch.Tensor):
                held.copy_(leaf)
        self._graph.replay()
        return pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, self._output
        )


class Captured:
    """
    Stands in for a denoiser's forward: one graph for each signature of its inputs.

    Args:
        module: The denoiser as the pipeline calls it.
        generation: Tells, by a number, when hooks are others than before.
    """

    def __init__(self, module: nn.Module, generation: Callable[[], int]) -> None:
        """Capture nothing before the first call."""
        self._module = module
        self._call: Callable[..., Any] = module.forward
        self._generation = generation
        self._graphs: dict[object, Graph] = {}
        self._state: object = None
        self.captures = 0
        self.active = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay, or capture first."""
        if not self.active or torch.cuda.is_current_stream_capturing():
            return self._call(*args, **kwargs)
        if torch.is_grad_enabled():
            raise PipelineStateError("a captured denoiser has no gradients; call it under torch.no_grad()")
        state = self._where()
        if state != self._state:
            self._graphs.clear()  # before the new ones are captured: their memory is needed
            self._state = state
        device = next(self._module.parameters()).device
        if isinstance(kwargs.get("timestep"), int | float):
            kwargs["timestep"] = torch.tensor(kwargs["timestep"], device=device)
        elif len(args) > 1 and isinstance(args[1], int | float):
            args = (args[0], torch.tensor(args[1], device=device), *args[2:])
        leaves, spec = pytree.tree_flatten((args, kwargs))
        leaves = [leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        key = (spec, tuple(_signature(leaf) for leaf in leaves))
        if key not in self._graphs:
            self._graphs[key] = Graph(self._call, leaves, spec)
            self.captures += 1
        return self._graphs[key](leaves)

    def _where(self) -> object:
        """Say where everything lies that a graph has the addresses of."""
        places = tuple(tensor.data_ptr() for tensor in self._module.parameters())
        return self._generation(), places

    def drop(self) -> None:
        """Free the graphs; calls go through from now on."""
        self.active = False
        self._graphs.clear()


def _signature(leaf: Any) -> object:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.stride()
    return leaf if isinstance(leaf, int | float | str | bool | type(None)) else id(leaf)


@contextmanager
def captured(
    outer: Mapping[str, nn.Module], generation: Callable[[str], int]
) -> Iterator[dict[str, Captured]]:
    """
    Let denoisers run as graphs inside a block.

    Args:
        outer: The denoisers as the pipeline calls them.
        generation: Tells, by a number, when a component's hooks are others than before.

    Raises:
        PipelineStateError: When one of them is not whole on a GPU, or compiled in place.
    """
    problems = [Problem(name, reason) for name, module in outer.items() if (reason := _problem(module))]
    if problems or not outer:
        shown = "; ".join(map(str, problems)) or "there is no denoiser in this pipeline"
        raise PipelineStateError(
            f"capture() runs denoisers as CUDA graphs, which cannot be here: {shown}", problems=problems
        )
    held = {name: Captured(module, partial(generation, name)) for name, module in outer.items()}
    before = {name: module.__dict__.get("forward") for name, module in outer.items()}
    for name, module in outer.items():
        module.forward = held[name]
    try:
        yield held
    finally:
        for name, module in outer.items():
            held[name].drop()
            if module.__dict__.get("forward") is not held[name]:
                continue  # another library has wrapped it since; a dropped one passes calls through
            if before[name] is None:
                del module.forward
            else:
                module.__dict__["forward"] = before[name]


def _problem(module: nn.Module) -> str | None:
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "it was compiled in place by module.compile(); compile it by torch.compile(module) instead"
    places = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(places) != 1 or next(iter(places)).type != "cuda":
        shown = ", ".join(sorted(str(place) for place in places)) or "nowhere"
        return f"its weights are on {shown}, and have to be on one CUDA device"
    return None
