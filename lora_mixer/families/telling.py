"""
Which family an adapter was made for, from the names and widths of its modules, else from what its header says.

UNet families are told apart by the width of the text they attend to; the others by names that only they have, or, where
they share names, by widths.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from lora_mixer.components import COUNTED as ORDINAL
from lora_mixer.components import TEXT_HINTS
from lora_mixer.families.images import STABLE_CASCADE
from lora_mixer.families.table import FAMILIES, family_named

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_mixer.families.family import Family

CROSS_ATTENTION = {family.cross_attention: family.name for family in FAMILIES if family.cross_attention}
"""Width of the text embeddings that a UNet attends to, by family."""
_SHARED = re.compile(r"^transformer_blocks_0")
"""Names that several families have, those that are like ``DiT``, or ``DiT with cross-attention`` (``attn1``, ``attn2``): their widths tell."""
_SEVERAL, _CROSSING = "DiT", "DiT with cross-attention"
_UNNAMED = "a DiT (SD3, PixArt, LTX, ...)"
_STACK = re.compile(r"(?<![a-z_])transformer_blocks\.")
EITHER = {
    "SD 1.x or SDXL": ("SD 1.x", "SDXL"),
    "Flux.1 or Flux.2": ("Flux.1", "Flux.2"),
    _UNNAMED: tuple(
        family.name
        for family in FAMILIES
        if family.like.startswith(_SEVERAL) or any(map(_STACK.search, family.layouts.values()))
    ),
}
"""What is said of files whose few layers, or whose text encoder alone, do not tell, and what they may be."""
_FLUXES = re.compile(r"^guidance_in_|^(?:img|txt)_in$")
TRANSFORMERS = frozenset(
    (*(family.name for family in FAMILIES if family.is_transformer), "Flux.1 or Flux.2", _UNNAMED)
)
"""What is said of files whose denoiser is a transformer."""

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
_LINEAR1, _LINEAR2 = re.compile(r"single_blocks_\d+_linear1$"), re.compile(r"single_blocks_\d+_linear2$")
_DIT_Q = re.compile(r"(?:attn1?|attention)_(?:to_q|qkv|q|q_proj|query_key_value)$")


def adapter_family(
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
        >>> adapter_family(["denoiser"], ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"], [2048], {})
        'SDXL'
    """
    usual = len(names) <= _MANY and max(map(len, names), default=0) <= _LONG
    family, text = (_told if usual else _told.__wrapped__)(tuple(hints), tuple(names), tuple(widths))
    if family is not None:
        declared = _declared(metadata)
        # names that two families share: the header tells which it is
        return declared if declared is not None and shares_names(family, declared) else family
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
        return STABLE_CASCADE.name, ""
    family = _transformer(parts["other"])
    if family:
        return family, ""
    cross = _width(parts["unet"], _CROSS_K) or next((w for w in counted if w in (768, 1024)), 0)
    if cross:
        return unet_family(cross), ""
    if {*hints} & {"text_encoder_2", "clip_g"} or any(_ONLY_SDXL.search(name) for name in parts["unet"]):
        return "SDXL", ""
    return None, {768: "SD 1.x or SDXL", 1024: "SD 2.x"}.get(_width(parts["text_encoder"], _TE_Q), "unknown")


def _width(modules: Mapping[str, int | None], pattern: re.Pattern[str]) -> int:
    return next((width for name, width in modules.items() if width and pattern.search(name)), 0)


@cache
def _marks() -> tuple[tuple[Family, re.Pattern[str]], ...]:
    return tuple((family, re.compile(family.marks)) for family in FAMILIES if family.marks)


def _transformer(modules: Mapping[str, int | None]) -> str | None:
    if not modules:
        return None
    kinds = {_NUMBER.sub("0", name) for name in modules}  # thousands of layers, a few dozen kinds
    for family, pattern in _marks():
        if any(pattern.search(kind) for kind in kinds):
            return _relative(family.name, modules) or family.name
    if any(_FLUXES.search(kind) for kind in kinds):
        return "Flux.1 or Flux.2"
    shared = [kind for kind in kinds if _SHARED.search(kind)]
    if shared:
        # numbers are 0 here; SD3.5 medium has attn and attn2
        crossing = any("_attn0_" in kind for kind in shared) and not any("_attn_" in kind for kind in shared)
        return _relative(_CROSSING if crossing else _SEVERAL, modules) or _UNNAMED
    return None


def _relative(name: str, modules: Mapping[str, int | None]) -> str | None:
    """Find the family that has the names of another, by widths."""
    width = _width(modules, _DIT_Q)
    first, last = _width(modules, _LINEAR1), _width(modules, _LINEAR2)
    fitting = [
        family
        for family in FAMILIES
        if shares_names(name, family.name)
        and (width in family.widths or (family.ratio and first and last == family.ratio * first))
    ]
    if len(fitting) > 1:
        fitting = [family for family in fitting if _has_inputs(family, modules)] or fitting
    return fitting[0].name if len(fitting) == 1 else None


def _has_inputs(family: Family, modules: Mapping[str, int | None]) -> bool:
    """Say whether a file has one of the further layers that tell a family, with its inputs."""
    return any(
        width == inputs
        for ending, inputs in family.inputs.items()
        for name, width in modules.items()
        if name.endswith(ending)
    )


def one_label(labels: Collection[str]) -> str | None:
    """
    Return the label that is meant by all of several files' labels, None where they are of different families.

    Example:
        >>> one_label({"Flux.1", "HunyuanVideo"}), one_label({"Flux.1", "Wan"})
        ('HunyuanVideo', None)
    """
    return next(
        (
            name
            for name in labels
            if all(
                other == name or name in EITHER.get(other, ()) or shares_names(other, name)
                for other in labels
            )
        ),
        None,
    )


def families_of(label: str) -> tuple[Family, ...]:
    """
    Return the families that a label may mean.

    Example:
        >>> [family.name for family in families_of("Flux.1 or Flux.2")], families_of("unknown")
        (['Flux.1', 'Flux.2'], ())
    """
    rows = (family_named(name) for name in EITHER.get(label, (label,)))
    return tuple(row for row in rows if row is not None)


def unet_family(width: int) -> str:
    """
    Name the family of a UNet that attends to text of a width.

    Example:
        >>> unet_family(2048), unet_family(32)
        ('SDXL', 'UNet with cross-attention 32')
    """
    return CROSS_ATTENTION.get(width, f"UNet with cross-attention {width}")


def shares_names(told: str, family: str) -> bool:
    """
    Say whether files of a family may be told as another one's, since they have its names.

    Args:
        told: What names tell.
        family: What the file may be for.

    Example:
        >>> shares_names("Flux.1", "HunyuanVideo 1.5"), shares_names("HunyuanVideo", "Flux.1")
        (True, False)
    """
    row = family_named(family)
    while row is not None and row.like:
        if row.like == told:
            return True
        row = family_named(row.like)
    return False


def alike(one: str, other: str) -> bool:
    """Say whether two families' files share their names, so that a file's label may be either."""
    return shares_names(one, other) or shares_names(other, one)


def _declared(metadata: Mapping[str, str]) -> str | None:
    """Read the family out of a header; the longest mark counts."""
    text = " ".join(
        (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", ""))
    ).lower()
    matches = [(len(mark), family.name) for family in FAMILIES for mark in family.headers if mark in text]
    return max(matches)[1] if matches else None


def _said(base: str) -> str | None:
    """Read the names that users and model sites give to bases; the longest beginning counts."""
    text = base.lower()
    matches = [
        (len(mark), family.name) for family in FAMILIES for mark in family.said if text.startswith(mark)
    ]
    return max(matches)[1] if matches else None
