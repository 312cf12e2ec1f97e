"""Alphas, ranks and dtypes as trainers really write them: each blended weight equals its formula in fp64."""

from __future__ import annotations

import pytest
import torch

from lora_mixer import InvalidAdapterError, LoraMixer, PartialMatchWarning
from tests.models import sd_unet
from tests.spellings import kohya, state_dict
from tests.weights import Pair, Snapshot, deltas, random_pairs

KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
SD = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
KEY = "lora_unet_conv_in"


def attention_only(_: str, path: str) -> bool:
    return "attn" in path


def conv_in(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """A file of one module with rank 2, and what else it has."""
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(8, 2, 1, 1, generator=generator)
    return {
        f"{KEY}.lora_down.weight": down,
        f"{KEY}.lora_up.weight": up,
        **{f"{KEY}.{k}": v for k, v in extra.items()},
    }


def change(table: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    up, down = table[f"{KEY}.lora_up.weight"].double(), table[f"{KEY}.lora_down.weight"].double()
    return scale * (up.flatten(1) @ down.flatten(1))


def test_modules_without_alpha_have_scale_1_whatever_others_have(sd, sd_base):
    """A file with alpha on some modules: diffusers lends the others a wrong one."""
    pairs = {
        place: Pair(pair.up, pair.down, pair.alpha if number % 2 else None)
        for number, (place, pair) in enumerate(random_pairs(sd, attention_only).items())
    }
    table, _ = state_dict(pairs, kohya(SD), KOHYA)

    mixer = LoraMixer(sd)
    mixer.load_lora_weights(table, adapter_name="a")

    sd_base[1].assert_holds(sd, deltas(pairs))
    assert mixer.adapters["a"].alphas == (0.5, 1.0, 3.0)


@pytest.mark.parametrize(
    ("alpha", "value"),
    [
        (torch.tensor(1.0), 1.0),
        (torch.tensor(-3.0), -3.0),
        (torch.tensor(0.3).half(), float(torch.tensor(0.3).half())),
        (torch.tensor(0.3).bfloat16(), float(torch.tensor(0.3).bfloat16())),
        (torch.tensor([4.0]), 4.0),
        (torch.tensor([[4.0]]), 4.0),
        (torch.tensor(16), 16.0),
        (torch.tensor([8], dtype=torch.int32), 8.0),
        (torch.tensor(2.5).double(), 2.5),
        (torch.tensor(1.0).to(torch.float8_e4m3fn), 1.0),
    ],
    ids=str,
)
def test_alpha_is_read_in_any_dtype_and_shape_of_one_number(alpha, value, sd, sd_base):
    table = conv_in(alpha=alpha)

    mixer = LoraMixer(sd)
    mixer.load_lora_weights(table, adapter_name="a")

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): change(table, value / 2)})
    assert mixer.adapters["a"].alphas == (value,)


def test_alpha_0_changes_nothing_and_is_said(sd, sd_base):
    """Merge scripts, ComfyUI and A1111 agree on scale 0; a silent no-op would be a riddle."""
    mixer = LoraMixer(sd)
    report = mixer.load_lora_weights(conv_in(alpha=torch.tensor(0.0)), adapter_name="a")

    assert "1 of 1 modules have alpha 0" in str(report)
    for name, value in sd.unet.state_dict().items():
        assert torch.equal(value, sd_base[1].state[f"unet.{name}"]), name


def test_scale_overrides_alpha(sd, sd_base):
    table = conv_in(alpha=torch.tensor(7.0), scale=torch.tensor(0.25))

    LoraMixer(sd).load_lora_weights(table)

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): change(table, 0.25)})


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor(float("nan")), torch.tensor(float("inf"))],
    ids=str,
)
def test_an_alpha_that_is_no_finite_number_is_refused(alpha, sd, sd_base):
    with pytest.raises(InvalidAdapterError, match="lora_unet_conv_in: alpha"):
        LoraMixer(sd).load_lora_weights(conv_in(alpha=alpha))
    sd_base[1].assert_untouched(sd)


def test_an_orphan_alpha_is_reported_and_the_rest_loads(sd, sd_base):
    table = conv_in(alpha=torch.tensor(2.0))

    with pytest.warns(PartialMatchWarning, match=r"lora_unet_conv_out\.alpha"):
        report = LoraMixer(sd).load_lora_weights({**table, "lora_unet_conv_out.alpha": torch.tensor(4.0)})

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): change(table, 1.0)})
    assert list(report.unused_keys) == ["lora_unet_conv_out.alpha"]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_tensors_of_any_float_dtype_are_widened_before_they_are_multiplied(dtype, sd, sd_base):
    pairs = {p: Pair(x.up.to(dtype), x.down.to(dtype), x.alpha) for p, x in random_pairs(sd).items()}
    table, _ = state_dict(pairs, kohya(SD), KOHYA)

    mixer = LoraMixer(sd)
    mixer.load_lora_weights(table, adapter_name="a")

    sd_base[1].assert_holds(sd, deltas(pairs))
    assert mixer.adapters["a"].dtypes == (str(dtype).removeprefix("torch."),)


@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_a_base_of_another_dtype_is_rounded_once(base, dtype):
    """bf16 files on fp16 bases and the like: the sum is made wide, then rounded."""
    unet = sd_unet().to(base)
    clean = Snapshot.of(unet)
    pairs = {
        p: Pair(x.up.to(dtype), x.down.to(dtype), x.alpha)
        for p, x in random_pairs(unet, attention_only).items()
    }
    table, _ = state_dict(pairs, lambda _, path: path, KOHYA)

    mixer = LoraMixer(unet)
    mixer.load_lora_weights(table)

    clean.assert_holds(unet, deltas(pairs))
    mixer.unload_lora_weights()
    clean.assert_untouched(unet)


@pytest.mark.parametrize("linear", [True, False], ids=["model has Linear", "model has 1x1 convolution"])
def test_linear_and_1x1_convolution_are_one(linear):
    """T7: projections are Conv2d in SD 1.x and Linear in SD 2.x and SDXL; files of either shape fit both."""
    unet = sd_unet(linear=linear)
    clean = Snapshot.of(unet)
    pairs = random_pairs(
        unet, lambda _, path: path.endswith(("proj_in", "proj_out", "conv_shortcut", "to_q"))
    )
    table = {}
    for (_, path), pair in pairs.items():
        kernel = () if pair.down.ndim == 4 else (1, 1)  # the other way round than the module has it
        table[f"{path}.lora_down.weight"] = pair.down.reshape(*pair.down.shape[:2], *kernel)
        table[f"{path}.lora_up.weight"] = pair.up.reshape(*pair.up.shape, *kernel)
        table[f"{path}.alpha"] = torch.tensor(pair.alpha)

    LoraMixer(unet).load_lora_weights(table)

    clean.assert_holds(unet, deltas(pairs))


@pytest.mark.parametrize(
    "spelling",
    [
        *("lora_unet__conv_in", "lora_unet_unet_conv_in", "lora_unet.conv_in", "unet.conv_in", "conv_in"),
        *(
            "diffusion_model_input_blocks_0_0",
            "model.diffusion_model.input_blocks.0.0",
            "lora_unet_input_blocks_0_0",
        ),
        *("lora_transformer_conv_in", "transformer.base_model.model.conv_in"),
    ],
)
def test_odd_spellings_of_the_unet(spelling, sd, sd_base):
    table = {key.replace(KEY, spelling): value for key, value in conv_in(alpha=torch.tensor(1.0)).items()}

    LoraMixer(sd).load_lora_weights(table)

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): change(conv_in(), 0.5)})


@pytest.mark.parametrize(
    "spelling",
    [
        *("lora_te1.text_model.encoder.layers.1.mlp.fc1", "lora_te.text_model.encoder.layers.1.mlp.fc1"),
        *("lora_te_text_model_encoder_layers_1_mlp_fc1", "lora_te1_encoder_layers_1_mlp_fc1"),
        *(
            "text_encoder.encoder.layers.1.mlp.fc1",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1",
        ),
        *(
            "clip_l.text_model.encoder.layers.1.mlp.fc1",
            "text_encoder.base_model.model.text_model.encoder.layers.1.mlp.fc1",
        ),
    ],
)
@pytest.mark.parametrize("ends", [("lora_down", "lora_up"), ("lora_A", "lora_B")])
def test_odd_spellings_of_the_text_encoder(spelling, ends, sd, sd_base):
    ((place, pair),) = random_pairs(
        sd, lambda c, p: c == "text_encoder" and p.endswith("1.mlp.fc1"), alphas=False
    ).items()
    table = {f"{spelling}.{ends[0]}.weight": pair.down, f"{spelling}.{ends[1]}.weight": pair.up}

    LoraMixer(sd).load_lora_weights(table)

    sd_base[1].assert_holds(sd, {place: pair.delta()})


def test_the_callers_state_dict_is_left_alone_and_not_followed(sd, sd_base):
    """What a training loop does to its tensors afterwards does not reach the loaded adapter."""
    table = conv_in(alpha=torch.tensor(1.0))
    before = {key: value.clone() for key, value in table.items()}

    mixer = LoraMixer(sd)
    mixer.load_lora_weights(table, adapter_name="a")
    assert all(torch.equal(table[key], value) for key, value in before.items())
    for value in table.values():
        value.fill_(100)
    mixer.set_adapters("a", 0.5)

    sd_base[1].assert_holds(sd, {("unet", "conv_in"): change(before, 0.5)}, 0.5)
