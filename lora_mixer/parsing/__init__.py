"""Reading what people and strangers wrote: problems with their places, strict JSON and YAML, values, frozen maps."""

from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.json_text import NotJsonError, json_or_none, strict_json

__all__ = ["NotJsonError", "at_home", "json_or_none", "strict_json"]
