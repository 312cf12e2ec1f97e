"""Adapters in training on the very layers that frozen ones change, however these take effect: sums of changes of the clean base."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_mixer import FullConfig, IA3Config, LoHaConfig, LoraConfig, LoraMixer
from tests.fresh_models import build, inputs, output, stirred
from tests.small_language_models import distance

if TYPE_CHECKING:
    from pathlib import Path

KINDS: dict[str, tuple[str, Any]] = {
    "lora": ("llama", LoraConfig(r=3, target_modules=["q_proj", "down_proj"])),
    "dora": ("llama", LoraConfig(r=3, target_modules=["q_proj", "down_proj"], use_dora=True)),
    "ia3": ("llama", IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "loha": ("llama", LoHaConfig(r=2, target_modules=["q_proj", "down_proj"])),
    "full": ("llama", FullConfig(target_modules=["q_proj", "down_proj", "norm"])),
    "convolutions": ("convolutions", LoraConfig(r=2, target_modules=["line", "picture", "head"])),
    "dora of convolutions": (
        "convolutions",
        LoraConfig(r=2, target_modules=["line", "picture"], use_dora=True),
    ),
    "loha of convolutions": ("convolutions", LoHaConfig(r=2, target_modules=["line", "picture", "head"])),
    "lookup": ("convolutions", LoraConfig(r=2, target_modules=["words", "line"])),
    "tied head": ("opt", LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "pair on a tied head": ("opt", LoraConfig(r=2, target_modules=["lm_head", "q_proj"])),
    "pair on a tied lookup": ("opt", LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])),
}
COUPLES = [
    couple for couple in itertools.product(KINDS, repeat=2) if KINDS[couple[0]][0] == KINDS[couple[1]][0]
]


def made(name: str, config: Any, path: Path, seed: int) -> Path:
    mixer = LoraMixer(build(name))
    mixer.add_adapter(config, "x")
    stirred(mixer, "x", seed)
    mixer.save_lora_weights(path, "x", format="peft")
    return path


@pytest.mark.parametrize("engine", ["merged", "side", "rows"])
@pytest.mark.parametrize(("still", "learning"), COUPLES)
def test_outputs_are_those_of_both_in_the_weights(
    still: str, learning: str, engine: str, tmp_path: Path
) -> None:
    name = KINDS[still][0]
    folders = {
        key: made(name, KINDS[kind][1], tmp_path / key, seed)
        for seed, (key, kind) in enumerate((("still", still), ("learning", learning)))
    }
    model, twin = build(name), build(name)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    other = LoraMixer(twin)
    for key, folder in folders.items():
        other.load_lora_weights(folder, key, activate=False)
    mix = {"still": 0.5, "learning": 1.0}
    other.set_mix(mix)
    wanted = output(twin, name)
    mixer = LoraMixer(model)
    mixer.load_lora_weights(folders["still"], "still", activate=False)
    mixer.load_lora_weights(folders["learning"], "learning", trainable=True, activate=False)

    if engine == "rows":
        rows = len(inputs(name)["input_ids"])
        mixer.set_mix([mix] * (rows - 1) + [{"learning": 1.0}])
        other.set_mix({"learning": 1.0})
        wanted = torch.cat([wanted[: rows - 1], output(twin, name)[rows - 1 :]])
    else:
        mixer.set_mix(mix, engine=engine)
    found = output(model, name)

    assert distance(found, wanted) < 1e-5
    found.square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(
            p.grad is not None and p.grad.any() for _, p in mixer.named_trainable_parameters("learning")
        )
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
