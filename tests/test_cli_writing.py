"""``convert``, ``merge``, ``resize``, ``extract`` and ``bake``, run as users run them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_mixer import LoraMixer, Mix
from lora_mixer.cli._app import app
from lora_mixer.cli._lora_option import split_weights
from lora_mixer.families.skeleton import UNETS, of_family
from lora_mixer.merging import METHODS
from tests.test_writing import make_lora, sd_pipe, weights_of, worst


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def good(*arguments):
    code, output = call(*arguments)
    assert code == 0, output
    return output


@pytest.fixture
def model(tmp_path):
    """A diffusers folder of the parts that adapters reach."""
    pipe = sd_pipe()
    folder = tmp_path / "model"
    for part in ("unet", "text_encoder"):
        pipe.components[part].save_pretrained(folder / part)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed, name in enumerate(("a", "b")):
        path = tmp_path / f"{name}.safetensors"
        save_file(make_lora(sd_pipe(), seed=seed), path, {"modelspec.trigger_phrase": name})
        paths.append(path)
    return paths


def mixed(files, mix):
    """The weights of a live mix."""
    mixer = LoraMixer(sd_pipe())
    for file in files:
        mixer.load_lora_weights(file, adapter_name=file.stem, strict=True)
    mixer.set_mix(mix)
    return weights_of(mixer.pipe)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_convert_there_and_back_keeps_every_bit(tmp_path, model, files, form):
    good("convert", files[0], tmp_path / "x.safetensors", "--to", form, "--model", model)
    good("convert", tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--to", "kohya", "--model", model)

    assert worst(mixed([tmp_path / "y.safetensors"], "y:1"), mixed(files[:1], "a:1")) == 0
    back, source = load_file(tmp_path / "y.safetensors"), load_file(files[0])
    for key, tensor in source.items():
        assert torch.equal(back[key.replace("lora_te1_", "lora_te_text_model_")], tensor.float()), key
    with safe_open(tmp_path / "y.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "a"


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_merge_is_the_live_mix(tmp_path, model, files, form):
    out = tmp_path / "m.safetensors"
    good(
        "merge", f"{files[0]}:te=0.2,unet=0.7", f"{files[1]}:-0.4", "-o", out, "--to", form, "--model", model
    )

    assert worst(mixed([out], "m:1"), mixed(files, "a:te=0.2,unet=0.7, b:-0.4")) < 2e-6
    with safe_open(out, "pt") as file:
        assert Mix.of(file.metadata()["lora_mixer.mix"]) == Mix.of("a:te=0.2,unet=0.7, b:-0.4")
        assert set(json.loads(file.metadata()["lora_mixer.adapters"])) == {"a", "b"}


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties", "della", "breadcrumbs", "magnitude"])
def test_merge_by_dense_methods_needs_a_rank_and_repeats_itself(tmp_path, model, files, method):
    common = ["merge", *files, "--method", method, "--model", model, "--seed", 3]
    code, output = call(*common, "-o", tmp_path / "x.safetensors")
    assert code == 2
    assert "--rank" in output

    for name in "xy":
        assert "error at most" in good(*common, "-o", tmp_path / f"{name}.safetensors", "--rank", 3)

    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["knots", "orthogonal"])
def test_merge_by_low_rank_methods_needs_none(tmp_path, model, files, method):
    good("merge", *files, "--method", method, "--model", model, "-o", tmp_path / "x.safetensors")

    assert worst(mixed([tmp_path / "x.safetensors"], "x:1"), mixed(files, "a:1, b:1")) > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "della", "--epsilon", 0.2], "della(density=0.5, epsilon=0.2"),
        (["--method", "breadcrumbs", "--outliers", 0.2], "outliers=0.2"),
        (
            ["--method", "ties", "--majority", "frequency", "--lambda", 2],
            "majority=frequency, average=count, scale=2.0",
        ),
        (
            ["--method", "ties(average=weights)", "--density", 0.2],
            "ties(density=0.2, majority=total, average=weights",
        ),
    ],
)
def test_every_setting_of_a_method_has_an_option(tmp_path, model, files, options, said):
    good("merge", *files, *options, "--rank", 2, "--model", model, "-o", tmp_path / "x.safetensors")

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert said in file.metadata()["lora_mixer.method"]
    code, output = call("merge", *files, "--density", 0.2, "--model", model, "-o", tmp_path / "y.safetensors")
    assert code == 2
    assert "sum has no setting 'density'" in output


def test_the_help_of_merge_comes_from_the_table():
    output = good("merge", "--help")

    for name, spec in METHODS.items():
        assert name in output
        for setting in spec.settings:
            option = "--lambda" if setting.name == "scale" else f"--{setting.name}"
            assert option in output


def test_block_weights_with_a_colon_belong_to_their_file():
    source, weights = split_weights("a/x.safetensors:0.5,blocks=b-lora:style")
    assert source == "a/x.safetensors"
    assert weights == Mix.of("x:0.5,blocks=b-lora:style")["x"]
    assert split_weights("a=b.safetensors:0.5") == ("a=b.safetensors", Mix.of("x:0.5")["x"])
    assert split_weights("https://host/?a=b:0.5")[0] == "https://host/?a=b"


def test_resize_cuts_ranks(tmp_path, model, files):
    out = tmp_path / "r.safetensors"

    assert "rank 1" in good("resize", files[0], "-o", out, "--rank", 1, "--model", model)
    assert "exact" not in good("resize", files[0], "-o", out, "--energy", 0.9, "--model", model)
    code, output = call("resize", files[0], "-o", out, "--model", model)
    assert (code, "--rank, --energy or --sv-ratio" in output) == (2, True)


def test_extract_finds_what_was_put_in(tmp_path, model, files):
    tuned = tmp_path / "tuned"
    mixer = LoraMixer(sd_pipe())
    mixer.load_lora_weights(files[0])
    for part in ("unet", "text_encoder"):
        mixer.pipe.components[part].save_pretrained(tuned / part)
    (tuned / "model_index.json").write_text((model / "model_index.json").read_text())

    good("extract", model, tuned, "-o", tmp_path / "x.safetensors", "--rank", 4)

    assert worst(mixed([tmp_path / "x.safetensors"], "x:1"), mixed(files[:1], "a:1")) < 1e-5
    code, output = call("extract", model, model, "-o", tmp_path / "y.safetensors", "--rank", 4)
    assert (code, "weight for weight" in output) == (2, True)


def test_extract_says_what_has_no_place(tmp_path, model):
    tuned = tmp_path / "tuned"
    pipe = sd_pipe()
    with torch.no_grad():
        pipe.unet.conv_in.weight += 0.1
        pipe.unet.conv_norm_out.weight += 0.1
    for part in ("unet", "text_encoder"):
        pipe.components[part].save_pretrained(tuned / part)
    (tuned / "model_index.json").write_text((model / "model_index.json").read_text())
    common = ["extract", model, tuned, "-o", tmp_path / "x.safetensors", "--rank", 1]

    for form in ("diffusers", "peft"):
        out = tmp_path / f"x-{form}"
        code, output = call("extract", model, tuned, "-o", out, "--rank", 1, "--to", form)
        assert code == 2
        assert "unet.conv_norm_out" in output
        assert not out.exists()
    assert "left out" in good(*common, "--pairs-only")
    assert set(load_file(tmp_path / "x.safetensors")) == {
        "unet.conv_in.lora_A.weight",
        "unet.conv_in.lora_B.weight",
    }
    # what no other format holds is written in the one that does, when none is asked for
    for options in ([], ["--to", "kohya"]):
        (tmp_path / "x.safetensors").unlink()
        assert "kohya" in good(*common, *options)
        mixer = LoraMixer(sd_pipe())
        mixer.load_lora_weights(tmp_path / "x.safetensors", strict=True)
        assert worst(weights_of(mixer.pipe), weights_of(pipe)) < 1e-6


def test_bake_puts_the_mix_into_a_folder(tmp_path, shared_data):
    source = shared_data / "generated" / "kohya_sd_scripts" / "kohya_sd_lora.safetensors"
    out = tmp_path / "baked"

    good("bake", "--model", shared_data / "tiny-sd", "--lora", f"{source}:0.5", "-o", out)

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(shared_data / "tiny-sd")
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(source, adapter_name="a")
    mixer.set_adapters("a", 0.5)
    baked = DiffusionPipeline.from_pretrained(out)
    for part in ("unet", "text_encoder"):
        mine, theirs = getattr(pipe, part).state_dict(), getattr(baked, part).state_dict()
        assert worst(mine, theirs) == 0
    assert json.loads((out / "lora_mixer.json").read_text())["mix"] == "kohya_sd_lora:0.5"
    code, output = call("bake", "--model", shared_data / "tiny-sd", "--lora", source, "-o", out)
    assert (code, "not an empty folder" in output) == (2, True)


FULL = {
    "SD 1.x": "fullsize_sd15_kohya_lora_conv",
    "SD 2.x": "fullsize_sd21_kohya_lora_r8",
    "SDXL": "fullsize_sdxl_kohya_lora_r32_sai",
}


@pytest.mark.parametrize("family", UNETS)
def test_full_size_names_survive_the_way_through_diffusers_names(tmp_path, shared_data, family):
    """Real key lists, written as diffusers and as Kohya again, without any pipeline or --model."""
    keys = json.loads((shared_data / "keys" / f"{FULL[family]}.json").read_text())["keys"]
    modules = sorted({key.partition(".")[0] for key in keys})
    chosen = set(modules[:: max(len(modules) // 60, 1)]) | {m for m in modules if m.endswith("attn2_to_k")}
    tensors = {}
    for module in sorted(chosen):
        down, up = keys[f"{module}.lora_down.weight"], keys[f"{module}.lora_up.weight"]
        tensors[f"{module}.lora_down.weight"] = torch.randn(1, *down[1:], dtype=torch.float16)
        tensors[f"{module}.lora_up.weight"] = torch.randn(up[0], 1, *up[2:], dtype=torch.float16)
        tensors[f"{module}.alpha"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "k.safetensors")

    good("convert", tmp_path / "k.safetensors", tmp_path / "d.safetensors", "--to", "diffusers")
    good("convert", tmp_path / "d.safetensors", tmp_path / "again.safetensors", "--to", "kohya")

    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_adapters_of_different_bases_are_not_merged(tmp_path):
    paths = []
    for width in (768, 2048):
        name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
        path = tmp_path / f"{width}.safetensors"
        save_file(
            {f"{name}.lora_down.weight": torch.ones(1, width), f"{name}.lora_up.weight": torch.ones(1280, 1)},
            path,
        )
        paths.append(path)

    code, output = call("merge", *paths, "-o", tmp_path / "x.safetensors")

    assert code == 2
    assert "different bases" in output


def test_dotted_files_of_other_bases_go_by_their_own_names(tmp_path):
    tensors = {
        "transformer.blocks.0.attn.to_q.lora_A.weight": torch.randn(2, 6),
        "transformer.blocks.0.attn.to_q.lora_B.weight": torch.randn(5, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")

    good("merge", f"{tmp_path / 'a.safetensors'}:0.5", "-o", tmp_path / "m.safetensors")

    merged = load_file(tmp_path / "m.safetensors")
    name = "transformer.blocks.0.attn.to_q"
    before = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    assert torch.allclose(merged[f"{name}.lora_B.weight"] @ merged[f"{name}.lora_A.weight"], 0.5 * before)


def test_embeddings_in_a_file_are_not_lost_without_a_word(tmp_path, model, files):
    tensors = load_file(files[0]) | {"bundle_emb.tok.string_to_param.*": torch.ones(1, 8)}
    save_file(tensors, tmp_path / "c.safetensors")

    code, output = call(
        "convert", tmp_path / "c.safetensors", tmp_path / "d", "--to", "diffusers", "--model", model
    )

    assert code == 2
    assert "bundle_emb.tok" in output


@pytest.mark.parametrize("family", UNETS)
def test_skeletons_cost_no_memory(family):
    skeleton = of_family(family)

    assert all(p.is_meta for module in skeleton.components.values() for p in module.parameters())
