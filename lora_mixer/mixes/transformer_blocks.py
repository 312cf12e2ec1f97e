"""
Weights in depth for transformers: ``{"double": 0.5, "single": [0, 1, ...], "other": 0}``.

*Double* blocks have a stream for the text and one for the picture, *single* blocks one for both (Flux, Chroma, HunyuanVideo,
AuraFlow). Where a transformer has one stack only (SD3, Qwen-Image, Wan, Z-Image, LTX), its blocks are the double ones. What is
not written has 1; ``other`` is for what is in no block (embedders, refiners, the last layer).

Presets name kinds (``dit:double``, ``dit:single``, ``dit:blocks``) and thirds of the depth: ``dit:early``, ``dit:middle`` and
``dit:late`` of all blocks in the order in which they run, and those of one kind (``dit:double-early``, ..., ``dit:single-late``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_mixer.components import TEXT_ENCODERS
from lora_mixer.mixes.blocks import Blocks
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.unet_blocks import depth_of
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from lora_mixer.mixes.unet_blocks import BlockLayout

DEPTH_KEYS = ("double", "single", "other")
Weights = float | tuple[float, ...] | Mapping[int, float]


@dataclass(frozen=True)
class DepthWeights(Blocks):
    """
    Weights of a transformer's blocks.

    Attributes:
        double: A number, a list with one for each double block, or numbers by index.
        single: The same for single blocks.
        other: The weight of the layers outside the blocks.

    Example:
        >>> weights = DepthWeights(double=0.5, single={2: 0.0})
        >>> [weights.weight("transformer", f"{name}.attn.to_q") for name in ("transformer_blocks.7", "single_transformer_blocks.2")]
        [0.5, 0.0]
    """

    double: Weights = 1.0
    single: Weights = 1.0
    other: float = 1.0

    def __post_init__(self) -> None:
        """Check and freeze the values."""
        reading = Reading()
        for kind in ("double", "single"):
            object.__setattr__(self, kind, _read(getattr(self, kind), kind, reading))
        object.__setattr__(self, "other", reading.number("other", self.other))
        reading.finish("set of block weights")

    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """Return the weight of one layer; text encoders have 1."""
        if component in TEXT_ENCODERS:
            return 1.0
        if layout is not None and (layout.double or layout.single):
            reading = Reading()
            for problem in self.misfits(layout):
                reading.problem("", problem)
            reading.finish("set of block weights")
        depth = depth_of(module)
        if depth is None:
            return self.other
        kind, index = depth
        weights: Weights = getattr(self, kind)
        if isinstance(weights, Mapping):
            return weights.get(index, 1.0)
        if isinstance(weights, tuple):
            return weights[index] if index < len(weights) else 1.0
        return weights

    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """Tell lists of other lengths, blocks that are not there, and models without any."""
        if _has_none(layout):
            return (_NONE,)
        problems = []
        for kind in ("double", "single"):
            weights: Weights = getattr(self, kind)
            count = getattr(layout, kind)
            if isinstance(weights, tuple) and len(weights) != count:
                problems.append(
                    f"{kind}: expected a number or {count} numbers, one for each {kind} block, got {len(weights)}."
                )
            elif isinstance(weights, Mapping) and (beyond := [n for n in weights if n >= count]):
                problems.append(f"{kind}.block_{beyond[0]}: this model has {count} {kind} blocks.")
        if self == PRESETS["dit:single"] and not layout.single:
            problems.append(
                "dit:single is for models with single blocks, and this one has none: nothing would be left."
            )
        return tuple(problems)

    def to_spec(self) -> object:
        """Return the preset's name where there is one, else the dict."""
        for name, preset in PRESETS.items():
            if preset == self:
                return name
        spec = {"double": _spec(self.double), "single": _spec(self.single), "other": self.other}
        return {key: value for key, value in spec.items() if key == "double" or value != 1.0}


def read_depth(spec: Mapping[object, object], where: str, reading: Reading) -> DepthWeights | None:
    """
    Read weights of a transformer's blocks.

    Example:
        >>> read_depth({"double": [1, 0], "single": {"block_3": 0.5}}, "a.blocks", Reading()).single
        {3: 0.5}
    """
    before = len(reading.problems)
    for key in spec:
        if key not in DEPTH_KEYS:
            reading.unknown_key(where, key, DEPTH_KEYS, 'Layer patterns go under "patterns".')
    weights: dict[str, object] = {}
    for kind in ("double", "single"):
        given = spec.get(kind, 1.0)
        if isinstance(given, Mapping):
            by_index: dict[object, object] = {}
            for key, value in given.items():
                digits = key.removeprefix("block_") if isinstance(key, str) else ""
                if digits.isdecimal() and len(digits) < 5 and f"block_{int(digits)}" == key:
                    by_index[int(digits)] = value
                else:
                    reading.problem(f"{where}.{kind}", f'expected keys such as "block_0", got {shown(key)}.')
            given = by_index
        weights[kind] = _read(given, f"{where}.{kind}", reading)
    weights["other"] = reading.number(f"{where}.other", spec.get("other", 1.0))
    return DepthWeights(**weights) if len(reading.problems) == before else None  # type: ignore[arg-type]


def _read(given: object, where: str, reading: Reading) -> Weights:
    if isinstance(given, Mapping):
        for key in given:
            if type(key) is not int or key < 0:
                reading.problem(where, f"expected the index of a block, got {shown(key)}.")
        return (
            FrozenMap({key: reading.number(f"{where}.block_{key}", value) for key, value in given.items()})
            or 1.0
        )
    if isinstance(given, (list, tuple)):
        if not given:
            reading.problem(where, "expected a number or a list of numbers, got an empty list.")
        return tuple(reading.number(f"{where}[{index}]", value) for index, value in enumerate(given))
    return reading.number(where, given)


def _spec(weights: Weights) -> object:
    if isinstance(weights, Mapping):
        return {f"block_{index}": weight for index, weight in weights.items()}
    return list(weights) if isinstance(weights, tuple) else weights


Third = Literal["early", "middle", "late"]
_THIRDS: tuple[Third, ...] = ("early", "middle", "late")
_NONE = "double and single are blocks of a transformer, and this model has none of them."


def _has_none(layout: BlockLayout) -> bool:
    return layout.is_unet or not (layout.double or layout.single)


@dataclass(frozen=True)
class DepthThird(Blocks):
    """
    A third of a transformer's depth; all other layers of the transformer have 0.

    Attributes:
        third: Which. A block counts by its middle, so that the thirds mirror each other and share no block.
        kind: Of which blocks; empty for all of them, double blocks before single ones, as they run.

    Example:
        >>> from lora_mixer.mixes import BlockLayout
        >>> flux = BlockLayout(double=19, single=38)
        >>> [n for n in range(19) if DepthThird("late", "double").weight("transformer", f"transformer_blocks.{n}.ff", flux)]
        [13, 14, 15, 16, 17, 18]
    """

    third: Third
    kind: Literal["", "double", "single"] = ""

    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """Return 1 in the third and 0 elsewhere; text encoders have 1."""
        if component in TEXT_ENCODERS:
            return 1.0
        depth = depth_of(module)
        if depth is None:
            return 0.0
        if layout is None:
            reading = Reading()
            reading.problem(
                "", f"{self.to_spec()} is a part of a model's depth: give the layout of the model."
            )
            reading.finish("set of block weights")
            return 0.0
        self.require_fit(layout)
        kind, index = depth
        return float(self._has(kind, index, layout))

    def _has(self, kind: str, index: int, layout: BlockLayout) -> bool:
        if self.kind and kind != self.kind:
            return False
        count = getattr(layout, kind) if self.kind else layout.double + layout.single
        place = index + (layout.double if kind == "single" and not self.kind else 0)
        return _THIRDS[min(3 * (2 * place + 1) // (2 * count), 2)] == self.third

    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """Tell models without such blocks."""
        if _has_none(layout):
            return (_NONE,)
        kinds = [("double", layout.double), ("single", layout.single)]
        if any(self._has(kind, index, layout) for kind, count in kinds for index in range(count)):
            return ()
        return (
            (
                f"{self.to_spec()}: this model has {layout.double} double and {layout.single} single blocks, none of which is in "
                "that third: nothing would be left."
            ),
        )

    def to_spec(self) -> object:
        """Return the preset's name."""
        return f"dit:{self.kind}{'-' if self.kind else ''}{self.third}"


PRESETS: Mapping[str, Blocks] = FrozenMap(
    {
        "dit:double": DepthWeights(1.0, 0.0, 0.0),
        "dit:single": DepthWeights(0.0, 1.0, 0.0),
        "dit:blocks": DepthWeights(1.0, 1.0, 0.0),
        **{
            str(third.to_spec()): third
            for third in (DepthThird(x, kind) for kind in ("", "double", "single") for x in _THIRDS)
        },
    }
)
"""Presets by name: double blocks alone, single blocks alone, all blocks and nothing else, and thirds of the depth."""
