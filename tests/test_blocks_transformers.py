"""Weights in depth for transformers: double and single blocks, by number, list and index; what does not fit is refused."""

from __future__ import annotations

import inspect
import random
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MixError
from lora_mixer.families import family_of_class
from lora_mixer.fresh.making import in_block
from lora_mixer.library import layer_norms
from lora_mixer.library.norms import block_of
from lora_mixer.mixes import (
    DEPTH_PRESETS,
    LBW_IDS,
    BlockLayout,
    LbwWeights,
    Mix,
    format_prompt,
    parse_prompt,
    read_presets,
)
from lora_mixer.mixes.unet_blocks import depth_of
from tests.transformers_data import distance, parts_of, reference, state
from ui.handlers.mix import kit

LAYERS = [
    "transformer_blocks.1.attn.to_q",
    "single_transformer_blocks.0.proj_out",
    "single_transformer_blocks.2.proj_out",
    "x_embedder",
]
FLUX = BlockLayout(double=2, single=3)


def gains(spec, layout=FLUX):
    mix = Mix.of({"a": {"weight": 2.0, "blocks": spec}})
    assert Mix.from_json(mix.to_json()) == mix
    return [mix.gain("a", "transformer", layer, layout) for layer in LAYERS]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"double": 0.5}, [1, 2, 2, 2]),
        ({"double": [0, 0.25], "single": [1, 0, 0.5], "other": 0}, [0.5, 2, 1, 0]),
        ({"single": {"block_2": 0}}, [2, 2, 0, 2]),
        ("dit:double", [2, 0, 0, 0]),
        ("dit:single", [0, 2, 2, 0]),
        ("dit:blocks", [2, 2, 2, 0]),
    ],
)
def test_each_block_has_its_weight(spec, wanted):
    assert gains(spec) == wanted


@pytest.mark.parametrize(
    ("spec", "layout", "said"),
    [
        ({"double": [1, 1, 1]}, FLUX, "double: expected a number or 2 numbers"),
        ({"single": {"block_3": 1}}, FLUX, "single.block_3: this model has 3 single blocks"),
        ("dit:single", BlockLayout(double=4), "nothing would be left"),
        ({"double": 1}, BlockLayout(), "this model has none of them"),
        ({"down": 1}, FLUX, "blocks of a UNet"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(spec, layout, said):
    with pytest.raises(MixError, match=said):
        Mix.of({"a": {"blocks": spec}}).check({"transformer": layout})


@pytest.mark.parametrize(
    "spec", [{"double": {"block_x": 1}}, {"double": []}, {"double": "x"}, {"single": 1, "down": 0}]
)
def test_odd_forms_are_refused(spec):
    with pytest.raises(MixError):
        Mix.of({"a": {"blocks": spec}})


def test_the_layout_of_a_live_transformer_is_read_off_its_modules(shared_data):
    counts = {}
    for name in ("flux/aitoolkit", "wan/kohya", "sd35m/kohya", "zimage/aitoolkit"):
        root = parts_of(shared_data, reference(shared_data, name)).components["transformer"]
        layout = BlockLayout.from_module_names(path for path, _ in root.named_modules())
        assert not layout.is_unet
        counts[name.partition("/")[0]] = (layout.double, layout.single)
    assert counts == {"flux": (2, 2), "wan": (2, 0), "sd35m": (3, 0), "zimage": (2, 0)}


def test_a_mix_changes_the_weights_of_its_blocks_by_their_share(shared_data):
    wanted = reference(shared_data, "flux/aitoolkit")
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a")
    whole = state(parts)
    mixer.set_mix({"a": {"weight": 1.0, "blocks": {"double": [0.5, 0], "single": 0.25}}})
    now = state(parts)
    shares = {"transformer_blocks.0.": 0.5, "transformer_blocks.1.": 0.0, "single_transformer_blocks.": 0.25}
    moved = [key for key in before if not (whole[key] == before[key]).all()]
    assert moved
    for key in moved:
        share = next((share for front, share in shares.items() if key[1].startswith(front)), 1.0)
        change = share * (whole[key] - before[key])
        if share:
            assert distance(now[key] - before[key], change) < 1e-4
        else:
            assert (now[key] == before[key]).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("single_stream_blocks.0.block.attn1.to_q", "double_stream_blocks.0.block.attn1.to_q"),
        ("vace_blocks.1.attn1.to_q", "blocks.1.attn1.to_q"),
        ("text_transformer_blocks.1.ff.x", "visual_transformer_blocks.1.ff.x"),
        ("noise_refiner.0.attn.to_q", "context_refiner.0.attn.to_q"),
        ("lora_unet_single_blocks_3_linear1", "lora_unet_double_blocks_3_img_attn_qkv"),
        ("context_embedder.token_refiner.refiner_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_q"),
    ],
)
def test_blocks_of_transformers_are_told_apart(one, other):
    assert len({block_of(one), block_of(other), "other"}) == 3


DEV = BlockLayout(double=19, single=38)
THIRDS = ("early", "middle", "late")


def blocks_of(layout):
    """Name one layer of each block, in the order in which they run."""
    kinds = [("transformer_blocks", layout.double), ("single_transformer_blocks", layout.single)]
    return [f"{kind}.{n}.attn.to_q" for kind, count in kinds for n in range(count)]


def at(spec, layout=DEV, layers=None, component="transformer"):
    mix = Mix.of({"a": {"weight": 1.0, "blocks": spec}})
    return [mix.gain("a", component, layer, layout) for layer in layers or blocks_of(layout)]


def test_thirds_of_the_depth_share_all_blocks_out():
    early, middle, late = (at(f"dit:{third}") for third in THIRDS)
    assert [sum(early), sum(middle), sum(late)] == [19, 19, 19]
    assert early == sorted(early, reverse=True)
    assert late == early[::-1]
    assert at("dit:double-early") == [1] * 6 + [0] * 51
    assert at("dit:double-middle") == [0] * 6 + [1] * 7 + [0] * 44
    assert at("dit:single-late") == [0] * 44 + [1] * 13


@pytest.mark.parametrize("kind", ["", "double-", "single-"])
@pytest.mark.parametrize("counts", [(19, 38), (8, 48), (40, 0), (1, 1), (2, 2), (5, 20), (0, 28)])
def test_thirds_of_any_model_are_each_block_once_or_refused(counts, kind):
    layout = BlockLayout(double=counts[0], single=counts[1])
    shares = []
    for third in THIRDS:
        misfits = DEPTH_PRESETS[f"dit:{kind}{third}"].misfits(layout)
        if misfits:
            assert "nothing would be left" in misfits[0]
        else:
            shares.append(at(f"dit:{kind}{third}", layout))
    own = [float(not kind or depth_of(layer)[0] in kind) for layer in blocks_of(layout)]
    assert [sum(each) for each in zip(*shares, strict=True)] == (own if shares else [])
    sizes = [sum(share) for share in shares]
    assert not shares or max(sizes) - min(sizes) <= 1
    outside = at(f"dit:{kind}early", layout, ["x_embedder", "proj_out"]) if len(shares) == 3 else [0, 0]
    assert outside == [0, 0]


@pytest.mark.parametrize("name", DEPTH_PRESETS)
def test_presets_by_depth_are_said_everywhere(name):
    mix = Mix.of(f"a:0.7,blocks={name}")
    assert Mix.of(mix.to_text()) == Mix.from_json(mix.to_json()) == mix
    prompt = format_prompt("a castle", mix)
    assert prompt.endswith(f":lbw={name}>")
    assert parse_prompt(prompt, ["a"]) == ("a castle", mix)
    assert parse_prompt(f"a castle <lora:a:0.7:{name}>", ["a"]) == ("a castle", mix)
    with pytest.raises(MixError, match="this model has none of them"):
        mix.check({"unet": BlockLayout.from_module_names(["mid_block.attentions.0.proj_in"])})
    assert at(name, component="text_encoder", layers=["encoder.layers.0.mlp.fc1"]) == [1]


def test_thirds_need_a_model_and_unknown_presets_name_them():
    with pytest.raises(MixError, match="give the layout of the model"):
        at("dit:early", layout=None, layers=["transformer_blocks.0.ff"])
    with pytest.raises(MixError, match=r'Did you mean "dit:single-early"'):
        Mix.of({"a": {"blocks": "dit:single-earl"}})


# --- LBW's lists for Flux ----------------------------------------------------------------------------------------------

# What a layer is called in Flux's original code, which the ids were made for, and here.
IDS = {
    "IN": ["x_embedder", "context_embedder", "time_text_embed.guidance_embedder.linear_1"],
    "D00": [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff_context.net.2",
        "transformer_blocks.0.norm1.linear",
    ],
    "D18": ["transformer_blocks.18.attn.add_v_proj"],
    "S07": ["single_transformer_blocks.7.proj_mlp", "single_transformer_blocks.7.norm.linear"],
    "S37": ["single_transformer_blocks.37.proj_out"],
    "OUT": ["proj_out", "norm_out.linear"],
}


def test_a_list_of_61_gives_each_id_its_number():
    numbers = [random.Random(1).randint(-9, 9) / 4 for _ in range(61)]
    by_id = dict(zip(LBW_IDS[61], numbers, strict=True))
    assert list(by_id) == [
        "CLIP",
        "T5",
        "IN",
        *(f"D{n:02}" for n in range(19)),
        *(f"S{n:02}" for n in range(38)),
        "OUT",
    ]
    for name, layers in IDS.items():
        assert at(numbers, layers=layers) == [by_id[name]] * len(layers)
    assert at(numbers)[18:20] == [by_id["D18"], by_id["S00"]]
    clip, t5 = "text_model.encoder.layers.3.mlp.fc1", "encoder.block.3.layer.0.SelfAttention.q"
    assert at(numbers, layers=[clip], component="text_encoder") == [by_id["CLIP"]]
    assert at(numbers, layers=[t5], component="text_encoder_2") == [by_id["T5"]]
    assert (
        at(numbers, layers=[t5, "shared"], component="text_encoder") == [by_id["T5"]] * 2
    )  # Chroma's only one


def test_a_list_of_58_has_one_number_for_all_that_is_in_no_block():
    numbers = [0.25, *(n / 57 for n in range(57))]
    assert at(numbers) == numbers[1:]
    assert at(numbers, layers=["x_embedder", "norm_out.linear"]) == [0.25, 0.25]
    assert at(numbers, component="text_encoder_2", layers=["encoder.block.0.layer.0.SelfAttention.q"]) == [
        0.25
    ]


def test_a_list_for_flux_is_read_from_tags_texts_and_files_of_presets():
    numbers = ",".join(["1", "0", "0.5", *["0.25"] * 57, "0"])
    mix = Mix.of({"a": {"weight": 0.8, "blocks": LbwWeights([float(x) for x in numbers.split(",")])}})
    for tag in (f"<lora:a:0.8:lbw={numbers}>", f"<lora:a:0.8:{numbers}>", f"<lora:a:0.8:0.8:lbw={numbers}>"):
        assert parse_prompt(f"x {tag}", ["a"]) == ("x", mix)
    assert parse_prompt(format_prompt("x", mix), ["a"]) == ("x", mix)
    assert Mix.of(f"a:0.8,lbw={numbers}") == mix
    presets = read_presets(f"MINE:{numbers}")
    assert parse_prompt("x <lora:a:0.8:lbw=MINE>", ["a"], presets) == ("x", mix)
    assert parse_prompt("x <lora:a:1:lbw=FLUXALL>", ["a"])[1]["a"].blocks == LbwWeights([1.0] * 61)


@pytest.mark.parametrize(
    ("length", "layout", "said"),
    [
        (
            61,
            BlockLayout(double=20, single=40),
            r"for the 19 double and 38 single blocks of Chroma and Flux.1, and this model has 20 and 40",
        ),
        (
            61,
            BlockLayout(double=40),
            r"this model has 40 and 0; write \{.double.: \[...\], .single.: \[...\]\}",
        ),
        (58, BlockLayout(double=5, single=20), "this model has 5 and 20"),
        (61, BlockLayout.from_module_names(["mid_block.attentions.0.proj_in"]), "this model is a UNet"),
        (17, DEV, "LBW lists of 17 are for UNets, and this model is none"),
        (12, DEV, "LBW lists of 12 are for UNets"),
    ],
)
def test_a_list_for_another_model_is_refused(length, layout, said):
    mix = Mix.of({"a": {"blocks": [1.0] * length}})
    with pytest.raises(MixError, match=said):
        mix.check({"transformer": layout})
    with pytest.raises(MixError, match=said):
        mix.gain("a", "transformer", "transformer_blocks.0.attn.to_q", layout)


def denoisers():
    """List the transformers of diffusers that a family here is for and that can be built without arguments."""
    for name in sorted(dir(diffusers)):
        family = family_of_class(name) if "Transformer" in name else None
        if family is None or not family.is_transformer or not inspect.isclass(getattr(diffusers, name)):
            continue
        try:
            with torch.device("meta"):
                yield name, getattr(diffusers, name)()
        except (TypeError, ValueError):  # such as HiDream, whose sizes have no defaults
            continue


def test_the_blocks_of_every_transformer_are_found():
    """Most of the weights of each are in its blocks, so block weights reach them."""
    shares = {}
    for name, model in denoisers():
        linear = {path: m.weight.numel() for path, m in model.named_modules() if isinstance(m, nn.Linear)}
        shares[name] = sum(size for path, size in linear.items() if depth_of(path)) / sum(linear.values())
        layout = BlockLayout.from_module_names(path for path, _ in model.named_modules())
        assert len(at("dit:blocks", layout)) == layout.double + layout.single
    assert len(shares) > 30
    assert not {name: share for name, share in shares.items() if share < 0.8}


@pytest.mark.parametrize(
    ("layout", "counts", "sliders", "forms"),
    [
        (DEV, [58, 61], 57, set(DEPTH_PRESETS)),
        (BlockLayout(double=40), [], 40, {name for name in DEPTH_PRESETS if "single" not in name}),
    ],
)
def test_the_page_offers_the_blocks_of_the_model(layout, counts, sliders, forms):
    found = kit(SimpleNamespace(layout=layout, size=(64, 64)))
    assert found["counts"] == counts
    assert set(found["forms"]) == forms
    assert [name for name, values in found["presets"].items()] == (["FLUXALL"] if counts else [])
    spec = {}
    for number, (_, (kind, block)) in enumerate(found["tree"]):
        spec.setdefault(kind, {})[block] = number / 100
    assert at(spec, layout) == [number / 100 for number in range(sliders)]


def test_a_fresh_adapter_is_kept_to_blocks_by_their_ids():
    assert in_block("single_transformer_blocks.3.proj_out", "S03")
    assert not in_block("single_transformer_blocks.3.proj_out", "D03")
    assert in_block("transformer_blocks.3.ff.net.2", "D03")


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (
            "flux/kohya_all_linear",
            ["double_blocks 0", "double_blocks 1", "other", "single_blocks 0", "single_blocks 1"],
        ),
        ("wan/kohya", ["blocks 0", "blocks 1"]),
        ("zimage/kohya_split", ["layers 0", "layers 1"]),
        ("hidream/aitoolkit", ["double_stream_blocks 0", "single_stream_blocks 0"]),
        ("ltx/comfy_same_names", ["transformer_blocks 0", "transformer_blocks 1"]),
    ],
)
def test_norms_are_by_block_of_the_transformer(shared_data, name, blocks):
    """Each block's is the root of the sum of squares of its layers', and no layer is left out."""
    norms = layer_norms(reference(shared_data, name).adapter)
    assert set(norms.blocks) >= {f"transformer {block}" for block in blocks}
    assert all(block.startswith("transformer ") for block in norms.blocks)
    whole = sum(norm**2 for norm in norms.layers.values())
    assert sum(norm**2 for norm in norms.blocks.values()) == pytest.approx(whole)
