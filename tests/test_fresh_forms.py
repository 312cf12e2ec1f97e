"""Fresh adapters: forms of configurations, several side by side, blocks, starts from data, full differences, pipelines' parts."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import nn

import lora_mixer
from lora_mixer import (
    EvaConfig,
    LoraConfig,
    LoraMixer,
    TrainableTokensConfig,
)
from lora_mixer.fresh import KINDS, read_config
from tests.fresh_models import EVERY_KIND, build, inputs, output, stirred
from tests.small_language_models import distance
from tests.small_unets import SDXL
from tests.small_unets import build as build_unet

if TYPE_CHECKING:
    from pathlib import Path

EVERY: dict[str, Any] = {
    **EVERY_KIND,
    "tokens": TrainableTokensConfig(token_indices=sorted({*inputs("llama")["input_ids"][0].tolist()})[:2]),
    "head": LoraConfig(target_modules=[], modules_to_save=["lm_head"]),
}


def test_a_configuration_in_every_form_makes_the_same_adapter(tmp_path: Path) -> None:
    ours = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    forms = [
        ours,
        theirs,
        ours.to_dict(),
        theirs.to_dict(),
        tmp_path / "theirs",
        str(tmp_path / "ours" / "adapter_config.json"),
    ]
    found = []
    for form in forms:
        mixer = LoraMixer(build("llama"))
        torch.manual_seed(4)
        mixer.add_adapter(form, "mine")
        found.append(dict(mixer.named_trainable_parameters("mine")))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[key], value) for key, value in found[0].items())
    assert peft.LoraConfig.from_pretrained(tmp_path / "ours").r == 3  # and PEFT reads what is written


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].is_peft])
def test_every_kind_reads_what_it_writes_and_what_peft_writes(name: str, tmp_path: Path) -> None:
    needed: dict[str, Any] = {"ADALORA": {"total_step": 20}, "TRAINABLE_TOKENS": {"token_indices": [3]}}.get(
        name, {}
    )
    theirs = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)](target_modules=["q_proj"], **needed)
    theirs.save_pretrained(tmp_path)

    config, kind = read_config(tmp_path)

    assert kind is KINDS[name]
    assert config == kind.config(target_modules=["q_proj"], **needed)
    assert read_config(config.to_dict())[0] == config
    again = peft.PeftConfig.from_pretrained(str(config.save(tmp_path / "ours").parent))
    written = {**theirs.to_dict(), **config.to_dict()}
    for key, value in written.items():
        mine = again.to_dict().get(key, value)
        assert mine == value or {*mine} == {*value}, key


def test_configurations_of_every_kind_train_side_by_side_and_one_by_one() -> None:
    model = build("llama")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    before = output(model, "llama").detach()
    mixer = LoraMixer(model)
    for name, config in EVERY.items():
        mixer.add_adapter(config, name)
        assert mixer.get_active_adapters() == [name]
        assert distance(output(model, "llama"), before) < 2e-6, name
    alone = {}
    for number, name in enumerate(EVERY):
        stirred(mixer, name, number, 0.05)
        mixer.set_adapters(name)
        alone[name] = output(model, "llama").detach()
        assert distance(alone[name], before) > 1e-5, name
    mixer.set_adapters(list(EVERY))

    output(model, "llama").square().sum().backward()

    for name in EVERY:
        assert all(p.grad is not None and p.grad.any() for _, p in mixer.named_trainable_parameters(name)), (
            name
        )
    for name in reversed(EVERY):
        mixer.set_adapters(name)
        assert distance(output(model, "llama"), alone[name]) < 1e-6, name
        mixer.delete_adapters(name)
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
    assert torch.equal(output(model, "llama"), before)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "tokens"])
def test_what_was_trained_loads_again_here(name: str, tmp_path: Path) -> None:
    model = build("llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(EVERY[name], "mine")
    stirred(mixer, "mine", 0, 0.05)
    wanted = output(model, "llama").detach()

    mixer.save_lora_weights(tmp_path, "mine", format="peft")

    twin = build("llama")
    LoraMixer(twin).load_lora_weights(tmp_path, strict=True)
    assert distance(output(twin, "llama"), wanted) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    assert distance(output(theirs, "llama"), wanted) < 1e-5


def test_targets_in_blocks_of_a_unet_by_path_and_by_id(tmp_path: Path) -> None:
    unet = build_unet(SDXL)
    mixer = LoraMixer(unet)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"])
    mixer.add_adapter(config, "by path", blocks=["mid_block", "up_blocks.0.attentions.1"])
    mixer.add_adapter(config, "by id", blocks=["M00", "OUT01"])
    first, second = (
        {key.split(".lora_")[0] for key, _ in mixer.named_trainable_parameters(name)}
        for name in ("by id", "by id")
    )
    assert first == second
    assert all("mid_block" in key or "up_blocks.0" in key for key in first)
    assert any("mid_block" in key for key in first)
    with pytest.warns(UserWarning, match="not in the mix"):
        paths = {key.split(".lora_")[0] for key, _ in mixer.named_trainable_parameters("by path")}
    assert all(".mid_block." in key or ".up_blocks.0.attentions.1." in key for key in paths)

    mixer.save_lora_weights(tmp_path, "by id", format="peft")

    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert {f"base_model.model.{name}" for name in names} == first


@pytest.mark.parametrize("fields", [{}, {"rho": 1.0}, {"whiten": True}, {"adjust_scaling_factors": False}])
def test_eva_starts_in_the_directions_and_with_the_ranks_of_peft(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(2, 37, (12, 16)),
        "attention_mask": torch.ones(12, 16, dtype=torch.long),
    }
    batch["attention_mask"][3, 9:] = 0
    names = ["q_proj", "o_proj", "down_proj"]
    start = {"init_lora_weights": "eva", "eva_config": peft.EvaConfig(**fields)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            build("llama"), peft.LoraConfig(r=3, lora_alpha=6, target_modules=names, **start)
        )
        initialize_lora_eva_weights(theirs, dataloader=[batch], show_progress_bar=False)
    wanted = {
        key.replace(".default", ""): value.detach()
        for key, value in theirs.named_parameters()
        if "lora_A" in key
    }
    model = build("llama")
    before = output(model, "llama").detach()
    mixer = LoraMixer(model)

    mixer.add_adapter(
        LoraConfig(
            r=3, lora_alpha=6, target_modules=names, init_lora_weights="eva", eva_config=EvaConfig(**fields)
        ),
        "mine",
        eva_data=[
            {key: value[:5] for key, value in batch.items()},
            {key: value[5:] for key, value in batch.items()},
        ],
    )

    found = {key: p.detach() for key, p in mixer.named_trainable_parameters("mine") if "lora_A" in key}
    assert {key: len(value) for key, value in found.items()} == {
        key: len(value) for key, value in wanted.items()
    }
    for key, value in wanted.items():
        for mine, other in zip(found[key], value, strict=True):  # up to its sign; PEFT's is a randomised SVD
            assert abs(float(nn.functional.cosine_similarity(mine, other, dim=0))) > 0.95, key
            # it sees the data twice, until it settles, which its singular values count
            times = 2**0.25 if fields.get("whiten") else 1.0
            assert float(mine.norm() / other.norm()) == pytest.approx(times, rel=0.03)
    assert torch.equal(output(model, "llama"), before)
    assert not model.training
    stirred(mixer, "mine", 0, 0.05)
    out = output(model, "llama").detach()
    with torch.no_grad():
        for key, p in mixer.named_trainable_parameters("mine"):
            theirs.get_parameter(key.replace(".weight", ".default.weight")).copy_(p)
    assert distance(output(theirs.eval(), "llama"), out) < 1e-5  # the scales, too


def test_starts_are_those_of_the_base_whatever_mix_is_in_the_weights() -> None:
    clean, mixed = build("llama"), build("llama")
    first, second = LoraMixer(clean), LoraMixer(mixed)
    plain = {
        "model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(2, 24),
        "model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(24, 2),
    }
    second.load_lora_weights(plain, "merged")
    for config in (
        LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa"),
        LoraConfig(r=3, target_modules=["q_proj"], use_dora=True),
        LoraConfig(r=3, target_modules=[], modules_to_save=["q_proj"]),
        LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)),
    ):
        data = [inputs("llama")] if config.init_lora_weights == "eva" else None
        torch.manual_seed(1)
        first.add_adapter(config, "a", eva_data=data)
        torch.manual_seed(1)
        second.add_adapter(config, "a", eva_data=data, activate=False)
        second.set_adapters(["a", "merged"])
        for (key, one), (_, two) in zip(
            first.named_trainable_parameters("a"), second.named_trainable_parameters("a"), strict=True
        ):
            assert torch.equal(one, two), key
        for mixer in (first, second):
            mixer.delete_adapters("a")


def test_an_adapter_that_is_not_activated_leaves_the_mix_as_it_is() -> None:
    model = build("llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=2, init_lora_weights=False), "mine")
    out = output(model, "llama").detach()
    mixer.add_adapter(LoraConfig(r=2, init_lora_weights=False), "other", activate=False)
    assert mixer.get_active_adapters() == ["mine"]
    assert torch.equal(output(model, "llama"), out)
    assert mixer.add_adapter(LoraConfig(r=2)).adapter_name == "default_2"


def test_all_linear_layers_leave_out_what_is_not_called_and_say_so() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            out: torch.Tensor = self.attention(x, x, x)[0]
            return out

    mixer = LoraMixer(Pooled())
    with pytest.warns(lora_mixer.UnmatchedTargetsWarning, match=r"attention\.out_proj is left out"):
        mixer.add_adapter(LoraConfig(r=2, target_modules="all-linear"), "mine")
    assert {key.split(".")[2] for key, _ in mixer.named_trainable_parameters("mine")} == {"first"}


def test_all_linear_says_that_experts_in_one_tensor_are_left_out_and_how_they_are_named() -> None:
    mixer = LoraMixer(build("mixtral"))
    with pytest.warns(
        lora_mixer.UnmatchedTargetsWarning, match=r"layers\.0\.mlp\.experts\.gate_up_proj \(4 such tensors\)"
    ) as said:
        mixer.add_adapter(LoraConfig(r=2, target_modules="all-linear"), "mine")
    names = re.findall(r"'([^']+)'", str(said[0].message).partition("target_parameters=")[2])
    assert names == ["experts.gate_up_proj", "experts.down_proj"]
    assert not any("experts" in key for key, _ in mixer.named_trainable_parameters("mine"))

    with warnings.catch_warnings():
        warnings.simplefilter("error", lora_mixer.UnmatchedTargetsWarning)
        config = LoraConfig(r=2, target_modules="all-linear", target_parameters=names)
        mixer.add_adapter(config, "experts, too")
    both = [key for key, _ in mixer.named_trainable_parameters("experts, too") if "experts" in key]
    assert len(both) == 8


def test_a_dilated_convolution_s_pair_is_the_change_of_its_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding="valid", dilation=2), nn.Conv2d(5, 4, 3, padding="same")
    )
    x = torch.randn(2, 3, 17, 15)
    mixer = LoraMixer(model)
    mixer.add_adapter(
        LoraConfig(r=2, target_modules=["0", "1"], lora_bias=True, init_lora_weights=False), "mine"
    )
    wanted = model(x).detach()
    mixer.save_lora_weights(tmp_path, "mine", format="peft")
    mixer.delete_adapters("mine")

    mixer.load_lora_weights(tmp_path)

    assert distance(model(x), wanted) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_starts_on_packed_layers_are_those_of_the_weight_that_they_compute_with(bits: int) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = nn.Linear(64, 96)
    packed = (
        bnb.nn.Linear4bit(64, 96, compute_dtype=torch.float32)
        if bits == 4
        else bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
    )
    packed.load_state_dict(plain.state_dict())
    model = nn.Sequential(packed.to("cpu"), nn.Linear(96, 64))
    x = torch.randn(5, 64)
    before = model(x).detach()
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=4, target_modules=["0", "1"]), "pairs")
    model(x).square().sum().backward()
    assert all(p.grad is not None for _, p in mixer.named_trainable_parameters("pairs"))
    mixer.add_adapter(LoraConfig(r=4, target_modules=["0"], use_dora=True), "lengths", activate=False)
    with pytest.warns(UserWarning, match="not in the mix"):
        found = dict(mixer.named_trainable_parameters("lengths"))
    lengths = found["base_model.model.0.lora_magnitude_vector"]
    assert distance(lengths, plain.weight.norm(dim=1)) < (0.05 if bits == 4 else 0.01)
    assert not torch.equal(lengths, plain.weight.norm(dim=1))
    mixer.unload_lora_weights()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_every_kind_the_same_gradients(reentrant: bool) -> None:
    for name, config in EVERY.items():
        found = []
        for checkpointed in (False, True):
            model = build("llama").train()
            if checkpointed:
                model.config.use_cache = False
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # transformers renames it
                    model.gradient_checkpointing_enable(
                        gradient_checkpointing_kwargs={"use_reentrant": reentrant}
                    )
                model.enable_input_require_grads()
            mixer = LoraMixer(model)
            torch.manual_seed(2)
            mixer.add_adapter(config, "mine")
            stirred(mixer, "mine", 0, 0.05)
            output(model, "llama").square().sum().backward()
            found.append([p.grad for _, p in mixer.named_trainable_parameters("mine")])
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True)), name


def test_every_kind_trains_a_half_precision_base_under_autocast_in_fp32() -> None:
    for name, config in EVERY.items():
        model = build("llama").train().to(torch.bfloat16)
        base = {key: value.clone() for key, value in model.state_dict().items()}
        mixer = LoraMixer(model)
        mixer.add_adapter(config, "mine")
        stirred(mixer, "mine", 0, 0.05)
        with torch.autocast("cpu", torch.bfloat16):
            out = output(model, "llama")
        out.float().square().sum().backward()
        for key, parameter in mixer.named_trainable_parameters("mine"):
            assert parameter.dtype == torch.float32, (name, key)
            assert parameter.grad is not None, (name, key)
            assert parameter.grad.isfinite().all(), (name, key)
            assert parameter.grad.any(), (name, key)
        assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


def test_gradients_add_up_over_batches_as_those_of_one_batch() -> None:
    for name, config in EVERY.items():
        model = build("llama")
        mixer = LoraMixer(model)
        torch.manual_seed(2)
        mixer.add_adapter(config, "mine")
        stirred(mixer, "mine", 0, 0.05)
        whole = inputs("llama")
        parameters = [p for _, p in mixer.named_trainable_parameters("mine")]
        model(**whole).logits.square().sum().backward()
        wanted = [p.grad.clone() for p in parameters if p.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        for row in range(3):
            model(
                **{key: value[row : row + 1] for key, value in whole.items()}
            ).logits.square().sum().backward()
        for parameter, value in zip(parameters, wanted, strict=True):
            assert parameter.grad is not None
            assert distance(parameter.grad, value) < 1e-5, name
