"""Where bases are kept changes where memory goes and what a switch costs, and never what comes out or what comes back."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, MixError
from lora_mixer.engines.merged import base_places, host_memory
from lora_mixer.engines.merged.base_places import SPARE, find_room
from lora_mixer.engines.merged.host_memory import copy_to_host
from lora_mixer.engines.merged.kept_weight import KeptWeight
from tests.small_pipe import assert_same, pairs_for, small_pipe, values, written
from tests.weights import Snapshot, same_bits

PLACES = ("device", "host", "patch", "none", "auto")
LAYERS = ("linear", "conv")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5, bias=False)).requires_grad_(requires_grad=False)


def pair(number: int, out: int, columns: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{number}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{number}.lora_B.weight": torch.randn(out, 2, generator=generator),
    }


@pytest.mark.parametrize("place", PLACES)
def test_a_mix_gives_the_same_outputs_and_the_base_comes_back(place: str) -> None:
    net, x = model(), torch.randn(3, 6)
    clean, base = Snapshot.of(net), net(x)
    files = {"a": {**pair(0, 8, 6, 1), **pair(1, 5, 8, 2)}, "b": pair(0, 8, 6, 3)}
    mixer = LoraMixer(net, keep_base=place)
    for name, file in files.items():
        mixer.load_lora_weights(file, name)
    for weights in ([0.7, -1.3], [0.2, 0.0], [-1.0, 2.0]):
        mixer.set_adapters(["a", "b"], weights)
        first, second = (layer.weight.double() for layer in model())
        for (name, file), gain in zip(files.items(), weights, strict=True):
            first = first + gain * (file["0.lora_B.weight"].double() @ file["0.lora_A.weight"].double())
            if name == "a":
                second = second + gain * (file["1.lora_B.weight"].double() @ file["1.lora_A.weight"].double())
        expected = (x.double() @ first.T + net[0].bias.double()) @ second.T
        assert torch.allclose(net(x).double(), expected, rtol=1e-5, atol=1e-5)
    mixer.disable_lora()
    clean.assert_untouched(net)
    assert torch.equal(net(x), base)
    mixer.unload_lora_weights()
    clean.assert_untouched(net)


def test_none_keeps_no_base_at_any_time() -> None:
    pipe = small_pipe(torch.float16)
    clean = values(pipe)
    mixer = LoraMixer(pipe, keep_base="none")
    mixer.load_lora_weights(written(pairs_for(pipe, 1, lambda _, path: path in LAYERS)), "a")

    for step in (lambda: mixer.set_adapters("a", 0.5), mixer.disable_lora, mixer.enable_lora):
        step()
        assert_same(values(pipe), clean)  # all of a mix runs beside the weights
        assert mixer.memory().base == {}
        assert mixer.memory().keep_base == "none"


class WithTable(nn.Module):
    """A linear layer and a parameter of no layer, which nothing can stand beside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, 4), requires_grad=False)
        self.out = nn.Linear(4, 4)


def test_none_refuses_to_merge_and_what_nothing_can_stand_beside() -> None:
    net = WithTable()
    clean = values(net)
    mixer = LoraMixer(net, keep_base="none")
    mixer.load_lora_weights(
        {"out.lora_A.weight": torch.ones(1, 4), "out.lora_B.weight": torch.ones(4, 1)}, "a"
    )
    with pytest.raises(MixError, match="keep_base='none' keeps no base"):
        mixer.set_mix({"a": 1.0}, engine="merged")
    with pytest.raises(MixError, match=r"b \(full\): changes weights.*; and keep_base='none' keeps no base"):
        mixer.load_lora_weights({"table.diff": torch.ones(2, 4)}, "b")
    assert_same(values(net), clean)
    assert list(mixer.adapters) == ["a"]
    assert mixer.mix["a"].weight == 1.0


def test_a_mixer_that_follows_another_keeps_bases_where_it_says() -> None:
    net, x = model(), torch.randn(2, 6)
    clean, base = values(net), net(x)
    first = LoraMixer(net)
    first.load_lora_weights(pair(0, 8, 6, 1), "a")
    merged = net(x)
    assert first.memory().base
    del first
    gc.collect()

    second = LoraMixer(net, keep_base="none")
    assert list(second.adapters) == ["a"]
    second.set_adapters("a", 1.0)

    assert_same(values(net), clean)
    assert second.memory().base == {}
    assert torch.allclose(net(x), merged, atol=1e-5)
    second.disable_lora()
    assert torch.equal(net(x), base)


@pytest.mark.parametrize(("room", "place"), [(None, "device"), (0, "host"), (-1, "host"), (1, "device")])
def test_auto_goes_by_what_stays_free(monkeypatch: pytest.MonkeyPatch, room: int | None, place: str) -> None:
    net = model()
    slots = [KeptWeight(f"{i}.weight", layer, "weight", "auto") for i, layer in enumerate(net)]
    needed = sum(layer.weight.numel() * 4 for layer in net)
    free = None if room is None else SPARE + needed + (room or -needed)
    monkeypatch.setattr(base_places, "free_bytes", lambda _: free)

    find_room(slots)

    assert [slot.keep_on for slot in slots] == [place, place]


def test_auto_leaves_bases_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    kept, fresh = (KeptWeight(f"{i}.weight", layer, "weight", "auto") for i, layer in enumerate(net))
    find_room([kept])
    base = kept.keep()
    monkeypatch.setattr(base_places, "free_bytes", lambda _: 0)

    find_room([kept, fresh])

    assert (kept.keep_on, fresh.keep_on) == ("device", "host")
    assert kept.keep() is base


@pytest.mark.parametrize("place", ["disk", "", "DEVICE", None, 1])
def test_other_places_are_refused_by_those_that_there_are(place: object) -> None:
    with pytest.raises(MixError, match=f"one of device, host, patch, none, auto, got {place!r}"):
        LoraMixer(model(), keep_base=place)


SHAPES = {
    "matrix": lambda device: torch.randn(300, 70, device=device, dtype=torch.float16),
    "channels last": lambda device: torch.randn(8, 6, 3, 3, device=device).to(
        memory_format=torch.channels_last
    ),
    "transposed": lambda device: torch.randn(30, 70, device=device).T,
    "with gaps": lambda device: torch.randn(30, 70, device=device)[:, ::2],
    "nothing": lambda device: torch.empty(0, 4, device=device),
    "one number": lambda device: torch.randn((), device=device, dtype=torch.bfloat16),
    "a view": lambda device: torch.randn(40, 8, device=device)[8:],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("at_once", [1 << 26, 64])
def test_copies_in_host_memory_are_equal(
    monkeypatch: pytest.MonkeyPatch, shape: str, device: str, at_once: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(host_memory, "_AT_ONCE", at_once)
    tensor = SHAPES[shape](device)

    copy = copy_to_host(tensor)

    assert copy.device.type == "cpu"
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not tensor.numel()
    assert same_bits(copy, tensor.cpu())
    if device == "cuda" and tensor.numel() and shape in ("matrix", "channels last", "a view"):
        host_memory._thread().submit(int).result()
        assert copy.is_pinned()
        assert same_bits(copy.to(device, non_blocking=True).cpu(), tensor.cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_that_goes_is_unpinned_before_its_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, let_go = torch.cuda.cudart(), []

    def unregister(address: int) -> None:
        let_go.append((address, int(runtime.cudaHostUnregister(address))))

    spied = SimpleNamespace(cudaHostRegister=runtime.cudaHostRegister, cudaHostUnregister=unregister)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: spied)
    copy = copy_to_host(torch.randn(300, 300, device="cuda"))
    host_memory._thread().submit(int).result()
    address = copy.data_ptr()
    assert let_go == []
    del copy
    gc.collect()
    assert let_go == [(address, 0)]
