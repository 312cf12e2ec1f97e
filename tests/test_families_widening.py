"""Control adapters give a layer more inputs for as long as they have a part, and only where a pipeline can use them."""

from __future__ import annotations

import diffusers
import pytest
import torch

from lora_mixer import LoraMixer, MatchError
from tests.transformers_data import distance, parts_of, reference, state

CONTROL = "flux/bfl_control"


def pipeline(kind, shared_data):
    """Make a pipeline of diffusers around a tiny transformer, with nothing else in it."""
    transformer = parts_of(shared_data, reference(shared_data, CONTROL)).components["transformer"]
    rest = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return getattr(diffusers, kind)(transformer=transformer, **dict.fromkeys(rest))


def test_a_control_adapter_is_refused_by_name_where_the_pipeline_has_no_picture_for_it(shared_data):
    pipe = pipeline("FluxPipeline", shared_data)
    before = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    mixer = LoraMixer(pipe)
    with pytest.raises(
        MatchError,
        match=r"control adapter: transformer\.x_embedder has 16 inputs .* 8 here, and FluxPipeline",
    ):
        mixer.load_lora_weights(reference(shared_data, CONTROL).adapter, "a")
    assert not mixer.adapters
    now = pipe.transformer.state_dict()
    assert all(torch.equal(now[key], tensor) for key, tensor in before.items())


def test_the_pipeline_is_told_how_many_channels_there_are_and_told_back(shared_data):
    pipe = pipeline("FluxControlPipeline", shared_data)
    config, layer = pipe.transformer.config, pipe.transformer.x_embedder
    parameter, storage = layer.weight, layer.weight.data_ptr()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(reference(shared_data, CONTROL).adapter, "a")

    assert (layer.in_features, tuple(layer.weight.shape)) == (16, (28, 16))
    assert pipe.transformer.config.in_channels == 2 * config.in_channels
    mixer.disable_lora()

    assert (layer.in_features, tuple(layer.weight.shape)) == (8, (28, 8))
    assert layer.weight is parameter
    assert layer.weight.data_ptr() == storage
    assert pipe.transformer.config is config


def test_a_plain_adapter_on_a_widened_layer_changes_the_inputs_that_it_knows(shared_data):
    wanted = reference(shared_data, CONTROL)
    parts = parts_of(shared_data, wanted)
    layer = parts.components["transformer"].x_embedder
    base = layer.weight.detach().clone()
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "control")
    alone = layer.weight.detach().clone()
    name = "diffusion_model.img_in"
    mixer.load_lora_weights(
        {f"{name}.lora_up.weight": torch.ones(28, 1), f"{name}.lora_down.weight": torch.ones(1, 8)}, "plain"
    )

    mixer.set_adapters(["plain", "control"], [0.5, 1.0])
    assert torch.allclose(layer.weight[:, :8], alone[:, :8] + 0.5)
    assert torch.equal(layer.weight[:, 8:], alone[:, 8:])
    mixer.set_adapters("plain", 0.5)
    assert torch.allclose(layer.weight, base + 0.5)
    mixer.delete_adapters(["plain", "control"])
    assert torch.equal(layer.weight, base)


def test_a_widened_model_that_changes_its_dtype_comes_back_in_it(shared_data):
    wanted = reference(shared_data, CONTROL)
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a")
    parts.components["transformer"].to(torch.float64)
    mixer.set_adapters("a", 1.0)
    mixer.unload_lora_weights()
    for key, tensor in state(parts).items():
        assert torch.equal(tensor, before[key].double())


def test_a_mix_that_cannot_be_written_leaves_the_layer_as_narrow_as_it_was(shared_data, monkeypatch):
    wanted = reference(shared_data, CONTROL)
    parts = parts_of(shared_data, wanted)
    before = state(parts)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a", activate=False)

    def broken(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr("lora_mixer.engines.merged.engine.blend_weight", broken)
    with pytest.raises(MemoryError):
        mixer.set_adapters("a", 1.0)
    monkeypatch.undo()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(parts).items())
    mixer.set_adapters("a", 1.0)
    target = wanted.merged("transformer")["x_embedder.weight"]
    assert distance(parts.components["transformer"].x_embedder.weight, target) < 1e-6
