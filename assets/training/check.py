"""The shipped files in plain diffusers and PEFT against merge.py, on latents: python check.py assets"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from merge import Merged
from peft import LoHaConfig, LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file


def latents(pipe: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return pipe(
        "a rocket", num_inference_steps=2, guidance_scale=3.0, generator=g, output_type="latent"
    ).images


def peft_folder(pipe: Any, folder: Path) -> None:
    inject_adapter_in_model(LoraConfig.from_pretrained(folder), pipe.unet)
    state = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(pipe.unet, {k.removeprefix("base_model.model."): v for k, v in state.items()})


def peft_loha(pipe: Any, path: Path) -> None:
    """diffusers has no LoHa: Kohya names to PEFT's own LoHa layers."""
    names = {p.replace(".", "_"): p for p, _ in pipe.unet.named_modules()}
    with safe_open(path, "pt") as f:
        rank = int(f.metadata()["ss_network_dim"])
    state = {}
    for key, value in load_file(path).items():
        name, _, leaf = key.removeprefix("lora_unet_").rpartition(".")
        if leaf != "alpha":
            state[f"{names[name]}.{leaf}"] = value
    targets = sorted({k.rpartition(".")[0] for k in state})
    inject_adapter_in_model(LoHaConfig(r=rank, alpha=rank, target_modules=targets), pipe.unet)
    set_peft_model_state_dict(pipe.unet, state)


def main(assets: Path) -> None:
    table = json.loads((assets / "loras" / "styles.json").read_text())
    bad = 0
    for e in table["adapters"]:
        path = assets / "loras" / e["file"]
        pipe = DiffusionPipeline.from_pretrained(assets / "demo", torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        base = latents(pipe)
        with Merged(pipe, [(path, 1.0)]):
            ours = latents(pipe)
        assert torch.equal(latents(pipe), base), "merge.py did not restore the weights"
        if path.is_dir():
            peft_folder(pipe, path)
        elif e["format"] == "kohya-loha":
            peft_loha(pipe, path)
        else:
            pipe.load_lora_weights(path)
            te = [n for n, _ in pipe.text_encoder.named_parameters() if "lora_" in n]
            assert bool(te) == e["text_encoder"], f"{e['name']}: text encoder keys were not loaded"
        theirs = latents(pipe)
        moved, apart = (ours - base).norm() / base.norm(), (ours - theirs).norm() / ours.norm()
        ok = apart < 1e-3 and bool(ours.isfinite().all())
        bad += not ok
        print(
            f"{e['name']}: moves the latents by {moved:.3f}, differs from diffusers/PEFT by {apart:.1e} {'' if ok else 'BAD'}",
            flush=True,
        )
    sys.exit(bad)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
