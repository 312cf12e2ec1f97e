"""Files for another family, depth or width: the reason by family and figure, and nothing is changed."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import (
    InvalidAdapterError,
    LoraMixer,
    LoraMixerError,
    MatchError,
    PartialMatchWarning,
)
from tests.transformers_data import Parts, parts_of, reference, state

# The model, the file, and what is said of them.
FOREIGN = [
    (
        "flux/aitoolkit",
        "sd35m/kohya",
        r"for SD3 in kohya names, and this pipeline is Flux\.1 .* none of its 31",
    ),
    ("flux/aitoolkit", "flux2/kohya", r"22 of 22 modules have another shape.*this pipeline is Flux\.1"),
    ("flux/aitoolkit", "qwenimage/kohya", r"for Qwen-Image, and this pipeline is Flux\.1 .* 16 of its 28"),
    ("flux2/kohya", "qwenimage/kohya", r"for Qwen-Image, and this pipeline is Flux\.2 .* 16 of its 28"),
    ("flux2/kohya", "hunyuanvideo/kohya", r"for HunyuanVideo, and this pipeline is Flux\.2 .* 8 of its 16"),
    (
        "chroma/kohya",
        "flux/kohya_all_linear",
        r"8 of its 36 modules are of blocks that this Chroma .* deeper model",
    ),
    ("sd35m/kohya", "flux/kohya_all_linear", r"for Flux\.1, and this pipeline is SD3 .* 2 of its 36"),
    ("sd35l/kohya", "zimage/kohya_fused_qkv", r"for Z-Image in kohya names, and this pipeline is SD3"),
    ("zimage/aitoolkit", "cosmos2/kohya_adaln", r"for Anima, and this pipeline is Z-Image .* 1 of its 38"),
    ("lumina2/kohya", "mochi/original_bare", r"for Mochi, and this pipeline is Lumina 2 .* 1 of its 19"),
    ("wan/kohya", "krea2/kohya", r"for Krea 2 in kohya names, and this pipeline is Wan"),
    ("hunyuanvideo/kohya", "flux2_klein/bfl_peft", r"have another shape.*this pipeline is HunyuanVideo"),
    ("krea2/comfy", "wan/comfy_peft", r"for Wan in comfyui names, and this pipeline is Krea 2"),
    ("qwenimage/kohya", "auraflow/comfy_original", r"for AuraFlow.*this pipeline is Qwen-Image"),
    ("ltx/comfy_same_names", "sana/kohya_original", r"for Sana.*this pipeline is LTX-Video"),
]


@pytest.mark.parametrize(("model", "file", "said"), FOREIGN)
def test_file_for_another_family_is_refused_by_its_name(shared_data, model, file, said):
    parts = parts_of(shared_data, reference(shared_data, model))
    before = state(parts)
    mixer = LoraMixer(parts)

    with pytest.raises(MatchError, match=rf"(?s){said}"):
        mixer.load_lora_weights(reference(shared_data, file).adapter, "a")

    assert not mixer.adapters
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())


def pair(out, into, rank=2):
    return {".lora_up.weight": torch.ones(out, rank), ".lora_down.weight": torch.ones(rank, into)}


def table(**layers):
    return {f"diffusion_model.{name}{leaf}": t for name, own in layers.items() for leaf, t in own.items()}


def test_blocks_that_the_model_does_not_have_are_refused_as_of_a_deeper_one(shared_data):
    """Two blocks fit; loading those alone would look like success."""
    mixer = LoraMixer(parts_of(shared_data, reference(shared_data, "flux/aitoolkit")))
    layers = {f"double_blocks.{n}.img_attn.proj": pair(28, 28) for n in range(3)}
    with pytest.raises(
        MatchError, match=r"1 of its 3 modules are of blocks .* double_blocks\.2\.img_attn\.proj"
    ):
        mixer.load_lora_weights(table(**layers), "a")


@pytest.mark.parametrize(
    ("model", "file", "lacking"),
    [
        ("flux_schnell/kohya_dev_file", "flux_schnell/kohya_dev_file", "guidance_in_in_layer"),
        ("wan/kohya", "wan_i2v/i2v_all", "blocks.0.cross_attn.k_img"),
    ],
)
def test_modules_of_sibling_models_are_left_out_and_reported_as_such(shared_data, model, file, lacking):
    wanted = reference(shared_data, model)
    parts = parts_of(shared_data, wanted)
    mixer = LoraMixer(parts)
    with pytest.warns(PartialMatchWarning, match=r"this (?:Flux\.1|Wan) model has no such module"):
        report = mixer.load_lora_weights(reference(shared_data, file).adapter, "a")
    (part,) = report.components
    assert lacking in part.unmatched
    assert set(part.unmatched.values()) == {
        f"this {'Wan' if 'wan' in model else 'Flux.1'} model has no such module"
    }


def test_modulation_of_flux_is_left_out_on_chroma(shared_data):
    mixer = LoraMixer(parts_of(shared_data, reference(shared_data, "chroma/kohya")))
    layers = {
        "double_blocks.0.img_attn.qkv": pair(84, 28),
        "double_blocks.0.img_mod.lin": pair(168, 28),
        "single_blocks.1.linear1": pair(196, 28),
        "single_blocks.1.modulation.lin": pair(84, 28),
    }
    with pytest.warns(PartialMatchWarning):
        report = mixer.load_lora_weights(table(**layers), "a")
    (part,) = report.components
    assert set(part.unmatched) == {"double_blocks.0.img_mod.lin", "single_blocks.1.modulation.lin"}
    assert len(part.matched) == 7


def test_text_part_without_its_encoder_is_reported_and_the_rest_applied(shared_data):
    wanted = reference(shared_data, "flux/kohya_te1_te3")
    whole = parts_of(shared_data, wanted)
    mixer = LoraMixer(Parts({"transformer": whole.components["transformer"]}))
    with pytest.warns(PartialMatchWarning, match="the pipeline has no such component"):
        report = mixer.load_lora_weights(wanted.adapter, "a")
    found = {part.component: len(part.matched) for part in report.components}
    assert found["transformer"] == 6
    assert sum(found.values()) == 6


def test_a_change_over_all_inputs_of_a_part_of_a_module_is_exact(shared_data):
    """Ovis keeps two layers of the file as the halves of one module: a half's inputs are its own."""
    wanted = reference(shared_data, "ovis/comfy_peft")
    parts = parts_of(shared_data, wanted)
    live = parts.components["transformer"].get_submodule("transformer_blocks.0.ff.net.0.proj").weight
    before = live.detach().clone().double()
    mixer = LoraMixer(parts)
    generator = torch.Generator().manual_seed(4)
    up, down = torch.randn(112, 2, generator=generator), torch.randn(2, 28, generator=generator)
    scale = torch.rand(1, 28, generator=generator) + 0.5
    name = "diffusion_model.double_blocks.0.img_mlp.gate_proj"
    mixer.load_lora_weights(
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.dora_scale": scale}, "a"
    )
    turned = before[112:] + up.double() @ down.double()
    assert torch.allclose(live[112:].double(), turned * scale / turned.norm(dim=0, keepdim=True), atol=1e-6)
    assert torch.equal(live[:112].double(), before[:112])


def test_a_narrower_file_for_a_model_with_more_inputs_changes_the_first_of_them(shared_data):
    """A file of Flux dev on Fill or Control: the further channels have no part in it."""
    wanted = reference(shared_data, "flux/aitoolkit")
    parts = parts_of(shared_data, wanted)
    live = parts.components["transformer"].x_embedder.weight
    before = live.detach().clone()
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(table(img_in=pair(28, 5)), "a")
    assert torch.allclose(live[:, :5], before[:, :5] + 2)
    assert torch.equal(live[:, 5:], before[:, 5:])


def test_a_wider_layer_is_refused_where_the_family_has_no_wider_models(shared_data):
    parts = parts_of(shared_data, reference(shared_data, "sd35l/kohya"))
    mixer = LoraMixer(parts)
    with pytest.raises(MatchError, match=r"context_embedder: made for a weight"):
        mixer.load_lora_weights(table(context_embedder=pair(20, 30)), "a")


@pytest.mark.parametrize(("model", "file", "said"), [case for case in FOREIGN if "cosmos2" not in case[1]])
def test_file_for_another_family_is_refused_where_the_component_is_said_too(shared_data, model, file, said):
    parts = parts_of(shared_data, reference(shared_data, model))
    before = state(parts)
    mixer = LoraMixer(parts)

    with pytest.raises(MatchError):
        mixer.load_lora_weights(reference(shared_data, file).adapter, "a", component="transformer")

    assert not mixer.adapters
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())


@pytest.mark.parametrize("component", [None, "transformer"])
def test_a_deeper_models_file_is_refused_whoever_says_where_it_belongs(shared_data, component):
    parts = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    mixer = LoraMixer(parts)
    layers = {f"double_blocks.{n}.img_attn.proj": pair(28, 28) for n in range(3)}
    with pytest.raises(MatchError, match=r"1 of its 3 modules are of blocks"):
        mixer.load_lora_weights(table(**layers), "a", component=component)


def test_text_parts_do_not_count_as_foreign_where_the_transformer_alone_is_asked_for(shared_data):
    wanted = reference(shared_data, "flux/kohya_te1_te3")
    parts = parts_of(shared_data, wanted)
    mixer = LoraMixer(parts)
    with pytest.warns(PartialMatchWarning):
        report = mixer.load_lora_weights(wanted.adapter, "a", component="transformer")
    assert {part.component: len(part.matched) for part in report.components} == {"transformer": 6}


@pytest.mark.parametrize("half", ["down", "up"])
def test_half_of_each_pair_is_refused(shared_data, half):
    parts = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    before = state(parts)
    mixer = LoraMixer(parts)
    whole = table(**{f"double_blocks.{n}.img_attn.qkv": pair(84, 28) for n in range(2)})
    with pytest.raises(InvalidAdapterError, match=rf"has lora {half} but no lora.*the file is incomplete"):
        mixer.load_lora_weights({key: t for key, t in whole.items() if f"lora_{half}" in key}, "a")
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())


def test_a_file_that_was_cut_off_is_refused(shared_data, tmp_path):
    wanted = reference(shared_data, "wan/kohya")
    data = wanted.adapter.read_bytes()
    cut = tmp_path / "half.safetensors"
    cut.write_bytes(data[: len(data) // 2])
    mixer = LoraMixer(parts_of(shared_data, wanted))
    with pytest.raises(LoraMixerError, match=r"half\.safetensors"):
        mixer.load_lora_weights(cut, "a")
    assert not mixer.adapters


def experts():
    one = table(**{"blocks.0.self_attn.q": pair(24, 24)})
    other = {key: 2 * t for key, t in one.items()}
    return {
        **{key.replace("diffusion_model.", "transformer."): t for key, t in one.items()},
        **{key.replace("diffusion_model.", "transformer_2."): t for key, t in other.items()},
    }


def test_both_experts_of_one_file_are_not_summed_into_one_transformer(shared_data):
    """Asked for by name, the transformer cannot be both of them; unasked, the second is reported as not here."""
    parts = Parts(
        {"transformer": parts_of(shared_data, reference(shared_data, "wan/kohya")).components["transformer"]}
    )
    before = state(parts)
    mixer = LoraMixer(parts)
    with pytest.raises(MatchError, match="its keys name transformer and transformer_2, each with changes"):
        mixer.load_lora_weights(experts(), "a", component="transformer")
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())
    with pytest.warns(PartialMatchWarning, match="the pipeline has no such component"):
        report = mixer.load_lora_weights(experts(), "a")
    assert {part.component: len(part.matched) for part in report.components} == {
        "transformer": 1,
        "transformer_2": 0,
    }
