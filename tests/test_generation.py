"""Generation with a mix: greedy, sampled, with beams and several sequences, each row with its own mix, beside PEFT."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch

from lora_mixer import LoraMixer
from tests.fresh_models import build

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.randint(3, 37, (3, 5), generator=torch.Generator().manual_seed(8))
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn"],
    "opt": ["v_proj", "fc1"],
    "t5": ["q", "wo"],
    "mixtral": ["v_proj"],
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 11, "temperature": 1.3},
    "nucleus": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 3},
    "beams, several": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampled, several": {"do_sample": True, "num_return_sequences": 3},
    "without a cache": {"do_sample": False, "use_cache": False},
}


def written(name: str, path: Path, kind: type[Any], seed: int, **settings: Any) -> Path:
    config = kind(target_modules=TARGETS[name], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(build(name), config)
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.6)
        wrapped.save_pretrained(path)
    return path


def tokens(model: Any, ids: torch.Tensor = IDS, **way: Any) -> torch.Tensor:
    torch.manual_seed(21)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=0,
            **way,
        )
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TARGETS)
def test_tokens_are_those_of_peft_and_then_those_of_the_base(way: str, name: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path / "a", peft.LoraConfig, 1, r=3)
    model = build(name)
    base = tokens(model, **WAYS[way])
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folder, "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build(name), folder).eval()

    found = tokens(model, **WAYS[way])

    assert torch.equal(found, tokens(theirs, **WAYS[way]))
    assert not torch.equal(found, base)
    mixer.set_mix({"a": 1.0}, engine="side")
    assert torch.equal(tokens(model, **WAYS[way]), found)
    mixer.disable_lora()
    assert torch.equal(tokens(model, **WAYS[way]), base)


@pytest.mark.parametrize("way", [way for way in WAYS if "sampled" not in way and way != "nucleus"])
@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_each_sequence_has_the_tokens_of_its_own_mix(way: str, name: str, tmp_path: Path) -> None:
    model = build(name)
    mixer = LoraMixer(model)
    mixer.load_lora_weights(written(name, tmp_path / "a", peft.LoraConfig, 1, r=3), "a")
    mixer.load_lora_weights(written(name, tmp_path / "b", peft.LoraConfig, 2, r=2, use_dora=True), "b")
    mixes: list[dict[str, float]] = [{"a": 1.0}, {}, {"a": 0.5, "b": 1.0}]
    each = WAYS[way].get("num_return_sequences", 1)
    wanted = []
    for row, mix in enumerate(mixes):
        mixer.set_mix(copy.deepcopy(mix))
        wanted.append(tokens(model, IDS[row : row + 1], **WAYS[way]))
    mixer.set_mix(mixes)
    found = tokens(model, **WAYS[way])
    assert found.shape[0] == 3 * each
    assert torch.equal(found, torch.cat(wanted))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sampled_rows_are_drawn_from_the_distribution_of_their_own_mix(name: str, tmp_path: Path) -> None:
    model = build(name)
    mixer = LoraMixer(model)
    for seed, adapter in enumerate("ab"):
        mixer.load_lora_weights(written(name, tmp_path / adapter, peft.LoraConfig, seed, r=3), adapter)
    mixes: list[dict[str, float]] = [{"a": 1.0}, {"b": 1.0}, {}]
    more: dict[str, Any] = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    mixer.set_mix(mixes)
    found: Any = tokens(model, **more)
    for row, mix in enumerate(mixes):
        mixer.set_mix(mix)
        ids = found.sequences[row : row + 1]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 4:-1]
        scores = torch.stack(found.scores)[:, row]  # top 50 of 37 are all
        seen = scores.isfinite()
        assert torch.allclose(scores[seen], logits[seen], atol=1e-4)


def test_an_adapter_in_training_generates_as_it_does_once_it_is_loaded(tmp_path: Path) -> None:
    folder = written("llama", tmp_path / "a", peft.LoraConfig, 1, r=3)
    found = []
    for trainable in (False, True):
        model = build("llama")
        LoraMixer(model).load_lora_weights(folder, "a", trainable=trainable)
        found.append([tokens(model, **way) for way in WAYS.values()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
