"""Layers whose weight is read without calling them, hooks of others on layers, and weights that are views of fewer numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lora_mixer import LoraMixer, PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 5


class Reader(nn.Module):
    """Layers that are called, and some that may not be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.called = nn.Linear(WIDTH, WIDTH)
        self.read = nn.Linear(WIDTH, WIDTH, bias=False)
        self.many = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False)])

    def forward(self, x: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        if isinstance(self.called.weight, torch.Tensor) and x.dtype != self.called.weight.dtype:
            x = x.to(self.called.weight.dtype).view(-1, self.called.weight.shape[1])
        return self.after(self.called(x))

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.read.weight)


class Multiplied(Reader):
    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.read.weight.T


class ByAnotherName(Reader):
    def after(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.read
        weight = layer.weight
        return torch.einsum("oi,...i->...o", weight, x)


class ByData(Reader):
    @property
    def matrix(self) -> torch.Tensor:
        return self.read.weight.data

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.t()


class InALoop(Reader):
    def after(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.many:
            x = functional.linear(x, layer.weight)
        return x


class ByNumber(Reader):
    def after(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.many[0].weight)


class Within(Reader):
    @torch.no_grad()
    def after(self, x: torch.Tensor) -> torch.Tensor:
        def product(y: torch.Tensor) -> torch.Tensor:
            return functional.linear(y, self.read.weight)

        return product(x)


class Processor:
    def __call__(self, attn: Reader, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, attn.read.weight)


class Processed(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.processor = Processor()

    def after(self, x: torch.Tensor) -> torch.Tensor:
        return self.processor(self, x)


class Inherited(Multiplied):
    pass


READERS: list[type[Reader]] = [Reader, Multiplied, ByAnotherName, ByData, InALoop, ByNumber, Within, Processed, Inherited]  # fmt: skip


def file_of(model: Reader, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A change of each layer: as in a file, and as a matrix."""
    torch.manual_seed(1)
    file: dict[str, torch.Tensor] = {}
    deltas: dict[str, torch.Tensor] = {}
    for path in ("called", "read", "many.0"):
        up, down = torch.randn(WIDTH, 2), torch.randn(2, WIDTH)
        deltas[path] = up @ down
        if kind == "pair":
            file |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        else:
            file[f"{path}.diff"] = deltas[path]
    return file, deltas


@pytest.mark.parametrize("kind", ["pair", "full"])
@pytest.mark.parametrize("reader", READERS)
def test_a_layer_that_is_read_and_not_called_has_the_mix_or_the_mix_is_refused(
    reader: type[Reader], kind: str
) -> None:
    model = reader().eval()
    x = torch.randn(2, WIDTH)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file, deltas = file_of(model, kind)
    with torch.no_grad():
        base = model(x)
        for path, delta in deltas.items():
            model.get_submodule(path).weight += 0.5 * delta
        wanted = model(x)
        model.load_state_dict(before)
        mixer = LoraMixer(model)
        mixer.load_lora_weights(file, "a", activate=False)
        for mix, engine in (
            ({"a": 0.5}, "auto"),
            ({"a": 0.5}, "side"),
            ({"a": {"weight": 1.0, "schedule": "0.5@0,0.5@1"}}, "auto"),
            ({"a": {"weight": 1.0, "schedule": "0.5@0,0.5@1"}}, "side"),
        ):
            mixer.set_mix(mix, engine=engine)
            assert torch.allclose(model(x, 10), wanted, atol=1e-4), (mix, engine)
            if engine == "side":
                assert torch.equal(model.called.weight, before["called.weight"])
        mixer.disable_lora()
        assert torch.equal(model(x), base)
        with pytest.raises(
            PipelineStateError, match=r"model\.(read|many\.0): .*reads its weight without calling it"
        ):
            mixer.set_mix([{"a": 0.5}, {}])
        assert torch.equal(model(x), base)
        mixer.unload_lora_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_reserved_leaves_out_layers_that_are_read() -> None:
    model = Multiplied().eval()
    mixer = LoraMixer(model)
    file, deltas = file_of(model, "pair")
    mixer.load_lora_weights(file, "a", activate=False)
    mixer.reserve(rank=4)
    assert not model.read._forward_hooks
    assert model.called._forward_hooks
    mixer.set_mix({"a": 0.5})
    x = torch.randn(3, WIDTH)
    with torch.no_grad():
        called = functional.linear(x, model.called.weight + 0.5 * deltas["called"], model.called.bias)
        clean = Multiplied().read.weight
        assert torch.allclose(model(x), called @ (clean + 0.5 * deltas["read"]).T, atol=1e-4)


def test_layers_that_are_only_asked_about_run_beside_with_mixes_of_their_own() -> None:
    model = Multiplied().eval()
    mixer = LoraMixer(model)
    file, deltas = file_of(model, "pair")
    mixer.load_lora_weights(
        {key: value for key, value in file.items() if "called" in key}, "a", activate=False
    )
    mixer.set_mix([{"a": 0.5}, {}])
    x = torch.randn(2, WIDTH)
    with torch.no_grad():
        added = (0.5 * x @ deltas["called"].T) @ model.read.weight.T
        base = model.after(functional.linear(x, model.called.weight, model.called.bias))
        assert torch.allclose(model(x) - base, torch.stack([added[0], torch.zeros(WIDTH)]), atol=1e-4)


CHANGES: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "pair": lambda: {"0.lora_A.weight": torch.ones(1, 3), "0.lora_B.weight": torch.randn(4, 1)},
    "full": lambda: {"0.diff": torch.randn(4, 3)},
    "bias": lambda: {"0.diff": torch.randn(4, 3), "0.diff_b": torch.randn(4)},
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("engine", ["merged", "side", "reserved"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_hook_of_somebody_else_sees_what_a_mix_in_the_weight_would_give(
    change: str, engine: str, before: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    layer: Any = model[0]
    mixer = LoraMixer(model)
    file = CHANGES[change]()
    mixer.load_lora_weights(file, "a", activate=False)

    def squared(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.square()

    handle = layer.register_forward_hook(squared) if before else None
    if engine == "reserved":
        mixer.reserve(rank=2)
    mixer.set_mix({"a": 0.5}, engine="auto" if engine == "reserved" else engine)
    handle = handle or layer.register_forward_hook(squared)
    x = torch.randn(2, 3)
    delta = file["0.diff"] if "0.diff" in file else file["0.lora_B.weight"] @ file["0.lora_A.weight"]
    bias = 0.5 * file["0.diff_b"] if "0.diff_b" in file else None
    torch.manual_seed(0)
    clean = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        wanted = functional.linear(x, clean.weight + 0.5 * delta, bias).square()
        assert torch.allclose(model(x), wanted, atol=1e-5)
        mixer.unload_lora_weights()
        mixer.release()
        assert torch.equal(model(x), functional.linear(x, clean.weight).square())
    assert list(layer._forward_hooks) == [handle.id]


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (1, 1)])
def test_a_weight_whose_numbers_share_their_memory_is_left_alone(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight = nn.Parameter(torch.randn(shape).expand(4, 3))
    few = model[0].weight.detach().clone()
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    mixer = LoraMixer(model)
    mixer.load_lora_weights({"0.lora_A.weight": down, "0.lora_B.weight": up}, "a")
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.allclose(model(x), functional.linear(x, few + up @ down, model[0].bias), atol=1e-5)
        with pytest.raises(
            PipelineStateError, match=r"model\.0: its weights are a view .*clone.*engine='auto'"
        ):
            mixer.set_mix({"a": 0.5}, engine="merged")
        mixer.unload_lora_weights()
    assert torch.equal(model[0].weight, few)
