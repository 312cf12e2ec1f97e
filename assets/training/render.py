"""Renders the chosen Noto Emoji and the mascot to RGBA sprites of 128 px: sprites.npz.

npm pack @iconify-json/noto@1.2.9 && mkdir -p noto && tar xzf iconify-json-noto-1.2.9.tgz -C noto
python render.py noto/package OUT/sprites.npz
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import resvg_py  # resvg-py==0.5.0
from mascot import mascots
from PIL import Image
from subjects import HELD_OUT, chosen

SIZE = 128


def raster(svg: str) -> np.ndarray:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def main(package: Path, out: Path) -> None:
    icons = json.loads((package / "icons.json").read_text())
    categories = json.loads((package / "metadata.json").read_text())["categories"]
    side = icons.get("width", 128)
    sprites, names = [], []
    for icon, name in chosen(categories):
        body = icons["icons"][icon]["body"]
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {side} {side}">{body}</svg>'
        )
        sprites.append(raster(svg))
        names.append(name)
    missing = set(HELD_OUT) - set(names)
    if missing:
        raise SystemExit(f"held-out subjects that were not rendered: {sorted(missing)}")
    drawn = mascots()
    np.savez_compressed(
        out,
        sprites=np.stack(sprites),
        names=np.array(names),
        mascots=np.stack([raster(svg) for svg, _ in drawn]),
        mascot_names=np.array([name for _, name in drawn]),
    )
    print(f"{len(names)} subjects, {len(drawn)} mascots: {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
