"""
The fronts of keys: which component a spelling names, and what is left for the module.

Nothing is guessed here: the module's spelling is kept as written (dotted, underscored or LDM) and resolved
against the live model by :mod:`lora_mixer.binding`. Layout ids (K1, D3, ...) are those of the README's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Target:
    """
    The module that a key names, before any model is known.

    Attributes:
        hint: The component it is said to be in: ``denoiser``, ``text_encoder``, ``text_encoder_2``,
            ``text_encoder_3``, ``transformer``; None where the file does not say.
        module: The module's spelling without the component.
        written: The whole spelling, for models whose own paths start like a component's name.
    """

    hint: str | None
    module: str
    written: str


# (prefix, component hint, layout id). Longer prefixes first where one begins another.
_PREFIXES: tuple[tuple[str, str | None, str], ...] = (
    ("lora_unet_unet_", "denoiser", "kohya"),
    ("lora_unet__", "denoiser", "kohya"),
    ("lora_unet_", "denoiser", "kohya"),
    ("lora_te1_", "text_encoder", "kohya"),
    ("lora_te2_", "text_encoder_2", "kohya"),
    ("lora_te3_", "text_encoder_3", "kohya"),
    ("lora_te_", "text_encoder", "kohya"),
    ("lora_unet.", "denoiser", "kohya"),
    ("lora_te1.", "text_encoder", "kohya"),
    ("lora_te2.", "text_encoder_2", "kohya"),
    ("lora_te3.", "text_encoder_3", "kohya"),
    ("lora_te.", "text_encoder", "kohya"),
    ("lora_transformer_", "transformer", "onetrainer"),
    ("oft_unet_", "denoiser", "kohya"),
    ("lycoris_", None, "lycoris"),
    ("model.diffusion_model.", "denoiser", "comfyui"),
    ("diffusion_model.", "denoiser", "comfyui"),
    ("diffusion_model_", "denoiser", "comfyui"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_h.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_g.transformer.", "clip_g", "comfyui"),
    ("text_encoders.t5xxl.transformer.", "t5", "comfyui"),
    ("clip_l.", "text_encoder", "omi"),
    ("clip_g.", "clip_g", "omi"),
    ("t5.", "t5", "omi"),
    ("unet.", "denoiser", "diffusers"),
    ("transformer.", "transformer", "diffusers"),
    ("text_encoder_3.", "text_encoder_3", "diffusers"),
    ("text_encoder_2.", "text_encoder_2", "diffusers"),
    ("text_encoder.", "text_encoder", "diffusers"),
)

# SDXL's second encoder is clip_g; a refiner has it as its only one.
COMPONENTS_OF_HINT: dict[str, tuple[str, ...]] = {
    "denoiser": ("unet", "transformer"),
    "transformer": ("transformer", "unet"),
    "clip_g": ("text_encoder_2", "text_encoder"),
    "t5": ("text_encoder_3", "text_encoder_2", "text_encoder"),
}
"""The pipeline components that a hint may mean, the likelier first; other hints mean themselves."""

ENCODER_HINTS = ("clip_g", "t5")
"""Hints that name a kind of text encoder and not a component: which component it is, its widths tell."""

PEFT_ROOT = "base_model.model."
_OLD_TE = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@lru_cache(maxsize=1 << 14)  # each module is spelled once for every tensor that it has
def split_component(spelling: str) -> tuple[Target, str]:
    """
    Take the component's prefix off a module spelling.

    Returns:
        The target and the layout's name (``kohya``, ``peft``, ``diffusers``, ``comfyui``, ``omi``, ``lycoris``,
        ``onetrainer``; ``plain`` for a bare module path).

    Example:
        >>> split_component("lora_te2_text_model_encoder_layers_0_mlp_fc1")[0].hint
        'text_encoder_2'
    """
    if spelling.startswith(PEFT_ROOT):
        module = spelling[len(PEFT_ROOT) :]
        return Target(None, module, module), "peft"
    for prefix, hint, layout in _PREFIXES:
        if spelling.startswith(prefix):
            module = spelling[len(prefix) :]
            if module.startswith(PEFT_ROOT):
                return Target(hint, module[len(PEFT_ROOT) :], module[len(PEFT_ROOT) :]), "peft"
            return Target(hint, module.lstrip("_"), spelling), layout
    return Target(None, spelling, spelling), "plain"


def modernise(module: str) -> str:
    """
    Spell a module of diffusers' old attention processors as the live model does.

    ``attn1.processor.to_out`` is the Linear ``attn1.to_out.0``, a text encoder's ``self_attn.to_q`` is ``q_proj``.
    """
    module = module.replace(".processor.", ".")
    head, _, last = module.rpartition(".")
    if head.endswith("self_attn") and last in _OLD_TE:
        return f"{head}.{_OLD_TE[last]}"
    return f"{module}.0" if last == "to_out" else module
