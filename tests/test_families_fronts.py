"""What stands before a transformer's modules in files: every front, alone and nested, in either code's names."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from lora_mixer import LoraMixer
from tests.transformers_data import Parts, distance, parts_of, reference

DIFFUSERS = "transformer_blocks.1.attn.to_k"
ORIGINAL = "double_blocks.1.img_attn.qkv"
DOTTED = [
    "",
    "transformer.",
    "unet.",
    "diffusion_model.",
    "model.diffusion_model.",
    "diffusion.model.",
    "net.",
    "dit.",
    "pipe.dit.",
    "conditional_transformer.",
    "base_model.model.",
    "base_model.model.transformer.",
    "transformer.base_model.model.",
    "unet.base_model.model.",
    "transformer.diffusion_model.",
    "base_model.model.transformer.diffusion_model.",
    "module.",
    "_orig_mod.",
    "transformer._orig_mod.",
    "lora_unet_",
]
FLAT = ["lora_unet_", "lora_unet__", "lora_transformer_", "lora_transformer__", "lycoris_"]


@pytest.fixture
def parts(shared_data):
    return parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))


def load(parts, name, ending=""):
    """Load a pair on a module under a name, and check that it changes what it means and nothing else."""
    rows = 84 if "qkv" in name else 28
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, 28, generator=generator)
    before = {key: tensor.clone() for key, tensor in parts.components["transformer"].state_dict().items()}
    mixer = LoraMixer(parts)
    report = mixer.load_lora_weights(
        {f"{name}{ending}.lora_up.weight": up, f"{name}{ending}.lora_down.weight": down}, "a"
    )
    assert report.complete
    change = up.double() @ down.double()
    wanted = dict(zip("qkv", change.chunk(3), strict=True)) if rows == 84 else {"k": change}
    wanted = {f"transformer_blocks.1.attn.to_{x}.weight": rows for x, rows in wanted.items()}
    for key, tensor in parts.components["transformer"].state_dict().items():
        if key in wanted:
            assert distance(tensor.double() - before[key].double(), wanted[key]) < 1e-5
        else:
            assert torch.equal(tensor, before[key])
    mixer.unload_lora_weights()


@pytest.mark.parametrize("name", [DIFFUSERS, ORIGINAL])
@pytest.mark.parametrize("front", DOTTED)
def test_a_dotted_name_is_found_behind_every_front(parts, front, name):
    load(parts, front + name)


@pytest.mark.parametrize("front", ["", "diffusion_model.", "transformer."])
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("down.weight", "up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A", "lora_B"),
    ],
)
def test_keys_of_a_layer_in_xlabs_names_meet_whatever_they_end_with(parts, front, down, up):
    """The number of the stream is a part of the layer's name for a pair's two halves and for its alpha alike."""
    layers = {
        "double_blocks.1.processor.qkv_lora2": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "single_blocks.0.processor.qkv_lora": [f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    }
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(84, 2, generator=generator), torch.randn(2, 28, generator=generator)
    table = {f"{front}{name}.{down}": second for name in layers}
    table |= {f"{front}{name}.{up}": first for name in layers}
    table |= {f"{front}{name}.alpha": torch.tensor(5.0) for name in layers}
    transformer = parts.components["transformer"]
    before = {key: tensor.double() for key, tensor in transformer.state_dict().items()}
    assert LoraMixer(parts).load_lora_weights(table, "a").complete
    for paths in layers.values():
        for path, change in zip(paths, (2.5 * first.double() @ second.double()).chunk(3), strict=True):
            live = transformer.get_submodule(path).weight.double()
            assert distance(live - before[f"{path}.weight"], change) < 1e-5


@pytest.mark.parametrize("ending", ["", "_"])
@pytest.mark.parametrize("name", [DIFFUSERS, ORIGINAL])
@pytest.mark.parametrize("front", FLAT)
def test_a_flat_name_is_found_behind_every_front(parts, front, name, ending):
    load(parts, front + name.replace(".", "_"), ending)


@pytest.mark.parametrize(
    "front",
    [
        "lora_te_",
        "text_encoder.",
        "text_encoders.gemma2_2b.transformer.model.",
        "text_encoders.gemma2_2b.transformer.",
        "text_encoders.qwen3_06b.transformer.model.",
        "base_model.model.text_encoder.",
        "base_model.model.text_encoder.model.",
    ],
)
@pytest.mark.parametrize("root", ["", "model.", "model.language_model.", "language_model."])
def test_a_language_model_that_encodes_text_is_found_whatever_stands_before_its_layers(
    shared_data, front, root
):
    wanted = reference(shared_data, "lumina2/kohya_te_gemma")
    whole = parts_of(shared_data, wanted)
    language = whole.components["text_encoder"]
    assert isinstance(language, transformers.PreTrainedModel)
    encoder: nn.Module = language
    for name in reversed(root.split(".")[:-1]):
        holder = nn.Module()
        holder.add_module(name, encoder)
        encoder = holder
    module = language.get_submodule("layers.1.self_attn.o_proj")
    path = "layers.1.self_attn.o_proj"
    path = path.replace(".", "_") if front.endswith("_") else path
    out, into = module.weight.shape
    before = module.weight.detach().clone()
    mixer = LoraMixer(Parts({"transformer": whole.components["transformer"], "text_encoder": encoder}))

    report = mixer.load_lora_weights(
        {
            f"{front}{path}.lora_up.weight": torch.ones(out, 1),
            f"{front}{path}.lora_down.weight": torch.ones(1, into),
        },
        "a",
    )

    assert report.complete
    assert torch.allclose(module.weight, before + 1)
