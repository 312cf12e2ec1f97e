"""What is known of base families: a row for each, and how files spell their modules."""

from __future__ import annotations

from lora_mixer.families.family import Family
from lora_mixer.families.spelling import Piece, Pieces, flatten, is_listed, is_translated, spell
from lora_mixer.families.table import FAMILIES, family_named, family_of_class

__all__ = [
    "FAMILIES",
    "Family",
    "Piece",
    "Pieces",
    "family_named",
    "family_of_class",
    "flatten",
    "is_listed",
    "is_translated",
    "spell",
]
