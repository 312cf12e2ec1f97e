"""Reading what people and strangers wrote: problems with their places, strict JSON and YAML, values, frozen maps."""

from lora_mixer.parsing.json_text import NotJsonError, json_or_none, strict_json

__all__ = ["NotJsonError", "json_or_none", "strict_json"]
