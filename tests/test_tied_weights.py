"""One parameter in several modules: an adapter changes the module that it names, and its twins stay."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_mixer import LoraMixer
from lora_mixer.errors import MatchError, PipelineStateError
from tests.fresh_models import build, output
from tests.small_language_models import distance

if TYPE_CHECKING:
    from collections.abc import Mapping

VOCABULARY, WIDTH = 11, 6
IDS = torch.tensor([[1, 4, 9, 4], [10, 0, 2, 7]])


class Scaled(nn.Embedding):
    """A lookup that scales what it finds, as Gemma's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up."""
        return super().forward(ids) * 3.0


class Tied(nn.Module):
    """A lookup, a second one and a head, all of one parameter."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        self.lookup = Scaled(VOCABULARY, WIDTH)
        self.second = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.second.weight = self.head.weight = self.lookup.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what each of the three makes of the ids."""
        found, other = self.lookup(ids), self.second(ids)
        return {"lookup": found, "second": other, "head": self.head(torch.ones(2, WIDTH))}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapter(kind: str, module: str) -> dict[str, torch.Tensor]:
    if kind == "lora":
        down, up = random(2, WIDTH, seed=1), random(VOCABULARY, 2, seed=2)
        return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    if kind == "dora":
        return {
            **adapter("lora", module),
            f"{module}.lora_magnitude_vector": random(VOCABULARY, seed=3).abs(),
        }
    if kind == "loha":
        halves = {"w1_a": (VOCABULARY, 2), "w1_b": (2, WIDTH), "w2_a": (VOCABULARY, 2), "w2_b": (2, WIDTH)}
        return {f"{module}.hada_{x}": random(*s, seed=n) for n, (x, s) in enumerate(halves.items())}
    return {f"{module}.diff": random(VOCABULARY, WIDTH, seed=4)}


def changed(kind: str, weight: torch.Tensor, gain: float) -> torch.Tensor:
    """Work out the weight by hand."""
    tensors = {key.rpartition("x.")[2]: value for key, value in adapter(kind, "x").items()}
    if kind == "full":
        return weight + gain * tensors["diff"]
    if kind == "loha":
        one, two = (tensors[f"hada_w{n}_a"] @ tensors[f"hada_w{n}_b"] for n in (1, 2))
        return weight + gain * one * two
    turned = weight + gain * tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    if kind == "dora":
        return turned * (tensors["lora_magnitude_vector"] / turned.norm(dim=1))[:, None]
    return turned


def expected(model: Tied, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = {name: weights.get(name, model.lookup.weight.detach()) for name in ("lookup", "second", "head")}
    return {
        "lookup": own["lookup"][IDS] * 3.0,
        "second": own["second"][IDS],
        "head": torch.ones(2, WIDTH) @ own["head"].T + model.head.bias.detach(),
    }


def close(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.allclose(found[key], wanted[key], atol=1e-5) for key in wanted)


@pytest.mark.parametrize("module", ["lookup", "second", "head"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "full"])
def test_the_named_module_changes_and_its_twins_stay(kind: str, module: str) -> None:
    model = Tied()
    parameter, keys = model.lookup.weight, list(model.state_dict())
    base, before = parameter.detach().clone(), model(IDS)
    mixer = LoraMixer(model)

    mixer.load_lora_weights(adapter(kind, module), adapter_name="a")
    for gain in (1.0, -0.4):
        mixer.set_adapters("a", gain)
        assert close(model(IDS), expected(model, {module: changed(kind, base, gain)}))
        assert torch.equal(parameter, base)
        assert model.head.weight is model.lookup.weight is model.second.weight is parameter
        assert list(model.state_dict()) == keys

    mixer.disable_lora()
    assert all(torch.equal(value, before[key]) for key, value in model(IDS).items())
    mixer.unload_lora_weights()
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_each_twin_has_its_own_mix_and_rows_of_tokens_reach_all_of_them(tmp_path) -> None:
    model = Tied()
    base = model.lookup.weight.detach().clone()
    rows = random(2, WIDTH, seed=8)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "adapter_config.json").write_text('{"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 9]}')
    save_file(
        {f"base_model.model.{m}.trainable_tokens_delta": rows.clone() for m in ("head", "lookup")},
        tokens / "adapter_model.safetensors",
    )
    mixer = LoraMixer(model)
    mixer.load_lora_weights(adapter("lora", "head"), adapter_name="on_head")
    mixer.load_lora_weights(adapter("loha", "lookup"), adapter_name="on_lookup")
    mixer.load_lora_weights(tokens, adapter_name="tokens")

    mixer.set_adapters(["on_head", "on_lookup", "tokens"], [0.5, 2.0, 1.0])

    taught = base.clone()
    taught[[3, 9]] = rows
    head = changed("lora", base, 0.5) + taught - base
    lookup = changed("loha", base, 2.0) + taught - base
    with torch.no_grad():
        assert torch.equal(model.second.weight, taught)
    wanted = expected(model, {"head": head, "lookup": lookup, "second": taught})
    assert close(model(IDS), wanted)
    twin = copy.deepcopy(model)
    mixer.unload_lora_weights()
    assert torch.equal(model.lookup.weight, base)
    assert close(twin(IDS), wanted)


def test_rows_of_tokens_that_differ_between_twins_are_refused(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 9]}'
    )
    tensors = {
        f"base_model.model.{m}.trainable_tokens_delta": random(2, WIDTH, seed=n)
        for n, m in enumerate(("head", "lookup"))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")

    with pytest.raises(MatchError, match="given twice"):
        LoraMixer(Tied()).load_lora_weights(tmp_path)


def test_a_mix_on_a_twin_follows_the_type_of_the_model() -> None:
    model = Tied()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(adapter("lora", "lookup"), adapter_name="a")

    model.to(torch.bfloat16)

    assert model.lookup(IDS).dtype == torch.bfloat16
    mixer.disable_lora()
    assert torch.equal(model.lookup(IDS), model.lookup.weight[IDS] * 3.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("module", ["head", "lookup"])
def test_an_optimizer_step_on_weights_with_a_mix_is_refused(module: str, fused: bool) -> None:
    model = Tied()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(adapter("lora", module), adapter_name="a")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(value.sum() for value in model(IDS).values()).backward()

    with pytest.raises(PipelineStateError, match="would train 1 weights of the base"):
        optimizer.step()

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    mixer.disable_lora()
    optimizer.step()
    mixer.unload_lora_weights()
    assert not torch.equal(model.head.bias, before["head.bias"])


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("saves_base", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_what_peft_took_out_of_all_twins_is_no_change_of_one(
    start: str, saves_base: bool, trainable: bool, tmp_path
) -> None:
    model = build("opt")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=start)
        theirs = peft.get_peft_model(build("opt"), config)
        theirs.save_pretrained(tmp_path, save_embedding_layers=saves_base)
    mixer = LoraMixer(model)

    with pytest.raises(
        MatchError, match=r"lm_head.*started from a part of a weight that other modules share"
    ):
        mixer.load_lora_weights(tmp_path, trainable=trainable)

    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


def test_a_lookup_table_beside_pairs_that_started_from_the_base_has_a_plain_pair(tmp_path) -> None:
    for saves_base in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.LoraConfig(
                r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights="pissa"
            )
            theirs = peft.get_peft_model(build("llama"), config).eval()
            with torch.no_grad():
                for parameter in theirs.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            theirs.save_pretrained(tmp_path / str(saves_base), save_embedding_layers=saves_base)
        model = build("llama")
        LoraMixer(model).load_lora_weights(tmp_path / str(saves_base), strict=True)
        assert distance(output(model, "llama"), output(theirs, "llama")) < 1e-5
