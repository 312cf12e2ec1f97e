"""
Layers whose weight is read by the modules around them, which do not call them: nothing that stands beside such a layer is heard.

Mamba's ``conv1d`` and ``dt_proj`` are such layers, and all of ``functional.linear(x, self.proj.weight)``. They are told by the code of the
classes, before anything is changed: what reads ``self.proj.weight`` for more than its type, shape or place.
"""

from __future__ import annotations

import dis
import inspect
import re
from types import CodeType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

READ_PAST = (
    "the module around it reads its weight without calling it, so that nothing beside it would be heard, and a mix has to be in the "
    "weight: one mix for all rows (engine='merged' or 'auto')"
)
"""Why nothing can stand beside such a layer."""

_ANY = "*"
"""In a path, any child of a list of modules."""

_ABOUT = {
    *(
        "dtype",
        "device",
        "shape",
        "size",
        "ndim",
        "dim",
        "numel",
        "stride",
        "layout",
        "grad",
        "requires_grad",
    ),
    *("is_meta", "is_cuda", "is_quantized", "is_sparse", "is_contiguous", "is_floating_point", "data_ptr"),
    *("element_size", "itemsize", "nbytes", "untyped_storage", "storage", "register_hook", "quant_state"),
}
"""What may be asked of a weight without reading it."""

_ASKING = {"isinstance", "hasattr", "getattr", "type", "id"}
"""Functions that do not read what they are given."""

_PREPARING = re.compile(
    r"__(?!call__)|_*(init|reset|fuse|unfuse|tie|untie|load|save|resize|set|from|convert|quanti[sz]e|prune|post_init|extra_repr|get_(in|out)put)"
)
"""How the names of functions begin that are no part of a call."""

_PASSED_OVER = {"PUSH_NULL", "NOP", "CACHE", "EXTENDED_ARG", "RESUME", "PRECALL", "GET_ITER"}
"""Instructions that leave what is on the stack as it is."""

_Path = tuple[str, ...]

_of_class: WeakKeyDictionary[type, frozenset[_Path]] = WeakKeyDictionary()
_of_root: WeakKeyDictionary[nn.Module, frozenset[int]] = WeakKeyDictionary()


def read_past(root: nn.Module) -> Collection[int]:
    """
    Return the identities of the modules of a component whose weights are read without calling them.

    Example:
        >>> class Reader(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.called, self.read = nn.Linear(2, 2), nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return self.called(x.to(self.called.weight.dtype)) @ self.read.weight
        >>> reader = Reader()
        >>> read_past(reader) == {id(reader.read)}
        True
    """
    known = _of_root.get(root)
    if known is None:
        known = frozenset(
            id(reached)
            for module in root.modules()
            for path in _paths_of(module)
            for reached in _at(module, path)
        )
        _of_root[root] = known
    return known


def look_again() -> None:
    """Forget what was found: modules may be others."""
    _of_root.clear()


def _at(module: nn.Module, path: _Path) -> Iterator[nn.Module]:
    if not path:
        yield module
        return
    if isinstance(module, torch.jit.ScriptModule):  # which has no dictionaries
        return
    children: dict[str, Any] = module._modules  # noqa: SLF001
    for child in children.values() if path[0] == _ANY else [children.get(path[0])]:
        if child is not None:
            yield from _at(child, path[1:])


def _paths_of(module: nn.Module) -> Collection[_Path]:
    processor = module.__dict__.get("processor")
    paths = _paths(type(module))
    return paths if processor is None else paths | _paths(type(processor))


def _paths(kind: type) -> frozenset[_Path]:
    """Return from where in a module of a class its methods read weights; of a class of processors, which are given the module."""
    known = _of_class.get(kind)
    if known is None:
        place = 0 if issubclass(kind, nn.Module) else 1
        known = frozenset(path for code in _methods(kind) for path in _read_in(code, _argument(code, place)))
        _of_class[kind] = known
    return known


def _methods(kind: type) -> Iterator[CodeType]:
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] in ("torch", "builtins"):
            continue  # torch's own look for hooks before they go past a layer
        for name, member in vars(one).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
            if isinstance(code, CodeType) and not _PREPARING.match(name):
                yield code


def _argument(code: CodeType, place: int) -> str:
    return code.co_varnames[place] if code.co_argcount > place else ""


def _read_in(code: CodeType, own: str) -> Iterator[_Path]:
    """Return the paths from ``own``, a local name, at whose ends a function and what is defined in it read weights."""
    if "weight" in code.co_names:  # nearly no function has it, and taking one apart is slow
        names = _LocalNames(own)
        steps = [step for step in dis.get_instructions(code) if step.opname not in _PASSED_OVER]
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            path = names.follow(step, after)
            if path:
                yield path
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _read_in(inner, own)


class _LocalNames:
    """
    Follows what local names stand for through the instructions of a function, in their order.

    Args:
        own: The name of the module.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._held: dict[str, _Path] = {own: ()}
        self._path: _Path | None = None  # what is on top of the stack, from the module on
        self._is_asked = self._is_iterated = False
        self._before: Any = None  # the global that was loaded last, where nothing came in between

    def follow(self, step: dis.Instruction, after: dis.Instruction | None) -> _Path | None:
        """Take one instruction; return the path of the module whose weight it reads."""
        name, path = step.opname, None
        if name.startswith(("LOAD_FAST", "LOAD_DEREF")):
            self._load(step.argval, after)
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            path = self._attribute(str(step.argval), after)
        elif name.startswith("STORE_FAST"):
            self._store(step)
        elif _is_subscript(step) and self._path:
            self._path = (*self._path, _ANY)
        elif name == "FOR_ITER":
            self._is_iterated = True
        elif name != "LOAD_CONST" or not _is_subscript(after):
            self._path = None
        self._before = step.argval if name in ("LOAD_GLOBAL", "LOAD_NAME") else None
        return path

    def _load(self, value: Any, after: dis.Instruction | None) -> None:
        if self._path is None or not _is_subscript(after):  # else it is the number of a child
            value = value[-1] if isinstance(value, tuple) else value
            self._path = self._held.get(value)
            self._is_asked, self._is_iterated = self._before in _ASKING, False

    def _attribute(self, name: str, after: dis.Instruction | None) -> _Path | None:
        path = self._path
        self._path = None if path is None or name == "weight" else (*path, name)
        return path if name == "weight" and not self._is_asked and not _is_about(after) else None

    def _store(self, step: dis.Instruction) -> None:
        stored, *loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        if self._path:
            self._held[stored] = (*self._path, _ANY) if self._is_iterated else self._path
        elif stored != self._own:
            self._held.pop(stored, None)
        self._path = self._held.get(loaded[0]) if loaded and "LOAD" in step.opname else None
        self._is_iterated = False


def _is_subscript(step: dis.Instruction | None) -> bool:
    return step is not None and (
        step.opname == "BINARY_SUBSCR" or (step.opname == "BINARY_OP" and step.argrepr == "[]")
    )


def _is_about(step: dis.Instruction | None) -> bool:
    """Tell whether what follows asks about a weight, or writes it."""
    if step is None or step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
        return False
    return step.argval in _ABOUT or str(step.argval).endswith("_")
