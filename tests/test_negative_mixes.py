"""Mixes for the half of a batch without the prompt, and tags in both prompts: in the library and on the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiffusionPipeline
from PIL import Image

from lora_mixer import LoraMixer, Mix, MixError
from tests.models import tiny_sd, tiny_sdxl
from tests.small_pipe import SmallPipe
from tests.test_cli_generate import SIZE, files, generate, pixels  # noqa: F401 -- files is a fixture
from tests.test_side import file_of

CLOSE = 1e-4
FAR = 1e-2
STEPS = 2
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def mixer() -> LoraMixer:
    pipe: Any = tiny_sdxl()  # it reads both prompts by each of two text encoders
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file_of(pipe, 1), "a")
    mixer.load_lora_weights(file_of(pipe, 2), "b")
    mixer.disable_lora()
    return mixer


def latents(
    mixer: LoraMixer, prompt: Any = "a castle", unwanted: Any = "rain", **options: Any
) -> torch.Tensor:
    count = len(prompt) if isinstance(prompt, list) else 1
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 16, "width": 16}
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    found: torch.Tensor = mixer.pipe(
        prompt, negative_prompt=unwanted, generator=generators, output_type="latent", **settings | options
    ).images
    return found


def by_hand(mixer: LoraMixer, mix: Any, negative: Any) -> torch.Tensor:
    """Predict each half with its own weights, prompts included, in a loop written out."""
    pipe = mixer.pipe
    halves = []
    for own, which in ((negative, 1), (mix, 0)):
        mixer.set_mix(own, engine="merged")
        with torch.no_grad():
            text = pipe.encode_prompt("a castle", negative_prompt="rain", num_images_per_prompt=1, device="cpu",
                                      do_classifier_free_guidance=True)  # fmt: skip
        ids = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
        extra = {"added_cond_kwargs": {"text_embeds": text[2 + which], "time_ids": ids}}
        halves.append((own, text[which], extra))
    pipe.scheduler.set_timesteps(STEPS)
    z = (
        torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        * pipe.scheduler.init_noise_sigma
    )
    with torch.no_grad():
        for time in pipe.scheduler.timesteps:
            without, with_text = [_predicted(mixer, own, z, time, text, extra) for own, text, extra in halves]
            z = pipe.scheduler.step(without + GUIDANCE * (with_text - without), time, z).prev_sample
    mixer.disable_lora()
    return z


def _predicted(
    mixer: LoraMixer, mix: Any, z: torch.Tensor, time: Any, text: torch.Tensor, extra: Any
) -> torch.Tensor:
    mixer.set_mix(mix, engine="merged")
    return mixer.pipe.unet(z, time, encoder_hidden_states=text, **extra).sample


def test_each_half_has_its_own_mix_text_included(mixer: LoraMixer) -> None:
    mix, negative = {"a": 0.8}, {"a": -0.4, "b": 0.9}
    expected = by_hand(mixer, mix, negative)

    with mixer.applied(mix, negative=negative):
        found, again = latents(mixer), latents(mixer)
    with mixer.applied(mix):
        plain = latents(mixer)

    assert (found - expected).abs().max() < CLOSE
    assert torch.equal(found, again)
    assert (found - plain).abs().max() > FAR


def test_a_negative_mix_that_is_the_same_is_none(mixer: LoraMixer) -> None:
    with mixer.applied({"a": 0.8}, negative="a:0.8"):
        same = latents(mixer)
        assert mixer.is_in_parameters
    with mixer.applied({"a": 0.8}):
        assert torch.equal(latents(mixer), same)


def test_a_batch_may_have_a_negative_mix_for_each_image(mixer: LoraMixer) -> None:
    mixes, negatives = [{"a": 0.9}, {"b": 0.7}], [{"b": 0.5}, {}]
    prompts = ["a castle", "a fish"]

    with mixer.applied(mixes, negative=negatives):
        batch = latents(mixer, prompts, ["rain", "fog"])

    with mixer.applied(mixes[0], negative=negatives[0]):
        alone = latents(mixer, prompts[:1], ["rain"])
    assert (batch[0] - alone[0]).abs().max() < CLOSE


def test_without_guidance_there_is_no_half_for_a_negative_mix(mixer: LoraMixer) -> None:
    with mixer.applied({"a": 0.8}, negative={"b": 1.0}):
        found = latents(mixer, guidance_scale=1.0)
    with mixer.applied({"a": 0.8}):
        assert (latents(mixer, guidance_scale=1.0) - found).abs().max() < CLOSE


def test_negative_mixes_that_cannot_be_served_are_refused(mixer: LoraMixer) -> None:
    with pytest.raises(MixError, match="one negative mix for each of the 2 mixes, got 1"):
        mixer.set_mix([{"a": 1.0}, {"b": 1.0}], negative={"a": 1.0})
    with pytest.raises(MixError, match="cannot be merged"):
        mixer.set_mix({"a": 1.0}, negative={"b": 1.0}, engine="merged")
    with pytest.raises(MixError, match="no component vae_2"):
        mixer.set_mix({"a": 1.0}, negative={"a": {"vae_2": 0.5}})
    assert mixer.mixes == ()


def test_tags_are_read_against_the_loaded_adapters(mixer: LoraMixer) -> None:
    prompt, mix = mixer.parse_prompt("a castle, <lora:a:0.2:0.8>, dusk <lora:b:0.5:start=1>")

    assert (prompt, mix.to_text()) == ("a castle, dusk", Mix.of("a:0.8,te=0.2, b:0.5,start=1").to_text())
    assert mixer.parse_prompt("a castle") == ("a castle", Mix())
    with pytest.raises(MixError, match='there is no adapter "watercolour"; known are "a", "b"'):
        mixer.parse_prompt("a castle <lora:watercolour:1>")


def test_tags_on_the_command_line_set_weights_in_their_half(files, tmp_path) -> None:  # noqa: F811
    model, lora = files
    name = lora.stem
    out = tmp_path / "x.png"

    result = generate(
        model, "--lora", lora, "--seed", 3, "--out", out, "--prompt", f"a castle <lora:{name}:0.7>",
        "--negative-prompt", f"rain <lora:{name}:2>",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(model))
    mixer.load_lora_weights(lora, adapter_name="x")
    options: dict[str, Any] = {"num_inference_steps": 2, "width": SIZE, "height": SIZE}
    with mixer.applied({"x": 0.7}, negative={"x": 2.0}):
        image = mixer.pipe(
            "a castle", negative_prompt="rain", generator=torch.Generator().manual_seed(3), **options
        ).images[0]
    assert np.array_equal(pixels(out), np.asarray(image))
    with Image.open(out) as picture:
        lines = picture.text["parameters"].splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("a castle")
    assert lines[1] == f"Negative prompt: rain <lora:{name}:2>"


def test_a_tag_that_no_lora_option_stands_for_is_an_error(files, tmp_path) -> None:  # noqa: F811
    model, lora = files

    result = generate(
        model, "--lora", lora, "--prompt", "a castle <lora:other:1>", "--out", tmp_path / "x.png"
    )

    assert result.exit_code == 2
    assert 'there is no adapter "other"' in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("engine_file", ["pairs", "full"])
@pytest.mark.parametrize("prompts", [["a castle"], ["a castle", "a red fish"]])
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_each_picture_is_decoded_with_its_own_mix_and_never_with_the_negative_one(
    engine_file: str, prompts: list[str], each: int, many: bool, sliced: bool
) -> None:
    pipe, weights = tiny_sd(), (0.7, 0.3)
    if sliced:
        pipe.vae.enable_slicing()
    pipe.set_progress_bar_config(disable=True)
    layer = pipe.vae.decoder.conv_in
    change = torch.randn_like(layer.weight, generator=torch.Generator().manual_seed(3))
    up, down = change.flatten(1), torch.eye(layer.weight[0].numel()).reshape(-1, *layer.weight.shape[1:])
    file = (
        {"vae.decoder.conv_in.diff": change}
        if engine_file == "full"
        else {
            "vae.decoder.conv_in.lora_A.weight": down,
            "vae.decoder.conv_in.lora_B.weight": up[..., None, None],
        }
    )
    clean = layer.weight.detach().clone()
    latents = torch.randn(len(prompts) * each, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    options: Any = {
        "num_inference_steps": 1,
        "num_images_per_prompt": each,
        "latents": latents,
        "output_type": "pt",
    }
    wanted = []
    for place, weight in enumerate(weights[: len(prompts)] if many else weights[:1]):
        layer.weight.data = clean + weight * change
        pictures = pipe(prompts, **options).images
        wanted.append(pictures[place * each : (place + 1) * each] if many else pictures)
    layer.weight.data = clean
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file, "v", activate=False)
    mixes: Any = [{"v": weight} for weight in weights[: len(prompts)]] if many else {"v": weights[0]}
    mixer.set_mix(mixes, negative=[{"v": -1.0}] * len(prompts) if many else {"v": -1.0})

    made = pipe(prompts, **options).images

    assert (made - torch.cat(wanted)).norm() < CLOSE * made.norm()
    assert {"decode", "encode"} <= vars(pipe.vae).keys()
    mixer.disable_lora()
    assert not {"decode", "encode"} & vars(pipe.vae).keys()


@pytest.mark.parametrize("kind", ["pairs", "full"])
def test_slices_of_an_autoencoder_without_methods_of_its_own_for_them_have_their_own_mixes(kind: str) -> None:
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    file: dict[str, torch.Tensor] = {}
    for path in ("encoder.layers.0", "encoder.layers.3.conv.2", "decoder.layers.0", "decoder.layers.4"):
        weight = vae.get_submodule(path).weight
        if kind == "full":
            file[f"vae.{path}.diff"] = torch.randn_like(weight)
        else:
            file[f"vae.{path}.lora_A.weight"] = torch.randn(2, *weight.shape[1:])
            file[f"vae.{path}.lora_B.weight"] = torch.randn(len(weight), 2, 1, 1)
    mixer = LoraMixer(SmallPipe(vae=vae))
    mixer.load_lora_weights(file, "v", activate=False)
    pictures, latents = torch.rand(3, 3, 8, 8), torch.randn(3, 4, 4, 4)
    weights, wanted = (1.0, -0.5, 0.0), []
    with torch.no_grad():
        for place, weight in enumerate(weights):
            mixer.set_mix({"v": weight}, engine="merged")
            row = slice(place, place + 1)
            wanted.append((vae.encode(pictures[row]).latents, vae.decode(latents[row]).sample))
        mixer.set_mix([{"v": weight} for weight in weights])
        vae.enable_slicing()
        made = vae.encode(pictures).latents, vae.decode(latents).sample
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.spatial_scale_factor = 2, 2
        with pytest.raises(
            MixError, match=r"vae\.decode\(\) takes its 3 pictures apart .*vae\.disable_slicing\(\)"
        ):
            vae.decode(latents)
    for found, expected in zip(made, zip(*wanted, strict=True), strict=True):
        assert (found - torch.cat(expected)).norm() < CLOSE * found.norm()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_pictures_that_are_decoded_by_hand_and_could_be_anybodys_are_refused(count: int) -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(
        {"vae.decoder.conv_in.diff": torch.ones_like(pipe.vae.decoder.conv_in.weight)}, "v"
    )
    mixer.set_mix([{"v": 1.0}, {"v": 0.5}])
    with pytest.raises(MixError, match=rf"vae\.decode\(\) is called with {count} pictures for 2 mixes"):
        pipe.vae.decode(torch.zeros(count, 4, 4, 4))
    mixer.unload_lora_weights()
