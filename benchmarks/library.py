"""
A library of many adapters: the first scan, opening it again, a search and a page of small pictures, in seconds.

Run ``python -m benchmarks.library`` (``--files 2000``). The files have the headers of real SD 1.x LoRAs (264 modules,
training metadata) and their sizes, as holes on the disk, so that nothing but headers can be read quickly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from PIL import Image

from lora_mixer.library import Library

BLOCKS = {"down_blocks": (320, 640, 1280), "up_blocks": (1280, 640, 320)}


def modules() -> dict[str, tuple[int, int]]:
    """Name the attention layers of SD 1.x as Kohya's trainer does, with their (in, out)."""
    found = {}
    places = [
        (f"{side}_{i}_attentions_{j}", w)
        for side, ws in BLOCKS.items()
        for i, w in enumerate(ws)
        for j in range(2)
    ]
    for place, width in [*places, ("mid_block_attentions_0", 1280)]:
        inner = f"lora_unet_{place}_transformer_blocks_0"
        for attention in ("attn1", "attn2"):
            text = 768 if attention == "attn2" else width
            for name, wide in (("to_q", width), ("to_k", text), ("to_v", text), ("to_out_0", width)):
                found[f"{inner}_{attention}_{name}"] = (wide, width)
        found[f"{inner}_ff_net_0_proj"] = (width, 8 * width)
        found[f"{inner}_ff_net_2"] = (4 * width, width)
    for number in range(12):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"lora_te_text_model_encoder_layers_{number}_self_attn_{name}"] = (768, 768)
        found[f"lora_te_text_model_encoder_layers_{number}_mlp_fc1"] = (768, 3072)
        found[f"lora_te_text_model_encoder_layers_{number}_mlp_fc2"] = (3072, 768)
    return found


def header(name: str, rank: int) -> tuple[bytes, int]:
    """Give a file's header, and how many bytes of tensors it promises."""
    tags = {f"tag {number} of {name}": number for number in range(300)}
    table: dict[str, object] = {
        "__metadata__": {
            "ss_output_name": name,
            "ss_base_model_version": "sd_v1",
            "ss_tag_frequency": json.dumps({"10_x": tags}),
            "modelspec.trigger_phrase": f"{name}, style",
        }
    }
    position = 0

    def add(key: str, shape: list[int]) -> None:
        nonlocal position
        size = 2
        for n in shape:
            size *= n
        table[key] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size

    for module, (into, out) in modules().items():
        add(f"{module}.alpha", [])
        add(f"{module}.lora_down.weight", [rank, into])
        add(f"{module}.lora_up.weight", [out, rank])
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text, position


def fill(folder: Path, count: int) -> int:
    """Write the files, each with a preview; return their whole size."""
    preview = Image.effect_noise((512, 768), 64).convert("RGB")
    total = 0
    for number in range(count):
        name = f"style {number:04}"
        place = folder / f"folder {number % 20}"
        place.mkdir(parents=True, exist_ok=True)
        head, size = header(name, 8 << number % 3)
        with (place / f"{name}.safetensors").open("wb") as stream:
            stream.write(head)
            stream.truncate(len(head) + size)
        total += len(head) + size
        if number < 60:
            preview.save(place / f"{name}.preview.jpg", quality=85)
    return total


def timed(name: str, seconds: float) -> None:
    """Print one figure."""
    print(f"{name:44}{seconds:8.2f} s")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as temporary:
        folder, index = Path(temporary) / "loras", Path(temporary) / "index.sqlite"
        total = fill(folder, count)
        print(
            f"{count} files, {total / 1e9:.0f} GB; {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        )
        start = time.perf_counter()
        found = Library(folder, index=index).refresh()
        timed("first scan (reads every header)", time.perf_counter() - start)
        start = time.perf_counter()
        library = Library(folder, index=index)
        again = library.refresh()
        page = library.search()
        timed("open again: index, refresh, first page", time.perf_counter() - start)
        start = time.perf_counter()
        hits = library.search("style 19", sort="rank", descending=True)
        timed(f"a search with {hits.total} hits", time.perf_counter() - start)
        start = time.perf_counter()
        pictures = sum(library.thumbnail(entry.id) is not None for entry in page.entries)
        timed(f"{pictures} small pictures, made", time.perf_counter() - start)
        start = time.perf_counter()
        for entry in page.entries:
            library.thumbnail(entry.id)
        timed(f"{pictures} small pictures, kept", time.perf_counter() - start)
        assert (found.added, found.unreadable, again.unchanged, page.total) == (count, 0, count, count)  # noqa: S101


if __name__ == "__main__":
    main()
