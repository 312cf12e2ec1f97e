"""Kinds without a low-rank form beside packed weights, and with a mix for each row of a batch."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.errors import MixError, PipelineStateError
from tests.small_language_models import distance
from tests.test_beside_quantised import LIBRARIES

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 64


class Block(nn.Module):
    """Linear layers that are packed, and others that are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv1d(
            2 * WIDTH, 5, 3, padding=1
        )  # as tests.test_beside_quantised names what stays plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(torch.tanh(self.to_q(x)) + torch.tanh(self.to_k(x)))
        return self.conv(y.transpose(1, 2))


TARGETS = ["to_q", "to_k", "last"]
KINDS: dict[str, Any] = {
    "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["last"]),
    "dora": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=TARGETS),
    "loha": peft.LoHaConfig(r=3, alpha=4, target_modules=TARGETS),
    "lokr": peft.LoKrConfig(r=3, alpha=4, target_modules=TARGETS),
    "lora with a bias": peft.LoraConfig(r=3, lora_bias=True, target_modules=TARGETS),
    "a trained layer": peft.LoraConfig(r=3, target_modules=["to_q"], modules_to_save=["last"]),
    "biases": peft.LoraConfig(r=3, target_modules=["to_q", "last"], bias="all"),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS),
    "hra": peft.HRAConfig(r=4, target_modules=TARGETS),
    "pissa": peft.LoraConfig(r=3, init_lora_weights="pissa", target_modules=TARGETS),
}


def folder_of(kind: str, path: Path, base: nn.Module, seed: int = 5) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(base, copy.deepcopy(KINDS[kind]))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        wrapped.save_pretrained(path)
    return path


def plain_of(block: nn.Module) -> Block:
    """Return a block whose layers have the weights that packed layers compute with, in fp64 by their products."""
    twin = Block().eval()
    twin.load_state_dict(dict(Block().state_dict().items()))
    with torch.no_grad():
        for name in TARGETS:
            layer = block.get_submodule(name)
            eye = torch.eye(layer.in_features)
            bias = getattr(layer, "bias", None)
            weight = (layer(eye) - (0 if bias is None else bias)).float().T
            twin.get_submodule(name).weight.copy_(weight)
    return twin


def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("library", ["bitsandbytes 4 bit", "torchao int8", "quanto int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_beside_packed_weights_as_in_the_weights_that_they_stand_for(
    kind: str, library: str, tmp_path: Path
) -> None:
    block = Block().eval().requires_grad_(requires_grad=False)
    LIBRARIES[library](block)
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(9))
    before, twin = run(block, x), plain_of(block)
    folder = folder_of(kind, tmp_path / "a", plain_of(block))
    other = folder_of("loha", tmp_path / "b", plain_of(block), seed=6)
    packed = {name: id(block.get_submodule(name).weight) for name in TARGETS}
    found = []
    for net in (block, twin):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(folder, "a")
        mixer.load_lora_weights(other, "b")
        own = []
        for mix in ({"a": 1.0}, {"a": 0.4}, {"a": 0.7, "b": -0.5}):
            mixer.set_mix(mix)
            own.append(run(net, x))
        found.append(own)
        if net is block:
            mixer.unload_lora_weights()
            assert torch.equal(run(block, x), before)
            assert packed == {name: id(block.get_submodule(name).weight) for name in TARGETS}
            assert all(not module._forward_hooks for module in block.modules())
    for here, there in zip(*found, strict=True):
        assert distance(here, there) < 1e-4
        assert distance(here, before) > 1e-3


def test_eight_bit_layers_differ_by_the_rounding_of_their_inputs_alone(tmp_path: Path) -> None:
    block = Block().eval().requires_grad_(requires_grad=False)
    LIBRARIES["bitsandbytes 8 bit"](block)
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(9))
    twin = plain_of(block)
    for kind in ("ia3", "dora", "loha", "lokr", "a trained layer"):
        folder = folder_of(kind, tmp_path / kind, plain_of(block))
        found = []
        for net in (block, twin):
            mixer = LoraMixer(net)
            mixer.load_lora_weights(folder, "a")
            found.append(run(net, x))
            mixer.unload_lora_weights()
        assert distance(*found) < max(2e-2, 2 * distance(run(block, x), run(twin, x))), kind


@pytest.mark.parametrize("kind", [*KINDS, "convolutions", "words and norms"])
def test_rows_have_mixes_of_their_own_for_every_kind(kind: str, tmp_path: Path) -> None:
    configs = {
        "convolutions": peft.LoHaConfig(r=3, target_modules=["conv", "last"]),
        "words and norms": None,
    }
    net: nn.Module
    if kind == "words and norms":
        net = Words()
        inputs = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(1))
        KINDS[kind] = peft.LoraConfig(
            r=2, target_modules=["words"], modules_to_save=["norm"], trainable_token_indices={"words": [2, 4]}
        )
        KINDS[kind] = peft.LoraConfig(r=2, target_modules=["head"], modules_to_save=["norm", "words"])
    else:
        net, inputs = Block().eval(), torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(9))
        KINDS.setdefault(kind, configs.get(kind))
    base = net.state_dict()
    folder = folder_of(kind, tmp_path / "a", type(net)())
    other = folder_of(kind, tmp_path / "b", type(net)(), seed=8)
    values = {key: tensor.clone() for key, tensor in base.items()}
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder, "a")
    mixer.load_lora_weights(other, "b")
    mixes = [{"a": 1.0}, {}, {"a": 0.4, "b": 0.8}]
    alone = []
    for mix in mixes:
        mixer.set_mix(mix)
        alone.append(run(net, inputs))

    mixer.set_mix(mixes)

    together = run(net, inputs)
    for row, single in enumerate(alone):
        assert distance(together[row], single[row]) < 1e-5, row
    assert distance(alone[0], alone[1]) > 1e-3
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, values[key]) for key, tensor in net.state_dict().items())


class Words(nn.Module):
    """A table, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.words, self.norm, self.head = nn.Embedding(9, 12), nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.words(ids)))


def test_rows_of_a_language_model_generate_with_their_own_adapters_of_any_kind(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.5,
        )
        return transformers.LlamaForCausalLM(config).eval()

    KINDS["lm"] = peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"])
    KINDS["lm head"] = peft.LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["lm_head"])
    net = model()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder_of("lm", tmp_path / "a", model()), "a")
    mixer.load_lora_weights(folder_of("lm head", tmp_path / "b", model()), "b")
    ids = torch.randint(3, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    mixes = [{"a": 1.0}, {"b": 1.0}, {}]
    wanted = []
    for row, mix in enumerate(mixes):
        mixer.set_mix(mix)
        wanted.append(net.generate(ids[row : row + 1], num_beams=2, **settings)[0])

    mixer.set_mix(mixes)

    for _ in range(2):
        found = net.generate(ids, num_beams=2, **settings)
        assert torch.equal(found, torch.stack(wanted))
    assert len({tuple(row.tolist()[6:]) for row in wanted}) == 3
    several = net.generate(ids, num_beams=3, num_return_sequences=2, **settings)
    assert len(several) == 6
    with pytest.raises(MixError, match=r"generate\(\) is called with 2 sequences: pass one for each mix"):
        net.generate(ids[:2], **settings)


def test_encoders_are_not_repeated_for_beams_and_have_their_rows_all_the_same(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=61, d_model=32, d_kv=8, d_ff=44, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        net = transformers.T5ForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
        return net

    KINDS["t5 pair"] = peft.LoraConfig(r=4, lora_alpha=40, target_modules=["q", "v"])
    KINDS["t5 loha"] = peft.LoHaConfig(r=4, alpha=40, target_modules=["wi", "o"])
    net = model()
    mixer = LoraMixer(net)
    mixer.load_lora_weights(folder_of("t5 pair", tmp_path / "a", model()), "a")
    mixer.load_lora_weights(folder_of("t5 loha", tmp_path / "b", model()), "b")
    ids = torch.randint(3, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2, "do_sample": False}
    mixes, wanted = [{"a": 1.0}, {"b": 1.0}, {}], []
    for row, mix in enumerate(mixes):
        mixer.set_mix(mix)
        wanted.append(net.generate(ids[row : row + 1], **settings)[0])
    mixer.set_mix(mixes)
    for _ in range(2):
        assert torch.equal(net.generate(ids, **settings), torch.stack(wanted))


def test_what_cannot_stand_beside_is_refused_with_its_reason(tmp_path: Path) -> None:
    block = Block().eval().requires_grad_(requires_grad=False)
    LIBRARIES["torchao int8"](block)
    mixer = LoraMixer(block)
    mixer.load_lora_weights(folder_of("loha", tmp_path / "a", Block()), "a")
    mask = tmp_path / "half.png"
    Image.new("L", (8, 8), 255).save(mask)
    with pytest.raises(MixError, match="no low-rank form"):
        mixer.set_mix({"a": {"weight": 1.0, "mask": str(mask)}})
    with pytest.raises(PipelineStateError, match="engine='auto' runs beside"):
        mixer.set_mix({"a": 1.0}, engine="merged")
    assert mixer.get_active_adapters() == ["a"]


@pytest.mark.parametrize("library", ["bitsandbytes 4 bit", "torchao int8"])
@pytest.mark.parametrize(
    "kind", ["ia3", "dora", "loha", "lokr", "lora with a bias", "a trained layer", "pissa"]
)
def test_every_kind_trains_beside_packed_weights_as_beside_those_that_they_stand_for(
    kind: str, library: str, tmp_path: Path
) -> None:
    block = Block().eval().requires_grad_(requires_grad=False)
    LIBRARIES[library](block)
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(9))
    before, twin = run(block, x), plain_of(block)
    folder, found = folder_of(kind, tmp_path / "a", plain_of(block)), []
    for net in (block, twin):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(folder, "a", trainable=True)
        parameters = dict(mixer.named_trainable_parameters("a"))
        optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
        gradients: dict[str, torch.Tensor] = {}
        for _ in range(2):
            net(x).square().mean().backward()
            gradients = {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}
            optimizer.step()
            optimizer.zero_grad()
        assert gradients.keys() == parameters.keys()
        found.append({**{f"grad {key}": g for key, g in gradients.items()}, **parameters})
        if net is block:
            mixer.unload_lora_weights()
            assert torch.equal(run(block, x), before)
    for key in found[0]:
        assert distance(found[0][key], found[1][key]) < 1e-4, key
