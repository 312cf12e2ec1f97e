"""``--lora``: the last colon separates weights, and only weights."""

from __future__ import annotations

import pytest

from lora_mixer.cli._lora_option import read_options, split_weights
from lora_mixer.errors import MixError
from lora_mixer.mixes import AdapterMix


@pytest.mark.parametrize(
    ("text", "source", "weights"),
    [
        ("x.safetensors", "x.safetensors", AdapterMix()),
        ("x.safetensors:0.7", "x.safetensors", AdapterMix(0.7)),
        ("x.safetensors:-1.5e-1", "x.safetensors", AdapterMix(-0.15)),
        ("x:te=0.2,unet=0.9", "x", AdapterMix(1.0, {"te": 0.2, "unet": 0.9})),
        ("x:0.5,te=0.2", "x", AdapterMix(0.5, {"te": 0.2})),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", AdapterMix()),
        (r"C:\loras\x.safetensors:0.3", r"C:\loras\x.safetensors", AdapterMix(0.3)),
        ("C:x.safetensors", "C:x.safetensors", AdapterMix()),
        ("https://huggingface.co/u/r", "https://huggingface.co/u/r", AdapterMix()),
        (
            "https://hub:8080/u/r/blob/main/x.safetensors:2",
            "https://hub:8080/u/r/blob/main/x.safetensors",
            AdapterMix(2),
        ),
        ("user/repo:0.4", "user/repo", AdapterMix(0.4)),
        ("10:15 style.safetensors", "10:15 style.safetensors", AdapterMix()),
    ],
)
def test_weights_follow_the_last_colon_if_they_are_weights(text, source, weights):
    found_source, found_weights = split_weights(text)

    assert found_source == source
    assert (found_weights.weight, dict(found_weights.components)) == (
        weights.weight,
        dict(weights.components),
    )


def test_an_existing_file_is_taken_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style:0.7").touch()

    assert split_weights("style:0.7") == ("style:0.7", AdapterMix())


@pytest.mark.parametrize(
    "text", ["x:nan", "x:inf", "x:te=abc", "x:te=0.2,te=0.3", "x:0.5,y", "x:unet=1,y:2=3"]
)
def test_weights_that_make_no_sense_are_refused(text):
    with pytest.raises(MixError, match=f"--lora '{text}': expected"):
        split_weights(text)


def test_what_follows_an_existing_file_must_be_weights(tmp_path):
    file = tmp_path / "x.safetensors"
    file.touch()

    for tail in ("", "strong", "0,7"):
        with pytest.raises(MixError, match="expected FILE"):
            split_weights(f"{file}:{tail}")


def test_adapters_are_named_after_their_files_and_twins_get_numbers():
    options = read_options(
        ["a/ink.safetensors:0.7", "b/ink.safetensors", "u/repo", "https://h/u/r/ink.pt?download=true"]
    )

    assert [option.name for option in options] == ["ink", "ink_2", "repo", "ink_3"]
