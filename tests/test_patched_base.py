"""A base that is in the mixed weights themselves comes out bit for bit, or is said to be gone before anything is written."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_mixer import LoraMixer, PipelineStateError
from lora_mixer.algorithms import Factors
from lora_mixer.engines.merged import cores, kept_weight, patched_base, rounding
from lora_mixer.engines.merged.patched_base import PatchedBase, checksum, is_exact, patched
from tests.weights import Snapshot, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {
    "linear": (24, 18),
    "bare": (17, 24),
    "conv": (12, 6, 3, 3),
    "last": (8, 12, 3, 3),
    "line": (9, 8, 3),
    "words": (30, 16),
    "turned": (16, 20),
}


class Net(nn.Module):
    """A layer of each kind that weights are stored in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.bare = nn.Linear(18, 24), nn.Linear(24, 17, bias=False)
        self.conv, self.line = nn.Conv2d(6, 12, 3), nn.Conv1d(8, 9, 3)
        self.last = nn.Conv2d(12, 8, 3).to(memory_format=torch.channels_last)
        self.words, self.turned = nn.Embedding(30, 16), Conv1D(20, 16)  # the second stored (in, out)
        self.to(dtype).requires_grad_(requires_grad=False)


def lora(seed: int, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """Make an adapter of every layer of the net, of a rank of its own."""
    draw, rank = torch.Generator().manual_seed(seed), 1 + seed
    file = {}
    for name, shape in SHAPES.items():
        out, columns = (shape[1], shape[0]) if name == "turned" else (shape[0], shape[1])
        if name == "words":
            file["words.lora_embedding_A"] = torch.randn(rank, out, generator=draw)
            file["words.lora_embedding_B"] = scale * torch.randn(columns, rank, generator=draw)
            continue
        file[f"{name}.lora_A.weight"] = torch.randn(rank, columns, *shape[2:], generator=draw)
        up = scale * torch.randn(out, rank, generator=draw)
        file[f"{name}.lora_B.weight"] = up.view(out, rank, *[1] * (len(shape) - 2))
    return file


def slots(mixer: LoraMixer) -> list[Any]:
    """Return what holds the weights that adapters change."""
    return [slot for slot in mixer._own.controller._bases._all_slots() if slot.attribute == "weight"]


def loaded(dtype: torch.dtype = torch.float32, keep: str = "patch") -> tuple[Net, Snapshot, LoraMixer]:
    net = Net(dtype)
    clean = Snapshot.of(net)
    mixer = LoraMixer(net, keep_base=keep)
    for seed, name in enumerate("abc"):
        mixer.load_lora_weights(lora(seed), name, activate=False)
    return net, clean, mixer


STEPS: dict[str, Callable[[LoraMixer], object]] = {
    "one": lambda mixer: mixer.set_adapters("a", 0.7),
    "three": lambda mixer: mixer.set_adapters(["a", "b", "c"], [0.5, -1.5, 0.25]),
    "again": lambda mixer: mixer.set_adapters(["c", "b", "a"], [0.25, -1.5, 0.5]),
    "another": lambda mixer: mixer.set_adapters(["b", "c"], [2.0, 0.001]),
    "replaced": lambda mixer: mixer.load_lora_weights(lora(3), "b", hotswap=True),
    "deleted": lambda mixer: mixer.delete_adapters("c"),
    "off": lambda mixer: mixer.disable_lora(),
    "on": lambda mixer: mixer.enable_lora(),
    "schedule": lambda mixer: mixer.set_mix(
        {"a": {"weight": 1.0, "schedule": "0.5@0,1@0.5"}}, engine="merged"
    ),
}


@pytest.mark.parametrize(
    ("dtype", "lot"), [(torch.float32, 1 << 28), (torch.float16, 1), (torch.bfloat16, 2000)], ids=str
)
def test_mixes_are_those_of_a_kept_copy_and_the_base_comes_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lot: int
) -> None:
    monkeypatch.setattr(kept_weight, "AT_ONCE", lot)
    net, clean, mixer = loaded(dtype)
    twin, _, other = loaded(dtype, "device")
    for name, step in STEPS.items():
        step(mixer), step(other)
        assert [k for k, v in net.state_dict().items() if not same_bits(v, twin.state_dict()[k])] == [], name
        # a handful of numbers is more than its patch at times, and always where the mix is large
        patched_ones = [slot for slot in slots(mixer) if slot.is_patched]
        assert len(patched_ones) >= 5 if mixer.get_active_adapters() else not mixer.memory().base, name
        with mixer.applied({}):
            clean.assert_untouched(net)
    mixer.unload_lora_weights()
    clean.assert_untouched(net)
    assert mixer.memory().base == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.half(),
        lambda net: net.half().float(),
        lambda net: net.double(),
        lambda net: net.to(torch.bfloat16),
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True),
    ],
    ids=["half", "half and back", "double", "bfloat16", "tensors replaced"],
)
def test_the_base_comes_out_of_the_tensors_that_were_there(change: Callable[[nn.Module], object]) -> None:
    left = []
    for keep in ("patch", "device"):
        net, _, mixer = loaded(keep=keep)
        mixer.set_adapters(["a", "b"], [0.5, 0.5])
        change(net)
        try:
            mixer.set_adapters("c", 0.5)
        except PipelineStateError:  # replaced tensors may hold anything
            mixer.restore_base()
        left.append({key: value.clone() for key, value in net.state_dict().items()})
        mixer.disable_lora()
        left.append({key: value.clone() for key, value in net.state_dict().items()})
    for one, other in zip(left[:2], left[2:], strict=True):
        assert [key for key, value in one.items() if not same_bits(value, other[key])] == []


def test_copies_of_a_model_have_a_way_back_of_their_own() -> None:
    net, clean, mixer = loaded(torch.float16)
    mixer.set_adapters(["a", "c"], [0.5, 0.5])
    held = {key: value.clone() for key, value in net.state_dict().items()}
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        second = LoraMixer(twin, keep_base="patch")
        assert all(same_bits(value, held[key]) for key, value in twin.state_dict().items())
        second.set_adapters("b", 0.5)
        assert sum(slot.is_patched for slot in slots(second)) >= 5
        second.disable_lora()
        assert all(same_bits(v, clean.state[f"model.{key}"]) for key, v in twin.state_dict().items())
    assert all(same_bits(value, held[key]) for key, value in net.state_dict().items())
    mixer.disable_lora()
    clean.assert_untouched(net)


def test_what_others_wrote_into_a_mixed_weight_is_told_before_anything_is_written() -> None:
    net, _, mixer = loaded()
    base = {key: value.clone() for key, value in net.state_dict().items()}
    mixer.set_adapters(["a", "b"], [0.5, 0.5])
    net.bare.weight.data[3, 4] += 1  # past autograd: no counter moves
    held = {key: value.clone() for key, value in net.state_dict().items()}
    for call in (mixer.disable_lora, lambda: mixer.set_adapters("c"), mixer.restore_base):
        with pytest.raises(
            PipelineStateError, match=r"bare\.weight: something else has written over it.*rebase\(\)"
        ):
            call()
        assert all(same_bits(value, held[key]) for key, value in net.state_dict().items())
    mixer.rebase()
    base["bare.weight"] = held["bare.weight"]
    assert all(same_bits(value, base[key]) for key, value in net.state_dict().items())
    mixer.set_adapters("a", 1.0)
    mixer.disable_lora()
    assert all(same_bits(value, base[key]) for key, value in net.state_dict().items())


REFUSED: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str]] = {
    "a full difference": (lambda: {"bare.diff": 0.1 * torch.ones(17, 24)}, "more than a low-rank pair"),
    "a great change": (lambda: {k: 50 * v for k, v in lora(1).items()}, "no smaller"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_copy_is_kept_and_named_where_a_patch_cannot_be(kind: str) -> None:
    net = Net(torch.float16)
    clean = Snapshot.of(net)
    mixer = LoraMixer(net, keep_base="patch")
    file, reason = REFUSED[kind]
    mixer.load_lora_weights(file(), "x")
    memory = mixer.memory()
    assert reason in memory.whole["model.bare.weight"]
    assert memory.base["cpu"] >= net.bare.weight.nbytes
    mixer.disable_lora()
    clean.assert_untouched(net)
    assert mixer.memory().whole == {}


def test_a_device_whose_products_are_not_exact_has_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def coarse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a.float(), b.float()).to(a.dtype)

    is_exact.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", coarse)
        assert not is_exact(torch.device("cpu"))
    net, clean, mixer = loaded()
    mixer.set_adapters(["a", "b"], [0.5, 0.5])
    assert set(mixer.memory().whole.values()) == {"products on cpu are not exact in fp64"}
    assert len(mixer.memory().whole) == len(SHAPES)
    mixer.disable_lora()
    clean.assert_untouched(net)
    is_exact.cache_clear()
    assert is_exact(torch.device("cpu"))


@pytest.mark.parametrize("place", [0, 6])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["patched", "checksum", "_without"])
def test_a_fault_on_the_way_leaves_the_mix_before(
    monkeypatch: pytest.MonkeyPatch, what: str, error: type[BaseException], place: int
) -> None:
    net, clean, mixer = loaded()
    mixer.set_adapters(["a", "b"], [0.5, 0.5])
    held = {key: value.clone() for key, value in net.state_dict().items()}
    home = kept_weight if what == "patched" else patched_base
    real, count = getattr(home, what), iter(range(1000))

    def faulty(*args: Any, **options: Any) -> Any:
        if next(count) == place:
            raise error
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(home, what, faulty)
        with pytest.raises(error):
            mixer.set_adapters(["b", "c"], [1.0, 0.5])
    assert mixer.get_active_adapters() == ["a", "b"]
    assert all(same_bits(value, held[key]) for key, value in net.state_dict().items())
    mixer.disable_lora()
    clean.assert_untouched(net)


def mixed_weights(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, list[tuple[Factors, float]]]]:
    """Yield bases with numbers of every size, and pairs; (700, 130) is more than one chunk and one block of few rows."""
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(700, 130, generator=draw) * torch.where(
        torch.rand(700, 130, generator=draw) < 0.05, 1e-9, 1
    )
    base[::7, ::3] = 0.0
    base[1::7, ::3] = -0.0
    base[2::7, 1::5] = torch.finfo(dtype).tiny / 8  # below the normal ones
    base[5, 5] = torch.finfo(dtype).max
    pairs = [
        (Factors(torch.randn(700, rank, generator=draw), torch.randn(rank, 130, generator=draw), scale), gain)
        for rank, scale, gain in ((3, 1e-3, 0.7), (33, 1e-4, -1.3))
    ]
    yield "matrix", base.to(dtype), pairs
    yield "with gaps", torch.stack([base, base], 2).to(dtype)[:, :, 0], pairs
    yield "without change", base.to(dtype), [(Factors(torch.zeros(700, 1), torch.ones(1, 130), 1.0), 1.0)]


@pytest.mark.parametrize("block", [1 << 20, 20_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_every_size_come_back_whatever_computes_them(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int
) -> None:
    monkeypatch.setattr(patched_base, "BLOCK", block)
    threads = torch.get_num_threads()
    for name, base, pairs in mixed_weights(dtype):
        change = sum(gain * pair.scale * pair.up.double() @ pair.down.double() for pair, gain in pairs)
        mixed = base.clone()
        mixed.copy_(base.double() + change)
        kept = patched(mixed, base, pairs, transposed=False)
        assert isinstance(kept, PatchedBase), kept
        assert kept.nbytes < base.numel() * base.itemsize
        torch.set_num_threads(2)
        try:
            assert same_bits(kept.read(), base), name
        finally:
            torch.set_num_threads(threads)
        assert kept.is_whole
        mixed[699, 129] = 3.5
        assert not kept.is_whole
        assert kept.read() is None


def test_products_of_whole_numbers_are_exact_in_any_order() -> None:
    draw = torch.Generator().manual_seed(3)
    pair = Factors(torch.randn(40, 48, generator=draw), torch.randn(48, 70, generator=draw), 0.37)
    weight = torch.zeros(40, 70)
    order = torch.randperm(48, generator=draw)
    for part in patched_base._change([(pair, 0.9)], weight):
        once, again = part.up @ part.down, part.up[:, order] @ part.down[order]
        one_by_one = sum(part.up[:, k : k + 1] * part.down[k : k + 1] for k in range(48))
        assert torch.equal(once, again)
        assert torch.equal(once, one_by_one)
        assert torch.equal(part.up, part.up.round())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("count", [0, 1, 3, 1023, 1025, 5000])
def test_a_checksum_tells_any_bit_and_any_order(dtype: torch.dtype, count: int) -> None:
    one = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    known = checksum(one)
    assert checksum(one.clone()) == known
    assert checksum(torch.stack([one, one], 1)[:, 0]) == known
    whole = torch.cat([one.new_zeros(1), one])
    assert checksum(whole[1:]) == known  # at an odd address
    assert checksum(whole) != known
    kind = patched_base._BITS[one.itemsize]
    for place in {0, count // 2, count - 1} if count else ():
        for bit in (0, 8 * one.itemsize - 2):
            other = one.clone()
            other.view(kind)[place] ^= 1 << bit
            assert checksum(other) != known
    if count > 1:
        swapped = one.clone()
        swapped[0], swapped[-1] = one[-1], one[0]
        assert checksum(swapped) != known


def test_writes_on_all_cores_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "WORTH_IT", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        net, clean, mixer = loaded(torch.bfloat16)
        mixer.set_adapters(["a", "b"], [0.5, -0.5])
        torch.set_num_threads(1)
        mixer.set_adapters(["b", "c"], [0.5, -0.5])
        torch.set_num_threads(1)
        mixer.disable_lora()
    finally:
        torch.set_num_threads(threads)
    clean.assert_untouched(net)


def test_blocks_are_those_of_rounding() -> None:
    assert patched_base.BLOCK == rounding.BLOCK
