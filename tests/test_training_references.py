"""Training runs of PEFT, step by step: ``../shared/data/transformers/training``."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import diffusers
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lora_mixer import LoraMixer
from tests.small_language_models import distance

if TYPE_CHECKING:
    from pathlib import Path

CASES = (
    "bert_loha",
    "bert_lora_head",
    "gpt2_rslora",
    "llama_adalora",
    "llama_dora",
    "llama_lokr",
    "llama_lora",
    "llama_lora_dropout",
    "mixtral_experts",
    "opt_ia3",
    "opt_lora_tied_head",
    "opt_tokens",
    "sd_unet_lokr",
    "sd_unet_lora",
)


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the model's own loss, or for a UNet the mean square."""
    if "target" in batch:
        given = {key: value for key, value in batch.items() if key != "target"}
        return torch.nn.functional.mse_loss(model(**given).sample, batch["target"])
    loss: torch.Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_weights_are_those_of_peft(case: str, shared_data: Path) -> None:
    root = shared_data / "transformers"
    folder = root / "training" / case
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    kind: Any = getattr(transformers, facts["class_name"], None) or getattr(diffusers, facts["class_name"])
    place = root / facts["model"] if (root / facts["model"]).is_dir() else shared_data / facts["model"]
    model = kind.from_pretrained(place).train()
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    own = list(model.parameters())
    flags = [p.requires_grad for p in own]
    data, size = load_file(folder / "data.safetensors"), facts["batch_size"]
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder / facts["init"], adapter_name="a", trainable=True)
    parameters = dict(mixer.named_trainable_parameters("a"))
    settings = {key: value for key, value in facts["optimizer"].items() if key != "name"}
    optimizer = torch.optim.AdamW(parameters.values(), **settings, foreach=False, fused=False)

    for step in range(facts["steps"]):
        count = len(next(iter(data.values())))
        rows = [(step * size + i) % count for i in range(size)]
        if facts["dropout_seed"] is not None:
            torch.manual_seed(facts["dropout_seed"] + step)
        loss = loss_of(model, {key: value[rows] for key, value in data.items()}) + mixer.adapter_loss("a")
        assert float(loss.detach()) == pytest.approx(facts["losses"][step], rel=1e-4)
        loss.backward()
        if step == 0:
            wanted = load_file(folder / "gradients.safetensors")
            assert parameters.keys() == wanted.keys()
            for key, value in wanted.items():
                assert distance(parameters[key].grad, value) < facts["tolerance"]["gradients"], key
        optimizer.step()
        mixer.after_step(step)
        optimizer.zero_grad()

    for key, value in load_file(folder / "weights.safetensors").items():
        assert distance(parameters[key], value) < facts["tolerance"]["weights"], key
    assert all(p.grad is None and not p.requires_grad for p in own)
    mixer.unload_lora_weights()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "case",
    [
        *("bert_loha", "bert_lora_head", "gpt2_rslora", "llama_dora", "llama_lokr", "mixtral_experts"),
        *("opt_ia3", "opt_lora_tied_head", "opt_tokens"),
    ],
)
def test_what_was_trained_is_saved_in_the_keys_of_peft_and_loads_there_and_here(
    case: str, shared_data: Path, tmp_path: Path
) -> None:
    root = shared_data / "transformers"
    folder = root / "training" / case
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    kind: Any = getattr(transformers, facts["class_name"])
    model = kind.from_pretrained(root / facts["model"]).eval()
    batch = {key: value[:3] for key, value in load_file(folder / "data.safetensors").items()}
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder / facts["init"], adapter_name="a", trainable=True)
    optimizer = torch.optim.SGD([p for _, p in mixer.named_trainable_parameters("a")], lr=0.05)
    model(**batch).loss.backward()
    optimizer.step()
    with torch.no_grad():
        wanted = model(**batch).logits

    mixer.save_lora_weights(tmp_path, "a", format="peft")

    before = json.loads((folder / facts["init"] / "adapter_config.json").read_text(encoding="utf-8"))
    after = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert after == {**before, "inference_mode": True}
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == load_file(folder / facts["init"] / "adapter_model.safetensors").keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses words of transformers that go
        theirs = peft.PeftModel.from_pretrained(kind.from_pretrained(root / facts["model"]), tmp_path).eval()
    ours = kind.from_pretrained(root / facts["model"]).eval()
    LoraMixer(ours).load_lora_weights(tmp_path)
    with torch.no_grad():
        assert distance(theirs(**batch).logits, wanted) < 1e-5
        assert distance(ours(**batch).logits, wanted) < 1e-5
