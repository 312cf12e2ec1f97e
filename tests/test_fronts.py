"""What trainers and wrappers put before a module's path: each front reaches the module, and exactly it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MatchError, read_adapter
from tests.small_unets import SD15, build


class Pipe:
    """A pipeline as far as adapters are concerned."""

    device = torch.device("cpu")

    def __init__(self, **parts):
        self.components = parts
        self.__dict__.update(parts)


def block(width=8):
    """A module with paths as models have them."""
    return nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(width, width)})] * 1)})


def pair(key, out=8, inp=8, down="lora_A", up="lora_B", seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        f"{key}.{down}.weight": torch.randn(2, inp, generator=g),
        f"{key}.{up}.weight": torch.randn(out, 2, generator=g),
    }


def change(file):
    down, up = file.values()
    return up.double() @ down.double()


def loads(file, pipe, part, path):
    """Load one pair and compare with its product on the named module; all else stays."""
    before = {
        f"{name}.{key}": value.clone()
        for name, root in pipe.components.items()
        for key, value in root.state_dict().items()
    }
    report = LoraMixer(pipe).load_lora_weights(file, adapter_name="a")
    assert report.complete
    for name, root in pipe.components.items():
        for key, value in root.state_dict().items():
            was = before[f"{name}.{key}"]
            if (name, key) == (part, f"{path}.weight"):
                torch.testing.assert_close(value.double() - was.double(), change(file), rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(value, was), f"{name}.{key}"


DOTTED = (
    "unet.unet.",
    "unet._orig_mod.",
    "unet.module.",
    "unet.module._orig_mod.",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module.unet.",
    "base_model.model.unet.",
    "base_model.model._orig_mod.",
    "base_model.model.module.unet.",
    "unet.base_model.model.",
    "_orig_mod.base_model.model.",
    "model.diffusion_model.",
    "_fsdp_wrapped_module._orig_mod.unet.",
    "_checkpoint_wrapped_module.module.unet.unet.",
)
FLAT = (
    "lora_unet__fsdp_wrapped_module_",
    "lora_unet__orig_mod__fsdp_wrapped_module_",
    "lora_unet__orig_mod_",
    "lora_unet_module_",
    "lora_unet_unet_",
    "lora_unet__",
    "lycoris__orig_mod_",
)
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def pipe():
    return Pipe(unet=build(SD15), text_encoder=block())


@pytest.mark.parametrize("front", DOTTED)
def test_a_dotted_front_is_looked_through(front, pipe):
    o, i = pipe.unet.get_submodule(PATH).weight.shape
    loads(pair(front + PATH, o, i), pipe, "unet", PATH)
    assert "Wan" not in read_adapter(pair(front + PATH, o, i)).base


@pytest.mark.parametrize("front", FLAT)
def test_a_flattened_front_is_looked_through(front, pipe):
    o, i = pipe.unet.get_submodule(PATH).weight.shape
    file = pair(front + PATH.replace(".", "_"), o, i, "lora_down", "lora_up")
    loads(file, pipe, "unet", PATH)
    assert "Wan" not in read_adapter(file).base


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_a_wrapper_around_one_block_is_looked_through(wrapper, pipe):
    o, i = pipe.unet.get_submodule(PATH).weight.shape
    inside = PATH.replace("attentions.0.", f"attentions.0.{wrapper}.")
    loads(pair(f"unet.{inside}", o, i), pipe, "unet", PATH)
    flat = pair("lora_unet_" + inside.replace(".", "_"), o, i, "lora_down", "lora_up")
    loads(flat, Pipe(unet=build(SD15)), "unet", PATH)


@pytest.mark.parametrize("name", ["module", "unet", "transformer", "prior", "controlnet"])
def test_a_models_own_path_may_begin_as_a_front_does(name):
    """A wrapper's or component's name is a module's as well, where the live model says so."""
    model = nn.ModuleDict({name: block()})
    loads(pair(f"{name}.blocks.0.attn"), Pipe(model=model), "model", f"{name}.blocks.0.attn")


COMPONENTS = (
    "prior",
    "transformer_2",
    "controlnet",
    "connectors",
    "text_conditioner",
    "transformer_ref",
    "unet_2",
)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize(
    "spell",
    [
        "{}.blocks.0.attn",
        "lora_{}_blocks_0_attn",
        "base_model.model.{}.blocks.0.attn",
        "{}._orig_mod.blocks.0.attn",
        "module.{}.module.blocks.0.attn",
        "{0}.{0}.blocks.0.attn",
        "{}.base_model.model.blocks.0._fsdp_wrapped_module.attn",
        "lora_{}__orig_mod_blocks_0_attn",
        "lora_{}_module_blocks_0__orig_mod_attn",
    ],
)
def test_the_name_of_any_component_is_a_front(name, spell):
    """Beside a denoiser with the same modules, so that a guess would be ambiguous."""
    parts = {"unet": block()} if name.startswith("unet") else {"transformer": block()}
    loads(pair(spell.format(name)), Pipe(**parts, **{name: block()}), name, "blocks.0.attn")


@pytest.mark.parametrize("front", ["inpainter.", "inpainter._orig_mod.", "module.inpainter.module."])
def test_diffusers_old_processors_are_looked_through_in_any_component(front):
    o, i = build(SD15).get_submodule(PATH).weight.shape
    file = pair(f"{front}{PATH.replace('.to_q', '.processor.to_q_lora')}", o, i, "down", "up")
    loads(file, Pipe(unet=build(SD15), inpainter=build(SD15)), "inpainter", PATH)


def test_two_components_in_one_file_get_their_own():
    pipe = Pipe(transformer=block(), transformer_2=block())
    high, low = pair("transformer.blocks.0.attn", seed=1), pair("transformer_2.blocks.0.attn", seed=2)
    base = {part: getattr(pipe, part)["blocks"][0]["attn"].weight.clone() for part in pipe.components}
    assert LoraMixer(pipe).load_lora_weights({**high, **low}, adapter_name="a").matched == 2
    for part, file in (("transformer", high), ("transformer_2", low)):
        now = pipe.components[part]["blocks"][0]["attn"].weight
        torch.testing.assert_close((now - base[part]).double(), change(file), rtol=1e-5, atol=1e-5)


def test_a_component_that_is_not_here_is_still_named():
    pipe = Pipe(unet=build(SD15))
    with pytest.raises(MatchError, match="the pipeline has no such component"):
        LoraMixer(pipe).load_lora_weights(pair("controlnet.blocks.0.attn"), adapter_name="a")


@pytest.mark.parametrize("copy", ["controlnet", "motion_adapter"])
def test_a_file_without_a_components_name_goes_to_the_denoiser_and_not_to_its_copy(copy):
    loads(
        pair("base_model.model.blocks.0.attn"), Pipe(**{copy: block()}, unet=block()), "unet", "blocks.0.attn"
    )


class Motion(nn.Module):
    """The paths of one motion module of diffusers."""

    def __init__(self):
        super().__init__()
        part = nn.ModuleDict(
            {
                "attn1": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.ModuleList([nn.Linear(8, 8)])}),
                "attn2": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.ModuleList([nn.Linear(8, 8)])}),
                "norm1": nn.LayerNorm(8),
                "norm2": nn.LayerNorm(8),
                "norm3": nn.LayerNorm(8),
            }
        )
        motion = nn.ModuleDict({"proj_in": nn.Linear(8, 8), "transformer_blocks": nn.ModuleList([part])})
        self.mid_block = nn.ModuleDict({"motion_modules": nn.ModuleList([motion])})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("transformer_blocks.0.attention_blocks.0.processor.to_q_lora", "transformer_blocks.0.attn1.to_q"),
        (
            "transformer_blocks.0.attention_blocks.1.processor.to_out_lora",
            "transformer_blocks.0.attn2.to_out.0",
        ),
        ("transformer_blocks.0.attention_blocks.1.to_q.lora", "transformer_blocks.0.attn2.to_q"),
        ("proj_in.lora", "proj_in"),
    ],
)
@pytest.mark.parametrize("front", ["", "module.", "unet."])
def test_motion_modules_are_found_in_the_names_of_animatediffs_own_code(old, new, front):
    root = "mid_block.motion_modules.0."
    loads(
        {
            f"{front}{root}temporal_transformer.{old}.down.weight": torch.randn(2, 8),
            f"{front}{root}temporal_transformer.{old}.up.weight": torch.randn(8, 2),
        },
        Pipe(unet=Motion()),
        "unet",
        root + new,
    )


@pytest.mark.parametrize("norm", [("norms.0", "norm1"), ("norms.1", "norm2"), ("ff_norm", "norm3")])
def test_norms_of_motion_modules_are_found_too(norm):
    unet, (old, new) = Motion(), norm
    key = f"mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.{old}"
    LoraMixer(Pipe(unet=unet)).load_lora_weights({f"{key}.w_norm": torch.full((8,), 0.5)}, adapter_name="a")
    assert torch.equal(
        unet.mid_block.motion_modules[0].transformer_blocks[0][new].weight, torch.full((8,), 1.5)
    )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_out": nn.ModuleList([nn.Linear(8, 8)])})


@pytest.mark.parametrize("leaf", ["to_q", "to_out.0"])
@pytest.mark.parametrize("front", ["transformer.", "", "base_model.model.", "lora_unet_"])
def test_a_denoisers_own_self_attn_to_q_is_found(leaf, front):
    model = nn.ModuleDict({"layers": nn.ModuleList([Attention()])})
    path = f"layers.0.self_attn.{leaf}"
    key = front + (path.replace(".", "_") if front.endswith("_") else path)
    loads(pair(key), Pipe(transformer=model), "transformer", path)


def test_alpha_patterns_name_modules_as_the_file_spells_them(tmp_path):
    from safetensors.torch import save_file

    model = nn.ModuleDict({"layers": nn.ModuleList([Attention()])})
    key = "layers.0.self_attn.to_q"
    file = pair(key)
    meta = {"r": 2, "lora_alpha": 2, "alpha_pattern": {key: 8}}
    save_file(file, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(meta)})
    before = model.layers[0].self_attn.to_q.weight.detach().clone()
    LoraMixer(Pipe(transformer=model)).load_lora_weights(tmp_path / "a.safetensors")
    now = model.layers[0].self_attn.to_q.weight
    torch.testing.assert_close((now - before).double(), 4 * change(file), rtol=1e-5, atol=1e-5)
