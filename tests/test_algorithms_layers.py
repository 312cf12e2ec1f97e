"""
Every algorithm in every form on every kind of layer: equal to its formula in fp64, merged and beside, or refused by name.

The formulas stand here in their own words, from the papers and the tools that write the files; nothing of the package's
maths is used. A case that is neither equal nor named by ``refusal`` fails, and so does one that is named there and
works.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_mixer import LoraMixer, MatchError
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

R, ALPHA = 2, 3.0
S = ALPHA / R

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "linear": (lambda: nn.Linear(8, 6), lambda: torch.randn(3, 8)),
    "linear without bias": (lambda: nn.Linear(8, 6, bias=False), lambda: torch.randn(2, 5, 8)),
    "transposed": (lambda: Conv1D(6, 8), lambda: torch.randn(3, 8)),
    "embedding": (lambda: nn.Embedding(6, 8), lambda: torch.tensor([[0, 5, 2, 4]])),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, padding=1), lambda: torch.randn(2, 8, 5)),
    "conv2d 1x1": (lambda: nn.Conv2d(8, 6, 1), lambda: torch.randn(2, 8, 3, 4)),
    "conv2d 3x3": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), lambda: torch.randn(2, 8, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(8, 6, (3, 2, 1)), lambda: torch.randn(1, 8, 4, 3, 2)),
    "grouped": (lambda: nn.Conv2d(16, 6, 3, groups=2), lambda: torch.randn(1, 16, 4, 4)),
    "norm": (lambda: nn.LayerNorm(6), lambda: torch.randn(3, 6)),
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A file's leaves for one module, and what they mean: ``change(W, m)`` of the weight, ``bias(b, m)`` of the bias."""

    leaves: Mapping[str, Any]
    change: Callable[[torch.Tensor, float], torch.Tensor]
    bias: Callable[[torch.Tensor, float], torch.Tensor] | None = None
    config: dict[str, Any] | None = None
    pair: bool = False
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Draw:
    """Seeded tensors, and sizes of the layer that a form is made for."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)
        self.out, self.inp, self.kernel = shape[0], shape[1] if len(shape) > 1 else 8, shape[2:]
        self.ones = (1,) * len(self.kernel)
        self.flat = self.inp * math.prod(self.kernel)

    def __call__(self, *shape: int, scale: float = 0.5) -> torch.Tensor:
        return torch.randn(shape, generator=self.g) * scale


def tucker(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum over both ranks of core[i, j, ...] * left[i, out] * right[j, in]."""
    return torch.einsum("ij...,io,jn->on...", core.double(), left.double(), right.double())


def d(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double()


def fixed(delta: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    return lambda w, m: m * delta.reshape(w.shape)


def inner_changes(x: Draw) -> dict[str, tuple[dict[str, Any], torch.Tensor]]:
    """The changes that do not look at the base, of rank R and alpha ALPHA: leaves, and the change at weight 1 in fp64."""
    up, down = x(x.out, R, *x.ones), x(R, x.inp, *x.kernel)
    mid, thin = x(R, R, *(x.kernel or (1, 1))), x(R, x.inp, *(x.ones or (1, 1)))
    found: dict[str, tuple[dict[str, Any], torch.Tensor]] = {}
    found["lora"] = (
        {"lora_up.weight": up, "lora_down.weight": down, "alpha": ALPHA},
        S * d(up).flatten(1) @ d(down).flatten(1),
    )
    found["lora tucker"] = (
        {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": thin, "alpha": ALPHA},
        S * tucker(mid, up.flatten(1).T, thin.flatten(1)),
    )
    a1, b1, a2, b2 = x(x.out, R), x(R, x.flat), x(x.out, R), x(R, x.flat)
    found["loha"] = (
        {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": ALPHA},
        S * (d(a1) @ d(b1)) * (d(a2) @ d(b2)),
    )
    a1, b1, a2, b2 = x(R, x.out), x(R, x.inp), x(R, x.out), x(R, x.inp)
    t1, t2 = x(R, R, *(x.kernel or (1, 1))), x(R, R, *(x.kernel or (1, 1)))
    found["loha tucker"] = (
        {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "hada_t1": t1, "hada_t2": t2,
         "alpha": ALPHA},
        S * tucker(t1, a1, b1) * tucker(t2, a2, b2),
    )  # fmt: skip
    for first in ("full", "product"):
        for second in ("full", "product", "tucker"):
            found[f"lokr {first} x {second}"] = lokr(x, first, second)
    return found


def lokr(x: Draw, first: str, second: str) -> tuple[dict[str, Any], torch.Tensor]:
    a, c = 2, 4 if x.inp % 4 == 0 else 1
    b, e = x.out // a, x.inp // c
    leaves: dict[str, Any] = {"alpha": ALPHA}
    if first == "full":
        leaves["lokr_w1"] = x(a, c)
        w1 = d(leaves["lokr_w1"])
    else:
        leaves |= {"lokr_w1_a": x(a, R), "lokr_w1_b": x(R, c)}
        w1 = d(leaves["lokr_w1_a"]) @ d(leaves["lokr_w1_b"])
    count = math.prod(x.kernel)
    if second == "full":
        leaves["lokr_w2"] = x(b, e, *x.kernel)
        w2 = d(leaves["lokr_w2"]).flatten(1)
    elif second == "product":
        leaves |= {"lokr_w2_a": x(b, R), "lokr_w2_b": x(R, e * count)}
        w2 = d(leaves["lokr_w2_a"]) @ d(leaves["lokr_w2_b"])
    else:
        leaves |= {"lokr_w2_a": x(R, b), "lokr_w2_b": x(R, e), "lokr_t2": x(R, R, *(x.kernel or (1, 1)))}
        w2 = tucker(leaves["lokr_t2"], leaves["lokr_w2_a"], leaves["lokr_w2_b"]).flatten(1)
    scale = 1.0 if (first, second) == ("full", "full") else S
    return leaves, scale * torch.kron(w1, w2)


def dora(
    x: Draw, delta: torch.Tensor, kind: str
) -> tuple[dict[str, Any], Callable[[torch.Tensor, float], torch.Tensor]]:
    """Magnitudes by output or by input over a change; LyCORIS' files are linear in the weight, PEFT's turn with it."""
    by_input = kind == "by input"
    width = x.inp if by_input else x.out
    value = x(width).abs() + 0.5
    axes = (1, width, *x.ones) if by_input else (width, 1, *x.ones)

    def change(w: torch.Tensor, m: float) -> torch.Tensor:
        if not m:
            return torch.zeros_like(w)
        v = w + (m if kind == "peft" else 1.0) * delta.reshape(w.shape)
        keep = 1 if by_input else 0
        length = v.movedim(keep, 0).flatten(1).norm(dim=1)
        ratio = d(value) / length
        new = v * ratio.view([-1 if axis == keep else 1 for axis in range(w.ndim)])
        return new - w if kind == "peft" else m * (new - w)

    leaf = "lora_magnitude_vector" if kind == "peft" else "dora_scale"
    return {leaf: value if kind == "peft" else value.view(axes)}, change


def cayley(q: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(q.shape[-1], dtype=torch.float64)
    return (eye + q) @ torch.linalg.inv(eye - q)


def skew(blocks: torch.Tensor) -> torch.Tensor:
    return d(blocks) - d(blocks).transpose(-1, -2)


def forms(shape: tuple[int, ...], seed: int) -> dict[str, Form]:  # noqa: C901, PLR0915 -- one table, read from the top
    """Every form of every algorithm for a weight (out, in, *kernel)."""
    x = Draw(shape, seed)
    found: dict[str, Form] = {}
    for name, (leaves, delta) in inner_changes(x).items():
        found[name] = Form(leaves, fixed(delta), pair=True)
        found[f"{name}, scalar"] = Form({**leaves, "scalar": 0.25}, fixed(0.25 * delta), pair=True)
        for kind in ("by output", "by input", "peft"):
            more, change = dora(x, delta, kind)
            found[f"{name}, dora {kind}"] = Form({**leaves, **more}, change)
    up, down, bias = x(x.out, R, *x.ones), x(R, x.inp, *x.kernel), x(x.out)
    pair = S * d(up).flatten(1) @ d(down).flatten(1)
    named = {"lora_B.weight": up, "lora_A.weight": down}
    found["peft lora"] = Form(
        named, fixed(pair), config={"peft_type": "LORA", "r": R, "lora_alpha": ALPHA}, pair=True
    )
    found["peft lora with bias"] = Form(
        {**named, "lora_B.bias": bias}, fixed(pair), lambda b, m: m * S * d(bias),
        {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "lora_bias": True},
    )  # fmt: skip
    found["rslora"] = Form(
        named, fixed(pair / S * ALPHA / R**0.5), pair=True,
        config={"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "use_rslora": True},
    )  # fmt: skip
    tokens, width = x(R, x.out), x(x.inp, R)
    found["peft embedding"] = Form(
        {"lora_embedding_A": tokens, "lora_embedding_B": width}, fixed(S * (d(width) @ d(tokens)).T),
        config={"peft_type": "LORA", "r": R, "lora_alpha": ALPHA},
        pair=True,
    )  # fmt: skip
    diff, diff_b = x(*shape), x(x.out)
    found["full"] = Form({"diff": diff, "diff_b": diff_b}, fixed(d(diff)), lambda b, m: m * d(diff_b))
    found["norm"] = Form({"w_norm": diff, "b_norm": diff_b}, fixed(d(diff)), lambda b, m: m * d(diff_b))
    found["bias alone"] = Form(
        {"diff_b": diff_b}, lambda w, m: torch.zeros_like(w), lambda b, m: m * d(diff_b)
    )
    found["set"] = Form(
        {"set_weight": diff, "diff_b": diff_b}, lambda w, m: d(diff) - w, lambda b, m: m * d(diff_b)
    )
    a1, a2, b1 = x(x.inp, R, *x.ones), x(R, x.inp, *x.ones), x(x.out, R, *x.ones)

    def glora(w: torch.Tensor, m: float) -> torch.Tensor:
        inner = d(a1).flatten(1) @ d(a2).flatten(1)
        return (
            m
            * S
            * (
                torch.einsum("oi...,ij->oj...", w, inner)
                + (d(b1).flatten(1) @ d(down).flatten(1)).reshape(w.shape)
            )
        )

    found["glora"] = Form(
        {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": down, "alpha": ALPHA}, glora
    )
    e, flat_up, flat_down = x(R, 1), x(x.out, R), x(R, x.flat)
    found["adalora"] = Form(
        {"lora_A": flat_down, "lora_B": flat_up, "lora_E": e},
        fixed(ALPHA / (R + 1e-5) * d(flat_up) @ (d(e) * d(flat_down))),
        config={"peft_type": "ADALORA", "lora_alpha": ALPHA},
        pair=True,
    )
    shared_a, shared_b, lam_b, lam_d = x(R, x.flat + 3), x(x.out + 2, R), x(x.out), x(R)
    found["vera"] = Form(
        {"vera_lambda_b": lam_b, "vera_lambda_d": lam_d},
        fixed(torch.diag(d(lam_b)) @ d(shared_b)[: x.out] @ torch.diag(d(lam_d)) @ d(shared_a)[:, : x.flat]),
        config={"peft_type": "VERA", "r": R},
        pair=True,
        shared={"vera_A": shared_a, "vera_B": shared_b},
    )
    places, values = torch.tensor([[0, x.out - 1], [1, x.flat - 1]]), x(2)
    scattered = torch.zeros(x.out, x.flat, dtype=torch.float64)
    scattered[places[0], places[1]] = d(values)
    found["lora and sparse"] = Form(
        {"lora_up.weight": up, "lora_down.weight": down, "alpha": ALPHA, "bias_indices": places,
         "bias_values": values, "bias_size": torch.tensor([x.out, x.flat])},
        fixed(pair + S * scattered),
    )  # fmt: skip
    found["shira"] = Form(
        {"shira_weight": values, "shira_indices": places.int()}, fixed(scattered),
        config={"peft_type": "SHIRA", "r": R},
    )  # fmt: skip
    blocks, rescale = x(2, x.out // 2, x.out // 2, scale=0.3), x(x.out, 1, *x.ones)

    def oft(w: torch.Tensor, m: float) -> torch.Tensor:
        eye = torch.eye(x.out // 2, dtype=torch.float64)
        turn = torch.block_diag(*(m * cayley(skew(blocks)) + (1 - m) * eye)).T
        return (turn @ w.reshape(len(w), -1)).reshape(w.shape) - w

    found["oft"] = Form({"oft_blocks": blocks, "alpha": 0.0}, oft)
    found["oft, rescale"] = Form(
        {"oft_blocks": blocks, "rescale": rescale, "alpha": 0.0},
        lambda w, m: d(rescale).view(-1, *[1] * (w.ndim - 1)) * (oft(w, m) + w) - w,
    )
    triangles = x(x.flat // 4, 6, scale=0.2)
    upper = torch.triu_indices(4, 4, 1)
    q = torch.zeros(len(triangles), 4, 4, dtype=torch.float64)
    q[:, upper[0], upper[1]] = d(triangles)
    inputs = torch.block_diag(*cayley(-(q - q.transpose(1, 2))))
    found["peft oft"] = Form(
        {"oft_R.weight": triangles}, lambda w, m: m * ((w.flatten(1) @ inputs.T).reshape(w.shape) - w),
        config={"peft_type": "OFT", "use_cayley_neumann": False},
    )  # fmt: skip
    vectors = x(x.flat, R)

    def hra(w: torch.Tensor, m: float) -> torch.Tensor:
        total = torch.eye(x.flat, dtype=torch.float64)
        for column in (d(vectors) / d(vectors).norm(dim=0)).T:
            total = total - 2 * (total @ column).outer(column)
        return m * ((w.flatten(1) @ total).reshape(w.shape) - w)

    found["hra"] = Form({"hra_u": vectors}, hra, config={"peft_type": "HRA", "r": R, "apply_GS": False})
    found["hira"] = Form(
        {"hira_A": down, "hira_B": up}, lambda w, m: m * w * (pair / S).reshape(w.shape),
        config={"peft_type": "HIRA", "r": R},
    )  # fmt: skip
    kernels = x(x.out // 2, x.flat // 2, 2)
    circulant = torch.zeros(x.out, x.flat, dtype=torch.float64)
    for row in range(x.out):
        for column in range(x.flat):
            circulant[row, column] = d(kernels)[row // 2, column // 2, (column - row) % 2]
    found["c3a"] = Form(
        {"c3a_kernel": kernels}, fixed(circulant / x.flat), config={"peft_type": "C3A", "block_size": 2}
    )
    shard = x(R, x.out)
    repeated = torch.stack([d(shard)[i % R] for i in range(x.flat)], 1)
    found["miss"] = Form({"miss_block": shard}, fixed(repeated), config={"peft_type": "MISS", "r": R})
    lam, lengths = x(1), x(x.flat).abs()
    parts = sum(
        d(flat_up)[:, [k]] @ d(flat_down)[[k]] / (d(flat_up)[:, k].norm() * d(flat_down)[k].norm())
        for k in range(R)
    )
    found["delora"] = Form(
        {"delora_A": flat_down, "delora_B": flat_up, "delora_lambda": lam, "delora_w_norm": lengths},
        fixed(d(lam) / R * parts * d(lengths)),
        config={"peft_type": "DELORA", "r": R},
        pair=True,
    )
    granular_a, granular_b = x(2, x.flat // 2, R), x(2, R, x.out // 2)
    granular = torch.zeros(x.out, x.flat, dtype=torch.float64)
    for n in range(2):
        for k in range(2):
            part = d(granular_a)[n, :, [k]] @ d(granular_b)[k, [n]]  # of R = 2 ranks each block has one
            rows, columns = (
                slice(k * x.out // 2, (k + 1) * x.out // 2),
                slice(n * x.flat // 2, (n + 1) * x.flat // 2),
            )
            granular[rows, columns] = part.T
    found["gralora"] = Form(
        {"gralora_A": granular_a, "gralora_B": granular_b}, fixed(S * granular),
        config={"peft_type": "GRALORA", "r": R, "lora_alpha": ALPHA, "gralora_k": 2},
    )  # fmt: skip
    by_row, by_column = x(x.out), x(x.inp)
    found["ia3 of outputs"] = Form(
        {"weight": by_row, "on_input": torch.tensor(0)},
        lambda w, m: m * w * d(by_row).view(-1, *[1] * (w.ndim - 1)),
    )
    found["ia3 of inputs"] = Form(
        {"weight": by_column, "on_input": torch.tensor(1)},
        lambda w, m: m * w * d(by_column).view(-1, *[1] * (w.ndim - 2)),
    )
    rows = x(2, x.inp)

    def tokens_of(w: torch.Tensor, m: float) -> torch.Tensor:
        change = torch.zeros_like(w)
        change[[4, 1]] = d(rows) - w[[4, 1]]
        return change

    found["trained tokens"] = Form(
        {"token_adapter.trainable_tokens_delta": rows}, tokens_of,
        config={"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "trainable_token_indices": {"net": [4, 1]}},
    )  # fmt: skip
    return found


NAMES = tuple(forms((6, 8), 0))
KINDS = tuple(LAYERS)


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """The weight's shape as (out, in, *kernel)."""
    shape = tuple(module.weight.shape)
    return shape[::-1] if isinstance(module, Conv1D) else shape


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight.detach().double()
    return weight.T if isinstance(module, Conv1D) else weight


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.net = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    @classmethod
    def of(cls, make: Callable[[], nn.Module], state: Mapping[str, torch.Tensor]) -> Net:
        net = cls(make())
        net.load_state_dict(state)
        return net


def written(form: Form, folder: Path) -> Path:
    """Write the form as trainers do: a file, or PEFT's folder."""
    front = "net" if form.config is None else "base_model.model.net"
    leaves = {f"{front}.{leaf}": torch.as_tensor(value) for leaf, value in form.leaves.items()}
    leaves |= {f"base_model.{name}": tensor for name, tensor in form.shared.items()}
    leaves = {key: tensor.contiguous() for key, tensor in leaves.items()}
    if form.config is None:
        save_file(leaves, folder / "a.safetensors")
        return folder / "a.safetensors"
    save_file(leaves, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(form.config))
    return folder


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, by the largest value."""
    return float(
        (got.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max().clamp_min(1.0)
    )


def exact_net(net: Net, form: Form, m: float) -> tuple[Net, torch.Tensor | None]:
    """The net in fp64 with the formula's weight and bias, and a bias for a layer that has none."""
    exact = copy.deepcopy(net).double()
    layer = exact.net
    change = form.change(weight_of(net.net), m)
    layer.weight.data += change.T if isinstance(layer, Conv1D) else change
    if form.bias is None:
        return exact, None
    if layer.bias is None:
        return exact, form.bias(torch.zeros(len(weight_of(layer)), dtype=torch.float64), m)
    layer.bias.data += form.bias(layer.bias.data, m)
    return exact, None


_MATRIX = ("linear", "linear without bias", "transposed", "embedding")
_VECTOR = ("full", "norm", "bias alone", "set", "ia3 of outputs", "oft", "oft, rescale")


def refusal(name: str, kind: str) -> str | None:
    """Why a form cannot be applied to a kind of layer, in the package's words; None where it must be equal."""
    first = name.partition(",")[0]
    if kind == "norm" and name not in _VECTOR:
        return (
            r"made for|the module has a vector|reflects 8 inputs|rotates 2 blocks|rows of 8|changes element"
        )
    if first == "loha tucker" and kind in _MATRIX:
        return r"made for a weight \(6, 8, 1, 1\), the module has \(6, 8\)"
    if kind == "embedding" and first in ("full", "norm", "bias alone", "set", "peft lora with bias"):
        return "a bias, and an embedding has none"
    if name in ("miss", "shira", "trained tokens") and kind not in _MATRIX:
        return "made for a linear|changes element|rows of 8 values"
    if name == "peft embedding" and kind in ("conv1d", "conv2d 3x3", "conv3d", "grouped"):
        return r"made for a weight \(6, 8\), the module has \(6, 8, "
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_form_on_every_layer_is_its_formula_or_refused_by_name(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, draw = LAYERS[kind]
    torch.manual_seed(3)
    net, x = Net(make()), draw()
    before = copy.deepcopy(net.state_dict())
    form = forms(shape_of(net.net), 5)[name]
    mixer = LoraMixer(net)
    file = written(form, tmp_path)
    why = refusal(name, kind)
    if why is not None:
        with pytest.raises(MatchError, match=why):
            mixer.load_lora_weights(file, adapter_name="a")
        assert_is(net, before)
        return

    mixer.load_lora_weights(file, adapter_name="a")

    for m in (1.0, -0.6):
        mixer.disable_lora()
        exact, more = exact_net(net, form, m)
        mixer.enable_lora()
        mixer.set_adapters("a", m)
        expected = exact(x.double() if x.is_floating_point() else x)
        if more is not None:
            expected = expected + more.view(-1, *[1] * len(getattr(net.net, "kernel_size", ())))
        assert off(net.net.weight, exact.net.weight) < 3e-6
        assert off(net(x), expected) < 1e-5
    assert not torch.equal(net(x), Net.of(make, before)(x))
    mixer.unload_lora_weights()
    assert_is(net, before)

    # so that products of tiny matrices count as pairs, as they do in layers of the usual size
    for room in ("loha", "lokr"):
        monkeypatch.setattr(f"lora_mixer.algorithms.{room}.pair_is_cheaper", lambda *_: True)
    mixer.load_lora_weights(file, adapter_name="a")
    for m in (1.0, -0.6):
        exact, more = exact_net(Net.of(make, before), form, m)
        expected = exact(x.double() if x.is_floating_point() else x)
        if more is not None:
            expected = expected + more.view(-1, *[1] * len(getattr(net.net, "kernel_size", ())))
        with mixer.applied({"a": m}, engine="side"):
            assert off(net(x), expected) < 1e-5
            assert_is(net, before)
    mixer.unload_lora_weights()
    assert_is(net, before)


def assert_is(net: Net, state: Mapping[str, torch.Tensor]) -> None:
    """Every value is that of the base, bit for bit."""
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("batch", [(2,), ()])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_a_bias_beside_a_convolution_stands_along_its_channels_with_and_without_a_batch(
    kernel: int, batch: tuple[int, ...]
) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[kernel - 1](3, 4, 1, bias=False)
    net, x = Net(conv), torch.randn(*batch, 3, *(4, 5, 6)[:kernel])
    base, bias = net(x), torch.arange(4.0)

    LoraMixer(net).load_lora_weights({"net.diff_b": bias}, adapter_name="a")

    assert torch.allclose(net(x), base + bias.view(-1, *[1] * kernel))


TRANSPOSED = {
    "1d": (lambda: nn.ConvTranspose1d(8, 6, 3, stride=2), (1, 8, 5)),
    "2d in groups": (lambda: nn.ConvTranspose2d(8, 6, (3, 2), groups=2), (2, 8, 4, 3)),
    "3d": (lambda: nn.ConvTranspose3d(4, 7, 2), (1, 4, 2, 3, 2)),
}


@pytest.mark.parametrize("engine", ["merged", "side"])
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("kind", TRANSPOSED)
def test_a_bias_of_a_transposed_convolution_has_its_outputs_which_are_not_the_rows_of_its_weight(
    kind: str, with_weight: bool, engine: Any
) -> None:
    make, shape = TRANSPOSED[kind]
    torch.manual_seed(4)
    net, x = Net(make()), torch.randn(shape)
    clean = copy.deepcopy(net)
    weight, bias = torch.randn_like(net.net.weight), torch.randn_like(net.net.bias)
    dense = {"net.diff": weight} if with_weight else {}
    exact = copy.deepcopy(net).double()
    exact.net.weight.data += 0.6 * weight.double() if with_weight else 0.0
    exact.net.bias.data += 0.6 * bias.double()
    mixer = LoraMixer(net)
    with pytest.raises(MatchError, match=f"bias of {len(weight)} values, the module has {len(bias)} outputs"):
        mixer.load_lora_weights({**dense, "net.diff_b": torch.randn(len(weight))}, adapter_name="rows")
    assert_is(net, clean.state_dict())

    mixer.load_lora_weights({**dense, "net.diff_b": bias}, adapter_name="a", activate=False)
    with mixer.applied({"a": 0.6}, engine=engine):
        assert off(net(x), exact(x.double())) < 1e-5
    assert_is(net, clean.state_dict())


def made_of(form: Form, value: float) -> list[Form]:
    """Give the form with each of its real tensors and numbers in turn all ``value``, and with all of them."""
    real = [key for key, leaf in form.leaves.items() if torch.as_tensor(leaf).is_floating_point()]
    flat = {key: torch.as_tensor(form.leaves[key]) * 0 + value for key in real}
    return [replace(form, leaves={**form.leaves, **{key: flat[key] for key in keys}}) for keys in [real, *([key] for key in real)]]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in forms((6, 8), 7) if "loha tucker" not in name])
def test_a_file_that_changes_nothing_says_so_and_no_other_does(name: str, tmp_path: Path) -> None:
    base, bias = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    for number, form in enumerate(made_of(forms((6, 8), 7)[name], 0.0)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        adapter = read_source(resolve_source(written(form, folder)), name="a")
        (layer,) = adapter.layers
        moved = layer.weights.bias_delta(bias, 1.0)
        same = not layer.weights.delta(base, 1.0).any() and (moved is None or not moved.any())
        assert same == ("change nothing" in " ".join(map(str, adapter.notes))), form.leaves


@pytest.mark.parametrize("leaves", [
    {"net.ia3_l": torch.ones(6, 1)},
    {"net.oft_blocks": torch.zeros(2, 3, 3), "net.rescale": torch.ones(6, 1), "net.alpha": torch.tensor(0.0)},
    {"net.oft_blocks": torch.zeros(1, 3, 2, 2), "net.rescale": torch.ones(6, 1), "net.alpha": torch.tensor(0.0)},
])  # fmt: skip
def test_factors_of_one_change_nothing(leaves: dict[str, torch.Tensor]) -> None:
    last = next(key for key in leaves if "ia3" in key or "rescale" in key)
    for value, expected in ((leaves[last], True), (leaves[last] * 1.5, False)):
        report = LoraMixer(Net(nn.Linear(8, 6))).load_lora_weights(leaves | {last: value}, "a")
        assert ("change nothing" in " ".join(map(str, report.notes))) == expected
