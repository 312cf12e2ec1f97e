"""
Weights in depth as sd-webui-lora-block-weight (LBW) lists them: 12 or 20 numbers for SDXL, 17 or 26 for SD 1.x and 2.x, 61 for Flux.

Each number belongs to an id of the original UNet's blocks; the first, BASE, to the text encoders. As in LBW, a layer
whose id the list leaves out has 0 (a list of 17 leaves out the samplers, which few files train), and a layer that has
no id at all (``time_embedding``, ``add_embedding``, ``conv_norm_out``, ``conv_out``) keeps 1. Unlike LBW, a list of
another length is an error, and so is one that leaves out transformers of the live model.

Flux's ids are CLIP and T5 for the text encoders, IN for the embedders, D00 to D18, S00 to S37 and OUT. A list of 58, as
ComfyUI's Inspire pack has it, is BASE (text encoders, embedders and the last layer), D00 to D18 and S00 to S37.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from lora_mixer.components import TEXT_ENCODERS
from lora_mixer.families import FAMILIES
from lora_mixer.mixes.blocks import Blocks
from lora_mixer.mixes.grammar.tokens import is_number
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.unet_blocks import BlockPosition, block_position, depth_of
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.wording import did_you_mean, list_of, number_text, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_mixer.mixes.unet_blocks import BlockLayout, BlockShape, Side


_DOUBLE, _SINGLE = 19, 38
"""The blocks of Flux, and of Chroma."""


def _ids(prefix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02}" for number in numbers)


LBW_IDS: Mapping[int, tuple[str, ...]] = FrozenMap(
    {
        12: ("BASE", *_ids("IN", 4, 5, 7, 8), "M00", *_ids("OUT", *range(6))),
        17: ("BASE", *_ids("IN", 1, 2, 4, 5, 7, 8), "M00", *_ids("OUT", *range(3, 12))),
        20: ("BASE", *_ids("IN", *range(9)), "M00", *_ids("OUT", *range(9))),
        26: ("BASE", *_ids("IN", *range(12)), "M00", *_ids("OUT", *range(12))),
        58: ("BASE", *_ids("D", *range(_DOUBLE)), *_ids("S", *range(_SINGLE))),
        61: ("CLIP", "T5", "IN", *_ids("D", *range(_DOUBLE)), *_ids("S", *range(_SINGLE)), "OUT"),
    }
)
"""The ids that a list of each length gives weights to."""

LBW_PRESETS: Mapping[str, tuple[float, ...]] = FrozenMap(
    {
        "NONE": (0.0,) * 17,
        "ALL": (1.0,) * 17,
        "INS": (1.0,) * 4 + (0.0,) * 13,
        "IND": (1.0,) + (0.0,) * 3 + (1.0,) * 3 + (0.0,) * 10,
        "INALL": (1.0,) * 7 + (0.0,) * 10,
        "MIDD": (1.0,) + (0.0,) * 3 + (1.0,) * 8 + (0.0,) * 5,
        "OUTD": (1.0,) + (0.0,) * 7 + (1.0,) * 4 + (0.0,) * 5,
        "OUTS": (1.0,) + (0.0,) * 11 + (1.0,) * 5,
        "OUTALL": (1.0,) + (0.0,) * 7 + (1.0,) * 9,
        "ALL0.5": (0.5,) * 17,
        "FLUXALL": (1.0,) * 61,
    }
)
"""LBW's own presets, for SD 1.x and 2.x, and one for Flux."""

_LAYERS = 2


def _names(lengths: tuple[int, ...]) -> str:
    """Name the families that lists of such lengths are for."""
    return " and ".join(family.name for family in FAMILIES if family.lbw == lengths)


_LENGTHS = ", ".join(
    f"{' or '.join(map(str, lengths))} ({_names(lengths)})"
    for lengths in sorted({family.lbw for family in FAMILIES if family.lbw})
)
_ENDS = {
    "x_embedder": "IN",
    "context_embedder": "IN",
    "time_text_embed": "IN",
    "distilled_guidance_layer": "IN",
    "norm_out": "OUT",
    "proj_out": "OUT",
}
"""What Flux and Chroma have before and behind their blocks."""
_DEPTH = 'write {"double": [...], "single": [...]} with a number for each block'
_T5 = ("encoder.block.", "encoder.final_layer_norm", "encoder.embed_tokens", "shared")
"""How the paths of a T5 begin; the other text encoder of Flux is a CLIP."""
_TOKEN = re.compile(r"R|U|X(?:([+-])([\d.]+))?")


@dataclass(frozen=True)
class LbwWeights(Blocks):
    """
    One number for each id.

    Attributes:
        values: 12, 17, 20, 26, 58 or 61 numbers.

    Example:
        >>> outs = LbwWeights(LBW_PRESETS["OUTS"])
        >>> outs.weight("unet", "up_blocks.3.attentions.0.proj_in"), outs.weight("unet", "mid_block.resnets.0.conv1")
        (1.0, 0.0)
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        """Check and freeze the values."""
        reading = Reading()
        object.__setattr__(self, "values", _read_values(self.values, "", reading))
        reading.finish("set of block weights")

    @cached_property
    def by_id(self) -> Mapping[str, float]:
        """The numbers by id."""
        return FrozenMap(zip(LBW_IDS[len(self.values)], self.values, strict=True))

    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """Return the number of the layer's id, 0 for an id that is not listed, 1 for a layer without id."""
        if component in TEXT_ENCODERS:
            return (
                self.by_id["T5" if module.startswith(_T5) else "CLIP"] if "T5" in self.by_id else self._base
            )
        if layout is not None:
            self.require_fit(layout)
        block_id = id_of(module)
        if block_id is None:
            return 1.0
        return self.by_id.get(block_id, self._base if block_id in {"IN", "OUT"} else 0.0)

    @property
    def _base(self) -> float:
        return self.by_id.get("BASE", 0.0)

    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """Tell transformers of the model that the list leaves out, and blocks that it has not."""
        count = len(self.values)
        if "D00" in self.by_id:
            if (layout.double, layout.single) == (_DOUBLE, _SINGLE):
                return ()
            of = next(_names(family.lbw) for family in FAMILIES if count in family.lbw)
            has = "is a UNet" if layout.is_unet else f"has {layout.double} and {layout.single}"
            return (
                (
                    f"a list of {count} is for the {_DOUBLE} double and {_SINGLE} single blocks of {of}, and this model {has}; "
                    f"{_DEPTH if not layout.is_unet else 'use a list for UNets'}."
                ),
            )
        if not layout.is_unet:
            return (
                f"LBW lists of {count} are for UNets, and this model is none; {_DEPTH}, or use layer patterns.",
            )
        if any(shape.slots not in {0, _LAYERS} for shape in layout.down):
            return ("LBW ids are only known for UNets with two layers per block; use layer patterns.",)
        needed = _transformer_ids(layout)
        left_out = [block_id for block_id in needed if block_id not in self.by_id]
        if not left_out:
            return ()
        fitting = [str(length) for length, ids in LBW_IDS.items() if set(needed) <= set(ids)]
        return (
            (
                f"a list of {count} leaves out transformers of this model ({', '.join(left_out)}); "
                f"expected a list of {' or '.join(fitting) or 'no known length'}."
            ),
        )

    def to_spec(self) -> object:
        """Return the preset's name where there is one, else the list."""
        for name, values in LBW_PRESETS.items():
            if values == self.values:
                return name
        return list(self.values)

    def meaning(self) -> object:
        """Return the numbers by id; ids that are not listed have 0, as those that are listed with 0."""
        return {"lbw": {key: value for key, value in self.by_id.items() if value}}


@lru_cache(maxsize=8192)
def id_of(module: str) -> str | None:
    """
    Name the LBW id of a layer of a UNet or of Flux.

    Example:
        >>> [id_of(f"down_blocks.1.{name}") for name in ("attentions.0.proj_in", "downsamplers.0.conv")]
        ['IN04', 'IN06']
        >>> id_of("single_transformer_blocks.7.proj_out"), id_of("x_embedder")
        ('S07', 'IN')
    """
    place = block_position(module)
    if place is not None:
        return _id_of_place(place)
    depth = depth_of(module)
    if depth is not None:
        return f"{'D' if depth[0] == 'double' else 'S'}{depth[1]:02}"
    first = module.removeprefix("_orig_mod.").split(".")[0]
    return "IN00" if first == "conv_in" else _ENDS.get(first)


def _id_of_place(place: BlockPosition) -> str:
    if place.side == "mid":
        return "M00"
    first = (_LAYERS + 1) * place.block
    if place.side == "down":
        return f"IN{first + (_LAYERS + 1 if place.kind == 'downsamplers' else place.index + 1):02}"
    return f"OUT{first + (_LAYERS if place.kind == 'upsamplers' else place.index):02}"


def _transformer_ids(layout: BlockLayout) -> list[str]:
    sides: tuple[tuple[Side, tuple[BlockShape, ...]], ...] = (("down", layout.down), ("up", layout.up))
    return [
        _id_of_place(BlockPosition(side, block, "attentions", index))
        for side, shapes in sides
        for block, shape in enumerate(shapes)
        for index in range(shape.attentions)
    ]


def read_lbw(
    spec: str | Sequence[object], where: str, reading: Reading, others: Iterable[str] = ()
) -> LbwWeights | None:
    """
    Read a preset's name, a list, or a list as text; the names of other presets are for the message.

    Example:
        >>> read_lbw("1,0,0,0,1,1,1,1,1,1,1,1", "", Reading()).by_id["IN08"]
        1.0
    """
    before = len(reading.problems)
    values: object = spec
    if isinstance(spec, str):
        text = spec.strip()
        if text in reading.presets:
            values = reading.presets[text]
        elif text in LBW_PRESETS:
            values = LBW_PRESETS[text]
        elif not re.search("[,;]", text):
            known = [*reading.presets, *LBW_PRESETS, *others]
            reading.problem(
                where,
                f"unknown preset {shown(text)}; known are {list_of(known)}, and lists of {_LENGTHS} numbers."
                f"{did_you_mean(text, known)}",
            )
            return None
        else:
            items = [item.strip() for item in re.split("[,;]", text)]
            values = [float(item) if is_number(item) else item for item in items]
    checked = _read_values(values, where, reading)
    return LbwWeights(checked) if len(reading.problems) == before else None


def read_presets(text: str) -> Mapping[str, tuple[float, ...]]:
    r"""
    Read a file of presets as LBW keeps it: one ``NAME:1,0,...`` a line; lines that start with ``#`` are comments.

    Args:
        text: The content of the file.

    Returns:
        The lists by name, for ``Mix.of(..., presets=...)``.

    Raises:
        MixError: With every line that is wrong.

    Example:
        >>> sorted(read_presets("# mine\nFACE:1,0,0,0,0,0,0,0,1,1,1,0"))
        ['FACE']
    """
    reading = Reading()
    presets: dict[str, tuple[float, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, values = line.partition(":")
        if not colon or not name.strip() or name.strip() in presets:
            reading.problem(
                f"line {number}", f'expected a new name and a list as in "FACE:1,0,...", got {shown(line)}.'
            )
        elif weights := read_lbw(values, f"line {number}", reading):
            presets[name.strip()] = tuple(weights.values)
    reading.finish("file of presets")
    return FrozenMap(presets)


def draw_lbw(text: str, seed: int, x: float | None = None) -> LbwWeights:
    """
    Turn LBW's tokens into numbers: R (0 to 1) and U (-0.5 to 1.5) are drawn; X, X+0.2 and X-0.2 take a value.

    LBW draws anew for each picture. Here the seed decides, so that the mix says what was drawn.

    Args:
        text: A list with tokens.
        seed: The seed; the same one draws the same numbers, each rounded to three places.
        x: The value of X.

    Returns:
        The weights, with numbers only.

    Raises:
        MixError: With everything that is wrong.

    Example:
        >>> draw_lbw("1,R,0,0,X,0,0,0,0,0,0,X-0.5", seed=7, x=0.8).values[4:]
        (0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.30000000000000004)
    """
    reading = Reading()
    rng = random.Random(seed)  # noqa: S311 (weights, not secrets)
    values: list[object] = []
    for item in (item.strip() for item in re.split("[,;]", text)):
        match = _TOKEN.fullmatch(item)
        if not match:
            values.append(float(item) if is_number(item) else item)
        elif item == "R":
            values.append(round(rng.random(), 3))
        elif item == "U":
            values.append(round(rng.uniform(-0.5, 1.5), 3))
        elif x is None:
            reading.problem("", f'expected a value for the token "{item}"; give x.')
        else:
            offset = float(match[2]) if match[2] and is_number(match[2]) else 0.0
            values.append(x - offset if match[1] == "-" else x + offset)
    reading.finish("set of block weights")
    weights = read_lbw(values, "", reading)
    reading.finish("set of block weights")
    return weights or LbwWeights(LBW_PRESETS["ALL"])


def _read_values(values: object, where: str, reading: Reading) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)):
        reading.problem(where, f"expected a list of {_LENGTHS} numbers, got {shown(values)}.")
        return ()
    if len(values) not in LBW_IDS:
        reading.problem(where, f"expected a list of {_LENGTHS} numbers, got {len(values)}.")
        return ()
    numbers: list[float] = []
    for index, value in enumerate(values):
        if isinstance(value, str) and _TOKEN.fullmatch(value):
            how = "is drawn at random" if value in {"R", "U"} else "takes a value from elsewhere"
            reading.problem(
                f"{where}[{index}]", f'the token "{value}" {how}; write numbers, or draw them with draw_lbw.'
            )
        else:
            numbers.append(reading.number(f"{where}[{index}]", value))
    return tuple(numbers)


def lbw_text(weights: LbwWeights) -> str:
    """
    Write weights as a preset's name or a list, as ``lbw=`` takes them.

    Example:
        >>> lbw_text(LbwWeights([1] + [0] * 11))
        '1,0,0,0,0,0,0,0,0,0,0,0'
    """
    spec = weights.to_spec()
    return spec if isinstance(spec, str) else ",".join(map(number_text, weights.values))
