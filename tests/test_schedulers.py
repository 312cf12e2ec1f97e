"""A schedule on every scheduler of diffusers that denoises: fractions from 0 to 1, step numbers as they were asked for."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from lora_mixer import LoraMixer, MixError, UnusedWeightWarning
from lora_mixer.engines.denoiser.steps import NoiseLevels

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:.*__array_wrap__:DeprecationWarning")  # of DPM2 with NumPy 2

STEPS = 6
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

BETWEEN = {"KDPM2DiscreteScheduler"}
"""Schedulers with a noise level between each two steps."""
REPEATED = {
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "PNDMScheduler",
}
"""Those that come back to a noise level."""
NOT_FOR_PICTURES = {
    "AmusedScheduler", "BlockRefinementScheduler", "CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler",
    "DiscreteDDIMScheduler", "EntropyBoundScheduler", "HeliosDMDScheduler", "HeliosScheduler", "MiniMaxH3Scheduler",
    "RFD4ProteinaScheduler", "SCMScheduler", "VQDiffusionScheduler", "KarrasVeScheduler", "ScoreSdeVpScheduler",
    "ScoreSdeVeScheduler", "UnCLIPScheduler", "RePaintScheduler", "DDPMWuerstchenScheduler",
}  # fmt: skip
"""Of tokens, of audio, of distilled models with steps of their own."""


def names_of_schedulers() -> list[str]:
    names = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    kinds = {name: getattr(diffusers.schedulers, name) for name in names}
    return [
        name
        for name, kind in kinds.items()
        if name not in NOT_FOR_PICTURES
        and issubclass(kind, SchedulerMixin)  # else a library that it needs is not here
    ]


class Denoiser(nn.Module):
    """Predicts nothing; the weight of its layer tells the gain of an adapter of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.config = SimpleNamespace(in_channels=4)
        self.gains: list[float] = []
        self.base = float(self.layer.weight.detach())

    def forward(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        self.gains.append(float(self.layer.weight.detach()) - self.base)
        return torch.zeros_like(sample)


class Pipeline:
    """A pipeline that calls a denoiser at each timestep of its own scheduler."""

    def __init__(self, unet: Denoiser, scheduler: Any) -> None:
        self.components = {"unet": unet, "scheduler": scheduler}
        self.unet = unet
        self.scheduler = scheduler

    def __call__(self, num_inference_steps: int, *, skip: int = 0, scale: float = 1.0) -> None:
        self.scheduler.set_timesteps(num_inference_steps)
        order = getattr(self.scheduler, "order", 1)
        timesteps = self.scheduler.timesteps[skip * order :]
        num_inference_steps -= skip
        latents = torch.zeros(1, 4, 2, 2)
        for t in timesteps:
            self.unet(latents, (t / scale).expand(1))


@pytest.fixture
def unet() -> Iterator[Denoiser]:
    unet = Denoiser()
    ones = {"unet.layer.lora_A.weight": torch.ones(1, 1), "unet.layer.lora_B.weight": torch.ones(1, 1)}
    mixer = LoraMixer(Pipeline(unet, EulerDiscreteScheduler(**BETAS)))
    mixer.load_lora_weights(ones, "a")
    unet.mixer = mixer  # type: ignore[assignment]
    yield unet
    mixer.unload_lora_weights()


def gains(unet: Denoiser, schedule: str, run: Any) -> list[float]:
    unet.gains.clear()
    with unet.mixer.applied({"a": {"schedule": schedule}}, engine="merged"):  # type: ignore[operator, union-attr]
        run()
    return [round(gain, 4) for gain in unet.gains]


def made(name: str) -> Any:
    kind = getattr(diffusers.schedulers, name)
    try:
        return (
            kind(**BETAS) if not name.startswith(("Flow", "EDM", "IPNDM", "LTX", "Pi", "Cosine")) else kind()
        )
    except TypeError:
        return kind()


def expected_places(name: str) -> tuple[list[float], list[int]]:
    """Fractions and steps of the calls, by what each scheduler is known to do."""
    if name in BETWEEN:
        calls = 2 * STEPS - 1
        return [call / (calls - 1) for call in range(calls)], [call // 2 for call in range(calls)]
    steps = list(range(STEPS))
    if name in REPEATED:
        # Heun, DPM2 a: each level but the first twice
        steps = [0, *[step for step in range(1, STEPS) for _ in range(2)]]
    return [step / (STEPS - 1) for step in steps], steps


@pytest.mark.parametrize("name", sorted(set(names_of_schedulers()) - {"PNDMScheduler"}))
def test_fractions_go_from_0_to_1_and_steps_are_those_asked_for(unet: Denoiser, name: str) -> None:
    pipe = Pipeline(unet, made(name))
    fractions, steps = expected_places(name)

    assert gains(unet, "linear(0, 1)", lambda: pipe(STEPS)) == [round(place, 4) for place in fractions]
    for start, stop in ((0, 2), (2, 3), (STEPS - 1, STEPS)):
        within = [float(start <= step < stop) for step in steps]
        assert gains(unet, f"window({start}s, {stop}s)", lambda: pipe(STEPS)) == within


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"skip_prk_steps": True}, [0, 1, 1, 2, 3, 4, 5]),
        # the warm-up has a level between each two of its three steps, called twice, and begins a step where the last ended
        ({}, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 5]),
    ],
)
def test_pndm_and_its_warm_up_end_at_1_and_count_steps(
    unet: Denoiser, options: dict[str, Any], steps: list[int]
) -> None:
    pipe = Pipeline(unet, diffusers.PNDMScheduler(**options))

    found = gains(unet, "linear(0, 1)", lambda: pipe(STEPS))

    assert (found[0], found[-1]) == (0.0, 1.0)
    assert found == sorted(found)
    for stop in range(1, STEPS + 1):
        within = [float(step < stop) for step in steps]
        assert gains(unet, f"window(0s, {stop}s)", lambda: pipe(STEPS)) == within


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])  # fmt: skip
def test_a_run_that_starts_late_counts_from_where_it_starts(unet: Denoiser, name: str) -> None:
    pipe = Pipeline(unet, made(name))

    found = gains(unet, "linear(0, 1)", lambda: pipe(STEPS, skip=2))
    again = gains(unet, "linear(0, 1)", lambda: pipe(STEPS, skip=3))

    assert (found[0], found[-1], again[0], again[-1]) == (0.0, 1.0, 0.0, 1.0)
    assert gains(unet, "window(1s, 2s)", lambda: pipe(STEPS, skip=2)).count(1.0) in (1, 2)


def test_timesteps_that_the_denoiser_is_given_as_fractions_are_those_of_the_scheduler(unet: Denoiser) -> None:
    pipe = Pipeline(unet, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.scheduler.set_timesteps(4)
    levels = pipe.scheduler.timesteps.tolist()

    assert gains(unet, "linear(0, 1)", lambda: pipe(4, scale=1000.0)) == [0.0, 0.3333, 0.6667, 1.0]
    assert gains(unet, "slider(700)", lambda: pipe(4, scale=1000.0)) == [float(t <= 700) for t in levels]


def test_a_run_that_was_broken_off_does_not_reach_into_the_next_one(unet: Denoiser) -> None:
    pipe = Pipeline(unet, made("DDIMScheduler"))
    unet.mixer.set_mix({"a": {"schedule": "linear(0, 1)"}}, engine="merged")  # type: ignore[operator, union-attr]
    pipe.scheduler.set_timesteps(STEPS)
    unet(torch.zeros(1, 4, 2, 2), pipe.scheduler.timesteps[1])
    unet.gains.clear()

    pipe(STEPS, skip=2)

    assert [round(gain, 4) for gain in unet.gains] == [0.0, 0.3333, 0.6667, 1.0]


def test_a_loop_by_hand_has_the_steps_of_its_own_scheduler(unet: Denoiser) -> None:
    unet.mixer.pipe.scheduler.set_timesteps(3)  # type: ignore[operator, union-attr]

    def loop() -> None:
        scheduler = made("DPMSolverMultistepScheduler")
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            unet(torch.zeros(1, 4, 2, 2), t)

    assert gains(unet, "linear(0, 1)", loop) == [0.0, 0.25, 0.5, 0.75, 1.0]


def without_steps() -> tuple[nn.Sequential, LoraMixer]:
    model = nn.Sequential(nn.Linear(3, 3))
    mixer = LoraMixer(model)
    for name in "ab":
        pair = {"0.lora_A.weight": torch.ones(1, 3), "0.lora_B.weight": torch.ones(3, 1)}
        mixer.load_lora_weights(pair, name, activate=False)
    return model, mixer


@pytest.mark.parametrize(
    ("schedule", "start"),
    [("start=1", 0.0), ("0@0,1@0.5", 0.0), ("0.5@0,1@1", 0.5), ("0.5@0,0.5@1", 0.5)],
)
def test_a_schedule_on_what_has_no_steps_stays_at_its_start_and_says_so(schedule: str, start: float) -> None:
    model, mixer = without_steps()
    base = copy.deepcopy(model)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mixer.set_mix(f"a:1,{schedule}")

    expected = "a: its schedule changes nothing after the start, model (Sequential) has no steps: its forward takes no timestep"
    stays = schedule == "0.5@0,0.5@1"  # which never changes
    assert [str(each.message) for each in told] == ([] if stays else [expected])
    assert all(each.category is UnusedWeightWarning for each in told)
    for _ in range(3):
        assert torch.allclose(model(x), base(x) + start * x.sum(1, keepdim=True), atol=1e-6)
    mixer.disable_lora()
    assert torch.equal(model(x), base(x))


@pytest.mark.parametrize("mix", ["a:1, b:1 | switch", "a:1, b:1 | k_lora"])
def test_what_has_no_steps_has_no_method_that_goes_by_them(mix: str) -> None:
    model, mixer = without_steps()
    base = model[0].weight.detach().clone()

    with pytest.raises(MixError, match=r"model \(Sequential\) has none: its forward takes no timestep"):
        mixer.set_mix(mix)

    assert mixer.mixes == ()
    assert torch.equal(model[0].weight, base)


def test_a_second_pipeline_of_diffusers_brings_its_own_steps(sd: StableDiffusionPipeline) -> None:
    parts = {name: part for name, part in sd.components.items() if name != "image_encoder"}
    second = StableDiffusionPipeline(
        **{**parts, "scheduler": diffusers.UniPCMultistepScheduler(**BETAS)}, requires_safety_checker=False
    )
    second.set_progress_bar_config(disable=True)
    sd.scheduler.set_timesteps(3)
    path, weight = "conv_out", sd.unet.conv_out.weight
    before = weight.detach().clone()
    pair = {
        f"unet.{path}.lora_A.weight": torch.ones(1, *weight.shape[1:]) * 1e-2,
        f"unet.{path}.lora_B.weight": torch.ones(weight.shape[0], 1, 1, 1),
    }
    mixer = LoraMixer(sd)
    mixer.load_lora_weights(pair, "a")
    seen: list[float] = []

    with mixer.applied({"a": {"schedule": "linear(0, 1)"}}, engine="merged"):
        hook = sd.unet.register_forward_hook(
            lambda *_: seen.append(float((weight.detach() - before).mean()) / 1e-2)
        )
        second("a cat", num_inference_steps=8, height=32, width=32, output_type="latent")
        hook.remove()
    mixer.unload_lora_weights()

    assert seen == pytest.approx([step / 7 for step in range(8)], abs=1e-4)


@pytest.mark.parametrize("steps", [5, 20, 50, 99, 333])
@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}])
def test_noise_levels_that_differ_by_rounding_are_one(steps: int, options: dict[str, str]) -> None:
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(**BETAS, **options)
    scheduler.set_timesteps(steps)

    levels = NoiseLevels.of(scheduler.timesteps.tolist(), steps, scheduler.order)

    assert (levels.total, len(levels.timesteps)) == (steps, steps)
    assert levels.steps == tuple(range(steps))


def test_timesteps_that_were_rounded_to_the_same_number_are_steps_of_their_own() -> None:
    levels = NoiseLevels.of([9.0, 5.0, 2.0, 2.0, 1.0], 5)

    assert (levels.total, levels.steps) == (5, (0, 1, 2, 4))


LOOP = 7


class Sampler:
    """A loop that is a method, its scheduler an attribute beside the denoiser."""

    def __init__(self, unet: Denoiser, scheduler: Any) -> None:
        self.net = unet
        self.noise_scheduler = scheduler

    def one(self, t: Any) -> None:
        self.net(torch.zeros(1, 4, 2, 2), t)

    def run(self) -> None:
        self.noise_scheduler.set_timesteps(LOOP)
        for t in self.noise_scheduler.timesteps:
            self.one(t)


class Wrapped(nn.Module):
    def __init__(self, unet: Denoiser, scheduler: Any) -> None:
        super().__init__()
        self.net, self.solver = unet, scheduler

    def forward(self, steps: int) -> None:
        self.solver.set_timesteps(steps)
        for t in self.solver.timesteps:
            self.net(torch.zeros(1, 4, 2, 2), t.clone())


class OtherNames:
    """A pipeline whose scheduler has a name of its own."""

    def __init__(self, unet: Denoiser, scheduler: Any) -> None:
        self.components = {"unet": unet, "prior_scheduler": scheduler}
        self.unet, self.prior_scheduler = unet, scheduler

    def __call__(self) -> None:
        self.prior_scheduler.set_timesteps(LOOP)
        for t in self.prior_scheduler.timesteps:
            self.unet(torch.zeros(1, 4, 2, 2), t)


class RowsCalledTimesteps(OtherNames):
    """A pipeline that calls the timestep of one call, for all rows, what others call all of the run: diffusers' DiT does."""

    rows = 1

    def __call__(self) -> None:
        self.prior_scheduler.set_timesteps(LOOP)
        for t in self.prior_scheduler.timesteps:
            timesteps = t.expand(self.rows)
            self.unet(torch.zeros(self.rows, 4, 2, 2), timesteps)


class ThreeRowsCalledTimesteps(RowsCalledTimesteps):
    rows = 3


class OfParts(OtherNames):
    """A pipeline whose methods run parts of its run, some twice, as text-to-video zero's loops do."""

    def loop(self, timesteps: Any) -> None:
        for t in timesteps:
            self.unet(torch.zeros(1, 4, 2, 2), t)

    def __call__(self) -> None:
        self.prior_scheduler.set_timesteps(LOOP)
        timesteps = self.prior_scheduler.timesteps
        for part in (timesteps[:3], timesteps[1:3], timesteps[3:]):
            self.loop(timesteps=part)


class Jumping(OtherNames):
    """A pipeline whose run goes back to noise that it has had."""

    order = (0, 1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6)

    def __call__(self) -> None:
        levels = torch.linspace(901, 1, LOOP)
        self.prior_scheduler.timesteps = levels[list(self.order)]
        for t in self.prior_scheduler.timesteps:
            self.unet(torch.zeros(1, 4, 2, 2), t)


class JumpingUpwards(Jumping):
    """The same of an inversion, which goes from little noise to much."""

    def __call__(self) -> None:
        timesteps = torch.linspace(1, 901, LOOP)[list(self.order)]
        for t in timesteps:
            self.unet(torch.zeros(1, 4, 2, 2), t)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (OfParts, (0, 1, 2, 1, 2, 3, 4, 5, 6)),
        (Jumping, Jumping.order),
        (JumpingUpwards, Jumping.order),
    ],
)
def test_runs_that_go_back_have_the_gain_of_the_noise_at_each_call(
    unet: Denoiser, kind: Any, order: tuple[int, ...]
) -> None:
    for _ in range(2):  # the second run begins anew
        wanted = [round(step / (LOOP - 1), 4) for step in order]
        assert gains(unet, "linear(0, 1)", kind(unet, made("DDIMScheduler"))) == wanted
        within = [float(2 <= step < 4) for step in order]
        assert gains(unet, "window(2s, 4s)", kind(unet, made("DDIMScheduler"))) == within


def test_repaint_has_the_gain_of_the_noise_at_each_call(unet: Denoiser) -> None:
    scheduler = diffusers.RePaintScheduler(num_train_timesteps=1000)

    def loop() -> None:
        scheduler.set_timesteps(4, jump_length=2, jump_n_sample=2)
        for t in scheduler.timesteps:
            unet(torch.zeros(1, 4, 2, 2), t)

    found = gains(unet, "linear(0, 1)", loop)
    steps = [(750 - float(t)) / 750 for t in scheduler.timesteps]
    assert found == [round(step, 4) for step in steps]
    assert found[-1] == 1.0
    assert found != sorted(found)


SHARED = diffusers.UniPCMultistepScheduler(**BETAS)


def by_global(unet: Denoiser) -> None:
    SHARED.set_timesteps(LOOP)
    for place in range(LOOP):
        unet(torch.zeros(1, 4, 2, 2), int(SHARED.timesteps[place]))


def of_two(unet: Denoiser) -> None:
    first, second = made("EulerDiscreteScheduler"), made("UniPCMultistepScheduler")
    first.set_timesteps(LOOP - 3)
    second.set_timesteps(LOOP)
    for t in second.timesteps:
        unet(torch.zeros(1, 4, 2, 2), int(t))


def in_a_dict(unet: Denoiser) -> None:
    kit = {"solver": made("DDIMScheduler")}
    kit["solver"].set_timesteps(LOOP)
    for t in kit["solver"].timesteps:
        unet(torch.zeros(1, 4, 2, 2), t.float())


def without_scheduler(unet: Denoiser) -> None:
    for t in torch.linspace(971.5, 12.25, LOOP):
        unet(torch.zeros(1, 4, 2, 2), t.expand(1))


@torch.inference_mode()
def without_views(unet: Denoiser) -> None:
    levels = torch.linspace(971.5, 12.25, LOOP)
    for t in levels:
        unet(torch.zeros(1, 4, 2, 2), t)


def of_numbers(unet: Denoiser) -> None:
    timesteps = [970, 801, 640, 480, 313, 160, 9]
    for t in timesteps:
        unet(torch.zeros(1, 4, 2, 2), t)


def of_rows(unet: Denoiser) -> None:
    scheduler = made("DDIMScheduler")
    scheduler.set_timesteps(LOOP)
    numbers = scheduler.timesteps.tolist()
    for t in numbers:
        timesteps = torch.tensor([t]).repeat(2)
        unet(torch.zeros(2, 4, 2, 2), timesteps)


LOOPS: dict[str, Any] = {
    "one row called timesteps": lambda unet: RowsCalledTimesteps(unet, made("DDIMScheduler"))(),
    "rows called timesteps": lambda unet: ThreeRowsCalledTimesteps(unet, made("DDIMScheduler"))(),
    "a loop's rows": of_rows,
    "sampler": lambda unet: Sampler(unet, made("DPMSolverMultistepScheduler")).run(),
    "module": lambda unet: Wrapped(unet, made("DEISMultistepScheduler"))(LOOP),
    "pipeline with other names": lambda unet: OtherNames(unet, made("DDIMScheduler"))(),
    "global": by_global,
    "of two": of_two,
    "dict": in_a_dict,
    "no scheduler": without_scheduler,
    "no views": without_views,
    "numbers": of_numbers,
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_has_the_steps_of_the_run_that_it_takes_its_timesteps_from(unet: Denoiser, loop: str) -> None:
    unet.mixer.pipe.scheduler.set_timesteps(3)  # type: ignore[operator, union-attr]
    wanted = [round(step / (LOOP - 1), 4) for step in range(LOOP)]

    assert gains(unet, "linear(0, 1)", lambda: LOOPS[loop](unet)) == wanted
    within = [float(2 <= step < 4) for step in range(LOOP)]
    assert gains(unet, "window(2s, 4s)", lambda: LOOPS[loop](unet)) == within


@pytest.mark.parametrize("schedule", ["linear(0, 1)", "slider(500)", "window(1s, 2s)"])
@pytest.mark.parametrize("rows", [[0, 1], [0, 0, 2], [2, 1, 0]])
def test_rows_of_one_call_at_different_timesteps_are_refused_and_those_of_one_are_not(
    unet: Denoiser, schedule: str, rows: list[int]
) -> None:
    scheduler = EulerDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(4)

    def stream() -> None:  # as StreamDiffusion and training steps do
        unet(torch.zeros(len(rows), 4, 2, 2), scheduler.timesteps[rows])

    def alike() -> None:
        for t in scheduler.timesteps:
            unet(torch.zeros(len(rows), 4, 2, 2), t.repeat(len(rows)))

    with pytest.raises(MixError, match=r"unet is called with rows of \d different timesteps \(999"):
        gains(unet, schedule, stream)
    assert len(gains(unet, schedule, alike)) == 4
    with unet.mixer.applied({"a": 0.5}):  # type: ignore[operator, union-attr]
        stream()


@pytest.mark.parametrize("timesteps", [[10.0, 500.0], [999.0, 1.0, 1.0]])
def test_one_call_by_itself_is_made_as_before_the_first_step_whatever_its_timesteps(
    unet: Denoiser, timesteps: list[float]
) -> None:
    """No run has been set, and nothing goes through one: a look at the denoiser, as people take to see what a mix does."""

    def by_itself() -> None:
        unet(torch.zeros(len(timesteps), 4, 2, 2), torch.tensor(timesteps))

    assert gains(unet, "0.75@0, 0.5@1", by_itself) == [0.75]


def test_a_loop_whose_run_is_nowhere_in_reach_is_refused_and_only_where_steps_count(unet: Denoiser) -> None:
    unet.mixer.pipe.scheduler.set_timesteps(3)  # type: ignore[operator, union-attr]

    def loop() -> None:
        for number in (812.25, 611.5, 402.125):
            unet(torch.zeros(1, 4, 2, 2), torch.tensor(number))

    with pytest.raises(MixError, match=r"a loop calls unet with timestep 812\.25, which is none of"):
        gains(unet, "linear(0, 1)", loop)
    mixer: Any = unet.mixer
    ones = {"unet.layer.lora_A.weight": torch.ones(1, 1), "unet.layer.lora_B.weight": torch.ones(1, 1)}
    mixer.load_lora_weights(ones, "b", activate=False)
    with mixer.applied("a:1, b:1 | composite"):
        loop()
    with mixer.applied("a:1, b:1 | switch"), pytest.raises(MixError, match="Switch goes by the steps"):
        loop()


class Shared(Denoiser):
    """A denoiser that notes, for each thread, what it computed with from begin to end of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[tuple[float, ...]]] = {}

    def forward(
        self, sample: torch.Tensor, timestep: Any, cross_attention_kwargs: Any = None
    ) -> torch.Tensor:
        del timestep, cross_attention_kwargs
        ones = torch.ones(len(sample), 1)
        computed = {round(float(self.layer(ones)[0].detach()) - self.base, 3) for _ in range(40)}
        self.seen.setdefault(threading.get_ident(), []).append(tuple(sorted(computed)))
        return torch.zeros_like(sample)


@pytest.mark.parametrize("engine", ["merged", "side"])
@pytest.mark.parametrize("what", ["schedule", "scale", "one has a scale"])
def test_threads_that_share_a_denoiser_have_their_own_steps_and_scales(engine: Any, what: str) -> None:
    unet = Shared()
    mixer = LoraMixer(Pipeline(unet, EulerDiscreteScheduler(**BETAS)))
    ones = {"unet.layer.lora_A.weight": torch.ones(1, 1), "unet.layer.lora_B.weight": torch.ones(1, 1)}
    mixer.load_lora_weights(ones, "a")
    mixer.set_mix({"a": {"schedule": "linear(0, 1)"}} if what == "schedule" else {"a": 1.0}, engine=engine)
    found: dict[int, list[tuple[float, ...]]] = {}
    barrier = threading.Barrier(2)
    scales = {"schedule": (None, None), "scale": (0.25, 0.5), "one has a scale": (0.25, None)}[what]

    def run(steps: int, scale: float | None) -> None:
        pipe = Pipeline(unet, EulerDiscreteScheduler(**BETAS))
        own: Any = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
        barrier.wait()
        if what == "schedule":
            pipe(steps)
        else:
            for step in range(steps):
                unet(torch.zeros(1, 4, 2, 2), step, **own)
        found[steps] = unet.seen[threading.get_ident()]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=run, args=(steps, scale))
            for steps, scale in zip((9, 6), scales, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    for steps, scale in zip((9, 6), scales, strict=True):
        each = [step / (steps - 1) for step in range(steps)] if what == "schedule" else [scale or 1.0] * steps
        assert found[steps] == [(round(gain, 3),) for gain in each]
    mixer.unload_lora_weights()
