"""Projections that diffusers fuses: a mix is the same with them, whenever they are fused and however it is served."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lora_mixer import LoraMixer, PipelineStateError
from tests.weights import same_bits

CLOSE = 1e-5
FAR = 1e-2


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pipe:
    """A model by its name in pipelines, and a scheduler."""

    def __init__(self, name: str, model: Any) -> None:
        self.components: dict[str, Any] = {name: model, "scheduler": DDIMScheduler()}
        self.components["scheduler"].set_timesteps(2)
        self.scheduler, self.model = self.components["scheduler"], model

    def run(self) -> torch.Tensor:
        raise NotImplementedError


class UNet(Pipe):
    def __init__(self) -> None:
        model = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 12), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=10, attention_head_dim=2,
        )  # fmt: skip
        super().__init__("unet", model.eval())

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(draw(2, 4, 8, 8), 400, draw(2, 5, 10)).sample


class SD3(Pipe):
    def __init__(self) -> None:
        model = SD3Transformer2DModel(
            sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=3,
            joint_attention_dim=9, caption_projection_dim=12, pooled_projection_dim=7, out_channels=4, pos_embed_max_size=4,
        )  # fmt: skip
        super().__init__("transformer", model.eval())

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(draw(2, 4, 4, 4), draw(2, 5, 9), draw(2, 7), torch.tensor([300])).sample


class Flux(Pipe):
    def __init__(self) -> None:
        model = FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=11, pooled_projection_dim=6, axes_dims_rope=[4, 4, 8],
        )  # fmt: skip
        super().__init__("transformer", model.eval())

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(
                draw(1, 9, 4), draw(1, 5, 11), draw(1, 6), torch.tensor([0.4]), draw(9, 3), draw(5, 3)
            ).sample


class VAE(Pipe):
    def __init__(self) -> None:
        super().__init__("vae", AutoencoderKL(block_out_channels=(6,), norm_num_groups=3).eval())

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model.decode(draw(1, 4, 5, 5)).sample


MODELS = {"unet": UNet, "sd3": SD3, "flux": Flux, "vae": VAE}
LEAVES = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def made(kind: str) -> tuple[Pipe, LoraMixer, dict[str, torch.Tensor]]:
    """Make a pipeline, a mixer and an adapter over its projections, but for the queries of every second layer."""
    torch.manual_seed(0)
    pipe: Pipe = MODELS[kind]()
    component = next(iter(pipe.components))
    file: dict[str, torch.Tensor] = {}
    for number, (path, layer) in enumerate(pipe.model.named_modules()):
        leaf = path.rpartition(".")[2]
        if leaf in LEAVES and not (leaf == "to_q" and number % 2):
            out, width = layer.weight.shape
            rank = 2 + number % 3
            file[f"{component}.{path}.lora_A.weight"] = draw(rank, width, seed=number) * 0.6
            file[f"{component}.{path}.lora_B.weight"] = draw(out, rank, seed=number + 1) * 0.6
            if layer.bias is None:
                file[f"{component}.{path}.lora_B.bias"] = draw(out, seed=number + 2)
    return pipe, LoraMixer(pipe), file


def state(pipe: Pipe) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.model.state_dict().items()}


@pytest.mark.parametrize("engine", ["merged", "side"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_mix_is_the_same_fused_before_between_while_mixed_and_unfused_again(kind: str, engine: Any) -> None:
    pipe, mixer, file = made(kind)
    base = pipe.run()
    if kind == "unet":  # it has no biases there: that path is a hook of its own
        assert any(key.endswith("bias") for key in file)
        if engine == "side":
            file = {key: value for key, value in file.items() if not key.endswith("bias")}
    mixer.load_lora_weights(file, "a")
    mixer.set_mix({"a": 0.8}, engine=engine)
    wanted = pipe.run()
    assert (wanted - base).abs().max() > FAR

    pipe.model.fuse_qkv_projections()  # while it is mixed
    assert (pipe.run() - wanted).abs().max() < CLOSE
    mixer.disable_lora()
    assert (pipe.run() - base).abs().max() < CLOSE
    mixer.set_mix({"a": 0.8}, engine=engine)  # fused before
    assert (pipe.run() - wanted).abs().max() < CLOSE
    pipe.model.unfuse_qkv_projections()
    assert (pipe.run() - wanted).abs().max() < CLOSE
    mixer.disable_lora()
    assert torch.equal(pipe.run(), base)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_what_runs_beside_a_copys_layers_runs_beside_its_fused_ones(
    kind: str, before: bool, way: Any
) -> None:
    pipe, mixer, file = made(kind)
    file = {key: value for key, value in file.items() if not key.endswith("bias")}
    base = pipe.run()
    mixer.load_lora_weights(file, "a")
    mixer.set_mix({"a": 0.8}, engine="side" if before else "merged")
    wanted = pipe.run()

    copied = way(pipe)
    its_own = LoraMixer(copied)
    if not before:
        its_own.set_mix({"a": 0.8}, engine="side")
    copied.model.fuse_qkv_projections()

    assert (copied.run() - wanted).abs().max() < CLOSE
    its_own.disable_lora()
    assert (copied.run() - base).abs().max() < CLOSE


@pytest.mark.parametrize("kind", MODELS)
def test_fused_first_the_fused_weights_come_back_bit_for_bit(kind: str) -> None:
    pipe, mixer, file = made(kind)
    pipe.model.fuse_qkv_projections()
    clean, base = state(pipe), pipe.run()

    mixer.load_lora_weights(file, "a")
    assert (pipe.run() - base).abs().max() > FAR
    assert any("qkv" in name or "kv" in name for name in clean)
    mixer.unload_lora_weights()

    assert [name for name, value in state(pipe).items() if not same_bits(value, clean[name])] == []
    assert torch.equal(pipe.run(), base)
    assert all("fuse_projections" not in vars(module) for module in pipe.model.modules())


def test_a_schedule_reaches_fused_projections_at_each_step() -> None:
    pipe, mixer, file = made("unet")
    mixer.load_lora_weights(file, "a")
    mix = {"a": {"weight": 1.0, "schedule": "0.2@0,1@1"}}

    def steps() -> torch.Tensor:
        with torch.no_grad():
            times = pipe.scheduler.timesteps
            return torch.stack([pipe.model(draw(2, 4, 8, 8), t, draw(2, 5, 10)).sample for t in times])

    mixer.set_mix(mix)
    wanted = steps()
    mixer.disable_lora()
    pipe.model.fuse_qkv_projections()
    for engine in ("auto", "merged"):
        mixer.set_mix(mix, engine=engine)
        assert (steps() - wanted).abs().max() < CLOSE


def test_fused_weights_that_were_trained_are_not_overwritten() -> None:
    pipe, mixer, file = made("flux")
    pipe.model.fuse_qkv_projections()
    fused = pipe.model.transformer_blocks[0].attn.to_qkv.weight
    with torch.no_grad():
        fused.mul_(1.5)
    before = fused.clone()

    with pytest.raises(PipelineStateError, match="unfuse_qkv_projections") as caught:
        mixer.load_lora_weights(file, "a")

    assert (caught.value.component, caught.value.key) == ("transformer", "transformer_blocks.0.attn")
    assert [problem.place for problem in caught.value.problems] == ["transformer.transformer_blocks.0.attn"]
    assert torch.equal(fused, before)
    assert not mixer.adapters
