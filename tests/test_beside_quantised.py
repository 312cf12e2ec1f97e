"""Adapters beside weights that cannot be rewritten: quantised by real libraries, offloaded, computed from others."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch.nn.utils import parametrizations

from lora_mixer import LoraMixer, MissingExtraError, PipelineStateError
from lora_mixer.pictures import load_pipeline
from tests.small_pipe import SmallPipe
from tests.weights import Pair, random_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 64
WEIGHTS = {"a": 0.8, "b": -0.5}


class Block(nn.Module):
    """Linear layers of one input and one behind them, as in an attention, and a convolution that stays plain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv2d(2 * WIDTH, 4, (3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(self.to_q(x) + torch.tanh(self.to_k(x)))
        return self.conv(y.transpose(1, 2).unsqueeze(-1))


def linears(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children() if name != "conv"]


def bnb_8bit(block: nn.Module) -> None:
    import bitsandbytes

    for name in linears(block):
        old = block.get_submodule(name)
        new = bitsandbytes.nn.Linear8bitLt(
            old.in_features, old.out_features, bias=old.bias is not None, has_fp16_weights=False
        )
        new.load_state_dict(old.state_dict())
        setattr(block, name, new.to("cpu"))


def bnb_4bit(block: nn.Module) -> None:
    import bitsandbytes

    for name in linears(block):
        old = block.get_submodule(name)
        new = bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, bias=old.bias is not None)
        new.load_state_dict(old.state_dict())
        setattr(block, name, new.to("cpu"))


def torchao(config: str) -> Callable[[nn.Module], None]:
    def quantise(block: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao import quantization

            quantization.quantize_(block, getattr(quantization, config)())

    return quantise


def quanto(kind: str) -> Callable[[nn.Module], None]:
    def quantise(block: nn.Module) -> None:
        from optimum import quanto as library

        library.quantize(block, weights=getattr(library, kind), exclude="conv")
        library.freeze(block)

    return quantise


LIBRARIES = {
    "bitsandbytes 8 bit": bnb_8bit,
    "bitsandbytes 4 bit": bnb_4bit,
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao float8": torchao("Float8WeightOnlyConfig"),
    "quanto int8": quanto("qint8"),
    "quanto float8": quanto("qfloat8"),
}


def written(pairs: dict[Any, Pair]) -> dict[str, torch.Tensor]:
    table = {}
    for (_, path), pair in pairs.items():
        table[f"unet.{path}.lora_A.weight"] = pair.down
        table[f"unet.{path}.lora_B.weight"] = pair.up.reshape(*pair.up.shape, *[1] * (pair.down.ndim - 2))
    return table


class Bench:
    """A block whose linear layers were changed by ``change``, and two adapters for it."""

    def __init__(self, change: Callable[[nn.Module], None]) -> None:
        block = Block().eval().requires_grad_(requires_grad=False)
        self.files = {
            name: random_pairs(SmallPipe(unet=block), alphas=False, seed=seed)
            for seed, name in enumerate("ab")
        }
        change(block)
        self.block = block
        self.x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(3))
        self.mixer = LoraMixer(SmallPipe(unet=block))

    def load(self) -> None:
        for name, pairs in self.files.items():
            self.mixer.load_lora_weights(written(pairs), name)

    def __call__(self) -> torch.Tensor:
        with torch.no_grad():
            return self.block(self.x)

    def by_hand(self) -> torch.Tensor:
        """Each layer as the library computes it, plus w B A x in fp64; no mix may be in effect."""
        block = self.block

        def beside(path: str) -> Callable[..., torch.Tensor]:
            def hook(_module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
                delta = sum(w * self.files[name]["unet", path].delta() for name, w in WEIGHTS.items())
                x = args[0].double()
                if path == "conv":
                    return output + nn.functional.conv2d(x, delta.view(4, 2 * WIDTH, 3, 1)).to(output.dtype)
                return output + (x @ delta.T).to(output.dtype)

            return hook

        handles = [
            block.get_submodule(path).register_forward_hook(beside(path))
            for path in (*linears(block), "conv")
        ]
        found = self()
        for handle in handles:
            handle.remove()
        return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_adapters_run_beside_quantised_layers_and_leave_them_alone(library: str) -> None:
    bench = Bench(LIBRARIES[library])
    before = bench()
    conv = bench.block.conv.weight.clone()

    bench.load()
    bench.mixer.set_mix(WEIGHTS)
    mixed = bench()
    merged_conv = bench.block.conv.weight.clone()
    assert not bench.mixer.is_in_parameters
    bench.mixer.disable_lora()

    expected = bench.by_hand()
    assert (mixed - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (mixed - before).abs().max() > 0.1
    assert not torch.equal(merged_conv, conv), "what can be rewritten is merged"
    assert torch.equal(bench(), before)
    assert torch.equal(bench.block.conv.weight, conv)
    assert all(not module._forward_hooks for module in bench.block.modules())


@pytest.mark.parametrize("library", LIBRARIES)
def test_schedules_and_mixes_per_image_run_beside_quantised_layers(library: str) -> None:
    bench = Bench(LIBRARIES[library])
    bench.load()
    singles = []
    for mix in ({"a": 0.7}, {"b": {"weight": 0.4, "schedule": "window(0, 1)"}}):
        bench.mixer.set_mix(mix)
        singles.append(bench())
        bench.mixer.set_mix([{"a": 0.7}, {"b": 0.4}])
    both = bench()

    # bitsandbytes' 8 bit rounds inputs, so layers behind others differ a little
    for row, single in enumerate(singles):
        assert (both[row] - single[row]).abs().max() < 1e-4 * single.abs().max()


def test_merging_into_quantised_weights_is_refused_by_name() -> None:
    bench = Bench(LIBRARIES["quanto int8"])
    bench.load()

    with pytest.raises(
        PipelineStateError, match=r"unet.to_q: its weights are quantised .*engine='auto' runs beside"
    ):
        bench.mixer.set_mix({"a": 1.0}, engine="merged")

    assert bench.mixer.get_active_adapters() == ["b"]


def test_an_algorithm_without_a_low_rank_form_is_refused_by_name_on_a_quantised_convolution() -> None:
    from optimum import quanto as library

    bench = Bench(lambda block: library.quantize(block, weights=library.qint8) or library.freeze(block))
    before = bench()
    full = {"unet.to_q.diff": torch.ones(WIDTH, WIDTH)}
    packed = {"unet.conv.diff": torch.ones(4, 2 * WIDTH, 3, 1)}

    with pytest.raises(PipelineStateError, match=r"unet.conv: .*packed \(full\) has no low-rank form there"):
        bench.mixer.load_lora_weights(packed, "packed")

    assert not bench.mixer.adapters
    assert torch.equal(bench(), before)
    bench.mixer.load_lora_weights(full, "full")  # a linear layer's output tells all that is needed
    assert (bench() - before).abs().max() > 0.1
    bench.mixer.unload_lora_weights()
    assert torch.equal(bench(), before)


def test_a_quantised_pipeline_whose_library_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError(
            "Using `bitsandbytes` 4-bit quantization requires bitsandbytes: pip install bitsandbytes"
        )

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", missing)

    with pytest.raises(MissingExtraError, match=r"some/model: is quantised.*pip install .*\[quant\]'"):
        load_pipeline("some/model", device="cpu")


# --- offloaded -------------------------------------------------------------------------------------------------------


def offloaded(block: nn.Module) -> None:
    accelerate.cpu_offload(block, execution_device="cpu")


def dispatched(block: nn.Module) -> None:
    import tempfile

    places = {"to_q": "cpu", "to_k": "disk", "out": "disk", "conv": "cpu"}
    accelerate.dispatch_model(
        block, device_map=places, main_device="cpu", offload_dir=tempfile.mkdtemp(), force_hooks=True
    )


@pytest.mark.parametrize(
    "change", [offloaded, dispatched], ids=["sequential offload", "device_map with disk"]
)
def test_adapters_run_beside_offloaded_layers(change: Callable[[nn.Module], None]) -> None:
    bench = Bench(lambda _: None)
    expected, before = bench.by_hand(), bench()
    change(bench.block)
    assert bench.block.to_k.weight.is_meta

    bench.load()
    bench.mixer.set_mix(WEIGHTS)
    mixed = bench()
    bench.mixer.set_mix([{"a": 0.8, "b": -0.5}, {}])
    rows = bench()
    bench.mixer.unload_lora_weights()

    assert (mixed - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (rows[0] - expected[0]).abs().max() < 1e-4 * expected.abs().max()
    assert (rows[1] - before[1]).abs().max() < 1e-5
    assert torch.equal(bench(), before)
    assert bench.block.to_k.weight.is_meta


def test_offloading_after_loading_goes_on_beside_the_weights() -> None:
    bench = Bench(lambda _: None)
    expected = bench.by_hand()
    bench.load()
    bench.mixer.disable_lora()
    accelerate.cpu_offload(bench.block, execution_device="cpu")

    bench.mixer.set_mix(WEIGHTS)

    assert (bench() - expected).abs().max() < 1e-4 * expected.abs().max()


class Kinds(nn.Module):
    """A layer of each kind that is changed in a way without pairs, its bias changed too where it has one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loha = nn.Linear(6, 8)
        self.dora = nn.Linear(8, 8)
        self.full = nn.Linear(8, 6, bias=False)
        self.conv = nn.Conv1d(5, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.uniform_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.full(torch.tanh(self.dora(self.loha(x))))))

    def changes(self) -> dict[str, torch.Tensor]:
        """A file of all of them."""
        torch.manual_seed(1)
        return {
            **{f"unet.loha.hada_w{k}_a": torch.randn(8, 2) for k in (1, 2)},
            **{f"unet.loha.hada_w{k}_b": torch.randn(2, 6) for k in (1, 2)},
            "unet.dora.lora_A.weight": torch.randn(2, 8),
            "unet.dora.lora_B.weight": torch.randn(8, 2),
            "unet.dora.lora_magnitude_vector": torch.rand(8) + 0.5,
            "unet.full.diff": torch.randn(6, 8),
            "unet.full.diff_b": torch.randn(6),
            "unet.conv.diff": torch.randn(4, 5, 3),
            "unet.conv.diff_b": torch.randn(4),
            "unet.norm.w_norm": torch.randn(4),
            "unet.norm.b_norm": torch.randn(4),
        }


def group_to_disk(level: str) -> Callable[[nn.Module, str], None]:
    def offload(block: nn.Module, folder: str) -> None:
        cpu = torch.device("cpu")
        blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
        apply_group_offloading(block, cpu, cpu, level, offload_to_disk_path=folder, **blocks)

    return offload


OFFLOADING: dict[str, Callable[[nn.Module, str], None]] = {
    "sequential": lambda block, _: accelerate.cpu_offload(block, "cpu"),
    "sequential, buffers too": lambda block, _: accelerate.cpu_offload(block, "cpu", offload_buffers=True),
    "disk": lambda block, folder: accelerate.disk_offload(block, folder, "cpu"),
    "leaves on disk": group_to_disk("leaf_level"),
    "blocks on disk": group_to_disk("block_level"),
}


@pytest.mark.parametrize("when", ["before", "after", "after a call"])
@pytest.mark.parametrize("way", OFFLOADING)
def test_changes_without_pairs_run_beside_values_that_offloading_keeps_elsewhere(
    way: str, when: str, tmp_path: Any
) -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))

    def run(one: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return one(x)

    block, plain = (Kinds().eval().requires_grad_(False) for _ in range(2))
    base = run(plain)
    mixer, theirs = (LoraMixer(SmallPipe(unet=one)) for one in (block, plain))
    if when == "before":
        OFFLOADING[way](block, str(tmp_path))
    mixer.load_lora_weights(block.changes(), "a", activate=False)
    theirs.load_lora_weights(plain.changes(), "a", activate=False)
    mixer.set_mix({"a": 0.7}, engine="side")
    if when == "after a call":
        run(block)
    if when != "before":
        OFFLOADING[way](block, str(tmp_path))

    rows = []
    for weight in (0.7, -0.4):
        theirs.set_mix({"a": weight}, engine="merged")
        rows.append(run(plain))
    for mix, wanted in (
        ({"a": 0.7}, rows[0]),
        ([{"a": 0.7}, {"a": -0.4}], torch.stack([rows[0][0], rows[1][1]])),
    ):
        if isinstance(mix, list):
            mixer.set_mix(mix)
        assert torch.allclose(run(block), wanted, atol=1e-4)
        assert (wanted - base).abs().max() > 0.1
    mixer.unload_lora_weights()
    assert torch.allclose(run(block), base, atol=1e-6)


def test_weights_computed_from_others_are_left_alone() -> None:
    bench = Bench(lambda block: parametrizations.weight_norm(block.to_q))
    expected = bench.by_hand()
    bench.load()

    bench.mixer.set_mix(WEIGHTS)

    assert (bench() - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(PipelineStateError, match="computed from other parameters"):
        bench.mixer.set_mix(WEIGHTS, engine="merged")


def test_a_layer_whose_forward_is_never_called_is_refused() -> None:
    """The output projection of torch's own attention: a hook there would do nothing, silently."""
    model = nn.MultiheadAttention(8, 2)
    model.out_proj.weight = nn.Parameter(model.out_proj.weight.to(torch.int8), requires_grad=False)
    lora = {"out_proj.lora_A.weight": torch.ones(1, 8), "out_proj.lora_B.weight": torch.ones(8, 1)}

    with pytest.raises(PipelineStateError, match="out_proj: its weights are quantised"):
        LoraMixer(model).load_lora_weights(lora, "a")
