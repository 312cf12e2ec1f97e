"""Adapters for transformers, in every spelling of the reference data: exact, merged and beside, alone and in pairs."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import LoraMixer, PipelineStateError
from tests.transformers_data import distance, outputs, parts_of, plain, reference, state

BOUND = 1e-5  # of weights and outputs
CHANGE = 1e-4  # of the change itself, which is smaller than the weight that holds it

pytestmark = [
    # schnell lacks one module of the file; Mochi asks for an autocast that a CPU does not have
    pytest.mark.filterwarnings("ignore:only a part of the adapter:lora_mixer.PartialMatchWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*autocast:UserWarning"),
]
NAMES = """
auraflow: comfy_original diffusers
chroma: comfy_peft distilled_guidance kohya
cogvideox: diffusers
cosmos2: comfy kohya_adaln
flux: aitoolkit bfl_control bfl_lokr_placeholder bfl_peft_comfy comfy_full_diff comfy_te fal_kontext kohya_all_linear
flux: kohya_blocks_r4_a2 kohya_dora_out_fused kohya_fp16_alpha kohya_oft kohya_split_qkv kohya_te1_te3 loha_fused
flux: lycoris_lokr mixed_ranks_no_alpha nested_front onetrainer_dora onetrainer_omi simpletuner_early te2_is_t5
flux: transformer_downup_alpha xlabs xlabs_comfy
flux2: aitoolkit_bfl bfl_lokr diffusers kohya sformer_alias
flux2_klein: bfl_peft
flux_schnell: kohya_dev_file
hidream: aitoolkit
hunyuanimage: kohya_split
hunyuanvideo: diffusion_pipe framepack kohya refiner_and_final
kandinsky5: kohya
krea2: comfy kohya
ltx: comfy_same_names
lumina2: comfy_peft kohya kohya_te_gemma
minimax_h3: comfy_stacked
mochi: diffusers original_bare
ovis: comfy_peft
pixart: peft_script
qwenimage: bare_default comfy_peft_alpha kohya kohya_top_level
sana: diffusers kohya_original
sd35l: base_model diffusers kohya
sd35m: kohya kohya_te123 onetrainer
wan: comfy_peft fun_double_underscore kohya lightx2v_diff_m lightx2v_diffs pairs_and_diff_b transformer_2
wan_i2v: i2v_all
zimage: aitoolkit double_underscore fused_beside_split kohya_fused_qkv kohya_split original_out
"""
REFERENCES = [
    f"{family}/{name}"
    for line in NAMES.strip().splitlines()
    for family, _, names in [line.partition(": ")]
    for name in names.split()
]
# Whose parameters no layer's output is linear in, or whose layer gets more inputs: those are written, all else is beside.
WRITTEN = {
    "flux/bfl_control": {"x_embedder.weight", "x_embedder.bias"},
    "wan/lightx2v_diff_m": {
        "scale_shift_table",
        "blocks.0.scale_shift_table",
        "blocks.1.scale_shift_table",
    },
}
# Whose change is not a multiple of its weight.
ROTATIONS = {"flux/kohya_oft"}


def wrong_weights(parts, reference, before):
    """List the parameters that are not as the reference says, with how far off they are."""
    found = {}
    for part, module in parts.components.items():
        wanted = reference.merged(part)
        for name, tensor in module.state_dict().items():
            target = wanted.pop(plain(name), None)
            base = before[part, name]
            if target is None:
                if not torch.equal(tensor, base):
                    found[f"{part}.{name}"] = "changed"
            elif tensor.shape != target.shape:
                found[f"{part}.{name}"] = tuple(tensor.shape)
            elif distance(tensor, target) > BOUND:
                found[f"{part}.{name}"] = distance(tensor, target)
            elif base.shape == target.shape and distance(tensor - base, target - base) > CHANGE:
                found[f"{part}.{name}"] = distance(tensor - base, target - base)
        found |= {f"{part}.{name}": "missing" for name in wanted}
    return found


def wrong_outputs(root, parts, reference, weight):
    """List the outputs that are not as the reference says, and check that it says something of each component."""
    found = outputs(root, reference, parts)
    wanted = {key: reference.tensors.get(f"out@{weight}/{key}") for key in found}
    assert any(target is not None for target in wanted.values())
    return {
        key: distance(found[key], target)
        for key, target in wanted.items()
        if target is not None and distance(found[key], target) > BOUND
    }


def is_base(parts, before, objects):
    """Say whether every tensor is what it was, in the same objects."""
    now = {
        (part, name): tensor
        for part, module in parts.components.items()
        for name, tensor in module.state_dict().items()
    }
    same = now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in before)
    return same and objects == identities(parts)


def identities(parts):
    """Give the identity and shape of every parameter, and the paths of all modules."""
    return {
        part: (
            [(name, id(p), tuple(p.shape), p.stride()) for name, p in module.named_parameters()],
            [name for name, _ in module.named_modules()],
            dict(module.config.items()) if hasattr(module.config, "items") else None,
        )
        for part, module in parts.components.items()
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_is_met_merged_and_the_base_comes_back_to_the_byte(shared_data, name):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    before, objects = state(parts), identities(parts)
    mixer = LoraMixer(parts)

    report = mixer.load_lora_weights(wanted.adapter, "a", **wanted.where)

    left = [spelling for part in report.components for spelling in part.unmatched]
    assert all(any(mark in spelling for mark in wanted.facts["unmatched"]) for spelling in left)
    assert bool(left) is bool(wanted.facts["unmatched"])
    assert not report.unused_keys
    for weight in wanted.facts["multipliers"]:
        mixer.set_adapters("a", float(weight))
        if float(weight) == 1.0:
            assert wrong_weights(parts, wanted, before) == {}
        assert wrong_outputs(shared_data, parts, wanted, weight) == {}
    mixer.disable_lora()
    assert is_base(parts, before, objects)
    mixer.enable_lora()
    mixer.set_adapters("a", 1.0)
    mixer.unload_lora_weights()
    assert is_base(parts, before, objects)


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_is_met_beside_the_weights(shared_data, name):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    before, objects = state(parts), identities(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a", **wanted.where)
    mixer.set_adapters("a", 0.0)

    for weight in wanted.facts["multipliers"]:
        mixer.set_mix({"a": float(weight)}, engine="side")
        assert wrong_outputs(shared_data, parts, wanted, weight) == {}
    written = {
        key
        for part, module in parts.components.items()
        for key, t in module.state_dict().items()
        if part.startswith("transformer")
        and not (t.shape == before[part, key].shape and torch.equal(t, before[part, key]))
    }
    assert written == WRITTEN.get(name, set())
    mixer.unload_lora_weights()
    assert is_base(parts, before, objects)


def pairs():
    """Give each reference of a family with the next one of it; a lone one with itself."""
    for name in REFERENCES:
        own = [x for x in REFERENCES if x.partition("/")[0] == name.partition("/")[0] and x not in ROTATIONS]
        if name in own:
            yield name, own[(own.index(name) + 1) % len(own)]


def widened(tensor, shape):
    """Give a tensor with zeros in the columns that are more, as an adapter that widens has it."""
    if tensor.shape == shape:
        return tensor
    return torch.nn.functional.pad(tensor, (0, shape[1] - tensor.shape[1]))


@pytest.mark.parametrize(("one", "other"), list(pairs()))
def test_two_adapters_add_up_from_the_base_in_either_order(shared_data, one, other):
    wanted = [reference(shared_data, one), reference(shared_data, other)]
    # the model with more components serves both
    fullest = max(wanted, key=lambda reference: len(reference.facts["classes"]))
    parts = parts_of(shared_data, fullest)
    before, objects = state(parts), identities(parts)
    mixer = LoraMixer(parts)
    expected = {key: tensor.double() for key, tensor in before.items()}
    for name, weight, own in zip("ab", (0.7, -0.3), wanted, strict=True):
        mixer.load_lora_weights(own.adapter, name, **own.where)
        for part in parts.components:
            names = {plain(key): key for key in parts.components[part].state_dict()}
            for key, target in own.merged(part).items():
                place = (part, names[key])
                total, base = (widened(t, target.shape) for t in (expected[place], before[place].double()))
                change = widened(target.double(), total.shape) - widened(base, total.shape)
                # BFL's control files hold new norms, not changes of norms: they are as they are at any weight but 0
                replaced = own.adapter.stem == "bfl_control" and ".norm_" in key
                expected[place] = total + (1.0 if replaced else weight) * change

    for order in ("ab", "ba"):
        mixer.set_adapters(list(order), [{"a": 0.7, "b": -0.3}[name] for name in order])
        now = state(parts)
        assert {
            key: distance(now[key], expected[key])
            for key in now
            if now[key].shape != expected[key].shape or distance(now[key], expected[key]) > BOUND
        } == {}
    mixer.set_adapters("a", 1.0)
    assert wrong_weights(parts, wanted[0], before) == {}
    mixer.unload_lora_weights()
    assert is_base(parts, before, objects)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_what_is_no_layers_output_is_refused_where_rows_have_mixes_of_their_own(shared_data, name):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a", **wanted.where)
    mixer.disable_lora()
    with pytest.raises(PipelineStateError, match="its weight is one for all rows and places") as told:
        mixer.set_mix([{"a": 1.0}, {}], engine="side")
    reasons = ("a bare parameter has no rows", "gives the module more inputs")
    assert any(reason in str(told.value) for reason in reasons)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())
