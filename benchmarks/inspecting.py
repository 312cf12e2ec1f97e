"""
``lora-mixer inspect`` on a folder of adapters, against the reading of their headers alone.

Both sides run in one process on the same files, in turns; the best of a few rounds counts. The files are Kohya's of
SD 1.x by names (up to 264 modules, 792 tensors with an alpha each), of rank 1 and narrow, so that they fit a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save_file

from lora_mixer import read_adapter
from lora_mixer.formats.header import read_header
from lora_mixer.memory import paused_gc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UNET = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_q", "attn2_to_k")
_UNET += ("attn2_to_v", "attn2_to_out_0", "ff_net_0_proj", "ff_net_2")
_TEXT = (
    "self_attn_q_proj",
    "self_attn_k_proj",
    "self_attn_v_proj",
    "self_attn_out_proj",
    "mlp_fc1",
    "mlp_fc2",
)


def modules() -> list[str]:
    """Spell the 264 modules that Kohya's scripts train on SD 1.x."""
    blocks = [f"down_blocks_{b}_attentions_{i}" for b in range(3) for i in range(2)]
    blocks += ["mid_block_attentions_0"]
    blocks += [f"up_blocks_{b}_attentions_{i}" for b in range(1, 4) for i in range(3)]
    names = [f"lora_unet_{block}_transformer_blocks_0_{layer}" for block in blocks for layer in _UNET]
    names += [f"lora_unet_{block}_proj_{end}" for block in blocks for end in ("in", "out")]
    return names + [f"lora_te_text_model_encoder_layers_{n}_{layer}" for n in range(12) for layer in _TEXT]


def make(folder: Path, count: int) -> list[Path]:
    """Write the adapters, of eight lists of keys in turn: all modules, or without some, in Kohya's or PEFT's names."""
    tables = []
    for number in range(8):
        names = [name for name in modules() if number % 4 != 1 or "_te_" not in name]
        names = [name for name in names if number % 4 != 2 or "_ff_" not in name]
        names = [name for name in names if number % 4 != 3 or "proj_" not in name]
        down, up = (
            (".lora_A.weight", ".lora_B.weight") if number >= 4 else (".lora_down.weight", ".lora_up.weight")
        )
        table = {}
        for name in names:
            wide = 768 if "attn2_to_k" in name else 16
            table[name + down] = torch.randn(1, wide, dtype=torch.float16)
            table[name + up] = torch.randn(16, 1, dtype=torch.float16)
            table[f"{name}.alpha"] = torch.tensor(1.0, dtype=torch.float16)
        tables.append(table)
    tags = json.dumps({"10_cat": {f"tag {n}": n for n in range(200)}})
    metadata = {"ss_base_model_version": "sd_v1", "ss_network_dim": "1", "ss_tag_frequency": tags}
    paths = [folder / f"style {number:04d}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        save_file(tables[number % len(tables)], path, {**metadata, "ss_output_name": f"style {number}"})
    return paths


def plain_json(path: Path) -> int:
    """Parse the header and check nothing."""
    with path.open("rb") as stream:
        return len(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))


def library(path: Path) -> int:
    """Read names, dtypes, shapes and metadata through the safetensors library."""
    with safetensors.safe_open(path, "pt") as opened:
        opened.metadata()
        return len([(part.get_dtype(), part.get_shape()) for part in map(opened.get_slice, opened.keys())])


def checked(path: Path) -> int:
    """Read a header as this package does: every entry checked before anything is believed; no garbage collection."""
    with paused_gc(), path.open("rb") as stream:
        return len(read_header(stream, str(path)).tensors)


def inspected(path: Path) -> int:
    """Describe an adapter as ``inspect`` does: all of the above, algorithms, ranks, alphas, family, words, sidecars."""
    return sum(read_adapter(str(path)).components.values())


SIDES: tuple[tuple[str, Callable[[Path], int]], ...] = (
    ("header as JSON, unchecked", plain_json),
    ("header by the safetensors library", library),
    ("header, checked (read_header)", checked),
    ("inspect (read_adapter)", inspected),
)


_CHUNK = 40  # files that each side reads in turn: what else the machine does then hits all sides


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), chosen.files)
        total = dict.fromkeys((name for name, _ in SIDES), 0.0)
        for first in range(0, len(paths), _CHUNK):
            chunk = paths[first : first + _CHUNK]
            best = dict.fromkeys(total, float("inf"))
            for _ in range(chosen.rounds):
                for name, job in SIDES:
                    start = time.process_time()
                    for path in chunk:
                        job(path)
                    best[name] = min(best[name], time.process_time() - start)
            for name, seconds in best.items():
                total[name] += seconds
    print(
        f"{chosen.files} files of up to {3 * len(modules())} tensors, Python {platform.python_version()}, "
        f"CPU time, best of {chosen.rounds} rounds"
    )
    for name, seconds in total.items():
        ratios = ", ".join(f"{seconds / total[other]:.2f}" for other, _ in SIDES[:-1])
        print(
            f"{name:36} {seconds:7.2f} s  {seconds / chosen.files * 1e3:6.2f} ms a file  times the headers: {ratios}"
        )


if __name__ == "__main__":
    main()
