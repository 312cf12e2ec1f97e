"""Samplers and schedules by the names that people and programs use, as diffusers' own schedulers."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from lora_mixer import LoraMixer, PictureError, PictureMaker, PictureRequest, PictureSettings
from lora_mixer.picture_metadata import read_picture, recalled_request
from lora_mixer.pictures import SAMPLERS, SCHEDULES, propose, usual_name
from lora_mixer.pictures.samplers import ays_timesteps, make_scheduler, read_sampler
from tests.models import tiny_sd, tiny_sdxl

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"width": 16, "height": 16}
# numpy of torch's tensors inside of diffusers' KDPM2
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(scope="module")
def mixer():
    return LoraMixer(tiny_sd())


def picture(mixer, **fields):
    (made,) = PictureMaker(mixer).make([PictureRequest("a castle", seed=3, **{"steps": 3, **SIZE, **fields})])
    return made


def by_hand(scheduler, **arguments):
    pipe = tiny_sd()
    pipe.scheduler = scheduler(pipe.scheduler.config)
    return np.asarray(
        pipe("a castle", generator=torch.Generator().manual_seed(3), **SIZE, **({"num_inference_steps": 3} | arguments))
        .images[0]
    )  # fmt: skip


# Written from diffusers' documentation of its schedulers, not from the table.
DOCUMENTED = {
    "Euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "DPM++ 2M": diffusers.DPMSolverMultistepScheduler.from_config,
    "DPM++ 2M Karras": lambda c: diffusers.DPMSolverMultistepScheduler.from_config(c, use_karras_sigmas=True),
    "dpmpp_2m_sde_k": lambda c: diffusers.DPMSolverMultistepScheduler.from_config(
        c, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    ),
    "LMS Karras": lambda c: diffusers.LMSDiscreteScheduler.from_config(c, use_karras_sigmas=True),
    "Heun": diffusers.HeunDiscreteScheduler.from_config,
    "DPM2 a Karras": lambda c: diffusers.KDPM2AncestralDiscreteScheduler.from_config(
        c, use_karras_sigmas=True
    ),
    "DDIM": diffusers.DDIMScheduler.from_config,
    "UniPC": diffusers.UniPCMultistepScheduler.from_config,
    "LCM": diffusers.LCMScheduler.from_config,
    "TCD": diffusers.TCDScheduler.from_config,
    "DEISMultistepScheduler": diffusers.DEISMultistepScheduler.from_config,
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_named_sampler_is_diffusers_own(mixer, name):
    own = mixer.pipe.scheduler

    made = picture(mixer, sampler=name)

    assert np.array_equal(np.asarray(made.image), by_hand(DOCUMENTED[name]))
    assert made.request.sampler == name
    assert mixer.pipe.scheduler is own


@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("beta", {"use_beta_sigmas": True}),
        ("SGM Uniform", {"timestep_spacing": "trailing"}),
        ("trailing, zero snr", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
        ("v-prediction", {"prediction_type": "v_prediction"}),
    ],
)
def test_a_schedule_is_what_the_scheduler_is_told(mixer, schedule, config):
    made = picture(mixer, sampler="Euler", schedule=schedule)

    expected = by_hand(lambda own: diffusers.EulerDiscreteScheduler.from_config(own, **config))
    assert np.array_equal(np.asarray(made.image), expected)


def test_a_schedule_alone_changes_the_pipelines_own_sampler(mixer):
    made = picture(mixer, schedule="karras")

    expected = by_hand(lambda own: diffusers.EulerDiscreteScheduler.from_config(own, use_karras_sigmas=True))
    assert np.array_equal(np.asarray(made.image), expected)


def test_a_plain_name_is_not_karras_though_the_pipelines_own_is(mixer):
    pipe = tiny_sd()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )

    made = picture(LoraMixer(pipe), sampler="DPM++ 2M")

    assert np.array_equal(np.asarray(made.image), by_hand(DOCUMENTED["DPM++ 2M"]))


def test_align_your_steps_takes_the_papers_timesteps(mixer):
    steps = diffusers.schedulers.AysSchedules["StableDiffusionTimesteps"]

    made = picture(mixer, sampler="Euler", schedule="ays", steps=10)

    expected = by_hand(DOCUMENTED["Euler"], num_inference_steps=None, timesteps=steps)
    assert np.array_equal(np.asarray(made.image), expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 17, 40])
@pytest.mark.parametrize("sdxl", [False, True])
def test_align_your_steps_falls_evenly_for_other_numbers_of_steps(steps, sdxl):
    own = tiny_sd().scheduler
    name = "StableDiffusionXLTimesteps" if sdxl else "StableDiffusionTimesteps"
    ten = diffusers.schedulers.AysSchedules[name]

    found = ays_timesteps(own, steps, name)

    assert len(found) == steps
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[0] == ten[0] or abs(found[0] - ten[0]) <= 1
    assert steps == 1 or abs(found[-1] - ten[-1]) <= 1


@pytest.mark.parametrize(
    ("part", "kind", "config", "xl"),
    [
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 768}, False),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 2048}, True),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": [1280]}, True),  # the refiner
        (
            "unet",
            "UNet2DConditionModel",
            {"cross_attention_dim": 64, "addition_embed_type": "text_time"},
            True,
        ),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 64}, False),
        # has two text encoders and is none of SDXL's kin
        ("transformer", "HunyuanDiT2DModel", {}, False),
        ("transformer", "SomebodysOwn", {}, False),
    ],
)
def test_align_your_steps_goes_by_the_family(part, kind, config, xl, mixer, monkeypatch):
    model = type(kind, (torch.nn.Module,), {})()
    model.config = SimpleNamespace(**config)
    maker = PictureMaker(mixer)
    components = {part: model, "text_encoder_2": torch.nn.Linear(2, 2)}
    monkeypatch.setattr("lora_mixer.pictures.maker.find_components", lambda pipe: components)

    steps = maker._ays(tiny_sd().scheduler, 10)

    name = "StableDiffusionXLTimesteps" if xl else "StableDiffusionTimesteps"
    assert steps == diffusers.schedulers.AysSchedules[name]


def test_pictures_of_other_samplers_share_no_call_and_each_has_its_own(mixer):
    asked = [
        PictureRequest("a castle", seed=3, steps=3, sampler=sampler, **SIZE)
        for sampler in ("Euler", "DDIM", None)
    ]

    made = sorted(PictureMaker(mixer, batch_size=4).make(asked), key=lambda each: each.index)

    assert [each.batch for each in made] == [1, 1, 1]
    assert np.array_equal(np.asarray(made[1].image), by_hand(DOCUMENTED["DDIM"]))
    assert made[2].request.sampler == "EulerDiscreteScheduler"


def test_after_a_stop_the_pipelines_own_scheduler_is_back(mixer):
    own = mixer.pipe.scheduler

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(PictureMaker(mixer).make([PictureRequest("x", steps=2, sampler="DDIM", **SIZE)], on_step=stop))
    assert mixer.pipe.scheduler is own


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_every_row_of_the_table_makes_a_scheduler_that_runs(row):
    kind = getattr(diffusers, row.scheduler)
    flow = "FlowMatch" in row.scheduler
    own = diffusers.FlowMatchEulerDiscreteScheduler() if flow else tiny_sd().scheduler

    for name in (row.name, *row.aliases, row.name.upper().replace(" ", "_")):
        made = make_scheduler(own, read_sampler(name))
        assert type(made) is kind
        assert all(made.config[key] == value for key, value in row.config.items())
    made.set_timesteps(4)
    assert len(made.timesteps) >= 4
    assert set(row.config) <= set(inspect.signature(kind.__init__).parameters)


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_the_usual_name_leads_back(row):
    made = make_scheduler(
        diffusers.FlowMatchEulerDiscreteScheduler() if "Flow" in row.scheduler else tiny_sd().scheduler,
        read_sampler(row.name),
    )

    name, word = usual_name(type(made).__name__, made.config)

    assert (read_sampler(name).scheduler, word) == (row.scheduler, "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "DPM++ 2N"}, r"did you mean DPM\+\+"),
        ({"sampler": "qqqqqq"}, "known are Euler"),
        ({"sampler": "NoSuchScheduler"}, 'no scheduler "NoSuchScheduler"'),
        ({"sampler": "UNet2DConditionModelScheduler"}, "no scheduler"),
        ({"schedule": "sideways"}, '"sideways" is unknown; known are normal, karras'),
        ({"schedule": "karras, beta"}, "exclude each other"),
        ({"sampler": "PLMS", "schedule": "karras"}, "PNDMScheduler cannot carry karras"),
        ({"sampler": "Heun Karras", "schedule": "zero_snr"}, "HeunDiscreteScheduler cannot carry zero_snr"),
        ({"sampler": "DDIM", "schedule": "ays"}, "DDIMScheduler takes no timesteps"),
        ({"sampler": "Flow Euler"}, "is for models of flow matching"),
        ({"sampler": "DPMSolverSDEScheduler"}, "torchsde"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_made(mixer, fields, message):
    own = mixer.pipe.scheduler

    with pytest.raises(PictureError, match=message) as caught:
        PictureMaker(mixer).make([PictureRequest("a castle", **SIZE, **fields)])

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert mixer.pipe.scheduler is own


def test_flow_models_take_samplers_that_can_carry_them_only():
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    made = make_scheduler(own, read_sampler("DPM++ 2M"))

    assert (made.config.use_flow_sigmas, made.config.flow_shift) == (True, 3.0)
    with pytest.raises(PictureError, match="flow matching"):
        make_scheduler(own, read_sampler("Euler a"))


def test_sdxl_takes_its_own_timesteps():
    mixer = LoraMixer(tiny_sdxl())
    asked = [PictureRequest("a", steps=10, sampler="Euler", schedule="ays", width=16, height=16)]
    seen = []

    list(
        PictureMaker(mixer).make(
            asked, on_step=lambda _: seen.append([int(t) for t in mixer.pipe.scheduler.timesteps])
        )
    )

    assert seen[0] == diffusers.schedulers.AysSchedules["StableDiffusionXLTimesteps"]


# --- out of pictures ---------------------------------------------------------------------------------------------------------

TEXTS = {
    "A1111": ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512",
              "DPMSolverMultistepScheduler", ("karras",)),
    "older A1111": ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512",
                    "EulerAncestralDiscreteScheduler", ()),
    "Forge": ("Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: SGM Uniform, CFG scale: 7, Seed: 1, Size: 512x512",
              "DPMSolverMultistepScheduler", ("trailing",)),
}  # fmt: skip


@pytest.mark.parametrize("program", TEXTS)
def test_samplers_of_other_programs_are_used_when_a_picture_is_recalled(program):
    text, scheduler, words = TEXTS[program]
    image = Image.new("RGB", (64, 64))
    image.info["parameters"] = f"a castle\n{text}"

    found = recalled_request(read_picture(image))

    choice = read_sampler(found.request.sampler, found.request.schedule)
    assert (choice.scheduler, choice.words) == (scheduler, words)
    assert {"sampler", "steps", "guidance_scale"} <= set(found.used)


def test_what_a_picture_says_and_cannot_be_used_is_told():
    settings = PictureSettings("a castle", seed=-1, sampler="DPM adaptive", width=4, extra={"ENSD": "31337"})

    found = recalled_request(settings)

    assert found.request == PictureRequest("a castle")
    told = " ".join(map(str, found.unused))
    assert all(word in told for word in ("seed", "DPM adaptive", "width", "ENSD"))


def test_a_picture_of_ours_has_names_that_others_know(tmp_path):
    from lora_mixer import infotext

    request = PictureRequest(
        "a castle", sampler="DPMSolverMultistepScheduler", schedule="karras", steps=5, seed=1
    )

    text = infotext(PictureSettings.of_request(request))

    assert "Sampler: DPM++ 2M, Schedule type: Karras" in text
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = text
    again = recalled_request(read_picture(image)).request
    assert read_sampler(again.sampler, again.schedule).scheduler == "DPMSolverMultistepScheduler"
    assert dataclasses.replace(again, sampler=None).schedule == "Karras"


# --- few steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "steps", "sampler"),
    [
        ("lcm-lora-sdv1-5", "LCM", 4, "LCM"),
        ("LCM_LoRA_SDXL.safetensors", "LCM", 4, "LCM"),
        ("sdxl_lightning_8step_lora.safetensors", "Lightning", 8, "Euler"),
        ("Hyper-SDXL-8steps-lora.safetensors", "Hyper-SD", 8, "DDIM"),
        ("Hyper-SD15-1step-lora.safetensors", "Hyper-SD", 1, "TCD"),
        ("Hyper-SDXL-12steps-CFG-lora", "Hyper-SD", 12, "DDIM"),
        ("dmd2_sdxl_4step_lora_fp16", "DMD2", 4, "LCM"),
        ("sd_xl_turbo_lora_v1", "Turbo", 4, "Euler a"),
        ("TCD-SDXL-LoRA", "TCD", 4, "TCD"),
        ("Qwen-Image-Lightning-8steps-V1.0", "Lightning", 8, None),
    ],
)
def test_adapters_of_few_steps_are_known_by_their_names(name, method, steps, sampler):
    found = propose(name)

    assert (found.method, found.steps, found.sampler) == (method, steps, sampler)
    if sampler is not None:
        read_sampler(found.sampler, found.schedule)


@pytest.mark.parametrize(
    "name", ["watercolor", "hyperrealism", "lightning strike", "turbocharger", "hyper detailed", ""]
)
def test_other_names_propose_nothing(name):
    assert propose(name) is None


def test_headers_tell_it_where_names_do_not():
    from types import SimpleNamespace

    from lora_mixer.pictures import propose_for

    infos = {
        "a": SimpleNamespace(source="x/a.safetensors", metadata={"modelspec.title": "Hyper-SDXL 4 steps"}),
        "b": SimpleNamespace(source="dir/lcm-lora.safetensors", metadata={}),
        "c": SimpleNamespace(source="lcm/c.safetensors", metadata={}),
    }

    assert {name: each.method for name, each in propose_for(infos).items()} == {"a": "Hyper-SD", "b": "LCM"}


def test_generate_says_and_takes_what_an_adapter_was_made_for(tmp_path):
    from typer.testing import CliRunner

    from lora_mixer.cli._app import app
    from lora_mixer.demo import demo_adapters

    lora = tmp_path / "ink_lcm_2step.safetensors"
    lora.write_bytes(demo_adapters()["watercolor"].path.read_bytes())
    arguments = ["generate", "--model", "demo", "--lora", str(lora), "--prompt", "x", "--seed", "1", "--out"]

    told = CliRunner().invoke(app, [*arguments, str(tmp_path / "a.png"), "--steps", "1"])
    CliRunner().invoke(app, [*arguments, str(tmp_path / "b.png"), "--as-proposed", "--guidance-scale", "2"])

    assert "is of the kind LCM, made for steps 2, guidance_scale 1.0, sampler LCM" in told.stdout
    assert read_picture(tmp_path / "a.png").sampler != "LCM"
    settings = read_picture(tmp_path / "b.png")
    assert (settings.steps, settings.guidance_scale, settings.sampler) == (2, 2.0, "LCM")


def test_the_table_in_the_docs_is_the_table():
    text = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")

    table = text.partition("## ")[0]
    rows = {match[1]: match[0] for match in re.finditer(r"^\| (.+?) \| .*$", table, re.MULTILINE)}
    for row in SAMPLERS:
        assert row.scheduler in rows[row.name]
        assert all(f"`{alias}`" in rows[row.name] for alias in row.aliases)
    assert all(f"`{word}`" in text for word in SCHEDULES)
