"""Room reserved beside transformers: ranks count by live module, mixes give what they give merged, compiled once."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lora_mixer import LoraMixer, MixError
from tests.transformers_data import Parts, distance, outputs, parts_of, reference, state

# Files whose layers are fused, split, bare and in diffusers' names.
FILES = [
    "flux/kohya_all_linear", "flux/kohya_split_qkv", "flux/mixed_ranks_no_alpha", "flux/xlabs", "flux2/kohya", "wan/kohya",
    "wan/pairs_and_diff_b", "zimage/kohya_fused_qkv", "sd35m/kohya", "lumina2/kohya", "minimax_h3/comfy_stacked", "ovis/comfy_peft",
]  # fmt: skip


def transformer_out(shared_data, own, parts):
    return outputs(shared_data, own, Parts({"transformer": parts.components["transformer"]}))[
        "transformer.out"
    ]


def loaded(shared_data, name):
    own = reference(shared_data, name)
    whole = parts_of(shared_data, own)
    parts = Parts({"transformer": whole.components["transformer"]})
    mixer = LoraMixer(parts)
    before = state(parts)
    mixer.load_lora_weights(own.adapter, "a", **own.where)
    mixer.load_lora_weights(own.adapter, "b", **own.where)
    return own, parts, mixer, before


def needed(mixer):
    """Give the most ranks that a live module gets from one adapter, by the words of a refusal."""
    with pytest.raises(MixError) as caught:
        mixer.reserve(1)
    return int(str(caught.value).partition("needs rank ")[2].partition(",")[0])


@pytest.mark.parametrize("name", FILES)
def test_mixes_in_reserved_room_give_what_they_give_merged(shared_data, name):
    own, parts, mixer, before = loaded(shared_data, name)
    mixes = [
        {"a": 0.7, "b": -0.3},
        {"a": {"weight": 1.0, "blocks": {"double": 0.5, "single": 0.25}}},
        {"b": 1.3},
        {},
    ]
    wanted = []
    for mix in mixes:
        mixer.set_mix(mix, engine="merged")
        wanted.append(transformer_out(shared_data, own, parts))
    mixer.set_mix({"a": 1.0, "b": 1.0}, engine="merged")
    assert distance(wanted[0], wanted[-1]) > 1e-4
    mixer.disable_lora()
    mixer.reserve(64)
    for mix, out in zip(mixes, wanted, strict=True):
        mixer.set_mix(mix)
        assert distance(transformer_out(shared_data, own, parts), out) < 1e-5
    mixer.disable_lora()
    assert torch.equal(transformer_out(shared_data, own, parts), wanted[-1])
    mixer.release()
    mixer.unload_lora_weights()
    assert all(torch.equal(t, before[key]) for key, t in state(parts).items())


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("flux/kohya_blocks_r4_a2", 4),
        ("flux/kohya_split_qkv", 8),
        ("zimage/kohya_split", None),
        ("wan/kohya", None),
    ],
)
def test_ranks_are_counted_by_live_module(shared_data, name, rank):
    """A part of a fused pair has the rank of the whole; three parts beside each other are not three times that."""
    _, _, mixer, _ = loaded(shared_data, name)
    mixer.set_adapters("a", 1.0)
    one = needed(mixer)
    assert rank is None or one == rank
    mixer.set_adapters(["a", "b"], [1.0, 1.0])
    assert needed(mixer) == 2 * one
    mixer.reserve(2 * one)
    mixer.release()


@pytest.mark.parametrize("name", ["flux/kohya_all_linear", "wan/kohya", "zimage/kohya_fused_qkv"])
def test_mixes_of_fused_files_cause_no_recompilation(shared_data, name):
    own, parts, mixer, _ = loaded(shared_data, name)
    torch._dynamo.reset()
    counter = CompileCounter()
    plain = parts.components["transformer"]
    mixer.set_mix({"a": 0.7, "b": -0.3}, engine="merged")
    wanted = transformer_out(shared_data, own, parts)
    mixer.disable_lora()
    mixer.reserve(32)
    parts.components["transformer"] = torch.compile(plain, backend=counter)
    transformer_out(shared_data, own, parts)
    compiled = counter.frame_count
    with torch._dynamo.config.patch(error_on_recompile=True):
        for mix in (
            {"a": 1.0},
            {"b": {"weight": 0.5, "blocks": {"double": [0.5, 0]}}},
            {},
            {"a": 0.7, "b": -0.3},
        ):
            mixer.set_mix(mix)
            found = transformer_out(shared_data, own, parts)
    assert counter.frame_count == compiled > 0
    assert distance(found, wanted) < 1e-5
