"""A scale that a call passes (``cross_attention_kwargs={"scale": s}``) multiplies the mix for that call, as in diffusers with PEFT."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import nn

from lora_mixer import LoraMixer, MixError, PipelineStateError
from tests.models import tiny_sd, tiny_sdxl
from tests.test_transformer_pipelines import flux, wan
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

CLOSE = 1e-5
NAMES = {
    "sd": "cross_attention_kwargs",
    "sdxl": "cross_attention_kwargs",
    "flux": "joint_attention_kwargs",
    "wan": "attention_kwargs",
}
MAKE = {"sd": tiny_sd, "sdxl": tiny_sdxl, "flux": flux, "wan": wan}


def made(kind: str) -> Any:
    pipe = MAKE[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(
    pipe: Any, *, prompt: Any = "an owl", scale: Any = None, steps: int = 2, **more: Any
) -> torch.Tensor:
    taken = inspect.signature(type(pipe).__call__).parameters
    name = next(n for n in NAMES.values() if n in taken)
    if scale is not None:
        more[name] = {"scale": scale}
    if "Wan" in type(pipe).__name__:
        more["num_frames"] = 5
    number = {"generator": torch.Generator().manual_seed(1)}
    size = {} if "image" in more else {"height": 32, "width": 32}
    found = pipe(prompt, num_inference_steps=steps, output_type="latent", **size, **number, **more)
    return found[0] if isinstance(found[0], torch.Tensor) else torch.stack(list(found[0]))


def linears(pipe: Any, seed: int, *, text: bool = True) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    words = {"unet": ("attn", ".ff"), "transformer": ("attn", "ffn")}
    words |= {"text_encoder": ("_proj",), "text_encoder_2": ("_proj",)} if text else {}
    table: dict[str, torch.Tensor] = {}
    for part, wanted in words.items():
        root = pipe.components.get(part)
        for path, layer in root.named_modules() if root is not None else ():
            if isinstance(layer, nn.Linear) and any(word in path for word in wanted):
                out, width = layer.weight.shape
                table[f"{part}.{path}.lora_A.weight"] = torch.randn(3, width, generator=gen) * 0.2
                table[f"{part}.{path}.lora_B.weight"] = torch.randn(out, 3, generator=gen) * 0.2
    return table


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def mixed() -> tuple[Any, LoraMixer]:
    pipe = made("sd")
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(linears(pipe, 5), "a")
    mixer.load_lora_weights(linears(pipe, 6), "b")
    mixer.set_adapters(["a", "b"], [0.8, -0.4])
    return pipe, mixer


@pytest.mark.parametrize("kind", NAMES)
def test_pictures_are_those_of_diffusers_and_peft(kind: str) -> None:
    files = {"a": linears(made(kind), 3, text=kind != "wan"), "b": linears(made(kind), 4, text=False)}
    theirs, ours = made(kind), made(kind)
    for part, root in theirs.components.items():
        if isinstance(root, nn.Module):
            ours.components[part].load_state_dict(root.state_dict())
    mixer = LoraMixer(ours)
    picture(ours)  # transformers puts hooks of its own on its models at their first call
    before = Snapshot.of(ours)
    for name, file in files.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT: a second adapter
            theirs.load_lora_weights(dict(file), adapter_name=name)
        mixer.load_lora_weights(file, name)
    theirs.set_adapters(["a", "b"], [0.7, 0.4])
    mixer.set_adapters(["a", "b"], [0.7, 0.4])
    plain = picture(ours)
    for scale in (0.5, -0.6, 1.5, 1, 0.0):  # PEFT forgets the weights of a mix after a scale of zero
        found, expected = picture(ours, scale=scale), picture(theirs, scale=scale)
        assert distance(found, expected) < CLOSE, scale
        assert (distance(found, plain) > 10 * CLOSE) == (scale != 1), scale
    assert torch.equal(picture(ours), plain)
    mixer.disable_lora()
    before.assert_values(ours)
    mixer.unload_lora_weights()
    before.assert_untouched(ours)


MIXES: Mapping[str, tuple[Any, Any, dict[str, Any]]] = {
    "merged": ({"a": 0.8, "b": -0.4}, {"a": 0.4, "b": -0.2}, {}),
    "components": ({"a": {"unet": 0.8, "te": 0.2}}, {"a": {"unet": 0.4, "te": 0.1}}, {}),
    "side": ({"a": 0.8}, {"a": 0.4}, {"engine": "side"}),
    "schedule": (
        {"a": {"weight": 0.8, "schedule": "1@0,0.3@1"}},
        {"a": {"weight": 0.4, "schedule": "1@0,0.3@1"}},
        {},
    ),
    "merged by step": (
        {"a": {"weight": 0.8, "schedule": "1@0,0.5@1"}},
        {"a": {"weight": 0.4, "schedule": "1@0,0.5@1"}},
        {"engine": "merged"},
    ),
    "mask": ({"a": {"weight": 0.8, "mask": [[1.0, 0.2]]}}, {"a": {"weight": 0.4, "mask": [[1.0, 0.2]]}}, {}),
    "composite": (
        {"adapters": {"a": 0.8, "b": 0.6}, "method": "composite"},
        {"adapters": {"a": 0.4, "b": 0.3}, "method": "composite"},
        {},
    ),
    "images": ([{"a": 0.8}, {"b": 0.6}], [{"a": 0.4}, {"b": 0.3}], {}),
    "negative": ({"a": 0.8}, {"a": 0.4}, {"negative": {"b": 0.6}}),
}


@pytest.mark.parametrize("name", MIXES)
def test_every_feature_has_the_scale_and_is_itself_afterwards(mixed: Any, name: str) -> None:
    pipe, mixer = mixed
    whole, half, more = MIXES[name]
    less = {**more, "negative": {"b": 0.3}} if "negative" in more else more
    prompt = ["an owl", "two cats"] if isinstance(whole, list) else "an owl"
    with mixer.applied(whole, **more):
        before = picture(pipe, prompt=prompt)
        found = picture(pipe, prompt=prompt, scale=0.5)
        assert torch.equal(picture(pipe, prompt=prompt), before)
    with mixer.applied(half, **less):
        expected = picture(pipe, prompt=prompt)
    assert distance(found, expected) < CLOSE
    assert distance(found, before) > 10 * CLOSE


def kinds_of_change(kind: str) -> dict[str, torch.Tensor]:
    path, gen = (
        "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        torch.Generator().manual_seed(2),
    )
    pipe = made("sd")
    width = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * 0.4

    front = f"lora_{path}"
    if kind == "loha":
        halves = {
            "hada_w1_a": (width, 2),
            "hada_w1_b": (2, width),
            "hada_w2_a": (width, 2),
            "hada_w2_b": (2, width),
        }
        return {f"{front}.{leaf}": draw(*shape) for leaf, shape in halves.items()}
    if kind == "full":
        return {f"{front}.diff": draw(width, width)}
    pair = {f"{front}.lora_up.weight": draw(width, 2), f"{front}.lora_down.weight": draw(2, width)}
    if kind == "dora":
        return {**pair, f"{front}.dora_scale": draw(width, 1).abs() + 0.5}
    dotted = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"  # a layer without bias
    return {
        f"{dotted}.lora_A.weight": draw(2, width),
        f"{dotted}.lora_B.weight": draw(width, 2),
        f"{dotted}.lora_B.bias": draw(width),
    }


@pytest.mark.parametrize("kind", ["loha", "full", "dora", "bias"])
def test_changes_that_only_weights_can_hold_have_the_scale(kind: str) -> None:
    pipe = made("sd")
    mixer = LoraMixer(pipe)
    clean = Snapshot.of(pipe)
    mixer.load_lora_weights(kinds_of_change(kind), "x")
    plain, found = picture(pipe), picture(pipe, scale=0.25)
    assert torch.equal(picture(pipe), plain)
    mixer.set_adapters("x", 0.25)
    assert torch.equal(found, picture(pipe))
    assert not torch.equal(found, plain)
    mixer.unload_lora_weights()
    clean.assert_untouched(pipe)


@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_scaled_call_whose_inputs_ask_for_gradients_is_refused(mixed: Any, engine: Any) -> None:
    """Its scale is gone by the time that gradients are computed."""
    pipe, mixer = mixed
    mixer.set_mix({"a": 0.8}, engine=engine)
    weights = Snapshot.of(pipe)
    sample = torch.randn(1, 4, 8, 8, requires_grad=True)
    text = torch.randn(1, 7, pipe.unet.config.cross_attention_dim)

    def call(scale: float) -> torch.Tensor:
        return pipe.unet(sample, 5, text, cross_attention_kwargs={"scale": scale}, return_dict=False)[0]

    with pytest.raises(MixError, match="gradients would be those of another mix"):
        call(0.5)
    weights.assert_values(pipe)
    call(1.0).square().sum().backward()
    assert sample.grad is not None
    with torch.no_grad():
        call(0.5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_call_that_ends_by_an_error_leaves_the_mix_as_it_was(mixed: Any, engine: Any, error: Any) -> None:
    pipe, mixer = mixed
    mixer.set_mix({"a": 0.8, "b": -0.4}, engine=engine)
    plain = picture(pipe)
    weights = Snapshot.of(pipe)

    def fail(*_: Any) -> None:
        raise error

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(error):
        picture(pipe, scale=0.3)
    handle.remove()
    weights.assert_values(pipe)
    assert torch.equal(picture(pipe), plain)

    handle = pipe.text_encoder.register_forward_hook(fail)
    with pytest.raises(error):
        picture(pipe, scale=0.3)
    handle.remove()
    weights.assert_values(pipe)


def test_other_pipelines_and_loops_with_the_parts_have_it(mixed: Any) -> None:
    pipe, mixer = mixed
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    image = torch.zeros(1, 3, 32, 32)
    found = picture(other, image=image, scale=0.5, strength=1.0)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12)
    t = torch.tensor(3)
    with torch.no_grad():
        by_name = pipe.unet(x, t, text, cross_attention_kwargs={"scale": 0.5}).sample
        by_place = pipe.unet(x, t, text, None, None, None, {"scale": torch.tensor(0.5)}).sample
        mixer.set_adapters(["a", "b"], [0.4, -0.2])
        assert torch.equal(by_name, pipe.unet(x, t, text).sample)
    assert torch.equal(by_place, by_name)
    assert torch.equal(found, picture(other, image=image, strength=1.0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.out = nn.Linear(4, 6, bias=False), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.tanh(self.to_q(x)))


class Denoiser(nn.Module):
    """Compiled in a moment; it knows of no scale, as models do that take one for PEFT's sake."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, sample: Any, timestep: Any, joint_attention_kwargs: Any = None) -> torch.Tensor:
        for block in self.blocks:
            sample = block(sample)
        return sample * timestep


class SmallPipe:
    def __init__(self) -> None:
        self.unet: Any = Denoiser().eval()

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet}


def small() -> tuple[SmallPipe, LoraMixer]:
    pipe = SmallPipe()
    mixer = LoraMixer(pipe)
    gen = torch.Generator().manual_seed(3)
    shapes = {"lora_A": (2, 4), "lora_B": (6, 2)}
    file = {
        f"unet.blocks.{n}.to_q.{half}.weight": torch.randn(*shape, generator=gen)
        for n in (0, 1)
        for half, shape in shapes.items()
    }
    mixer.load_lora_weights(file, "a")
    return pipe, mixer


def noise(pipe: SmallPipe, scale: float | None = None, *, width: int = 5) -> torch.Tensor:
    x = torch.linspace(-1, 1, width * 4).reshape(1, width, 4)
    more = {} if scale is None else {"joint_attention_kwargs": {"scale": scale}}
    with torch.no_grad():
        return pipe.unet(x, torch.tensor(2.0), **more)


@pytest.mark.parametrize("way", ["torch.compile", "dynamic", "in place", "blocks"])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_compiled_denoisers_have_it(way: str, order: str, engine: Any) -> None:
    pipe, mixer = small()
    torch._dynamo.reset()

    def compiled() -> None:
        if way in ("torch.compile", "dynamic"):
            pipe.unet = torch.compile(pipe.unet, backend="eager", dynamic=way == "dynamic" or None)
        elif way == "in place":
            pipe.unet.compile(backend="eager")
        else:
            for block in pipe.unet.blocks:
                block.compile(backend="eager")

    mixer.set_mix({"a": 0.4}, engine=engine)
    expected = [noise(pipe, width=width) for width in (5, 7)]
    if order == "before":
        compiled()
        noise(pipe)
    mixer.set_mix({"a": 0.8}, engine=engine)
    if order == "after":
        compiled()
    plain = noise(pipe)
    for width, wanted in zip((5, 7), expected, strict=True):
        assert distance(noise(pipe, 0.5, width=width), wanted) < CLOSE
    assert distance(plain, expected[0]) > 10 * CLOSE
    assert torch.equal(noise(pipe), plain)
    mixer.disable_lora()
    assert torch.equal(noise(pipe, 0.5), noise(pipe))


def test_a_mix_alone_breaks_no_graph_that_is_compiled_after_it() -> None:
    pipe, _ = small()
    plain = noise(pipe)
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    assert distance(noise(pipe), plain) < CLOSE


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_one_graph_that_is_compiled_after_a_mix_has_it_once_the_mix_is_set_again(
    engine: Any, in_place: bool
) -> None:
    pipe, mixer = small()
    torch._dynamo.reset()
    mixer.set_mix({"a": 0.4}, engine=engine)
    expected = noise(pipe)
    mixer.set_mix({"a": 0.8}, engine=engine)
    plain = noise(pipe)
    if in_place:
        pipe.unet.compile(backend="eager", fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    with pytest.raises(PipelineStateError, match="a call's scale"):
        noise(pipe, 0.5)
    assert distance(noise(pipe), plain) < CLOSE
    mixer.set_mix({"a": 0.8}, engine=engine)
    assert distance(noise(pipe, 0.5), expected) < CLOSE
    assert distance(noise(pipe), plain) < CLOSE


def test_reserved_side_paths_have_it(mixed: Any) -> None:
    pipe, mixer = mixed
    mixer.reserve(rank=16, rows=4)
    mixer.set_mix([{"a": 0.8}, {"b": 0.6}])
    prompt = ["an owl", "two cats"]
    plain, found = picture(pipe, prompt=prompt), picture(pipe, prompt=prompt, scale=0.5)
    assert torch.equal(picture(pipe, prompt=prompt), plain)
    mixer.set_mix([{"a": 0.4}, {"b": 0.3}])
    assert distance(found, picture(pipe, prompt=prompt)) < CLOSE


def test_adapters_in_training_have_it() -> None:
    pipe = made("sd")
    mixer = LoraMixer(pipe)
    file = {**linears(pipe, 5, text=False), **kinds_of_change("bias")}
    mixer.load_lora_weights(file, "t", trainable=True)
    x, text, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12), torch.tensor(3)
    half = pipe.unet(x, t, text, cross_attention_kwargs={"scale": 0.5}).sample
    whole = pipe.unet(x, t, text).sample.detach()
    mixer.set_adapters("t", 0.5)
    assert distance(half.detach(), pipe.unet(x, t, text).sample.detach()) < CLOSE
    assert distance(half.detach(), whole) > 10 * CLOSE
    half.sum().backward()
    assert all(p.grad is not None for _, p in mixer.named_trainable_parameters("t"))


@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_scaled_call_that_trains_one_adapter_beside_others_is_refused(engine: Any) -> None:
    pipe = made("sd")
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(linears(pipe, 5, text=False), "t", trainable=True)
    mixer.load_lora_weights(linears(pipe, 6, text=False), "still", activate=False)
    mixer.set_mix({"t": 1.0, "still": 0.5}, engine=engine)
    weights = Snapshot.of(pipe)
    call = (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 12))
    with pytest.raises(MixError, match=r'trains an adapter beside others \("still"\)'):
        pipe.unet(*call, cross_attention_kwargs={"scale": 0.5})
    weights.assert_values(pipe)
    with torch.no_grad():
        half = pipe.unet(*call, cross_attention_kwargs={"scale": 0.5}).sample
    mixer.set_mix({"t": 0.5, "still": 0.25}, engine=engine)
    assert distance(half, pipe.unet(*call).sample.detach()) < CLOSE


@pytest.mark.parametrize("kind", ["merged", "schedule"])
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies_have_the_mix_its_steps_and_the_scale(
    mixed: Any, kind: str, is_compiled: bool, way: str
) -> None:
    pipe, mixer = mixed
    mix = MIXES[kind][0]
    mixer.set_mix(mix)
    if is_compiled:
        pipe.unet.compile(backend=lambda graph, _: graph.forward)  # nothing is compiled before the first call
        mixer.set_mix(mix)
    if way == "copy":
        other = copy.deepcopy(pipe)
    else:
        modules = {n: p for n, p in pipe.components.items() if isinstance(p, nn.Module)}
        parts = pickle.loads(pickle.dumps(modules))
        other = type(pipe)(**{**pipe.components, **parts}, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        LoraMixer(other).mixes  # noqa: B018 -- goes on with what the parts have
    pipe.unet._compiled_call_impl = None
    mixer.set_mix(mix)
    plain, half = picture(pipe), picture(pipe, scale=0.5)
    mixer.disable_lora()
    assert distance(picture(other), plain) < CLOSE
    assert distance(picture(other, scale=0.5), half) < CLOSE
    assert distance(picture(other), plain) < CLOSE


@pytest.mark.parametrize("value", ["0.5", float("nan"), float("inf"), [0.5], {"a": 0.5}])
def test_what_is_no_number_is_refused_by_name(mixed: Any, value: Any) -> None:
    pipe, _ = mixed
    plain = picture(pipe)
    with pytest.raises(MixError, match=r"scale.*finite number"):
        picture(pipe, scale=value)
    assert torch.equal(picture(pipe), plain)


def test_prompts_that_are_read_ahead_have_it(mixed: Any) -> None:
    pipe, mixer = mixed
    words = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    half = pipe.encode_prompt("x", **words, lora_scale=0.5)[0]
    whole = pipe.encode_prompt("x", **words, lora_scale=None)[0]
    with mixer.applied({"a": 0.4, "b": -0.2}):
        assert torch.equal(half, pipe.encode_prompt("x", **words)[0])
    assert torch.equal(whole, pipe.encode_prompt("x", **words)[0])
    assert not torch.equal(half, whole)
    mixer.disable_lora()
    assert torch.equal(
        pipe.encode_prompt("x", **words, lora_scale=0.5)[0], pipe.encode_prompt("x", **words)[0]
    )


def test_a_name_in_a_loop_of_ones_own_is_no_scale(mixed: Any) -> None:
    pipe, mixer = mixed
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain = pipe.text_encoder(ids)[0]
        lora_scale = 0.25  # a name like any other, in a loop that says nothing of scales
        assert torch.equal(pipe.text_encoder(ids)[0], plain)
        mixer.set_adapters("a", lora_scale)
        assert not torch.equal(pipe.text_encoder(ids)[0], plain)


def test_weights_that_others_changed_are_told_before_a_scale(mixed: Any) -> None:
    pipe, _ = mixed
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(PipelineStateError, match="changed by something else"):
        picture(pipe, scale=0.5)


def unpaired(pipe: Any, kind: str) -> dict[str, torch.Tensor]:
    """Write what has no low-rank form over some layers of UNet and text encoder."""
    gen = torch.Generator().manual_seed(8)
    table: dict[str, torch.Tensor] = {}
    for part, front in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for path, layer in getattr(pipe, part).named_modules():
            key = front + path.replace(".", "_")
            if kind == "norm" and isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                table[f"{key}.w_norm"] = torch.randn(layer.weight.shape, generator=gen) * 0.2
                table[f"{key}.b_norm"] = torch.randn(layer.weight.shape, generator=gen) * 0.2
            if not isinstance(layer, nn.Linear) or not path.endswith(("to_q", "to_k", "v_proj")):
                continue
            out, width = layer.weight.shape
            factors = {f"w{i}_{x}": (out, 2) if x == "a" else (2, width) for i in (1, 2) for x in "ab"}
            if kind == "loha":
                for name, shape in factors.items():
                    table[f"{key}.hada_{name}"] = torch.randn(shape, generator=gen) * 0.5
            elif kind == "dora":
                table[f"{key}.lora_up.weight"] = torch.randn(out, 2, generator=gen) * 0.3
                table[f"{key}.lora_down.weight"] = torch.randn(2, width, generator=gen) * 0.3
                table[f"{key}.dora_scale"] = layer.weight.detach().norm(dim=1, keepdim=True) * 1.2
            elif kind == "full":
                table[f"{key}.diff"] = torch.randn(out, width, generator=gen) * 0.1
    return table


@pytest.mark.parametrize("how", ["plain", "schedule", "list", "negative"])
@pytest.mark.parametrize("kind", ["dora", "loha", "full", "norm"])
def test_what_has_no_pair_beside_the_weights_has_the_scale_too(kind: str, how: str) -> None:
    pipe = made("sd")
    base = Snapshot.of(pipe)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(unpaired(pipe, kind), "a")
    prompt = ["an owl", "a castle"] if how == "list" else "an owl"

    def shown(times: float, scale: float | None) -> torch.Tensor:
        schedule = {"schedule": "linear(0.2, 1)"} if how == "schedule" else {}
        one: Any = {"a": {"weight": 0.8 * times, **schedule}}
        mix = [one, {"a": -0.3 * times}] if how == "list" else one
        negative = {"a": -0.5 * times} if how == "negative" else None
        mixer.set_mix(mix, engine="auto" if how == "list" else "side", negative=negative)
        return picture(pipe, prompt=prompt, scale=scale)

    plain = shown(1.0, None)
    for scale in (0.5, 0.0, -1.0):
        expected = shown(scale, None)
        assert distance(shown(1.0, scale), expected) < CLOSE
        assert distance(expected, plain) > 1e-3
    mixer.disable_lora()
    base.assert_values(pipe)
