"""
Who is calling a component: the pipeline whose method is running, and what it holds at that moment.

A component is shared by pipelines that know nothing of each other (``from_pipe``), and some of them keep in local names
what others have as properties. So the pipeline that is asked for its steps, its guidance and its prompts is the one on
the stack, not the one that a mixer was made with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

_NEAR = 3
"""How many frames of a loop without pipeline are looked into."""
_GENERATION = "transformers.generation.utils"
_PASSED = ("torch", "lora_mixer", "accelerate", "diffusers")
"""Packages whose frames lie between a loop and the component that it calls."""


@dataclass(frozen=True)
class Caller:
    """
    A pipeline in the middle of a call, or a loop without one.

    Attributes:
        pipe: The pipeline; None where none is on the stack.
        frames: The local names of its running methods, innermost first; without pipeline, those of the nearest functions.
        globals: Without pipeline, what these functions name of their modules.
        frame: The frame of the outermost of them; who keeps it keeps its locals alive.
        sequences: How many sequences ``generate`` of transformers has been given, where that is running: beams and returned
            sequences are rows beside each other.
    """

    pipe: Any = None
    frames: tuple[Mapping[str, Any], ...] = ()
    frame: FrameType | None = None
    sequences: int | None = None
    globals: tuple[Mapping[str, Any], ...] = ()

    def local(self, *names: str) -> Any:
        """Return the innermost value that is not None under the first of some local names that has one."""
        for name in names:
            for frame in self.frames:
                value = frame.get(name)
                if value is not None:
                    return value
        return None

    def outermost(self, name: str) -> Any:
        """Return what the outermost method has under a local name that it was called with, or None."""
        for frame in reversed(self.frames):
            if name in frame:
                return frame[name]
        return None

    def flag(self, *names: str) -> bool | None:
        """Return what a local name, or else a property of the pipeline, says; None where none of the names is known."""
        for name in names:
            for frame in self.frames:
                if isinstance(frame.get(name), bool):
                    return bool(frame[name])
        for name in names:
            try:
                value = getattr(self.pipe, name, None)
            except Exception:  # noqa: BLE001, S112 -- properties of a pipeline that has not run yet
                continue
            if isinstance(value, bool):
                return value
        return None

    def schedulers(self) -> list[Any]:
        """
        Return the schedulers in reach, those that step most likely first.

        Of a pipeline, the one of that name, else its others; of a loop, those under a name of its functions, innermost first, then
        those that something under such a name holds, such as a sampler that has the loop for a method.
        """
        if self.pipe is not None:
            scheduler = getattr(self.pipe, "scheduler", None)
            if scheduler is not None:
                return [scheduler]
            parts = getattr(self.pipe, "components", {})
            every = list(parts.values()) if isinstance(parts, dict) else []
        else:
            every = [value for names in (*self.frames, *self.globals) for value in list(names.values())]
            every += [one for value in every for one in _held_by(value)]
        return list({id(one): one for one in every if _is_scheduler(one)}.values())

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors under local names, innermost first."""
        return [
            value
            for names in self.frames
            for value in list(names.values())
            if isinstance(value, torch.Tensor)
        ]


def calling(part: str) -> Caller:
    """
    Find the pipeline that is calling one of its components now.

    Args:
        part: The component's name, which the pipeline has as an attribute.

    Example:
        >>> calling("unet").pipe is None
        True
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- inspect.currentframe is the same
    near: list[Mapping[str, Any]] = []
    beyond: list[Mapping[str, Any]] = []
    while frame is not None:
        owner = _owner(frame)
        if owner is not None and hasattr(owner, part):
            return _methods_of(owner, frame)
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__") == _GENERATION:
            given = frame.f_locals.get("batch_size")
            if isinstance(given, int):
                return Caller(None, tuple(near), None, given, tuple(beyond))
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if len(near) < _NEAR and package not in _PASSED:
            near.append(frame.f_locals)
            shared = frame.f_globals
            beyond.append({name: shared[name] for name in frame.f_code.co_names if name in shared})
        frame = frame.f_back
    return Caller(None, tuple(near), globals=tuple(beyond))


def _is_scheduler(value: Any) -> bool:
    kind = type(value)
    return hasattr(kind, "set_timesteps") and hasattr(kind, "step") and hasattr(value, "timesteps")


def _held_by(value: Any) -> Sequence[Any]:
    """Return what an object has as attributes, or a dict as values."""
    if isinstance(value, type | ModuleType):
        return ()
    return tuple(value.values()) if isinstance(value, dict) else tuple(_attributes(value).values())


def _owner(frame: FrameType) -> Any:
    """Return the pipeline that a frame's method belongs to; nested functions have it from outside."""
    code = frame.f_code
    if "self" not in code.co_varnames and "self" not in code.co_freevars:
        return None
    owner = frame.f_locals.get("self")
    if owner is None or isinstance(owner, nn.Module):
        return None
    return owner if hasattr(type(owner), "components") or "components" in _attributes(owner) else None


def _attributes(value: Any) -> Mapping[str, Any]:
    """Return the attributes that an object holds itself; none for those with slots."""
    return getattr(value, "__dict__", {})


def _methods_of(owner: Any, frame: FrameType) -> Caller:
    """Collect the running methods of a pipeline, from the innermost one outwards."""
    scopes, outermost = [], frame
    step: FrameType | None = frame
    while step is not None:
        if _owner(step) is owner:
            scopes.append(step.f_locals)
            outermost = step
        step = step.f_back
    return Caller(owner, tuple(scopes), outermost)
