"""Writers of the adapter files, one for each public format that ships."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from adapters import Adapter
from safetensors.torch import save, save_file

Raw = dict[str, torch.Tensor]
DATE = "2026-11-22"
# The trained modules by the ends of their paths, as PEFT's target_modules have them.
UNET_ENDS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
)
TE_ENDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_KOHYA_PREFIX = {"unet": "lora_unet_", "te": "lora_te_"}


def modules(raw: Raw) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """(part, module path) -> leaf -> tensor; the text encoder's paths start with `text_model.`, as files have it."""
    out: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, value in raw.items():
        part, path, leaf = key.split("|")
        if part == "te" and not path.startswith("text_model."):
            path = f"text_model.{path}"
        out.setdefault((part, path), {})[leaf] = value
    return out


def _half(tensors: Raw) -> Raw:
    return {k: v.half().contiguous() for k, v in tensors.items()}


def model_hash(tensors: Raw) -> str:
    """SHA-256 of the file's bytes after its header, as kohya's scripts and A1111 take it."""
    return hashlib.sha256(_body(save(tensors))).hexdigest()


def _body(data: bytes) -> bytes:
    return data[8 + int.from_bytes(data[:8], "little") :]


def legacy_hash(tensors: Raw, metadata: dict[str, str]) -> str:
    """The old checkpoint hash: 64 KiB at 1 MiB of a file whose header holds the ss_* keys alone."""
    data = save(tensors, metadata={k: v for k, v in metadata.items() if k.startswith("ss_")})
    return hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


def kohya_metadata(adapter: Adapter, tensors: Raw, module: str, args: dict[str, object]) -> dict[str, str]:
    words = [w for w in adapter.trigger.split(", ") if w]
    meta = {
        "ss_output_name": adapter.name,
        "ss_network_module": module,
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(float(adapter.rank)),
        "ss_network_args": json.dumps(args),
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "lora-mixer-demo",
        "ss_v2": "False",
        "ss_v_parameterization": "True",
        "ss_resolution": "(128, 128)",
        "ss_clip_skip": "None",
        "ss_steps": str(adapter.steps),
        "ss_learning_rate": str(adapter.rate),
        "ss_optimizer": "torch.optim.AdamW",
        "ss_mixed_precision": "bf16",
        "ss_seed": "41",
        "ss_tag_frequency": json.dumps({f"1_{adapter.name}": dict.fromkeys(words, 100)}),
        "ss_training_comment": "demo adapter of lora_mixer, trained on Noto Emoji art",
    }
    digest = model_hash(tensors)
    legacy = legacy_hash(tensors, meta)
    meta |= {"sshs_model_hash": digest, "sshs_legacy_hash": legacy}
    meta |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": adapter.title,
        "modelspec.resolution": "128x128",
        "modelspec.author": "the lora_mixer authors",
        "modelspec.description": f"{adapter.title}: a demo adapter of lora_mixer for its own small pipeline",
        "modelspec.date": DATE,
        "modelspec.license": "Apache-2.0",
        "modelspec.trigger_phrase": adapter.trigger,
        "modelspec.tags": ", ".join(["demo", "style" if adapter.style else "character"]),
        "modelspec.prediction_type": "v",
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return meta


def write_kohya(adapter: Adapter, raw: Raw, target: Path, demo: Path) -> None:
    tensors: Raw = {}
    for (part, path), leaves in modules(raw).items():
        name = _KOHYA_PREFIX[part] + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = leaves["lora_A"]
        tensors[f"{name}.lora_up.weight"] = leaves["lora_B"]
        tensors[f"{name}.alpha"] = torch.tensor(float(adapter.rank))
    tensors = _half(tensors)
    # Kohya trains 3x3 convolutions when conv_dim is given.
    args: dict[str, object] = {"conv_dim": str(adapter.rank), "conv_alpha": str(float(adapter.rank))}
    save_file(tensors, target, metadata=kohya_metadata(adapter, tensors, "networks.lora", args))


def write_loha(adapter: Adapter, raw: Raw, target: Path, demo: Path) -> None:
    tensors: Raw = {}
    for (part, path), leaves in modules(raw).items():
        name = _KOHYA_PREFIX[part] + path.replace(".", "_")
        tensors |= {f"{name}.{leaf}": value for leaf, value in leaves.items()}
        tensors[f"{name}.alpha"] = torch.tensor(float(adapter.rank))
    tensors = _half(tensors)
    args: dict[str, object] = {
        "algo": "loha",
        "conv_dim": str(adapter.rank),
        "conv_alpha": str(float(adapter.rank)),
    }
    save_file(tensors, target, metadata=kohya_metadata(adapter, tensors, "lycoris.kohya", args))


def write_peft_folder(adapter: Adapter, raw: Raw, target: Path, demo: Path) -> None:
    """As PEFT's own save_pretrained writes a UNet's adapter."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(demo / "unet", torch_dtype=torch.float16)
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=list(UNET_ENDS))
    config.base_model_name_or_path = "lora-mixer-demo"
    model = get_peft_model(unet, config)
    state = {
        f"base_model.model.{path}.{leaf}.weight": value.half()
        for (_, path), leaves in modules(raw).items()
        for leaf, value in leaves.items()
    }
    set_peft_model_state_dict(model, state)
    model.half().save_pretrained(target)
    # PEFT keeps the targets as a set: give the file one order.
    path = target / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"] = list(UNET_ENDS)
    settings["base_model_name_or_path"] = "lora-mixer-demo"
    path.write_text(json.dumps(settings, indent=2) + "\n")
    readme = f"---\nlibrary_name: peft\ntags: [lora, demo]\n---\n# {adapter.title}\n\nTrigger: `{adapter.trigger}`.\n"
    (target / "README.md").write_text(readme)
    # What libraries show of it, in the form of ComfyUI-Lora-Manager; the header of PEFT's file has no place for it.
    about = {"model_name": adapter.title, "civitai": {"trainedWords": [adapter.trigger]}}
    (target / "adapter_model.metadata.json").write_text(json.dumps(about, indent=2) + "\n")


def write_peft_file(adapter: Adapter, raw: Raw, target: Path, demo: Path) -> None:
    """As diffusers' save_lora_weights writes it, with the adapter's settings in the header."""
    parts = {"unet": "unet", "te": "text_encoder"}
    tensors: Raw = {}
    settings: dict[str, object] = {}
    for (part, path), leaves in modules(raw).items():
        for leaf, value in leaves.items():
            tensors[f"{parts[part]}.{path}.{leaf}.weight"] = value
        settings[f"{parts[part]}.r"] = adapter.rank
        settings[f"{parts[part]}.lora_alpha"] = adapter.rank
        # By their ends: the text encoder's full paths differ between transformers 4 and 5.
        settings[f"{parts[part]}.target_modules"] = list(UNET_ENDS if part == "unet" else TE_ENDS)
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True),
        "modelspec.title": adapter.title,
        "modelspec.trigger_phrase": adapter.trigger,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.license": "Apache-2.0",
    }
    save_file(_half(tensors), target, metadata=metadata)


WRITERS: dict[str, Callable[[Adapter, Raw, Path, Path], None]] = {
    "kohya": write_kohya,
    "kohya-loha": write_loha,
    "peft-folder": write_peft_folder,
    "peft-file": write_peft_file,
}
