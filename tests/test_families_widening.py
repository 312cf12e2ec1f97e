"""Control adapters give a layer more inputs for as long as they have a part, and only where a pipeline can use them."""

from __future__ import annotations

import itertools
import math

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import LoraConfig, LoraMixer, MatchError, MixError, match_adapter
from lora_mixer.writing import export
from tests.transformers_data import call_arguments, distance, parts_of, reference, state

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
        match=r"transformer\.x_embedder: the layer of a control adapter, with 16 inputs .* 8 here, and FluxPipeline",
    ):
        mixer.load_lora_weights(reference(shared_data, CONTROL).adapter, "a")
    assert not mixer.adapters
    now = pipe.transformer.state_dict()
    assert all(torch.equal(now[key], tensor) for key, tensor in before.items())


def test_the_way_out_that_is_named_is_one_that_the_family_has(shared_data):
    transformer = parts_of(shared_data, reference(shared_data, "flux2/kohya")).components["transformer"]
    pipe = diffusers.Flux2Pipeline(
        transformer=transformer, **dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
    )
    rows, columns = transformer.x_embedder.weight.shape
    wide = {
        f"{IMG_IN}.lora_A.weight": torch.ones(1, 2 * columns),
        f"{IMG_IN}.lora_B.weight": torch.ones(rows, 1),
    }
    with pytest.raises(MatchError, match="Flux2Pipeline gives the model no picture") as caught:
        LoraMixer(pipe).load_lora_weights(wide, "a")
    assert "FluxControlPipeline" not in str(caught.value)
    with pytest.raises(MatchError, match=r"FluxControlPipeline\.from_pipe"):
        LoraMixer(pipeline("FluxPipeline", shared_data)).load_lora_weights(KINDS["wide"][0], "a")


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


IMG_IN = "diffusion_model.img_in"


def on_input(kind, columns, seed):
    """Make an adapter of one layer with so many inputs, and its change in fp64."""
    numbers = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, generator=numbers) * 0.3

    if kind == "diff":
        tensors = {"diff": some(28, columns)}
        change = tensors["diff"].double()
    elif kind == "loha":
        tensors = {
            f"hada_w{n}_{side}": some(*shape)
            for n in "12"
            for side, shape in (("a", (28, 2)), ("b", (2, columns)))
        }
        change = math.prod(tensors[f"hada_w{n}_a"].double() @ tensors[f"hada_w{n}_b"].double() for n in "12")
    else:
        tensors = {"lora_up.weight": some(28, 2), "lora_down.weight": some(2, columns)}
        change = tensors["lora_up.weight"].double() @ tensors["lora_down.weight"].double()
    return {f"{IMG_IN}.{key}": tensor for key, tensor in tensors.items()}, change


KINDS = {
    "wide": on_input("lora", 16, 1),
    "wide too": on_input("lora", 16, 2),
    "wider": on_input("lora", 24, 3),
    "plain": on_input("lora", 8, 4),
    "wide loha": on_input("loha", 16, 5),
    "plain loha": on_input("loha", 8, 6),
    "wider diff": on_input("diff", 24, 7),
}


@pytest.mark.parametrize("engine", ["auto", "merged", "side"])
def test_adapters_of_every_width_come_and_go_in_any_order(shared_data, engine):
    layer = (
        (parts := parts_of(shared_data, reference(shared_data, CONTROL))).components["transformer"].x_embedder
    )
    base, bias, parameter = layer.weight.detach().clone(), layer.bias.detach().double(), layer.weight
    mixer = LoraMixer(parts)

    def check(mix):
        wide = max([8, *(KINDS[name][1].shape[1] for name, weight in mix.items() if weight)])
        wanted = torch.zeros(28, wide, dtype=torch.float64)
        wanted[:, :8] = base
        for name, weight in mix.items():
            change = KINDS[name][1]
            if weight:
                wanted[:, : change.shape[1]] += weight * change
        inputs = torch.randn(3, wide)
        with torch.no_grad():
            assert distance(layer(inputs), inputs.double() @ wanted.T + bias) < 1e-5
        if not any(mix.values()):
            assert torch.equal(layer.weight, base)
            assert layer.weight is parameter

    for number, order in enumerate(itertools.permutations(KINDS, 3)):
        if number % 13:
            continue
        for name in order:  # each while the one before is in effect
            mixer.load_lora_weights(KINDS[name][0], name)
            check({name: 1.0})
        mix = dict(zip(order, (0.7, -0.3, 0.0 if number % 2 else 0.4), strict=True))
        mixer.set_mix(mix, engine=engine)
        check(mix)
        mixer.disable_lora()
        check({})
        mixer.enable_lora()
        check(mix)
        for name in order[1:]:
            mixer.delete_adapters(name)
            mix = {left: weight for left, weight in mix.items() if left != name}
            check(mix)
        mixer.unload_lora_weights()
        check({})


def test_what_is_matched_or_made_while_a_layer_is_wider_is_for_the_base_model(shared_data):
    pipe = pipeline("FluxControlPipeline", shared_data)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(KINDS["wide"][0], "first")
    before = pipe.transformer.x_embedder.weight.detach().clone()
    with pytest.raises(MatchError, match="another shape here"):
        mixer.load_lora_weights(
            on_input("lora", 16, 1)[0] | {f"{IMG_IN}.lora_up.weight": torch.ones(3, 2)}, "b"
        )
    assert torch.equal(pipe.transformer.x_embedder.weight, before)
    assert match_adapter(KINDS["wide"][0], pipe).matched == 1
    new = mixer.add_adapter(LoraConfig(r=2, target_modules=["x_embedder"]), "new")
    assert new.matched == 1
    assert mixer.adapters["new"].ranks == (2,)


def run(transformer, arguments):
    """Call a model as a loop does, step by step."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    outputs = []
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            outputs.append(transformer(**arguments, timestep=timestep.expand(2), return_dict=False)[0])
    return outputs


@pytest.mark.parametrize("engine", ["auto", "merged", "side"])
def test_a_layer_stays_wide_through_a_run_in_which_a_control_adapter_has_its_end(shared_data, engine):
    wanted = reference(shared_data, CONTROL)
    parts = parts_of(shared_data, wanted)
    transformer = parts.components["transformer"]
    numbers = call_arguments(shared_data, wanted)
    del numbers["timestep"]
    base = transformer.x_embedder.weight.detach().clone()
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(KINDS["wide"][0], "a")
    with_it = run(transformer, numbers)
    mixer.load_lora_weights(KINDS["plain"][0], "b")
    mixer.set_mix("a:1,schedule=window(0, 0.5), b:0.5", engine=engine)
    found = run(transformer, numbers)
    mixer.set_mix({"a": 1.0, "b": 0.5})
    both = run(transformer, numbers)
    mixer.unload_lora_weights()

    layer = transformer.x_embedder
    layer.weight = torch.nn.Parameter(
        torch.nn.functional.pad(base + 0.5 * KINDS["plain"][1].float(), (0, 8)), requires_grad=False
    )
    without = run(transformer, numbers)
    for result, target in zip(found, (*both[:2], *without[2:]), strict=True):
        assert distance(result, target) < 1e-5
    assert distance(both[0], with_it[0]) > 1e-4


def test_mixes_of_adapters_of_several_widths_are_saved_as_one(shared_data, tmp_path):
    wanted = reference(shared_data, CONTROL)
    parts = parts_of(shared_data, wanted)
    layer = parts.components["transformer"].x_embedder
    mixer = LoraMixer(parts)
    for name, (tensors, _) in KINDS.items():
        mixer.load_lora_weights(tensors, name, activate=False)
    for mix in ({"plain": 0.5, "wide": 1.0}, {"wider": 0.5, "wide": -0.3}, {"plain": 0.5, "wide": 0.0}):
        mixer.set_mix(mix)
        target = layer.weight.detach().clone()
        mixer.save_lora_weights(tmp_path / "mix.safetensors")
        mixer.load_lora_weights(tmp_path / "mix.safetensors", "saved")
        assert distance(layer.weight, target) < 1e-6
        mixer.delete_adapters("saved")


def test_what_is_trained_beside_a_layer_does_not_run_while_that_is_wider(shared_data):
    parts = parts_of(shared_data, reference(shared_data, CONTROL))
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(KINDS["wide"][0], "control", activate=False)
    down, up = torch.ones(1, 8), torch.zeros(28, 1)
    tensors = {"transformer.x_embedder.lora_A.weight": down, "transformer.x_embedder.lora_B.weight": up}
    mixer.load_lora_weights(tensors, "mine", trainable=True)
    with pytest.raises(
        MixError, match=r"transformer\.x_embedder: another adapter of the mix than 'mine' gives this"
    ):
        mixer.set_adapters(["mine", "control"])
    assert parts.components["transformer"].x_embedder.in_features == 8


def test_files_of_several_widths_are_merged_into_one_of_the_widest(shared_data, tmp_path):
    pipe = diffusers.FluxControlPipeline(
        transformer=pipeline("FluxControlPipeline", shared_data).transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipe.save_pretrained(tmp_path / "model")
    layer = pipe.transformer.x_embedder
    mixer = LoraMixer(pipe)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("wide", "wider", "plain")}
    for name, path in files.items():
        save_file(KINDS[name][0], path)
        mixer.load_lora_weights(path, name, activate=False)
    for one, other in itertools.permutations(files, 2):
        mixer.set_adapters([one, other], [0.7, -0.3])
        target = layer.weight.detach().clone()
        merged = tmp_path / f"{one}_{other}.safetensors"
        export.merge({files[one]: 0.7, files[other]: -0.3}, merged, model=tmp_path / "model")
        mixer.load_lora_weights(merged, "merged")
        assert distance(layer.weight, target) < 1e-6
        mixer.delete_adapters("merged")


def test_files_of_two_shapes_for_a_model_that_is_not_known_do_not_become_one(tmp_path):
    for width in (8, 16):
        pair = {
            "some.layer.lora_A.weight": torch.ones(1, width),
            "some.layer.lora_B.weight": torch.ones(4, 1),
        }
        save_file(pair, tmp_path / f"{width}.safetensors")
    with pytest.raises(MatchError, match=r"some\.layer: has another shape in it .*\(4, 16\) and \(4, 8\)"):
        export.merge([tmp_path / "8.safetensors", tmp_path / "16.safetensors"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
