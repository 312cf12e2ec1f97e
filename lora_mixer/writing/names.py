"""
How the layouts spell modules, from the live paths of the components.

Kohya's trainer for SDXL names the UNet's modules as the original code does (``input_blocks_4_1_...``) and the encoders
``te1`` and ``te2``; for SD 1.x and 2.x it uses diffusers' names and ``te``. Text encoders have ``text_model.`` in Kohya
and diffusers files, whether or not the installed transformers has it, since older readers know no other spelling.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lora_mixer.binding.ldm import block_prefixes, ldm_name
from lora_mixer.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lora_mixer.writing.layers import Place

_TEXT_ROOT = "text_model."
_CLIP_TOPS = ("embeddings", "encoder", "final_layer_norm")


class Names:
    """
    Spell places of one pipeline.

    Args:
        paths: The paths of all modules by component; empty where no model is known.

    Example:
        >>> from lora_mixer.writing.layers import Place
        >>> names = Names({"unet": ["conv_in"], "text_encoder": ["encoder.layers.0.mlp.fc1"]})
        >>> names.kohya(Place("text_encoder", "encoder.layers.0.mlp.fc1", (4, 4)))
        'lora_te_text_model_encoder_layers_0_mlp_fc1'
    """

    def __init__(self, paths: Mapping[str, Collection[str]]) -> None:
        """Take the paths."""
        self.paths = paths

    @cached_property
    def is_sdxl(self) -> bool:
        """Whether the pipeline is of SDXL's kind, by its second text encoder or its size embeddings."""
        return "text_encoder_2" in self.paths or "add_embedding.linear_1" in self.paths.get("unet", ())

    @cached_property
    def _ldm(self) -> dict[str, str]:
        return block_prefixes(self.paths.get("unet", ()))

    def dotted(self, place: Place) -> str:
        """Spell the path in a component with dots, ``text_model.`` in it for CLIP."""
        top = place.path.partition(".")[0]
        if place.component.startswith("text_encoder") and top in _CLIP_TOPS and not self._is_t5(place):
            return _TEXT_ROOT + place.path
        return place.path

    @staticmethod
    def _is_t5(place: Place) -> bool:
        return place.path.startswith("encoder.block.")

    def diffusers(self, place: Place) -> str:
        """Spell a module as diffusers files do; modules of a bare model by their path alone."""
        path = self.dotted(place)
        return path if place.component == "model" else f"{place.component}.{path}"

    def kohya(self, place: Place) -> str:
        """
        Spell a module as Kohya's files do.

        Raises:
            SaveError: When Kohya's layout has no name for the component or the module.
        """
        if place.component == "unet":
            if not self.is_sdxl:
                return "lora_unet_" + place.path.replace(".", "_")
            name = ldm_name(place.path, self._ldm)
            if name is None:
                raise SaveError(
                    f"{place}: the original SDXL code, whose names Kohya's files use, has no such module"
                )
            return "lora_unet_" + name.replace(".", "_")
        numbered = {"text_encoder": "te1" if self.is_sdxl else "te", "text_encoder_2": "te2"}
        prefix = numbered.get(place.component)
        if prefix is None:
            raise SaveError(
                f"{place}: Kohya's layout is written for UNets and their text encoders only, not for "
                f"{place.component}; use format='diffusers' or 'peft'"
            )
        return f"lora_{prefix}_" + self.dotted(place).replace(".", "_")
