"""The same files and mixes through diffusers' own loader and through ``LoraMixer`` make the same pictures."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from lora_mixer import LoraMixer
from tests.models import tiny_sd, tiny_sdxl
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLOSE = 1e-4  # largest difference of pictures that are the same
FAR = 1e-2  # smallest difference of pictures that are not

MIXES: list[tuple[list[str], Any]] = [
    (["kohya"], [1.0]),
    (["peft"], [1.0]),
    (["peft"], [-0.7]),
    (["kohya", "peft"], [0.6, 0.4]),
    (["peft", "kohya"], [-0.5, 0.9]),
    (["kohya", "peft"], [{"unet": 0.8, "text_encoder": 0.3}, {"unet": -0.4, "text_encoder": 1.2}]),
]


def picture(pipe: Any) -> np.ndarray:
    """Make one small picture, always from the same noise."""
    return pipe(
        "a castle",
        num_inference_steps=2,
        guidance_scale=3.0,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]


def parts(pipe: Any) -> dict[str, torch.nn.Module]:
    return {
        n: m
        for n, m in pipe.components.items()
        if n == "unet" or (n.startswith("text_enc") and m is not None)
    }


def kohya_file(pipe: Any, path: Path) -> Path:
    """Write a LoRA as kohya's scripts do: UNet attention and convolutions, all text encoders, alpha half the rank."""
    generator = torch.Generator().manual_seed(1)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if hasattr(pipe, "text_encoder_2"):
        prefixes["text_encoder"] = "lora_te1"
    table: dict[str, torch.Tensor] = {}
    for component, root in parts(pipe).items():
        for name, module in root.named_modules():
            # diffusers reads text encoders right only where all four of an attention are there
            if not name.endswith(("to_q", "to_k", "to_v", "to_out.0", "conv1", "_proj", "fc1")):
                continue
            if "attn" not in name and name.endswith("_proj"):
                continue
            if component != "unet" and not name.startswith("text_model."):
                name = f"text_model.{name}"  # noqa: PLW2901 -- as the files have it
            key = f"{prefixes[component]}_{name.replace('.', '_')}"
            shape = module.weight.shape
            table[f"{key}.lora_down.weight"] = 0.25 * torch.randn(4, *shape[1:], generator=generator)
            up = 0.25 * torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=generator)
            table[f"{key}.lora_up.weight"] = up
            table[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(table, path, {"ss_network_dim": "4", "ss_network_alpha": "2"})
    return path


def peft_file(make: Callable[[], Any], path: Path) -> Path:
    """Let PEFT write a LoRA, in diffusers' layout and with its configuration in the header."""
    table, configs = {}, {}
    for component, root in parts(make()).items():
        targets = ["to_q", "to_v", "conv2"] if component == "unet" else ["k_proj", "out_proj"]
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
        torch.manual_seed(2)
        model = peft.inject_adapter_in_model(config, root)
        state = get_peft_model_state_dict(model, adapter_name="default")
        table.update({f"{component}.{key}": value.contiguous() for key, value in state.items()})
        plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
        configs.update({f"{component}.{key}": value for key, value in plain.items()})
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(configs, default=str)}
    save_file(table, path, header)
    return path


@pytest.fixture(scope="module", params=["sd", "sdxl", "shared sd", "shared sdxl"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Two pipelines of equal weights, one with diffusers' adapters loaded and one with a mixer, and the mixer."""
    kind = request.param
    if kind.startswith("shared "):
        shared = request.getfixturevalue("shared_data")
        name = f"tiny-{kind.removeprefix('shared ')}"
        of = StableDiffusionXLPipeline if kind.endswith("xl") else StableDiffusionPipeline

        def make() -> Any:
            more = {} if kind.endswith("xl") else {"safety_checker": None, "requires_safety_checker": False}
            return of.from_pretrained(shared / name, local_files_only=True, **more)
    else:
        make = tiny_sdxl if kind == "sdxl" else tiny_sd
    folder = tmp_path_factory.mktemp("files")
    theirs, ours = make(), make()
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    picture(ours)  # transformers puts its own hooks on text encoders at the first call
    clean = Snapshot.of(ours)
    files = {
        "kohya": kohya_file(ours, folder / "kohya.safetensors"),
        "peft": peft_file(make, folder / "peft.safetensors"),
    }
    mixer = LoraMixer(ours)
    for name, file in files.items():
        with warnings.catch_warnings():  # PEFT warns of every second adapter
            warnings.simplefilter("ignore")
            theirs.load_lora_weights(folder, weight_name=file.name, adapter_name=name)
        assert mixer.load_lora_weights(file, adapter_name=name).complete
    return theirs, mixer, clean


@pytest.mark.parametrize(("names", "weights"), MIXES)
def test_the_same_mix_makes_the_same_picture(pair: Any, names: list[str], weights: Any) -> None:
    theirs, mixer, _ = pair
    mixer.disable_lora()
    base = picture(mixer.pipe)

    theirs.set_adapters(names, weights)
    mixer.set_adapters(names, weights)

    image = picture(mixer.pipe)
    assert np.abs(image - picture(theirs)).max() <= CLOSE
    assert np.abs(image - base).max() > FAR
    assert mixer.get_active_adapters() == theirs.get_active_adapters()


def test_both_list_the_same_adapters(pair: Any) -> None:
    theirs, mixer, _ = pair

    assert mixer.get_list_adapters() == theirs.get_list_adapters()


def test_after_disable_the_picture_is_that_of_the_base_to_the_byte(pair: Any) -> None:
    theirs, mixer, clean = pair
    mixer.disable_lora()
    base = picture(mixer.pipe)
    mixer.set_adapters(["kohya", "peft"], [0.6, -0.4])
    assert np.abs(picture(mixer.pipe) - base).max() > FAR

    mixer.disable_lora()
    theirs.disable_lora()
    try:
        assert picture(mixer.pipe).tobytes() == base.tobytes()
        # another pipeline's weights lie elsewhere in memory, and some builds of torch sum in another order there
        assert np.abs(picture(theirs) - base).max() < CLOSE
    finally:
        theirs.enable_lora()
    clean.assert_untouched(mixer.pipe)
