"""A reserved side path: room that stays while mixes change, for compiled and captured denoisers."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch._dynamo.testing import CompileCounter

from lora_mixer import LoraMixer, MixError, PipelineStateError
from tests.models import perturb
from tests.weights import Snapshot, random_pairs

CLOSE = 1e-4
FAR = 1e-2
RANK = 8
NAMES = ("a", "b", "c")


class Pipe:
    """A denoiser and a scheduler: what a mix in time needs of a pipeline."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet: Any = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=12, attention_head_dim=4,
        ).eval().requires_grad_(requires_grad=False)  # fmt: skip
        perturb(self.unet, 0)
        self.scheduler = DDIMScheduler()
        self.scheduler.set_timesteps(4)

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "scheduler": self.scheduler}

    def __call__(self, step: int = 0, rows: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(2, 4, 8, 8, generator=generator).repeat(rows // 2, 1, 1, 1)
        text = torch.randn(rows, 3, 12, generator=generator)
        with torch.no_grad():
            return self.unet(z, self.scheduler.timesteps[step], encoder_hidden_states=text).sample


def file_of(pipe: Any, seed: int) -> dict[str, torch.Tensor]:
    table = {}
    pairs = random_pairs(
        pipe, lambda _, path: any(w in path for w in ("attn", "ff", "conv")), alphas=False, seed=seed
    )
    for (component, path), pair in pairs.items():
        table[f"{component}.{path}.lora_A.weight"] = pair.down
        table[f"{component}.{path}.lora_B.weight"] = pair.up.reshape(
            *pair.up.shape, *[1] * (pair.down.ndim - 2)
        )
    return table


@pytest.fixture
def mixer() -> LoraMixer:
    mixer = LoraMixer(Pipe())
    for seed, name in enumerate(NAMES[:2]):
        mixer.load_lora_weights(file_of(mixer.pipe, seed), name)
    mixer.disable_lora()
    return mixer


MIXES: list[Any] = [
    {"a": 0.8, "b": -0.5},
    {"b": {"weight": 0.9, "schedule": "1@0,0@1"}},
    "a:1, b:1 | switch(tau=1)",
    "a:1, b:1 | k_lora",
    "a:0.9, b:0.6 | composite",
    {"a": {"weight": 0.8, "blocks": {"down": 0.2, "mid": 1, "up": 0.5}}},
    {},
]


def outputs(mixer: LoraMixer, mix: Any, rows: int = 2, **how: Any) -> torch.Tensor:
    with mixer.applied(mix, **how):
        return torch.stack([mixer.pipe(step, rows) for step in range(4)])


@pytest.mark.parametrize("rows", [1, 4])
def test_whatever_is_reserved_mixes_give_the_same(mixer: LoraMixer, rows: int) -> None:
    expected = [outputs(mixer, mix) for mix in MIXES]
    hooks = [len(module._forward_hooks) for module in mixer.pipe.unet.modules()]
    mixer.reserve(RANK, rows=rows)
    held = [len(module._forward_hooks) for module in mixer.pipe.unet.modules()]

    for mix, wanted in zip(MIXES, expected, strict=True):
        assert (outputs(mixer, mix) - wanted).abs().max() < CLOSE
    assert (outputs(mixer, MIXES[0]) - expected[-1]).abs().max() > FAR
    assert [len(module._forward_hooks) for module in mixer.pipe.unet.modules()] == held != hooks
    mixer.release()
    assert [len(module._forward_hooks) for module in mixer.pipe.unet.modules()] == hooks
    assert torch.equal(outputs(mixer, {}), expected[-1])


def test_rows_of_a_batch_have_mixes_of_their_own_in_reserved_room(mixer: LoraMixer) -> None:
    mixes = [{"a": 0.9}, {"b": 0.7, "a": -0.2}]
    expected = outputs(mixer, mixes, rows=4, guidance_copies=2)
    mixer.reserve(RANK, rows=4)

    found = outputs(mixer, mixes, rows=4, guidance_copies=2)

    assert (found - expected).abs().max() < CLOSE
    assert (outputs(mixer, mixes[0], rows=4)[:, ::2] - expected[:, ::2]).abs().max() < CLOSE


def test_reserved_and_disabled_is_the_base_bit_for_bit_and_released_leaves_no_trace(mixer: LoraMixer) -> None:
    clean = Snapshot.of(mixer.pipe)
    base = mixer.pipe()

    mixer.reserve(RANK)
    mixer.set_mix({"a": 0.8})
    mixer.disable_lora()
    assert torch.equal(mixer.pipe(), base)
    mixer.enable_lora()
    mixer.release()
    assert (mixer.pipe() - base).abs().max() > FAR
    mixer.disable_lora()

    clean.assert_untouched(mixer.pipe)
    assert torch.equal(mixer.pipe(), base)


def test_merging_works_while_room_is_reserved(mixer: LoraMixer) -> None:
    expected = outputs(mixer, MIXES[0], engine="merged")
    mixer.reserve(RANK)

    outputs(mixer, {"b": 1.0})
    merged = outputs(mixer, MIXES[0], engine="merged")

    assert torch.equal(merged, expected)


@pytest.mark.parametrize(
    ("rank", "rows", "mix", "said"),
    [
        (2, 1, {"a": 1.0, "b": 1.0}, r"needs rank 8, reserved is 2: reserve with rank=8"),
        (RANK, 1, [{"a": 1.0}, {"b": 1.0}], "need rows of their own: reserve with rows="),
        (RANK, 1, {"a": {"weight": 1.0, "mask": "white.png"}}, "masks need tensors that follow the picture"),
        (RANK, 1, {"c": 1.0}, r"layers were not changed by any adapter when it was reserved \(unet.conv_out"),
    ],
)
def test_a_mix_without_room_is_refused_and_nothing_changes(
    mixer: LoraMixer, rank: int, rows: int, mix: Any, said: str, tmp_path: Any, monkeypatch: Any
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 255).save("white.png")
    if "c" in mix:
        mixer.delete_adapters("b")
        full = {
            "unet.conv_out.lora_A.weight": torch.ones(1, 8, 3, 3),
            "unet.conv_out.lora_B.weight": torch.ones(4, 1, 1, 1),
        }
        with_a = file_of(mixer.pipe, 0)
        mixer.delete_adapters("a")
        mixer.load_lora_weights({k: v for k, v in with_a.items() if "attn" in k}, "a")
        mixer.disable_lora()
        mixer.reserve(rank, rows=rows)
        with pytest.raises(MixError, match=said):
            mixer.load_lora_weights(full, "c")
        assert list(mixer.adapters) == ["a"]
        return
    mixer.reserve(rank, rows=rows)
    mixer.set_mix({"a": {"weight": 0.5, "blocks": {"down": 1, "mid": 0, "up": 0}}} if rank > 4 else {})
    before = mixer.pipe()

    with pytest.raises(MixError, match=said):
        mixer.set_mix(mix)

    assert torch.equal(mixer.pipe(), before)


def test_there_is_nothing_to_reserve_without_adapters() -> None:
    with pytest.raises(MixError, match="load the adapters"):
        LoraMixer(Pipe()).reserve()
    with pytest.raises(MixError, match="rank must be a whole number"):
        LoraMixer(Pipe()).reserve(0)


def test_more_room_can_be_reserved_later(mixer: LoraMixer) -> None:
    expected = outputs(mixer, MIXES[0])
    mixer.reserve(4)
    mixer.set_mix({"a": 0.8})

    with pytest.raises(MixError, match="needs rank 4, reserved is 1"):
        mixer.reserve(1)
    with mixer.applied({"a": 0.8}):
        kept = mixer.pipe()
    mixer.reserve(RANK)

    assert (mixer.pipe() - kept).abs().max() < CLOSE
    assert (outputs(mixer, MIXES[0]) - expected).abs().max() < CLOSE


# --- torch.compile -----------------------------------------------------------------------------------------------------


def random_mix(rng: random.Random, names: tuple[str, ...]) -> Any:
    """Draw a mix: weights, which adapters, blocks, a schedule, a method."""
    chosen = rng.sample(names, rng.randint(1, len(names)))
    adapters: dict[str, Any] = {}
    for name in chosen:
        adapters[name] = {"weight": rng.uniform(-1, 1)}
        if rng.random() < 0.3:
            adapters[name]["schedule"] = f"{rng.random():.2f}@0,{rng.random():.2f}@1"
        if rng.random() < 0.3:
            adapters[name]["blocks"] = {"down": rng.random(), "mid": rng.random(), "up": rng.random()}
    methods = ["sum", "switch(tau=1)", "composite"] + (["k_lora"] if len(chosen) == 2 else [])
    return {"adapters": adapters, "method": rng.choice(methods)}


@pytest.mark.parametrize(("engine", "rows"), [("auto", 1), ("auto", 2), ("merged", 0)])
def test_fifty_mixes_cause_no_recompilation(mixer: LoraMixer, engine: str, rows: int) -> None:
    """Weights, adapters, blocks, schedules, methods and, with rows, mixes per image; one adapter comes later."""
    torch._dynamo.reset()
    counter = CompileCounter()
    pipe = mixer.pipe
    if rows:
        mixer.reserve(3 * 4, rows=rows)
    plain, late = pipe.unet, file_of(pipe, 2)
    pipe.unet = torch.compile(plain, backend=counter)
    pipe()
    compiled = counter.frame_count
    mixer.load_lora_weights(late, "c")
    rng = random.Random(0)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(50):
            mix = random_mix(rng, NAMES)
            several = rows > 1 and number % 2
            mixer.set_mix([mix, random_mix(rng, NAMES)] if several else mix, engine=engine)
            found = pipe(number % 4)
            if number % 10 == 0:
                pipe.unet, again = plain, pipe.unet
                mixer.set_mix(mixer.mixes[0] if len(mixer.mixes) == 1 else list(mixer.mixes), engine=engine)
                assert (pipe(number % 4) - found).abs().max() < CLOSE
                pipe.unet = again

    assert compiled == counter.frame_count == 1


def test_a_module_compiled_in_place_is_followed_from_outside(mixer: LoraMixer) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    mix = {"a": {"weight": 0.9, "schedule": "0@0,1@1"}}
    expected, composite = outputs(mixer, mix), outputs(mixer, MIXES[4])
    mixer.reserve(RANK)
    mixer.pipe.unet.compile(backend=counter)
    compiled_call = mixer.pipe.unet._compiled_call_impl
    mixer.pipe()

    assert (outputs(mixer, mix) - expected).abs().max() < CLOSE
    assert (outputs(mixer, MIXES[4]) - composite).abs().max() < CLOSE
    assert counter.frame_count == 1
    assert mixer.pipe.unet._compiled_call_impl is compiled_call


def test_a_denoiser_compiled_over_a_schedule_is_followed_all_the_same(mixer: LoraMixer) -> None:
    torch._dynamo.reset()
    expected = outputs(mixer, MIXES[1])
    mixer.set_mix(MIXES[1])
    mixer.pipe.unet = torch.compile(mixer.pipe.unet, backend="eager")

    found = torch.stack([mixer.pipe(step) for step in range(4)])

    assert (found - expected).abs().max() < CLOSE


# --- capture -----------------------------------------------------------------------------------------------------------


def test_capturing_on_a_cpu_is_a_clear_error_and_changes_nothing(mixer: LoraMixer) -> None:
    clean = Snapshot.of(mixer.pipe)

    with (
        pytest.raises(PipelineStateError, match=r"unet: its weights are on cpu, .*one CUDA device"),
        mixer.capture(),
    ):
        pass

    clean.assert_untouched(mixer.pipe)
    assert "forward" not in mixer.pipe.unet.__dict__


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_graph_stays_valid_while_mixes_change(mixer: LoraMixer) -> None:
    pipe = mixer.pipe
    mixer.unload_lora_weights()
    pipe.unet.to("cuda")
    for seed, name in enumerate(NAMES[:2]):
        mixer.load_lora_weights(file_of(pipe, seed), name)
    mixer.reserve(RANK)

    def call(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        z, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 12, generator=generator)
        with torch.no_grad():
            return pipe.unet(
                z.cuda(), pipe.scheduler.timesteps[step], encoder_hidden_states=text.cuda()
            ).sample

    def runs(mix: Any) -> torch.Tensor:
        with mixer.applied(mix):
            return torch.stack([call(step) for step in range(4)])

    expected = [runs(mix) for mix in MIXES]
    with mixer.capture() as graphs:
        for _ in range(2):
            for mix, wanted in zip(MIXES, expected, strict=True):
                assert (runs(mix) - wanted).abs().max() < 1e-3
        assert graphs["unet"].captures == 1
    assert "forward" not in pipe.unet.__dict__


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(2048, 1280, 64), (154, 640, 40), (77, 100, 1), (33, 70, 200)]
)
def test_the_kernel_for_graphs_rounds_the_sum_once(
    dtype: torch.dtype, rows: int, columns: int, rank: int
) -> None:
    from lora_mixer.engines.side.kernel import add_product

    generator = torch.Generator("cuda").manual_seed(0)
    draw = partial(torch.randn, device="cuda", dtype=dtype, generator=generator)
    output, hidden, up = draw(rows, columns), draw(rows, rank + 3)[:, 2 : rank + 2], draw(columns, rank)
    exact = output.double() + hidden.double() @ up.double().T
    size = (output.double().abs() + hidden.double().abs() @ up.double().abs().T).amax()

    add_product(output, hidden, up)

    ulp = exact.to(dtype).double().abs() * torch.finfo(dtype).eps
    assert ((output.double() - exact).abs() <= 0.51 * ulp + 1e-6 * size).all()
