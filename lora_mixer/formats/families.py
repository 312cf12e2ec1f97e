"""
Which model an adapter was made for, from the names and widths of its modules.

UNet families are told apart by the width of the text they attend to; the others by names that only they have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_mixer.formats.safeloras import PREFIX as ORDINAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CROSS_ATTENTION = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL refiner"}
"""Width of the text embeddings that a UNet attends to, by family."""

# (family, pattern over flattened module names); the first match counts, so the specific stand first.
_DIT = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("Stable Cascade", r"^lora_prior_"),
        ("SD3", r"(?:^|_)joint_blocks_\d"),
        ("Chroma", r"distilled_guidance_layer"),
        ("Flux.2", r"to_qkv_mlp_proj|double_stream_modulation|single_stream_modulation"),
        ("Flux.1", r"(?:^|_)(?:double_blocks|single_blocks|single_transformer_blocks)_\d"),
        ("Krea 2", r"text_fusion|img_attn_qkv_proj|(?:^|_)blocks_\d+_attn_wq"),
        ("Anima", r"llm_adapter|(?:^|_)blocks_\d+_(?:self|cross)_attn_(?:q_proj|output_proj)"),
        ("Wan", r"(?:^|_)blocks_\d+_(?:self|cross)_attn_(?:q|k|v|o)(?:_|$)"),
        ("Z-Image or Lumina 2", r"(?:^|_)(?:context_refiner|noise_refiner)_\d|(?:^|_)layers_\d+_attention_"),
        ("Qwen-Image", r"^transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)|^transformer_blocks_\d+_attn_add_[qkv]_proj"),
        ("PixArt, SD3 or another DiT", r"^transformer_blocks_\d"),
    )
)
_CROSS_K = re.compile(r"attn2_to_k$")
_TE_Q = re.compile(r"self_attn_q_proj$")


def base_family(
    modules: Iterable[tuple[str | None, str]], widths: Mapping[tuple[str | None, str], int], metadata: Mapping[str, str]
) -> str:
    """
    Name the base family of an adapter.

    Args:
        modules: (component hint, module spelling) of every layer.
        widths: Input width of the layers where it is known, by the same pairs.
        metadata: The header's metadata, used only where names and widths say nothing.

    Returns:
        A name such as ``SD 1.x``, ``SDXL``, ``Flux.1``; ``unknown`` where nothing tells.

    Example:
        >>> base_family([("denoiser", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")],
        ...             {("denoiser", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"): 2048}, {})
        'SDXL'
    """
    hints = set()
    text_width: int | None = None
    cross: int | None = None
    for hint, module in modules:
        hints.add(hint)
        flat = module.replace(".", "_")
        width = widths.get((hint, module))
        if _CROSS_K.search(flat) and width is not None:
            cross = width
        elif module.startswith(ORDINAL) and hint != "text_encoder" and width in (768, 1024):
            cross = width  # counted, not named: of a UNet's own widths none is one of these
        if hint == "text_encoder" and _TE_Q.search(flat):
            text_width = width
        for family, pattern in _DIT:
            if pattern.search(flat):
                return family
    if cross is not None:
        return CROSS_ATTENTION.get(cross, f"UNet with cross-attention {cross}")
    if "text_encoder_2" in hints or "clip_g" in hints:
        return "SDXL"
    declared = _declared(metadata)
    if declared:
        return declared
    return {768: "SD 1.x or SDXL", 1024: "SD 2.x"}.get(text_width or 0, "unknown")


def _declared(metadata: Mapping[str, str]) -> str | None:
    text = " ".join((metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))).lower()
    for mark, family in (
        ("sdxl", "SDXL"),
        ("stable-diffusion-xl", "SDXL"),
        ("sd_v1", "SD 1.x"),
        ("stable-diffusion-v1", "SD 1.x"),
        ("sd_v2", "SD 2.x"),
        ("stable-diffusion-v2", "SD 2.x"),
        ("flux", "Flux.1"),
        ("sd3", "SD3"),
    ):
        if mark in text:
            return family
    return None
