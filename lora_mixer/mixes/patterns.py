"""
Weights by the names of layers, and B-LoRA's two presets.

A pattern is a glob (``*``, ``?``, ``[...]``; ``*`` crosses dots) or, after ``re:``, a regular expression without looks ahead or
back. It has to
match the whole path of a layer, within its component (``mid_block.*``) or with the component's name
(``unet.mid_block.*``). Of several patterns that match, the last one decides, as in ``.gitignore``: first the rule, then
its exceptions. A layer that none matches has 1.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from lora_mixer.errors import MixError
from lora_mixer.families import FAMILIES
from lora_mixer.mixes.blocks import Blocks
from lora_mixer.mixes.reading import Reading
from lora_mixer.parsing.expressions import LONGEST, Expression, ExpressionError
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from lora_mixer.mixes.unet_blocks import BlockLayout

_REGEX = "re:"
_GLOB_MARKS = frozenset("*?[.")
_EXPRESSIONS_AT_MOST = 64
_WORK, _A_NAME, _A_LETTER, _A_STAR = 1 << 25, 4096, 16, 256
"""
What all patterns of a set may need together, in letters of names that an expression follows; what is given for each name that is
asked for the first time, so that there is no end for a mix in use; and what the letters and stars of a pattern cost once.
"""

_OF_B_LORA = next(family for family in FAMILIES if family.b_lora)
"""SDXL; its distilled and pruned kin (SSD-1B, Vega) has as many transformers in its blocks, and no other base."""


@dataclass(frozen=True)
class LayerPatterns(Blocks):
    """
    Weights by patterns; the last match decides.

    Attributes:
        weights: Numbers by pattern, in the order in which they are tried.

    Example:
        >>> patterns = LayerPatterns({"*": 0.2, "*.attn2.*": 1})
        >>> patterns.weight("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_q")
        1.0
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check and freeze the values."""
        reading = Reading()
        object.__setattr__(self, "weights", _read_weights(self.weights, "", reading))
        reading.finish("set of block weights")

    def __eq__(self, other: object) -> bool:
        """The order counts."""
        return isinstance(other, LayerPatterns) and tuple(self.weights.items()) == tuple(
            other.weights.items()
        )

    def __hash__(self) -> int:
        return hash(tuple(self.weights.items()))

    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """Return the number of the last pattern that matches, else 1."""
        del layout
        if (weight := self._found.get((component, module))) is None:
            weight = self._found[component, module] = self._last_match(component, module)
        return weight

    @cached_property
    def _found(self) -> dict[tuple[str, str], float]:
        """What was asked before."""
        return {}

    def _last_match(self, component: str, module: str) -> float:
        names = _names(component, module)
        self._work.left += _A_NAME
        for pattern, weight in reversed(self._pairs):
            if self._matches(pattern, names, self._work):
                return weight
        return 1.0

    @cached_property
    def _pairs(self) -> list[tuple[str, float]]:
        return list(self.weights.items())

    @cached_property
    def _tests(self) -> dict[str, re.Pattern[str] | Expression]:
        """What tells the names of each pattern, from the first that it is asked of on."""
        return {}

    @cached_property
    def _work(self) -> _Work:
        return _Work(len(self.weights))

    def _matches(self, pattern: str, names: tuple[str, str], work: _Work) -> bool:
        """
        Say whether a pattern matches a layer by one of its names.

        Raises:
            MixError: When the patterns have used up what they may need together.
        """
        if (test := self._tests.get(pattern)) is None:
            work.spend(_A_LETTER * len(pattern) + _A_STAR * pattern.count("*"))
            test = self._tests[pattern] = _compiled(pattern)
        if isinstance(test, Expression):
            return any(test.matches(name, work.spend) for name in names)
        work.spend(1 + len(names[1]) // 4)
        return any(test.fullmatch(name) is not None for name in names)

    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """B-LoRA's presets are for the blocks of one family; other patterns fit every model."""
        preset = next((name for name, preset in B_LORA.items() if preset == self), None)
        here = tuple(tuple(shape.attentions for shape in side) for side in (layout.down, layout.up))
        expected = _OF_B_LORA.attentions
        if preset is None or here == expected:
            return ()
        has = (
            f"has {_counted(here[0])} transformers in its down blocks and {_counted(here[1])} in its up blocks"
            if layout.is_unet
            else "is not a UNet"
        )
        return (
            (
                f"{preset} is for {_OF_B_LORA.name}, whose blocks down have {_counted(expected[0])} transformers and those up "
                f"{_counted(expected[1])}: "
                f"there the first two of up_blocks.0 carry content and style. This model {has}; name the layers that are "
                'meant in it by patterns, such as {"*": 0, "unet.up_blocks.1.attentions.0.*": 1}.'
            ),
        )

    def unmatched(self, layers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """
        Return the patterns that match none of some layers.

        Args:
            layers: Component and dotted path of each.

        Example:
            >>> LayerPatterns({"*": 0.2, "nowhere.*": 1}).unmatched([("unet", "conv_in")])
            ('nowhere.*',)
        """
        left, work = dict.fromkeys(self.weights), _Work(len(self.weights))
        for component, module in layers:
            if not left:
                break
            names = _names(component, module)
            for pattern in [p for p in left if self._matches(p, names, work)]:
                del left[pattern]
        return tuple(left)

    def to_spec(self) -> object:
        """Return the preset's name where there is one, else the dict."""
        for name, preset in B_LORA.items():
            if preset == self:
                return name
        return {"patterns": dict(self.weights)}

    def meaning(self) -> object:
        """Return the pairs in their order."""
        return {"patterns": [list(pair) for pair in self.weights.items()]}


class _Work:
    """What patterns may still need."""

    def __init__(self, patterns: int) -> None:
        self._patterns, self.left = patterns, _WORK

    def spend(self, letters: int) -> None:
        """
        Take some of it.

        Raises:
            MixError: When there is none left.
        """
        self.left -= letters
        if self.left < 0:
            raise MixError(
                f"these {self._patterns} patterns of layers need too much work on this model; use fewer or shorter ones"
            )


def looks_like_patterns(spec: Mapping[object, object]) -> bool:
    """
    Tell a dict of patterns from a dict of blocks.

    Example:
        >>> looks_like_patterns({"*.attn2.*": 1}), looks_like_patterns({"down": 1})
        (True, False)
    """
    return bool(spec) and all(
        isinstance(key, str) and (key.startswith(_REGEX) or not _GLOB_MARKS.isdisjoint(key)) for key in spec
    )


def read_patterns(spec: object, where: str, reading: Reading) -> LayerPatterns | None:
    """
    Read a dict of patterns.

    Example:
        >>> read_patterns({"re:.*attn[12].*": 0.5}, "", Reading()).weights
        {'re:.*attn[12].*': 0.5}
    """
    before = len(reading.problems)
    weights = _read_weights(spec, where, reading)
    return LayerPatterns(weights) if len(reading.problems) == before else None


def _read_weights(spec: object, where: str, reading: Reading) -> FrozenMap[str, float]:
    if not isinstance(spec, Mapping) or not spec:
        reading.problem(
            where, f'expected a dict of weights by pattern such as {{"*.attn2.*": 0.5}}, got {shown(spec)}.'
        )
        return FrozenMap()
    weights: dict[str, float] = {}
    expressions = 0
    for pattern, value in spec.items():
        if not isinstance(pattern, str) or not pattern.removeprefix(_REGEX):
            reading.problem(where, f"expected a pattern (text that is not empty), got {shown(pattern)}.")
            continue
        expressions += pattern.startswith(_REGEX)
        if expressions > _EXPRESSIONS_AT_MOST:
            reading.problem(
                where,
                f"expected at most {_EXPRESSIONS_AT_MOST} regular expressions, got more; globs are not counted.",
            )
            break
        try:
            if pattern.startswith(_REGEX):
                _compiled(pattern)
            elif len(pattern) > LONGEST:
                reading.problem(
                    where, f"{shown(pattern)} has {len(pattern)} letters, at most {LONGEST} are read."
                )
        except ExpressionError as error:
            reading.problem(
                where, f"{shown(pattern)} is not a regular expression that is read here: {error}."
            )
        weights[pattern] = reading.number(f"{where}[{shown(pattern)}]", value)
    return FrozenMap(weights)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str] | Expression:
    """
    Return what tells the names of a pattern; globs are read by Python's own, which never tries a star again.

    Raises:
        ExpressionError: When it is no expression.
    """
    if pattern.startswith(_REGEX):
        return Expression(pattern.removeprefix(_REGEX))
    return re.compile(fnmatch.translate(pattern))


def _counted(numbers: Iterable[int]) -> str:
    return "/".join(map(str, numbers)) or "no"


def _names(component: str, module: str) -> tuple[str, str]:
    return module, f"{component}.{module}"


B_LORA: Mapping[str, LayerPatterns] = FrozenMap(
    {
        **{f"b-lora:{what}": LayerPatterns({"*": 0, each: 1}) for what, each in _OF_B_LORA.b_lora.items()},
        "b-lora": LayerPatterns({"*": 0, **dict.fromkeys(_OF_B_LORA.b_lora.values(), 1)}),
    }
)
"""The blocks of SDXL that B-LoRA trains (arXiv 2403.14572): content, style, or both; all other layers have 0."""
