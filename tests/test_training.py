"""Training an adapter that is loaded with ``trainable=True``: what is trained, what stays, what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.errors import AdapterNameError, MixError, UnsupportedAdapterError

if TYPE_CHECKING:
    from pathlib import Path


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))


def folder(root: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    root.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()},
        root / "adapter_model.safetensors",
    )
    (root / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})
    )
    return root


def pair(layer: int, out: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lora_A.weight": random(2, width, seed=seed),
        f"{layer}.lora_B.weight": random(out, 2, seed=seed + 1),
    }


def test_steps_reach_the_next_call_and_nothing_of_the_model(tmp_path: Path) -> None:
    net = model()
    values = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net[2].bias.requires_grad_(False)
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder(tmp_path / "a", pair(0, 8, 6, 1)), "a", trainable=True)
    parameters = dict(mixer.named_trainable_parameters("a"))
    x = random(4, 6, seed=9)

    def by_hand() -> torch.Tensor:
        up, down = (parameters[f"base_model.model.0.lora_{half}.weight"] for half in "BA")
        weight = values["0.weight"] + 2.0 * up @ down
        hidden = torch.tanh(x @ weight.T + values["0.bias"])
        return hidden @ values["2.weight"].T + values["2.bias"]

    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    before = net(x).detach()
    for _ in range(3):
        assert torch.allclose(net(x), by_hand(), atol=1e-5)
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    assert not torch.allclose(net(x), before, atol=1e-3)
    assert torch.allclose(net(x), by_hand(), atol=1e-5)
    assert all(torch.equal(tensor, values[key]) for key, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    mixer.delete_adapters("a")
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]
    assert all(torch.equal(tensor, values[key]) for key, tensor in net.state_dict().items())


def test_frozen_adapters_in_the_mix_act_and_are_not_trained(tmp_path: Path) -> None:
    net, x = model(), random(4, 6, seed=9)
    mixer = LoraMixer(net)
    still = pair(0, 8, 6, 5)
    mixer.load_lora_weights(folder(tmp_path / "still", still), "still")
    mixer.load_lora_weights(folder(tmp_path / "a", pair(0, 8, 6, 1)), "a", trainable=True)

    mixer.set_adapters(["still", "a"], [0.5, 0.25])

    twin = model()
    other = LoraMixer(twin)
    other.load_lora_weights(tmp_path / "still", "still")
    other.load_lora_weights(tmp_path / "a", "a")
    other.set_adapters(["still", "a"], [0.5, 0.25])
    assert torch.allclose(net(x), twin(x), atol=1e-5)
    net(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for _, p in mixer.named_trainable_parameters("a"))
    with pytest.raises(AdapterNameError, match="trainable=True"):
        mixer.named_trainable_parameters("still")


def test_an_adapter_out_of_the_mix_warns_that_nothing_would_be_trained(tmp_path: Path) -> None:
    mixer = LoraMixer(model())
    mixer.load_lora_weights(folder(tmp_path / "a", pair(0, 8, 6, 1)), "a", trainable=True)
    mixer.disable_lora()

    with pytest.warns(UserWarning, match="not in the mix in effect"):
        mixer.named_trainable_parameters("a")


def test_what_cannot_be_trained_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    net = model()
    mixer = LoraMixer(net)
    with pytest.raises(UnsupportedAdapterError, match="rank_dropout"):
        mixer.load_lora_weights(
            folder(tmp_path / "a", pair(0, 8, 6, 1), rank_dropout=0.1), "a", trainable=True
        )
    assert all(p.requires_grad for p in net.parameters())
    mixer.load_lora_weights(folder(tmp_path / "b", pair(0, 8, 6, 1)), "b", trainable=True)
    with pytest.raises(MixError, match="one weight for each row, at all steps"):
        mixer.set_mix("b:1,start=2")
    with pytest.raises(AdapterNameError, match="keeps its parameters"):
        mixer.load_lora_weights(tmp_path / "b", "b", hotswap=True)
    assert len(mixer.named_trainable_parameters("b")) == 2


def test_the_backward_of_every_linear_kind_is_that_of_its_formula(tmp_path: Path) -> None:
    kinds = {
        "dora": (
            {**pair(0, 8, 6, 1), "0.lora_magnitude_vector": random(8, seed=4).abs()},
            {"use_dora": True},
        ),
        "bias": ({**pair(0, 8, 6, 1), "0.lora_B.bias": random(8, seed=4)}, {"lora_bias": True}),
        "values": (
            {"2.weight": random(5, 8, seed=6), "2.bias": random(5, seed=7)},
            {"modules_to_save": ["2"]},
        ),
    }
    for kind, (tensors, config) in kinds.items():
        net, x = model(), random(4, 6, seed=9)
        mixer = LoraMixer(net)
        mixer.load_lora_weights(folder(tmp_path / kind, tensors, **config), "a", trainable=True)
        parameters = [p for _, p in mixer.named_trainable_parameters("a")]
        assert len(parameters) == len(tensors)
        net(x).square().sum().backward()
        for (
            parameter
        ) in parameters:  # by differences; the length of a DoRA is a constant, so its pair is left out
            if kind == "dora" and parameter.ndim > 1:
                continue
            found = parameter.grad.flatten()[1].item()
            with torch.no_grad():
                sides = []
                for step in (1e-2, -2e-2):
                    parameter.view(-1)[1] += step
                    sides.append(net(x).double().square().sum().item())
                parameter.view(-1)[1] += 1e-2
            assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(found, rel=2e-2, abs=1e-2), kind


def test_pairs_in_training_are_saved_in_the_format_of_diffusers_too(tmp_path: Path) -> None:
    net, x = model(), random(4, 6, seed=9)
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder(tmp_path / "a", pair(0, 8, 6, 1)), "a", trainable=True)
    optimizer = torch.optim.SGD([p for _, p in mixer.named_trainable_parameters("a")], lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()

    mixer.save_lora_weights(tmp_path / "b.safetensors", "a", format="diffusers")

    twin = model()
    LoraMixer(twin).load_lora_weights(tmp_path / "b.safetensors")
    assert torch.allclose(twin(x), net(x), atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool, tmp_path: Path) -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for checkpointed in (False, True):
        net, x = model(), random(4, 6, seed=9).requires_grad_()
        mixer = LoraMixer(net)
        tensors = {**pair(0, 8, 6, 1), **pair(2, 5, 8, 3)}
        mixer.load_lora_weights(folder(tmp_path / "a", tensors, lora_dropout=0.5), "a", trainable=True)
        torch.manual_seed(0)
        out = checkpoint(net, x, use_reentrant=reentrant) if checkpointed else net(x)
        out.square().sum().backward()
        found.append([p.grad.clone() for _, p in mixer.named_trainable_parameters("a")])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_training_under_autocast_keeps_parameters_in_fp32(tmp_path: Path) -> None:
    net = model().to(torch.bfloat16)
    mixer = LoraMixer(net)
    half = {key: value.to(torch.bfloat16) for key, value in pair(0, 8, 6, 1).items()}
    mixer.load_lora_weights(folder(tmp_path / "a", half), "a", trainable=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(random(4, 6, seed=9))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    for _, parameter in mixer.named_trainable_parameters("a"):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.any()
