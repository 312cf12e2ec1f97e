"""The web page; installed as ``lora_mixer.ui``, so its modules import each other and the package by full names."""
