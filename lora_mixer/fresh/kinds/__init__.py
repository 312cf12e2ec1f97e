"""The kinds of fresh adapters: one file and one row each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.fresh.kinds.adalora import ADALORA
from lora_mixer.fresh.kinds.full import FULL
from lora_mixer.fresh.kinds.ia3 import IA3
from lora_mixer.fresh.kinds.loha import LOHA
from lora_mixer.fresh.kinds.lokr import LOKR
from lora_mixer.fresh.kinds.lora import LORA
from lora_mixer.fresh.kinds.oft import OFT
from lora_mixer.fresh.kinds.tokens import TOKENS

if TYPE_CHECKING:
    from lora_mixer.fresh.kinds.kind import FreshKind

KINDS: dict[str, FreshKind] = {
    kind.config.peft_type: kind for kind in (LORA, ADALORA, IA3, LOHA, LOKR, OFT, TOKENS, FULL)
}
"""The kinds by PEFT's names; ``FULL`` is LyCORIS', PEFT has none of it."""
