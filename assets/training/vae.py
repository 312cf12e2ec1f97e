"""Trains the AutoencoderKL on the art in every style, then normalises its latents.

python vae.py --art sprites.npz --out WORK [--steps 3000]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from augment import compose, random_looks
from data import load_art
from nets import Average, new_vae
from PIL import Image
from safetensors.torch import save_file
from styles import STYLES


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--art", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=3000)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--pictures", type=int, default=1 << 20, help="at most so many; for dry runs")
    ap.add_argument("--rate", type=float, default=1e-3)
    a = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(1)
    art = load_art(a.art, device)
    sprites = torch.cat([art.sprites, art.mascots])
    look = random_looks(len(sprites), 40, torch.Generator().manual_seed(1))
    # Shuffled, since each run of 256 pictures gets one style: no subject may be tied to a style.
    order = torch.randperm(len(look.sprite), generator=torch.Generator().manual_seed(2))[: a.pictures]
    look = look.pick(order)
    styles = [None, None, *STYLES.values()]
    # The pictures fit on the GPU: draw them once instead of at each step.
    pictures = []
    for i, at in enumerate(range(0, len(order), 256)):
        x = compose(sprites, look.part(slice(at, at + 256), device))
        style = styles[i % len(styles)]
        pictures.append(((style(x) if style else x) * 255).round().byte())
    bank = torch.cat(pictures)
    print(f"{len(bank)} pictures", flush=True)

    vae = new_vae().to(device)
    params = list(vae.parameters())
    opt = torch.optim.AdamW(params, lr=a.rate, weight_decay=1e-4, betas=(0.9, 0.99))
    ema = Average(params, 0.998)
    g = torch.Generator().manual_seed(3)
    start = time.time()
    for step in range(a.steps):
        warm = min(1.0, (step + 1) / 100)
        opt.param_groups[0]["lr"] = a.rate * warm * 0.5 * (1 + math.cos(math.pi * step / a.steps))
        pick = torch.randint(len(bank), (a.batch,), generator=g).to(device)
        x = bank[pick].float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            dist = vae.encode(x).latent_dist
            mean, logvar = dist.mean, dist.logvar
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
            y = vae.decode(z).sample
        y, mean, logvar = y.float(), mean.float(), logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        (ax, ay), (bx, by) = gradients(x), gradients(y)
        edge = F.l1_loss(ax, bx) + F.l1_loss(ay, by)
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * edge + 1e-4 * kl
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        ema.update()
        if step % 250 == 0 or step == a.steps - 1:
            print(f"vae {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
    ema.swap()
    normalise(vae, bank)
    report(vae, bank, a.out)
    a.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in vae.state_dict().items()}, a.out / "vae.safetensors")


@torch.no_grad()
def normalise(vae: torch.nn.Module, bank: torch.Tensor) -> None:
    """Folds each latent channel's mean and spread over plain art into the 1x1 convolutions.

    The latents come out with mean 0 and spread 1 and the scaling factor is 1.
    """
    x = bank[:: max(1, len(bank) // 1024)].float() / 127.5 - 1
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])  # type: ignore[operator]
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)  # type: ignore[union-attr, operator, index]
    post.weight *= std.view(1, -1, 1, 1)  # type: ignore[union-attr, operator]
    half = len(mean)
    quant.weight[:half] /= std.view(-1, 1, 1, 1)  # type: ignore[union-attr, operator, index]
    quant.bias[:half] = (quant.bias[:half] - mean) / std  # type: ignore[union-attr, operator, index]
    quant.bias[half:] -= 2 * std.log()  # type: ignore[union-attr, operator, index]


@torch.no_grad()
def report(vae: torch.nn.Module, bank: torch.Tensor, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    x = bank[:: max(1, len(bank) // 64)][:64].float() / 127.5 - 1
    z = vae.encode(x).latent_dist.mean  # type: ignore[operator]
    y = vae.decode(z).sample.clamp(-1, 1)  # type: ignore[operator]
    psnr = (-10 * ((x - y) / 2).pow(2).mean((1, 2, 3)).log10()).mean().item()
    print(f"vae psnr {psnr:.2f} dB, latent std {z.std((0, 2, 3)).tolist()}", flush=True)
    rows = torch.cat([torch.cat(list(p[:16]), 2) for p in (x, y, x[16:], y[16:])], 1)
    Image.fromarray(((rows + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()).save(out / "vae.png")


if __name__ == "__main__":
    main()
