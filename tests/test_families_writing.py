"""Adapters for transformers are written in each of their spellings, and say the same when they are read again."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mixer import LoraMixer, MixError, SaveError
from lora_mixer.writing import convert, merge
from tests.test_families_references import REFERENCES
from tests.transformers_data import Parts, distance, parts_of, reference, state

NO_PAIRS = {
    "flux/bfl_lokr_placeholder",
    "flux/kohya_oft",
    "flux/loha_fused",
    "flux/lycoris_lokr",
    "flux/onetrainer_dora",
    "flux2/bfl_lokr",
}
"""Whose changes no format holds without a rank, once a mixer has them by modules."""
ONLY_LEAVES = {
    "flux/bfl_control",  # norms
    "flux/comfy_full_diff",  # full changes
    "flux/comfy_te",  # a norm, and a table of embeddings
    "flux/kohya_te1_te3",  # the latter
    "flux/te2_is_t5",
    "sd35m/kohya_te123",
    "wan/lightx2v_diff_m",
    "wan/lightx2v_diffs",
}
"""Those for which diffusers' files have no place."""


def moved(tensor, before):
    """Give a change, also of a weight that has become wider."""
    short = tensor.shape[1] - before.shape[1] if tensor.shape != before.shape else 0
    return tensor - (torch.nn.functional.pad(before, (0, short)) if short else before)


@pytest.mark.filterwarnings("ignore:only a part of the adapter:lora_mixer.PartialMatchWarning")
@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("name", REFERENCES)
def test_what_a_mixer_writes_changes_the_same_weights_in_the_same_way(shared_data, tmp_path, name, form):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a", **wanted.where)
    changed = state(parts)

    refused = NO_PAIRS if form in ("kohya", "comfyui") else NO_PAIRS | ONLY_LEAVES
    if name in refused:
        with pytest.raises(
            SaveError, match=r"not low-rank pairs|only a pair can be|with lengths of inputs|has no place for"
        ):
            mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)
        return
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)

    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())
    report = mixer.load_lora_weights(tmp_path / "a.safetensors", "again")
    assert report.complete
    now = state(parts)
    for key in before:
        if changed[key].shape == before[key].shape and torch.equal(changed[key], before[key]):
            assert torch.equal(now[key], before[key])
        else:
            assert distance(moved(now[key], before[key]), moved(changed[key], before[key])) < 1e-5


PEERS_READ = {
    "diffusers": [
        *(
            "auraflow/comfy_original",
            "chroma/kohya",
            "cogvideox/diffusers",
            "cosmos2/comfy",
            "flux/kohya_all_linear",
        ),
        *("flux/kohya_dora_out_fused", "flux/kohya_split_qkv", "flux2/aitoolkit_bfl", "hidream/aitoolkit"),
        *("hunyuanimage/kohya_split", "hunyuanvideo/refiner_and_final", "kandinsky5/kohya", "krea2/kohya"),
        *("ltx/comfy_same_names", "lumina2/comfy_peft", "minimax_h3/comfy_stacked", "mochi/original_bare"),
        *(
            "ovis/comfy_peft",
            "qwenimage/kohya_top_level",
            "sana/diffusers",
            "sd35l/kohya",
        ),
        *("sd35m/kohya", "wan/pairs_and_diff_b", "wan_i2v/i2v_all", "zimage/kohya_fused_qkv"),
    ],
    # its converters know these without sizes of full models in them
    "comfyui": [
        *(
            "flux2/diffusers",
            "flux2_klein/bfl_peft",
            "hidream/aitoolkit",
            "krea2/comfy",
            "ltx/comfy_same_names",
        ),
        *("qwenimage/kohya", "wan/fun_double_underscore", "wan/pairs_and_diff_b", "zimage/kohya_fused_qkv"),
    ],
    "kohya": ["flux2/kohya", "qwenimage/comfy_peft_alpha", "wan/comfy_peft", "zimage/original_out"],
}


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, names in PEERS_READ.items() for name in names]
)
# PEFT takes a path for the end of others, and gives those pairs of zeros
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_diffusers_reads_what_is_written_as_the_same_changes(shared_data, tmp_path, form, name):
    wanted = reference(shared_data, name)
    parts, other = (parts_of(shared_data, wanted).components["transformer"] for _ in range(2))
    mixer = LoraMixer(Parts({"transformer": parts}))
    mixer.load_lora_weights(wanted.adapter, "a", **wanted.where)
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)

    if form == "diffusers":
        table = load_file(tmp_path / "a.safetensors")
        with safe_open(tmp_path / "a.safetensors", "pt") as opened:
            facts = json.loads(opened.metadata()["lora_adapter_metadata"])
    else:
        pipeline = getattr(diffusers, wanted.facts["pipeline"])
        table, facts = pipeline.lora_state_dict(str(tmp_path / "a.safetensors")), None
    other.load_lora_adapter(table, prefix="transformer", adapter_name="a", metadata=facts)
    other.fuse_lora()
    other.unload_lora()

    base = parts_of(shared_data, wanted).components["transformer"].state_dict()
    changed, found = parts.state_dict(), other.state_dict()
    assert found.keys() == changed.keys()
    for key, tensor in changed.items():
        if torch.equal(tensor, base[key]):
            assert torch.equal(found[key], base[key])
        else:
            assert distance(found[key] - base[key], tensor - base[key]) < 1e-4


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_one_file_for_the_second_expert_says_so_and_goes_back_to_it(shared_data, tmp_path, form):
    """Neither format has a word for it; a file of both would hold two changes of one name."""
    wanted = reference(shared_data, "wan/transformer_2")
    parts = parts_of(shared_data, wanted)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "second", **wanted.where)
    mixer.load_lora_weights(wanted.adapter, "first", component="transformer")
    mixer.save_lora_weights(tmp_path / "second.safetensors", "second", format=form)
    with pytest.raises(SaveError, match=r"do not tell transformer_2 from transformer; write one file for"):
        mixer.save_lora_weights(tmp_path / "both.safetensors", ["first", "second"], format=form)
    mixer.unload_lora_weights()
    report = mixer.load_lora_weights(tmp_path / "second.safetensors", "again")
    assert {part.component: len(part.matched) for part in report.components} == {"transformer_2": 20}


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_halves_of_one_live_layer_are_written_as_the_two_layers_of_the_original(shared_data, tmp_path, form):
    wanted = reference(shared_data, "ovis/comfy_peft")
    mixer = LoraMixer(parts_of(shared_data, wanted))
    mixer.load_lora_weights(wanted.adapter, "a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format=form)
    names = {key.partition(".lora_")[0] for key in load_file(tmp_path / "a.safetensors")}
    front, joint = ("lora_unet_", "_") if form == "kohya" else ("diffusion_model.", ".")
    for half in ("up_proj", "gate_proj", "down_proj"):
        assert front + joint.join(["double_blocks", "0", "img_mlp", half]) in {
            n.partition(".alpha")[0] for n in names
        }


def test_comfyuis_files_have_its_own_names_and_pairs_without_alphas(shared_data, tmp_path):
    wanted = reference(shared_data, "sd35m/kohya_te123")
    mixer = LoraMixer(parts_of(shared_data, wanted))
    mixer.load_lora_weights(wanted.adapter, "a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", "a", format="comfyui")
    table = load_file(tmp_path / "a.safetensors")
    fronts = {key.partition(".transformer.")[0] for key in table if key.startswith("text_encoders.")}
    assert fronts == {"text_encoders.clip_l", "text_encoders.clip_g", "text_encoders.t5xxl"}
    assert "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight" in table
    assert not any(key.endswith((".alpha", ".lora_up.weight")) for key in table)


TWO_SPELLINGS = [
    ("auraflow/comfy_original", "auraflow/diffusers"),
    ("flux/kohya_split_qkv", "flux/onetrainer_omi"),
    ("flux/xlabs", "flux/fal_kontext"),
    ("flux2/kohya", "flux2/diffusers"),
    ("hunyuanvideo/diffusion_pipe", "hunyuanvideo/framepack"),
    ("krea2/comfy", "krea2/kohya"),
    ("lumina2/comfy_peft", "lumina2/kohya"),
    ("mochi/original_bare", "mochi/diffusers"),
    ("qwenimage/bare_default", "qwenimage/kohya"),
    ("sd35l/kohya", "sd35l/base_model"),
    ("wan/fun_double_underscore", "wan/comfy_peft"),
    ("zimage/kohya_fused_qkv", "zimage/aitoolkit"),
]


@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize(("one", "other"), TWO_SPELLINGS)
def test_a_merge_of_two_spellings_is_the_sum_of_their_changes(shared_data, tmp_path, one, other, form):
    """From files and a folder of the base, no model loaded."""
    wanted = [reference(shared_data, name) for name in (one, other)]
    base = tmp_path / "base"
    base.mkdir()
    (base / "transformer").symlink_to(shared_data / "dit" / "models" / wanted[0].family / "transformer")
    kind = wanted[0].facts["classes"]["transformer"]
    (base / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", kind]}))

    merge(
        {wanted[0].adapter: 0.7, wanted[1].adapter: -0.3},
        tmp_path / "sum.safetensors",
        model=base,
        format=form,
    )

    live = Parts({"transformer": parts_of(shared_data, wanted[0]).components["transformer"]})
    before = state(live)
    LoraMixer(live).load_lora_weights(tmp_path / "sum.safetensors", "sum")
    for (part, key), tensor in state(live).items():
        total = torch.zeros_like(tensor, dtype=torch.float64)
        for weight, own in zip((0.7, -0.3), wanted, strict=True):
            target = own.merged(part).get(key)
            total += 0 if target is None else weight * (target.double() - before[part, key].double())
        if total.any():
            assert distance(tensor.double() - before[part, key].double(), total) < 1e-4
        else:
            assert torch.equal(tensor, before[part, key])


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


def rank_one(shapes, seed):
    """Make pairs of rank 1, in full sizes, for modules by name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{half}.weight": torch.randn(size, generator=generator)
        for name, (out, into) in shapes.items()
        for half, size in (("lora_A", (1, into)), ("lora_B", (out, 1)))
    }


@pytest.mark.parametrize(
    ("own", "original", "width"),
    [
        ("transformer.blocks.7.attn1.to_q", "diffusion_model.blocks.7.self_attn.q", 5120),
        ("transformer.blocks.7.attn2.to_v", "diffusion_model.blocks.7.cross_attn.v", 1536),
        ("transformer_2.blocks.7.attn2.to_k", "transformer_2.blocks.7.cross_attn.k", 5120),
        ("transformer.transformer_blocks.3.ff.linear_out", "diffusion_model.double_blocks.3.img_mlp.2", 3072),
        ("transformer.transformer_blocks.3.attn2.to_q", "lora_unet_blocks_3_cross_attn_q_linear", 2240),
    ],
)
def test_without_a_model_the_sizes_of_the_family_tell_which_module_a_name_means(
    tmp_path, own, original, width
):
    into = {"linear_out": 3 * width, "fc2": 4 * width, "mlp.2": 3 * width}
    wide = next((size for end, size in into.items() if original.endswith(end)), width)
    save_file(rank_one({original: (width, wide)}, 1), tmp_path / "a.safetensors")
    save_file(rank_one({own: (width, wide)}, 2), tmp_path / "b.safetensors")

    convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", format="diffusers")
    assert {key.rpartition(".lora_")[0] for key in load_file(tmp_path / "c.safetensors")} == {own}

    if ".transformer_blocks." in own:  # a layer alone, of a name that many families have
        return
    merge(
        {tmp_path / "a.safetensors": 0.5, tmp_path / "b.safetensors": 2.0},
        tmp_path / "m.safetensors",
        format="diffusers",
    )
    merged = load_file(tmp_path / "m.safetensors")
    assert {key.rpartition(".lora_")[0] for key in merged} == {own}
    one, other = (load_file(tmp_path / f"{x}.safetensors") for x in "ab")
    down, up = (merged[f"{own}.lora_{x}.weight"].double() for x in "AB")
    wanted = sum(
        weight * table[f"{name}.lora_B.weight"].double() @ table[f"{name}.lora_A.weight"].double()[:, :64]
        for table, name, weight in ((one, original, 0.5), (other, own, 2.0))
    )
    assert distance(up @ down[:, :64], wanted) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.blocks.0.self_attn.q",
        "double_blocks.0.img_attn.proj",
        "diffusion_model.joint_blocks.0.x_block.attn.proj",
        "transformer.layers.0.attention.query_key_value",
    ],
)
def test_names_of_the_original_code_are_not_passed_off_as_the_live_models(tmp_path, name):
    """The size is of no model that is known, so that nobody can say what the layer's rows are."""
    save_file(rank_one({name: (24, 24)}, 1), tmp_path / "a.safetensors")
    with pytest.raises(SaveError, match="model="):
        convert(tmp_path / "a.safetensors", tmp_path / "out.safetensors", format="diffusers")
    assert not (tmp_path / "out.safetensors").exists()


def base_folder(root, wanted, folder):
    """Make a diffusers folder of a reference's tiny parts."""
    folder.mkdir()
    index = {}
    for part, kind in wanted.facts["classes"].items():
        (folder / part).symlink_to(root / "dit" / "models" / wanted.family / part)
        index[part] = ["diffusers" if hasattr(diffusers, kind) else "transformers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("named", ["unet", "dit", "transformer_2", "text_encoder_3"])
@pytest.mark.parametrize("name", ["flux/kohya_te1_te3", "qwenimage/kohya", "zimage/aitoolkit"])
def test_a_merge_refuses_weights_for_components_that_its_base_does_not_have(
    shared_data, tmp_path, name, named
):
    """A name of another kind of model, ``unet``, would else be a weight of 1 for the transformer, called exact."""
    wanted = reference(shared_data, name)
    base = base_folder(shared_data, wanted, tmp_path / "base")
    with pytest.raises(MixError, match=rf": no component {named} in .*base; it has .*transformer"):
        merge({wanted.adapter: {named: 0.3}}, tmp_path / "sum.safetensors", model=base)
    assert not (tmp_path / "sum.safetensors").exists()


def test_a_merge_without_a_base_goes_by_what_its_files_change(shared_data, tmp_path):
    wanted, out = reference(shared_data, "zimage/aitoolkit"), tmp_path / "sum.safetensors"
    for named in ("unet", "dit", "prior"):
        with pytest.raises(MixError, match=rf"no component {named} in these files"):
            merge({wanted.adapter: {named: 0.3}}, out)
    with pytest.raises(MixError, match="a weight for te, and it changes transformer only"):
        merge({wanted.adapter: {"transformer": 0, "te": 0.3}}, out)
    assert not out.exists()
    report = merge({wanted.adapter: {"transformer": 0.3, "te": 0.5}}, out)
    assert any(
        "a weight for te changes nothing, it changes transformer only" in note for note in report.notes
    )
    parts = Parts({"transformer": parts_of(shared_data, wanted).components["transformer"]})
    before = state(parts)
    LoraMixer(parts).load_lora_weights(out, "sum")
    for (part, key), tensor in state(parts).items():
        target = wanted.merged(part).get(key)
        if target is None:
            assert torch.equal(tensor, before[part, key])
        else:
            assert distance(tensor - before[part, key], 0.3 * (target - before[part, key])) < 1e-4


def test_a_merge_says_which_patterns_match_no_layer(shared_data, tmp_path):
    wanted = reference(shared_data, "zimage/aitoolkit")
    report = merge(
        {wanted.adapter: {"blocks": {"*attention*": 0.5, "*double_blocks*": 1}}}, tmp_path / "sum.safetensors"
    )
    assert any("*double_blocks*: no layer that it changes matches" in note for note in report.notes)


def test_a_part_of_the_depth_is_not_guessed_from_the_layers_of_a_file(shared_data, tmp_path):
    """An adapter may have no layers in the last blocks; thirds of what it has would be others."""
    wanted = reference(shared_data, "zimage/aitoolkit")
    table = {key: t for key, t in load_file(wanted.adapter).items() if ".layers.1." not in key}
    save_file(table, tmp_path / "part.safetensors")
    given = {tmp_path / "part.safetensors": {"blocks": "dit:early"}}
    with pytest.raises(MixError, match=r"dit:early is a part of the model's depth.*model="):
        merge(given, tmp_path / "sum.safetensors")
    base = base_folder(shared_data, wanted, tmp_path / "base")
    report = merge(given, tmp_path / "sum.safetensors", model=base)
    blocks = {path.partition("layers.")[2][:1] for path in report.ranks}
    assert blocks == {"0"}


@pytest.mark.parametrize(
    ("form", "said"), [("kohya", "follow from its family"), ("comfyui", "is not known here")]
)
def test_names_that_follow_from_the_base_ask_for_it(shared_data, tmp_path, form, said):
    """All formats are written for every family, once that is known."""
    wanted, out = reference(shared_data, "flux/aitoolkit"), tmp_path / "a.safetensors"
    with pytest.raises(SaveError, match=rf"{said}.*with model="):
        convert(wanted.adapter, out, format=form)
    convert(wanted.adapter, out, format=form, model=base_folder(shared_data, wanted, tmp_path / "base"))
    assert any("double_blocks" in key for key in load_file(out))
