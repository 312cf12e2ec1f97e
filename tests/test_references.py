"""Every reference of the shared data is met: the outputs and the weights that the tools themselves compute."""

from __future__ import annotations

import gc

import pytest

from lora_mixer import LoraMixer
from tests.references import Reference, compare, load, names, tiny

BOUND = 1e-5

# What is compared with something else than the tool's own unmerged forward, and why.
OTHER_OUTPUTS = {
    "peft_dirs/peft_sd_oft_conv": (
        "merged_out@",
        (
            "PEFT's unmerged OFT on 3x3 convolutions adds up overlapping patches without dividing by their number, so "
            "even an untrained adapter (R = I) changes the output. Its merge, W @ R^T, is the paper's rotation and leaves "
            "the base alone for R = I; the golden has both."
        ),
    ),
}
# Parts of references that hold a tool's fault, and which.
FAULTS = {
    "diffusers_peft/sd_lora_dora_alpha8_meta": (
        "text_encoder.",
        "diffusers 0.42.1 with transformers 5 drops the text encoder's magnitudes (the golden's notes)",
    ),
}
# Whose tool has another meaning of weights below 1, that is there by name; the one in use agrees at 1 only.
STRENGTHS = {
    "lycoris_3.4.0_kohya/kly_sd_locon_dora": "lycoris",
    "lycoris_4.1.3/lyco_sd_locon_dora_out": "lycoris",
    "lycoris_4.1.3/lyco_sd_lokr_dora": "lycoris",
}
MIX = "diffusers_peft/sd_mix_0.7_0.4"
SINGLE = [name for name in names() if name != MIX]


def test_all_references_are_here(shared_data):
    assert len(names()) >= 83, f"references in {shared_data / 'generated'}"


@pytest.mark.parametrize("name", SINGLE)
def test_reference_is_met(shared_data, name):
    reference = Reference.read(shared_data, name)
    pipeline = tiny(shared_data, reference.base)
    outputs = OTHER_OUTPUTS.get(name, ("out@", ""))[0]
    mixer = LoraMixer(pipeline.pipe)

    report = load(mixer, reference, "a", dora_strength=STRENGTHS.get(name))

    assert report.complete
    assert reference.weights()
    for weight in reference.weights():
        mixer.set_adapters("a", float(weight))
        errors = compare(pipeline, reference, (f"{outputs}{weight}", f"merged@{weight}"))
        assert any(key.startswith(outputs) for key in errors)
        assert {key: error for key, error in errors.items() if error > BOUND} == {}
        expected = reference.facts["multipliers"].get(weight, {}).get("changed_params", {})
        changes = {key: change.norm().item() for key, change in pipeline.changes().items()}
        fault = FAULTS.get(name, ("nothing",))[0]
        norms = {
            f"{part}.{key.removeprefix('text_model.')}": numbers[0]
            for part, table in expected.items()
            for key, numbers in table.items()
        }
        norms = {key: norm for key, norm in norms.items() if not key.startswith(fault)}
        changes = {key: norm for key, norm in changes.items() if not key.startswith(fault)}
        if norms:
            assert changes == pytest.approx(norms, rel=1e-4, abs=1e-5)
    # beside all layers, those of text encoders too, as a batch of two images has it
    mixer.set_mix([{"a": float(weight)}, {"a": float(weight)}], engine="side")
    assert pipeline.is_base()
    errors = compare(pipeline, reference, (f"{outputs}{weight}",))
    assert {key: error for key, error in errors.items() if error > BOUND} == {}
    mixer.set_adapters("a", 0.0)
    assert pipeline.is_base()
    mixer.set_adapters("a", 1.0)
    mixer.unload_lora_weights()
    assert pipeline.is_base()


@pytest.mark.parametrize("name", STRENGTHS)
def test_dora_of_lycoris_is_met_at_one_and_grows_with_the_weight(shared_data, name):
    reference = Reference.read(shared_data, name)
    pipeline = tiny(shared_data, reference.base)
    mixer = LoraMixer(pipeline.pipe)
    load(mixer, reference, "a")

    mixer.set_adapters("a", 1.0)
    errors = compare(pipeline, reference, ("out@1.0", "merged@1.0"))
    assert errors
    assert {key: error for key, error in errors.items() if error > BOUND} == {}
    whole = pipeline.changes()
    for weight in (0.6, 0.001, -1.0):
        mixer.set_adapters("a", weight)
        part = pipeline.changes()
        assert part.keys() == whole.keys()
        for key, change in part.items():
            assert float((change - weight * whole[key]).norm()) < 1e-5 * float(whole[key].norm()) + 1e-6
    mixer.unload_lora_weights()
    assert pipeline.is_base()


def test_reference_of_a_mix_is_met_in_every_state(shared_data):
    reference = Reference.read(shared_data, MIX)
    pipeline = tiny(shared_data, "sd")
    mixer = LoraMixer(pipeline.pipe)
    for name, file in zip("ab", reference.files, strict=True):
        mixer.load_lora_weights(file, name)

    def meets(*states):
        errors = compare(pipeline, reference, states)
        assert errors
        assert {key: error for key, error in errors.items() if error > BOUND} == {}

    mixer.set_adapters(["a", "b"], [0.7, 0.4])
    meets("mix@a0.7_b0.4", "mix@fused_a0.7_b0.4", "merged@a0.7_b0.4")
    mixer.disable_lora()
    meets("mix@disabled")
    assert pipeline.is_base()
    mixer.enable_lora()
    meets("mix@reenabled_a0.7_b0.4")
    mixer.set_adapters(["a", "b"], [1.0, -0.5])
    meets("mix@a1.0_b-0.5")
    mixer.set_adapters("b", 0.4)
    meets("mix@b0.4_only")
    sides = {"down": 0.3, "mid": 0.8, "up": 0.5}
    mixer.set_adapters("a", [{"unet": sides, "text_encoder": 0.5}])
    meets("mix@a_blockwise_scalar")
    mixer.set_adapters("a", [{"unet": {**sides, "up": {"block_0": [0.1, 0.5, 0.9]}}, "text_encoder": 0.5}])
    meets("mix@a_blockwise_list")
    mixer.delete_adapters("a")
    mixer.set_adapters("b", 1.0)
    meets("mix@after_delete_a_b1.0")
    mixer.unload_lora_weights()
    meets("mix@unloaded")
    assert pipeline.is_base()


@pytest.fixture(autouse=True)
def no_mixer_left_behind(shared_data):
    """A failed test must not leave an adapter in the pipelines that all tests share."""
    yield
    for kind in ("sd", "sdxl"):
        pipeline = tiny(shared_data, kind)
        if not pipeline.is_base():
            for part in ("unet", "text_encoder", "text_encoder_2"):
                module = getattr(pipeline.pipe, part, None)
                if module is not None:
                    own = {
                        k: pipeline.base[f"{part}.{k.removeprefix('text_model.')}"]
                        for k in module.state_dict()
                    }
                    module.load_state_dict(own)
    gc.collect()
