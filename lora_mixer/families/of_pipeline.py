"""Which family a pipeline is of, from the classes and widths of its live components."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.families.table import FAMILIES, family_named, family_of_class
from lora_mixer.families.telling import unet_family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lora_mixer.families.family import Family

UNKNOWN = "unknown"
_DENOISERS = ("transformer", "prior", "transformer_2")


def text_width(unet: nn.Module) -> int | None:
    """Return the width of the text that a UNet attends to, or None where its configuration does not say."""
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    width = width[0] if isinstance(width, list | tuple) and width else width
    return width if isinstance(width, int) else None


def family_name(components: Mapping[str, nn.Module]) -> str:
    """Name the family of a pipeline's components; ``unknown`` where nothing tells."""
    unet = components.get("unet")
    if unet is not None:
        width = text_width(unet)
        return UNKNOWN if width is None else unet_family(width)
    families = (family_of_class(type(components[part]).__name__) for part in _DENOISERS if part in components)
    return next((family.name for family in families if family is not None), UNKNOWN)


def family_of(components: Mapping[str, nn.Module]) -> Family | None:
    """
    Return what is known of the family of a pipeline's components; None where nothing tells it.

    A UNet of no known width is of the family whose kind of further embeddings it has (``addition_embed_type``).
    """
    named = family_named(family_name(components))
    kind = getattr(getattr(components.get("unet"), "config", None), "addition_embed_type", None)
    if named is not None or kind is None:
        return named
    of_kind = (family for family in FAMILIES if (family.unet or {}).get("addition_embed_type") == kind)
    return next(of_kind, None)


def describe_base(components: Mapping[str, nn.Module]) -> str:
    """Describe the base for messages: the family, and by what it is known."""
    name, unet = family_name(components), components.get("unet")
    if unet is not None and name != UNKNOWN:
        shown = "a UNet" if name.startswith("UNet") else name
        return f"{shown} (cross-attention {text_width(unet)})"
    for part in ("unet", *_DENOISERS):
        if part in components:
            kind = type(components[part]).__name__
            return kind if name == UNKNOWN else f"{name} ({kind})"
    return ", ".join(f"{part} ({type(module).__name__})" for part, module in components.items())
