"""The product that layers with one input share: once where it can be, right where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from lora_mixer import LoraMixer
from lora_mixer.engines.hooks import output_hooks
from lora_mixer.engines.side.layer import SharedDown
from tests.test_reserved import NAMES, Pipe, file_of, outputs

MEMBERS = (slice(0, 2), slice(2, 3), slice(3, 6))
CLOSE = 1e-4


@pytest.fixture
def down() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the ranks of each product."""
    seen: list[int] = []
    linear = functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(len(weight))
        return linear(x, weight, *more)

    monkeypatch.setattr(functional, "linear", counted)
    return seen


def test_one_input_has_one_product_for_all_and_is_let_go(
    down: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedDown(down, len(MEMBERS))
    products = count_products(monkeypatch)
    for _ in range(2):
        x = torch.randn(5, 4)
        for ranks in MEMBERS:
            assert torch.allclose(shared.hidden(x, ranks), x @ down[ranks].T, atol=1e-6)
        assert shared._input is None
    assert products == [6, 6]


def test_members_with_inputs_of_their_own_have_products_of_their_own(
    down: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedDown(down, len(MEMBERS))
    products = count_products(monkeypatch)
    for _ in range(2):
        for ranks in MEMBERS:
            x = torch.randn(5, 4)
            assert torch.allclose(shared.hidden(x, ranks), x @ down[ranks].T, atol=1e-6)
    assert products == [6, 1, 3, 2, 1, 3]


def test_an_input_changed_in_place_is_another_one(down: torch.Tensor) -> None:
    shared = SharedDown(down, len(MEMBERS))
    x = torch.randn(5, 4)
    for ranks in MEMBERS:
        assert torch.allclose(shared.hidden(x, ranks), x @ down[ranks].T, atol=1e-6)
        x += 1


def test_all_blocks_share_the_product_with_the_text_and_the_picture_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixer = LoraMixer(Pipe())
    for seed, name in enumerate(NAMES[:2]):
        mixer.load_lora_weights(file_of(mixer.pipe, seed), name)
    mix = {"a": 0.8, "b": -0.5}
    merged = outputs(mixer, mix, engine="merged")
    crossing = [
        layer
        for path, layer in mixer.pipe.unet.named_modules()
        if path.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    with mixer.applied(mix, engine="side"):
        mixer.pipe(0)
        hooks = [hook for layer in crossing for hook in output_hooks(layer)]
        assert len({id(hook.shared) for hook in hooks}) == 1
        assert len(hooks) == len(crossing) > 2
        assert not hooks[0].shared._scattered
    assert (outputs(mixer, mix, engine="side") - merged).abs().max() < CLOSE


def test_a_mix_beside_the_weights_looks_at_each_parameter_of_the_model_a_few_times_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking through the whole model for each layer made a mix of SDXL take six seconds."""
    mixer = LoraMixer(Pipe())
    mixer.load_lora_weights(file_of(mixer.pipe, 0), "a")
    total = sum(1 for _ in mixer.pipe.unet.parameters())
    seen = 0
    named = torch.nn.Module.named_parameters

    def counted(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        for pair in named(self, *args, **kwargs):
            seen += 1
            yield pair

    monkeypatch.setattr(torch.nn.Module, "named_parameters", counted)
    with mixer.applied("a:0.5", engine="side"):
        assert seen <= 4 * total
