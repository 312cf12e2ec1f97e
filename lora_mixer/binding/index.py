"""Every spelling of every module of one live component, built from the component itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.components import TEXT_HINTS
from lora_mixer.families import counted_names, family_of_class, flatten, is_listed, spell
from lora_mixer.families.earlier_names import earlier_names
from lora_mixer.families.text_names import is_clip, text_names
from lora_mixer.families.unet_names import block_prefixes, ldm_name
from lora_mixer.formats.fronts import PEFT_ROOT
from lora_mixer.formats.safeloras import PREFIX as ORDINAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_mixer.algorithms.base import Ranges
    from lora_mixer.families import Family, Pieces

_PACKED = "in_proj_weight"
"""The rows for queries, keys and values of ``nn.MultiheadAttention``, which files name by the attention itself."""

_ROWS = ("q_proj", "k_proj", "v_proj")

OWN_INPUTS = "_lora_mixer_own_inputs"
"""What a module has beside its parameters while an adapter gives it more inputs: how many it has without."""


def _own_value(module: nn.Module, name: str) -> Any:
    """Return a module's attribute or property, None without one: asking for what is not there takes torch ten times as long."""
    value = module.__dict__.get(name)
    return getattr(module, name, None) if value is None and hasattr(type(module), name) else value


def _has_weight(module: nn.Module) -> bool:
    """Say whether a module has a weight that is not a parameter of its own: a buffer, a property, what a wrapper hands on."""
    plain = type(module).__getattr__ is nn.Module.__getattr__ and not hasattr(type(module), "weight")
    places = (module.__dict__, module._buffers, module._modules)  # noqa: SLF001
    known = any("weight" in place for place in places) if plain else True
    return known and getattr(module, "weight", None) is not None


@dataclass(frozen=True)
class LiveModule:
    """
    A module with a weight, or a parameter that is not a module's weight, at its own path in a component.

    Attributes:
        component: The component's name.
        path: The module's path; a bare parameter's own.
        module: The module, or the owner of the parameter.
        attribute: The parameter's name in it.
        tied: Whether another module of the component has the same parameter.
        by_call: Whether its rows are no images, but what all images of a call share.
    """

    component: str
    path: str
    module: nn.Module
    attribute: str = "weight"
    tied: bool = False
    by_call: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether this is a parameter that belongs to no module of its own, such as ``scale_shift_table``."""
        return self.attribute != "weight"

    @property
    def is_packed(self) -> bool:
        """Whether this is the one matrix of ``nn.MultiheadAttention`` for queries, keys and values."""
        return self.attribute == _PACKED

    @property
    def weight(self) -> torch.Tensor:
        """The live weight; looked up anew each time, since ``.to`` may replace it."""
        weight = self.module._parameters.get(self.attribute)  # noqa: SLF001 -- ten times faster than getattr
        return getattr(self.module, self.attribute) if weight is None else weight

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored (in, out), as GPT-2's ``Conv1D`` does."""
        return type(self.module).__name__ == "Conv1D" and hasattr(self.module, "nf")

    @property
    def beside_shape(self) -> tuple[int, ...]:
        """The shape of what stands beside the layer: over all inputs, also of a convolution in groups."""
        shape = self.shape
        groups = getattr(self.module, "groups", 1)
        return shape if groups == 1 or len(shape) < 3 else (shape[0], shape[1] * groups, *shape[2:])

    @property
    def shape(self) -> tuple[int, ...]:
        """
        Shape of the weight as (out, in, *kernel): the layer's own sizes where its weight is packed.

        It is the base model's, also while an adapter gives the module more inputs: what else is loaded then stays when these go.
        """
        if self.is_bare:
            return tuple(self.weight.shape)
        wide, narrow = _own_value(self.module, "out_features"), _own_value(self.module, "in_features")
        columns = self.module.__dict__.get(OWN_INPUTS)
        if isinstance(wide, int) and isinstance(narrow, int):
            return (wide, narrow if columns is None else columns)
        shape = tuple(self.weight.shape)
        shape = shape[::-1] if self.transposed else shape
        return shape if columns is None else (shape[0], columns, *shape[2:])


@dataclass(frozen=True)
class Placement:
    """
    A live module's part of a layer of a file.

    Attributes:
        live: The module.
        file_rows: Which rows of the file's layer it gets, in the order in which it has them.
        live_rows: Which of its own rows these are; None for all.
    """

    live: LiveModule
    file_rows: Ranges
    live_rows: Ranges | None = None


@dataclass(frozen=True)
class ModuleMatch:
    """
    What a spelling means on a live model.

    Attributes:
        placements: The modules and their rows.
        total: Rows of the file's layer.
    """

    placements: tuple[Placement, ...]
    total: int

    @property
    def is_whole(self) -> bool:
        """Whether the layer is one live module, row by row."""
        first = self.placements[0]
        return len(self.placements) == 1 and first.live_rows is None and first.file_rows == ((0, self.total),)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that the file's layer has to be made for."""
        return (self.total, *self.placements[0].live.shape[1:])


def plain_paths(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """
    Yield all modules of a component by their paths as files know them, from before it was wrapped.

    What PEFT and ``torch.compile`` wrap comes after its wrapper, at the same path.
    """
    is_peft = hasattr(root, "peft_config")
    for path, module in root.named_modules():
        plain = path.removeprefix(PEFT_ROOT).replace(".original_module", "") if is_peft else path
        yield plain.replace("_orig_mod.", "").replace(".base_layer", ""), module


@lru_cache(maxsize=32)
def _flat_names(
    modules: tuple[str, ...], bare: tuple[str, ...], attention: tuple[tuple[str, str], ...], language: bool
) -> Mapping[str, str | None]:
    """
    Spell the paths of a component as files without dots do, in every way; the same for all models of one structure.

    Args:
        modules: The paths of modules with a weight.
        bare: Those of other parameters.
        attention: The path of each ``nn.MultiheadAttention`` and of its packed matrix.
        language: Whether it is a text encoder.

    Returns:
        Underscored spelling to path; None where two modules share one.
    """
    known = dict.fromkeys(modules)
    clip = is_clip(known)
    unet = "conv_in" in known and any(path.startswith("down_blocks.") for path in known)
    blocks = block_prefixes(known) if unet else {}

    def aliases(path: str) -> Iterator[str]:
        for name in (path, *earlier_names(path)):
            yield name
            yield from text_names(name, clip=clip, language=language)
            original = ldm_name(name, blocks) if blocks else None
            if original:
                yield original

    table: dict[str, str | None] = {}
    for path in (*modules, *bare):
        for alias in aliases(path):
            key = alias.replace(".", "_")
            table[key] = path if table.get(key, path) == path else None
    for above, path in attention:
        for alias in aliases(above):
            table.setdefault(alias.replace(".", "_"), path)
    return table


class ModuleIndex:
    """
    Find the modules of one component by any spelling that files use.

    Args:
        component: The component's name.
        root: Its module.
    """

    def __init__(self, component: str, root: nn.Module) -> None:
        """Walk the module tree once."""
        self.ordinal_classes: tuple[str, ...] | None = None
        self.ordinal_order = counted_names.ORDERS[0]
        self.component = component
        self.root = root
        self.family: Family | None = family_of_class(type(root).__name__)
        self._modules: dict[str, nn.Module] = {}
        self._bare: dict[str, tuple[nn.Module, str]] = {}
        self._owners: dict[str, nn.Module] = {}
        self._uses: dict[int, int] = {}
        self._attention: dict[str, str] = {}
        self._preferred: tuple[str, ...] = ()
        self._all_paths: list[str] = []
        self._ordinals: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str] | None] = {}
        for plain, module in plain_paths(root):
            if getattr(type(module), "holds_adapters", False):
                continue  # parameters of adapters in training, not the model's own
            if isinstance(module, torch.jit.ScriptModule):
                continue  # what torch.jit made: its code reads its parameters past any module
            self._all_paths.append(plain)
            self._owners[plain] = module
            shared = module._parameters.get("weight")  # noqa: SLF001
            if shared is not None or _has_weight(module):
                self._modules[plain] = module
            if shared is not None:
                self._uses[id(shared)] = self._uses.get(id(shared), 0) + 1
            if module._parameters.get(_PACKED) is not None:  # noqa: SLF001
                self._attention[plain] = f"{plain}.{_PACKED}".lstrip(".")
            for name in module._parameters:  # noqa: SLF001 -- the module's own, named as they are
                if name not in ("weight", "bias"):
                    self._bare[f"{plain}.{name}".lstrip(".")] = (module, name)

    def begin(self) -> None:
        """Forget what was decided for a file before."""
        self.ordinal_classes, self.ordinal_order = None, counted_names.ORDERS[0]
        self._preferred = ()

    @cached_property
    def packed(self) -> dict[str, int]:
        """Count, by class, the layers whose weights are packed in a form of their own, so that nothing here finds them."""
        counts: dict[str, int] = {}
        for module in self.root.modules():
            sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
            alone = next(module.children(), None) is None  # no wrapper around the layer itself
            if alone and all(type(x) is int for x in sizes) and getattr(module, "weight", None) is None:
                name = type(module).__name__
                counts[name] = counts.get(name, 0) + 1
        return counts

    def __len__(self) -> int:
        """Count the modules that have a weight."""
        return len(self._modules)

    @cached_property
    def _flat(self) -> Mapping[str, str | None]:
        """Underscored spelling to path; None where two modules share one."""
        return _flat_names(
            tuple(self._modules),
            tuple(self._bare),
            tuple(self._attention.items()),
            self.component in TEXT_HINTS,
        )

    def _ordinal(self, spelling: str) -> str | None:
        classes, number = spelling.removeprefix(ORDINAL).split(":")
        order = self.ordinal_paths(tuple(classes.split(",")))
        return order[int(number)] if order and int(number) < len(order) else None

    def ordinal_paths(self, classes: tuple[str, ...]) -> list[str] | None:
        """List the modules that cloneofsimo's counting numbers, for its class names."""
        key = (classes, self.ordinal_order)
        if key not in self._ordinals:
            self._ordinals[key] = counted_names.count_modules(self._all_paths, *key)
        return self._ordinals[key]

    @cached_property
    def _layouts(self) -> dict[str, tuple[dict[str, tuple[Pieces, ...]], dict[str, str | None]]]:
        """The family's spellings of the live modules, dotted and flat, by layout."""
        paths = self._modules.keys() | self._bare.keys()
        tables = {} if self.family is None else self.family.layouts
        spelled = {name: spell(table, paths) for name, table in tables.items()}
        return {name: (dotted, flatten(dotted)) for name, dotted in spelled.items()}

    def prefer(self, spellings: Sequence[str], said: str = "") -> None:
        """
        Decide which layout counts where a name stands in several: the one that has most of a file's names.

        Args:
            spellings: The names of the file's layers for this component.
            said: Who wrote the file, as its format says; a layout of that name comes first where it has as many.
        """
        counts = {"": sum(self._own(x) is not None for x in spellings)}
        if counts[""] == len(spellings):  # the usual case, in which no table needs to be spelled out
            self._preferred = ("",)
            return
        counts |= {name: sum(self._layout(name, x) is not None for x in spellings) for name in self._layouts}
        self._preferred = tuple(sorted(counts, key=lambda name: (-counts[name], name not in said.split("+"))))

    def may_widen(self, path: str) -> bool:
        """Say whether adapters of this family may have more or fewer inputs than the module at a path."""
        return self.family is not None and path in self.family.widens

    def may_lack(self, spelling: str) -> bool:
        """Say whether files of sibling models have such a module where this family's model may have none."""
        return self.family is not None and is_listed(self.family.absent, spelling)

    def _own(self, spelling: str) -> str | None:
        """Find a path by the live model's own names, LDM's or by count."""
        spelling = spelling.replace(".base_layer.", ".")  # PEFT's wrapper around an attention
        if spelling in self._attention:
            return self._attention[spelling]
        path: str | None = spelling
        if spelling.startswith(ORDINAL):
            path = self._ordinal(spelling)
        elif spelling not in self._modules and spelling not in self._bare:
            path = self._flat.get(spelling.replace(".", "_"))
        return path if path in self._modules or path in self._bare else None

    def _layout(self, name: str, spelling: str) -> tuple[Pieces, ...] | None:
        dotted, flat = self._layouts[name]
        meaning = dotted.get(spelling)
        if meaning is None:
            whole = flat.get(spelling.replace(".", "_"))
            meaning = None if whole is None else dotted[whole]
        return meaning

    def owner(self, path: str) -> nn.Module | None:
        """Return the module at a path, whether or not it has a weight; None where there is none."""
        return self._owners.get(path)

    def live(self, path: str) -> LiveModule:
        """Return the module or the bare parameter at a path."""
        if path in self._modules:
            module = self._modules[path]
            weight = module._parameters.get("weight")  # noqa: SLF001 -- shared by identity
            tied = self._uses.get(id(weight), 0) > 1
            by_call = self.family is not None and is_listed(self.family.by_call, path)
            return LiveModule(self.component, path, module, tied=tied, by_call=by_call)
        return LiveModule(self.component, path, *self._bare[path])

    def find(self, spelling: str) -> ModuleMatch | None:
        """
        Find what a file spells so: modules, and rows of them.

        Args:
            spelling: Dotted, underscored, LDM (either way), ordinal, or as the family's other layouts spell it.
        """
        apart = self._rows_of_attention(spelling)
        if apart is not None:
            return apart
        for name in self._preferred or ("", *self._layouts):
            if name:
                meaning = self._layout(name, spelling)
                if meaning is not None:
                    return self._placed(meaning)
            elif (path := self._own(spelling)) is not None:
                live = self.live(path)
                rows = live.shape[0] if live.shape else 1
                return ModuleMatch((Placement(live, ((0, rows),)),), rows)
        return None

    def _rows_of_attention(self, spelling: str) -> ModuleMatch | None:
        """Find queries, keys or values that a file has apart and ``nn.MultiheadAttention`` in one matrix."""
        above, _, last = spelling.rpartition(".")
        if last not in _ROWS or above not in self._attention:
            return None
        live, number = self.live(self._attention[above]), _ROWS.index(last)
        count = live.shape[0] // len(_ROWS)
        place = Placement(live, ((0, count),), ((number * count, (number + 1) * count),))
        return ModuleMatch((place,), count)

    def _placed(self, meaning: tuple[Pieces, ...]) -> ModuleMatch:
        placements: list[Placement] = []
        total = 0
        for pieces in meaning:
            rows: dict[str, list[tuple[int, int, int]]] = {}  # of each module: live start, file start, count
            start = 0
            for path, first, count in self._by_head(pieces):
                rows.setdefault(path, []).append((first, start, count))
                start += count
            for piece in pieces:
                if piece.by_head:
                    continue
                height = self.live(piece.path).shape[0]
                for part, parts in piece.chunks or ((0, 1),):
                    count = height // parts
                    rows.setdefault(piece.path, []).append((part * count, start, count))
                    start += count
            total = start
            for path, spans in rows.items():
                placements.append(self._placement(path, sorted(spans)))
        return ModuleMatch(tuple(placements), total)

    def _by_head(self, pieces: Pieces) -> Iterator[tuple[str, int, int]]:
        """Return the rows of modules that alternate head by head: path, first row and how many, in the file's order."""
        heads = [piece.path for piece in pieces if piece.by_head]
        if heads:
            size = self.live(f"{heads[0].rpartition('.')[0]}.norm_q").shape[0]
            for first in range(0, self.live(heads[0]).shape[0], size):
                for path in heads:
                    yield path, first, size

    def _placement(self, path: str, spans: list[tuple[int, int, int]]) -> Placement:
        live = self.live(path)
        file_rows: list[tuple[int, int]] = []
        live_rows: list[tuple[int, int]] = []
        for live_start, theirs, count in spans:
            if file_rows and file_rows[-1][1] == theirs and live_rows[-1][1] == live_start:
                file_rows[-1] = (file_rows[-1][0], theirs + count)
                live_rows[-1] = (live_rows[-1][0], live_start + count)
            else:
                file_rows.append((theirs, theirs + count))
                live_rows.append((live_start, live_start + count))
        whole = sum(stop - start for start, stop in live_rows) == live.shape[0]
        return Placement(live, tuple(file_rows), None if whole else tuple(live_rows))
