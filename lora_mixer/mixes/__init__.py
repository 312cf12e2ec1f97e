"""
Mixes as values: frozen, validated, serialisable, without any model.

The mixer and its engines ask a mix for one thing only: the gain of an adapter on a layer, at a step. All grammars are
listed in ``docs/mixes.md``.
"""

from __future__ import annotations

from lora_mixer.components import TE, TEXT_ENCODERS
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.blocks import Blocks, BlockTree
from lora_mixer.mixes.grammar.prompt import format_prompt, names_in_prompt, parse_prompt
from lora_mixer.mixes.grammar.schedules import schedule_of
from lora_mixer.mixes.lbw import LBW_IDS, LBW_PRESETS, LbwWeights, draw_lbw, read_presets
from lora_mixer.mixes.mask import Mask
from lora_mixer.mixes.methods.composite import Composite
from lora_mixer.mixes.methods.k_lora import KLora
from lora_mixer.mixes.methods.method import Method
from lora_mixer.mixes.methods.switch import Switch
from lora_mixer.mixes.methods.table import METHODS
from lora_mixer.mixes.mix import Mix
from lora_mixer.mixes.patterns import B_LORA, LayerPatterns
from lora_mixer.mixes.schedule import Constant, Keyframes, Ramp, Schedule, SliderStart, Window
from lora_mixer.mixes.transformer_blocks import PRESETS as DEPTH_PRESETS
from lora_mixer.mixes.unet_blocks import BlockLayout, BlockShape, block_layouts

__all__ = [
    "B_LORA",
    "DEPTH_PRESETS",
    "LBW_IDS",
    "LBW_PRESETS",
    "METHODS",
    "TE",
    "TEXT_ENCODERS",
    "AdapterMix",
    "BlockLayout",
    "BlockShape",
    "BlockTree",
    "Blocks",
    "Composite",
    "Constant",
    "KLora",
    "Keyframes",
    "LayerPatterns",
    "LbwWeights",
    "Mask",
    "Method",
    "Mix",
    "Ramp",
    "Schedule",
    "SliderStart",
    "Switch",
    "Window",
    "block_layouts",
    "draw_lbw",
    "format_prompt",
    "names_in_prompt",
    "parse_prompt",
    "read_presets",
    "schedule_of",
]
