"""Weights in depth for transformers: double and single blocks, by number, list and index; what does not fit is refused."""

from __future__ import annotations

import pytest

from lora_mixer import LoraMixer, MixError
from lora_mixer.library.norms import block_of
from lora_mixer.mixes import BlockLayout, Mix
from tests.transformers_data import distance, parts_of, reference, state

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
