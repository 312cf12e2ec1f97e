"""Trains the UNet and the text encoder together (v-prediction, zero terminal SNR).

    python base.py --art sprites.npz --tokenizer FOLDER --out WORK --seconds 420

WORK/vae.safetensors must be there (vae.py). With --seconds the number of steps is chosen from the
measured speed and printed; --steps repeats such a run. WORK/base.pt is saved on the way and a new
run goes on from it; --init starts from an exported unet/text encoder with a fresh optimiser.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from data import encode, load_art, looks_and_captions, token_ids
from nets import Average, load_tokenizer, new_scheduler, new_text_encoder, new_unet, new_vae
from safetensors.torch import load_file, save_file
from sample import sheet
from subjects import HELD_OUT, HELD_OUT_PAIRS
from tokenizer import LENGTH
from torch import nn


def step_loss(
    unet: nn.Module, te: nn.Module, z: torch.Tensor, ids: torch.Tensor, t: torch.Tensor, acp: torch.Tensor
) -> torch.Tensor:
    noise = torch.randn_like(z)
    a = acp[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * z + (1 - a).sqrt() * noise
    v = a.sqrt() * noise - (1 - a).sqrt() * z
    with torch.autocast(z.device.type, torch.bfloat16, enabled=z.is_cuda):
        out = unet(noisy, t, te(ids)[0], return_dict=False)[0]
    return (out.float() - v).pow(2).mean()


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--art", type=Path, required=True)
    ap.add_argument("--tokenizer", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=0)
    ap.add_argument("--seconds", type=float, default=0)
    ap.add_argument("--batch", type=int, default=256)
    ap.add_argument("--each", type=int, default=96, help="looks a subject")
    ap.add_argument("--rate", type=float, default=8e-4)
    ap.add_argument("--warmup", type=int, default=200)
    ap.add_argument("--init", action="store_true")
    ap.add_argument("--compile", action="store_true")
    ap.add_argument(
        "--compile-only", action="store_true", help="three steps on noise, to fill the compiler's cache"
    )
    a = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(5)

    tokenizer = load_tokenizer(a.tokenizer)
    unet, te = new_unet().to(device), new_text_encoder(tokenizer).to(device)
    acp = new_scheduler().alphas_cumprod.to(device)
    if a.init:
        unet.load_state_dict(load_file(a.out / "unet.safetensors"))
        te.load_state_dict(load_file(a.out / "te.safetensors"))
    if a.compile_only:
        z = torch.randn(a.batch, 4, 32, 32, device=device)
        ids = torch.zeros(a.batch, LENGTH, dtype=torch.long, device=device)
    else:
        art = load_art(a.art, device)
        vae = new_vae().to(device)
        vae.load_state_dict(load_file(a.out / "vae.safetensors"))
        vae.eval().requires_grad_(False)
        look, captions = looks_and_captions(art.names, a.each, seed=7)
        z = encode(vae, art.sprites, look)
        ids = token_ids(tokenizer, captions, LENGTH).to(device)
        print(
            f"{len(z)} latents, std {z.std():.3f}; such as {captions[:: max(1, len(captions) // 8)]}",
            flush=True,
        )
    empty = token_ids(tokenizer, [""], LENGTH).to(device)

    params = [*unet.parameters(), *te.parameters()]
    opt = torch.optim.AdamW(
        params, lr=a.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=device.type == "cuda"
    )
    ema = Average(params, 0.999)
    first = 0
    saved = a.out / "base.pt"
    if saved.exists() and not a.compile_only:
        state = torch.load(saved, map_location=device)
        (
            unet.load_state_dict(state["unet"]),
            te.load_state_dict(state["te"]),
            opt.load_state_dict(state["opt"]),
        )
        ema.shadow, ema.steps, first = state["shadow"], state["step"], state["step"]
        a.steps = a.steps or state["steps"]
        print(f"going on from step {first}", flush=True)
    run_unet = torch.compile(unet) if a.compile else unet
    total = 3 if a.compile_only else (a.steps or 1 << 30)
    g = torch.Generator().manual_seed(11 + first)
    start = last = time.time()
    step = first
    while step < total:
        if a.seconds and not a.steps and step == 60:  # past compilation: choose the number of steps
            torch.cuda.synchronize() if z.is_cuda else None
            mark = time.time()
        if a.seconds and not a.steps and step == 160:
            torch.cuda.synchronize() if z.is_cuda else None
            total = a.steps = int(160 + (a.seconds - (time.time() - start)) * 100 / (time.time() - mark))
            print(f"{100 / (time.time() - mark):.1f} steps a second: {total} steps", flush=True)
        done = step / total if total < 1 << 30 else 0.0
        lr = (
            a.rate * min(1.0, (step + 1) / a.warmup) * (0.5 * (1 + math.cos(math.pi * min(1.0, done))) + 1e-3)
        )
        opt.param_groups[0]["lr"] = lr
        pick = torch.randint(len(z), (a.batch,), generator=g).to(device, non_blocking=True)
        drop = (torch.rand(a.batch, 1, generator=g) < 0.1).to(device, non_blocking=True)
        t = torch.randint(1000, (a.batch,), generator=g).to(device, non_blocking=True)
        loss = step_loss(run_unet, te, z[pick], torch.where(drop, empty, ids[pick]), t, acp)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        ema.update()
        step += 1
        if step % 250 == 0 or step <= 3:
            print(f"base {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
        if not a.compile_only and time.time() - last > 60 and step < total:
            last = time.time()
            keep = {"unet": unet.state_dict(), "te": te.state_dict(), "opt": opt.state_dict()}
            torch.save({**keep, "shadow": ema.shadow, "step": step, "steps": a.steps}, saved)
            ema.swap()
            export(unet, te, a.out)
            sheet(unet, te, vae, tokenizer, sheet_prompts(), a.out / "base.png")
            ema.swap()
    if a.compile_only:
        return
    ema.swap()
    export(unet, te, a.out)
    saved.unlink(missing_ok=True)
    sheet(unet, te, vae, tokenizer, sheet_prompts(), a.out / "base.png")
    sheet(unet, te, vae, tokenizer, art.names, a.out / "base_all.png", columns=25)
    (a.out / "base.done").write_text(f"{total} steps, {time.time() - start:.0f} s\n")


def sheet_prompts() -> list[str]:
    pairs = [f"a {c} {n}" for c, n in sorted(HELD_OUT_PAIRS)]
    scenes = [
        "owl on a yellow background",
        "emoji of a rocket on blue background",
        "a green bus on pink background",
    ]
    return [
        *(f"a {n}" for n in HELD_OUT),
        *pairs,
        *scenes,
        "a dog",
        "red cat",
        "the sun",
        "ghost",
        "blue dragon",
    ]


def export(unet: nn.Module, te: nn.Module, out: Path) -> None:
    """Half-precision weights; the UNet in two files, since large ones do not leave the GPU machine."""
    for name, net in (("unet", unet), ("te", te)):
        state = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}
        save_file(state, out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
