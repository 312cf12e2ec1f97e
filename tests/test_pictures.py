"""Pictures from requests: the same bytes whatever they are made beside, watched, stopped, in grids."""

from __future__ import annotations

import itertools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lora_mixer import (
    AdapterNameError,
    GridAxis,
    LoraMixer,
    Mix,
    MixError,
    PictureCancelled,
    PictureError,
    PictureMaker,
    PictureRequest,
    demo_adapters,
    grid_requests,
    grid_sheet,
    load_pipeline,
)
from lora_mixer.mixes import block_layouts
from lora_mixer.pictures.batching import batches
from lora_mixer.pictures.preview import heading_for, noise_levels
from tests.models import tiny_sdxl

STEPS = 2


@pytest.fixture(scope="module")
def mixer():
    mixer = LoraMixer(load_pipeline("demo", device="cpu"))
    for name in ("ink", "neon", "watercolor"):
        mixer.load_lora_weights(demo_adapters()[name].path, adapter_name=name)
    mixer.disable_lora()
    return mixer


def maker(mixer, batch_size=1):
    return PictureMaker(mixer, batch_size=batch_size, defaults={"steps": STEPS, "guidance_scale": 3.0})


def made(mixer, requests, batch_size=1, **options):
    """Pictures in the order of their requests."""
    return sorted(maker(mixer, batch_size).make(requests, **options), key=lambda picture: picture.index)


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def test_a_request_is_resolved_with_the_makers_defaults_and_its_own_fields(mixer):
    wanted = maker(mixer).resolve(PictureRequest("a castle", seed=5, steps=3))

    assert (wanted.steps, wanted.guidance_scale, wanted.seed) == (3, 3.0, 5)
    assert maker(mixer).resolve(PictureRequest("a castle")).steps == STEPS


def test_a_request_gives_what_a_plain_call_of_the_pipeline_gives(mixer):
    (picture,) = made(mixer, [PictureRequest("a castle", "blurry", seed=5, mix={"ink": 0.8})])
    with mixer.applied({"ink": 0.8}):
        plain = mixer.pipe(
            "a castle",
            negative_prompt="blurry",
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(5),
        ).images[0]

    assert picture.image.tobytes() == plain.tobytes()
    assert (picture.request.steps, picture.request.width, picture.request.height) == (STEPS, 128, 128)


def test_a_picture_does_not_depend_on_what_is_made_before_or_after(mixer):
    asked = [
        PictureRequest("a castle", seed=1, mix={"ink": 1}),
        PictureRequest("an owl", seed=2, mix={"neon": 1, "ink": -0.3}),
        PictureRequest("a castle", seed=1),
        PictureRequest("a boat", seed=3, mix={"ink": 1}, steps=1),
    ]
    together = made(mixer, asked)
    alone = [made(mixer, [request])[0] for request in reversed(asked)][::-1]

    assert [p.image.tobytes() for p in together] == [p.image.tobytes() for p in alone]
    assert len({p.image.tobytes() for p in together}) == 4


def test_a_batch_of_different_mixes_equals_single_pictures_within_a_level(mixer):
    asked = [PictureRequest("a castle", seed=n, mix={"ink": n / 2, "watercolor": 0.4}) for n in range(3)]

    batch, single = made(mixer, asked, batch_size=3), made(mixer, asked)

    assert [p.batch for p in batch] == [3, 3, 3]
    assert max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(batch, single, strict=True)) <= 1


def test_requests_of_other_sizes_do_not_share_a_batch(mixer):
    asked = [
        PictureRequest("a castle"),
        PictureRequest("a castle", width=64, height=64),
        PictureRequest("an owl"),
    ]

    pictures = made(mixer, asked, batch_size=4)

    assert [p.batch for p in pictures] == [2, 1, 2]
    assert [p.image.size for p in pictures] == [(128, 128), (64, 64), (128, 128)]


def test_mixes_without_a_low_rank_form_share_a_batch_too(mixer):
    whole = {"unet.conv_in.diff": torch.full(tuple(mixer.pipe.unet.conv_in.weight.shape), 0.01)}
    mixer.load_lora_weights(whole, adapter_name="whole")
    mixer.disable_lora()
    asked = [PictureRequest("a castle", mix={"whole": 1}), PictureRequest("a castle", mix={"ink": 1})]
    try:
        pictures = made(mixer, asked, batch_size=2)
        alone = made(mixer, asked)
    finally:
        mixer.delete_adapters("whole")

    assert [p.batch for p in pictures] == [2, 2]
    for shared, one in zip(pictures, alone, strict=True):  # in a batch sums are made in another order
        assert np.abs(np.asarray(shared.image, int) - np.asarray(one.image, int)).max() <= 1
    assert np.abs(np.asarray(alone[0].image, int) - np.asarray(alone[1].image, int)).max() > 10


def test_tags_in_the_prompt_join_the_mix(mixer):
    tagged, said = made(
        mixer,
        [PictureRequest("a castle <lora:ink:0.5>"), PictureRequest("a castle", mix={"ink": 0.5})],
    )

    assert tagged.image.tobytes() == said.image.tobytes()
    assert tagged.request.prompt == "a castle"


def test_every_step_is_told_and_can_be_looked_at(mixer):
    seen = []

    (picture,) = made(
        mixer,
        [PictureRequest("a castle", steps=3)],
        on_step=lambda step: seen.append((step, step.previews())),
    )

    assert [(report.step, report.steps, report.indices) for report, _ in seen] == [
        (n, 3, (0,)) for n in (1, 2, 3)
    ]
    last = np.asarray(seen[-1][1][0]).astype(int)
    assert np.abs(last - pixels(picture)).mean() < 2  # the last step's clean latents are the picture


def test_whoever_stops_a_picture_ends_it_within_the_step_and_the_base_is_back(mixer):
    before = [p.clone() for p in mixer.pipe.unet.parameters()]
    steps = []

    def stop(report):
        steps.append(report.step)
        raise PictureCancelled

    with pytest.raises(PictureCancelled):
        made(mixer, [PictureRequest("a castle", steps=5, mix={"ink": 1})], on_step=stop)

    assert steps == [1]
    assert all(torch.equal(a, b) for a, b in zip(before, mixer.pipe.unet.parameters(), strict=True))


def test_mistakes_are_found_before_the_first_picture(mixer):
    good = PictureRequest("a castle")

    with pytest.raises(AdapterNameError, match="oil"):
        maker(mixer).make([good, PictureRequest("a castle", mix={"oil": 1})])
    with pytest.raises(MixError, match="oil"):
        maker(mixer).make([good, PictureRequest("a castle <lora:oil:1>")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": 1.5}, "seed"),
        ({"steps": 0}, "steps"),
        ({"width": 10**9}, "width"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"prompt": 3}, "prompt: expected text"),
    ],
)
def test_a_request_that_cannot_be_is_refused(values, message):
    with pytest.raises(PictureError, match=message):
        PictureRequest(**{"prompt": "a castle", **values})


def test_all_mistakes_of_a_request_are_told_at_once():
    with pytest.raises(PictureError) as caught:
        PictureRequest("x", seed=-1, steps=0, guidance_scale=float("inf"))

    assert all(name in str(caught.value) for name in ("seed", "steps", "guidance_scale"))


def test_an_unknown_default_is_refused(mixer):
    with pytest.raises(PictureError, match="hue"):
        PictureMaker(mixer, defaults={"hue": "red"})


# --- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_says_what_each_cell_is():
    base = PictureRequest("a red castle", mix="ink:0.3, neon:1")

    cells = grid_requests(base, GridAxis("te", (0, 1), "ink"), GridAxis("blocks", ("OUTALL", "INS"), "neon"))
    named = grid_requests(base, GridAxis("adapter", ("", "ink")), GridAxis("prompt", ("red", "blue")))

    assert [cell.mix.to_text() for cell in cells] == [
        "ink:0.3,te=0, neon:1,blocks=OUTALL",
        "ink:0.3,te=1, neon:1,blocks=OUTALL",
        "ink:0.3,te=0, neon:1,blocks=INS",
        "ink:0.3,te=1, neon:1,blocks=INS",
    ]
    assert [(cell.prompt, cell.mix.to_text()) for cell in named] == [
        ("a red castle", ""),
        ("a red castle", "ink:0.3"),
        ("a blue castle", ""),
        ("a blue castle", "ink:0.3"),
    ]


def test_a_weight_axis_changes_every_component():
    (cell,) = grid_requests(
        PictureRequest("x", mix={"a": {"unet": 0.2, "te": 0.1}}), GridAxis("weight", (0.5,), "a")
    )

    assert cell.mix == Mix.of({"a": 0.5})


@pytest.mark.parametrize("part", ["unet", "transformer", "transformer_2", "te"])
def test_an_axis_can_be_the_weight_in_one_part_of_the_pipeline(part):
    axis = GridAxis.read(part, "0, 0.5", "a")
    cells = grid_requests(PictureRequest("x", mix="a:0.8"), axis)

    assert axis.labels == (f"a {part} 0", f"a {part} 0.5")
    assert [cell.mix.gain("a", "text_encoder" if part == "te" else part, "x") for cell in cells] == [0.0, 0.5]


@pytest.mark.parametrize(("family", "part"), [("flux", "transformer"), ("sd", "unet"), (None, "unet")])
@pytest.mark.parametrize("label", ["adapter's denoiser weight", "adapter's UNet weight"])
def test_the_pages_axis_of_the_denoiser_is_that_of_the_model_that_is_there(family, part, label):
    compare = pytest.importorskip("ui.handlers.compare")
    paths = {
        "flux": {"transformer": ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]},
        "sd": {"unet": ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0"]},
    }
    layout = None if family is None else next(iter(block_layouts(paths[family]).values()))
    given = {"columns-kind": label, "columns-values": "0-1", "columns-adapter": "a"}

    axis = compare.read_axis(SimpleNamespace(layout=layout), given, "columns")

    assert (axis.kind, axis.values) == (part, (0.0, 1.0))


def test_an_axis_shows_the_names_that_it_is_given():
    axis = GridAxis("mix", ("", "ink:0.5,te=0.2"), names=("base", "ink"))

    assert axis.labels == ("base", "ink")
    with pytest.raises(PictureError, match="2 values and 1 names"):
        GridAxis("seed", (1, 2), names=("one",))


def test_a_sheet_holds_the_cells_under_their_labels():
    columns, rows = GridAxis("seed", (1, 2, 3)), GridAxis("steps", (4, 5))
    cells = [Image.new("RGB", (32, 32), (n * 40, 0, 0)) for n in range(6)]

    sheet = grid_sheet(cells, columns, rows)

    right = sheet.width - 20
    assert sheet.getpixel((right, sheet.height - 20)) == (200, 0, 0)
    assert sheet.getpixel((right, sheet.height - 20 - 36)) == (80, 0, 0)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (lambda: GridAxis("size", (1,)), "axis must be one of"),
        (lambda: GridAxis("weight", (1,)), "needs the name"),
        (lambda: GridAxis("seed", ()), "no values"),
        (lambda: grid_requests(PictureRequest("x"), GridAxis("seed", range(500))), "at most 400"),
        (
            lambda: grid_requests(PictureRequest("x"), GridAxis("prompt", ("red", "blue"))),
            "not in the prompt",
        ),
    ],
)
def test_axes_that_make_no_sense_are_refused(axis, message):
    with pytest.raises(PictureError, match=message):
        axis()


def test_axes_are_read_as_people_write_them():
    assert GridAxis.read("weight", "0-1 [3]", "ink").values == (0.0, 0.5, 1.0)
    assert GridAxis.read("weight", "-1-1 (+1)", "ink").values == (-1.0, 0.0, 1.0)
    assert GridAxis.read("seed", "3-1").values == (3, 2, 1)
    assert GridAxis.read("adapter", "base, ink").values == ("", "ink")
    assert GridAxis.read("mix", "base; ink:1, neon:0.5").values == ("", "ink:1, neon:0.5")
    assert GridAxis.read("blocks", "OUTALL, [1,0,0]", "ink").values == ("OUTALL", [1.0, 0.0, 0.0])
    for kind, text in (
        ("weight", "0-1 (-0.5)"),
        ("weight", "nan"),
        ("seed", "1.5"),
        ("weight", "0-1 (+0.0000001)"),
    ):
        with pytest.raises(ValueError, match=f"axis {kind}"):
            GridAxis.read(kind, text, "ink")
    assert json.dumps(GridAxis.read("guidance", "1, 2.5").values) == "[1.0, 2.5]"


# --- previews ---------------------------------------------------------------------------------------------------------


def test_two_mixtures_of_one_picture_and_noise_give_the_picture():
    torch.manual_seed(0)
    clean, noise = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    levels = [(0.1, 0.995), (0.6, 0.8)]
    before, after = (a * clean + s * noise for a, s in levels)

    torch.testing.assert_close(heading_for(before, after, *levels), clean)


def test_every_kind_of_scheduler_tells_its_levels():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
    from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

    for kind in (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatch):
        scheduler = kind()
        scheduler.set_timesteps(6)
        levels = noise_levels(scheduler)

        assert len(levels) == 7
        assert levels[-1] == (1.0, 0.0)
        assert all(a[1] / max(a[0], 1e-9) >= b[1] / max(b[0], 1e-9) for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"guidance_scale": 2.0}, {"width": 64}, {"height": 64}, {"negative_prompt": "blur"}],
)
def test_pictures_that_need_another_call_share_no_batch(change):
    asked = [PictureRequest("a"), PictureRequest("b", **change), PictureRequest("c", seed=1)]

    assert batches(asked, 4) == [[0, 2], [1]]


def test_pictures_say_nothing_of_empty_lists_and_something_of_others(caplog):
    mixer = LoraMixer(tiny_sdxl())
    decode = mixer.pipe.vae.decode

    def cast_first(*args, **kwargs):  # as diffusers does with a VAE in float16
        for modules in ([], ["decoder"]):
            mixer.pipe.vae._keep_in_fp32_modules = modules
            mixer.pipe.vae.to(torch.float32)
        return decode(*args, **kwargs)

    mixer.pipe.vae.decode = cast_first
    logger = logging.getLogger("diffusers.models.modeling_utils")
    filters = list(logger.filters)
    logger.addHandler(caplog.handler)
    try:
        list(PictureMaker(mixer).make([PictureRequest("a cat", seed=1, steps=1, width=32, height=32)]))
    finally:
        logger.removeHandler(caplog.handler)

    (said,) = set(caplog.messages)
    assert "kept in float32: ['decoder']" in said
    assert logger.filters == filters
