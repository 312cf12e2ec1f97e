"""Pipelines that others move, change, compile, offload or quantise: followed, or refused with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lora_mixer import LoraMixer, MixError, PipelineStateError
from tests.models import tiny_sd
from tests.small_pipe import Bench, assert_same, mixed, pairs_for, pointers, small_pipe, values, written
from tests.weights import Snapshot, components, same_bits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bench() -> Bench:
    return Bench()


def convert(pipe: Any, dtype: torch.dtype) -> None:
    for root in components(pipe).values():
        root.to(dtype)


# --- other dtypes and places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_after_a_change_of_dtype_all_is_as_on_a_clean_pipeline(
    bench: Bench, dtype: torch.dtype, active: bool
) -> None:
    clean = small_pipe()
    convert(clean, dtype)
    bench.mixer.set_adapters(["a", "b"], [0.5, -2.0])
    if not active:
        bench.mixer.disable_lora()
    convert(bench.pipe, dtype)

    bench.mixer.disable_lora()
    assert_same(values(bench.pipe), values(clean))
    bench.mixer.set_adapters("a", 0.7)

    mixer = LoraMixer(clean)
    mixer.load_lora_weights(written(bench.pairs["a"]), "a")
    mixer.set_adapters("a", 0.7)
    assert_same(values(bench.pipe), values(clean))


def test_a_mix_set_over_a_converted_mix_starts_from_the_rounded_base(bench: Bench) -> None:
    clean = small_pipe()
    convert(clean, torch.bfloat16)
    mixer = LoraMixer(clean)
    mixer.load_lora_weights(written(bench.pairs["a"]), "a")
    mixer.set_adapters("a", 0.7)
    convert(bench.pipe, torch.bfloat16)

    bench.mixer.set_adapters("a", 0.7)

    assert_same(values(bench.pipe), values(clean))


def test_a_base_that_was_rounded_while_no_adapter_was_active_stays_rounded(bench: Bench) -> None:
    bench.mixer.disable_lora()
    convert(bench.pipe, torch.float16)
    convert(bench.pipe, torch.float32)
    clean = values(bench.pipe)

    bench.mixer.set_adapters("a", 0.5)
    bench.mixer.disable_lora()

    assert_same(values(bench.pipe), clean)


def test_data_replaced_while_no_adapter_is_active_is_the_new_base(bench: Bench) -> None:
    bench.mixer.disable_lora()
    weight = bench.pipe.components["unet"].linear.weight
    weight.data = weight.data * 2
    clean = Snapshot.of(bench.pipe)

    bench.mixer.set_adapters("a", 0.5)

    clean.assert_holds(bench.pipe, mixed((bench.pairs["a"], 0.5)))
    bench.mixer.disable_lora()
    clean.assert_untouched(bench.pipe)


# --- weights that others changed ------------------------------------------------------------------------------------


def load_double(bench: Bench) -> dict[str, torch.Tensor]:
    """Load a UNet of twice the values, as a user who changes the checkpoint does."""
    unet = bench.pipe.components["unet"]
    clean = {
        key.removeprefix("unet."): 2 * value for key, value in bench.clean.state.items() if "unet." in key
    }
    unet.load_state_dict(clean)
    return values(bench.pipe)


def test_a_checkpoint_loaded_while_disabled_is_the_new_base(bench: Bench) -> None:
    bench.mixer.disable_lora()
    base = load_double(bench)
    clean = Snapshot.of(bench.pipe)

    bench.mixer.set_adapters("a", 0.5)

    clean.assert_holds(bench.pipe, mixed((bench.pairs["a"], 0.5)))
    bench.mixer.disable_lora()
    assert_same(values(bench.pipe), base)


def test_a_checkpoint_loaded_over_a_mix_is_noticed_and_nothing_is_written(bench: Bench) -> None:
    held = load_double(bench)

    for call in (
        bench.mixer.disable_lora,
        bench.mixer.unload_lora_weights,
        lambda: bench.mixer.set_adapters("a", 0.5),
        lambda: bench.mixer.delete_adapters("c"),
        lambda: bench.mixer.load_lora_weights(written(bench.pairs["a"]), "d"),
    ):
        with pytest.raises(PipelineStateError, match=r"mixer\.rebase\(\).*mixer\.restore_base\(\)") as caught:
            call()
        assert "unet.linear.weight: changed by something else" in str(caught.value)
        assert_same(values(bench.pipe), held)
        assert list(bench.mixer.adapters) == ["a", "b", "c"]
        assert bench.mixer.get_active_adapters() == ["c"]


@pytest.mark.parametrize("bake", [False, True])
def test_rebase_takes_what_was_written_as_the_base_and_the_rest_only_to_bake_it(
    bench: Bench, bake: bool
) -> None:
    held = load_double(bench)

    bench.mixer.rebase(bake=bake)

    assert bench.mixer.get_active_adapters() == []
    for key, value in values(bench.pipe).items():
        wanted = held if bake or key.startswith("unet.") else bench.clean.state
        assert same_bits(value, wanted[key]), key
    clean = Snapshot.of(bench.pipe)
    bench.mixer.set_adapters("a", 0.5)
    clean.assert_holds(bench.pipe, mixed((bench.pairs["a"], 0.5)))
    bench.mixer.disable_lora()
    clean.assert_untouched(bench.pipe)


def test_restore_base_puts_the_kept_base_back(bench: Bench) -> None:
    load_double(bench)

    bench.mixer.restore_base()

    kept = {name for name in bench.clean.state if "bias" not in name and "norm" not in name}
    now = values(bench.pipe)
    assert [name for name in kept if not same_bits(now[name], bench.clean.state[name])] == []
    assert bench.mixer.get_active_adapters() == []
    bench.mixer.enable_lora()
    bench.mixer.disable_lora()
    assert_same(values(bench.pipe), now)


def test_restore_base_covers_layers_that_the_mix_does_not_touch() -> None:
    pipe = small_pipe()
    clean, mixer = Snapshot.of(pipe), LoraMixer(pipe)
    for name, layer in (("a", "linear"), ("b", "bare")):
        mixer.load_lora_weights(written(pairs_for(pipe, 1, lambda _, path, own=layer: path == own)), name)
    unet = pipe.components["unet"]
    unet.load_state_dict({key: 2 * value for key, value in unet.state_dict().items()})

    mixer.restore_base()  # the mix holds b alone, and the base of a is kept as well

    for layer in ("linear", "bare"):
        assert same_bits(getattr(unet, layer).weight.detach(), clean.state[f"unet.{layer}.weight"])


# --- saving, compiling, offloading ----------------------------------------------------------------------------------


def test_saved_after_disable_the_pipeline_is_the_base_to_the_byte(tmp_path: Path) -> None:
    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "before")
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    pipe.unet.save_pretrained(tmp_path / "mixed")
    mixer.disable_lora()

    pipe.save_pretrained(tmp_path / "after")

    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "mixed" / name).read_bytes() != (tmp_path / "before" / "unet" / name).read_bytes()
    files = sorted(
        path.relative_to(tmp_path / "before") for path in tmp_path.glob("before/**/*") if path.is_file()
    )
    assert files
    for file in files:
        assert (tmp_path / "after" / file).read_bytes() == (tmp_path / "before" / file).read_bytes(), file


def test_a_compiled_component_is_bound_and_mixed_in_place(bench: Bench) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 4)
    before = compiled(x)
    mixer = LoraMixer(compiled)
    places = pointers(model)

    report = mixer.load_lora_weights(
        {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)}, "a"
    )

    assert report.complete
    assert torch.allclose(compiled(x), before + x.sum(1, keepdim=True), atol=1e-5)
    mixer.disable_lora()
    assert torch.equal(compiled(x), before)
    assert pointers(model) == places


def test_model_offload_hooks_do_not_stand_in_the_way(bench: Bench) -> None:
    for part in ("unet", "text_encoder"):
        accelerate.cpu_offload_with_hook(bench.pipe.components[part], execution_device="cpu")

    bench.mixer.set_adapters(["a", "b"], [0.5, -1.0])

    bench.assert_mix(a=0.5, b=-1.0)
    bench.mixer.disable_lora()
    for name, value in values(bench.pipe).items():
        assert same_bits(value, bench.clean.state[name])


def test_sequential_offload_of_merged_weights_lets_the_mix_go_on_beside_them(bench: Bench) -> None:
    """The mix that is merged went into the offloaded copy: that gets its base back, and the mix runs beside."""
    unet = bench.pipe.components["unet"]
    x = torch.randn(2, 6)
    bench.mixer.set_adapters("a", 0.5)
    expected = unet.linear(x)
    accelerate.cpu_offload(unet, execution_device="cpu")

    bench.mixer.set_adapters("a", 0.5)

    assert bench.mixer.get_active_adapters() == ["a"]
    assert torch.allclose(unet.linear(x), expected, atol=1e-5)
    with pytest.raises(PipelineStateError, match=r"meta device.*enable_model_cpu_offload"):
        bench.mixer.set_mix({"b": 0.5}, engine="merged")
    assert torch.allclose(unet.linear(x), expected, atol=1e-5)


# --- weights that cannot be rewritten -------------------------------------------------------------------------------


class Packed(torch.Tensor):
    """What quantisation libraries do: a tensor that is more than its values."""


def int8(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)


def fp8(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


def packed(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)


def computed(layer: nn.Linear) -> None:
    parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (int8, "quantised .*torch.int8.*load the base unquantised"),
        (fp8, "stored as torch.float8_e4m3fn; load the base as"),
        (packed, "quantised .*load the base unquantised"),
        (computed, "computed from other parameters"),
    ],
)
def test_merging_into_weights_that_cannot_be_rewritten_is_refused_and_nothing_changes(
    change: Any, said: str
) -> None:
    pipe = small_pipe()
    pairs = pairs_for(pipe, 1)
    change(pipe.components["unet"].linear)
    rest = values(pipe)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs), "a")
    mixer.disable_lora()

    with pytest.raises(PipelineStateError, match=f"unet.linear: its weights are {said}"):
        mixer.set_mix({"a": 1.0}, engine="merged")

    assert mixer.get_active_adapters() == []
    now = values(pipe)
    assert all(torch.equal(now[name].float(), value.float()) for name, value in rest.items())


# --- two mixers -----------------------------------------------------------------------------------------------------


def test_a_second_mixer_on_the_same_weights_is_refused(bench: Bench) -> None:
    second = LoraMixer(bench.pipe)

    with pytest.raises(PipelineStateError, match="another LoraMixer has adapters loaded"):
        second.load_lora_weights(written(bench.pairs["a"]), "a")

    bench.assert_mix(c=1.0)
    bench.mixer.unload_lora_weights()
    second.load_lora_weights(written(bench.pairs["a"]), "a")
    bench.clean.assert_holds(bench.pipe, mixed((bench.pairs["a"], 1.0)))
    with pytest.raises(PipelineStateError, match="another LoraMixer"):
        bench.mixer.load_lora_weights(written(bench.pairs["a"]), "a")


def test_a_mixer_on_a_shared_component_is_refused(bench: Bench) -> None:
    with pytest.raises(PipelineStateError, match="another LoraMixer"):
        LoraMixer(bench.pipe.components["unet"]).load_lora_weights(written(bench.pairs["a"]), "a")


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(PipelineStateError, match="expected a diffusers pipeline"):
        LoraMixer("unet")
    with pytest.raises(MixError, match="keep_base"):
        LoraMixer(small_pipe(), keep_base="disk")


@pytest.mark.parametrize("where", ["vae", "unet", "text_encoder", "whole vae"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_jit_made_stays_as_it_is_and_disturbs_nothing(where):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.inner(value)

    pipe = tiny_sd()
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = pipe.unet.get_submodule(path).weight.shape[0]
    scripted = torch.jit.script(Twice())
    if where == "whole vae":
        pipe.vae = scripted
    else:
        getattr(pipe, where).extra = scripted
    weight = pipe.unet.get_submodule(path).weight
    base = weight.detach().clone()
    mixer = LoraMixer(pipe)

    for engine in ("merged", "side"):
        mixer.load_lora_weights(
            {f"unet.{path}.lora_A.weight": torch.ones(1, width), f"unet.{path}.lora_B.weight": torch.ones(width, 1)}, "a"
        )  # fmt: skip
        mixer.set_mix({"a": 0.5}, engine=engine)
        x = torch.randn(2, width)
        made = pipe.unet.get_submodule(path)(x)
        assert torch.allclose(made, x @ base.T + 0.5 * x.sum(1, keepdim=True), atol=1e-5)
        mixer.unload_lora_weights()
        assert torch.equal(weight, base)
