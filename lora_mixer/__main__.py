"""``python -m lora_mixer`` is the ``lora-mixer`` command."""

from __future__ import annotations

from lora_mixer.cli import main

main()
