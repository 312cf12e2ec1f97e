"""A small file that names large products is described in memory that follows its size, and its norms are right."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lora_mixer import LoraMixer, LoraMixerError, SaveError, read_adapter
from lora_mixer.algorithms.frobenius import Product, core_norm, hadamard_norm, hadamard_work
from lora_mixer.algorithms.table import ALGORITHMS
from lora_mixer.library import layer_norms
from lora_mixer.library.norms import WORK_A_NUMBER, WORK_AT_LEAST
from lora_mixer.writing import convert, merge, resize
from tests.fuzz import _peak, _resident

if TYPE_CHECKING:
    from pathlib import Path

WIDE = 20_000


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def loha(out: int, rank: int, width: int) -> dict[str, torch.Tensor]:
    return {
        f"net.hada_w{n}_{side}": draw(*shape)
        for n in (1, 2)
        for side, shape in (("a", (out, rank)), ("b", (rank, width)))
    }


PEFT = "base_model.model.net"


def pair(name: str, out: int, rank: int, width: int, *sides: str) -> dict[str, torch.Tensor]:
    a, b = sides or ("lora_A.weight", "lora_B.weight")
    return {f"{name}.{a}": draw(rank, width), f"{name}.{b}": draw(out, rank)}


# By kind: tensors that are small, and what they stand for is huge; and the configuration beside them.
FILES: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any] | None]] = {
    "lora: rank": (pair("net", 1, WIDE, 1), None),
    "lora: product": (pair("net", 5 * WIDE, 1, 5 * WIDE), None),
    "lora: many": ({k: v for n in range(200) for k, v in pair(f"net{n}", 200, 1, 200).items()}, None),
    "lora: kernel": (
        {
            "lora_unet_net.lora_down.weight": draw(1, WIDE, 1, 1),
            "lora_unet_net.lora_mid.weight": draw(1, 1, 90, 90),
            "lora_unet_net.lora_up.weight": draw(WIDE, 1, 1, 1),
        },
        None,
    ),
    "lora: core": (
        {
            "lora_unet_net.lora_down.weight": draw(3000, 1, 1, 1),
            "lora_unet_net.lora_mid.weight": draw(3, 3000, 1, 1),
            "lora_unet_net.lora_up.weight": draw(1, 3, 1, 1),
        },
        None,
    ),
    "loha: product": (loha(2 * WIDE, 1, 2 * WIDE), None),
    "loha: rank": (loha(1, WIDE, 1), None),
    "loha: both": (loha(WIDE // 8, 16, WIDE // 8), None),
    "loha: kernel": (
        {f"net.hada_w{n}_{side}": draw(1, 5_000) for n in (1, 2) for side in "ab"}
        | {f"net.hada_t{n}": draw(1, 1, 60, 60) for n in (1, 2)},
        None,
    ),
    "loha: many": ({f"x{n}.{key}": value for n in range(40) for key, value in loha(400, 5, 400).items()}, None),
    "lokr: product": ({"net.lokr_w1": draw(200, 200), "net.lokr_w2": draw(200, 200)}, None),
    "lokr: rank": (
        {"net.lokr_w1": draw(1, 1), "net.lokr_w2_a": draw(1, WIDE), "net.lokr_w2_b": draw(WIDE, 1)}, None
    ),
    "lokr: kernel": (
        {
            "net.lokr_w1": draw(2, 2), "net.lokr_w2_a": draw(1, WIDE), "net.lokr_w2_b": draw(1, WIDE),
            "net.lokr_t2": draw(1, 1, 90, 90),
        },
        None,
    ),
    "hra: orthogonal": ({f"{PEFT}.hra_u": draw(512, 512)}, {"peft_type": "HRA", "apply_GS": True}),
    "hra: wide": ({f"{PEFT}.hra_u": draw(64, WIDE)}, {"peft_type": "HRA", "apply_GS": False}),
    "oft: blocks": ({"net.oft_blocks": draw(WIDE, 2, 2)}, None),
    "oft: stages": ({"net.oft_blocks": draw(30, 64, 4, 4)}, None),
    "oft_peft: one block": ({f"{PEFT}.oft_R.weight": draw(1, 500 * 999)}, {"peft_type": "OFT", "oft_block_size": 1000}),
    "oft_peft: shared": (
        {f"{PEFT}.oft_R.weight": draw(1, 6)}, {"peft_type": "OFT", "oft_block_size": 4, "block_share": True}
    ),
    "boft_peft: stages": ({f"{PEFT}.boft_R": draw(8, 1024, 4, 4), f"{PEFT}.boft_s": draw(WIDE, 1)}, {"peft_type": "BOFT"}),
    "vera: shared": (
        {
            f"{PEFT}{n}.vera_lambda_{side}": draw(1 if side == "b" else WIDE) for n in range(4) for side in "bd"
        } | {"base_model.vera_A": draw(WIDE, 1), "base_model.vera_B": draw(1, WIDE)},
        {"peft_type": "VERA"},
    ),
    "glora: product": (
        {
            "net.a1.weight": draw(WIDE, 1), "net.a2.weight": draw(1, WIDE),
            "net.b1.weight": draw(WIDE, 1), "net.b2.weight": draw(1, WIDE),
        },
        None,
    ),
    "dora: rank": (pair("net", 1, WIDE, 1) | {"net.dora_scale": draw(1, 1)}, None),
    "dora: product": (pair("net", WIDE, 1, WIDE) | {"net.dora_scale": draw(WIDE, 1)}, None),
    "c3a: block": ({f"{PEFT}.c3a_kernel": draw(1, 1, WIDE)}, {"peft_type": "C3A"}),
    "hira: product": (pair(PEFT, WIDE, 1, WIDE, "hira_A", "hira_B"), {"peft_type": "HIRA"}),
    "adalora: rank": (
        pair(PEFT, 1, WIDE, 1, "lora_A", "lora_B") | {f"{PEFT}.lora_E": draw(WIDE, 1)},
        {"peft_type": "ADALORA", "lora_alpha": 8},
    ),
    "kasa: rank": (pair("net", 1, WIDE, 1) | {"net.lora_diag": draw(WIDE)}, None),
    "fourierft: spectrum": (
        {f"{PEFT}.fourierft_spectrum": draw(1000)},
        {"peft_type": "FOURIERFT", "n_frequency": 10**9, "scaling": 150, "random_loc_seed": 1},
    ),
    "gralora: hybrid": (
        {
            f"{PEFT}.gralora_A": draw(2, 1, WIDE), f"{PEFT}.gralora_B": draw(2, WIDE, 1),
            f"{PEFT}.gralora_A_general.weight": draw(1, 2), f"{PEFT}.gralora_B_general.weight": draw(2, 1),
        },
        {"peft_type": "GRALORA", "hybrid_r": 1, "gralora_k": 2, "r": WIDE},
    ),
    "delora: product": (
        pair(PEFT, WIDE, 1, WIDE, "delora_A", "delora_B")
        | {f"{PEFT}.delora_lambda": draw(1), f"{PEFT}.delora_w_norm": draw(WIDE)},
        {"peft_type": "DELORA"},
    ),
    "miss: block": ({f"{PEFT}.miss_block": draw(1, WIDE)}, {"peft_type": "MISS"}),
    "shira: far": (
        {f"{PEFT}.shira_weight": draw(8), f"{PEFT}.shira_indices": torch.full((2, 8), 10**12)}, {"peft_type": "SHIRA"}
    ),
    "sparse: size": (
        {
            "net.bias_indices": torch.tensor([[0, 10**9], [3, 10**9]]), "net.bias_values": draw(2),
            "net.bias_size": torch.tensor([10**10, 10**10]),
        },
        None,
    ),
    "set: vector": ({"net.set_weight": draw(WIDE)}, None),
    "tokens: far": (
        {f"{PEFT}.token_adapter.trainable_tokens_delta": draw(4, 64)},
        {"peft_type": "TRAINABLE_TOKENS", "token_indices": [0, 1, 2, 10**12]},
    ),
    "full: one": ({"net.diff": draw(300, 300), "net.diff_b": draw(300)}, None),
    "norm: one": ({"net.w_norm": draw(WIDE), "net.b_norm": draw(WIDE)}, None),
    "ia3: vector": ({f"{PEFT}.ia3_l": draw(WIDE, 1)}, {"peft_type": "IA3", "feedforward_modules": []}),
}  # fmt: skip


def test_every_kind_has_a_file_that_names_more_than_it_holds() -> None:
    kinds = {name for name, kind in ALGORITHMS.items() if kind.builder or name == "dora"}
    assert {name.partition(":")[0] for name in FILES} == kinds


def written(folder: Path, name: str) -> tuple[Path, int]:
    """Write one of the files, or a folder of PEFT's; give it and the file's bytes."""
    tensors, config = FILES[name]
    file = folder / "adapter_model.safetensors"
    save_file(tensors, file)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return (folder if config is not None else file), file.stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_a_file_takes_memory_and_work_that_follow_its_size(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    before = _resident()
    _peak()
    with FlopCounterMode(display=False) as counter, suppress(LoraMixerError):
        assert str(read_adapter(source))
        layer_norms(source)
    peak = _peak()
    assert counter.get_total_flops() <= 2 * (WORK_AT_LEAST + WORK_A_NUMBER * size)
    if peak is not None:  # else the system does not tell
        assert peak - before <= 20 * size + (64 << 20)


class Largest(TorchDispatchMode):
    """Note the most numbers that one tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, found.numel() if isinstance(found, torch.Tensor) else 0)
        return found


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("lo", "adalora"))])
def test_norms_are_summed_in_pieces_of_which_a_dozen_are_small(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    with Largest() as largest:
        layer_norms(source)
    assert largest.numbers <= max(1 << 18, size)


@pytest.mark.parametrize("name", FILES)
def test_loading_it_into_a_layer_of_a_model_does_too(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    net = nn.Module()
    net.net = nn.Linear(8, 8)
    base = net.net.weight.clone()
    mixer = LoraMixer(net)
    before = _resident()
    _peak()
    with FlopCounterMode(display=False) as counter, suppress(LoraMixerError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixer.load_lora_weights(source, "a")
    peak = _peak()
    assert counter.get_total_flops() <= 2 * (WORK_AT_LEAST + WORK_A_NUMBER * size)
    if peak is not None:
        assert peak - before <= 20 * size + (64 << 20)
    mixer.unload_lora_weights()
    assert torch.equal(net.net.weight, base)


@pytest.mark.parametrize(
    "name",
    [name for name in FILES if name.startswith(("lora", "loha", "lokr", "dora", "glora", "adalora", "kasa"))],
)
def test_writing_it_anew_does_too_or_is_refused(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    before = _resident()
    _peak()
    for number, form in enumerate(("kohya", "diffusers")):
        for call in (
            lambda: convert(source, tmp_path / f"{number}.safetensors", format=form),  # noqa: B023
            lambda: resize(source, tmp_path / f"r{number}.safetensors", rank=2),  # noqa: B023
        ):
            with suppress(LoraMixerError):
                call()
    peak = _peak()
    # A layer in full that a model may have is made where it is asked for: what none has is not.
    in_full = name in ("loha: both", "loha: many", "glora: product", "dora: product")
    if peak is not None and not in_full:
        assert peak - before <= 20 * size + (64 << 20)


@pytest.mark.parametrize(
    "name", ["loha: product", "lora: product", "lora: kernel", "lokr: product", "lokr: kernel"]
)
@pytest.mark.parametrize("method", ["ties", "sum"])
def test_full_matrices_that_no_layer_has_are_refused(tmp_path: Path, name: str, method: str) -> None:
    source, size = written(tmp_path, name)
    out = tmp_path / "out.safetensors"
    before = _resident()
    _peak()
    if name == "lora: product" and method == "sum":  # pairs stay pairs
        merge([(source, 1.0), (source, 0.5)], out, method=method, rank=2)
    else:
        with pytest.raises(
            SaveError, match="in full would have" if name.startswith("lora: product") else None
        ):
            merge([(source, 1.0), (source, 0.5)], out, method=method, rank=2)
        assert not out.exists()
    peak = _peak()
    if peak is not None:
        assert peak - before <= 20 * 2 * size + (64 << 20)


@pytest.mark.parametrize(("out", "width"), [(7, 5), (3, 60), (60, 3), (40, 40), (1, 9)])
@pytest.mark.parametrize(("rank", "other"), [(1, 1), (2, 3), (4, 4), (5, 9)])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_norms_of_products_of_products_are_right(
    out: int, width: int, rank: int, other: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_mixer.algorithms.frobenius._BLOCK_AT_MOST", block)
    a, b, c, d = draw(out, rank), draw(rank, width), draw(out, other), draw(other, width)
    expected = ((a.double() @ b.double()) * (c.double() @ d.double())).norm()
    assert hadamard_norm(Product(a, b), Product(c, d)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(("rank", "other"), [(1, 1), (2, 3), (6, 5)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5,), (2, 3, 4)])
def test_norms_of_products_with_cores_are_right(
    kernel: tuple[int, ...], rank: int, other: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_mixer.algorithms.frobenius._BLOCK_AT_MOST", block)
    products, folded = [], []
    for r in (rank, other):
        left, core, right = draw(7, r), draw(r, r + 1, *kernel), draw(r + 1, 4)
        products.append(Product(left, right, core.flatten(2)))
        folded.append(torch.einsum("or,rnk,ni->oik", left.double(), core.flatten(2).double(), right.double()))
        assert core_norm(left, core, right, -0.5) == pytest.approx(0.5 * float(folded[-1].norm()), rel=1e-9)
    assert hadamard_norm(*products) == pytest.approx(float((folded[0] * folded[1]).norm()), rel=1e-9)


def test_a_norm_that_would_take_minutes_is_not_worked_out_and_counted_as_unknown(tmp_path: Path) -> None:
    a, b = (torch.empty(*shape, device="meta") for shape in ((1 << 16, 8), (8, 1 << 16)))
    assert hadamard_norm(Product(a, b), Product(a, b), 1 << 34) is None
    source, _ = written(tmp_path, "loha: both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_mixer.library.norms.WORK_AT_LEAST", 0)
        patch.setattr("lora_mixer.library.norms.WORK_A_NUMBER", 1)
        assert layer_norms(source).unknown == {"loha": 1}
    assert layer_norms(source).unknown == {}


def test_the_norms_of_one_file_share_what_time_there_is(tmp_path: Path) -> None:
    """A file of many layers takes no longer than one of its size has: the first ones are worked out, the rest are counted."""
    source, _ = written(tmp_path, "loha: many")
    one = hadamard_work(*[Product(draw(400, 5), draw(5, 400))] * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_mixer.library.norms.WORK_AT_LEAST", 3 * one)
        patch.setattr("lora_mixer.library.norms.WORK_A_NUMBER", 0)
        found = layer_norms(source)
    assert (len(found.layers), found.unknown) == (3, {"loha": 37})
