"""A stand-in for what ComfyUI does with nodes: it checks a graph against their interface, then runs it, each node once."""

from __future__ import annotations

import sys
from types import ModuleType


def folders(monkeypatch, **kinds):
    """Put ComfyUI's ``folder_paths`` in place: files by kind, name and path."""
    module = ModuleType("folder_paths")
    module.get_filename_list = lambda kind: list(kinds.get(kind, {}))

    def full(kind, name):
        if name not in kinds.get(kind, {}):
            raise FileNotFoundError(f"Model in folder '{kind}' with filename '{name}' not found.")
        return str(kinds[kind][name])

    module.get_full_path_or_raise = full
    monkeypatch.setitem(sys.modules, "folder_paths", module)


class RefusedError(Exception):
    """The graph is not sent on: a value or a link does not fit."""


def check(graph, classes):
    """Check a graph (as ComfyUI's API takes it) as ComfyUI does before it runs anything."""
    for key, node in graph.items():
        kind = classes[node["class_type"]]
        assert isinstance(kind.RETURN_TYPES, tuple)
        assert callable(getattr(kind, kind.FUNCTION))
        takes = kind.INPUT_TYPES()
        known = {**takes["required"], **takes.get("optional", {})}
        for name in takes["required"]:
            if name not in node["inputs"]:
                raise RefusedError(f"{key}: {name} is missing")
        for name, value in node["inputs"].items():
            wanted, limits = known[name][0], (known[name][1] if len(known[name]) > 1 else {})
            if isinstance(value, list):
                source, slot = value
                given = classes[graph[source]["class_type"]].RETURN_TYPES[slot]
                if given != wanted:
                    raise RefusedError(f"{key}: {name} is {wanted}, not {given}")
            else:
                _check_value(f"{key}: {name} {value!r}", value, wanted, limits)


def _check_value(what, value, wanted, limits):
    if isinstance(wanted, list):
        if value not in wanted:
            raise RefusedError(f"{what} is not in the list")
        return
    kinds = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
    if not isinstance(value, kinds[wanted]):
        raise RefusedError(f"{what} is no {wanted}")
    if not limits.get("min", value) <= value <= limits.get("max", value):
        raise RefusedError(f"{what} is out of bounds")


def run(graph, classes, kept=None):
    """Run a graph and return what each node gave; ``kept`` are the outputs of an earlier run, as ComfyUI's cache has them."""
    check(graph, classes)
    done = dict(kept or {})

    def of(key):
        if key not in done:
            node = graph[key]
            kind = classes[node["class_type"]]
            inputs = {
                name: of(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            }
            done[key] = getattr(kind(), kind.FUNCTION)(**inputs)
            assert isinstance(done[key], tuple)
            assert len(done[key]) == len(kind.RETURN_TYPES)
        return done[key]

    return {key: of(key) for key in graph}
