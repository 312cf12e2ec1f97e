"""
Parts that others have replaced since adapters were bound to them: noticed at little cost, and bound again by path.

``pipe.unet = other`` replaces a component, quantisation libraries replace layers inside of one. What PEFT or
``torch.compile`` wrap is still there, at a longer path.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_mixer.binding.index import plain_paths
from lora_mixer.errors import PipelineStateError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from lora_mixer.binding.index import LiveModule
    from lora_mixer.binding.layers import BoundLayer


class Lineage:
    """
    Where bound modules hang in their components.

    Args:
        roots: The components that adapters reach, as they were when adapters were bound.
        modules: The identities of the modules that adapters change.
    """

    def __init__(self, roots: Mapping[str, nn.Module], modules: Collection[int]) -> None:
        """Note each module on the way from a component to a bound one, and its parent."""
        self._roots = dict(roots)
        self._modules = frozenset(modules)
        parents: dict[int, tuple[nn.Module, str, nn.Module]] = {}
        for root in roots.values():
            for parent in root.modules():
                for name, child in parent._modules.items():  # noqa: SLF001
                    if child is not None:
                        parents.setdefault(id(child), (parent, name, child))
        edges: dict[int, tuple[nn.Module, str, nn.Module]] = {}
        for number in modules:
            here = number
            while here in parents and here not in edges:
                edges[here] = parents[here]
                here = id(parents[here][0])
        known = {id(root) for root in roots.values()} | edges.keys()
        self._is_whole = all(number in known for number in modules)
        self._edges = [(parent._modules, name, child) for parent, name, child in edges.values()]  # noqa: SLF001
        self._lookups = [(children.get, name) for children, name, _ in self._edges]
        self._children = [child for _, _, child in self._edges]

    def holds(self, components: Mapping[str, nn.Module]) -> bool:
        """Say whether all are where they were; a component that is not there at all counts as set aside."""
        return (
            self._is_whole
            and all(components.get(part, root) is root for part, root in self._roots.items())
            and all(map(operator.is_, [get(name) for get, name in self._lookups], self._children))
        )

    def covers(self, modules: Collection[int]) -> bool:
        """Say whether modules, by identity, are among those that it was made for."""
        return self._modules.issuperset(modules)

    def put_back(self, modules: Collection[int]) -> None:
        """
        Put modules back in the place of those that replaced them, with all that is above them in their component.

        Args:
            modules: The identities of the modules.

        Raises:
            PipelineStateError: When what replaced them has emptied them, as quanto does to save memory; nothing is put back then.
        """
        emptied = [
            name
            for _, name, child in self._edges
            if id(child) in modules and child._parameters.get("weight", child) is None  # noqa: SLF001
        ]
        if emptied:
            raise PipelineStateError(
                f"{len(emptied)} modules ({', '.join(emptied[:3])}) cannot be put back, as what replaced them took their weights "
                "away: call rebase() to take what is there now as the base (it was made from the mix), or load the model anew; "
                "replace modules under disable_lora()",
                problems=[Problem(name, "what replaced it took its weights away") for name in emptied],
            )
        for children, name, child in self._edges:
            if children.get(name) is not child and any(id(module) in modules for module in child.modules()):
                children[name] = child


@dataclass(frozen=True)
class Replaced:
    """A module that another one stands in the place of."""

    old: LiveModule
    new: LiveModule


class Rebinder:
    """
    Finds the modules that stand now where bound ones were.

    Args:
        roots: The components as they were when adapters were bound.
        components: The pipeline's modules now.

    Attributes:
        replaced: What was found to be replaced, by identity of the old module.
        problems: What cannot be bound again, and why.
    """

    def __init__(self, roots: Mapping[str, nn.Module], components: Mapping[str, nn.Module]) -> None:
        """Look at nothing yet."""
        self._roots = roots
        self._components = components
        self._paths: dict[str, dict[str, nn.Module]] = {}
        self._there: dict[str, set[int]] = {}
        self.replaced: dict[int, Replaced] = {}
        self.problems: list[Problem] = []

    def layers(self, bound: Sequence[BoundLayer]) -> tuple[BoundLayer, ...]:
        """Bind the layers of an adapter again; those that are where they were stay as they are."""
        return tuple(self._layer(layer) for layer in bound)

    def component(self, name: str) -> str:
        """Return the name that a component has now: by its identity, else the same."""
        root = self._roots.get(name)
        if root is None or self._components.get(name) is root:
            return name
        return next((part for part, other in self._components.items() if other is root), name)

    def _layer(self, layer: BoundLayer) -> BoundLayer:
        live = self._live(layer.live)
        if live is layer.live:
            return layer
        if live.module is not layer.live.module:
            misfit = None if live.is_bare else layer.weights.misfit(live.shape)
            if misfit:
                self.problems.append(Problem(f"{live.component}.{live.path}", misfit))
        siblings, widening = layer.siblings, layer.widening
        if siblings is not None:
            parts = tuple(replace(part, live=self._live(part.live)) for part in siblings.parts)
            siblings = replace(siblings, parts=parts)
        if widening is not None:
            widening = replace(widening, root=self._components.get(live.component, widening.root))
        return replace(layer, live=live, siblings=siblings, widening=widening)

    def _live(self, live: LiveModule) -> LiveModule:
        part = self.component(live.component)
        root = self._components.get(part)
        if root is None:  # set aside: it is bound as it was
            return live
        if part not in self._paths:
            self._index(part, root)
        if id(live.module) in self._there[part]:
            return live if part == live.component else replace(live, component=part)
        path = live.path.removesuffix(f".{live.attribute}") if live.is_bare else live.path
        module = self._paths[part].get(path)
        if module is None or getattr(module, live.attribute, None) is None:
            self.problems.append(Problem(f"{part}.{live.path}", "there is no such module any more"))
            return live
        new = replace(live, component=part, module=module)
        self.replaced[id(live.module)] = Replaced(live, new)
        return new

    def _index(self, part: str, root: nn.Module) -> None:
        paths, there = self._paths.setdefault(part, {}), self._there.setdefault(part, set())
        for plain, module in plain_paths(root):  # the wrapped module comes last
            there.add(id(module))
            if plain not in paths or getattr(module, "weight", None) is not None:
                paths[plain] = module
