"""AdaLoRA in training: its loss, which ranks stay, and what is saved of the rest, against PEFT's own."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.errors import AdapterNameError, PipelineStateError
from tests.small_language_models import distance

if TYPE_CHECKING:
    from pathlib import Path


class Net(nn.Module):
    """Three linear layers and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(6, 9)
        self.second = nn.Linear(9, 7)
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.last = nn.Linear(28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        pictures = self.conv(hidden[:, None, None, :]).flatten(1)
        out: torch.Tensor = self.last(pictures)
        return out


def started(root: Path, **fields: Any) -> tuple[Path, Any]:
    """Write an AdaLoRA as PEFT starts one, with singular values that are not zero, and return PEFT's model."""
    config = peft.AdaLoraConfig(
        **{
            "target_modules": ["first", "second", "conv"],
            "init_r": 5,
            "target_r": 2,
            "lora_alpha": 10,
            "tinit": 2,
            "tfinal": 3,
            "deltaT": 2,
            "total_step": 14,
            "orth_reg_weight": 0.3,
            **fields,
        }
    )
    model = peft.get_peft_model(Net(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "ranknum" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(root)
    return root, model


def steps_of_peft(model: Any, x: torch.Tensor, y: torch.Tensor, count: int) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    weight = model.peft_config["default"].orth_reg_weight
    losses = []
    for step in range(count):
        terms = [
            torch.linalg.matrix_norm(square - torch.eye(len(square)))
            for name, p in model.named_parameters()
            if ".lora_A" in name or ".lora_B" in name
            for square in [p @ p.T if ".lora_A" in name else p.T @ p]
        ]
        loss = (model(x) - y).square().mean() + weight * torch.stack(terms).mean()
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tfinal": 0, "deltaT": 1},
        {"tinit": 0, "tfinal": 7, "target_r": 1},
        {"target_r": 5},  # nothing to take away until the very end
        {"lora_dropout": 0.0, "beta1": 0.5, "beta2": 0.9, "deltaT": 3},
    ],
)
def test_ranks_and_weights_are_those_of_peft(fields: dict[str, Any], tmp_path: Path) -> None:
    folder, theirs = started(tmp_path / "start", **fields)
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    net = Net()
    base = {key: value.clone() for key, value in net.state_dict().items()}
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder, "ada", trainable=True)
    parameters = dict(mixer.named_trainable_parameters("ada"))
    optimizer = torch.optim.SGD(parameters.values(), lr=0.2)
    keeps_all = fields.get("target_r") == 5

    if not keeps_all:  # PEFT fails where nothing is to be taken away
        losses = steps_of_peft(theirs, x, y, 14)
    for step in range(14):
        loss = (net(x) - y).square().mean() + mixer.adapter_loss("ada")
        loss.backward()
        optimizer.step()
        mixer.after_step(step)
        optimizer.zero_grad()
        if not keeps_all:
            assert float(loss.detach()) == pytest.approx(losses[step], rel=1e-5)
    mixer.save_lora_weights(tmp_path / "ours", "ada", format="peft")

    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    written = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    if keeps_all:
        assert all(len(value) == 5 for key, value in written.items() if key.endswith("lora_E"))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT wonders at modules without a rank
            theirs.save_pretrained(tmp_path / "theirs")
        other = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
        assert config["rank_pattern"] == other["rank_pattern"]
        assert sum(map(sum, config["rank_pattern"].values())) == 3 * fields.get("target_r", 2)
        wanted = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
        assert written.keys() == wanted.keys()
        for key, value in wanted.items():
            assert written[key].shape == value.shape
            assert not value.numel() or distance(written[key], value) < 1e-5, key
    out = net(x).detach()
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in net.state_dict().items())
    mixer.load_lora_weights(tmp_path / "ours", "again")
    assert distance(net(x), out) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(Net(), tmp_path / "ours").eval()
    assert distance(loaded(x), out) < 1e-5


def test_the_run_of_the_reference_data_is_saved_as_peft_saved_it(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "transformers"
    folder = root / "training" / "llama_adalora"
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    model = transformers.LlamaForCausalLM.from_pretrained(root / facts["model"]).train()
    data = load_file(folder / "data.safetensors")
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder / "init", "a", trainable=True)
    settings = {key: value for key, value in facts["optimizer"].items() if key != "name"}
    parameters = [p for _, p in mixer.named_trainable_parameters("a")]
    optimizer = torch.optim.AdamW(parameters, **settings, foreach=False, fused=False)
    for step in range(facts["steps"]):
        rows = [(step * 4 + i) % len(data["labels"]) for i in range(4)]
        loss = model(**{key: value[rows] for key, value in data.items()}).loss + mixer.adapter_loss("a")
        loss.backward()
        optimizer.step()
        mixer.after_step(step)
        optimizer.zero_grad()

    mixer.save_lora_weights(tmp_path, "a", format="peft")

    after = json.loads((folder / "after" / "adapter_config.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {**after, "inference_mode": True}
    written = load_file(tmp_path / "adapter_model.safetensors")
    wanted = load_file(folder / "after" / "adapter_model.safetensors")
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():
        assert distance(written[key], value) < facts["tolerance"]["weights"], key


def test_a_run_that_goes_on_from_cut_ranks_keeps_the_divisor_and_the_masks(tmp_path: Path) -> None:
    _, theirs = started(tmp_path / "start")
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    steps_of_peft(theirs, x, y, 14)
    theirs.save_pretrained(tmp_path / "cut")
    before = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["rank_pattern"]
    wanted = theirs.eval()(x).detach()
    net = Net()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(tmp_path / "cut", "ada", trainable=True)
    assert distance(net(x), wanted) < 1e-5
    config = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())
    (tmp_path / "cut" / "adapter_config.json").write_text(json.dumps({**config, "target_r": 1, "tinit": 0}))
    mixer.load_lora_weights(tmp_path / "cut", "more", trainable=True)
    optimizer = torch.optim.SGD([p for _, p in mixer.named_trainable_parameters("more")], lr=0.1)
    for step in range(14):
        (net(x) - y).square().mean().backward()
        optimizer.step()
        mixer.after_step(step)
        optimizer.zero_grad()
    out = net(x).detach()

    mixer.save_lora_weights(tmp_path / "ours", "more", format="peft")

    after = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["rank_pattern"]
    assert {key: len(mask) for key, mask in after.items()} == {key: len(mask) for key, mask in before.items()}
    assert sum(map(sum, after.values())) == 3
    assert all(old or not new for key in after for old, new in zip(before[key], after[key], strict=True))
    mixer.unload_lora_weights()
    mixer.load_lora_weights(tmp_path / "ours", "again")
    assert distance(net(x), out) < 1e-5


def test_other_kinds_have_no_loss_of_their_own_and_do_nothing_after_a_step(tmp_path: Path) -> None:
    model = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=["first"]))
    model.save_pretrained(tmp_path)
    net = Net()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(tmp_path, "plain", trainable=True)
    values = [p.detach().clone() for _, p in mixer.named_trainable_parameters("plain")]

    mixer.after_step(3)  # without any gradient

    assert float(mixer.adapter_loss("plain")) == 0.0
    assert all(
        torch.equal(p, v) for (_, p), v in zip(mixer.named_trainable_parameters("plain"), values, strict=True)
    )
    with pytest.raises(AdapterNameError, match="adapter_loss"):
        mixer.adapter_loss("nobody")


def test_a_step_whose_gradients_are_gone_is_told(tmp_path: Path) -> None:
    folder, _ = started(tmp_path / "start")
    net = Net()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder, "ada", trainable=True)
    with pytest.raises(PipelineStateError, match="have no gradient"):
        mixer.after_step(0)
    mixer.disable_lora()
    mixer.after_step(0)  # not in the mix: no part in the step


def test_a_schedule_needs_the_number_of_steps(tmp_path: Path) -> None:
    folder, _ = started(tmp_path / "start")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "total_step": None}))
    mixer = LoraMixer(Net())
    mixer.load_lora_weights(folder, "ada", trainable=True)
    with pytest.raises(PipelineStateError, match="total_step"):
        mixer.after_step(0)


def test_inputs_of_pairs_are_dropped_on_convolutions_and_of_adalora(tmp_path: Path) -> None:
    for fields in ({"peft_type": "ADALORA"}, {"peft_type": "LORA"}):
        torch.manual_seed(0)
        kind = peft.AdaLoraConfig if fields["peft_type"] == "ADALORA" else peft.LoraConfig
        extra = {"total_step": 10, "init_r": 3} if kind is peft.AdaLoraConfig else {"r": 3}
        theirs = peft.get_peft_model(Net(), kind(target_modules=["first", "conv"], lora_dropout=0.5, **extra))
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "lora_" in name and "ranknum" not in name:
                    parameter.copy_(torch.randn(parameter.shape))
        theirs.save_pretrained(tmp_path / fields["peft_type"])
        net, x = Net().train(), torch.randn(5, 6)
        mixer = LoraMixer(net)
        mixer.load_lora_weights(tmp_path / fields["peft_type"], "a", trainable=True)
        torch.manual_seed(7)
        wanted = theirs.train()(x)
        wanted.square().sum().backward()
        torch.manual_seed(7)
        found = net(x)
        found.square().sum().backward()

        assert distance(found, wanted) < 1e-5
        theirs_gradients = {
            name.replace(".default", ""): p.grad
            for name, p in theirs.named_parameters()
            if p.grad is not None
        }
        for key, parameter in mixer.named_trainable_parameters("a"):
            assert distance(parameter.grad, theirs_gradients[key]) < 1e-5, key


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_pairs_that_started_from_a_part_of_the_base_train_beside_the_whole_base(
    start: str, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(
        target_modules=["first", "second"], r=3, init_lora_weights=start, lora_dropout=0.3
    )
    theirs = peft.get_peft_model(Net(), config)
    theirs.save_pretrained(tmp_path)
    net, x, y = Net().train(), torch.randn(5, 6), torch.randn(5, 3)
    base = {key: value.clone() for key, value in net.state_dict().items()}
    mixer = LoraMixer(net)
    mixer.load_lora_weights(tmp_path, "a", trainable=True)
    found = dict(mixer.named_trainable_parameters("a"))
    others = {key.replace(".default", ""): p for key, p in theirs.named_parameters() if p.requires_grad}
    for parameters, model in ((found, net), (others, theirs.train())):
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
        for step in range(4):
            torch.manual_seed(step)
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert found.keys() == others.keys()
    for key, value in others.items():
        assert distance(found[key], value) < 1e-5, key
    assert all(torch.equal(value, base[key]) for key, value in net.state_dict().items())
