"""Writes the shipped pipeline folder and the adapter files from the trained weights.

python export.py --work WORK --tokenizer FOLDER --assets assets
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from adapters import ADAPTERS
from diffusers import StableDiffusionPipeline
from lora_files import WRITERS
from nets import load_tokenizer, new_scheduler, new_text_encoder, new_unet, new_vae
from safetensors.torch import load_file, save_file
from subjects import HELD_OUT


def pipeline(work: Path, tokenizer_folder: Path) -> StableDiffusionPipeline:
    tokenizer = load_tokenizer(tokenizer_folder)
    unet, te, vae = new_unet(), new_text_encoder(tokenizer), new_vae()
    for net, name in ((unet, "unet"), (te, "te"), (vae, "vae")):
        net.load_state_dict(load_file(work / f"{name}.safetensors"))
        net.half().eval()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=te,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def fix_folder(folder: Path, tokenizer_folder: Path) -> None:
    """Makes the text encoder and the tokenizer readable by transformers 4 and 5 alike."""
    weights = folder / "text_encoder" / "model.safetensors"
    state = {
        k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in load_file(weights).items()
    }
    state = {k: v for k, v in state.items() if "position_ids" not in k}
    save_file(state, weights, metadata={"format": "pt"})
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    if "dtype" in config:  # transformers 4 knows it as torch_dtype
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer_folder, folder / "tokenizer")


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", type=Path, required=True)
    ap.add_argument("--tokenizer", type=Path, required=True)
    ap.add_argument("--assets", type=Path, required=True)
    a = ap.parse_args()
    demo, loras = a.assets / "demo", a.assets / "loras"
    pipeline(a.work, a.tokenizer).save_pretrained(demo)
    fix_folder(demo, a.tokenizer)
    loras.mkdir(parents=True, exist_ok=True)
    entries = []
    for adapter in ADAPTERS:
        raw = a.work / f"{adapter.name}.raw.safetensors"
        if not raw.exists():
            print(f"{adapter.name}: not trained, left out")
            continue
        target = loras / adapter.file
        WRITERS[adapter.layout](adapter, load_file(raw), target, demo)
        files = list(target.iterdir()) if target.is_dir() else [target]
        print(f"{adapter.name}: {adapter.layout}, {sum(f.stat().st_size for f in files) / 2**20:.2f} MiB")
        entries.append(
            {
                "name": adapter.name,
                "file": adapter.file,
                "title": adapter.title,
                "format": adapter.layout,
                "trigger": adapter.trigger,
                "rank": adapter.rank,
                "style": adapter.style,
                "text_encoder": adapter.text_encoder,
                "preview": f"{adapter.name}/adapter_model.preview.webp"
                if target.is_dir()
                else f"{adapter.name}.preview.webp",
            }
        )
    table = {"held_out_subjects": list(HELD_OUT), "adapters": entries}
    (loras / "styles.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
