"""A layer's product and its adapter's in few operations: values and gradients, and that nothing of a call outlives it."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_mixer import LoraConfig, LoraMixer
from lora_mixer.algorithms.dora import Dora, RankParts, lengths_in_ranks
from lora_mixer.engines.trainable.direct import DirectBlocks, DirectPair
from lora_mixer.engines.trainable.joined import Terms, apart, joined
from tests.fresh_models import build, inputs, output, stirred
from tests.small_language_models import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (4, 3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 7, bias=False), (4, 5)),
    "convolution with strides": (lambda: nn.Conv2d(5, 7, 3, padding=1, stride=2), (4, 5, 8, 6)),
    "dilated convolution": (lambda: nn.Conv2d(5, 7, (3, 2), dilation=2, bias=False), (4, 5, 8, 7)),
    "pointwise": (lambda: nn.Conv2d(5, 7, 1), (4, 5, 3, 3)),
    "in one dimension": (lambda: nn.Conv1d(5, 7, 3, padding=1), (4, 5, 9)),
    "in three dimensions": (lambda: nn.Conv3d(5, 7, (1, 3, 3), padding=(0, 1, 1)), (4, 5, 2, 4, 4)),
}


@pytest.mark.parametrize("asks", [False, True], ids=["inputs are data", "inputs ask for gradients"])
@pytest.mark.parametrize("name", LAYERS)
def test_values_gradients_and_their_gradients_are_those_of_the_formula_in_fp64(name: str, asks: bool) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    layer = make().double().requires_grad_(False)
    flat = layer.weight.flatten(1)
    for last, scale in [(False, 0.5), (True, 1.0)]:
        x = torch.randn(shape, dtype=torch.float64)
        if last and len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_(asks)
        down = torch.randn(2, flat.shape[1], dtype=torch.float64, requires_grad=True)
        up = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
        magnitude = torch.rand(7, dtype=torch.float64).add(0.5).requires_grad_()
        dora = Dora(None, magnitude, True, "peft", None)  # type: ignore[arg-type]

        found = joined(layer, x, Terms(down, up, scale, dora, magnitude, flat.square().sum(1), flat))

        shift = magnitude / (flat + scale * up.detach() @ down.detach()).norm(dim=1) - 1
        kept = None if isinstance(layer, nn.Linear) else (layer.stride, layer.padding, layer.dilation)
        wanted = apart(x, layer.weight, layer.bias, shift, down, up, scale, kept)
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        asked = [*([x] if asks else []), magnitude, down, up]
        plain = [torch.autograd.grad(out.tanh().sum(), asked, retain_graph=True) for out in (found, wanted)]
        kept_graph = [
            torch.autograd.grad(out.tanh().sum(), asked, create_graph=True) for out in (found, wanted)
        ]
        second = [torch.autograd.grad(sum(one.square().sum() for one in own), asked) for own in kept_graph]
        for mine, theirs in (plain, kept_graph, second):
            for one, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16], ids=["fp64", "autocast"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_plain_pair_is_summed_into_its_layer_with_the_gradients_of_the_formula(
    name: str, kind: torch.dtype
) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    layer: Any = make().double().requires_grad_(False)
    ends, x = layer.weight.shape, torch.randn(shape, dtype=torch.float64)
    down, up = (
        torch.randn(*sizes, dtype=torch.float64) for sizes in ((2, *ends[1:]), (7, 2, *[1] * (len(ends) - 2)))
    )
    short = kind is torch.bfloat16
    found = []
    for given, width in ((layer, torch.float32 if short else torch.float64), (layer, torch.float64)):
        own = [one.detach().to(width).requires_grad_() for one in (x, down, up)]
        given.to(width)
        with torch.autocast("cpu", torch.bfloat16, enabled=width is torch.float32):
            if not found:
                out = DirectPair(given, own[1], own[2], 0.25, 0.0)(own[0], 2.0)
            else:
                kept = None if len(ends) == 2 else (layer.stride, layer.padding, layer.dilation)
                none = torch.zeros(7, dtype=torch.float64)
                flat = own[1].flatten(1), own[2].flatten(1)
                out = apart(own[0], layer.weight, layer.bias, none, *flat, 0.5, kept)
        first = torch.autograd.grad(out.tanh().sum(), own, create_graph=not short)
        second = [] if short else torch.autograd.grad(sum(one.square().sum() for one in first), own)
        found.append([one.detach() for one in (out, *first, *second)])

    for mine, wanted in zip(*found, strict=True):
        assert mine.shape == wanted.shape
        assert distance(mine, wanted) < (2e-2 if short else 1e-10)


def test_blocks_of_rows_have_their_own_pairs_at_their_own_scales() -> None:
    torch.manual_seed(4)
    layer = nn.Linear(5, 7).double().requires_grad_(False)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    for scales in ([0.5, 0.5, 0.5], [0.5, 1.0, -2.0]):
        pairs = [
            DirectPair(layer, torch.randn(2, 5).double(), torch.randn(7, 2).double(), s, 0.0) for s in scales
        ]
        blocks = DirectBlocks.of(pairs)
        assert blocks is not None

        found = blocks(x, 3.0)

        own = [pair(piece, 3.0) for pair, piece in zip(pairs, x.chunk(3), strict=True)]
        torch.testing.assert_close(found, torch.cat(own), rtol=1e-12, atol=1e-12)
    assert (
        DirectBlocks.of([pairs[0], DirectPair(layer, torch.zeros(3, 5), torch.zeros(7, 3), 1.0, 0.0)]) is None
    )
    assert DirectBlocks.of([pairs[0], None]) is None
    assert DirectBlocks.of([]) is None


def test_lengths_of_many_layers_are_those_of_each_turned_weight_in_fp64() -> None:
    torch.manual_seed(5)
    layers, wanted = [], []
    for (out, width), rank, scale in itertools.product([(6, 4), (6, 9), (8, 4)], [2, 3], [0.5, 2.0]):
        weight, up, down = (
            torch.randn(*s, dtype=torch.float64) for s in ((out, width), (out, rank), (rank, width))
        )
        layers.append(RankParts(weight.square().sum(1), weight @ down.T, up, down, scale))
        wanted.append((weight + scale * up @ down).norm(dim=1))
    order = torch.randperm(len(layers)).tolist()

    found = lengths_in_ranks([layers[place] for place in order])

    for own, place in zip(found, order, strict=True):
        torch.testing.assert_close(own, wanted[place], rtol=1e-11, atol=1e-11)


_FREE = {
    "view", "t", "transpose", "detach", "as_strided", "expand", "unsqueeze", "split_with_sizes", "split", "unbind", "permute",
    "_unsafe_view", "_reshape_alias", "alias", "slice", "select", "squeeze", "diagonal", "empty", "empty_like", "new_empty",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts what is computed, and not what only looks at memory another way."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in _FREE
        return function(*args, **kwargs or {})


def operations(model: nn.Module) -> int:
    """Return how many operations a forward and backward pass under autocast take."""
    with torch.autocast("cpu", torch.bfloat16):
        output(model, inputs("llama")).float().sum().backward()  # what is made once
    with Operations() as seen, torch.autocast("cpu", torch.bfloat16):
        output(model, inputs("llama")).float().sum().backward()
    return seen.count


@pytest.mark.parametrize(("dora", "share"), [(True, 0.5), (False, 0.76)])
def test_a_step_takes_fewer_operations_than_that_of_peft(dora: bool, share: float) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        use_dora=dora,
    )
    base = build("llama").bfloat16().requires_grad_(False)
    base.get_input_embeddings().weight.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # words that PEFT uses and transformers will drop
        theirs, ours = peft.get_peft_model(build("llama").bfloat16(), config), build("llama").bfloat16()
    LoraMixer(ours).add_adapter(config, "mine")

    own = operations(base)
    mine, other = operations(ours) - own, operations(theirs) - own

    assert 0 < mine < share * other, (mine, other)


def trained() -> tuple[nn.Module, LoraMixer, dict[str, nn.Parameter]]:
    """Return a model with a stirred adapter in training."""
    model = build("llama")
    mixer = LoraMixer(model)
    mixer.add_adapter(LoraConfig(r=3, target_modules=["q_proj", "up_proj"], use_dora=True), "mine")
    parameters = stirred(mixer, "mine", size=0.2)
    return model, mixer, parameters


def layers_of(model: nn.Module) -> Sequence[nn.Module]:
    return [module for path, module in model.named_modules() if path.endswith(("q_proj", "up_proj"))]


@pytest.mark.parametrize("step", ["fused", "in place"])
def test_factors_of_a_call_that_broke_off_are_not_those_of_a_part_that_is_called_later(
    step: str,
) -> None:
    model, _, parameters = trained()
    first, *_, last = layers_of(model)
    x = torch.randn(2, last.in_features)  # type: ignore[call-overload]

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(broken)
    with pytest.raises(KeyboardInterrupt), torch.autocast("cpu", torch.bfloat16):
        model(**inputs("llama"))  # what all layers need is made, and that of the last is not taken
    handle.remove()
    if step == "fused":
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(parameters.values(), lr=0.5, fused=True).step()
    else:
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.mul_(-1.5)

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = last(x)
        again = last(x)

    assert first is not last
    assert torch.equal(found, again)


def test_a_layer_whose_own_weight_is_trained_too_gives_it_its_gradient() -> None:
    model, _, parameters = trained()
    layer: Any = layers_of(model)[0]
    layer.weight.requires_grad_()

    output(model, inputs("llama")).square().mean().backward()

    found = layer.weight.grad.clone()
    assert found.any()
    assert all(p.grad is not None for p in parameters.values())


def test_transforms_of_torch_func_see_the_same_gradients() -> None:
    model, _, parameters = trained()
    layer: Any = layers_of(model)[0]
    x = torch.randn(3, layer.in_features)
    layer(x).square().sum().backward()
    wanted = {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}
    assert wanted

    of_x = torch.func.grad(lambda one: layer(one).square().sum())(x)
    by_rows = torch.func.vmap(layer)(x)

    asking = x.clone().requires_grad_()
    layer(asking).square().sum().backward()
    assert asking.grad is not None
    assert distance(of_x, asking.grad) < 1e-5
    assert distance(by_rows, layer(x)) < 1e-5


def test_two_calls_before_their_backward_passes_have_gradients_of_both() -> None:
    model, _, parameters = trained()
    one, other = inputs("llama"), {key: value.flip(0) for key, value in inputs("llama").items()}
    (output(model, one).square().mean() + 2 * output(model, other).tanh().mean()).backward()
    both = {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    output(model, one).square().mean().backward()
    (2 * output(model, other).tanh().mean()).backward()

    assert both.keys() == parameters.keys()
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        assert distance(both[key], parameter.grad) < 1e-5


def _passing_on(inside: Any) -> Any:
    def forward(*args: Any) -> Any:
        return inside(*args)

    return forward


def test_who_has_wrapped_a_layer_meanwhile_gets_its_class_own_forward_afterwards() -> None:
    model, mixer, _ = trained()
    layer: Any = layers_of(model)[0]
    x = torch.randn(2, layer.in_features)
    inside = layer.forward
    layer.forward = _passing_on(inside)
    with torch.no_grad():
        mixed = layer(x)
        mixer.unload_lora_weights()
        base = layer(x)

    assert not torch.equal(mixed, base)
    assert torch.equal(base, nn.functional.linear(x, layer.weight, layer.bias))
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())


class _PartlyWithoutGradients(torch.nn.Module):
    """As blocks under reentrant checkpointing are called: the first without gradients, the rest with them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.one(x)
        return self.two(x)


def test_layers_with_gradients_have_them_after_one_without_in_the_same_call() -> None:
    model = _PartlyWithoutGradients()
    mixer = LoraMixer(model)
    mixer.add_adapter({"peft_type": "LORA", "r": 2, "use_dora": True, "target_modules": ["one", "two"]}, "a")
    model(torch.randn(1, 3, 4, 4)).square().sum().backward()

    grads = {key: p.grad is not None for key, p in mixer.named_trainable_parameters("a") if ".two." in key}
    assert len(grads) == 3
    assert all(grads.values()), grads
