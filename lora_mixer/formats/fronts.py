"""
The fronts of keys: which component a spelling names, and what is left for the module.

Nothing is guessed here: the module's spelling is kept as written (dotted, underscored or LDM) and resolved
against the live model by :mod:`lora_mixer.binding`. What each layout is called stands in docs/formats.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class KeyTarget:
    """
    The module that a key names, before any model is known.

    Attributes:
        hint: The component it is said to be in: ``denoiser``, ``text_encoder``, ``text_encoder_2``,
            ``text_encoder_3``, ``text_encoder_4``, ``transformer``, or the name of another component; None where the file does not say.
        module: The module's spelling without the component.
        written: The whole spelling but for what wrappers put in front, for models whose own paths start like a
            component's name.
    """

    hint: str | None
    module: str
    written: str
    between: tuple[str, ...] = ()
    """Spellings with some of their fronts taken off; where a model's own paths start with such a front, it is one of these."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every spelling that may be the module's own, the likeliest first."""
        return tuple(dict.fromkeys((self.module, *self.between, self.written)))


FRONTS: tuple[tuple[str, str | None, str], ...] = (
    ("lora_prior_unet_", "prior", "onetrainer"),
    ("lora_prior_te_", "prior_text_encoder", "onetrainer"),
    ("lora_unet_unet_", "denoiser", "kohya"),
    ("lora_unet_", "denoiser", "kohya"),
    ("lora_te1_", "text_encoder", "kohya"),
    ("lora_te2_", "text_encoder_2", "kohya"),
    ("lora_te3_", "text_encoder_3", "kohya"),
    ("lora_te4_", "text_encoder_4", "kohya"),
    ("lora_te_", "text_encoder", "kohya"),
    ("lora_unet.", "denoiser", "kohya"),
    ("lora_te1.", "text_encoder", "kohya"),
    ("lora_te2.", "text_encoder_2", "kohya"),
    ("lora_te3.", "text_encoder_3", "kohya"),
    ("lora_te4.", "text_encoder_4", "kohya"),
    ("lora_te.", "text_encoder", "kohya"),
    ("lora_transformer_", "transformer", "onetrainer"),
    ("oft_unet_", "denoiser", "kohya"),
    ("lycoris_", None, "lycoris"),
    ("model.diffusion_model.", "denoiser", "comfyui"),
    ("diffusion_model.", "denoiser", "comfyui"),
    ("diffusion_model_", "denoiser", "comfyui"),
    ("diffusion.model.", "denoiser", "comfyui"),
    ("pipe.dit.", "denoiser", "diffsynth"),
    ("pipe.vace.", "denoiser", "diffsynth"),
    ("pipe.video_dit.", "denoiser", "diffsynth"),
    ("dit.", "denoiser", "lightx2v"),
    ("net.", "denoiser", "comfyui"),
    ("conditional_transformer.", "transformer", "diffusers"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_h.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_g.transformer.", "clip_g", "comfyui"),
    ("text_encoders.t5xxl.transformer.", "t5", "comfyui"),
    ("clip_l.", "text_encoder", "omi"),
    ("clip_g.", "clip_g", "omi"),
    ("t5.", "t5", "omi"),
    ("unet.", "denoiser", "diffusers"),
    ("prior.", "prior", "diffusers"),
    ("transformer_2.", "transformer_2", "diffusers"),
    ("transformer.", "transformer", "diffusers"),
    ("controlnet.", "controlnet", "diffusers"),
    ("connectors.", "connectors", "diffusers"),
    ("text_embedding_projection.", "connectors", "comfyui"),
    ("text_encoder_4.", "text_encoder_4", "diffusers"),
    ("text_encoder_3.", "text_encoder_3", "diffusers"),
    ("text_encoder_2.", "text_encoder_2", "diffusers"),
    ("text_encoder.", "text_encoder", "diffusers"),
)
"""
How keys begin, which component that means (None: the file does not say), and the layout's name; a new spelling is a row here.

Longer ones stand first where one begins another.
"""

# SDXL's second encoder is clip_g; a refiner has it as its only one.
COMPONENTS_OF_HINT: dict[str, tuple[str, ...]] = {
    "denoiser": ("unet", "transformer", "prior"),  # the last is Stable Cascade's, where there is neither
    "transformer": ("transformer", "unet"),
    "clip_g": ("text_encoder_2", "text_encoder"),
    "prior": ("prior", "prior_prior"),
    "prior_text_encoder": ("prior_text_encoder", "text_encoder"),
    "t5": ("text_encoder_3", "text_encoder_2", "text_encoder"),
}
"""The pipeline components that a hint may mean, the likelier first; other hints mean themselves."""

ENCODER_HINTS = ("clip_g", "t5")
"""Hints that name a kind of text encoder and not a component: which component it is, its widths tell."""

COMPONENT_KEY = "lora_mixer.component"
"""Header field of this package's PEFT files: the component that they are for, which PEFT's keys do not name."""
_ENCODER = re.compile(r"text_encoders\.(\w+)\.(?:transformer\.)?")
"""ComfyUI's front of text encoders of every kind: ``gemma2_2b``, ``qwen3_06b``, ``umt5xxl``, ..."""
_PARTS = {
    "llm_adapter": ("text_conditioner", True),
    "video_embeddings_connector": ("connectors", False),
    "audio_embeddings_connector": ("connectors", False),
}
"""Parts of a denoiser (Anima's, LTX-2's) that diffusers has in a component of its own, and whether their name is its front there."""

_PROCESSED = re.compile(r"_lora(\d?)\Z")
PEFT_ROOT = "base_model.model."
_WRAPPERS = (PEFT_ROOT, "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What PEFT, DDP, ``torch.compile`` and FSDP put in front of every path while a model is trained."""
_FLAT_WRAPPERS = tuple(wrapper.replace(".", "_") for wrapper in _WRAPPERS)
_INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Wrappers around single blocks; no module of a model is called so."""
_INNER_FLAT = re.compile(r"_(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)_")


_FRONTS_AT_MOST = 16
"""How many may stand one before the other; each leaves a spelling of its own behind."""
_DENOISERS = frozenset(("denoiser", "transformer"))
"""Hints that mean one component, so that their fronts may stand one behind the other."""


@lru_cache(maxsize=1 << 14)  # each module is spelled once for every tensor that it has
def split_component(spelling: str) -> tuple[KeyTarget, str]:
    """
    Take the component's prefix off a module spelling, and what wrappers put before and behind it.

    Returns:
        The target and the layout's name (``kohya``, ``peft``, ``diffusers``, ``comfyui``, ``omi``, ``lycoris``,
        ``onetrainer``; ``plain`` for a bare module path).

    Example:
        >>> split_component("lora_te2_text_model_encoder_layers_0_mlp_fc1")[0].hint
        'text_encoder_2'
        >>> split_component("base_model.model.unet.mid_block.resnets.0.conv1")[0].module
        'mid_block.resnets.0.conv1'
    """
    hint: str | None = None
    layout = "plain"
    flat = False
    module = written = spelling
    seen = [spelling]
    for _ in range(_FRONTS_AT_MOST):
        front = _front_of(module, hint, flat=flat)
        if front is None:
            break
        prefix, named, marked = front
        module = module[len(prefix) :]
        if named is not None:
            hint = hint or named
        layout = marked if layout == "plain" or marked == "peft" else layout
        flat = flat or prefix.endswith("_")
        if marked == "plain" or (marked == "peft" and hint is None):
            written = module if hint is None else written
            if marked == "peft":
                seen.clear()  # PEFT's root is in every key that it writes: nobody's path begins so
        seen.append(module)
    module = _unwrapped_inside(module, flat=flat)
    if hint in _DENOISERS:
        for part, (component, is_front) in _PARTS.items():
            if module.startswith((f"{part}.", f"{part}_")):
                hint, module = component, module[len(part) + 1 :] if is_front else module
    return KeyTarget(hint, module, written, tuple(x for x in seen if x not in (module, written))), layout


def behind(front: str, spelling: str) -> str:
    """
    Return what stands behind a component's front, which may stand twice, without what wrappers put before and inside.

    Args:
        front: How the spelling begins, with the dot or line at its end.
        spelling: The module's spelling.

    Example:
        >>> behind("brushnet.", "brushnet._orig_mod.mid_block.resnets.0._fsdp_wrapped_module.conv1")
        'mid_block.resnets.0.conv1'
    """
    flat, module = front.endswith("_"), spelling
    wrappers = _FLAT_WRAPPERS if flat else _WRAPPERS
    for _ in range(_FRONTS_AT_MOST):
        before = next((x for x in (front, *wrappers) if module.startswith(x)), None)
        if before is None:
            break
        module = module[len(before) :]
    return _unwrapped_inside(module, flat=flat)


def _unwrapped_inside(module: str, *, flat: bool) -> str:
    return _INNER_FLAT.sub("_", module).strip("_") if flat else _INNER.sub("", module)


class _Beginnings:
    """All that a front may begin with, worked out once for a table."""

    _table: tuple[tuple[str, str | None, str], ...] = ()
    _all: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: tuple[tuple[str, str | None, str], ...]) -> tuple[str, ...]:
        """Return those of a table of fronts."""
        if cls._table is not table:
            cls._all = (*_WRAPPERS, *(prefix for prefix, _, _ in table), "text_encoders.")
            cls._table = table
        return cls._all


def _front_of(text: str, hint: str | None, *, flat: bool) -> tuple[str, str | None, str] | None:
    """Find what stands before a path: a wrapper, or a component's name, which may stand twice."""
    if not text.startswith(_FLAT_WRAPPERS if flat else _Beginnings.of(FRONTS)):
        return None  # as most of what stands behind a front
    for prefix, wrapper in zip(_FLAT_WRAPPERS if flat else _WRAPPERS, _WRAPPERS, strict=True):
        if text.startswith(prefix):
            return prefix, None, "peft" if wrapper is PEFT_ROOT else "plain"
    for prefix, named, layout in FRONTS:
        if text.startswith(prefix) and (hint is None or hint == named or {hint, named} <= _DENOISERS):
            return prefix, named, layout
    encoder = None if hint is not None else _ENCODER.match(text)
    if encoder is not None:
        return encoder[0], "t5" if "t5" in encoder[1] else "text_encoder", "comfyui"
    return None


def modernise(module: str) -> str:
    """
    Spell a module of diffusers' old attention processors as the live model does.

    ``attn1.processor.to_out`` is the Linear ``attn1.to_out.0``. What stands behind ``_lora`` (of xlabs: 1 the picture's stream,
    2 the text's) is in the layer's name, whichever key of it comes: a pair says it in its leaf, an alpha does not.
    """
    module = _PROCESSED.sub(lambda end: f"_{end[1]}" if end[1] else "", module.replace(".processor.", "."))
    return f"{module}.0" if module.endswith(".to_out") else module
