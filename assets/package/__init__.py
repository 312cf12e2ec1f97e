"""The demo of lora_mixer: data alone, which ``lora_mixer.load_demo`` and ``lora_mixer.demo_adapters`` find here."""
