"""Real trained files on full-size models: every module matched, mixed, and the base back bit for bit."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

import lora_mixer.ownership
from lora_mixer import LoraMixer, read_adapter
from tests.models import tiny_sd
from tests.spellings import counted_text, counted_unet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

CATUNDCHAT = "catundchat_pytorch_lora_weights.safetensors"
DISNEY = "cloneofsimo_lora_disney.safetensors"


class Filled:
    """Full-size modules whose every weight is a stretch of one random buffer, so that no second copy is needed."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.parts = parts
        generator = torch.Generator().manual_seed(0)
        longest = max(p.numel() for part in parts.values() for p in part.parameters())
        self.buffer = torch.rand(longest + 10_000, generator=generator).sub_(0.5).mul_(0.04)
        with torch.no_grad():
            for name, parameter in self.named():
                parameter.view(-1).copy_(self.base(name))

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for part, module in self.parts.items():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def base(self, name: str) -> torch.Tensor:
        """Give the flat values that a parameter was filled with."""
        if not hasattr(self, "_places"):
            self._places = {n: (number % 10_000, p.numel()) for number, (n, p) in enumerate(self.named())}
        start, size = self._places[name]
        return self.buffer[start : start + size]

    def changed(self) -> set[str]:
        """List the parameters that do not hold what they were filled with."""
        return {name for name, p in self.named() if not torch.equal(p.detach().view(-1), self.base(name))}

    def delta(self, name: str) -> torch.Tensor:
        """Give a parameter's change in fp64."""
        value = dict(self.named())[name].detach()
        return value.double() - self.base(name).view(value.shape).double()


def empty(kind: type, config: Any = None, **fields: Any) -> Any:
    """Make a module without the minutes that initialising hundreds of millions of weights takes."""
    with torch.device("meta"):
        module = kind(config) if config is not None else kind(**fields)
    return module.to_empty(device="cpu").eval()


def unet(width: int, **fields: Any) -> UNet2DConditionModel:
    """Make the UNet of SD 1.5 (width 768) or SD 2.1 (1024)."""
    return empty(UNet2DConditionModel, sample_size=64, cross_attention_dim=width, **fields)


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    """Let a test that failed before it unloaded not keep the others from these models."""
    yield
    lora_mixer.ownership.forget_all()


@pytest.fixture(scope="module")
def clip_l() -> CLIPTextModel:
    """SD 1.x's text encoder, which is SDXL's first as well."""
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    return empty(CLIPTextModel, config)


@pytest.fixture(scope="module")
def sd15(clip_l) -> Iterator[tuple[StableDiffusionPipeline, Filled]]:
    """A pipeline with SD 1.5's own sizes: 860 M and 123 M parameters."""
    small = tiny_sd()
    full = unet(768, attention_head_dim=8)
    assert 859_000_000 < sum(p.numel() for p in full.parameters()) < 860_000_000
    pipe = StableDiffusionPipeline(
        **{**small.components, "unet": full, "text_encoder": clip_l}, requires_safety_checker=False
    )
    yield pipe, Filled({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    del pipe, full
    gc.collect()


def catundchat(folder) -> dict[str, torch.Tensor]:
    """Its deltas in fp64 by parameter, straight from the keys."""
    tensors = load_file(folder / CATUNDCHAT)
    found = {}
    for key, down in tensors.items():
        if key.endswith("_lora.down.weight"):
            up = tensors[key.replace("_lora.down", "_lora.up")]
            module = key.removesuffix("_lora.down.weight").replace(".processor", "")
            found[f"unet.{module}{'.0' if module.endswith('to_out') else ''}.weight"] = (
                up.double() @ down.double()
            )
    assert len(found) * 2 == len(tensors)
    return found


def disney(folder, pipe) -> dict[str, torch.Tensor]:
    """Its deltas in fp64 by parameter; its numbers count modules in the order of 2022."""
    tensors = load_file(folder / DISNEY)
    order = {
        "unet": counted_unet(dict(pipe.unet.named_modules()), geglu=True),
        "text_encoder": counted_text(dict(pipe.text_encoder.named_modules())),
    }
    found = {
        f"{part}.{path}.weight": tensors[f"{part}:{number}:up"].double()
        @ tensors[f"{part}:{number}:down"].double()
        for part, paths in order.items()
        for number, path in enumerate(paths)
    }
    assert len(found) * 2 == sum(not key.startswith("<") for key in tensors)
    return found


def assert_like(change: torch.Tensor, said: dict[str, Any]) -> None:
    """Compare a weight's change with the facts that were noted of it."""
    assert list(change.shape) == said["shape"]
    assert change.norm().item() == pytest.approx(said["fro"], rel=1e-4)  # noted in fp32
    assert change.sum().item() == pytest.approx(said["sum"], abs=2e-4)
    assert change.abs().max().item() == pytest.approx(said["absmax"], rel=1e-5)
    flat = change.flatten()
    assert flat[: len(said["first"])].tolist() == pytest.approx(said["first"], abs=2e-8, rel=1e-5)
    assert flat[-len(said["last"]) :].tolist() == pytest.approx(said["last"], abs=2e-8, rel=1e-5)


def test_two_real_files_on_sd_1_5(sd15, shared_data):
    """Each alone equals the deltas noted of it; both together equal the sum; afterwards nothing has changed."""
    pipe, filled = sd15
    folder = shared_data / "files"
    noted = json.loads((folder / "reference_deltas.json").read_text())

    mixer = LoraMixer(pipe)
    first = mixer.load_lora_weights(folder / CATUNDCHAT, adapter_name="cat")
    assert first.complete
    one = catundchat(folder)
    assert filled.changed() == set(one)
    for name, said in noted[CATUNDCHAT]["layers"].items():
        assert_like(filled.delta(f"unet.{name}"), said)

    second = mixer.load_lora_weights(folder / DISNEY, adapter_name="disney")
    assert second.unmatched == 0
    assert set(second.unused_keys) == {"<s1>", "<s2>"}
    two = disney(folder, pipe)
    names = {
        f"{name.split('.')[0]}:{number}": name
        for name, number in zip(two, [*range(144), *range(48)], strict=True)
    }
    for counted, said in noted[DISNEY]["layers"].items():
        assert_like(filled.delta(names[counted]), said)

    mixer.set_adapters(["cat", "disney"], [0.7, -0.4])
    values = dict(filled.named())
    changed = filled.changed()
    assert changed == set(one) | set(two)
    for name in changed:
        expected = filled.base(name).view(values[name].shape).double()
        for weight, deltas in ((0.7, one), (-0.4, two)):
            if name in deltas:
                expected = expected + weight * deltas[name]
        assert (values[name].detach() - expected).abs().max() < 1e-7, name

    mixer.disable_lora()
    mixer.enable_lora()
    mixer.disable_lora()
    assert filled.changed() == set()
    mixer.unload_lora_weights()
    assert (read_adapter(folder / DISNEY).base, read_adapter(folder / CATUNDCHAT).base) == (
        "SD 1.x",
        "SD 1.x",
    )


def test_a_real_peft_folder_on_a_full_size_clip_l(clip_l, shared_data):
    """SDXL's first text encoder, r 8, alpha 8, q and v."""
    folder = shared_data / "files" / "sdxl_text_encoder_peft"
    filled = Filled({"text_encoder": clip_l})
    tensors = load_file(folder / "adapter_model.safetensors")

    mixer = LoraMixer(clip_l)
    report = mixer.load_lora_weights(folder, adapter_name="a")

    assert report.complete
    assert report.matched == len(tensors) // 2 == 24
    changed = filled.changed()
    # the last layer's ups were never trained: SDXL takes the output of the one before
    assert len(changed) == sum(bool(t.any()) for key, t in tensors.items() if "lora_B" in key) == 22
    for name in changed:
        path = name.removeprefix("text_encoder.").removeprefix("text_model.").removesuffix(".weight")
        (down,) = (t for key, t in tensors.items() if key.endswith(f"{path}.lora_A.weight"))
        (up,) = (t for key, t in tensors.items() if key.endswith(f"{path}.lora_B.weight"))
        assert (filled.delta(name) - up.double() @ down.double()).abs().max() < 1e-8, name
    mixer.unload_lora_weights()
    assert filled.changed() == set()


def test_a_bare_list_of_2022_on_an_sd_2_unet(shared_data):
    """S2: 128 pairs without a name, counted on a UNet of full size (its attention has weights, the rest is not needed)."""
    file = shared_data / "files" / "cloneofsimo_lora_illust.pt"
    with torch.device("meta"):
        full = UNet2DConditionModel(
            sample_size=96,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
    paths = counted_unet(dict(full.named_modules()), geglu=False)
    parts = {path: full.get_submodule(path).to_empty(device="cpu") for path in paths}
    filled = Filled(parts)
    tensors = torch.load(file, weights_only=True, map_location="cpu")

    mixer = LoraMixer(full)
    report = mixer.load_lora_weights(file, adapter_name="a", allow_pickle=True)

    assert report.complete
    assert sorted(report.components[0].matched) == sorted(paths)
    for number, path in enumerate(paths):
        up, down = tensors[2 * number].double(), tensors[2 * number + 1].double()
        assert (filled.delta(f"{path}.weight") - up @ down).abs().max() < 1e-8, path
    mixer.unload_lora_weights()
    assert filled.changed() == set()
    assert read_adapter(file, allow_pickle=True).format == "safeloras"
