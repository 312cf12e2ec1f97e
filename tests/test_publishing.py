"""Mixes and baked models on the Hub (a stand-in), with a card that says what is in them."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load, save_file
from typer.testing import CliRunner

from lora_mixer import LoraMixer, SaveError, read_adapter
from lora_mixer.cli._app import app
from lora_mixer.demo import demo_adapters
from lora_mixer.writing import model_card, push_to_hub
from tests.hub_standin import TOKEN, HubStandIn
from tests.models import tiny_sd
from tests.weights import Snapshot

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with HubStandIn() as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        from huggingface_hub import hf_api

        own = hf_api.HfApi.__init__
        monkeypatch.setattr(
            hf_api.HfApi, "__init__", lambda self, endpoint=None, **more: own(self, standin.endpoint, **more)
        )
        yield standin


@pytest.fixture
def mixer(tmp_path):
    mixer = LoraMixer(tiny_sd())
    out, into = mixer.pipe.unet.get_submodule(PATH).weight.shape
    for seed, (name, about) in enumerate({
        "a": {"modelspec.license": "apache-2.0", "modelspec.trigger_phrase": "ink sketch"}, "b": {"license": "apache-2.0"},
        "c": {},
    }.items()):  # fmt: skip
        torch.manual_seed(seed)
        pair = {
            f"unet.{PATH}.lora_A.weight": torch.randn(2, into),
            f"unet.{PATH}.lora_B.weight": torch.randn(out, 2),
        }
        save_file(pair, tmp_path / f"{name}.safetensors", about)
        mixer.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    mixer.set_mix({})
    return mixer


def card_of(repo):
    text = repo.files["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_mix_is_pushed_as_one_adapter_with_a_card(hub, mixer, tmp_path):
    before = Snapshot.of(mixer.pipe)
    Image.new("RGB", (8, 8)).save(tmp_path / "his.png")

    address = push_to_hub(
        mixer, "me/both", mix="a:0.7, b:-0.2", base="user/base", picture=tmp_path / "his.png", private=True
    )

    repo = hub.repos["me/both"]
    assert address == f"{hub.endpoint}/me/both/commit/{'a' * 40}"
    assert set(repo.files) >= {"both.safetensors", "picture.png", "README.md"}
    made = hub.made["me/both"]  # how the Hub is told depends on huggingface_hub's release
    assert made.get("private") is True or made.get("visibility") == "private"
    held = load(repo.files["both.safetensors"])
    down, up = (held[f"unet.{PATH}.lora_{half}.weight"].double() for half in "AB")
    pairs = [load((tmp_path / f"{name}.safetensors").read_bytes()) for name in "ab"]
    expected = sum(
        weight * pair[f"unet.{PATH}.lora_B.weight"].double() @ pair[f"unet.{PATH}.lora_A.weight"].double()
        for weight, pair in zip((0.7, -0.2), pairs, strict=True)
    )
    assert torch.allclose(up @ down, expected, atol=1e-5)
    front, body = card_of(repo)
    assert (front["license"], front["base_model"], front["instance_prompt"]) == (
        "apache-2.0",
        "user/base",
        "ink sketch",
    )
    assert "lora" in front["tags"]
    assert "![both](picture.png)" in body
    assert "`a:0.7, b:-0.2`, on user/base." in body
    digest = read_adapter(tmp_path / "a.safetensors").hashes["sha256"][:16]
    assert f"| a | 0.7 | apache-2.0 | unknown | a.safetensors | {digest} |" in body
    assert "| b | -0.2 | apache-2.0 |" in body
    assert str(tmp_path) not in repo.files["README.md"].decode()
    before.assert_values(mixer.pipe)


def test_a_model_is_pushed_with_the_mix_in_its_weights(hub, mixer):
    push_to_hub(mixer, "me/whole", mix="a:0.5", form="model", base="base.safetensors")

    repo = hub.repos["me/whole"]
    assert {"model_index.json", "lora_mixer.json", "README.md"} <= set(repo.files)
    weight = load(repo.files["unet/diffusion_pytorch_model.safetensors"])[f"{PATH}.weight"]
    with mixer.applied("a:0.5"):
        assert torch.equal(weight, mixer.pipe.unet.get_submodule(PATH).weight)
    front, body = card_of(repo)
    assert "base_model" not in front  # the name of a file is none of the Hub's
    assert "A model with a mix of adapters in its weights" in body


@pytest.mark.parametrize(
    ("mix", "given", "whole", "parts"),
    [("a:1, b:1", {}, "apache-2.0", ["apache-2.0", "apache-2.0"]), ("a:1, c:1", {}, "other", ["apache-2.0", "not stated"]),
     ("a:1, c:1", {"c": "mit"}, "other", ["apache-2.0", "mit"]), ("c:1", {"c": "mit"}, "mit", ["mit"]),
     ("c:1", {}, "other", ["not stated"])],
)  # fmt: skip
def test_the_licence_of_the_whole_is_that_of_all_parts_or_other(mixer, mix, given, whole, parts):
    card = model_card(mixer.adapters, mix, title="x", licences=given)

    assert f"\nlicense: {whole}\n" in card
    rows = [line.split(" | ")[2] for line in card.splitlines() if line.startswith(("| a ", "| b ", "| c "))]
    assert rows == parts
    assert "\nlicense: openrail\n" in model_card(mixer.adapters, mix, title="x", licence="openrail")


def test_what_strangers_wrote_is_text_in_a_card(tmp_path):
    evil = "x | <script>alert(1)</script> [a](javascript:b)\n---\nlicense: mit `c`"
    save_file({"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)},
              tmp_path / "x.safetensors", {"modelspec.license": evil, "modelspec.trigger_phrase": evil})  # fmt: skip

    card = model_card({"x": read_adapter(tmp_path / "x.safetensors")}, "x:1", title=evil)

    front = yaml.safe_load(card.split("---\n")[1])
    assert set(front) <= {"library_name", "license", "tags", "instance_prompt"}
    body = card.split("---\n", 2)[2]
    assert "<script" not in body
    assert "[a](" not in body.replace("\\[", "")
    assert (
        next(line for line in body.splitlines() if line.startswith("| x ")).replace("\\|", "").count("|") == 7
    )


@pytest.mark.parametrize("fault", ["token", "broken", "name", "picture", "form", "moving"])
def test_what_cannot_be_pushed_is_one_sentence(hub, mixer, fault, monkeypatch, tmp_path):
    given = {"mix": "a:1"}
    name = "me/x"
    if fault == "token":
        given["token"] = "hf_wrong"
    elif fault == "broken":
        monkeypatch.setattr(hub, "take", lambda *_: (400, {"error": "no"}))
    elif fault == "name":
        name = "me/x/y z"
    elif fault == "picture":
        given["picture"] = tmp_path / "gone.png"
    elif fault == "form":
        given["form"] = "film"
    else:
        given["mix"] = {"a": {"weight": 1, "schedule": "0@0,1@1"}}
    before = Snapshot.of(mixer.pipe)

    with pytest.raises((SaveError, ValueError)) as caught:
        push_to_hub(mixer, name, **given)

    assert type(caught.value).__module__.startswith("lora_mixer")
    assert "\n" not in str(caught.value)
    before.assert_values(mixer.pipe)
    assert not any(repo.files for repo in hub.repos.values())


def test_the_command_pushes(hub):
    result = CliRunner().invoke(
        app,
        [
            "push",
            "me/inky",
            "--model",
            "demo",
            "--lora",
            "demo:ink:0.7",
            "--lora",
            "demo:neon:0.2",
            "--rank",
            "4",
            "--json",
        ],
    )

    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["mix"] == "ink:0.7, neon:0.2"
    assert "| neon | 0.2 |" in hub.repos["me/inky"].files["README.md"].decode()
    assert demo_adapters()["ink"].trigger in hub.repos["me/inky"].files["README.md"].decode()
