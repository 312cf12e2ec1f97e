"""Adapters for transformers on bases in other shapes: quantised, stored in 8 bits, fused, compiled, in each order."""

from __future__ import annotations

import warnings

import diffusers
import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer
from tests.test_beside_quantised import quanto, torchao
from tests.transformers_data import Parts

WIDTH = 64
RANK = 3


def flux():
    torch.manual_seed(0)
    return (
        diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(8, 12, 12),
        )
        .eval()
        .requires_grad_(requires_grad=False)
    )


def inputs():
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 6, 16, generator=g),
        "encoder_hidden_states": torch.randn(1, 4, 32, generator=g),
        "pooled_projections": torch.randn(1, 32, generator=g),
        "timestep": torch.tensor([0.4]),
        "img_ids": torch.randn(6, 3, generator=g).round(),
        "txt_ids": torch.zeros(4, 3),
    }


def run(model):
    with torch.no_grad():
        return model(**inputs(), return_dict=False)[0]


LAYERS = {
    "double_blocks.0.img_attn.qkv": ["transformer_blocks.0.attn.to_q", ".to_k", ".to_v"],
    "double_blocks.0.txt_attn.qkv": ["transformer_blocks.0.attn.add_q_proj", ".add_k_proj", ".add_v_proj"],
    "single_blocks.0.linear1": [
        *("single_transformer_blocks.0.attn.to_q", ".to_k", ".to_v"),
        "single_transformer_blocks.0.proj_mlp",
    ],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
}
"""The original's layers, and the live modules that share their rows."""


def paths(layer):
    first, *others = LAYERS[layer]
    parent = first.rpartition(".")[0]
    return [first, *(parent + path if path.startswith(".") else path for path in others)]


def sizes(layer):
    live = flux()
    return [live.get_submodule(path).weight.shape for path in paths(layer)]


def pairs():
    """Make a pair for each of the original's layers."""
    g = torch.Generator().manual_seed(2)
    table = {}
    for layer in LAYERS:
        shapes = sizes(layer)
        down = torch.randn(RANK, shapes[0][1], generator=g) / 8
        table[layer] = torch.randn(sum(shape[0] for shape in shapes), RANK, generator=g) / 3, down
    return table


def fused_file():
    table = {}
    for layer, (up, down) in pairs().items():
        table[f"diffusion_model.{layer}.lora_B.weight"] = up
        table[f"diffusion_model.{layer}.lora_A.weight"] = down
    return table


def split_file():
    table = {}
    for layer, (up, down) in pairs().items():
        start = 0
        for path, shape in zip(paths(layer), sizes(layer), strict=True):
            table[f"transformer.{path}.lora_B.weight"] = up[start : start + shape[0]].clone()
            table[f"transformer.{path}.lora_A.weight"] = down.clone()
            start += shape[0]
    return table


def lokr_file():
    """The same layers as Kronecker products, whose blocks lie across the modules' rows."""
    g = torch.Generator().manual_seed(3)
    table = {}
    for layer in LAYERS:
        rows, columns = sum(shape[0] for shape in sizes(layer)), sizes(layer)[0][1]
        table[f"diffusion_model.{layer}.lokr_w1"] = torch.randn(4, 2, generator=g) / 3
        table[f"diffusion_model.{layer}.lokr_w2"] = torch.randn(rows // 4, columns // 2, generator=g) / 3
    return table


def dora_file():
    """Lengths of inputs over whole fused layers: all parts' weights are needed."""
    g = torch.Generator().manual_seed(4)
    lengths = {
        f"diffusion_model.{layer}.dora_scale": torch.rand(1, sizes(layer)[0][1], generator=g) + 0.5
        for layer in LAYERS
    }
    return fused_file() | lengths


def oft_file():
    """Rotations whose blocks lie across the modules' rows."""
    g = torch.Generator().manual_seed(5)
    table = {}
    for layer in LAYERS:
        rows = sum(shape[0] for shape in sizes(layer))
        size = next(n for n in (7, 5, 3, 6, 12, 4) if rows % n == 0)
        blocks = torch.randn(rows // size, size, size, generator=g) / 4
        table[f"diffusion_model.{layer}.oft_blocks"] = blocks
        table[f"diffusion_model.{layer}.alpha"] = torch.tensor(0.0)
    return table


FILES = {
    "fused pairs": fused_file,
    "split pairs": split_file,
    "lokr": lokr_file,
    "dora": dora_file,
    "oft": oft_file,
}


def linears(model):
    kinds = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return [(name, layer) for name, layer in kinds if "blocks" in name and "norm" not in name]


def put(model, name, layer):
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def bnb(kind, **arguments):
    def quantise(model):
        import bitsandbytes

        for name, old in linears(model):
            new = getattr(bitsandbytes.nn, kind)(old.in_features, old.out_features, **arguments)
            new.load_state_dict(old.state_dict())
            put(model, name, new.to("cpu"))

    return quantise


def by_gguf(model):
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    for name, old in linears(model):
        packed = gguf.quants.quantize(old.weight.numpy(), kind)
        new = GGUFLinear(old.in_features, old.out_features, bias=True, compute_dtype=torch.float32)
        new.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
        new.bias = old.bias
        put(model, name, new)


def in_blocks(quantise):
    """Quantise the layers of blocks alone, as pipelines do."""

    def apply(model):
        for name, block in model.named_children():
            if name.endswith("blocks"):
                quantise(block)

    return apply


def layerwise(model):
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


BASES = {
    "bitsandbytes nf4": bnb("Linear4bit", quant_type="nf4"),
    "bitsandbytes int8": bnb("Linear8bitLt", has_fp16_weights=False),
    "gguf q8": by_gguf,
    "torchao int8": in_blocks(torchao("Int8WeightOnlyConfig")),
    "torchao float8": in_blocks(torchao("Float8WeightOnlyConfig")),
    "quanto int8": in_blocks(quanto("qint8")),
    "quanto float8": in_blocks(quanto("qfloat8")),
    "fp8 layerwise": layerwise,
}
LOOSE = {"bitsandbytes int8": 3e-2}
"""Whose layers round their inputs, so that what stands behind a layer that changed is another number."""


def made(base):
    model = flux()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BASES[base](model)
    return model


def effective(model):
    """Give a plain model whose weights are what the layers of another compute with, told by unit vectors."""
    plain = flux()
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            live = model.get_submodule(name)
            with torch.no_grad():
                bias = live(torch.zeros(1, layer.in_features))
                columns = live(torch.eye(layer.in_features)) - bias  # (in, out)
                layer.weight.copy_(columns.T)
                layer.bias.copy_(bias[0])
    return plain


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("base", BASES)
def test_a_quantised_base_gives_what_its_unpacked_weights_and_the_change_give(base, file):
    model = made(base)
    before = run(model)
    plain = effective(model)
    reference = LoraMixer(Parts({"transformer": plain}))
    reference.load_lora_weights(FILES[file](), "a")
    mixer = LoraMixer(Parts({"transformer": model}))

    mixer.load_lora_weights(FILES[file](), "a")
    mixer.set_adapters("a", 0.8)
    mixed = run(model)
    mixer.disable_lora()

    assert torch.equal(run(model), before)
    reference.set_adapters("a", 0.8)
    expected = run(plain)
    assert (expected - before).norm() > 0.01 * before.norm()
    assert (mixed - expected).norm() < LOOSE.get(base, 1e-4) * (expected - before).norm()
    mixer.unload_lora_weights()
    assert torch.equal(run(model), before)
    assert all(not module._forward_hooks for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("file", ["fused pairs", "split pairs", "lokr", "dora"])
@pytest.mark.parametrize("order", ["fused before", "fused while mixed"])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_projections_fused_before_and_while_mixed(file, order, engine):
    model, plain = flux(), flux()
    reference = LoraMixer(Parts({"transformer": plain}))
    reference.load_lora_weights(FILES[file](), "a")
    reference.set_adapters("a", 0.8)
    base = run(flux())
    mixer = LoraMixer(Parts({"transformer": model}))
    if order == "fused before":
        model.fuse_qkv_projections()
    mixer.load_lora_weights(FILES[file](), "a")
    mixer.set_mix({"a": 0.8}, engine=engine)
    if order == "fused while mixed":
        model.fuse_qkv_projections()

    assert (run(model) - run(plain)).norm() < 1e-5 * run(plain).norm()
    mixer.set_mix({"a": -0.4}, engine=engine)
    reference.set_adapters("a", -0.4)
    assert (run(model) - run(plain)).norm() < 1e-5 * run(plain).norm()
    mixer.unload_lora_weights()
    assert (run(model) - base).norm() < 1e-6 * base.norm()
    model.unfuse_qkv_projections()
    assert torch.equal(run(model), base)


@pytest.mark.parametrize(
    ("base", "file"), [("plain", "dora"), ("torchao int8", "fused pairs"), ("fp8 layerwise", "fused pairs")]
)
@pytest.mark.parametrize("order", ["compiled before", "compiled after"])
def test_compiled_before_and_after_the_adapter(base, file, order):
    """By dynamo without a code generator: what it sees and guards is what matters here."""
    torch._dynamo.reset()
    expected_model = made(base) if base != "plain" else flux()
    model = made(base) if base != "plain" else flux()
    beside = LoraMixer(Parts({"transformer": expected_model}))
    beside.load_lora_weights(FILES[file](), "a")
    called = torch.compile(model, backend="eager")
    before = run(called) if order == "compiled before" else run(model)
    mixer = LoraMixer(Parts({"transformer": called if order == "compiled before" else model}))
    mixer.load_lora_weights(FILES[file](), "a")

    for each in (mixer, beside):
        each.set_mix({"a": 0.8}, engine="auto" if base != "plain" else "side")
    expected = run(expected_model)
    assert (run(called) - expected).norm() < 1e-5 * expected.norm()
    mixer.unload_lora_weights()
    assert (run(called) - before).norm() < 1e-6 * before.norm()


@pytest.mark.parametrize("file", ["fused pairs", "lokr", "dora", "oft"])
def test_weights_that_are_stored_in_8_bits_while_a_mix_is_in_effect(file):
    model, plain = flux(), flux()
    mixer = LoraMixer(Parts({"transformer": model}))
    mixer.load_lora_weights(FILES[file](), "a")
    mixer.set_adapters("a", 0.8)
    layerwise(model)
    layerwise(plain)
    stored = effective(plain)
    reference = LoraMixer(Parts({"transformer": stored}))
    reference.load_lora_weights(FILES[file](), "a")
    reference.set_adapters("a", 0.8)

    assert (run(model) - run(stored)).norm() < 1e-4 * run(stored).norm()
    mixer.unload_lora_weights()
    assert torch.equal(run(model), run(plain))
