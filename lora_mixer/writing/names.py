"""
How the layouts spell modules, from the live paths of the components.

Kohya's trainer for SDXL names the UNet's modules as the original code does (``input_blocks_4_1_...``) and the encoders
``te1`` and ``te2``; for SD 1.x and 2.x it uses diffusers' names and ``te``. Text encoders have ``text_model.`` in Kohya
and diffusers files, whether or not the installed transformers has it, since older readers know no other spelling.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SaveError
from lora_mixer.families import family_of_class, spell
from lora_mixer.families.unet_names import block_prefixes, ldm_name
from lora_mixer.writing.fusing import fuse
from lora_mixer.writing.layers import BASE_OR_FORMAT, OTHER_FORMAT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from lora_mixer.families import Family
    from lora_mixer.writing.layers import ModulePlace, NewLayer

_TEXT_ROOT = "text_model."
_TRANSFORMERS = ("transformer", "transformer_2")
_PRIORS = ("prior", "prior_prior")
_CLIP_TOPS = ("embeddings", "encoder", "final_layer_norm")
_LANGUAGE_ROOT = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?")
"""What stands before ``layers`` in language models, whatever classes wrap them."""


class Names:
    """
    Spell places of one pipeline.

    Args:
        paths: The paths of all modules by component; empty where no model is known.

    Example:
        >>> from lora_mixer.writing.layers import ModulePlace
        >>> names = Names({"unet": ["conv_in"], "text_encoder": ["encoder.layers.0.mlp.fc1"]})
        >>> names.kohya(ModulePlace("text_encoder", "encoder.layers.0.mlp.fc1", (4, 4)))
        'lora_te_text_model_encoder_layers_0_mlp_fc1'
    """

    def __init__(
        self,
        paths: Mapping[str, Collection[str]],
        family: Family | None = None,
        rows: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Take the paths."""
        self.paths = paths
        self.family = family
        self.rows = rows or {}

    def fused(self, layers: Sequence[NewLayer], *, comfyui: bool = False) -> list[NewLayer]:
        """
        Return layers as the original code of the family has them, whose names Kohya's files and ComfyUI's use.

        Args:
            layers: With their live paths.
            comfyui: Whether ComfyUI's names are asked for, where those are others.

        Raises:
            SaveError: When a layer is not a pair that can be a part of a larger one.
        """
        family = self.family
        layout = "" if family is None else (comfyui and family.comfyui) or family.kohya_flat
        if family is None or not layout:
            return list(layers)
        others = [layer for layer in layers if layer.place.component not in _TRANSFORMERS]
        for component in _TRANSFORMERS:
            by_path = {layer.place.path: layer for layer in layers if layer.place.component == component}
            table = spell(family.layouts[layout], self.rows.get(component, {}))
            others += fuse(by_path, table, self.rows.get(component, {})) if by_path else []
        return others

    @cached_property
    def is_sdxl(self) -> bool:
        """Whether the pipeline is of SDXL's kind, by its second text encoder or its size embeddings."""
        return "text_encoder_2" in self.paths or "add_embedding.linear_1" in self.paths.get("unet", ())

    @property
    def _counts(self) -> bool:
        """Whether text encoders are numbered in Kohya's files: where there are several."""
        return "text_encoder_2" in self.paths or self.is_sdxl

    @cached_property
    def _ldm(self) -> dict[str, str]:
        return block_prefixes(self.paths.get("unet", ()))

    def dotted(self, place: ModulePlace) -> str:
        """Spell the path in a component with dots, ``text_model.`` in it for CLIP."""
        top = place.path.partition(".")[0]
        if place.component.startswith("text_encoder") and top in _CLIP_TOPS and not self._is_t5(place):
            return _TEXT_ROOT + place.path
        return place.path

    @staticmethod
    def _is_t5(place: ModulePlace) -> bool:
        return place.path.startswith("encoder.block.")

    def diffusers(self, place: ModulePlace) -> str:
        """Spell a module as diffusers files do; modules of a bare model by their path alone."""
        path = self.dotted(place)
        return path if place.component == "model" else f"{place.component}.{path}"

    def kohya(self, place: ModulePlace) -> str:
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
                    "the original SDXL code, whose names Kohya's files use, has no such module",
                    key=str(place),
                )
            return "lora_unet_" + name.replace(".", "_")
        if place.component in _TRANSFORMERS and self.family is not None:
            return "lora_unet_" + place.path.replace(".", "_")
        numbered = {"text_encoder": "te1" if self._counts else "te", "text_encoder_2": "te2"}
        if self.family is not None:
            numbered |= {"text_encoder_3": "te3", "text_encoder_4": "te4"}
            if self._is_t5(place):  # Kohya's trainer counts T5 as the third, wherever the pipeline has it
                numbered[place.component] = "te3" if self.family.t5 else "te"
        if any(part in self.paths for part in _PRIORS):  # Stable Cascade, as OneTrainer names its parts
            numbered = dict.fromkeys(_PRIORS, "prior_unet") | dict.fromkeys(
                ("text_encoder", "prior_text_encoder"), "prior_te"
            )
        prefix = numbered.get(place.component)
        if prefix is None and place.component in _TRANSFORMERS:
            raise SaveError(
                f"Kohya's names of a {place.component} follow from its family, which is not known here",
                key=str(place),
                remedy=BASE_OR_FORMAT,
            )
        if prefix is None:
            raise SaveError(
                f"Kohya's layout is written for UNets and their text encoders only, not for {place.component}",
                key=str(place),
                remedy=OTHER_FORMAT,
            )
        return f"lora_{prefix}_" + self.dotted(place).replace(".", "_")

    def comfyui(self, place: ModulePlace) -> str:
        """
        Spell a module with dots, as ComfyUI's own models name it.

        Raises:
            SaveError: When ComfyUI has no name for the component or the module.

        Example:
            >>> from lora_mixer.writing.layers import ModulePlace
            >>> Names({"unet": ["conv_in"]}).comfyui(ModulePlace("unet", "conv_in", (4, 4)))
            'diffusion_model.input_blocks.0.0'
        """
        if place.component == "unet":
            name = ldm_name(place.path, self._ldm)
            if name is None:
                raise SaveError(
                    "the original code, whose names ComfyUI uses, has no such module", key=str(place)
                )
            return f"diffusion_model.{name}"
        if place.component in _TRANSFORMERS and self.family is not None:
            return f"diffusion_model.{place.path}"
        encoder = self._encoder(place)
        if encoder is None:
            raise SaveError(
                f"ComfyUI's name for {place.component} is not known here",
                key=str(place),
                remedy=BASE_OR_FORMAT if place.component in _TRANSFORMERS else OTHER_FORMAT,
            )
        path = self.dotted(place)
        if self.family is not None and encoder == self.family.encoder:
            path = f"model.{_LANGUAGE_ROOT.sub('', path)}"
        return f"text_encoders.{encoder}.transformer.{path}"

    def _encoder(self, place: ModulePlace) -> str | None:
        """Name a text encoder as ComfyUI does, by its kind; None where the kind's name is not known."""
        if self._is_t5(place):
            return "t5xxl"
        if self.family is not None and self.family.encoder and place.component == "text_encoder":
            return self.family.encoder
        known = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
        is_clip = place.path.startswith((*_CLIP_TOPS, _TEXT_ROOT, "text_projection"))
        return known.get(place.component) if is_clip else None


def names_of(components: Mapping[str, nn.Module]) -> Names:
    """Make the names of live components, whose family is told by their denoiser's class."""
    kinds = [type(components[part]).__name__ for part in _TRANSFORMERS if part in components]
    family = next((family for kind in kinds if (family := family_of_class(kind)) is not None), None)
    rows = {}
    for part in _TRANSFORMERS if family is not None else ():
        if part in components:
            rows[part] = {
                path.replace("_orig_mod.", "").replace(".base_layer", ""): _outputs(module)
                for path, module in components[part].named_modules()
                if getattr(module, "weight", None) is not None
            }
    return Names(module_paths(components), family, rows)


def _outputs(module: nn.Module) -> int:
    """Count a module's outputs; packed weights do not show them."""
    outputs = getattr(module, "out_features", None)
    weight: Any = module.weight
    return outputs if isinstance(outputs, int) else weight.shape[0]


def module_paths(components: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """
    List the paths of all modules of each component, without the wrappers of PEFT and ``torch.compile``.

    Example:
        >>> from torch import nn
        >>> module_paths({"model": nn.Sequential(nn.Linear(1, 1))})
        {'model': ['', '0']}
    """
    return {
        name: [
            path.replace("_orig_mod.", "").replace(".base_layer", "") for path, _ in module.named_modules()
        ]
        for name, module in components.items()
    }
