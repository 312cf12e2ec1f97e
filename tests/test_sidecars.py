"""What lies beside an adapter: read with its source told, and nothing in it can do harm."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import LoraMixer, read_adapter
from lora_mixer.sidecar_facts import Tags
from tests.models import tiny_sd

PAIR = {
    "lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3),
    "lora_unet_conv_in.lora_up.weight": torch.ones(8, 1, 1, 1),
}
A1111 = {
    "description": "A soft style",
    "sd version": "SDXL",
    "activation text": "wtrclr, soft light",
    "preferred weight": 0.8,
    "negative text": "photo",
    "notes": "best at 30 steps",
}
CIVITAI = {
    "id": 5,
    "name": "v1",
    "baseModel": "SDXL 1.0",
    "trainedWords": ["ohwx, woman", "hat,"],
    "description": "<p>One</p><p>two &amp; <b>three</b></p><script>",
    "model": {"name": "Watercolour", "type": "LORA"},
}
MANAGER = {
    "model_name": "By hand",
    "base_model": "Pony",
    "notes": "mine",
    "usage_tips": '{"strength": 0.65}',
    "civitai": {"trainedWords": ["mgr"]},
}
MATRIX = {
    "ModelName": "Matrix",
    "TrainedWords": ["smx"],
    "BaseModel": "SD 1.5",
    "ModelDescription": "<i>x</i>y",
}


@pytest.fixture
def put(tmp_path):
    """Write an adapter and what is to lie beside it, and read it."""

    def write(metadata=None, **beside):
        save_file(PAIR, tmp_path / "my.style.safetensors", metadata)
        for ending, content in beside.items():
            path = tmp_path / f"my.style.{ending.replace('_', '.').replace('cm.', 'cm-')}"
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            path.write_bytes(raw)
        return read_adapter(tmp_path / "my.style.safetensors")

    return write


def test_a1111s_user_metadata(put):
    info = put(json=A1111)

    assert info.trigger_words == ("wtrclr", "soft light")
    assert (info.about.preferred_weight, info.about.negative_text) == (0.8, "photo")
    assert (info.about.notes, info.about.description) == ("best at 30 steps", "A soft style")
    assert info.base == "SDXL"
    assert info.about.sources["trigger_words"] == "my.style.json"
    assert info.about.sidecars == ("my.style.json",)
    assert info.about.problems == {}


def test_civitais_page_is_read_as_plain_text(put):
    info = put(civitai_info=CIVITAI)

    assert info.trigger_words == ("ohwx, woman", "hat")
    assert (info.about.title, info.about.base, info.base) == ("Watercolour", "SDXL 1.0", "SDXL")
    assert info.about.description == "One\ntwo & three"


def test_lora_managers_and_stability_matrix_files(put, tmp_path):
    info = put(metadata_json=MANAGER)
    assert (info.trigger_words, info.about.preferred_weight) == (("mgr",), 0.65)
    assert (info.about.title, info.about.notes, info.base) == ("By hand", "mine", "SDXL")

    (tmp_path / "my.style.metadata.json").unlink()
    info = put(cm_info_json=MATRIX)
    assert (info.trigger_words, info.about.title) == (("smx",), "Matrix")
    assert (info.base, info.about.description) == ("SD 1.x", "xy")


def test_the_header_comes_first_then_the_user_then_the_sites(put):
    everything = {"json": A1111, "civitai_info": CIVITAI, "metadata_json": MANAGER, "cm_info_json": MATRIX}

    info = put({"modelspec.trigger_phrase": "header", "ss_output_name": "own"}, **everything)
    assert (info.trigger_words, info.about.title) == (("header",), "own")
    assert info.about.sources["trigger_words"] == "header: modelspec.trigger_phrase"

    info = put(None, **everything)
    assert info.trigger_words == ("wtrclr", "soft light")
    assert info.about.sources["title"] == "my.style.civitai.info"
    info = put(None, json={**A1111, "activation text": ""})
    assert info.trigger_words == ("ohwx, woman", "hat")
    assert info.about.sources["trigger_words"] == "my.style.civitai.info"


@pytest.mark.parametrize("ending", ["preview.png", "png", "preview.webp", "jpg"])
def test_a_preview_is_found(put, ending):
    info = put(**{ending.replace(".", "_"): b"\x89PNG"})

    assert info.about.preview.endswith(f"my.style.{ending}")
    assert info.to_dict()["about"]["preview"] == info.about.preview


def test_training_tags_are_counted_over_all_folders_and_sorted():
    text = json.dumps(
        {"10_cat": {"cat": 5, " hat ": 2, "x": "many", "": 3}, "20_hat": {"hat": 9, "tie": True}}
    )

    assert list(Tags(text).items()) == [("hat", 11), ("cat", 5)]


@pytest.mark.parametrize("text", ["", "[", "[1]", "5", '{"a": 1}', '{"a": {"b": {}}}', "{" * 100_000])
def test_broken_training_tags_are_none(text):
    assert dict(Tags(text)) == {}


def test_a_text_beside_is_the_description(put):
    assert put(txt=b"just text\xff").about.description == "just text\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1, 2]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b"\xff\xfe\x00", "not a JSON object"),
        (b" " * ((8 << 20) + 1), "at most 8388608 are read"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_adapter_is_described(put, content, why):
    info = put(json=content)

    assert why in info.about.problems["my.style.json"]
    assert (info.about.sidecars, info.format) == ((), "kohya")


@pytest.mark.parametrize(
    "odd",
    [
        None,
        5,
        True,
        [],
        {},
        "",
        "x" * 20_000,
        10**400,
        float("nan"),
        -1e9,
        [None, 7, "ok"],
        ["a" * 20_000] * 500,
        "\ud800",
    ],
)
def test_odd_values_are_left_out_or_cut(put, odd):
    table = dict.fromkeys([*A1111, *CIVITAI, "model", "usage_tips", "civitai"], odd)

    info = put(json=table, civitai_info=table, metadata_json=table)

    about = info.about
    assert about.preferred_weight is None or -100 <= about.preferred_weight <= 100
    assert len(info.trigger_words) <= 100
    assert all(isinstance(word, str) and 0 < len(word) <= 10_000 for word in info.trigger_words)
    texts = (about.title, about.description, about.notes, about.negative_text, about.base)
    assert all(isinstance(text, str) and len(text) <= 10_000 for text in texts)
    json.dumps(info.to_dict(), ensure_ascii=False).encode()


def test_links_out_of_the_folder_and_pipes_are_not_opened(put, tmp_path):
    secret = tmp_path.parent / f"{tmp_path.name}-secret.txt"
    secret.write_text("secret")
    (tmp_path / "my.style.txt").symlink_to(secret)
    (tmp_path / "my.style.png").symlink_to(secret)
    os.mkfifo(tmp_path / "my.style.json")
    (tmp_path / "inside").write_text("inside")
    (tmp_path / "my.style.description.txt").symlink_to(tmp_path / "inside")

    info = put()

    assert info.about.description == "inside"
    assert info.about.preview == ""
    assert "leads out" in info.about.problems["my.style.txt"]
    assert "leads out" in info.about.problems["my.style.png"]
    assert info.about.problems["my.style.json"] == "is not a regular file"


def test_a_sidecar_that_comes_later_is_seen(put, tmp_path):
    """The folder's listing is kept only while the folder is as it was."""
    put()
    os.utime(tmp_path, (1, 1))
    assert read_adapter(tmp_path / "my.style.safetensors").about.sidecars == ()

    (tmp_path / "my.style.json").write_text(json.dumps(A1111))

    assert read_adapter(tmp_path / "my.style.safetensors").about.sidecars == ("my.style.json",)


def test_a_loaded_adapter_tells_the_same(put, tmp_path):
    info = put(json=A1111)
    mixer = LoraMixer(tiny_sd())
    mixer.load_lora_weights(tmp_path / "my.style.safetensors", "a")

    assert mixer.adapters["a"].about == info.about
    assert mixer.adapters["a"].trigger_words == info.trigger_words
    mixer.unload_lora_weights()
