"""What was read from a PEFT folder is written as it was read, for every kind: PEFT's keys, all fields of the configuration."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mixer import LoHaConfig, LoKrConfig, LoraMixer
from lora_mixer.errors import SaveError, UnsupportedAdapterError
from tests.fresh_models import build, output
from tests.small_language_models import distance, reference

_DATA = Path(os.environ.get("LORA_MIXER_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
_GOLDEN = _DATA / "transformers" / "golden"
NAMES = sorted(str(path.relative_to(_GOLDEN).with_suffix("")) for path in _GOLDEN.glob("*/*.json"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(11, 12)
        self.first = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.first(self.words(ids)))))


KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=["first"], fan_in_fan_out=False),
    "rslora and a bias": peft.LoraConfig(
        r=4, use_rslora=True, lora_bias=True, target_modules=["first", "head"]
    ),
    "patterns": peft.LoraConfig(
        r=2, target_modules=["first", "head"], rank_pattern={"head": 3}, alpha_pattern={"first": 7}
    ),
    "embedding": peft.LoraConfig(r=2, target_modules=["words", "first"]),
    "dora": peft.LoraConfig(r=2, target_modules=["first"], use_dora=True),
    "heads": peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["head", "norm"]),
    "biases": peft.LoraConfig(r=2, target_modules=["first"], bias="all"),
    "tokens": peft.LoraConfig(r=2, target_modules=["first"], trainable_token_indices={"words": [2, 7]}),
    "tokens alone": peft.TrainableTokensConfig(token_indices=[1, 4], target_modules=["words"]),
    "ia3": peft.IA3Config(target_modules=["first", "head"], feedforward_modules=["head"]),
    "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=["first", "head"]),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=["first", "head"]),
    "oft": peft.OFTConfig(r=0, oft_block_size=4, target_modules=["first"]),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=["first"]),
    "hra": peft.HRAConfig(r=2, target_modules=["first"]),
    "vera": peft.VeraConfig(r=4, target_modules=["first"], save_projection=True),
    "norms": peft.LNTuningConfig(target_modules=["norm"]),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["first", "head"]),
}


def random_folder(config: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(Net(), config)
        generator = torch.Generator().manual_seed(8)
        names = {name for name, p in wrapped.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if name in names and "ranknum" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        wrapped.save_pretrained(path)
    return path


def folders_are_equal(one: Path, two: Path) -> None:
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(before[key].dtype == after[key].dtype for key in before)
    first, second = (
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in (one, two)
    )
    assert second == {**first, "inference_mode": True}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_as_it_was_read_and_loads_there_and_here(kind: str, tmp_path: Path) -> None:
    folder = random_folder(KINDS[kind], tmp_path / "a")
    net, ids = Net(), torch.tensor([[1, 2, 7, 4], [9, 0, 3, 2]])
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder, "a")
    mixer.load_lora_weights(folder, "b")
    mixer.set_adapters("a")
    with torch.no_grad():
        wanted, base = net(ids), Net()(ids)
    assert distance(wanted, base) > 1e-3

    mixer.save_lora_weights(tmp_path / "b", "a", format="peft")

    folders_are_equal(folder, tmp_path / "b")
    again = Net()
    LoraMixer(again).load_lora_weights(tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "b").eval()
    with torch.no_grad():
        assert distance(again(ids), wanted) < 1e-6
        assert distance(theirs(ids), wanted) < 1e-5


@pytest.mark.parametrize("name", NAMES or ["none"])
def test_every_adapter_of_the_references_is_written_as_it_was_read(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    wanted = reference(shared_data, name)
    folder = next(iter(wanted.adapters.values()))
    mixer = LoraMixer(wanted.model())
    try:
        mixer.load_lora_weights(folder, "a")
    except UnsupportedAdapterError:
        assert not wanted.facts["required"]
        return

    mixer.save_lora_weights(tmp_path, "a", format="peft")

    folders_are_equal(folder, tmp_path)


def test_numbers_are_written_in_another_type_and_whole_numbers_stay(tmp_path: Path) -> None:
    folder = random_folder(KINDS["loha"], tmp_path / "a")
    mixer = LoraMixer(Net())
    mixer.load_lora_weights(folder, "a")

    mixer.save_lora_weights(tmp_path / "b", "a", format="peft", dtype="bf16")

    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(after[key], before[key].to(torch.bfloat16)) for key in before)
    large = {key: value * 1e7 for key, value in before.items()}

    save_file(large, folder / "adapter_model.safetensors")
    mixer.load_lora_weights(folder, "large")
    with pytest.raises(SaveError, match=r"do not fit torch\.float16; use bfloat16"):
        mixer.save_lora_weights(tmp_path / "b", "large", format="peft", dtype="fp16")
    kept = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(torch.equal(kept[key], after[key]) for key in after)


@pytest.mark.parametrize("leaf", ["lora_other.weight", "gate", "ia3_scale.bias"])
def test_keys_that_no_rule_reads_beside_a_configuration_are_refused_by_name(
    leaf: str, tmp_path: Path
) -> None:
    folder = random_folder(KINDS["lora"], tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors |= {f"base_model.model.first.{leaf}": torch.ones(3)}
    save_file(tensors, folder / "adapter_model.safetensors")
    net = Net()
    mixer = LoraMixer(net)

    with pytest.raises(UnsupportedAdapterError, match=rf"1 keys beside .*first\.{leaf}"):
        mixer.load_lora_weights(folder, "a")

    assert not mixer.adapters


def test_what_a_pissa_took_out_of_the_base_is_worked_out_once_for_each_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_folder(
        peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["first", "head"]), tmp_path / "a"
    )
    counted = []
    svd = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *args, **kwargs: counted.append(1) or svd(*args, **kwargs)
    )
    net, ids = Net(), torch.tensor([[1, 2, 7, 4]])
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder, "a")
    first = net(ids)
    for weight in (0.5, 0.2, 1.0):
        mixer.set_adapters("a", weight)
    assert len(counted) == 2, "one for each layer"
    assert torch.equal(net(ids), first)
    mixer.disable_lora()
    with torch.no_grad():
        net.first.weight.mul_(1.5)  # another base
    mixer.rebase()
    mixer.enable_lora()
    assert len(counted) == 3
    other = Net()
    with torch.no_grad():
        other.first.weight.mul_(1.5)
    LoraMixer(other).load_lora_weights(folder, "a")
    assert distance(net(ids), other(ids)) < 1e-6


LYCORIS: dict[str, tuple[str, Any]] = {
    "loha": ("llama", LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "down_proj"], rank_pattern={"1.mlp.down_proj": 2})),
    "loha on convolutions": ("convolutions", LoHaConfig(r=2, alpha=3, target_modules=["line", "picture", "point", "head"])),
    "loha with cores": ("convolutions", LoHaConfig(r=2, target_modules=["picture", "point"], use_effective_conv2d=True)),
    "lokr": ("llama", LoKrConfig(r=2, alpha=3, target_modules=["q_proj", "down_proj"])),
    "lokr of pairs": ("llama", LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4, target_modules=["q_proj", "up_proj"])),
    "lokr of whole factors": ("llama", LoKrConfig(r=99, alpha=3, decompose_factor=8, target_modules=["q_proj", "lm_head"])),
    "lokr on convolutions": ("convolutions", LoKrConfig(r=1, alpha=3, target_modules=["line", "picture", "point", "head"])),
    "lokr with cores": ("convolutions", LoKrConfig(r=1, use_effective_conv2d=True, target_modules=["picture", "point"])),
}  # fmt: skip


def as_lycoris(kind: str, config: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return what a model gives with a stirred adapter, and the adapter under the keys that LyCORIS has."""
    mixer = LoraMixer(build(kind))
    mixer.add_adapter(config, "a")
    parameters = dict(mixer.named_trainable_parameters("a"))
    drawn = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.2)
    tensors = {key.removeprefix("base_model.model."): p.detach().clone() for key, p in parameters.items()}
    for path in {key.rpartition(".")[0] for key in tensors}:
        scale = config.alpha / config.rank_pattern.get(path.removeprefix("model.layers."), config.r)
        halves = [tensors.get(f"{path}.{name}") for name in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b")]
        ranks = [half.shape[0] for half in halves if half is not None]
        if ranks:
            tensors[f"{path}.alpha"] = torch.tensor(scale * ranks[0])
        else:  # LyCORIS does not scale these
            tensors[f"{path}.lokr_w1"] *= scale
    return output(mixer.pipe, kind).detach(), tensors


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", LYCORIS)
def test_lycoris_kinds_are_written_for_peft_as_they_are(name: str, trainable: bool, tmp_path: Path) -> None:
    kind, config = LYCORIS[name]
    wanted, tensors = as_lycoris(kind, config)
    mixer = LoraMixer(build(kind))
    mixer.load_lora_weights(tensors, "a", strict=True, trainable=trainable)
    assert distance(output(mixer.pipe, kind), wanted) < 1e-5

    mixer.save_lora_weights(tmp_path, "a", format="peft")

    written = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in written.values()) == sum(
        t.numel() for key, t in tensors.items() if not key.endswith(".alpha")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build(kind), tmp_path).eval()
    assert distance(output(theirs, kind), wanted) < 1e-5
    again = LoraMixer(build(kind))
    again.load_lora_weights(tmp_path, strict=True)
    assert distance(output(again.pipe, kind), wanted) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {
            "lokr_w1": torch.ones(2, 6),
            "lokr_w2": torch.ones(12, 4),
        },  # sides that no factor of PEFT's comes to
        {
            "lokr_w1_a": torch.ones(4, 2),
            "lokr_w1_b": torch.ones(2, 4),
            "lokr_w2": torch.ones(6, 6),
        },  # a small pair beside
    ],
    ids=["sides", "ranks"],
)
def test_factors_that_peft_does_not_come_to_are_refused_by_name_or_written_at_a_rank(
    changes: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = "model.layers.0.self_attn.q_proj"
    mixer = LoraMixer(build("llama"))
    mixer.load_lora_weights({f"{path}.{leaf}": tensor for leaf, tensor in changes.items()}, "a", strict=True)

    with pytest.raises(SaveError, match=r"q_proj \(factors that no configuration of PEFT's comes to; a rank"):
        mixer.save_lora_weights(tmp_path / "a", "a", format="peft")

    assert not (tmp_path / "a").exists()
    mixer.save_lora_weights(tmp_path / "a", "a", format="peft", rank=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "a").eval()
    assert distance(output(theirs, "llama"), output(mixer.pipe, "llama")) < 1e-5
