"""Whatever is done to a pipeline after a load, there is a way back to the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from lora_mixer import LoraMixer, LoraMixerError, PipelineStateError
from tests.models import tiny_sd
from tests.small_pipe import Bench, assert_same, pairs_for, small_pipe, values, written

if TYPE_CHECKING:
    from collections.abc import Callable

WAYS: dict[str, Callable[[LoraMixer], None]] = {
    "disable": LoraMixer.disable_lora,
    "unload": LoraMixer.unload_lora_weights,
    "restore": LoraMixer.restore_base,
    "empty": lambda mixer: mixer.set_adapters([]),
    "delete": lambda mixer: mixer.delete_adapters(["a", "b", "c"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("disk", [False, True])
def test_after_sequential_offload(way: str, disk: bool, tmp_path: Any) -> None:
    bench = Bench()
    bench.mixer.set_adapters(["a", "b"], [0.5, -1.0])
    unet = bench.pipe.components["unet"]
    if disk:
        accelerate.disk_offload(unet, str(tmp_path), execution_device="cpu")
    else:
        accelerate.cpu_offload(unet, execution_device="cpu")

    WAYS[way](bench.mixer)

    x = torch.randn(2, 6)
    clean = small_pipe().components["unet"].linear
    assert torch.equal(unet.linear(x), clean(x))
    accelerate.hooks.remove_hook_from_submodules(unet)
    assert_same(values(bench.pipe), bench.clean.state)


def test_a_mix_that_was_merged_goes_on_beside_offloaded_weights() -> None:
    bench = Bench()
    bench.mixer.set_adapters("a", 0.5)
    unet = bench.pipe.components["unet"]
    x = torch.randn(2, 6)
    mixed = unet.linear(x)
    accelerate.cpu_offload(unet, execution_device="cpu")

    bench.mixer.set_adapters("a", 0.5)

    assert torch.allclose(unet.linear(x), mixed, atol=1e-5)
    assert unet.linear._forward_hooks
    bench.mixer.disable_lora()
    assert torch.equal(unet.linear(x), small_pipe().components["unet"].linear(x))


@pytest.mark.parametrize("way", WAYS)
def test_after_layerwise_casting(way: str) -> None:
    pipe, clean = tiny_sd(), tiny_sd()
    mixer = LoraMixer(pipe)
    for seed, name in enumerate("abc"):
        mixer.load_lora_weights(written(pairs_for(pipe, seed)), name)
    for one in (pipe, clean):
        one.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    WAYS[way](mixer)

    assert_same(
        {k: v.view(torch.uint8) if v.itemsize == 1 else v for k, v in values(pipe).items()},
        {k: v.view(torch.uint8) if v.itemsize == 1 else v for k, v in values(clean).items()},
    )


def to_disk(model: Any, folder: Any) -> None:
    model.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(folder)
    )


LOCKING: dict[str, Callable[[Any, Any], None]] = {
    "float8": lambda model, _: model.enable_layerwise_casting(compute_dtype=torch.float32),
    "float8, by place": lambda model, _: model.enable_layerwise_casting(torch.float8_e5m2, torch.float32),
    "float8, norms left out": lambda model, _: model.enable_layerwise_casting(
        compute_dtype=torch.float32, skip_modules_pattern=("norm",)
    ),
    "float8, convolutions left out": lambda model, _: model.enable_layerwise_casting(
        compute_dtype=torch.float32, skip_modules_pattern=(), skip_modules_classes=(nn.Conv2d,)
    ),
    "files": to_disk,
}


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("word", LOCKING)
def test_a_mix_for_the_weights_alone_is_asked_for_before_they_are_taken_away(
    word: str, part: str, moving: bool, tmp_path: Any
) -> None:
    pipe, plain = tiny_sd(), tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1, lambda part, _: part == "unet")), "a", activate=False)
    mix = {"a": {"weight": 0.7, "schedule": "0.5@0,0.5@1"} if moving else 0.7}
    mixer.set_mix(mix, engine="merged")
    mixed = values(pipe)
    if part == "vae":  # no adapter reaches it
        LOCKING[word](pipe.vae, tmp_path)
        assert mixer.get_active_adapters() == ["a"]
        return

    with pytest.raises(PipelineStateError, match=r"UNet2DConditionModel\.enable_\w+\(\).*a .*engine='auto'"):
        LOCKING[word](pipe.unet, tmp_path)

    assert mixer.get_active_adapters() == ["a"]
    assert_same(values(pipe), mixed)
    assert not any(tmp_path.iterdir())
    mixer.set_mix(mix)
    LOCKING[word](pipe.unet, tmp_path)
    LOCKING[word](plain.unet, tmp_path)
    assert mixer.get_active_adapters() == ["a"]
    mixer.disable_lora()
    if word != "files":
        for found, wanted in zip(pipe.unet.parameters(), plain.unet.parameters(), strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


LEFT_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "by name": ("attentions", {"skip_modules_pattern": ("attentions",)}),
    "by class": ("attn1", {"skip_modules_classes": (nn.Linear,)}),
    "by default": ("norm", {}),
}


@pytest.mark.parametrize("how", LEFT_OUT)
def test_casting_that_leaves_all_of_a_mix_for_the_weights_out_is_no_matter(how: str) -> None:
    where, options = LEFT_OUT[how]
    pipe, alone = tiny_sd(), tiny_sd()
    for one in (pipe, alone):
        mixer = LoraMixer(one)
        mixer.load_lora_weights(
            norms(one)
            if where == "norm"
            else written(pairs_for(one, 1, lambda part, path: part == "unet" and where in path)),
            "a",
        )
        mixer.set_mix({"a": 0.7}, engine="merged")
        if one is pipe:
            pipe.unet.enable_layerwise_casting(compute_dtype=torch.float32, **options)

    assert any(p.itemsize == 1 for p in pipe.unet.parameters())
    assert LoraMixer.of(pipe).get_active_adapters() == ["a"]
    mixed = dict(alone.unet.named_parameters())
    own = [name for name in mixed if where in name and name.endswith("weight") and mixed[name].ndim > 0]
    changed = [name for name in own if pipe.unet.get_parameter(name).dtype == torch.float32]
    assert changed
    assert all(torch.equal(pipe.unet.get_parameter(name), mixed[name]) for name in changed)


def norms(pipe: Any) -> dict[str, torch.Tensor]:
    """Changes of norms alone."""
    return {
        f"lora_unet_{path.replace('.', '_')}.w_norm": torch.full_like(layer.weight, 0.1)
        for path, layer in pipe.unet.named_modules()
        if isinstance(layer, nn.GroupNorm) and "resnets" in path
    }


@pytest.mark.parametrize("way", WAYS)
def test_after_pipeline_sequential_offload(way: str) -> None:
    pipe = tiny_sd()
    base = values(pipe)
    mixer = LoraMixer(pipe)
    for seed, name in enumerate("abc"):
        mixer.load_lora_weights(written(pairs_for(pipe, seed)), name)
    for part in (pipe.unet, pipe.text_encoder):
        accelerate.cpu_offload(part, execution_device="cpu", offload_buffers=False)

    WAYS[way](mixer)

    for part in (pipe.unet, pipe.text_encoder):
        accelerate.hooks.remove_hook_from_submodules(part)
    assert_same(values(pipe), base)


def test_weights_packed_under_a_mix_come_back_by_restore_base() -> None:
    """As torchao does: the same layer, another parameter, made of the mixed weights."""
    bench = Bench()
    bench.mixer.set_adapters("a", 0.5)
    layer = bench.pipe.components["unet"].linear
    layer.weight = nn.Parameter((layer.weight.data * 16).to(torch.int8), requires_grad=False)

    with pytest.raises(PipelineStateError, match=r"quantised.*restore_base\(\)"):
        bench.mixer.disable_lora()
    assert bench.mixer.get_active_adapters() == ["a"]

    bench.mixer.restore_base()
    assert_same(values(bench.pipe), bench.clean.state)
    bench.mixer.set_adapters("b", 0.5)
    bench.mixer.disable_lora()
    assert_same(values(bench.pipe), bench.clean.state)


@pytest.mark.parametrize("first", ["offload", "mix"])
def test_a_mix_goes_on_beside_weights_that_are_read_from_disk_at_each_call(first: str, tmp_path: Any) -> None:
    pipe, plain = tiny_sd(), tiny_sd()
    file = written(pairs_for(pipe, 1, lambda part, _: part == "unet"))
    inputs = torch.randn(1, 4, 8, 8), 10, torch.randn(1, 7, pipe.unet.config.cross_attention_dim)

    def offload() -> None:
        pipe.unet.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level",
            offload_to_disk_path=str(tmp_path),
        )  # fmt: skip

    def run(one: Any) -> torch.Tensor:
        with torch.no_grad():
            return one.unet(*inputs).sample

    base = run(pipe)
    if first == "offload":
        offload()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file, "a")
    if first == "mix":
        offload()
    theirs = LoraMixer(plain)
    theirs.load_lora_weights(file, "a")
    # memory read from files is aligned in another way: not bit for bit what plain gives
    assert torch.allclose(run(pipe), run(plain), rtol=1e-3, atol=1e-3)
    with pytest.raises(PipelineStateError, match=r"unet\..*weights are read from files at each call"):
        mixer.set_mix({"a": 1.0}, engine="merged")
    assert torch.allclose(run(pipe), run(plain), rtol=1e-3, atol=1e-3)
    mixer.disable_lora()
    assert torch.allclose(run(pipe), base, atol=1e-4)


def from_disk(unet: Any, folder: Any, level: str) -> None:
    """Offload by diffusers' function, past the model's own method."""
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
    apply_group_offloading(
        unet,
        onload_device=cpu,
        offload_device=cpu,
        offload_type=level,
        offload_to_disk_path=str(folder),
        **blocks,
    )


class OnDisk:
    """A pipeline with a mix in the weights of its UNet, which were put into files then, and a second one for comparison."""

    def __init__(self, folder: Any, level: str) -> None:
        self.pipe, self.plain = tiny_sd(), tiny_sd()
        self.inputs = (
            torch.randn(1, 4, 8, 8),
            10,
            torch.randn(1, 7, self.pipe.unet.config.cross_attention_dim),
        )
        files = {
            name: written(pairs_for(self.pipe, seed, lambda part, _: part == "unet"))
            for seed, name in enumerate("ab")
        }
        self.mixer, self.theirs = LoraMixer(self.pipe), LoraMixer(self.plain)
        for name, file in files.items():
            self.mixer.load_lora_weights(file, name)
            self.theirs.load_lora_weights(file, name)
        self.mixer.set_adapters(["a", "b"], [0.7, -0.3])
        from_disk(self.pipe.unet, folder, level)

    def assert_is(self, mix: Any) -> None:
        self.theirs.set_mix(mix)
        with torch.no_grad():
            found, wanted = self.pipe.unet(*self.inputs).sample, self.plain.unet(*self.inputs).sample
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
@pytest.mark.parametrize("way", ["disable", "unload", "restore", "delete", "other mix", "rebase", "bake"])
def test_a_mix_that_was_put_into_files_comes_out_of_them(level: str, way: str, tmp_path: Any) -> None:
    both = OnDisk(tmp_path, level)
    both.assert_is({"a": 0.7, "b": -0.3})
    if way == "disable":
        both.mixer.disable_lora()
    elif way == "unload":
        both.mixer.unload_lora_weights()
    elif way == "restore":
        both.mixer.restore_base()
    elif way == "delete":
        both.mixer.delete_adapters("a")
    elif way == "rebase":
        with pytest.warns(UserWarning, match="nothing else has written"):
            both.mixer.rebase()
    elif way == "bake":
        both.mixer.rebase(bake=True)
    else:
        both.mixer.set_mix({"a": 0.2})
    left = {"delete": {"b": -0.3}, "other mix": {"a": 0.2}, "bake": {"a": 0.7, "b": -0.3}}.get(way, {})
    both.assert_is(left)
    if way == "disable":
        both.mixer.enable_lora()
        both.assert_is({"a": 0.7, "b": -0.3})
        both.mixer.set_mix({"a": {"weight": 1.0, "schedule": "0.5@0,0.5@1"}})
        both.assert_is({"a": 0.5})
        both.mixer.disable_lora()
        both.assert_is({})


def test_files_that_cannot_be_written_leave_the_mix_in_them(tmp_path: Any, monkeypatch: Any) -> None:
    both = OnDisk(tmp_path, "leaf_level")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("lora_mixer.atomic.os.fsync", full)
        with pytest.raises(LoraMixerError, match="No space left"):
            both.mixer.disable_lora()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    both.assert_is({"a": 0.7, "b": -0.3})
    both.mixer.disable_lora()
    both.assert_is({})


@pytest.mark.parametrize("mix", [{"a": {"weight": 0.5, "schedule": "0@0,1@1"}}, {"a": 0.5}])
def test_what_would_be_written_past_the_files_is_an_error(mix: Any, tmp_path: Any) -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1, lambda part, _: part == "unet")), "a", activate=False)
    mixer.set_mix(mix, engine="merged")
    from_disk(pipe.unet, tmp_path, "leaf_level")
    scale = {} if isinstance(mix["a"], dict) else {"cross_attention_kwargs": {"scale": 0.5}}
    with pytest.raises(PipelineStateError, match=r"unet\..*read from files at each call.*set the mix again"):
        pipe("a cat", num_inference_steps=2, height=32, width=32, output_type="latent", **scale)
    mixer.set_mix(mix)
    pipe("a cat", num_inference_steps=2, height=32, width=32, output_type="latent", **scale)


def test_a_schedule_in_weights_that_were_offloaded_since_is_an_error_not_nothing() -> None:
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    clean = values(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1, lambda part, _: part == "unet")), "a", activate=False)
    mixer.set_mix({"a": {"weight": 0.5, "schedule": "0@0,1@1"}}, engine="merged")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))

    with pytest.raises(PipelineStateError, match=r"unet\..*meta device.*set the mix again"):
        pipe("a cat", num_inference_steps=2, height=32, width=32, output_type="latent")

    mixer.disable_lora()
    accelerate.hooks.remove_hook_from_submodules(pipe.unet)
    assert_same(values(pipe), clean)
