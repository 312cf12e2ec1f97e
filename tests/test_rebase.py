"""What others write into weights: `rebase()` takes just that as the base, and bases that were kept before never win over it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lora_mixer import LoraMixer, PipelineStateError
from lora_mixer.engines.merged.as_left import that_differ
from tests.small_pipe import Bench, assert_same, mixed, pairs_for, small_pipe, values, written
from tests.weights import Snapshot, components, same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Values = dict[str, torch.Tensor]


def _place(pipe: Any, key: str) -> tuple[nn.Module, str]:
    part, _, path = key.partition(".")
    owner, _, attribute = path.rpartition(".")
    return components(pipe)[part].get_submodule(owner), attribute


def _load_state_dict(pipe: Any, new: Mapping[str, torch.Tensor]) -> None:
    for part in {key.partition(".")[0] for key in new}:
        own = {
            key.removeprefix(f"{part}."): value for key, value in new.items() if key.startswith(f"{part}.")
        }
        components(pipe)[part].load_state_dict(own, strict=False)


def _assigned(pipe: Any, new: Mapping[str, torch.Tensor]) -> None:
    for key, value in new.items():
        module, attribute = _place(pipe, key)
        setattr(module, attribute, nn.Parameter(value.clone()))


def _past_autograd(pipe: Any, new: Mapping[str, torch.Tensor]) -> None:
    for key, value in new.items():
        module, attribute = _place(pipe, key)
        getattr(module, attribute).data.copy_(value)


def _other_data(pipe: Any, new: Mapping[str, torch.Tensor]) -> None:
    for key, value in new.items():
        module, attribute = _place(pipe, key)
        getattr(module, attribute).data = value.clone()


def _one_number(pipe: Any, new: Mapping[str, torch.Tensor]) -> None:
    for key, value in new.items():
        module, attribute = _place(pipe, key)
        getattr(module, attribute).data.view(-1)[0] = value.view(-1)[0]


WRITES: dict[str, Callable[[Any, Mapping[str, torch.Tensor]], None]] = {
    "load_state_dict": _load_state_dict,
    "parameters assigned": _assigned,
    "data.copy_": _past_autograd,
    "data assigned": _other_data,
    "one number by data": _one_number,
}
WHERE = {
    "a whole part": ("unet.linear.weight", "unet.linear.bias", "unet.bare.weight", "unet.conv.weight",
                     "unet.conv.bias", "unet.point.weight", "unet.point.bias", "unet.norm.weight"),
    "one weight": ("text_encoder.proj.weight",),
    "one bias": ("unet.conv.bias",),
    "two parts": ("unet.point.weight", "text_encoder_2.proj.weight"),
    "none that is mixed": ("unet.norm.bias",),
}  # fmt: skip
MIXES: dict[str, Callable[[LoraMixer], None]] = {
    "merged": lambda mixer: mixer.set_adapters(["a", "b"], [0.7, -0.3]),
    "in one part": lambda mixer: mixer.set_mix({"a": {"te": 0.0, "unet": 0.5}}),
    "side": lambda mixer: mixer.set_mix({"a": 0.7, "b": -0.3}, engine="side"),
    "merged, then side": lambda mixer: (
        mixer.set_adapters("a"),
        mixer.set_mix({"b": 1.0}, engine="side"),
    )[1],
    "zero": lambda mixer: mixer.set_adapters("a", 0.0),
    "off": lambda mixer: (mixer.set_adapters("a"), mixer.disable_lora())[1],
}


def _biased(pipe: Any) -> Values:
    """Write changes of all weights and of biases, as full differences."""
    generator = torch.Generator().manual_seed(9)
    return {
        f"{key.removesuffix('weight')}diff{'_b' * key.endswith('bias')}".replace(
            "biasdiff", "diff"
        ): torch.randn(value.shape, generator=generator)
        for key, value in values(pipe).items()
        if "norm" not in key
    }


def _bench(place: Any = "device") -> Bench:
    bench = Bench()
    bench.mixer.unload_lora_weights()
    bench.mixer = LoraMixer(bench.pipe, keep_base=place)
    bench.mixer.load_lora_weights(_biased(bench.pipe), "a")
    bench.mixer.load_lora_weights(written(bench.pairs["b"]), "b")
    return bench


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.filterwarnings("ignore:nothing else has written:UserWarning")
def test_rebase_takes_what_was_written_and_nothing_else(mix: str, write: str, where: str) -> None:
    bench = _bench()
    MIXES[mix](bench.mixer)
    torch.manual_seed(5)
    WRITES[write](bench.pipe, {key: torch.randn_like(bench.clean.state[key]) for key in WHERE[where]})
    held = values(bench.pipe)
    wanted = {key: held[key] if key in WHERE[where] else value for key, value in bench.clean.state.items()}

    bench.mixer.rebase()

    assert_same(values(bench.pipe), wanted)
    assert bench.mixer.get_active_adapters() == []
    bench.mixer.enable_lora()
    bench.mixer.set_adapters("b", 0.5)
    Snapshot(wanted, (), (), 0).assert_holds(bench.pipe, mixed((bench.pairs["b"], 0.5)))
    bench.mixer.disable_lora()
    assert_same(values(bench.pipe), wanted)
    bench.mixer.unload_lora_weights()
    assert_same(values(bench.pipe), wanted)


@pytest.mark.parametrize("place", ["host", "auto", "none", "patch"])
def test_rebase_takes_what_was_written_wherever_bases_are_kept(place: str) -> None:
    bench = _bench(place)
    bench.mixer.set_adapters(["a", "b"], [0.7, -0.3])
    new = torch.randn(5, 6)
    bench.pipe.components["unet"].linear.weight.data.copy_(new)

    bench.mixer.rebase()

    assert_same(values(bench.pipe), {**bench.clean.state, "unet.linear.weight": new})


@pytest.mark.parametrize("again", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_is_nothing_that_was_written(dtype: torch.dtype, again: torch.dtype) -> None:
    bench = _bench()
    bench.mixer.set_adapters(["a", "b"], [0.7, -0.3])
    for root in components(bench.pipe).values():
        root.to(dtype).to(again)
    new = torch.randn(4, 4).to(again)
    with torch.no_grad():
        bench.pipe.components["text_encoder"].proj.weight.copy_(new)

    bench.mixer.rebase()

    for key, value in values(bench.pipe).items():
        base = new if key == "text_encoder.proj.weight" else bench.clean.state[key]
        if key.startswith("unet.norm"):
            base = base.to(dtype)
        assert same_bits(value, base.to(again)), key


def test_rebase_of_a_copy_leaves_the_original_its_mix() -> None:
    bench = _bench()
    bench.mixer.set_adapters("b", 0.5)
    twin = copy.deepcopy(bench.pipe)
    new = torch.randn(4, 3)
    twin.components["text_encoder_2"].proj.weight.data.copy_(new)

    LoraMixer(twin).rebase()

    assert_same(values(twin), {**bench.clean.state, "text_encoder_2.proj.weight": new})
    bench.clean.assert_holds(bench.pipe, mixed((bench.pairs["b"], 0.5)))


def test_rebase_finds_writes_under_a_mix_with_nan_in_it() -> None:
    bench = _bench()
    file = written(pairs_for(bench.pipe, 4))
    file["unet.linear.lora_B.weight"][0, 0] = torch.nan
    bench.mixer.load_lora_weights(file, "n", allow_nonfinite=True)
    new = torch.randn(5, 4, 1, 1)[:2]
    bench.pipe.components["unet"].point.weight.data.copy_(new)

    bench.mixer.rebase()

    assert_same(values(bench.pipe), {**bench.clean.state, "unet.point.weight": new})


def test_where_nothing_was_written_rebase_says_so_and_names_what_bakes() -> None:
    bench = _bench()
    bench.mixer.set_adapters("b", 0.5)
    with pytest.warns(UserWarning, match=r"nothing else has written.*bake=True"):
        bench.mixer.rebase()
    bench.assert_base()

    bench.mixer.enable_lora()
    baked = values(bench.pipe)
    bench.mixer.rebase(bake=True)
    bench.mixer.unload_lora_weights()
    assert_same(values(bench.pipe), baked)


def test_what_is_in_no_weight_cannot_be_baked() -> None:
    bench = _bench()
    bench.mixer.set_mix({"b": 0.5}, engine="side")
    before = values(bench.pipe)
    with pytest.raises(PipelineStateError, match=r"mix of b is in no parameter.*engine='merged'"):
        bench.mixer.rebase(bake=True)
    assert_same(values(bench.pipe), before)
    assert bench.mixer.get_active_adapters() == ["b"]


@pytest.mark.parametrize("between", ["disable_lora", "weight 0", "another part", "a block", "a side path"])
@pytest.mark.parametrize("place", ["device", "host", "patch"])
def test_writes_past_autograd_into_clean_weights_are_the_base(between: str, place: str) -> None:
    bench = _bench(place)
    mixer, base = bench.mixer, dict(bench.clean.state)
    mixer.set_adapters("a", 0.5)  # bases are kept from here on
    if between == "disable_lora":
        mixer.disable_lora()
    elif between == "another part":
        mixer.set_mix({"b": {"unet": 0.0, "te": 0.5}})
    elif between == "a side path":
        mixer.set_mix({"b": 0.5}, engine="side")
    else:
        mixer.set_adapters("a", 0.0)
    for key in ("unet.linear.weight", "unet.linear.bias", "unet.conv.weight"):
        base[key] = torch.randn_like(base[key])
        module, attribute = _place(bench.pipe, key)
        getattr(module, attribute).data.copy_(base[key])
    if between == "a block":
        with mixer.applied({"b": 0.5}):
            Snapshot(base, (), (), 0).assert_holds(bench.pipe, mixed((bench.pairs["b"], 0.5)))
        assert_same(values(bench.pipe), base)
    mixer.set_mix({"b": 0.5}, engine="merged")
    Snapshot(base, (), (), 0).assert_holds(bench.pipe, mixed((bench.pairs["b"], 0.5)))
    mixer.disable_lora()
    assert_same(values(bench.pipe), base)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_tensors_that_are_compared_together_are_told_apart_bit_by_bit(dtype: torch.dtype) -> None:
    shapes = [(1,), (3,), (5, 7), (2, 3, 3, 3), (0,), (400, 401), (1000, 1000), ()] * 3
    ones = [torch.randn(shape).to(dtype) for shape in shapes]
    ones[3] = ones[3].float().to(memory_format=torch.channels_last).to(dtype)
    others = [one.clone() for one in ones]
    others[11] = others[11].contiguous()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    odd = {0, 2, 5, 14, 19, 22}
    for place in odd:
        others[place].view(-1).view(bits)[-1] ^= 1
    ones[8], others[8] = (torch.tensor([value]).to(dtype) for value in (0.0, -0.0))
    for table in (ones, others):
        table[9] = torch.full((3,), torch.nan).to(dtype)
    others[10] = others[10].t()
    others[12] = others[12].double() if dtype != torch.float64 else others[12].half()

    assert [place for place, odd in enumerate(that_differ(zip(ones, others, strict=True))) if odd] == sorted(
        {*odd, 8, 10, 12}
    )


def test_a_failed_rebase_leaves_what_was_written_and_the_mix(monkeypatch: Any) -> None:
    bench = _bench()
    bench.mixer.set_adapters("b", 0.5)
    new = torch.randn(5, 6)
    linear = bench.pipe.components["unet"].linear
    linear.weight.data.copy_(new)
    with torch.no_grad():
        bench.pipe.components["unet"].conv.weight.mul_(2)
    held = values(bench.pipe)

    def full(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(torch, "_foreach_copy_", full)
        with pytest.raises(MemoryError):
            bench.mixer.rebase()

    assert_same(values(bench.pipe), held)
    assert bench.mixer.get_active_adapters() == ["b"]
    with pytest.raises(PipelineStateError, match=r"unet\.conv\.weight: changed by something else"):
        bench.mixer.set_adapters("b", 0.1)
    bench.mixer.rebase()
    kept = {key: held[key] for key in ("unet.linear.weight", "unet.conv.weight")}
    assert_same(values(bench.pipe), {**bench.clean.state, **kept})


class Tied(nn.Module):
    """A lookup table and a head that share one parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.mid = nn.Linear(4, 4)
        self.head.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(self.table(words)))


@pytest.mark.parametrize("written_to", ["tied", "mid"])
@pytest.mark.parametrize("by_data", [False, True])
def test_rebase_under_a_mix_of_a_tied_weight(written_to: str, by_data: bool) -> None:
    model = Tied()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    mixer = LoraMixer(model)
    file = {}
    for name, module in (("head", model.head), ("mid", model.mid)):
        out, into = module.weight.shape
        file[f"{name}.lora_A.weight"], file[f"{name}.lora_B.weight"] = (
            torch.randn(2, into),
            torch.randn(out, 2),
        )
    mixer.load_lora_weights(file, "a")
    weight = model.table.weight if written_to == "tied" else model.mid.weight
    new = torch.randn_like(weight)
    with torch.no_grad():
        (weight.data if by_data else weight).copy_(new)

    mixer.rebase()

    keys = ("table.weight", "head.weight") if written_to == "tied" else ("mid.weight",)
    assert_same(model.state_dict(), {**base, **dict.fromkeys(keys, new)})
    words = torch.arange(7)
    twin = Tied()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(words), twin(words))
    mixer.set_adapters("a", 0.5)
    assert not torch.equal(model(words), twin(words))
    mixer.disable_lora()
    assert torch.equal(model(words), twin(words))


def test_rebase_goes_by_what_stands_in_each_part_where_one_was_replaced() -> None:
    bench = _bench()
    bench.mixer.set_adapters(["a", "b"], [0.7, -0.3])
    bench.pipe.components["unet"] = other = small_pipe(seed=3).components["unet"]
    wanted = {f"unet.{key}": value.clone() for key, value in other.state_dict().items()}

    bench.mixer.rebase()

    assert_same(values(bench.pipe), {**bench.clean.state, **wanted})
