"""Fresh adapters on the parts of pipelines: UNets, transformers and text encoders train, and diffusers loads what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
import peft
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open

import lora_mixer
from lora_mixer import AdapterConfigError, LoHaConfig, LoKrConfig, LoraConfig, LoraMixer
from lora_mixer.errors import MatchError
from tests.small_language_models import distance

if TYPE_CHECKING:
    from pathlib import Path


def noisy(pipe: Any, count: int = 2) -> dict[str, torch.Tensor]:
    """Return the arguments of a UNet's call."""
    drawn = torch.Generator().manual_seed(3)
    config = pipe.unet.config
    size = config.sample_size
    return {
        "sample": torch.randn(count, config.in_channels, size, size, generator=drawn),
        "timestep": torch.tensor([10, 400][:count]),
        "encoder_hidden_states": torch.randn(count, 7, config.cross_attention_dim, generator=drawn),
    }


def flux() -> Any:
    torch.manual_seed(1)
    model: Any = FluxTransformer2DModel
    return model(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
    )


def flux_inputs() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(4)
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).reshape(-1, 2)
    return {
        "hidden_states": torch.randn(2, 16, 8, generator=drawn),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=drawn),
        "pooled_projections": torch.randn(2, 20, generator=drawn),
        "timestep": torch.tensor([0.3, 0.8]),
        "img_ids": torch.cat([torch.zeros(16, 1), places.float()], 1),
        "txt_ids": torch.zeros(5, 3),
    }


def train(model: Any, given: dict[str, torch.Tensor], parameters: Any, lr: float = 2e-3) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    with torch.no_grad():
        out = model(**given)[0]
        target = out + 0.3 * torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    losses = []
    for _ in range(9):
        loss = torch.nn.functional.mse_loss(model(**given)[0], target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
KINDS = {
    "lora": LoraConfig(r=3, target_modules=ATTENTION, init_lora_weights="gaussian"),
    "locon": LoraConfig(r=3, target_modules=[*ATTENTION, "conv1", "conv2", "proj_in", "conv_shortcut"]),
    "dora": LoraConfig(r=3, target_modules=ATTENTION, use_dora=True),
    "loha": LoHaConfig(r=2, target_modules=[*ATTENTION, "conv1"]),
    "lokr": LoKrConfig(r=2, target_modules=[*ATTENTION, "conv1"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_trains_in_a_plain_loop_and_loads_again(kind: str, tmp_path: Path) -> None:
    pipe = lora_mixer.load_demo()
    given = noisy(pipe)
    base = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    mixer = LoraMixer(pipe)
    torch.manual_seed(0)
    report = mixer.add_adapter(KINDS[kind], "style")
    assert [part.component for part in report.components if part.matched] == ["unet"]

    losses = train(pipe.unet, given, [p for _, p in mixer.named_trainable_parameters("style")])

    assert losses[-1] < 0.97 * losses[0]
    with torch.no_grad():
        wanted = pipe.unet(**given)[0]
    assert all(torch.equal(value, base[key]) for key, value in pipe.unet.state_dict().items())
    places = {"kohya": tmp_path / "style.safetensors", "comfyui": tmp_path / "comfy.safetensors"}
    if kind not in ("lora", "locon"):
        places["peft"] = tmp_path / "folder"
    for form, place in places.items():
        mixer.save_lora_weights(place, "style", format=form)
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in pipe.unet.state_dict().items())
    for form, place in places.items():
        mixer.load_lora_weights(place, "style", strict=True, component="unet")
        with torch.no_grad():
            assert distance(pipe.unet(**given)[0], wanted) < 1e-4, form
        mixer.unload_lora_weights()
    if kind in ("loha", "lokr"):  # in LyCORIS' own keys, as few numbers as were trained
        leaf = "hada_w1_a" if kind == "loha" else "lokr_w1"
        with safe_open(places["kohya"], "pt") as file:
            keys = set(file.keys())
        assert any(key.endswith(f".{leaf}") for key in keys)
        assert not any("lora_up" in key or "lora_down" in key for key in keys)
    if kind in ("lora", "locon"):  # what diffusers reads
        pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
        with torch.no_grad():
            assert distance(pipe.unet(**given)[0], wanted) < 1e-4
        pipe.unload_lora_weights()


def test_a_flux_transformer_trains_in_a_plain_loop_and_diffusers_loads_it(tmp_path: Path) -> None:
    model, given = flux(), flux_inputs()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    mixer = LoraMixer(model)
    mixer.add_adapter(
        LoraConfig(r=4, target_modules=[*ATTENTION, "add_q_proj", "proj_mlp"]), "style", blocks=["transformer_blocks.1", "single_transformer_blocks"]
    )  # fmt: skip
    assert {key.split(".")[2] + key.split(".")[3] for key, _ in mixer.named_trainable_parameters("style")} == {
        "transformer_blocks1", "single_transformer_blocks0", "single_transformer_blocks1"
    }  # fmt: skip

    losses = train(model, given, [p for _, p in mixer.named_trainable_parameters("style")], lr=2e-2)

    assert losses[-1] < 0.97 * losses[0]
    with torch.no_grad():
        wanted = model(**given)[0]
    mixer.save_lora_weights(tmp_path / "style.safetensors", "style")
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
    loader: Any = FluxPipeline
    tensors, facts = loader.lora_state_dict(str(tmp_path / "style.safetensors"), return_lora_metadata=True)
    loader.load_lora_into_transformer(tensors, None, model, metadata=facts)
    with torch.no_grad():
        assert distance(model(**given)[0], wanted) < 1e-4


def test_text_encoder_and_unet_train_together_and_are_saved_as_one(tmp_path: Path) -> None:
    pipe = lora_mixer.load_demo()
    mixer = LoraMixer(pipe)
    mixer.add_adapter(LoraConfig(r=2, target_modules=ATTENTION), "style")
    mixer.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "words", component="text_encoder")
    mixer.set_adapters(["style", "words"])
    ids, given = torch.tensor([[1, 5, 9, 3, 2, 2, 2]] * 2), noisy(pipe)

    def run() -> torch.Tensor:
        words = pipe.text_encoder(ids).last_hidden_state
        out: torch.Tensor = pipe.unet(**{**given, "encoder_hidden_states": words})[0]
        return out

    optimizer = torch.optim.AdamW(
        [p for name in ("style", "words") for _, p in mixer.named_trainable_parameters(name)], lr=1e-2
    )
    for step in range(6):
        run().square().mean().backward()
        if step:
            for name in ("style", "words"):
                assert all(
                    p.grad is not None and p.grad.any() for _, p in mixer.named_trainable_parameters(name)
                )
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        wanted = run()

    mixer.save_lora_weights(tmp_path / "both.safetensors", ["style", "words"], format="kohya")

    mixer.unload_lora_weights()
    mixer.load_lora_weights(tmp_path / "both.safetensors", strict=True)
    assert set(mixer.get_list_adapters()) == {"unet", "text_encoder"}
    with torch.no_grad():
        assert distance(run(), wanted) < 1e-4
    with pytest.raises(MatchError, match="no component"):
        mixer.add_adapter(LoraConfig(r=2, target_modules=ATTENTION), component="text_encoder_2")


def test_the_lines_of_a_script_of_diffusers_run_after_the_smallest_change(tmp_path: Path) -> None:
    """What train_text_to_image_lora.py does between its data and its pictures, with the two lines that docs/training.md names."""
    pipe = lora_mixer.load_demo()
    unet, scheduler = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    unet.requires_grad_(requires_grad=False)
    unet.to(accelerator.device, dtype=torch.float32)
    unet_lora_config = peft.LoraConfig(
        r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]
    )
    mixer = LoraMixer(unet)  # instead of unet.add_adapter(unet_lora_config)
    mixer.add_adapter(unet_lora_config)
    lora_layers = [p for p in unet.parameters() if p.requires_grad]
    assert len(lora_layers) == len(mixer.named_trainable_parameters("default_0")) > 0
    optimizer = torch.optim.AdamW(lora_layers, lr=1e-3, weight_decay=1e-2)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    unet.train()
    given = noisy(pipe)
    before = [p.detach().clone() for p in lora_layers]
    base = {key: value.clone() for key, value in unet.state_dict().items()}
    for step in range(4):
        with accelerator.accumulate(unet):
            noise = torch.randn(given["sample"].shape, generator=torch.Generator().manual_seed(step))
            latents = scheduler.add_noise(given["sample"], noise, given["timestep"])
            pred = unet(latents, given["timestep"], given["encoder_hidden_states"], return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(pred.float(), noise.float(), reduction="mean")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(lora_layers, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert all(not torch.equal(p, old) for p, old in zip(lora_layers, before, strict=True))
    unet = accelerator.unwrap_model(unet).eval()

    mixer.save_lora_weights(tmp_path)  # instead of get_peft_model_state_dict and save_lora_weights

    with torch.no_grad():
        wanted = unet(**given)[0]
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in unet.state_dict().items())
    pipe.load_lora_weights(str(tmp_path))
    with torch.no_grad():
        assert distance(pipe.unet(**given)[0], wanted) < 1e-5


def test_rates_by_pattern_and_for_the_second_half() -> None:
    pipe = lora_mixer.load_demo()
    mixer = LoraMixer(pipe)
    mixer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]), "style")
    named = mixer.named_trainable_parameters("style")

    groups = mixer.parameter_groups(
        "style", 1e-3, rates={"mid_block.*to_q": 5e-4, "to_q": 2e-3}, lora_plus_ratio=16
    )

    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == len(named)
    for key, parameter in named:
        wanted = (5e-4 if "mid_block" in key else 2e-3) if "to_q" in key else 1e-3
        assert rate[id(parameter)] == pytest.approx(wanted * (16 if "lora_B" in key else 1)), key
    torch.optim.AdamW(groups)
    with pytest.raises(AdapterConfigError) as caught:
        mixer.parameter_groups("style", 0.0, rates={"nobody": 1e-3, "to_q": -1.0})
    assert [problem.place for problem in caught.value.problems] == ["lr", "rates['to_q']", "rates['nobody']"]
