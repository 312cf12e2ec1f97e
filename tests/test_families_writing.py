"""Adapters for transformers are written in each of their spellings, and say the same when they are read again."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mixer import LoraMixer, SaveError
from lora_mixer.writing import convert, merge
from tests.transformers_data import distance, parts_of, reference, state

ADAPTERS = [
    "chroma/distilled_guidance",
    "cosmos2/kohya_adaln",
    "flux/kohya_all_linear",
    "flux/aitoolkit",
    "flux/te2_is_t5",
    "flux2/aitoolkit_bfl",
    "hunyuanvideo/refiner_and_final",
    "krea2/kohya",
    "lumina2/comfy_peft",
    "minimax_h3/comfy_stacked",
    "mochi/original_bare",
    "qwenimage/kohya_top_level",
    "sd35m/kohya",
    "sd35m/kohya_te123",
    "wan/comfy_peft",
    "zimage/original_out",
]
EMBEDDINGS = {"flux/te2_is_t5", "sd35m/kohya_te123"}
"""Those that change a table of T5, for which diffusers' files have no place."""


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_a_mixer_writes_changes_the_same_weights_in_the_same_way(shared_data, tmp_path, name, form):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a")
    changed = state(parts)
    if form == "diffusers" and name in EMBEDDINGS:
        with pytest.raises(SaveError, match=r"relative_attention_bias \(a table of embeddings\)"):
            mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)
        return

    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)

    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())
    report = mixer.load_lora_weights(tmp_path / "a.safetensors", "again")
    assert report.complete
    now = state(parts)
    moved = [key for key in before if not torch.equal(changed[key], before[key])]
    assert moved
    for key in before:
        if key in moved:
            assert distance(now[key] - before[key], changed[key] - before[key]) < 1e-5
        else:
            assert torch.equal(now[key], before[key])


def test_kohyas_names_of_flux_are_those_of_the_original_code(shared_data, tmp_path):
    """Queries, keys and values become one layer; halves that diffusers exchanged go back."""
    wanted = reference(shared_data, "flux/aitoolkit")
    mixer = LoraMixer(parts_of(shared_data, wanted))
    mixer.load_lora_weights(wanted.adapter, "a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format="kohya")

    table = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        header = opened.metadata()
    names = {key.partition(".")[0] for key in table}
    assert "lora_unet_double_blocks_0_img_attn_qkv" in names
    assert "lora_unet_single_blocks_1_linear1" in names
    assert not any("transformer_blocks" in name for name in names)
    assert table["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape[0] == 84
    assert header["ss_base_model_version"] == "flux1"


def test_a_fused_pair_keeps_its_down_and_its_rank(shared_data, tmp_path):
    """What was one pair over q, k and v is one again, not three side by side."""
    wanted = reference(shared_data, "flux/kohya_blocks_r4_a2")
    mixer = LoraMixer(parts_of(shared_data, wanted))
    mixer.load_lora_weights(wanted.adapter, "a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format="kohya")

    written, given = load_file(tmp_path / "a.safetensors"), load_file(wanted.adapter)
    assert written.keys() == given.keys()
    for key, tensor in given.items():
        assert torch.equal(written[key].float(), tensor.float()), key


def flux_tensors(names, seed):
    """Make pairs on modules of full-size Flux under their names in a file, of rank 1."""
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for name, (out, into) in names.items():
        table[f"{name}.lora_up.weight"] = torch.randn(out, 1, generator=generator)
        table[f"{name}.lora_down.weight"] = torch.randn(1, into, generator=generator)
    return table


def test_files_of_one_family_in_two_spellings_are_summed_module_by_module(tmp_path):
    """Without a model: one file names the original's fused layers, the other diffusers' modules."""
    width = 3072
    fused = flux_tensors({"lora_unet_double_blocks_3_img_attn_qkv": (3 * width, width)}, 1)
    split = flux_tensors(
        {
            "transformer.transformer_blocks.3.attn.to_k": (width, width),
            "transformer.single_transformer_blocks.0.attn.to_q": (width, width),
        },
        2,
    )
    save_file(fused, tmp_path / "fused.safetensors")
    save_file(split, tmp_path / "split.safetensors")

    sources = {tmp_path / "fused.safetensors": 0.5, tmp_path / "split.safetensors": 2.0}
    merge(sources, tmp_path / "sum.safetensors")

    table = load_file(tmp_path / "sum.safetensors")
    places = [f"transformer.transformer_blocks.3.attn.to_{x}" for x in "qkv"]
    places.append("transformer.single_transformer_blocks.0.attn.to_q")
    assert {key.rpartition(".lora_")[0] for key in table} == set(places)
    rows = {place: slice(number * width, (number + 1) * width) for number, place in enumerate(places[:3])}
    for place in places:
        written = table[f"{place}.lora_B.weight"] @ table[f"{place}.lora_A.weight"]
        expected = torch.zeros(width, width)
        if place in rows:
            up, down = (
                fused[f"lora_unet_double_blocks_3_img_attn_qkv.lora_{x}.weight"] for x in ("up", "down")
            )
            expected += 0.5 * up[rows[place]] @ down
        if f"{place}.lora_up.weight" in split:
            expected += 2.0 * split[f"{place}.lora_up.weight"] @ split[f"{place}.lora_down.weight"]
        assert distance(written, expected) < 1e-5


def test_a_file_of_the_original_code_is_converted_to_diffusers_names_and_back(tmp_path):
    width = 3072
    table = flux_tensors(
        {
            "lora_unet_double_blocks_18_txt_attn_qkv": (3 * width, width),
            "lora_unet_single_blocks_37_linear1": (7 * width, width),
            "lora_unet_final_layer_adaLN_modulation_1": (2 * width, width),
        },
        3,
    )
    save_file(table, tmp_path / "kohya.safetensors")

    convert(tmp_path / "kohya.safetensors", tmp_path / "diffusers.safetensors", format="diffusers")
    convert(tmp_path / "diffusers.safetensors", tmp_path / "again.safetensors", format="kohya")

    halfway = load_file(tmp_path / "diffusers.safetensors")
    assert "transformer.norm_out.linear.lora_B.weight" in halfway
    swapped = table["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"].roll(width, 0)
    assert torch.equal(halfway["transformer.norm_out.linear.lora_B.weight"], swapped)
    again = load_file(tmp_path / "again.safetensors")
    for key, tensor in table.items():
        assert torch.equal(again[key], tensor), key
