"""Every command has ``--json``: what it writes to standard output is JSON, errors included."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_mixer.cli._app import app
from lora_mixer.demo import demo_adapters
from lora_mixer.picture_metadata import PictureSettings, save_picture
from tests.hub_standin import HubStandIn
from tests.models import tiny_sd
from tests.single_files import write_checkpoint

COMMANDS = typer.main.get_command(app).commands


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Return small files that commands work on, by name."""
    folder = tmp_path_factory.mktemp("things")
    torch.manual_seed(0)
    base = tiny_sd()
    write_checkpoint(base, folder / "base.safetensors")
    width = base.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    front = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {
        f"{front}.lora_down.weight": torch.randn(2, width),
        f"{front}.lora_up.weight": torch.randn(width, 2),
    }
    save_file(pair, folder / "a.safetensors")
    save_file({key: value * torch.randn(1) for key, value in pair.items()}, folder / "b.safetensors")
    base.unet.mid_block.attentions[0].proj_in.weight.data += 0.1
    write_checkpoint(base, folder / "tuned.safetensors")
    settings = PictureSettings(prompt="an owl", seed=3)
    save_picture(Image.new("RGB", (8, 8)), folder / "shown.png", settings)
    (folder / "plan.json").write_text(json.dumps({"jobs": [{"prompt": "an owl", "steps": 1, "seed": 1}]}))
    return folder


BASE = ("--model", "base.safetensors")
# What makes each command do something small, and which of its facts are looked at.
WORKS = {
    "inspect": (["a.safetensors"], lambda facts: facts[0]["format"] == "kohya"),
    "generate": (
        ["--model", "demo", "--prompt", "an owl", "--steps", 1, "--seed", 3, "--out", "@x.png"],
        lambda facts: facts["seed"] == 3,
    ),
    "batch": (["plan.json", "--dry-run", "--no-trial"], lambda facts: facts["pictures"] == 1),
    "convert": (
        ["a.safetensors", "@c.safetensors", "--to", "diffusers", *BASE],
        lambda facts: facts["format"] == "diffusers" and facts["worst_error"] == 0,
    ),
    "merge": (
        ["a.safetensors:0.5", "b.safetensors", "-o", "@m.safetensors", *BASE],
        lambda facts: list(facts["ranks"].values()) == [4],
    ),
    "resize": (
        ["a.safetensors", "-o", "@r.safetensors", "--rank", 1, *BASE],
        lambda facts: list(facts["ranks"].values()) == [1],
    ),
    "extract": (
        ["base.safetensors", "tuned.safetensors", "-o", "@e.safetensors", "--rank", 4],
        lambda facts: [key.endswith("mid_block.attentions.0.proj_in") for key in facts["ranks"]] == [True],
    ),
    "bake": (
        ["--model", "demo", "--lora", "demo:ink:0.5", "-o", "@baked"],
        lambda facts: facts["mix"] == "ink:0.5",
    ),
    "demo": (
        ["--out", "@d.png", "--steps", 1, "--subjects", "owl"],
        lambda facts: facts["restored"] is True and facts["steps"] == 1,
    ),
    "show": (["shown.png"], lambda facts: facts["seed"] == 3),
    "find": (["shown.png"], lambda facts: facts["adapters"] == {}),
    "doctor": ([], lambda facts: facts["model"]["name"] == "demo"),
    "bench": (
        ["--lora", "demo:ink", "--steps", 0, "--repeats", 1],
        lambda facts: facts["measurements"][-1]["value"] == 0,
    ),
}
# Calls that end in one of the package's errors.
FAILS = {
    "generate": ["--model", "gone.safetensors", "--prompt", "x"],
    "batch": ["gone.yaml"],
    "convert": ["gone.safetensors", "@y.safetensors", "--to", "kohya"],
    "merge": ["gone.safetensors", "-o", "@y.safetensors"],
    "resize": ["gone.safetensors", "-o", "@y.safetensors", "--rank", 1],
    "extract": ["gone.safetensors", "gone.safetensors", "-o", "@y.safetensors", "--rank", 1],
    "bake": ["--model", "gone.safetensors", "--lora", "demo:ink", "-o", "@y"],
    "push": ["me/x", "--model", "gone.safetensors", "--lora", "demo:ink"],
    "demo": ["--out", "x.bmp"],
    "show": ["gone.png"],
    "find": ["gone.png"],
    "doctor": ["--model", "gone.safetensors"],
    "bench": ["--lora", "gone.safetensors", "--steps", 0],
    "ui": ["--auth", "x"],
}


def test_every_command_has_it_and_is_tried_here():
    without = [
        name
        for name, command in COMMANDS.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    ]

    assert without == []
    assert set(COMMANDS) == set(WORKS) | {"ui", "push"} == set(FAILS) | {"inspect"}


def placed(argument, things):
    text = str(argument)
    if text.startswith("@"):
        return things / text[1:]
    return things / text if (things / text.partition(":")[0]).is_file() else text


@pytest.mark.parametrize("name", WORKS)
def test_what_is_written_is_json(name, things):
    arguments, holds = WORKS[name]

    result = run(name, *(placed(each, things) for each in arguments), "--json")

    assert result.exit_code == 0, result.stderr
    assert holds(json.loads(result.stdout)), result.stdout[:500]


@pytest.mark.parametrize("name", FAILS)
def test_an_error_is_an_object_and_a_line(name, things):
    result = run(name, *(placed(each, things) for each in FAILS[name]), "--json")

    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"].endswith("Error")
    assert error["message"]
    assert " ".join(error["message"].split())[:40] in " ".join(result.stderr.split())


def test_problems_of_an_error_are_values(things, tmp_path):
    from safetensors.torch import load_file

    save_file(
        {**load_file(things / "a.safetensors"), "something.else": torch.zeros(1)},
        tmp_path / "odd.safetensors",
    )
    result = run(
        "convert",
        tmp_path / "odd.safetensors",
        tmp_path / "o.safetensors",
        "--to",
        "diffusers",
        *(placed(each, things) for each in BASE),
        "--json",
    )

    (problem,) = json.loads(result.stdout)["error"]["problems"]
    assert (problem["place"], problem["reason"]) == ("something.else", "unread")
    assert problem["text"].startswith("something.else: ")
    assert "SaveProblem" not in result.stdout


def facts_of(result):
    facts = json.loads(result.stdout)
    return (facts if isinstance(facts, dict) else facts[0])["error"]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["inspect", "header.safetensors"], {"file": "@header.safetensors", "key": "a.lora_A.weight"}),
        (["inspect", "halves.safetensors"], {"file": "@halves.safetensors", "places": ["lora_unet_q", "lora_unet_r"]}),
        (["inspect", "gone.safetensors"], {"file": "gone.safetensors"}),
        (["convert", "halves.safetensors", "@o.safetensors", "--to", "kohya"], {"places": ["lora_unet_q", "lora_unet_r"]}),
        (["convert", "a.safetensors", "@o.safetensors", "--to", "sharp"], {"argument": "format"}),
        (["merge", "a.safetensors", "header.safetensors", "--out", "@o.safetensors", *BASE], {"key": "a.lora_A.weight"}),
        (["extract", "base.safetensors", "same.safetensors", "--out", "@o.safetensors", "--rank", 4], {"file": "@same.safetensors"}),
        (["generate", *BASE, "--loras", "no/such", "--prompt", "x", "--out", "@x.png"], {"argument": "loras", "places": ["no/such"]}),
        (["generate", *BASE, "--prompt", "x", "--lora", "a.safetensors:nowhere=1", "--out", "@x.png"], {"component": "nowhere"}),
        (["show", "bare.png"], {"file": "@bare.png"}),
        (["demo", "--out", "x.bmp"], {"argument": "out"}),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else None,
)  # fmt: skip
def test_an_error_has_what_it_is_about_as_fields(command, named, things):
    header = json.dumps(
        {"a.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 4]}}
    ).encode()
    (things / "header.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    halves = {f"lora_unet_{name}.lora_down.weight": torch.ones(2, 4) for name in "qr"}
    save_file(halves, things / "halves.safetensors")
    Image.new("RGB", (8, 8)).save(things / "bare.png")
    (things / "same.safetensors").write_bytes((things / "base.safetensors").read_bytes())

    error = facts_of(run(*(placed(each, things) for each in command), "--json"))

    told = {**error, "places": [problem["place"] for problem in error["problems"]]}
    assert {name: told[name] for name in named} == {
        name: str(placed(value, things)) if name == "file" else value for name, value in named.items()
    }
    assert error["message"].count(str(error["file"])) <= 1, error["message"]


def test_an_error_of_the_hub_has_the_repository_as_its_file(monkeypatch, tmp_path):
    with HubStandIn() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        error = facts_of(run("inspect", "user/nope", "--json"))

    assert (error["type"], error["file"]) == ("SourceNotFoundError", "user/nope")
    assert error["message"].count("user/nope") == 1


def test_the_page_says_where_it_is(monkeypatch, tmp_path):
    import lora_mixer.ui.app as page

    class Blocks:
        local_url, share_url, waited = "http://127.0.0.1:7861/", None, False

        def block_thread(self):
            Blocks.waited = True

    monkeypatch.setattr(page, "launch", lambda *_, block, **__: Blocks() if not block else None)

    result = run("ui", "--out", tmp_path, "--json")

    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["url"], facts["pictures"], Blocks.waited) == ("http://127.0.0.1:7861/", str(tmp_path), True)


def test_commands_can_be_completed(things, monkeypatch):
    monkeypatch.chdir(things)

    def offered(line):
        result = CliRunner().invoke(app, [], prog_name="lora-mixer", env={
            "_LORA_MIXER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1),
        })  # fmt: skip
        return set(result.stdout.split("\n")) - {""}

    assert {"generate", "show"} <= offered("lora-mixer ")
    assert {"demo", "base.safetensors", "base/"} <= offered("lora-mixer generate --model ")
    assert offered("lora-mixer generate --lora demo:wat") == {"demo:watercolor"}
    assert "ties" in offered("lora-mixer merge --method ti")
    assert "Euler a" in offered("lora-mixer generate --sampler Euler")
    assert offered("lora-mixer batch pl") == {"plan.json"}
    assert set(demo_adapters()) == {x.removeprefix("demo:") for x in offered("lora-mixer inspect demo:")}
