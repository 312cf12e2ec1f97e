"""
The nodes. They stand on lora_mixer's public names alone.

What goes from node to node is a value: a model with its adapters, and what they do (a mix). Nothing is written into weights but
while a picture is made, so branches of a graph that share a model do not see each other, in whatever order ComfyUI runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from lora_mixer import (
    LoraMixer,
    Mix,
    MixError,
    PictureMaker,
    PictureRequest,
    PictureSettings,
    infotext,
    load_pipeline,
)
from lora_mixer.parsing import NotJsonError, strict_json
from lora_mixer.pictures import PICTURE_FIELDS

CATEGORY = "lora_mixer"
MODEL = "LORA_MIXER"
DEMO = "demo"


class _HeldModel:
    """A model in memory, with the adapters that nodes loaded into it."""

    def __init__(self, mixer: LoraMixer, title: str) -> None:
        self.mixer, self.title = mixer, title
        self.lock = Lock()
        self.names: dict[str, str] = {}  # by file

    def adapter(self, path: str, name: str) -> str:
        """Give a file its name, or the next free one, load it where it is not, and return the name."""
        with self.lock:
            if path not in self.names:
                free, number = name, 1
                while free in self.names.values():
                    number += 1
                    free = f"{name}_{number}"
                self.names[path] = free
            self.load(self.names[path])
            return self.names[path]

    def load(self, *wanted: str) -> None:
        """Load adapters that are not loaded now: ComfyUI keeps what nodes gave, also when a later one let go of them."""
        for path, name in self.names.items():
            if name in wanted and name not in self.mixer.adapters:
                kept = self.mixer.mix
                self.mixer.load_lora_weights(path, adapter_name=name)
                self.mixer.set_mix(kept)


@dataclass(frozen=True)
class MixedModel:
    """A model, and what its adapters are to do: what nodes hand on."""

    held: _HeldModel
    mix: Mix


def _files(kind: str) -> list[str]:
    """List ComfyUI's files of a kind."""
    try:
        import folder_paths
    except ModuleNotFoundError:
        return []
    return list(folder_paths.get_filename_list(kind))


def _path(kind: str, name: str) -> str:
    if name == DEMO or name.startswith(f"{DEMO}:"):
        return name
    import folder_paths

    return str(folder_paths.get_full_path_or_raise(kind, name))


def _blocks(text: str) -> Any:
    """Return a preset's name, or a table of blocks."""
    if not text.startswith("{"):
        return text
    try:
        return strict_json(text)
    except NotJsonError as error:
        raise MixError(
            f'blocks: expected a preset or a table such as {{"down": 0.5}}, got {text[:80]!r}: {error}',
            argument="blocks",
        ) from error


def _whole(name: str, default: int) -> dict[str, int]:
    """Return what ComfyUI is to know of a field of a picture."""
    about = PICTURE_FIELDS[name]
    return {"default": default, "min": int(about.low or 0), "max": int(about.high or 0)}


def _number(default: float, low: float, high: float, step: float = 0.01) -> tuple[str, dict[str, float]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step}


class LoraMixerModel:
    """A checkpoint of ComfyUI's, in one file, or the demo."""

    CATEGORY = CATEGORY
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 -- ComfyUI's name
        """Say what the node takes."""
        return {
            "required": {"checkpoint": ([DEMO, *_files("checkpoints")],)},
            "optional": {
                "dtype": (["auto", "float32", "float16", "bfloat16"],),
                "offload": (["none", "model", "group", "sequential"],),
                "device": ("STRING", {"default": "auto"}),
                "keep_base": (["device", "host", "patch", "auto", "none"],),
            },
        }

    def load(
        self,
        checkpoint: str,
        dtype: str = "auto",
        offload: str = "none",
        device: str = "auto",
        keep_base: Any = "device",
    ) -> tuple[MixedModel]:
        """Load it."""
        pipe = load_pipeline(_path("checkpoints", checkpoint), dtype=dtype, offload=offload, device=device)
        return (MixedModel(_HeldModel(LoraMixer(pipe, keep_base=keep_base), Path(checkpoint).stem), Mix()),)


class LoraMixerAdapter:
    """One adapter more in the mix, with block weights and a schedule."""

    CATEGORY = CATEGORY
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        return {
            "required": {
                "model": (MODEL,),
                "lora": ([*_files("loras"), *(f"{DEMO}:{name}" for name in _demo_names())],),
                "weight": _number(1.0, -20.0, 20.0),
            },
            "optional": {
                "text_weight": _number(1.0, -20.0, 20.0),
                "same_for_text": ("BOOLEAN", {"default": True}),
                "blocks": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": 'A preset of block weights (MIDD, b-lora:style) or a table: {"down": 0.5, "up": [1, 0]}',
                    },
                ),
                "schedule": (
                    "STRING",
                    {"default": "", "tooltip": "Over the steps: linear(0, 1), 0@0,1@0.5, ..."},
                ),
            },
        }

    def add(
        self,
        model: MixedModel,
        lora: str,
        weight: float,
        text_weight: float = 1.0,
        same_for_text: bool = True,
        blocks: str = "",
        schedule: str = "",
    ) -> tuple[MixedModel]:
        """Add it; an adapter that is in the mix already gets this weight."""
        name = model.held.adapter(_path("loras", lora), Path(lora.removeprefix(f"{DEMO}:")).stem)
        entry: dict[str, Any] = {"weight": weight}
        if not same_for_text:
            entry["components"] = {"te": text_weight}
        if blocks.strip():
            entry["blocks"] = _blocks(blocks.strip())
        if schedule.strip():
            entry["schedule"] = schedule.strip()
        added = Mix.of({name: entry})
        mix = Mix({**model.mix.adapters, **added.adapters}, model.mix.method)
        model.held.mixer.check_mix(mix)
        return (replace(model, mix=mix),)


class LoraMixerMix:
    """The whole mix as text, of adapters that nodes before have loaded."""

    CATEGORY = CATEGORY
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    FUNCTION = "mix"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        about = {"default": "", "multiline": True, "tooltip": "ink:0.7,te=0.2, neon:0.4 | switch(tau=2)"}
        return {"required": {"model": (MODEL,), "text": ("STRING", about)}}

    def mix(self, model: MixedModel, text: str) -> tuple[MixedModel]:
        """Take the text as the mix."""
        mix = Mix.of(text)
        model.held.mixer.check_mix(mix)
        return (replace(model, mix=mix),)


class LoraMixerBase:
    """The model without any adapter: its base, bit for bit."""

    CATEGORY = CATEGORY
    RETURN_TYPES = (MODEL, "BOOLEAN")
    RETURN_NAMES = ("model", "restored")
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        return {"required": {"model": (MODEL,)}}

    def restore(self, model: MixedModel) -> tuple[MixedModel, bool]:
        """Put the base back and let go of all adapters' memory; later nodes load them again."""
        with model.held.lock:
            model.held.mixer.unload_lora_weights()
            return replace(model, mix=Mix()), not model.held.mixer.get_active_adapters()


class LoraMixerPictures:
    """Pictures of a model with its mix, and the settings as text."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "settings")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node takes."""
        side = _whole("width", 512) | {"step": 8}
        return {
            "required": {
                "model": (MODEL,),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", _whole("seed", 0)),
                "steps": ("INT", _whole("steps", 20)),
                "guidance_scale": _number(7.0, 0.0, 100.0, 0.1),
                "width": ("INT", side),
                "height": ("INT", side),
            },
            "optional": {
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
                "count": ("INT", {"default": 1, "min": 1, "max": 64}),
                "sampler": ("STRING", {"default": ""}),
                "sampler_schedule": ("STRING", {"default": ""}),
                "clip_skip": ("INT", {"default": 0, "min": 0, "max": 11}),
            },
        }

    def make(
        self,
        model: MixedModel,
        prompt: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        negative_prompt: str = "",
        count: int = 1,
        sampler: str = "",
        sampler_schedule: str = "",
        clip_skip: int = 0,
    ) -> tuple[torch.Tensor, str]:
        """Make them; the weights are the base again afterwards."""
        request = PictureRequest(
            prompt, negative_prompt, seed=seed, steps=steps, guidance_scale=guidance_scale, width=width, height=height,
            sampler=sampler.strip() or None, schedule=sampler_schedule.strip() or None, clip_skip=clip_skip or None,
            mix=model.mix,
        )  # fmt: skip
        requests = [replace(request, seed=seed + number) for number in range(count)]
        with model.held.lock:
            model.held.load(*model.mix.names)
            made = sorted(PictureMaker(model.held.mixer).make(requests), key=lambda picture: picture.index)
            hashes = {name: info.hashes for name, info in model.held.mixer.adapters.items()}
        images = torch.from_numpy(np.stack([np.asarray(each.image.convert("RGB")) for each in made]))
        settings = PictureSettings.of_request(made[0].request, model=model.held.title)
        return images.float() / 255, infotext(settings, hashes)  # (count, height, width, 3), 0 to 1


def _demo_names() -> list[str]:
    from lora_mixer import LoraMixerError, demo_adapters

    try:
        return list(demo_adapters())
    except LoraMixerError:
        return []


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "LoraMixerModel": LoraMixerModel,
    "LoraMixerAdapter": LoraMixerAdapter,
    "LoraMixerMix": LoraMixerMix,
    "LoraMixerBase": LoraMixerBase,
    "LoraMixerPictures": LoraMixerPictures,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "LoraMixerModel": "Model (lora_mixer)",
    "LoraMixerAdapter": "Adapter in the mix (lora_mixer)",
    "LoraMixerMix": "Mix as text (lora_mixer)",
    "LoraMixerBase": "Base, restored (lora_mixer)",
    "LoraMixerPictures": "Pictures (lora_mixer)",
}
