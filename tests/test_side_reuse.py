"""Another mix of the same adapters beside the weights writes gains only; what stands there is what a fresh one would be."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MixError
from lora_mixer.engines.side import engine as side
from tests.small_pipe import assert_same, values

if TYPE_CHECKING:
    from collections.abc import Sequence


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)).requires_grad_(
        requires_grad=False
    )


def pairs(seed: int, rank: int, layers: Sequence[int] = (0, 1, 2)) -> dict[str, torch.Tensor]:
    generator, shapes = torch.Generator().manual_seed(seed), [(8, 6), (8, 8), (5, 8)]
    return {
        f"{n}.lora_{half}.weight": torch.randn(size, generator=generator)
        for n in layers
        for half, size in (("A", (rank, shapes[n][1])), ("B", (shapes[n][0], rank)))
    }


FILES = {"a": pairs(1, 2), "b": pairs(2, 3, (0, 2)), "c": pairs(3, 1, (1,))}


def loaded(model: nn.Module, files: dict[str, dict[str, torch.Tensor]] = FILES) -> LoraMixer:
    mixer = LoraMixer(model, keep_base="none")
    for name, file in files.items():
        mixer.load_lora_weights(file, name, activate=False)
    return mixer


def fresh(mix: Any, x: torch.Tensor) -> torch.Tensor:
    model = net()
    loaded(model).set_mix(mix)
    return model(x)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of layers beside which tensors were made, one for each time."""
    counts: list[int] = []
    make = side.make_layers

    def counted(wanted: Any, *others: Any) -> Any:
        counts.append(len(wanted))
        return make(wanted, *others)

    monkeypatch.setattr(side, "make_layers", counted)
    return counts


MIXES: dict[str, Any] = {
    "a alone": {"a": 0.5},
    "a, b": {"a": 0.5, "b": -1.0},
    "a, b otherwise": {"a": -0.2, "b": 2.0},
    "all": {"a": 1.0, "b": 1.0, "c": 1.0},
    "one at nothing": {"a": 0.0, "b": 1.0},
    "two for one batch": [{"a": 1.0}, {"b": -0.5}],
    "two for one batch otherwise": [{"a": 0.1}, {"b": 0.7}],
    "nothing": {},
}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(MIXES, 2)))
def test_any_mix_after_any_other_is_what_a_fresh_one_is(first: str, second: str) -> None:
    model, x = net(), torch.randn(2, 6)
    clean, base = values(model), model(x)
    mixer = loaded(model)
    for name in (first, second, first):
        mixer.set_mix(MIXES[name])
        assert torch.equal(model(x), fresh(MIXES[name], x))
    mixer.set_mix({})
    assert torch.equal(model(x), base)
    assert_same(values(model), clean)


def test_other_weights_make_nothing_anew(made: list[int]) -> None:
    model, x = net(), torch.randn(4, 6)
    mixer = loaded(model)
    mixer.set_adapters(["a", "b"], [0.5, 0.5])
    assert made == [3]
    for weight in (0.1, -2.0, 0.7):
        mixer.set_adapters(["a", "b"], [weight, 1.0])
        assert torch.equal(model(x), fresh({"a": weight, "b": 1.0}, x))
    assert made == [3, *[3] * 3]  # those of the fresh models
    mixer.set_adapters(["a", "b", "c"], 1.0)
    assert len(made) == 5
    mixer.disable_lora()
    mixer.enable_lora()
    assert len(made) == 6  # nothing is kept for adapters that are not in effect


def test_an_adapter_that_is_replaced_under_its_name_has_its_own_factors() -> None:
    model, x = net(), torch.randn(2, 6)
    mixer = loaded(model)
    mixer.set_adapters("a", 1.0)
    before = model(x)

    mixer.load_lora_weights(pairs(9, 2), "a", hotswap=True)

    other = net()
    loaded(other, {"a": pairs(9, 2)}).set_adapters("a", 1.0)
    assert not torch.equal(model(x), before)
    assert torch.equal(model(x), other(x))


def test_layers_that_move_to_another_type_are_followed() -> None:
    model, x = net(), torch.randn(2, 6)
    mixer = loaded(model)
    mixer.set_adapters("a", 1.0)
    model.to(torch.float64)
    mixer.set_adapters("a", 0.5)

    other = net().to(torch.float64)
    loaded(other).set_adapters("a", 0.5)
    assert torch.equal(model(x.double()), other(x.double()))


def test_a_refused_mix_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), torch.randn(2, 6)
    mixer = loaded(model)
    mixer.set_adapters(["a", "b"], 1.0)
    before = model(x)

    def broken(*_: Any) -> None:
        raise MixError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(side.GainBuffers, "show", broken)
        with pytest.raises(Exception, match="broken on purpose"):
            mixer.set_adapters(["a", "b"], -1.0)
    mixer.set_adapters(["a", "b"], 1.0)
    assert torch.equal(model(x), before)


def test_a_copy_goes_its_own_way() -> None:
    model, x = net(), torch.randn(2, 6)
    mixer = loaded(model)
    mixer.set_adapters("a", 1.0)
    twin = copy.deepcopy(model)
    other = LoraMixer(twin, keep_base="none")
    other.set_adapters("a", -1.0)

    assert torch.equal(model(x), fresh({"a": 1.0}, x))
    assert torch.equal(twin(x), fresh({"a": -1.0}, x))
    mixer.set_adapters("a", 0.3)
    assert torch.equal(twin(x), fresh({"a": -1.0}, x))
    assert torch.equal(model(x), fresh({"a": 0.3}, x))
