"""Transformers whose layers are packed in a form of their own: an adapter is refused by that, and never loaded in part."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from lora_mixer import LoraMixer, MatchError
from tests.transformers_data import Parts

SIZES = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


class SVDQW4A4Linear(nn.Module):
    """Called and shaped as nunchaku's: packed integers, and a low-rank part; no weight."""

    def __init__(self, old):
        super().__init__()
        self.in_features, self.out_features = old.in_features, old.out_features
        packed = torch.zeros(self.out_features, self.in_features // 2, dtype=torch.int8)
        self.qweight = nn.Parameter(packed, requires_grad=False)
        self.proj_down, self.proj_up = (
            nn.Parameter(torch.zeros(n, 16)) for n in (self.in_features, self.out_features)
        )


class QuantLinear(nn.Module):
    """As GPTQ's."""

    def __init__(self, old):
        super().__init__()
        self.in_features, self.out_features = old.in_features, old.out_features
        self.register_buffer(
            "qweight", torch.zeros(self.in_features // 8, self.out_features, dtype=torch.int32)
        )


class NunchakuFluxTransformer2DModelV2(FluxTransformer2DModel):
    """Called as nunchaku's."""


class NunchakuFluxTransformer2dModel(FluxTransformer2DModel):
    """Called as nunchaku's first one, whose blocks are no modules at all."""


def packed(kind, layer):
    torch.manual_seed(0)
    model = kind(**SIZES).eval()
    if layer is None:
        model.transformer_blocks = model.single_transformer_blocks = nn.ModuleList()
        return model
    for name, old in [*model.named_modules()]:
        if isinstance(old, nn.Linear) and "blocks" in name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer(old))
    return model


def pairs(*names):
    return {
        f"{name}.lora_{end}.weight": torch.ones(size)
        for name in names
        for end, size in (("A", (2, 32)), ("B", (32, 2)))
    }


KINDS = [
    (NunchakuFluxTransformer2DModelV2, SVDQW4A4Linear, r"SVDQW4A4Linear.*update_lora_params"),
    (
        NunchakuFluxTransformer2dModel,
        None,
        r"NunchakuFluxTransformer2dModel .*blocks of its own.*update_lora_params",
    ),
    (FluxTransformer2DModel, SVDQW4A4Linear, r"SVDQW4A4Linear.*GGUF"),
    (FluxTransformer2DModel, QuantLinear, r"QuantLinear.*GGUF"),
]


@pytest.mark.parametrize(
    "names",
    [
        ["transformer.transformer_blocks.0.attn.to_q"],
        ["transformer.transformer_blocks.0.attn.to_q", "transformer.context_embedder"],
        ["lora_unet_double_blocks_0_img_attn_proj", "lora_unet_txt_in"],
        [
            "diffusion_model.single_blocks.0.modulation.lin",
            "diffusion_model.txt_in",
            "diffusion_model.double_blocks.0.txt_attn.proj",
        ],
    ],
)
@pytest.mark.parametrize(("kind", "layer", "said"), KINDS)
def test_an_adapter_for_packed_layers_is_refused_by_their_name(kind, layer, said, names):
    model = packed(kind, layer)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    mixer = LoraMixer(Parts({"transformer": model}))
    with pytest.raises(MatchError, match=rf"of its {len(names)} modules.*{said}.*nothing was changed"):
        mixer.load_lora_weights(pairs(*names), "a")
    assert not mixer.adapters
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize(("kind", "layer", "said"), KINDS)
def test_layers_that_are_not_packed_are_changed(kind, layer, said):
    model = packed(kind, layer)
    before = model.context_embedder.weight.detach().clone()
    mixer = LoraMixer(Parts({"transformer": model}))
    assert mixer.load_lora_weights(pairs("transformer.context_embedder"), "a").complete
    assert torch.allclose(model.context_embedder.weight, before + 2)
    mixer.unload_lora_weights()
    assert torch.equal(model.context_embedder.weight, before)
