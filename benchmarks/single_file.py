"""
Write a full-size SD 1.5 or SDXL checkpoint with random weights, in one file in the original code's names, and adapters for it.

Run ``python -m benchmarks.single_file --size sdxl --device cuda --adapters 20 FOLDER``: ``FOLDER/sdxl.safetensors`` and
``FOLDER/loras/style00.safetensors``, ... Sizes: ``sd15``, ``sdxl``, and ``small`` (a few MB, with its configuration beside it).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.models import _filled, write_kohya
from lora_mixer.families.skeleton import of_family
from lora_mixer.pictures.base_configs import write_config_folder
from lora_mixer.pictures.checkpoints import Checkpoint
from tests import single_files
from tests.models import tiny_sdxl

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {"sd15": "SD 1.x", "sdxl": "SDXL"}
SIZES = (*FAMILIES, "small")


def parts(size: str, device: str, dtype: torch.dtype) -> Any:
    """Build the modules of a full-size pipeline, filled with small random numbers; no tokenizer and no scheduler."""
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        write_config_folder(Checkpoint(Path("x.safetensors"), "pipeline", FAMILIES[size]), Path(folder))
        read = {
            name: json.loads((Path(folder) / name / "config.json").read_text()) for name in ("unet", "vae")
        }
    unets: Any = diffusers.UNet2DConditionModel
    vaes: Any = diffusers.AutoencoderKL
    made: dict[str, nn.Module] = {
        "unet": _filled(lambda: unets.from_config(read["unet"]), device, dtype),
        "vae": _filled(lambda: vaes.from_config(read["vae"]), device, dtype),
    }
    for name, module in of_family(FAMILIES[size]).components.items():
        if name.startswith("text_encoder"):
            made[name] = _filled(lambda whole=module: whole, device, dtype)  # type: ignore[misc]
    return SimpleNamespace(**made, components=made)


def write(size: str, folder: Path, device: str, adapters: int) -> Path:
    """Write the checkpoint and its adapters where they are not there yet, and return the checkpoint."""
    torch.manual_seed(0)
    file, loras = folder / f"{size}.safetensors", folder / "loras"
    wanted = [loras / f"style{number:02}.safetensors" for number in range(adapters)]
    if file.is_file() and all(path.is_file() for path in wanted):
        return file
    loras.mkdir(parents=True, exist_ok=True)
    if size == "small":
        pipe: Any = tiny_sdxl().to(torch.float32)
        single_files.write_checkpoint(pipe, file)
    else:
        pipe = parts(size, device, torch.float16)
        single_files.save(single_files.pipeline_tensors(pipe), file)
    for number, path in enumerate(wanted):
        write_kohya(pipe, path, number)
    return file


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--adapters", type=int, default=20)
    given = parser.parse_args()
    file = write(given.size, given.folder, given.device, given.adapters)
    print(
        f"{file}: {file.stat().st_size / 1e9:.2f} GB, {given.adapters} adapters in {given.folder / 'loras'}"
    )


if __name__ == "__main__":
    main()
