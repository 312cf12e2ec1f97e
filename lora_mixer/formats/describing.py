"""
The description of an adapter, from the facts of its modules.

Plain LoRA files, which nearly all are, are described from names and shapes in the header alone: no tensor is made for
them. Everything else is built first, and described from what was built; both ways say the same of the same file.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lora_mixer.adapter import AdapterInfo
from lora_mixer.algorithms.peft_starts import is_from_base
from lora_mixer.families.telling import adapter_family
from lora_mixer.formats import safeloras
from lora_mixer.formats.grouping import is_foreign, locate
from lora_mixer.formats.leaves import split_key
from lora_mixer.formats.peft_config import rule_for
from lora_mixer.sidecar_facts import sidecar_facts
from lora_mixer.sources import find_sidecars

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_mixer.formats.fronts import KeyTarget
    from lora_mixer.formats.header import Header
    from lora_mixer.formats.peft_config import ScaleRule
    from lora_mixer.hashes import Hashes
    from lora_mixer.sources import AdapterSource

_SLOTS = {"down": 0, "up": 1, "alpha": 2}
_LONG = 256  # letters; longer keys are nobody's, and are not kept in the cache
_MANY = 8192  # keys; a whole SDXL model has 5,300
_NUMBERS = {
    "float32": struct.Struct("<f").unpack_from,
    "float16": struct.Struct("<e").unpack_from,
    "bfloat16": struct.Struct("<f").unpack_from,
}


class Modules(NamedTuple):
    """
    What a description needs to know of all modules of an adapter.

    Attributes:
        hints: The component of each.
        names: Each one's spelling.
        widths: Each one's input width, where the tensors tell.
        algorithms: Of any of them.
        ranks: Likewise.
        alphas: Likewise.
    """

    hints: Sequence[str | None]
    names: Sequence[str]
    widths: Sequence[int | None]
    algorithms: set[str]
    ranks: set[int]
    alphas: set[float]


def describe_adapter(
    source: AdapterSource,
    name: str | None,
    modules: Modules,
    *,
    layouts: Iterable[str],
    dtypes: Iterable[str],
    size: int,
    embeddings: Sequence[str],
    metadata: Mapping[str, str],
    hashes: Hashes,
) -> AdapterInfo:
    """
    Return the description.

    Args:
        source: Where the adapter lies.
        name: The name that it is to have; None takes the source's own.
        modules: Its modules.
        layouts: The layouts of its keys.
        dtypes: The dtypes of the tensors that its layers hold, by torch's names.
        size: Their bytes.
        embeddings: Words of textual inversions in it.
        metadata: The header's metadata.
        hashes: The file's.
    """
    components: dict[str, int] = {}
    for hint, count in Counter(modules.hints).items():
        key = ("unet" if hint == "denoiser" else hint) or "unnamed"
        components[key] = components.get(key, 0) + count
    weights = source.weights
    beside = find_sidecars(weights) if isinstance(weights, Path) else None
    words, said = sidecar_facts(
        metadata, source.config, beside, stem=weights.stem if isinstance(weights, Path) else ""
    )
    return AdapterInfo(
        name=name or own_name(source),
        source=source.label,
        format="+".join(sorted(set(layouts))),
        base=adapter_family(modules.hints, modules.names, modules.widths, metadata, said.base),
        algorithms=tuple(sorted(modules.algorithms)),
        ranks=tuple(sorted(modules.ranks)),
        alphas=tuple(sorted(modules.alphas)),
        dtypes=tuple(sorted(set(dtypes))),
        bytes=size,
        components=components,
        embeddings=tuple(embeddings),
        trigger_words=words,
        metadata=dict(metadata),
        about=said,
        hashes=hashes,
    )


def own_name(source: AdapterSource) -> str:
    """Name an adapter after its file, or after its folder where the file is called as every other."""
    if source.parts:
        return source.label.rpartition(": ")[2].rstrip("/").rpartition("/")[2] or source.label
    if isinstance(source.weights, Path):
        stem = source.weights.stem
        generic = stem in ("adapter_model", "pytorch_lora_weights")
        return (
            source.repo_id.rpartition("/")[2]
            if generic and source.repo_id
            else source.weights.parent.name
            if generic
            else stem
        )
    return source.label


class SlicedBytes(Protocol):
    """Bytes of which slices are read."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Return the bytes of a slice."""
        ...


class Survey(NamedTuple):
    """What a header alone tells of a plain LoRA."""

    modules: Modules
    layouts: set[str]
    dtypes: set[str]
    size: int


def survey(header: Header, data: SlicedBytes, rules: Mapping[str | None, ScaleRule]) -> Survey | None:
    """
    Look through the header of a plain LoRA.

    Args:
        header: Its checked header.
        data: The whole file; alphas are read from it.
        rules: Scales from configurations, by component.

    Returns:
        Its modules; None where anything is not as in a plain LoRA that is whole, so that the full reading judges it.
    """
    if any(_says_more(rule.config) for rule in rules.values()):
        return None
    plan = _plan(tuple(header.tensors)) if len(header.tensors) <= _MANY else None
    if plan is None:
        return None
    specs = list(header.tensors.values())
    downs, ups = [specs[place][1] for place in plan.downs], [specs[place][1] for place in plan.ups]
    ranks = {_rank(*shapes) for shapes in {*zip(downs, ups, strict=True)}}
    marks = [specs[place] for place in plan.alphas]
    if not all(dtype in _NUMBERS and math.prod(shape) == 1 for dtype, shape in {spec[:2] for spec in marks}):
        return None
    begin = header.data_start
    raws = {(dtype, data[begin + start : begin + end]) for dtype, _, start, end in marks}
    alphas = {_number(dtype, bytes(raw)) for dtype, raw in raws}  # a file has few different ones
    held = [specs[place] for place in (*plan.downs, *plan.ups)]
    dtypes = {spec[0] for spec in held}
    if 0 in ranks or None in alphas or not all("float" in dtype for dtype in dtypes):
        return None
    for number in plan.bare if rules else ():
        target = plan.targets[number]
        rule = rule_for(target, rules)
        alphas.add(None if rule is None else rule.alpha_of(*target.spellings))
    modules = Modules(
        plan.hints,
        plan.names,
        [shape[1] for shape in downs],
        {"lora"},
        ranks,
        {alpha for alpha in alphas if alpha is not None},
    )
    return Survey(modules, plan.layouts, dtypes, sum([spec[3] - spec[2] for spec in held]))


def _says_more(config: Mapping[str, Any]) -> bool:
    """Say whether a configuration makes pairs something else than what their names and shapes tell."""
    start = is_from_base(config.get("init_lora_weights"))
    return start or any(config.get(name) for name in ("kasa_config", "target_parameters"))


class _KeyPlan(NamedTuple):
    """Where the parts of each module stand in a list of keys; those with no alpha of their own are bare."""

    hints: tuple[str | None, ...]
    names: tuple[str, ...]
    targets: tuple[KeyTarget, ...]
    downs: list[int]
    ups: list[int]
    alphas: list[int]
    bare: list[int]
    layouts: set[str]


@lru_cache(maxsize=16)  # most files of a folder have one of a few lists of keys
def _plan(keys: tuple[str, ...]) -> _KeyPlan | None:
    """Sort the keys of a plain LoRA into modules; None for what is none."""
    table: dict[tuple[str | None, str], list[int | None]] = {}
    targets: dict[tuple[str | None, str], KeyTarget] = {}
    layouts: set[str] = set()
    for number, key in enumerate(keys):
        place = _place(key) if len(key) <= _LONG else None
        if place is None:
            return None
        slot, target, layout = place
        module = (target.hint, target.module)
        targets.setdefault(module, target)
        parts = table.setdefault(module, [None, None, None])
        if parts[slot] is not None:
            return None
        parts[slot] = number
        layouts.add(layout)
    if not table:
        return None
    hints, names = tuple(hint for hint, _ in table), tuple(name for _, name in table)
    plan = _KeyPlan(hints, names, tuple(targets.values()), [], [], [], [], layouts)
    for number, (down, up, alpha) in enumerate(table.values()):
        if down is None or up is None:
            return None
        plan.downs.append(down)
        plan.ups.append(up)
        if alpha is None:
            plan.bare.append(number)
        else:
            plan.alphas.append(alpha)
    return plan


def _rank(down: tuple[int, ...], up: tuple[int, ...]) -> int:
    """Return the rank of a pair that multiplies, 0 for any other."""
    if len(down) < 2 or len(up) < 2 or 0 in down or 0 in up:
        return 0
    return down[0] if up[1] == down[0] and math.prod(up[2:]) == 1 else 0


def _number(dtype: str, raw: bytes) -> float | None:
    """Read one number; None for what is not finite."""
    (number,) = _NUMBERS[dtype](b"\0\0" + raw if dtype == "bfloat16" else raw)  # the upper half of a float32
    return float(number) if math.isfinite(number) else None


@lru_cache(maxsize=1 << 15)  # folders are full of files with the same names in them
def _place(key: str) -> tuple[int, KeyTarget, str] | None:
    """Say which slot of which module a key of a plain LoRA fills, and its layout; None for every other key."""
    if is_foreign(key) or safeloras.KEY.fullmatch(key) or safeloras.PREFIX in key:
        return None
    split = split_key(key)
    if split is None or split[1].role not in _SLOTS or split[1].inner:
        return None
    target, leaf, layout = locate(key, {}, {})
    if target is None or leaf is None:
        return None
    return _SLOTS[leaf.role], target, layout
