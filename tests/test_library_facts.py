"""What a library tells about adapters and bases: whether they fit, and how strong each block is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lora_mixer import demo_adapters, load_demo, read_adapter
from lora_mixer.library import Entry, base_family, compatible, layer_norms
from lora_mixer.library.norms import block_of, change_norm, pair_norm


def entry(base, **more):
    return Entry("1", "x", Path("x.safetensors"), Path(), base=base, **more)


class FluxTransformer2DModel(nn.Linear):
    """A module of that name, as diffusers has one."""


class Pipe:
    def __init__(self, **components):
        self.components = components


def unet_of_width(width):
    unet = nn.Linear(2, 2)
    unet.config = type("Config", (), {"cross_attention_dim": width})()
    return Pipe(unet=unet)


@pytest.mark.parametrize(
    ("width", "family"),
    [
        (768, "SD 1.x"),
        (1024, "SD 2.x"),
        (2048, "SDXL"),
        ((1280, 1280), "SDXL refiner"),
        (77, "UNet with cross-attention 77"),
        (None, "unknown"),
    ],
)
def test_a_unets_family_is_known_by_the_text_it_attends_to(width, family):
    assert base_family(unet_of_width(width)) == family


def test_a_transformers_family_is_known_by_its_class():
    assert base_family(Pipe(transformer=FluxTransformer2DModel(2, 2))) == "Flux.1"
    assert base_family(Pipe(transformer=nn.Linear(2, 2))) == "unknown"


def test_the_demos_adapters_are_for_the_demo():
    base = base_family(load_demo())

    for adapter in demo_adapters().values():
        assert compatible(entry(read_adapter(adapter.path).base), base) == (True, "")


@pytest.mark.parametrize(
    ("own", "base", "fits", "reason"),
    [
        ("SDXL", "SDXL", True, ""),
        ("SDXL", "SD 1.x", False, "made for SDXL, this pipeline is SD 1.x"),
        ("SD 1.x or SDXL", "SDXL", True, ""),
        ("SD 1.x or SDXL", "SD 2.x", False, "made for SD 1.x or SDXL"),
        ("Flux.1 or Flux.2", "Flux.2", True, ""),
        ("unknown", "SDXL", True, "does not say"),
        ("SDXL", "unknown", True, "no known family"),
    ],
)
def test_reasons_are_in_words(own, base, fits, reason):
    found = compatible(entry(own), base)

    assert found.fits is fits
    assert reason in found.reason
    assert bool(found.reason) is bool(reason)


def test_what_is_broken_or_away_does_not_fit():
    assert compatible(entry("SDXL", problem="truncated"), "SDXL") == (False, "truncated")
    assert "is away" in compatible(entry("SDXL", offline=True), "SDXL").reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 7, 3), (3, 5, 1), (64, 32, 8)])
def test_the_core_gives_the_norm_of_the_whole_product(shape, dtype):
    out, into, rank = shape
    generator = torch.Generator().manual_seed(0)
    up, down = (
        torch.randn(out, rank, generator=generator).to(dtype),
        torch.randn(rank, into, generator=generator).to(dtype),
    )

    expected = float((-0.3 * up.double() @ down.double()).norm())

    assert pair_norm(up, down, -0.3) == pytest.approx(expected, rel=1e-12)


ADDITIVE = ("lora", "loha", "lokr", "full", "adalora")


def test_norms_of_every_reference_file_are_those_of_its_changes(shared_data):
    """Against the dense change of each layer, for the algorithms whose change is the same on every base."""
    from lora_mixer.formats import read_source
    from lora_mixer.sources import resolve_source

    seen = {}
    files = sorted((shared_data / "generated").rglob("*.safetensors"))
    for path in files:
        if path.name.startswith(("golden", "inputs", "base_outputs")):
            continue
        for layer in read_source(resolve_source(path)).layers[:6]:
            weights = layer.weights
            norm = change_norm(weights)
            if norm is None or weights.algorithm not in ADDITIVE:
                continue
            shape = _shape(weights)
            change = weights.delta(torch.zeros(shape, dtype=torch.float64), 1.0)
            assert norm == pytest.approx(float(change.norm()), rel=1e-5), path
            seen[weights.algorithm] = seen.get(weights.algorithm, 0) + 1

    assert {"lora", "loha", "lokr", "full"} <= set(seen), seen
    assert min(seen.values()) >= 3


def _shape(weights):
    if weights.algorithm == "lora":
        return weights.shape
    if weights.algorithm == "full":
        return tuple(weights.weight.shape)
    if weights.algorithm == "adalora":
        return weights.up.shape[0], weights.down.shape[1]
    if weights.algorithm == "loha":
        (a, b), _ = weights._pairs()
        return a.shape[0], b.shape[1]
    (a, c), (b, d) = weights._outer(), weights._inner_size()
    return a * b, c * d


def test_layers_sum_up_to_blocks_in_squares():
    def pair(name, up, down):
        return {
            f"{name}.lora_up.weight": torch.full((1, 1), up),
            f"{name}.lora_down.weight": torch.full((1, 1), down),
        }

    found = layer_norms(
        pair("lora_unet_down_blocks_1_attentions_0_proj_in", 3.0, 1.0)
        | pair("lora_unet_down_blocks_1_attentions_1_proj_in", 2.0, 2.0)
        | pair("lora_unet_mid_block_attentions_0_proj_in", 1.0, -7.0)
        | pair("lora_te_text_model_encoder_layers_3_mlp_fc1", 0.5, 1.0)
    )

    assert found.blocks == pytest.approx({"unet down 1": 5.0, "unet mid": 7.0, "text_encoder layers 3": 0.5})
    assert len(found.layers) == 4
    assert found.unknown == {}


def test_layers_whose_change_depends_on_the_base_are_counted_by_algorithm():
    name = "lora_unet_mid_block_attentions_0_proj_in"
    found = layer_norms(
        {
            f"{name}.lora_up.weight": torch.ones(4, 2),
            f"{name}.lora_down.weight": torch.ones(2, 4),
            f"{name}.dora_scale": torch.ones(4, 1),
        }
    )

    assert found.blocks == {}
    assert found.unknown == {"dora, lora": 1}


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("up_blocks.2.resnets.1.conv1", "up 2"), ("up_blocks_2_resnets_1_conv1", "up 2"), ("mid_block.resnets.0.conv1", "mid"),
        ("input_blocks_4_1_proj_in", "input 4"), ("middle_block_1_proj_in", "mid"), ("conv_in", "other"),
        ("double_blocks_11_img_attn_qkv", "double_blocks 11"), ("single_transformer_blocks.3.attn.to_q", "single_transformer_blocks 3"),
        ("text_model_encoder_layers_11_mlp_fc1", "layers 11"), ("time_embedding.linear_1", "other"),
    ],
)  # fmt: skip
def test_blocks_are_known_in_every_spelling(module, block):
    assert block_of(module) == block
