"""Where adapters come from: files, folders, the Hub, open files and state dicts become one place to read."""

from __future__ import annotations

from lora_mixer.sources._local import adapter_files, read_config_file
from lora_mixer.sources._resolve import repository_file, resolve_source
from lora_mixer.sources._sidecars import Sidecars, find_sidecars
from lora_mixer.sources._types import AdapterSource

__all__ = [
    "AdapterSource",
    "Sidecars",
    "adapter_files",
    "find_sidecars",
    "read_config_file",
    "repository_file",
    "resolve_source",
]
