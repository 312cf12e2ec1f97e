"""
Which model an adapter was made for, from the names and widths of its modules.

UNet families are told apart by the width of the text they attend to; the others by names that only they have.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_mixer.formats.safeloras import PREFIX as ORDINAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CROSS_ATTENTION = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}
"""Width of the text embeddings that a UNet attends to, by family."""

# (family, pattern over flattened module names with every number 0); the first match counts, so the specific stand first.
_DIT = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("Stable Cascade", r"^lora_prior_"),
        ("SD3", r"(?:^|_)joint_blocks_0"),
        ("Chroma", r"distilled_guidance_layer"),
        ("HiDream", r"(?:^|_)(?:double|single)_stream_blocks_0"),
        (
            "HunyuanVideo",
            r"(?:double|single)_blocks_0_(?:(?:img|txt)_mlp_fc0|(?:img|txt)_mod_linear|modulation_linear)",
        ),
        ("Flux.2", r"to_qkv_mlp_proj|(?:double|single)_stream_modulation"),
        ("Flux.1", r"(?:^|_)(?:double_blocks|single_blocks|single_transformer_blocks)_0"),
        ("Flux.1 or Flux.2", r"^guidance_in_|^(?:img|txt)_in$"),
        ("Krea 2", r"txtfusion|text_fusion|img_attn_qkv_proj|(?:^|_)blocks_0_attn_w[qkvo]$"),
        ("Anima", r"llm_adapter|(?:^|_)blocks_0_(?:self|cross)_attn_(?:[qkv]|output)_proj$"),
        (
            "Wan",
            r"(?:^|_)blocks_0_(?:(?:self|cross)_attn_(?:[qkvo]|k_img|v_img)|ffn_0|attn0_to_[qkv]|ffn_net_0_\w+)$",
        ),
        ("Z-Image", r"(?:^|_)(?:context_refiner|noise_refiner)_0|^layers_0_attention_"),
        ("Qwen-Image", r"^transformer_blocks_0_(?:img|txt)_(?:mlp|mod)"),
        ("DiT", r"^transformer_blocks_0"),
    )
)
# Families whose modules are named alike, by the width that they attend with.
_BY_WIDTH = {
    "Z-Image": {2304: "Lumina 2"},
    "DiT": {
        3072: "Qwen-Image",
        1536: "SD3",
        2432: "SD3",
        1152: "PixArt",
        2048: "LTX-Video",
        4096: "LTX-Video 2",
    },
}
_UNNAMED_DIT = "a DiT (SD3, PixArt, LTX, ...)"
DIT_FAMILIES = frozenset(
    (
        *(family for family, _ in _DIT),
        *(name for table in _BY_WIDTH.values() for name in table.values()),
        _UNNAMED_DIT,
    )
)
"""Families whose denoiser is a transformer."""

TEXT_HINTS = frozenset(
    ("text_encoder", "text_encoder_2", "text_encoder_3", "clip_g", "t5", "prior_text_encoder")
)
"""Component hints that mean a text encoder."""
_MANY, _LONG = 4096, 256  # modules and letters; beyond that nothing is kept in a cache
_NUMBER = re.compile(r"\d+")
_UNET = (
    *("down_blocks", "up_blocks", "mid_block", "conv_", "time_embed", "add_embedding_"),
    *("input_blocks", "output_blocks", "middle_block", "label_emb_", "out_"),
)
_IN_UNET = re.compile(r"_(?:(?:down|up|input|output)_blocks_\d|mid_block_|middle_block_)")
"""In a module's name behind a front that nobody knows: still no transformer."""
_ONLY_SDXL = re.compile(r"transformer_blocks_[2-9]|^add_embedding_|^label_emb_")
_CROSS_K = re.compile(r"attn2_to_k$")
_TE_Q = re.compile(r"self_attn_(?:q_proj|to_q)$")
_DIT_Q = re.compile(r"(?:attn1?|attention)_(?:to_q|qkv)$")


def base_family(
    hints: Sequence[str | None],
    names: Sequence[str],
    widths: Sequence[int | None],
    metadata: Mapping[str, str],
    said: str = "",
) -> str:
    """
    Name the base family of an adapter.

    Args:
        hints: The component of every layer, where its key says it.
        names: Every layer's spelling.
        widths: Every layer's input width, where it is known.
        metadata: The header's metadata, used only where names and widths say nothing.
        said: What a file beside the adapter calls the base; used only where the header says nothing either.

    Returns:
        A name such as ``SD 1.x``, ``SDXL``, ``Flux.1``; ``unknown`` where nothing tells.

    Example:
        >>> base_family(["denoiser"], ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"], [2048], {})
        'SDXL'
    """
    usual = len(names) <= _MANY and max(map(len, names), default=0) <= _LONG
    family, text = (_told if usual else _told.__wrapped__)(tuple(hints), tuple(names), tuple(widths))
    if family is not None:
        return family
    return _declared(metadata) or (_said(said) if text == "unknown" else None) or text


@lru_cache(maxsize=16)  # most files of a folder are of a few kinds
def _told(
    hints: tuple[str | None, ...], names: tuple[str, ...], widths: tuple[int | None, ...]
) -> tuple[str | None, str]:
    """Name the family that names and widths tell, or None and what the text encoder's width still says."""
    parts: dict[str, dict[str, int | None]] = {"unet": {}, "text_encoder": {}, "further": {}, "other": {}}
    counted = []
    for hint, module, width in zip(hints, names, widths, strict=True):
        flat = module.replace(".", "_")
        part = "unet" if flat.startswith(_UNET) or _IN_UNET.search(flat) else "other"
        if hint in TEXT_HINTS:
            part = "text_encoder" if hint == "text_encoder" else "further"
        parts[part][flat] = width
        # counted, not named (safeloras): of a UNet's own widths none is that of a text
        if hint != "text_encoder" and module.startswith(ORDINAL):
            counted.append(width)
    if "prior" in hints and parts["unet"]:
        return "Stable Cascade", ""
    family = _transformer(parts["other"])
    if family:
        return family, ""
    cross = _width(parts["unet"], _CROSS_K) or next((w for w in counted if w in (768, 1024)), 0)
    if cross:
        return CROSS_ATTENTION.get(cross, f"UNet with cross-attention {cross}"), ""
    if {*hints} & {"text_encoder_2", "clip_g"} or any(_ONLY_SDXL.search(name) for name in parts["unet"]):
        return "SDXL", ""
    return None, {768: "SD 1.x or SDXL", 1024: "SD 2.x"}.get(_width(parts["text_encoder"], _TE_Q), "unknown")


def _width(modules: Mapping[str, int | None], pattern: re.Pattern[str]) -> int:
    return next((width for name, width in modules.items() if width and pattern.search(name)), 0)


def _transformer(modules: Mapping[str, int | None]) -> str | None:
    kinds = {_NUMBER.sub("0", name) for name in modules}  # thousands of layers, a few dozen kinds
    for family, pattern in _DIT:
        if any(pattern.search(kind) for kind in kinds):
            same = _BY_WIDTH.get(family, {}).get(_width(modules, _DIT_Q), family)
            return _UNNAMED_DIT if same == "DiT" else same
    return None


def _declared(metadata: Mapping[str, str]) -> str | None:
    text = " ".join(
        (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))
    ).lower()
    for mark, family in (
        ("sdxl", "SDXL"),
        ("stable-diffusion-xl", "SDXL"),
        ("sd_v1", "SD 1.x"),
        ("stable-diffusion-v1", "SD 1.x"),
        ("sd_v2", "SD 2.x"),
        ("stable-diffusion-v2", "SD 2.x"),
        ("flux2", "Flux.2"),
        ("flux-2", "Flux.2"),
        ("flux", "Flux.1"),
        ("sd3", "SD3"),
        ("stable-diffusion-3", "SD3"),
        ("krea2", "Krea 2"),
        ("qwen", "Qwen-Image"),
        ("anima", "Anima"),
        ("lumina", "Lumina 2"),
        ("hunyuan", "HunyuanVideo"),
        ("wan", "Wan"),
    ):
        if mark in text:
            return family
    return None


def _said(base: str) -> str | None:
    """Read the names that users and model sites give to bases."""
    text = base.lower()
    for family, marks in (
        ("SDXL", ("sdxl", "pony", "illustrious", "noobai")),
        ("SD 1.x", ("sd 1", "sd1")),
        ("SD 2.x", ("sd 2", "sd2")),
    ):
        if text.startswith(marks):
            return family
    return None
