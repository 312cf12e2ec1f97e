"""
Configurations of the base models that single files are made of, so that one file is enough, without the Hub.

A folder as diffusers reads it: model_index.json, a config for each component, CLIP's tokenizer. Shapes of UNets and text
encoders are those that :mod:`lora_mixer.writing.skeleton` knows; here stands the rest.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SourceNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer.pictures.checkpoints import Checkpoint

FAMILIES = ("SD 1.x", "SD 2.x", "SDXL")
_TRAINED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SD 1.x": ("PNDMScheduler", {**_TRAINED, "skip_prk_steps": True}),
    "SD 2.x": ("DDIMScheduler", {**_TRAINED, "prediction_type": "v_prediction"}),
    "SDXL": ("EulerDiscreteScheduler", {**_TRAINED, "timestep_spacing": "leading"}),
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VAES = {
    "SD 1.x": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    "SD 2.x": {**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
    "SDXL": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
}
_LATENTS = {"SD 1.x": 64, "SD 2.x": 96, "SDXL": 128}
_PIPELINES = {
    ("SD 1.x", "text"): "StableDiffusionPipeline",
    ("SD 1.x", "inpainting"): "StableDiffusionInpaintPipeline",
    ("SD 1.x", "edit"): "StableDiffusionInstructPix2PixPipeline",
    ("SD 2.x", "text"): "StableDiffusionPipeline",
    ("SD 2.x", "inpainting"): "StableDiffusionInpaintPipeline",
    ("SDXL", "text"): "StableDiffusionXLPipeline",
    ("SDXL", "inpainting"): "StableDiffusionXLInpaintPipeline",
}
_CHANNELS = {"text": 4, "edit": 8, "inpainting": 9}
# CLIP-L has its own activation and padding; OpenCLIP's encoders pad with "!".
_CLIP_L = {"SD 1.x": ("text_encoder",), "SD 2.x": (), "SDXL": ("text_encoder",)}
_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_config_folder(checkpoint: Checkpoint, folder: Path) -> Path:
    """
    Write the configuration of a checkpoint's base model.

    Args:
        checkpoint: What the file is.
        folder: Where to write to; it is made.

    Returns:
        The folder.

    Raises:
        SourceNotFoundError: When its base is none whose configuration is known here.
    """
    family, kind = checkpoint.family, _PIPELINES.get((checkpoint.family, checkpoint.task))
    if kind is None:
        raise SourceNotFoundError(
            f"its base ({family or 'of unknown kind'}, {checkpoint.task}) is none of those whose "
            f"configuration lora_mixer brings along ({', '.join(FAMILIES)}); name a diffusers folder with --config",
            file=str(checkpoint.path),
        )
    from lora_mixer.writing.skeleton import of_family

    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.34.0"}
    for name, module in of_family(family).components.items():
        config: Any = module.config
        place = folder / name
        if name == "unet":
            extra = {"sample_size": _LATENTS[family], "in_channels": _CHANNELS[checkpoint.task]}
            values = {key: value for key, value in dict(config).items() if not key.startswith("_")}
            _write(place / "config.json", {**values, **extra, "_class_name": "UNet2DConditionModel"})
            index[name] = ["diffusers", "UNet2DConditionModel"]
            continue
        config.hidden_act = "quick_gelu" if name in _CLIP_L[family] else "gelu"
        config.save_pretrained(place)
        index[name] = ["transformers", type(module).__name__]
        tokenizer = name.replace("text_encoder", "tokenizer")
        write_tokenizer(folder / tokenizer, pad=_END if name in _CLIP_L[family] else "!")
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    _write(folder / "vae" / "config.json", {**_VAES[family], "_class_name": "AutoencoderKL"})
    index["vae"] = ["diffusers", "AutoencoderKL"]
    scheduler, values = _SCHEDULERS[family]
    values = {**values, "_class_name": scheduler}
    if checkpoint.prediction:
        values["prediction_type"] = checkpoint.prediction
    if checkpoint.zero_snr:
        values |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    _write(folder / "scheduler" / "scheduler_config.json", values)
    index["scheduler"] = ["diffusers", scheduler]
    if kind == "StableDiffusionXLInpaintPipeline":
        index["requires_aesthetics_score"] = False
    if family != "SDXL":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    _write(folder / "model_index.json", index)
    return folder


def write_tokenizer(folder: Path, *, pad: str = _END) -> None:
    """Write CLIP's tokenizer as transformers reads it."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer  # noqa: F401 -- a clear ImportError before any file

    merges = gzip.decompress((files("lora_mixer.pictures") / "clip" / "merges.txt.gz").read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_bytes(merges)
    _write(folder / "vocab.json", {word: number for number, word in enumerate(_words(merges.decode()))})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": _START,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": pad,
            "do_lower_case": True,
        },
    )


def _words(merges: str) -> list[str]:
    """Return CLIP's vocabulary in its order: a sign for each byte, the same at the ends of words, merges, two marks."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(shown)
    signs = [chr(number) for number in shown] + [chr(256 + number) for number in range(hidden)]
    joined = [line.replace(" ", "") for line in merges.split("\n")[1:] if line]
    return [*signs, *(f"{sign}</w>" for sign in signs), *joined, _START, _END]


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
