"""Denoisers and text encoders that are compiled, before or after a mix is set: what runs beside weights is not lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch._dynamo.testing import CompileCounter

from lora_mixer import LoraMixer, PipelineStateError
from tests.models import tiny_sd
from tests.test_reserved import Pipe as UNetPipe
from tests.test_reserved import file_of
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE = 1e-5
FAR = 1e-2
STEPS = 3


class Block(nn.Module):
    """One of each: a convolution, a 1x1 convolution, a linear layer on places, one on text, one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.to_q, self.to_k = nn.Linear(6, 8, bias=False), nn.Linear(5, 8, bias=False)
        self.out = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = x + self.point(torch.tanh(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2)
        keys = self.to_k(text)
        seen = torch.softmax(self.to_q(tokens) @ keys.transpose(1, 2), dim=-1) @ keys
        return x + self.out(seen).transpose(1, 2).reshape(x.shape)


class Denoiser(nn.Module):
    """Small enough to be compiled in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        x = self.conv_in(sample) * (1 + timestep / 1000)
        for block in self.blocks:
            x = block(x, encoder_hidden_states)
        return self.conv_out(x)


class Pipe:
    """A denoiser, a scheduler and guidance: what a mix needs of a pipeline."""

    do_classifier_free_guidance = True

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet: Any = Denoiser().eval()
        self.scheduler = DDIMScheduler()
        self.scheduler.set_timesteps(STEPS)

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "scheduler": self.scheduler}

    def steps(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        z, text = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(4, 3, 5, generator=generator)
        with torch.no_grad():
            return torch.stack(
                [self.unet(torch.cat([z, z]), time, text) for time in self.scheduler.timesteps]
            )


def loaded() -> LoraMixer:
    """Load two adapters, one with biases on layers that have none, and turn them off."""
    mixer = LoraMixer(Pipe())
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    for name in ("a", "b"):
        file = {}
        for path, layer in mixer.pipe.unet.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                out, *rest = layer.weight.shape
                rank = 2 if "conv" in path else 3
                file[f"unet.{path}.lora_A.weight"] = draw(rank, *rest)
                file[f"unet.{path}.lora_B.weight"] = draw(out, rank, *[1] * (len(rest) - 1))
                if name == "b" and layer.bias is None:
                    file[f"unet.{path}.lora_B.bias"] = draw(out)
        with_bias = [key for key in file if key.endswith("bias")]
        assert len(with_bias) == (4 if name == "b" else 0)
        mixer.load_lora_weights(file, name)
    mixer.disable_lora()
    return mixer


_MASK = np.pad(np.ones((6, 3), np.float32), ((0, 0), (0, 3)))

FEATURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "merged": ({"a": 0.8}, {}),
    "schedule": ({"a": {"weight": 1.0, "schedule": "0@0,1@1"}}, {}),
    "schedule, merged": ({"a": {"weight": 1.0, "schedule": "0@0,1@1"}}, {"engine": "merged"}),
    "mask": ({"a": {"weight": 1.0, "mask": _MASK}}, {}),
    "list of mixes": ([{"a": 0.9}, {"a": 0.2}], {"guidance_copies": 2}),
    "negative": ({"a": 0.9}, {"negative": {"a": -0.4}, "guidance_copies": 2}),
    "side": ({"a": 0.7}, {"engine": "side"}),
    "bias by hook": ({"b": 0.6}, {}),
}  # fmt: skip


def _whole(pipe: Pipe, **how: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, **how)


def _in_place(pipe: Pipe, **how: Any) -> None:
    pipe.unet.compile(**how)


def _blocks(pipe: Pipe, **how: Any) -> None:
    for block in pipe.unet.blocks:  # what diffusers' compile_repeated_blocks does
        block.compile(**how)


KINDS: dict[str, Callable[..., None]] = {
    "torch.compile(module)": _whole,
    "fullgraph": lambda pipe, **how: _whole(pipe, fullgraph=True, **how),
    "module.compile()": _in_place,
    "repeated blocks": _blocks,
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The same without compiling."""
    mixer = loaded()
    results = {"base": mixer.pipe.steps()}
    for name, (mix, options) in FEATURES.items():
        mixer.set_mix(mix, **options)
        results[name] = mixer.pipe.steps()
        assert (results[name] - results["base"]).abs().max() > FAR
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_after_a_denoiser_was_compiled_and_has_run_is_seen(
    kind: str, expected: dict[str, torch.Tensor]
) -> None:
    torch._dynamo.reset()
    mixer, counter = loaded(), CompileCounter()
    clean = Snapshot.of(mixer.pipe)
    plain = mixer.pipe.unet
    KINDS[kind](mixer.pipe, backend=counter)
    base = mixer.pipe.steps()

    with torch._dynamo.config.patch(recompile_limit=64):
        for name, (mix, options) in FEATURES.items():
            mixer.set_mix(mix, **options)
            assert (mixer.pipe.steps() - expected[name]).abs().max() < CLOSE, name
            mixer.disable_lora()
            assert torch.equal(mixer.pipe.steps(), base), name

        compiled = counter.frame_count
        for name, (mix, options) in FEATURES.items():  # each is known by now: nothing is compiled again
            mixer.set_mix(mix, **options)
            assert (mixer.pipe.steps() - expected[name]).abs().max() < CLOSE, name
    mixer.disable_lora()

    assert counter.frame_count == compiled
    mixer.pipe.unet = plain
    clean.assert_untouched(mixer.pipe)
    assert all("forward" not in module.__dict__ for module in plain.modules())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fullgraph"])
@pytest.mark.parametrize("name", FEATURES)
def test_what_stood_while_a_denoiser_was_compiled_goes_and_comes_back(
    kind: str, name: str, expected: dict[str, torch.Tensor]
) -> None:
    torch._dynamo.reset()
    mixer = loaded()
    mix, options = FEATURES[name]
    mixer.set_mix(mix, **options)
    KINDS[kind](mixer.pipe, backend="eager")

    assert (mixer.pipe.steps() - expected[name]).abs().max() < CLOSE
    mixer.disable_lora()
    assert (mixer.pipe.steps() - expected["base"]).abs().max() < CLOSE
    other = "side" if name != "side" else "schedule"
    mixer.set_mix(FEATURES[other][0], **FEATURES[other][1])
    assert (mixer.pipe.steps() - expected[other]).abs().max() < CLOSE
    mixer.set_mix(mix, **options)
    assert (mixer.pipe.steps() - expected[name]).abs().max() < CLOSE


def test_room_that_is_reserved_after_a_first_picture_is_seen_and_compiled_for_once() -> None:
    torch._dynamo.reset()
    mixer, counter = loaded(), CompileCounter()
    mixes = [{"a": 0.7}, {"a": -0.2}, {"a": {"weight": 0.5, "schedule": "1@0,0@1"}}]
    wanted = []
    for mix in mixes:
        mixer.set_mix(mix, engine="side")
        wanted.append(mixer.pipe.steps())
    mixer.disable_lora()
    _whole(mixer.pipe, backend=counter)
    mixer.pipe.steps()

    mixer.reserve(rank=8)
    for mix, result in zip(mixes, wanted, strict=True):
        mixer.set_mix(mix)
        assert (mixer.pipe.steps() - result).abs().max() < CLOSE

    assert counter.frame_count == 2
    mixer.release()
    mixer.disable_lora()
    mixer.pipe.steps()
    assert counter.frame_count == 2  # the base's own code again


def test_two_denoisers_of_one_class_are_compiled_apart() -> None:
    """A hook on one does not make the other's code go, nor is it in it."""
    torch._dynamo.reset()
    counter = CompileCounter()
    mixer, other = loaded(), loaded()
    for one in (mixer, other):
        _whole(one.pipe, backend=counter)
        one.pipe.steps()
    before, compiled = other.pipe.steps(), counter.frame_count

    mixer.set_mix({"a": 0.7}, engine="side")
    mixer.pipe.steps()
    again = counter.frame_count

    assert again > compiled
    assert torch.equal(other.pipe.steps(), before)
    assert counter.frame_count == again


def test_a_forward_of_another_library_stays_beneath_and_comes_back() -> None:
    """Offloading wraps ``forward`` of layers; a hook is seen there as well, and goes without trace."""
    torch._dynamo.reset()
    mixer = loaded()
    layer = mixer.pipe.unet.blocks[0].out
    own = layer.forward = lambda x: nn.Linear.forward(layer, x) * 1.5
    mixer.set_mix({"a": 0.7}, engine="side")
    wanted = mixer.pipe.steps()
    mixer.disable_lora()
    base = mixer.pipe.steps()
    _whole(mixer.pipe, backend="eager")
    assert (mixer.pipe.steps() - base).abs().max() < CLOSE

    mixer.set_mix({"a": 0.7}, engine="side")
    assert (mixer.pipe.steps() - wanted).abs().max() < CLOSE
    mixer.disable_lora()

    assert layer.__dict__["forward"] is own
    assert (mixer.pipe.steps() - base).abs().max() < CLOSE


def test_a_unet_whose_repeated_blocks_are_compiled_follows_a_schedule() -> None:
    """In diffusers' own words."""
    torch._dynamo.reset()
    mixer = LoraMixer(UNetPipe())
    mixer.load_lora_weights(file_of(mixer.pipe, 0), "a")
    mix = {"a": {"weight": 1.0, "schedule": "0@0,1@1"}}
    with mixer.applied(mix):
        wanted = torch.stack([mixer.pipe(step) for step in range(4)])
    mixer.disable_lora()
    mixer.pipe.unet.compile_repeated_blocks(backend="eager")
    mixer.pipe()

    mixer.set_mix(mix)

    assert (torch.stack([mixer.pipe(step) for step in range(4)]) - wanted).abs().max() < CLOSE


@pytest.mark.parametrize("kind", ["torch.compile(module)", "module.compile()"])
def test_a_compiled_text_encoder_learns_words(kind: str) -> None:
    torch._dynamo.reset()
    width = tiny_sd().text_encoder.config.hidden_size
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(3))

    def text(pipe: Any, prompt: str) -> torch.Tensor:
        ids = pipe.tokenizer(prompt, padding="max_length", max_length=12, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(ids)[0]

    plain: Any = tiny_sd()
    base = text(plain, "a cat")
    LoraMixer(plain).load_textual_inversion({"<s>": vectors})
    wanted = text(plain, "a <s> <s>_1 x")
    pipe: Any = tiny_sd()
    if kind == "module.compile()":
        pipe.text_encoder.compile(backend="eager")
    else:
        pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    assert (text(pipe, "a cat") - base).abs().max() < CLOSE
    mixer = LoraMixer(pipe)

    mixer.load_textual_inversion({"<s>": vectors})
    assert (text(pipe, "a <s> <s>_1 x") - wanted).abs().max() < CLOSE
    mixer.unload_textual_inversion()
    assert (text(pipe, "a cat") - base).abs().max() < CLOSE


RECORDED: dict[str, Callable[[Any, Any], Any]] = {
    "trace": lambda module, given: torch.jit.trace(module, given, check_trace=False),
    "export": lambda module, given: torch.export.export(module, given, strict=False).module(),
}


@pytest.mark.filterwarnings("ignore")  # of torch, that these ways to record are old
@pytest.mark.parametrize("how", RECORDED)
@pytest.mark.parametrize("name", FEATURES)
def test_what_is_read_at_calls_is_refused_by_name_where_a_call_is_recorded_and_all_else_is_recorded(
    how: str, name: str, expected: dict[str, torch.Tensor]
) -> None:
    torch._dynamo.reset()
    mixer = loaded()
    mix, options = FEATURES[name]
    mixer.set_mix(mix, **options)
    unet, scheduler = mixer.pipe.unet, mixer.pipe.scheduler
    numbers = torch.Generator().manual_seed(3)
    given = (
        torch.randn(4, 4, 6, 6, generator=numbers), scheduler.timesteps[1], torch.randn(4, 3, 5, generator=numbers)
    )  # fmt: skip
    if name in ("merged", "side", "bias by hook"):  # the same at each call
        with torch.no_grad():
            recorded = RECORDED[how](unet, given)
            assert (recorded(*given) - unet(*given)).abs().max() < CLOSE
    else:
        with pytest.raises(PipelineStateError, match=r"changes the mix at this call.*constant mix"):
            RECORDED[how](unet, given)
    assert torch.equal(mixer.pipe.steps(), expected[name])


ONE_GRAPH: dict[str, Callable[[Any], Any]] = {
    "module": lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend="eager", fullgraph=True)),
    "in place": lambda pipe: pipe.unet.compile(backend="eager", fullgraph=True),
}


@pytest.mark.parametrize(
    ("how", "name"),
    [*(("module", name) for name in FEATURES), ("in place", "merged"), ("in place", "schedule")],
)
def test_what_is_read_at_calls_is_refused_by_name_where_one_graph_was_compiled_after_it(
    how: str, name: str, expected: dict[str, torch.Tensor]
) -> None:
    torch._dynamo.reset()
    mixer = loaded()
    clean = Snapshot.of(mixer.pipe)
    mix, options = FEATURES[name]
    mixer.set_mix(mix, **options)
    plain = mixer.pipe.unet
    ONE_GRAPH[how](mixer.pipe)
    if name not in ("merged", "side", "bias by hook"):  # which are read nowhere
        with pytest.raises(
            PipelineStateError, match=r"fullgraph after the mix was set.*set the mix once more"
        ):
            mixer.pipe.steps()
        mixer.set_mix(mix, **options)
    assert (mixer.pipe.steps() - expected[name]).abs().max() < CLOSE
    mixer.disable_lora()
    assert (mixer.pipe.steps() - expected["base"]).abs().max() < CLOSE
    mixer.pipe.unet = plain
    clean.assert_untouched(mixer.pipe)


DENSE: dict[str, tuple[Any, dict[str, Any]]] = {
    "one mix": ({"d": 0.7}, {"engine": "side"}),
    "schedule": ({"d": {"weight": 1.0, "schedule": "0@1,1@0"}}, {"engine": "side"}),
    "rows": ([{"d": 1.0}, {"a": 0.4}], {"guidance_copies": 2}),
}


def with_whole_changes() -> LoraMixer:
    """Load an adapter of LoHa on linear layers and of whole changes on convolutions, too."""
    mixer, generator, file = loaded(), torch.Generator().manual_seed(7), {}
    for path, layer in mixer.pipe.unet.named_modules():
        front = "lora_unet_" + path.replace(".", "_")
        if isinstance(layer, nn.Linear):
            out, width = layer.weight.shape
            for leaf, shape in (
                ("w1_a", (out, 2)),
                ("w1_b", (2, width)),
                ("w2_a", (out, 2)),
                ("w2_b", (2, width)),
            ):
                file[f"{front}.hada_{leaf}"] = torch.randn(*shape, generator=generator) * 0.4
        elif isinstance(layer, nn.Conv2d):
            file[f"{front}.diff"] = torch.randn(*layer.weight.shape, generator=generator) * 0.3
    mixer.load_lora_weights(file, "d", activate=False)
    return mixer


@pytest.mark.parametrize("name", DENSE)
def test_changes_without_pairs_are_compiled_beside_their_layers_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    mix, options = DENSE[name]
    plain = with_whole_changes()
    base = plain.pipe.steps()
    plain.set_mix(mix, **options)
    wanted = plain.pipe.steps()
    assert (wanted - base).abs().max() > FAR
    mixer = with_whole_changes()
    KINDS["fullgraph"](mixer.pipe, backend="eager")
    mixer.pipe.steps()
    with torch._dynamo.config.patch(recompile_limit=64):
        mixer.set_mix(mix, **options)
        assert (mixer.pipe.steps() - wanted).abs().max() < CLOSE
        mixer.disable_lora()
        assert torch.equal(mixer.pipe.steps(), base)
        mixer.set_mix(mix, **options)
        assert (mixer.pipe.steps() - wanted).abs().max() < CLOSE
