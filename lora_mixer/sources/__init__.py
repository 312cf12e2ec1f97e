"""
Where adapters come from: files, folders, the Hub, open files and state dicts become one place to read.

What other rooms need stands here, and in ``hub``, which waits until somebody asks for the Hub.
"""

from __future__ import annotations

from lora_mixer.sources._local import adapter_files, read_config, read_config_file
from lora_mixer.sources._names import CONFIG_NAME, SAFETENSORS_SUFFIX, candidates
from lora_mixer.sources._resolve import repository_file, resolve_source
from lora_mixer.sources._sidecars import PICTURES, TEXTS, Sidecars, find_sidecars
from lora_mixer.sources._types import AdapterSource, Request

__all__ = [
    "CONFIG_NAME",
    "PICTURES",
    "SAFETENSORS_SUFFIX",
    "TEXTS",
    "AdapterSource",
    "Request",
    "Sidecars",
    "adapter_files",
    "candidates",
    "find_sidecars",
    "read_config",
    "read_config_file",
    "repository_file",
    "resolve_source",
]
