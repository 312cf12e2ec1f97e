"""
Traps of adapters for transformers, each with the tests that fall into it where it is not minded.

Numbers are those of the project's list of formats; ``python -m benchmarks.families_table`` writes them into docs/families.md.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from lora_mixer import LoraMixer
from lora_mixer.problem import NoteKind
from tests.test_families_references import REFERENCES
from tests.transformers_data import Parts, distance, parts_of, reference

# What the trap is, and where it is tested: a test's name, or an adapter of the shared data whose weights are compared.
TRAPS = {
    "D1": ("sizes are those of the live modules, not of one full model", "test_a_fused_layer_of_another_size_is_refused_with_the_sum_that_the_model_has", "test_list_is_matched_in_full_on_the_full_size_model", "flux2_klein/bfl_peft"),
    "D2": ("one down for all parts of a fused layer, whatever its rank divides by", "test_a_rank_that_parts_divide_is_not_taken_apart", "flux/kohya_split_qkv", "flux/kohya_blocks_r4_a2"),
    "D3": ("alpha counts against the rank of the file's tensor, each module's own", "test_any_mixture_of_spellings_in_one_file", "flux/mixed_ranks_no_alpha"),
    "D4": ("an alpha beside lora_A counts", "test_every_ending_behind_every_front", "flux/transformer_downup_alpha"),
    "D5": ("parts trained apart get less than in training: followed, and said", "test_parts_that_were_trained_apart_are_followed_as_all_readers_do_and_said"),
    "D6": ("a placeholder of an alpha on a Kronecker product of whole factors", "test_kronecker_products_that_boundaries_cut", "flux/bfl_lokr_placeholder"),
    "D7": ("the number of a text encoder is the tool's, not the pipeline's", "flux/kohya_te1_te3", "flux/te2_is_t5", "sd35m/kohya_te123"),
    "D8": ("fused and split keys of one change count once", "test_fused_and_split_keys_that_disagree_are_refused", "zimage/fused_beside_split"),
    "D9": ("norms whose numbers the two codes exchange", "test_norms_with_exchanged_numbers_are_those_of_the_layout", "test_norms_that_hunyuandit_exchanged_are_those_of_the_layout_that_the_file_has", "wan/lightx2v_diffs"),
    "D10": ("halves of modulation swapped, or not, by family", "test_modulation_is_swapped_where_the_original_has_it_so", "test_each_live_module_gets_its_rows_in_its_own_order"),
    "D11": ("halves of gated layers swapped, or not, by family", "mochi/original_bare", "minimax_h3/comfy_stacked", "flux2/kohya"),
    "D12": ("files in the live names are not swapped", "test_files_in_the_live_names_are_never_swapped", "auraflow/diffusers"),
    "D13": ("a swap is one of rows: up, bias and lengths of outputs, never down", "test_rows_in_another_order_are_the_whole_change_in_that_order", "test_a_swap_takes_the_bias_along_and_leaves_the_inputs"),
    "D14": ("control adapters widen a layer, and it comes back", "test_the_pipeline_is_told_how_many_channels_there_are_and_told_back", "flux/bfl_control"),
    "D15": ("a narrower file changes the first inputs", "test_a_narrower_file_for_a_model_with_more_inputs_changes_the_first_of_them"),
    "D16": ("whole changes of weights, biases and modulation", "test_whole_changes_of_fused_layers", "wan/lightx2v_diffs", "wan/pairs_and_diff_b"),
    "D17": ("parameters without a module", "wan/lightx2v_diff_m"),
    "D18": ("what siblings have and this model need not", "test_modules_that_only_siblings_have_are_left_out_as_theirs", "flux_schnell/kohya_dev_file"),
    "D19": ("names do not tell the family, the live class does", "test_a_family_is_told_by_the_live_class_where_files_of_several_have_one_set_of_names", "test_widths_tell_families_that_share_their_names"),
    "D20": ("names that both layouts have do not make a match", "test_a_file_of_another_family_is_refused_by_family_and_figure", "sd35l/kohya"),
    "D21": ("rows that alternate head by head in some files", "test_rows_alternate_head_by_head_in_diffsynths_files_of_minimax_and_are_stacked_in_others"),
    "D22": ("changes that need the bases of all parts", "test_every_algorithm_on_every_fused_layer_is_exact_from_clean_bases", "test_any_split_of_the_rows_is_that_part_of_the_whole_change"),
    "D23": ("lengths of outputs go along with their rows", "test_magnitudes_of_fused_layers_go_along_with_their_rows", "flux/kohya_dora_out_fused"),
    "D24": ("convolutions in groups", "test_kohyas_pair_over_all_inputs_runs_beside_a_convolution_in_groups", "sana/kohya_original"),
    "D25": ("fp8 factors, alphas of any form", "test_factors_of_any_number_format", "test_alphas_of_any_number_format", "flux/kohya_fp16_alpha"),
    "D26": ("scale is a factor for a pair and the weight of a norm", "test_scale_is_a_factor_beside_a_pair_and_the_weight_of_a_norm", "flux/bfl_control"),
    "D27": ("patches are cut by a convolution or a linear layer", "test_a_layer_that_cuts_patches_is_a_convolution_or_linear", "wan/lightx2v_diffs"),
    "D28": ("experts within a layer", "hidream/aitoolkit"),
    "D29": ("two experts with weights of their own", "test_one_adapter_of_both_experts_is_weighed_by_component", "test_a_pair_of_files_goes_to_its_two_experts_and_each_has_a_weight_of_its_own"),
    "D30": ("the live model's front before the original's names", "hunyuanvideo/diffusion_pipe", "flux/onetrainer_omi"),
}  # fmt: skip


def test_each_trap_names_tests_that_are_there():
    known = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = [where for _, *places in TRAPS.values() for where in places]
    assert list(TRAPS) == [f"D{n}" for n in range(1, 31)]
    assert not [where for where in named if where not in known and where not in REFERENCES]
    assert all(len(entry) > 1 for entry in TRAPS.values())


def transformer_of(shared_data, model):
    own = reference(shared_data, model)
    return Parts({"transformer": parts_of(shared_data, own).components["transformer"]})


class Change:
    """A load, and how each parameter of the transformer moved."""

    def __init__(self, parts, table, **where):
        model = parts.components["transformer"]
        before = {key: t.clone() for key, t in model.state_dict().items()}
        self.mixer = LoraMixer(parts)
        self.report = self.mixer.load_lora_weights(table, "a", strict=True, **where)
        self.moved = {
            key: t.double() - before[key].double()
            for key, t in model.state_dict().items()
            if not torch.equal(t, before[key])
        }


def draw(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def pair(key, up, down):
    return {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}


QKV = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
LINEAR1 = [*(f"single_{path}" for path in QKV), "single_transformer_blocks.0.proj_mlp"]


@pytest.mark.parametrize("rank", [3, 4, 6, 8, 12])
@pytest.mark.parametrize(
    ("layer", "live"), [("double_blocks.0.img_attn.qkv", QKV), ("single_blocks.0.linear1", LINEAR1)]
)
def test_a_rank_that_parts_divide_is_not_taken_apart(shared_data, layer, live, rank):
    parts = transformer_of(shared_data, "flux/aitoolkit")
    heights = [parts.components["transformer"].get_submodule(path).weight.shape[0] for path in live]
    up, down = draw(sum(heights), rank), draw(rank, 28, seed=1)
    found = Change(parts, pair(f"diffusion_model.{layer}", up, down))
    assert {f"{path}.weight" for path in live} == set(found.moved)
    for path, rows in zip(live, (up.double() @ down.double()).split(heights), strict=True):
        assert distance(found.moved[f"{path}.weight"], rows) < 1e-5
    assert not found.report.notes


@pytest.mark.parametrize(("alpha", "said"), [(2.0, True), (1.0, True), (6.0, False)])
def test_parts_that_were_trained_apart_are_followed_as_all_readers_do_and_said(shared_data, alpha, said):
    """A block-diagonal up; with an alpha of all ranks (sd-scripts' converter) the strength is that of training."""
    up, down = torch.block_diag(*(draw(28, 2, seed=n) for n in range(3))), draw(6, 28, seed=5)
    key = "lora_unet_double_blocks_1_txt_attn_qkv"
    table = {**pair(key, up, down), f"{key}.alpha": torch.tensor(alpha)}
    found = Change(transformer_of(shared_data, "flux/aitoolkit"), table)
    change = torch.cat([found.moved[f"transformer_blocks.1.attn.add_{x}_proj.weight"] for x in "qkv"])
    assert distance(change, alpha / 6 * up.double() @ down.double()) < 1e-5
    assert [note.kind for note in found.report.notes] == [NoteKind.TRAINED_APART] * said
    assert (
        not said
        or f"alpha {alpha:g} over the rank of the whole, 6, which is 3 times less" in found.report.notes[0]
    )


def test_norms_with_exchanged_numbers_are_those_of_the_layout(shared_data):
    """Wan's ``norm3`` is ``norm2`` here, where ``norm3`` has no weight."""
    parts = transformer_of(shared_data, "wan/kohya")
    change = draw(24)
    original = Change(parts, {"diffusion_model.blocks.1.norm3.diff": change, **pair(
        "diffusion_model.blocks.0.self_attn.q", draw(24, 2), draw(2, 24)
    )})  # fmt: skip
    assert distance(original.moved["blocks.1.norm2.weight"], change) < 1e-5
    original.mixer.unload_lora_weights()
    live = Change(parts, {"transformer.blocks.1.norm2.diff": change, **pair(
        "transformer.blocks.0.attn1.to_q", draw(24, 2), draw(2, 24)
    )})  # fmt: skip
    assert distance(live.moved["blocks.1.norm2.weight"], change) < 1e-5


# The original's name of the last modulation, the live one's, and whether halves change places.
MODULATION = {
    "flux/aitoolkit": ("final_layer.adaLN_modulation.1", "norm_out.linear", True),
    "flux2/kohya": ("final_layer.adaLN_modulation.1", "norm_out.linear", True),
    "sd35l/kohya": ("final_layer.adaLN_modulation.1", "norm_out.linear", True),
    "hunyuanvideo/kohya": ("final_layer.adaLN_modulation.1", "norm_out.linear", True),
    "auraflow/comfy_original": ("modF.1", "norm_out.linear", True),
    "mochi/original_bare": ("final_layer.mod", "norm_out.linear", True),
    "lumina2/kohya": ("final_layer.adaLN_modulation.1", "norm_out.linear_1", False),
    "zimage/aitoolkit": ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1", False),
}


@pytest.mark.parametrize("model", MODULATION)
def test_modulation_is_swapped_where_the_original_has_it_so(shared_data, model):
    original, live, swapped = MODULATION[model]
    parts = transformer_of(shared_data, model)
    out, into = parts.components["transformer"].get_submodule(live).weight.shape
    up, down = draw(out, 3), draw(3, into, seed=1)
    found = Change(parts, pair(f"diffusion_model.{original}", up, down))
    rows = torch.cat(up.chunk(2)[::-1]) if swapped else up
    assert distance(found.moved[f"{live}.weight"], rows.double() @ down.double()) < 1e-5


@pytest.mark.parametrize("model", MODULATION)
def test_files_in_the_live_names_are_never_swapped(shared_data, model):
    live = MODULATION[model][1]
    parts = transformer_of(shared_data, model)
    out, into = parts.components["transformer"].get_submodule(live).weight.shape
    up, down = draw(out, 3), draw(3, into, seed=1)
    for front in ("transformer.", "diffusion_model.", ""):
        found = Change(parts, pair(front + live, up, down))
        assert distance(found.moved[f"{live}.weight"], up.double() @ down.double()) < 1e-5
        found.mixer.unload_lora_weights()


@pytest.mark.parametrize("end", ["lora_B.bias", "diff_b"])
def test_a_swap_takes_the_bias_along_and_leaves_the_inputs(shared_data, end):
    key = "diffusion_model.final_layer.adaLN_modulation.1"
    up, down, bias = draw(56, 2), draw(2, 28, seed=1), draw(56, seed=2)
    table = {f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down, f"{key}.{end}": bias}
    found = Change(transformer_of(shared_data, "flux/aitoolkit"), table)
    weight = torch.cat(up.chunk(2)[::-1]).double() @ down.double()
    assert distance(found.moved["norm_out.linear.weight"], weight) < 1e-5
    assert distance(found.moved["norm_out.linear.bias"], torch.cat(bias.chunk(2)[::-1])) < 1e-5


def test_scale_is_a_factor_beside_a_pair_and_the_weight_of_a_norm(shared_data):
    parts = transformer_of(shared_data, "flux/aitoolkit")
    before = parts.components["transformer"].transformer_blocks[0].attn.norm_q.weight.detach().clone()
    up, down, norm = draw(28, 2), draw(2, 28, seed=1), draw(14, seed=2)
    key = "diffusion_model.double_blocks.0.img_attn"
    table = {
        **pair(f"{key}.proj", up, down),
        f"{key}.proj.scale": torch.tensor(0.25),
        f"{key}.norm.query_norm.scale": norm,
    }
    found = Change(parts, table)
    assert (
        distance(found.moved["transformer_blocks.0.attn.to_out.0.weight"], 0.25 * up.double() @ down.double())
        < 1e-5
    )
    assert distance(before + found.moved["transformer_blocks.0.attn.norm_q.weight"], norm) < 1e-5


@pytest.mark.parametrize("form", ["pair", "diff"])
@pytest.mark.parametrize(
    ("model", "original", "live"),
    [
        ("wan/kohya", "patch_embedding", "patch_embedding"),
        ("sd35l/kohya", "x_embedder.proj", "pos_embed.proj"),
        ("hunyuanvideo/kohya", "img_in.proj", "x_embedder.proj"),
        ("flux/aitoolkit", "img_in", "x_embedder"),
    ],
)
def test_a_layer_that_cuts_patches_is_a_convolution_or_linear(shared_data, model, original, live, form):
    """The same change as a kernel and flat, whichever of the two the model has."""
    parts = transformer_of(shared_data, model)
    shape = tuple(parts.components["transformer"].get_submodule(live).weight.shape)
    kernel = shape[1:] if len(shape) > 2 else (shape[1] // 4, 2, 2)
    key = f"diffusion_model.{original}"
    up, down, whole = draw(shape[0], 2), draw(2, *kernel, seed=1), draw(shape[0], *kernel, seed=2)
    ones = [1] * (len(kernel) - 1)
    forms = (
        [pair(key, up.reshape(-1, 2, *ones), down), pair(key, up, down.flatten(1))]
        if form == "pair"
        else [{f"{key}.diff": whole}, {f"{key}.diff": whole.flatten(1)}]
    )
    wanted = up.double() @ down.flatten(1).double() if form == "pair" else whole.flatten(1)
    for table in forms:
        found = Change(parts, table)
        assert distance(found.moved[f"{live}.weight"].flatten(1), wanted) < 1e-5
        found.mixer.unload_lora_weights()
