"""Rows of one batch that train different adapters: each gets the gradients of its own run, in one pass over the base."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import (
    LoHaConfig,
    LoraConfig,
    LoraMixer,
    TrainableTokensConfig,
)
from lora_mixer.errors import MixError
from tests.fresh_models import EVERY_KIND, build, stirred
from tests.models import tiny_sd
from tests.small_language_models import distance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IDS = torch.randint(2, 37, (6, 7), generator=torch.Generator().manual_seed(4))
IDS[:, 2] = 9  # a token that all rows have
LORA = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj", "down_proj"])
KINDS: dict[str, Any] = {
    **EVERY_KIND,
    "lora": LORA,
    "ranks that differ": LoraConfig(r=3, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 5}),
    "bias on B": LoraConfig(r=3, target_modules=["q_proj", "down_proj"], lora_bias=True),
    "tokens": TrainableTokensConfig(token_indices=[5, 9, 21]),
    "lookup": LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"]),
    "head": LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}
del KINDS["rslora"]  # a plain pair here
ORDERS = {
    "blocks": [0, 0, 1, 1, 2, 2],
    "blocks of several sizes": [2, 0, 0, 0, 1, 1],
    "in turn": [0, 1, 2, 0, 1, 2],
    "the base among them": [0, -1, 1, 2, -1, 0],
}


def every_stirred(mixer: LoraMixer, names: Sequence[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Give adapters values of their own, and return their parameters."""
    return {name: stirred(mixer, name, seed) for seed, name in enumerate(names)}


def losses(logits: torch.Tensor) -> torch.Tensor:
    """Return the loss of each row."""
    return logits.float().tanh().square().flatten(1).mean(1)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return how far a gradient is off; some are 0 by nature, as of tokens that are not there."""
    return distance(found, wanted) if wanted.any() else float(found.abs().max())


def names_of(order: Sequence[int]) -> list[dict[str, float]]:
    return [{f"a{number}": 1.0} if number >= 0 else {} for number in order]


def check(
    model: nn.Module,
    mixer: LoraMixer,
    run: Callable[[torch.Tensor], torch.Tensor],
    order: Sequence[int],
    *,
    steps: int = 1,
    close: float = 2e-5,
    mixes: dict[str, Any] | None = None,
) -> None:
    """Train adapters each on its own rows, then all in one batch from the same start, and compare gradients and weights."""
    names = sorted({f"a{n}" for n in order if n >= 0})
    parameters = every_stirred(mixer, names)
    start = {name: {key: p.detach().clone() for key, p in own.items()} for name, own in parameters.items()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted: dict[str, Any] = {}
    for name in names:
        mixer.set_adapters(name)
        rows = torch.tensor([place for place, n in enumerate(order) if f"a{n}" == name])
        optimizer = torch.optim.SGD(parameters[name].values(), lr=0.5)
        gradients = []
        for _ in range(steps):
            (losses(run(rows)).mean() + mixer.adapter_loss(name)).backward()
            gradients.append(
                {key: p.grad.clone() for key, p in parameters[name].items() if p.grad is not None}
            )
            optimizer.step()
            optimizer.zero_grad()
        assert gradients[0].keys() == parameters[name].keys()
        assert any(value.any() for value in gradients[0].values())
        wanted[name] = gradients[0], {key: p.detach().clone() for key, p in parameters[name].items()}
        with torch.no_grad():
            for key, p in parameters[name].items():
                p.copy_(start[name][key])

    mixer.set_mix(names_of(order), **(mixes or {}))
    every = [p for own in parameters.values() for p in own.values()]
    optimizer = torch.optim.SGD(every, lr=0.5)
    shares = torch.tensor([0.0 if n < 0 else 1 / list(order).count(n) for n in order])
    for step in range(steps):
        total = (losses(run(torch.arange(len(order)))) * shares).sum()
        (total + sum(mixer.adapter_loss(name) for name in names)).backward()
        if not step:
            for name in names:
                for key, p in parameters[name].items():
                    assert p.grad is not None, (name, key)
                    assert off(p.grad, wanted[name][0][key]) < close, (name, key)
        optimizer.step()
        optimizer.zero_grad()
    for name in names:
        for key, p in parameters[name].items():
            assert distance(p, wanted[name][1][key]) < close, (name, key)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    mixer.unload_lora_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def on_llama(configs: Sequence[Any]) -> tuple[nn.Module, LoraMixer, Callable[[torch.Tensor], torch.Tensor]]:
    model = build("llama")
    mixer = LoraMixer(model)
    for number, config in enumerate(configs):
        mixer.add_adapter(config, f"a{number}")
    return model, mixer, lambda rows: model(input_ids=IDS[rows]).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["blocks", "the base among them"])
def test_each_adapter_of_a_kind_gets_the_gradients_of_its_own_run(kind: str, order: str) -> None:
    check(*on_llama([KINDS[kind]] * 3), ORDERS[order])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "names", list(itertools.combinations(["lora", "dora", "ia3", "head", "oft", "tokens"], 3))[::4]
)
def test_kinds_may_differ_from_row_to_row_over_several_steps(names: Sequence[str], order: str) -> None:
    check(*on_llama([KINDS[name] for name in names]), ORDERS[order], steps=3)


def test_ranks_scales_and_dropped_inputs_may_differ() -> None:
    configs = [LoraConfig(r=r, lora_alpha=7, target_modules=["q_proj", "up_proj"]) for r in (2, 2, 4)]
    check(*on_llama(configs), ORDERS["blocks"])
    wide = LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "up_proj"])
    check(*on_llama([configs[0], wide, configs[1]]), ORDERS["blocks"])
    dropped = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"])
    check(*on_llama([configs[0], dropped, wide]), ORDERS["blocks"])  # in eval mode nothing is dropped


def test_one_mix_for_several_rows_of_a_larger_batch() -> None:
    model, mixer, run = on_llama([LORA] * 3)
    parameters = every_stirred(mixer, ["a0", "a1", "a2"])
    mixer.set_mix([{"a0": 1.0}, {"a1": 0.5}, {"a2": 1.0}], guidance_copies=1)
    found = run(torch.arange(6)).detach()
    mixer.set_mix([{name: gain} for name, gain in (("a0", 1.0), ("a1", 0.5), ("a2", 1.0)) for _ in range(2)])
    assert distance(run(torch.arange(6)), found) < 1e-6
    with pytest.raises(MixError, match="one row for each mix"):
        run(torch.arange(5))
    assert parameters["a0"].keys() == parameters["a1"].keys()
    mixer.unload_lora_weights()
    assert not any(hasattr(module, "_lora_mixer_hooks") for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "t5"])
def test_rows_of_other_architectures(name: str) -> None:
    targets = {
        "gpt2": ["c_attn", "mlp.c_proj"],
        "opt": ["q_proj", "fc2"],
        "bert": ["query", "output.dense"],
        "t5": ["q", "wo"],
    }
    model = build(name)
    mixer = LoraMixer(model)
    for number in range(3):
        mixer.add_adapter(LoraConfig(r=2, target_modules=targets[name], use_dora=number == 1), f"a{number}")

    def run(rows: torch.Tensor) -> torch.Tensor:
        more = {"decoder_input_ids": IDS[rows].flip(1)} if name == "t5" else {}
        found: torch.Tensor = model(input_ids=IDS[rows], **more).logits
        return found

    check(model, mixer, run, ORDERS["in turn"])


def test_an_encoder_that_is_called_by_itself_gives_each_row_its_own_mix() -> None:
    model = build("t5")
    mixer = LoraMixer(model)
    for number, target in enumerate(("q", "wo", "v")):
        mixer.add_adapter(LoraConfig(r=2, target_modules=[target]), f"a{number}")
        stirred(mixer, f"a{number}", number, 2.0)
    settings = {"max_new_tokens": 5, "pad_token_id": 0, "do_sample": False}
    wanted, encoded = [], []
    for number in range(3):
        mixer.set_adapters(f"a{number}")
        wanted.append(model.generate(IDS[number : number + 1], **settings)[0])
        encoded.append(model.get_encoder()(input_ids=IDS[number : number + 1]).last_hidden_state[0])

    mixer.set_mix([{f"a{number}": 1.0} for number in range(3)])  # no call of the model comes between
    found = model.generate(IDS[:3], **settings)
    mixer.set_adapters("a1")
    mixer.set_mix([{f"a{number}": 1.0} for number in range(3)])
    alone = model.get_encoder()(input_ids=IDS[:3]).last_hidden_state

    for number in range(3):
        assert torch.equal(found[number][: len(wanted[number])], wanted[number])
        assert distance(alone[number], encoded[number]) < 1e-6


@pytest.mark.parametrize(
    "targets", [["to_q", "to_v", "to_out.0"], ["to_k", "conv1", "conv_in", "ff.net.2", "proj_out"]]
)
@pytest.mark.parametrize("kind", [LoraConfig, LoHaConfig])
def test_rows_of_a_unet_with_its_convolutions(targets: list[str], kind: Any) -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    for number in range(3):
        mixer.add_adapter(kind(r=2, target_modules=targets), f"a{number}")
    drawn = torch.Generator().manual_seed(3)
    sample = torch.randn(6, 4, 8, 8, generator=drawn)
    text = torch.randn(6, 7, pipe.unet.config.cross_attention_dim, generator=drawn)
    times = torch.randint(0, 999, (6,), generator=drawn)

    def run(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = pipe.unet(sample[rows], times[rows], text[rows]).sample
        return found

    check(pipe.unet, mixer, run, ORDERS["blocks"], close=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_rows_keep_their_adapters_when_blocks_are_computed_again(reentrant: bool) -> None:
    model, mixer, run = on_llama([LORA, KINDS["dora"], KINDS["ia3"]])
    settings = {"use_reentrant": reentrant}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)  # type: ignore[operator]
    model.enable_input_require_grads()  # type: ignore[operator]
    model.train()
    check(model, mixer, run, ORDERS["in turn"])


def test_rows_of_a_compiled_model_train_alike() -> None:
    model, mixer, _ = on_llama([LORA] * 3)
    compiled = torch.compile(model, backend="aot_eager")
    check(model, mixer, lambda rows: compiled(input_ids=IDS[rows]).logits, ORDERS["blocks"], steps=2)
    torch._dynamo.reset()


def test_an_adapter_that_runs_away_leaves_the_others_as_they_are() -> None:
    model, mixer, run = on_llama([LORA] * 3)
    parameters = every_stirred(mixer, ["a0", "a1", "a2"])
    for order in (ORDERS["blocks"], ORDERS["in turn"]):
        mixer.set_mix(names_of(order))
        with torch.no_grad():
            for p in parameters["a1"].values():
                p.fill_(float("nan"))
        shares = torch.tensor([float(n != 1) for n in order])
        rows = losses(run(torch.arange(6)))
        rows[shares.bool()].sum().backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in parameters["a0"].values()
        )
    assert model.training is False


def test_frozen_adapters_stand_beside_rows_that_are_trained() -> None:
    _, mixer, run = on_llama([LORA] * 2)
    every_stirred(mixer, ["a0", "a1"])
    with pytest.warns(UserWarning, match="not in the mix"):
        still = {key: p.detach() for key, p in mixer.named_trainable_parameters("a0")}
    mixer.load_lora_weights(
        {key: value.clone() for key, value in still.items()}, adapter_name="still", activate=False
    )
    mixer.set_mix({"a1": 1.0, "still": 0.5})
    one = run(torch.arange(6)).detach()
    mixer.set_mix([{"a1": 1.0, "still": 0.5}] * 3 + [{"a1": 1.0}] * 3)
    found = run(torch.arange(6))
    assert distance(found[:3], one[:3]) < 1e-5
    assert distance(found[3:], one[3:]) > 1e-4


def test_experts_are_refused_by_name_since_they_have_no_rows() -> None:
    model = build("mixtral")
    mixer = LoraMixer(model)
    for number in range(2):
        mixer.add_adapter(
            LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"]), f"a{number}"
        )
    with pytest.raises(MixError, match=r"experts\.down_proj: a bare parameter has no rows .*'a0'"):
        mixer.set_mix([{"a0": 1.0}, {"a1": 1.0}])
    assert mixer.get_active_adapters() == ["a1"]
