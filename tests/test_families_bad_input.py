"""
Bad input for transformers, enumerated: each file on each other family's model, and the ways to be broken, too wide, too deep, half.

What is refused is refused by family and figure, and nothing is changed; what is taken is a sibling's file, and what of it has
no place is said to be the sibling's.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from lora_mixer import LoraMixer, LoraMixerError, MatchError, PartialMatchWarning
from lora_mixer.families import family_of_class
from lora_mixer.problem import AbsenceReason, NoteKind, UnusedReason
from tests.test_families_references import REFERENCES
from tests.transformers_data import Parts, parts_of, reference, state

ONE_OF_EACH = list({name.partition("/")[0]: name for name in REFERENCES}.values())
FILES = [
    *ONE_OF_EACH,
    "flux/kohya_all_linear", "flux/bfl_peft_comfy", "flux/kohya_te1_te3", "flux/loha_fused", "flux2/diffusers",
    "sd35m/onetrainer", "sd35l/diffusers", "wan/lightx2v_diff_m", "zimage/kohya_split", "hunyuanvideo/framepack",
]  # fmt: skip
# Models that take each other's files: siblings, whose files have the same names for the same layers.
SIBLINGS = [
    {"flux", "flux_schnell"}, {"flux", "chroma"}, {"flux_schnell", "chroma"}, {"flux2", "flux2_klein"},
    {"wan", "wan_i2v"}, {"sd35m", "sd35l"},
]  # fmt: skip
# Tiny models of two families with the same names and the same sizes of all layers that a file has: nothing tells.
SAME = [("ltx", "sana/diffusers"), ("ovis", "flux/kohya_te1_te3")]


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_a_file_of_another_family_is_refused_by_family_and_figure(shared_data, model):
    own = reference(shared_data, model)
    parts = parts_of(shared_data, own)
    family = family_of_class(own.facts["classes"]["transformer"]).name
    before = state(parts)
    mixer = LoraMixer(parts)
    refused = 0
    for name in FILES:
        other = name.partition("/")[0]
        if other == own.family or (own.family, name) in SAME:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialMatchWarning)
            try:
                report = mixer.load_lora_weights(reference(shared_data, name).adapter, "a")
            except MatchError as error:
                refused += 1
                said = str(error)
                assert family in said, name
                assert any(figure.isdigit() for figure in said.partition(".safetensors")[2]), name
                assert not mixer.adapters
                assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items()), name
                continue
        assert {own.family, other} in SIBLINGS, (name, str(report))
        reasons = {why.kind for part in report.components for why in part.unmatched.values()}
        assert reasons <= {AbsenceReason.NOT_IN_FAMILY, AbsenceReason.NO_COMPONENT}, str(report)
        mixer.unload_lora_weights()
    assert refused >= len(FILES) - 20
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())


def pairs(layers, front="", rank=2, ends=("lora_A.weight", "lora_B.weight")):
    table = {}
    for name, (out, into) in layers.items():
        table[f"{front}{name}.{ends[0]}"] = torch.ones(rank, into)
        table[f"{front}{name}.{ends[1]}"] = torch.full((out, rank), 0.5)
    return table


def refused(parts, table, said, kind=MatchError, **where):
    before = state(parts)
    mixer = LoraMixer(parts)
    with pytest.raises(kind, match=rf"(?s){said}"):
        mixer.load_lora_weights(table, "a", **where)
    assert not mixer.adapters
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())


# --- another depth, another width ---------------------------------------------------------------------------------------

# A layer of a block in each spelling: model, front, name, (out, in), how many blocks the tiny model has.
BLOCKS = [
    ("flux/aitoolkit", "lora_unet_double_blocks_{}_img_attn_proj", (28, 28), 2),
    ("flux/aitoolkit", "diffusion_model.single_blocks.{}.linear1", (196, 28), 2),
    ("flux/aitoolkit", "transformer.single_transformer_blocks.{}.attn.to_q", (28, 28), 2),
    ("flux_schnell/kohya_dev_file", "lora_unet_double_blocks_{}_img_attn_qkv", (84, 28), 2),
    ("chroma/kohya", "lora_unet_single_blocks_{}_linear1", (196, 28), 2),
    ("flux2/kohya", "lora_unet_single_blocks_{}_linear2", (24, 84), 2),
    ("wan/kohya", "diffusion_model.blocks.{}.self_attn.q", (24, 24), 2),
    ("wan/kohya", "lora_unet_blocks_{}_ffn_0", (40, 24), 2),
    ("wan/kohya", "blocks.{}.attn1.to_q", (24, 24), 2),
    ("qwenimage/kohya", "lora_unet_transformer_blocks_{}_attn_to_q", (24, 24), 2),
    ("qwenimage/kohya", "transformer.transformer_blocks.{}.attn.to_q", (24, 24), 2),
    ("zimage/aitoolkit", "diffusion_model.layers.{}.attention.qkv", (72, 24), 2),
    ("hunyuanvideo/kohya", "lora_unet_double_blocks_{}_img_attn_qkv", (60, 20), 1),
    ("sd35l/kohya", "lora_unet_joint_blocks_{}_x_block_attn_qkv", (60, 20), 2),
]


def transformer_of(shared_data, model):
    own = reference(shared_data, model)
    parts = Parts({"transformer": parts_of(shared_data, own).components["transformer"]})
    return parts, family_of_class(own.facts["classes"]["transformer"]).name


@pytest.mark.parametrize("component", [None, "transformer"])
@pytest.mark.parametrize("further", [1, 5])
@pytest.mark.parametrize(("model", "layer", "size", "count"), BLOCKS)
def test_a_file_of_a_deeper_model_is_refused_as_such(
    shared_data, model, layer, size, count, further, component
):
    parts, family = transformer_of(shared_data, model)
    deeper = pairs({layer.format(n): size for n in range(count + further)})
    where = {"component": component} if component else {}
    said = rf"{further} of its {count + further} modules are of blocks that this {re.escape(family)} .*deeper model"
    refused(parts, deeper, said, **where)


@pytest.mark.parametrize(("model", "layer", "size", "count"), BLOCKS)
def test_a_part_of_the_depth_is_no_other_depth(shared_data, model, layer, size, count):
    parts, _ = transformer_of(shared_data, model)
    assert LoraMixer(parts).load_lora_weights(pairs({layer.format(count - 1): size}), "a").complete


@pytest.mark.parametrize("wrong", [(2, 2), (1, 2), (2, 1), (0.5, 0.5)])
@pytest.mark.parametrize(("model", "layer", "size", "count"), BLOCKS)
def test_a_file_of_a_wider_or_narrower_model_is_refused_with_both_sizes(
    shared_data, model, layer, size, count, wrong
):
    """Wan 5B's file on 14B, Klein's on dev: the names are the same, and no layer may be cut to fit."""
    parts, family = transformer_of(shared_data, model)
    other = tuple(int(own * factor) for own, factor in zip(size, wrong, strict=True))
    table = pairs({layer.format(n): other for n in range(count)})
    said = rf"{count} of {count} modules have another shape here.*{re.escape(family)}.*\({other[0]}, {other[1]}\), .* has \({size[0]}, {size[1]}\)"
    refused(parts, table, said)
    if count > 1:  # one layer that fits makes the others no better
        refused(
            parts, pairs({layer.format(0): size, layer.format(1): other}), "1 of 2 modules have another shape"
        )


# --- half a file --------------------------------------------------------------------------------------------------------

ONE = torch.ones
HALVES = {
    "down": {"lora_down.weight": ONE(2, 28), "alpha": ONE(())},
    "up": {"lora_up.weight": ONE(84, 2)},
    "lora_A": {"lora_A.weight": ONE(2, 28)},
    "lora_B": {"lora_B.weight": ONE(84, 2)},
    "lora_B.default": {"lora_B.default.weight": ONE(84, 2)},
    "lora.up": {"lora.up.weight": ONE(84, 2)},
    "three of LoHa's four": {
        f"hada_w{n}": t for n, t in (("1_a", ONE(84, 2)), ("1_b", ONE(2, 28)), ("2_a", ONE(84, 2)))
    },
    "half of LoKr": {"lokr_w1": ONE(2, 2)},
    "two of LoKr's three": {"lokr_w1": ONE(2, 2), "lokr_w2_a": ONE(42, 2)},
    "a magnitude alone": {"dora_scale": ONE(84, 1)},
    "a magnitude beside half a pair": {"dora_scale": ONE(84, 1), "lora_down.weight": ONE(2, 28)},
    "OFT without its last part": {"oft_blocks.0": ONE(4, 7, 7), "oft_blocks.1": ONE(4, 7, 7)},
    "OFT without its second part": {"oft_blocks.0": ONE(4, 7, 7), "oft_blocks.2": ONE(4, 7, 7)},
    "half of GLoRA": {"a1.weight": ONE(2, 28), "a2.weight": ONE(28, 2)},
    "an alpha alone": {"alpha": ONE(())},
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "name", ["lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"]
)
@pytest.mark.parametrize("half", HALVES)
def test_half_of_what_a_fused_layer_needs_is_refused(shared_data, half, name, beside):
    """Also where another layer of the file is whole: half of a file is no file."""
    parts, _ = transformer_of(shared_data, "flux/aitoolkit")
    table = {f"{name}.{end}": tensor for end, tensor in HALVES[half].items()}
    if beside:
        table |= pairs({name.replace("qkv", "proj"): (28, 28)})
        if half == "an alpha alone":
            with pytest.warns(PartialMatchWarning):  # a key that no layer uses, which is said
                report = LoraMixer(parts).load_lora_weights(table, "a")
            assert [why.kind for why in report.unused_keys.values()] == [UnusedReason.LONE_SCALE]
            return
    refused(parts, table, "double_blocks.0.img_attn.qkv", kind=LoraMixerError)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    "name", ["flux/kohya_all_linear", "wan/lightx2v_diff_m", "flux/bfl_lokr_placeholder"]
)
def test_a_file_that_was_cut_off_anywhere_is_refused_by_its_name(shared_data, tmp_path, name, share):
    own = reference(shared_data, name)
    data = own.adapter.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(data[: int(len(data) * share)])
    refused(parts_of(shared_data, own), cut, r"cut\.safetensors", kind=LoraMixerError)


# --- text parts ---------------------------------------------------------------------------------------------------------

CLIP = {f"lora_te1_text_model_encoder_layers_0_self_attn_{x}_proj": (32, 32) for x in "qkv"}
T5 = {f"lora_te3_encoder_block_0_layer_0_SelfAttention_{x}": (32, 32) for x in "qkvo"}
GEMMA = {f"lora_te_layers_0_self_attn_{x}_proj": (32, 32) for x in "qk"}
COMFY_T5 = {
    f"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.{x}": (32, 32) for x in "qkvo"
}


@pytest.mark.parametrize(
    "model", ["flux/aitoolkit", "chroma/kohya", "wan/kohya", "sd35l/kohya", "zimage/aitoolkit"]
)
@pytest.mark.parametrize(
    "text", [CLIP, T5, GEMMA, COMFY_T5], ids=["CLIP", "T5", "Gemma", "T5 in ComfyUI's names"]
)
def test_a_text_part_for_an_encoder_that_is_not_here(shared_data, model, text):
    """Alone it is refused; beside a denoiser's part that fits it is left out, and said to be."""
    parts, family = transformer_of(shared_data, model)
    refused(parts, pairs(text), rf"none of its {len(text)} modules is in this pipeline.*{re.escape(family)}")
    layer, size = next((layer, size) for name, layer, size, _ in BLOCKS if name == model)
    mixer = LoraMixer(parts)
    with pytest.warns(PartialMatchWarning, match="no such component"):
        report = mixer.load_lora_weights(pairs({layer.format(0): size, **text}), "a")
    absent = [why.kind for part in report.components for why in part.unmatched.values()]
    assert absent == [AbsenceReason.NO_COMPONENT] * len(text)
    with pytest.raises(LoraMixerError, match=f"{len(text)} of {len(text) + 1}|no such component"):
        LoraMixer(transformer_of(shared_data, model)[0]).load_lora_weights(
            pairs({layer.format(0): size, **text}), "b", strict=True
        )


def test_a_t5_part_is_not_forced_onto_a_clip_nor_a_clip_part_onto_a_t5(shared_data):
    whole = parts_of(shared_data, reference(shared_data, "flux/kohya_te1_te3"))
    clip = Parts({key: whole.components[key] for key in ("transformer", "text_encoder")})
    refused(clip, pairs(T5), "none of its 4 modules")
    t5 = Parts({key: whole.components[key] for key in ("transformer", "text_encoder_2")})
    refused(t5, pairs(CLIP), "none of its 3 modules")


# --- two experts --------------------------------------------------------------------------------------------------------

QUERY = {"blocks.0.self_attn.q": (24, 24)}
FRONTS = ["diffusion_model.", "transformer.", "pipe.dit.", "lora_unet_"]


def expert(front):
    return pairs(
        {name.replace(".", "_") if front.endswith("_") else name: size for name, size in QUERY.items()}, front
    )


def queries(parts):
    return {
        name: part.state_dict()["blocks.0.attn1.to_q.weight"].clone()
        for name, part in parts.components.items()
    }


@pytest.mark.parametrize("front", FRONTS)
def test_a_pair_of_files_goes_to_its_two_experts_and_each_has_a_weight_of_its_own(shared_data, front):
    parts = parts_of(shared_data, reference(shared_data, "wan/transformer_2"))
    before = queries(parts)
    mixer = LoraMixer(parts)
    high, low = expert(front), {key: 3 * t for key, t in expert(front).items()}
    report = mixer.load_lora_weights(high, "high")
    assert [note.kind for note in report.notes] == [NoteKind.EXPERT]
    assert not mixer.load_lora_weights(low, "low", load_into_transformer_2=True).notes
    mixer.set_adapters(["high", "low"], [0.5, -2.0])
    now = queries(parts)
    # up is 0.5 and down 1 in one file, both three times that in the other, rank 2
    assert torch.allclose(now["transformer"], before["transformer"] + 0.5)
    assert torch.allclose(now["transformer_2"], before["transformer_2"] - 18, atol=1e-5)
    mixer.disable_lora()
    assert all(torch.equal(tensor, before[name]) for name, tensor in queries(parts).items())


@pytest.mark.parametrize("front", FRONTS)
def test_one_file_serves_both_experts_under_two_names(shared_data, front):
    parts = parts_of(shared_data, reference(shared_data, "wan/transformer_2"))
    before = queries(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(expert(front), "a", component="transformer")
    mixer.load_lora_weights(expert(front), "b", component="transformer_2")
    mixer.set_adapters(["a", "b"], [3.0, 1.5])
    now = queries(parts)
    assert torch.allclose(now["transformer"], before["transformer"] + 3)
    assert torch.allclose(now["transformer_2"], before["transformer_2"] + 1.5)


def test_one_adapter_of_both_experts_is_weighed_by_component(shared_data):
    parts = parts_of(shared_data, reference(shared_data, "wan/transformer_2"))
    before = queries(parts)
    mixer = LoraMixer(parts)
    both = expert("transformer.") | expert("transformer_2.")
    assert not mixer.load_lora_weights(both, "a").notes
    mixer.set_adapters("a", {"transformer": 0.5, "transformer_2": 0.25})
    now = queries(parts)
    assert torch.allclose(now["transformer"], before["transformer"] + 0.5)
    assert torch.allclose(now["transformer_2"], before["transformer_2"] + 0.25)


def test_files_that_name_no_component_are_refused_where_two_experts_match_alike(shared_data):
    parts = parts_of(shared_data, reference(shared_data, "wan/transformer_2"))
    for front in ("", "base_model.model."):
        refused(
            parts, expert(front), "transformer and transformer_2 match alike .1 of 1 modules each.; say which"
        )


@pytest.mark.parametrize("component", ["transformer", "transformer_2"])
def test_both_experts_given_to_one_are_refused_by_name(shared_data, component):
    parts = parts_of(shared_data, reference(shared_data, "wan/transformer_2"))
    both = expert("transformer.") | expert("transformer_2.")
    refused(
        parts, both, "its keys name transformer and transformer_2, each with changes", component=component
    )


def test_a_second_experts_file_is_refused_where_there_is_one(shared_data):
    parts, _ = transformer_of(shared_data, "wan/kohya")
    for front in (
        "",
        "transformer.",
        "base_model.model.",
        "base_model.model.transformer.",
        "diffusion_model.",
    ):
        wanted = "this pipeline is Wan .*none of its 1 .*it has no transformer_2"
        refused(parts, expert(f"transformer_2.{front}"), wanted)
    refused(
        parts,
        expert("diffusion_model."),
        "component 'transformer_2' is not in this pipeline",
        component="transformer_2",
    )


# --- not by accident ----------------------------------------------------------------------------------------------------


def test_kinds_of_layers_that_no_block_here_has_are_no_partial_match(shared_data):
    """Names that many families have: attention fits, the feed-forward layers are another family's."""
    parts, family = transformer_of(shared_data, "sana/diffusers")
    refused(
        parts,
        reference(shared_data, "ltx/comfy_same_names").adapter,
        rf"{family} .*4 of the 20 modules are of kinds",
    )


@pytest.mark.parametrize(
    ("model", "table"),
    [
        (
            "sd35l/diffusers",
            {"transformer_blocks.0.attn.to_q": (20, 20), "transformer_blocks.0.attn2.to_q": (20, 20)},
        ),
        ("wan/kohya", {"blocks.0.self_attn.q": (24, 24), "vace_blocks.0.self_attn.q": (24, 24)}),
        ("wan/kohya", {"blocks.0.attn1.to_q": (24, 24), "face_adapter.0.to_q": (24, 24)}),
        ("flux_schnell/kohya_dev_file", {"img_in": (28, 8), "guidance_in.in_layer": (28, 16)}),
        (
            "chroma/kohya",
            {"double_blocks.0.img_attn.qkv": (84, 28), "double_blocks.0.img_mod.lin": (168, 28)},
        ),
    ],
)
def test_modules_that_only_siblings_have_are_left_out_as_theirs(shared_data, model, table):
    parts, family = transformer_of(shared_data, model)
    with pytest.warns(PartialMatchWarning, match=f"this {re.escape(family)} model has no such module"):
        report = LoraMixer(parts).load_lora_weights(pairs(table, "diffusion_model."), "a")
    assert [why.kind for part in report.components for why in part.unmatched.values()] == [
        AbsenceReason.NOT_IN_FAMILY
    ]


# --- a fourth text encoder ----------------------------------------------------------------------------------------------


def test_the_fourth_text_encoder_is_one_and_te_reaches_it(shared_data):
    """HiDream's Llama stands behind two CLIPs and a T5: by name, by number, and where files count it as the only one."""
    whole = parts_of(shared_data, reference(shared_data, "flux/kohya_te1_te3")).components
    language = parts_of(shared_data, reference(shared_data, "lumina2/kohya_te_gemma")).components[
        "text_encoder"
    ]
    model = parts_of(shared_data, reference(shared_data, "hidream/aitoolkit")).components["transformer"]
    parts = Parts({"transformer": model, "text_encoder": whole["text_encoder"], "text_encoder_3": whole["text_encoder_2"],
                   "text_encoder_4": language})  # fmt: skip
    path = next(path for path, _ in language.named_modules() if path.endswith("layers.0.self_attn.q_proj"))
    live = language.get_submodule(path).weight
    before, (out, into) = live.detach().clone(), live.shape
    dotted, flat = path.removeprefix("model."), path.removeprefix("model.").replace(".", "_")
    for key in (f"text_encoder_4.{dotted}", f"lora_te4_{flat}", f"lora_te_{flat}"):
        mixer = LoraMixer(parts)
        report = mixer.load_lora_weights(pairs({key: (out, into)}), "a")
        assert [part.component for part in report.components] == ["text_encoder_4"]
        mixer.set_adapters("a", {"te": 0.5})
        assert torch.allclose(live, before + 0.5)
        mixer.unload_lora_weights()
        assert torch.equal(live, before)
