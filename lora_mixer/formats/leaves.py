"""
The ends of keys: which spelling stands for which part of which algorithm.

A key is ``<module><leaf>``. One table maps every leaf that trainers write to a role; a new spelling is a
new row, a new algorithm a new group of rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# PEFT leaves the adapter's name in: lora_A.default.weight
_NAME = r"(?:\.(?P<inner>(?!(?:weight|bias)$)[^.]+))?"


@dataclass(frozen=True)
class Leaf:
    """One matched leaf: the part it is, its algorithm, and PEFT's inner adapter name if there is one."""

    role: str
    algorithm: str
    inner: str | None = None
    attn_processor: bool = False
    """Whether the module is spelled as diffusers' old attention processors spell it."""


def _row(pattern: str, role: str, algorithm: str) -> tuple[re.Pattern[str], str, str]:
    return re.compile(pattern + r"$"), role, algorithm


# (pattern at the end of the key, role, algorithm). The first match counts.
_TABLE = (
    _row(r"[._]lora_down\.weight", "down", "lora"),
    _row(r"[._]lora_up\.weight", "up", "lora"),
    _row(r"\.lora_mid\.weight", "mid", "lora"),
    _row(r"\.lora_up\.bias", "up_bias", "lora"),
    _row(r"\.lora_A(?:_\d+)?" + _NAME + r"\.weight", "down", "lora"),
    _row(r"\.lora_B(?:_\d+)?" + _NAME + r"\.weight", "up", "lora"),
    _row(r"\.lora_B" + _NAME + r"\.bias", "up_bias", "lora"),
    _row(r"\.lora_embedding_A" + _NAME, "embedding_down", "lora"),
    _row(r"\.lora_embedding_B" + _NAME, "embedding_up", "lora"),
    _row(r"\.lora(?:_linear_layer)?\.down\.weight", "down", "lora"),
    _row(r"\.lora(?:_linear_layer)?\.up\.weight", "up", "lora"),
    _row(r"_lora\.down\.weight", "down", "lora"),
    _row(r"_lora\.up\.weight", "up", "lora"),
    _row(r"_lora(?P<stream>\d)\.down\.weight", "down", "lora"),  # xlabs: 1 the picture's stream, 2 the text's
    _row(r"_lora(?P<stream>\d)\.up\.weight", "up", "lora"),
    _row(r"\.lora_A" + _NAME, "down", "lora"),
    _row(r"\.lora_B" + _NAME, "up", "lora"),
    _row(r"\.base_layer\.bias", "set_bias", "set"),
    _row(r"\.base_layer\.weight", "set_weight", "set"),
    _row(r"\.modules_to_save" + _NAME + r"\.weight", "set_weight", "set"),
    _row(r"\.modules_to_save" + _NAME + r"\.bias", "set_bias", "set"),
    _row(r"\.set_weight", "set_weight", "set"),
    _row(r"\.ln_tuning_layers" + _NAME + r"\.weight", "set_weight", "set"),
    _row(r"\.ln_tuning_layers" + _NAME + r"\.bias", "set_bias", "set"),
    _row(r"(?:\.token_adapter)?\.trainable_tokens_delta" + _NAME, "tokens", "tokens"),
    # behind a half of the pair: Flux files in the wild, and what diffusers makes of Kohya's
    _row(r"[._]lora[._](?:A|B|down|up)" + _NAME + r"(?:\.weight)?\.alpha", "alpha", ""),
    _row(r"\.alpha", "alpha", ""),
    _row(r"\.scale", "scale", ""),
    _row(r"\.scalar", "scalar", ""),
    _row(r"\.reshape_weight", "reshape_weight", ""),
    _row(r"\.dora_scale", "dora_scale", "dora"),
    _row(r"\.(?:magnitude|lora_magnitude_vector(?:\.[^.]+)??(?:\.weight)?)", "magnitude", "dora"),
    _row(r"\.hada_(?P<part>w[12]_[ab]|t[12])" + _NAME, "hada", "loha"),
    _row(r"\.lokr_(?P<part>w[12](?:_[ab])?|t[12])" + _NAME, "lokr", "lokr"),
    _row(r"\.(?P<part>[ab][12]|bm)\.weight", "glora", "glora"),
    _row(
        r"\.diff_(?P<modulation>m)", "diff", "full"
    ),  # of the parameter ``modulation`` of what stands before it
    _row(r"\.diff(?P<part>_b)?", "diff", "full"),
    _row(r"\.(?P<part>[wb])_norm", "norm", "norm"),
    _row(r"\.on_input", "on_input", "ia3"),
    _row(r"\.ia3_l" + _NAME, "ia3_l", "ia3"),
    _row(
        r"\.oft_blocks\.(?P<part>\d{1,2})", "oft_blocks", "oft"
    ),  # Kohya: one for each part of a fused layer
    _row(r"\.oft_(?P<part>blocks|diag)", "oft", "oft"),
    _row(r"\.rescale", "rescale", "oft"),
    _row(r"\.oft_(?P<part>R|embedding_R)" + _NAME + r"(?:\.weight)?", "oft", "oft_peft"),
    _row(r"\.oft_r" + _NAME, "oft_r", "oft_old"),
    _row(r"\.(?P<part>q_layer\.weight|p_layer\.weight|lambda_layer)", "tlora", "tlora"),
    _row(r"\.boft_(?P<part>R|s)" + _NAME, "boft", "boft_peft"),
    _row(r"\.lora_diag" + _NAME, "diag", "kasa"),
    _row(r"\.lora_E" + _NAME, "lora_E", "adalora"),
    _row(r"\.ranknum" + _NAME, "ranknum", "adalora"),
    _row(r"\.vera_lambda_(?P<part>[bd])" + _NAME, "vera_lambda", "vera"),
    _row(r"(?:^|\.)vera_(?P<part>[AB])" + _NAME, "vera", "vera"),
    _row(r"\.hra_(?P<part>u)" + _NAME, "hra", "hra"),
    _row(r"\.hira_(?P<part>(?:embedding_)?[AB])" + _NAME, "hira", "hira"),
    _row(r"\.c3a_(?P<part>kernel)" + _NAME, "c3a", "c3a"),
    _row(r"\.gralora_(?P<part>[AB])" + _NAME, "gralora", "gralora"),
    _row(r"\.gralora_(?P<part>[AB]_general)" + _NAME + r"\.weight", "gralora", "gralora"),
    _row(r"\.beft_bias" + _NAME, "diff_b", "full"),
    _row(r"\.delora_(?P<part>A|B|lambda|w_norm)" + _NAME, "delora", "delora"),
    _row(r"\.(?:miss|bone)_(?P<part>block)" + _NAME, "miss", "miss"),
    _row(r"\.shira_(?P<part>weight|indices)" + _NAME, "shira", "shira"),
    _row(r"\.bias_(?P<part>indices|values|size)", "bias", "sparse"),
)

_FAST = (  # plain suffixes that make up nearly all real files; the table handles the rest
    (".lora_down.weight", Leaf("down", "lora")),
    (".lora_up.weight", Leaf("up", "lora")),
    (".lora_A.weight", Leaf("down", "lora")),
    (".lora_B.weight", Leaf("up", "lora")),
    (".alpha", Leaf("alpha", "")),
)
_ALPHA_OF_A_HALF = (
    ".weight.alpha",
    "_A.alpha",
    "_B.alpha",
    "_down.alpha",
    "_up.alpha",
    ".down.alpha",
    ".up.alpha",
)


def split_key(key: str) -> tuple[str, Leaf] | None:
    """
    Split a key into its module spelling and its leaf.

    Returns:
        The text before the leaf and the leaf, or None where no known leaf ends the key.

    Example:
        >>> split_key("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
        ('lora_unet_mid_block_attentions_0_proj_in', Leaf(role='up', algorithm='lora', inner=None, attn_processor=False))
    """
    for suffix, leaf in _FAST:
        if key.endswith(suffix) and not key.endswith(_ALPHA_OF_A_HALF):
            return key[: -len(suffix)], leaf
    for pattern, role, algorithm in _TABLE:
        found = pattern.search(key)
        if found:
            groups = found.groupdict()
            part = (groups.get("part") or "").lstrip("_")
            full_role = f"{role}_{part}" if part else role
            old = found.group().startswith("_lora.")
            stream = groups.get("stream")
            spelling = key[: found.start()] + (f"_{stream}" if stream else "")
            if groups.get("modulation"):
                spelling += ".modulation"
            return spelling, Leaf(full_role, algorithm, groups.get("inner"), old)
    return None
