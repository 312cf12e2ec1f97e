"""
Configurations of the base models that single files are made of, so that one file is enough, without the Hub.

A folder as diffusers reads it: model_index.json, a config for each component, CLIP's tokenizer. Shapes of UNets and text
encoders are those that :mod:`lora_mixer.families.skeleton` knows, the rest stands in the families' rows.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SourceNotFoundError
from lora_mixer.families import FAMILIES
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer.pictures.checkpoints import Checkpoint

_CHANNELS = {"text": 4, "edit": 8, "inpainting": 9}
"""What a UNet is given at each step: latents, and what the task adds to them."""
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
    family = checkpoint.family
    row = next((one for one in FAMILIES if one.name == family), None)
    base = None if row is None else row.single_file
    if base is None or checkpoint.task not in base.pipelines:
        known = ", ".join(one.name for one in FAMILIES if one.single_file is not None)
        raise SourceNotFoundError(
            f"its base ({family or 'of unknown kind'}, {checkpoint.task}) is none of those whose "
            f"configuration lora_mixer brings along ({known})",
            file=str(checkpoint.path),
            remedy=Remedy.option("name a diffusers folder that has it", "config"),
        )
    from lora_mixer.families.skeleton import of_family

    kind, more = base.pipelines[checkpoint.task]
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.34.0", **more}
    for name, module in of_family(family).components.items():
        config: Any = module.config
        place = folder / name
        if name == "unet":
            extra = {"sample_size": base.latents, "in_channels": _CHANNELS[checkpoint.task]}
            values = {key: value for key, value in dict(config).items() if not key.startswith("_")}
            _write(place / "config.json", {**values, **extra, "_class_name": "UNet2DConditionModel"})
            index[name] = ["diffusers", "UNet2DConditionModel"]
            continue
        # CLIP-L has its own activation and padding; OpenCLIP's encoders pad with "!"
        config.hidden_act = "quick_gelu" if name in base.clip_l else "gelu"
        config.save_pretrained(place)
        index[name] = ["transformers", type(module).__name__]
        tokenizer = name.replace("text_encoder", "tokenizer")
        write_tokenizer(folder / tokenizer, pad=_END if name in base.clip_l else "!")
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    _write(folder / "vae" / "config.json", {**base.vae, "_class_name": "AutoencoderKL"})
    index["vae"] = ["diffusers", "AutoencoderKL"]
    scheduler, trained = base.scheduler
    values = {**trained, "_class_name": scheduler}
    if checkpoint.prediction:
        values["prediction_type"] = checkpoint.prediction
    if checkpoint.zero_snr:
        values |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    _write(folder / "scheduler" / "scheduler_config.json", values)
    index["scheduler"] = ["diffusers", scheduler]
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
