"""torch.autocast around a pipeline with a mix beside its weights, or merged anew inside of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from torch import nn

from lora_mixer import LoraMixer

KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 10), (3, 5, 12)),
    "linear, one row": (nn.Linear(12, 10, bias=False), (3, 12)),
    "conv1d": (nn.Conv1d(6, 8, 3), (3, 6, 9)),
    "conv1d of 1": (nn.Conv1d(6, 8, 1), (3, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (3, 6, 8, 8)),
    "conv2d of 1": (nn.Conv2d(6, 8, 1), (3, 6, 4, 4)),
    "conv3d": (nn.Conv3d(4, 5, 3, padding=1), (3, 4, 3, 4, 4)),
    "conv3d of 1": (nn.Conv3d(4, 5, 1), (3, 4, 3, 4, 4)),
}
ROOM = {torch.bfloat16: 0.03, torch.float16: 0.005}


class Pipe:
    do_classifier_free_guidance = False

    def __init__(self, layer: nn.Module) -> None:
        torch.manual_seed(0)
        self.unet = nn.Sequential()
        self.unet.add_module("layer", layer)
        self.scheduler = DDIMScheduler()
        self.components: dict[str, Any] = {"unet": self.unet, "scheduler": self.scheduler}


def adapter(layer: Any, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    out, *rest = layer.weight.shape
    return {
        "unet.layer.lora_A.weight": torch.randn(3, *rest, generator=g) * 0.3,
        "unet.layer.lora_B.weight": torch.randn(out, 3, *[1] * (len(rest) - 1), generator=g) * 0.3,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_mix_beside_each_kind_of_layer_under_autocast(kind: str, dtype: torch.dtype, grad: bool) -> None:
    layer, shape = copy.deepcopy(KINDS[kind][0]), KINDS[kind][1]
    pipe = Pipe(layer)
    mixer = LoraMixer(pipe)
    for seed, name in enumerate("ab"):
        mixer.load_lora_weights(adapter(layer, seed), name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(9))

    def call(*, cast: bool, mixes: Any) -> torch.Tensor:
        mixer.set_mix(mixes, engine="side", guidance_copies=1)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=cast):
            return pipe.unet(x).detach()

    for mixes in ({"a": 0.9, "b": -0.5}, [{"a": 0.9}, {"b": 0.7}, {"a": 0.2, "b": 0.1}]):
        exact = call(cast=False, mixes=mixes)
        found = call(cast=True, mixes=mixes)

        assert found.dtype == dtype
        assert (found.float() - exact).norm() / exact.norm() < ROOM[dtype]
        # what autocast saw leaves the factors as they were
        assert torch.equal(call(cast=False, mixes=mixes), exact)


def test_inputs_of_another_type_for_a_while_do_not_round_the_factors() -> None:
    layer = nn.Linear(12, 10)
    pipe = Pipe(layer)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(adapter(layer, 1), "a")
    mixer.set_mix({"a": 0.9}, engine="side")
    x = torch.randn(4, 12)
    with torch.no_grad():
        before = pipe.unet(x)
        pipe.unet.to(torch.bfloat16)
        pipe.unet(x.bfloat16())
        pipe.unet.float()
        layer.weight.copy_(layer.weight)
        after = pipe.unet(x) - nn.functional.linear(x, layer.weight, layer.bias)
        change = adapter(layer, 1)
        wanted = 0.9 * x @ (change["unet.layer.lora_B.weight"] @ change["unet.layer.lora_A.weight"]).T

    assert (before - pipe.unet(x)).abs().max() < 0.1
    assert (after - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("engine", ["merged", "side"])
def test_weights_written_inside_of_one_autocast_block_take_effect_at_once(engine: Any) -> None:
    """Autocast keeps the halves of weights for as long as the block lasts."""
    layer = nn.Linear(12, 10)
    pipe = Pipe(layer)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(adapter(layer, 1), "a")
    x = torch.randn(4, 12)
    apart = []
    for weight in (0.0, 1.0, -1.0):
        mixer.set_mix({"a": weight}, engine=engine)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            apart.append(pipe.unet(x))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for weight, wanted in zip((0.0, 1.0, -1.0), apart, strict=True):
            mixer.set_mix({"a": weight}, engine=engine)
            assert torch.equal(pipe.unet(x), wanted)


class Several(nn.Module):
    """Small layers, whose weights are compared together."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 10), nn.Linear(12, 10, bias=False), nn.Conv2d(4, 6, 3)


def changes(model: nn.Module, algorithm: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g) * 0.3

    file: dict[str, torch.Tensor] = {}
    for path, layer in model.named_children():
        out, inner, *kernel = layer.weight.shape
        if algorithm == "lora":
            file[f"{path}.lora_A.weight"] = drawn(2, inner, *kernel)
            file[f"{path}.lora_B.weight"] = drawn(out, 2, *[1] * len(kernel))
        elif algorithm == "full":
            file[f"{path}.diff"] = drawn(out, inner, *kernel)
        elif not kernel:
            for half in "12":
                file[f"{path}.hada_w{half}_a"], file[f"{path}.hada_w{half}_b"] = (
                    drawn(out, 2),
                    drawn(2, inner),
                )
    return file


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("algorithm", ["lora", "full", "loha"])
def test_mixes_that_are_set_inside_of_autocast_are_those_that_are_set_outside(
    stored: torch.dtype, cast: torch.dtype, algorithm: str
) -> None:
    """Autocast is the pipeline's: weights of the other kind of halves are compared and written as ever."""
    torch.manual_seed(0)
    model = Several().to(stored)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    mixer = LoraMixer(model)
    mixer.load_lora_weights(changes(model, algorithm), "a")
    outside = {key: value.clone() for key, value in model.state_dict().items()}
    mixer.disable_lora()

    with torch.autocast("cpu", cast):
        mixer.set_mix({"a": 1.0})
        inside = {key: value.clone() for key, value in model.state_dict().items()}
        mixer.set_mix({"a": -0.5})
        mixer.disable_lora()
        assert torch.is_autocast_enabled("cpu")

    assert all(torch.equal(inside[key], outside[key]) for key in base)
    assert any(not torch.equal(inside[key], base[key]) for key in base)
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
def test_fused_projections_follow_a_mix_that_is_set_inside_of_autocast(
    stored: torch.dtype, cast: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("attn", Attention(8, heads=2, dim_head=4))
    model.to(stored)
    model.attn.fuse_projections()
    base = model.attn.to_qkv.weight.clone()
    mixer = LoraMixer(model)
    mixer.load_lora_weights(
        {"attn.to_q.lora_A.weight": torch.randn(2, 8), "attn.to_q.lora_B.weight": torch.randn(8, 2)}, "a"
    )
    outside = model.attn.to_qkv.weight.clone()
    mixer.disable_lora()

    with torch.autocast("cpu", cast):
        mixer.set_mix({"a": 1.0})
        assert torch.equal(model.attn.to_qkv.weight, outside)
        mixer.disable_lora()

    assert not torch.equal(outside, base)
    assert torch.equal(model.attn.to_qkv.weight, base)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(8, 12, 3, groups=4), torch.ones(2, 8, 5, 5)),
        (nn.Conv1d(6, 6, 3, groups=6), torch.ones(2, 6, 8)),
        (nn.Embedding(9, 6), torch.arange(6)[None]),
        (nn.Conv2d(4, 6, 3), torch.ones(2, 4, 5, 5)),
        (nn.Linear(6, 5), torch.ones(2, 6)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_first_call_inside_of_autocast_does_not_round_those_outside(
    layer: Any, x: torch.Tensor, bias: bool, cast: torch.dtype
) -> None:
    pipe = Pipe(copy.deepcopy(layer))
    file = adapter(layer, 1)
    if bias and getattr(layer, "bias", None) is not None:
        file["unet.layer.diff_b"] = torch.randn(layer.bias.shape)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file, "a")
    with torch.no_grad():
        mixer.set_mix({"a": 0.9}, engine="merged")
        wanted = pipe.unet(x)
        mixer.set_mix({"a": 0.9}, engine="side")
        with torch.autocast("cpu", cast):
            pipe.unet(x)
        found = pipe.unet(x)

    assert (found - wanted).norm() < 1e-6 * wanted.norm()
