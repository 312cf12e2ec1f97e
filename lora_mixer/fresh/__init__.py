"""
Fresh adapters: what kind, on which modules, from which start.

A configuration has PEFT's field names and meanings and is a plain value; ``LoraMixer.add_adapter`` makes an adapter of it. PEFT's
own objects, dicts and ``adapter_config.json`` say the same.
"""

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds import KINDS
from lora_mixer.fresh.kinds.adalora import AdaLoraConfig
from lora_mixer.fresh.kinds.full import FullConfig
from lora_mixer.fresh.kinds.ia3 import IA3Config
from lora_mixer.fresh.kinds.loha import LoHaConfig
from lora_mixer.fresh.kinds.lokr import LoKrConfig
from lora_mixer.fresh.kinds.lora import LoraConfig
from lora_mixer.fresh.kinds.oft import OFTConfig
from lora_mixer.fresh.kinds.tokens import TrainableTokensConfig
from lora_mixer.fresh.reading import read_config
from lora_mixer.fresh.starts.eva import EvaConfig

__all__ = [
    "KINDS",
    "AdaLoraConfig",
    "AdapterConfig",
    "EvaConfig",
    "FullConfig",
    "IA3Config",
    "LoHaConfig",
    "LoKrConfig",
    "LoraConfig",
    "OFTConfig",
    "TrainableTokensConfig",
    "read_config",
]
