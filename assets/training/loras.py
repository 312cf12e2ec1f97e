"""Trains the adapters on the frozen base and writes their raw factors.

    python loras.py --art sprites.npz --tokenizer FOLDER --out WORK pixel neon ...

WORK holds vae, unet and te .safetensors. Each adapter becomes WORK/NAME.raw.safetensors (keys
'unet|module|leaf'), which export.py turns into the shipped formats, and WORK/NAME.png. Adapters
that are there already are skipped, so an interrupted run goes on with the next.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from adapters import Adapter, by_name
from base import step_loss
from data import Art, encode, load_art, looks_and_captions, token_ids
from nets import load_tokenizer, new_scheduler, new_text_encoder, new_unet, new_vae
from peft import LoHaConfig, LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from sample import sheet
from styles import STYLES
from subjects import HELD_OUT
from tokenizer import LENGTH

UNET_TARGETS = (
    r"(down_blocks|mid_block|up_blocks)\..*("
    r"to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2)"
)
TE_TARGETS = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def config(adapter: Adapter, targets: str) -> LoraConfig | LoHaConfig:
    """Alpha equals the rank: the factors stand for themselves."""
    if adapter.layout == "kohya-loha":
        return LoHaConfig(r=adapter.rank, alpha=adapter.rank, target_modules=targets, init_weights=True)
    return LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=targets)


def triggered(rng: random.Random, trigger: str, caption: str) -> str:
    """Three in four captions carry the trigger words; the style is learnt for the rest too."""
    wording = rng.choices(("{t}, {c}", "{c}, {t}", "{t} of {c}", "{c}"), (30, 20, 25, 25))[0]
    return wording.format(t=trigger, c=caption)


def examples(adapter: Adapter, art: Art, vae: Any, each: int) -> tuple[torch.Tensor, list[str]]:
    rng = random.Random(23)
    kept = art.style_subjects()
    names = [art.names[i] for i in kept]
    if adapter.style is not None:
        look, captions = looks_and_captions(names, each, seed=29)
        z = encode(vae, art.sprites[kept], look, STYLES[adapter.style])
        return z, [triggered(rng, adapter.trigger, c) for c in captions]
    # The character under its own name, and the base's art so that other subjects stay as they are.
    look, captions = looks_and_captions(art.mascot_names, each * 4, seed=31, recolour=False)
    z = encode(vae, art.mascots, look)
    few = kept[::4]
    look, others = looks_and_captions([art.names[i] for i in few], each, seed=37)
    return torch.cat([z, encode(vae, art.sprites[few], look)]), captions + others


def raw_factors(nets: dict[str, Any]) -> dict[str, torch.Tensor]:
    out = {}
    for part, net in nets.items():
        for key, value in net.named_parameters():
            if ".default" in key:
                module, _, leaf = key.replace(".default", "").replace(".weight", "").rpartition(".")
                out[f"{part}|{module}|{leaf}"] = value.detach().float().contiguous().cpu()
    return out


def train(adapter: Adapter, a: argparse.Namespace, device: torch.device, art: Art) -> None:
    torch.manual_seed(41)
    tokenizer = load_tokenizer(a.tokenizer)
    unet, te, vae = new_unet().to(device), new_text_encoder(tokenizer).to(device), new_vae().to(device)
    for net, name in ((unet, "unet"), (te, "te"), (vae, "vae")):
        net.load_state_dict(load_file(a.out / f"{name}.safetensors"))
        net.requires_grad_(False)
    acp = new_scheduler().alphas_cumprod.to(device)
    start = time.time()
    z, captions = examples(adapter, art, vae, a.each)
    ids = token_ids(tokenizer, captions, LENGTH).to(device)
    empty = token_ids(tokenizer, [""], LENGTH).to(device)
    print(f"{adapter.name}: {len(z)} latents {time.time() - start:.0f} s; {captions[:3]}", flush=True)

    inject_adapter_in_model(config(adapter, UNET_TARGETS), unet)
    nets: dict[str, Any] = {"unet": unet}
    if adapter.text_encoder:
        inject_adapter_in_model(config(adapter, TE_TARGETS), te)
        nets["te"] = te
    params = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
    print(f"{adapter.name}: {sum(p.numel() for p in params)} parameters", flush=True)
    steps = a.steps or adapter.steps
    opt = torch.optim.AdamW(params, lr=adapter.rate, weight_decay=0.01, betas=(0.9, 0.99))
    g = torch.Generator().manual_seed(43)
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        opt.param_groups[0]["lr"] = adapter.rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        pick = torch.randint(len(z), (a.batch,), generator=g).to(device)
        drop = (torch.rand(a.batch, 1, generator=g) < 0.05).to(device)
        t = torch.randint(1000, (a.batch,), generator=g).to(device)
        loss = step_loss(unet, te, z[pick], torch.where(drop, empty, ids[pick]), t, acp)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{adapter.name} {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
    save_file(raw_factors(nets), a.out / f"{adapter.name}.raw.safetensors")
    head = f"{adapter.trigger} of a " if adapter.style else ""
    prompts = [f"{head}{n}" for n in HELD_OUT[: a.pictures]]
    if adapter.style is None:
        own = [
            "lumo",
            "a lumo waving",
            "sad lumo cheering",
            "lumo on blue background",
            "surprised lumo",
            "emoji of a lumo",
        ]
        prompts = own + prompts[:6]
    sheet(unet, te, vae, tokenizer, prompts, a.out / f"{adapter.name}.png")


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--art", type=Path, required=True)
    ap.add_argument("--tokenizer", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=0, help="for dry runs; else the adapter's own")
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--each", type=int, default=24)
    ap.add_argument("--pictures", type=int, default=24)
    ap.add_argument("names", nargs="+")
    a = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    art = load_art(a.art, device)
    for name in a.names:
        if not (a.out / f"{name}.raw.safetensors").exists():
            train(by_name(name), a, device, art)


if __name__ == "__main__":
    main()
