"""Adapters from files, folders, open files and state dicts: one place to read, or a reason why not."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from types import MappingProxyType

import pytest
import torch

from lora_mixer.errors import AmbiguousSourceError, CorruptFileError, SourceError, SourceNotFoundError
from lora_mixer.sources import resolve_source

CONFIG = '{"peft_type": "LORA", "r": 4}'


def fill(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CONFIG if file.suffix == ".json" else name)
    return folder


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_is_itself(tmp_path, kind):
    file = fill(tmp_path, "x.safetensors") / "x.safetensors"

    source = resolve_source(kind(file))

    assert (source.label, source.weights) == (str(file), file)
    assert (source.config, source.repo_id, source.revision) == (None, None, None)


def test_a_file_comes_with_the_config_beside_it(tmp_path):
    fill(tmp_path, "adapter_model.safetensors", "adapter_config.json")

    assert resolve_source(tmp_path / "adapter_model.safetensors").config == {"peft_type": "LORA", "r": 4}


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(fill(tmp_path, "x.safetensors")))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    assert resolve_source("~/x.safetensors").weights == tmp_path / "x.safetensors"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "README.md"], "adapter_model.safetensors"),
        (
            ["pytorch_lora_weights.safetensors", "optimizer.bin", "scheduler.bin"],
            "pytorch_lora_weights.safetensors",
        ),
        (["Style.SafeTensors", "Style.txt", "Style.preview.png"], "Style.SafeTensors"),
        (["x.safetensors", "x.pt"], "x.safetensors"),
        (["x.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"], "x.safetensors"),
        (["x.safetensors", "unet/diffusion_pytorch_model.safetensors"], "x.safetensors"),
    ],
)
def test_a_folder_gives_its_only_adapter(tmp_path, names, expected):
    source = resolve_source(fill(tmp_path, *names))

    assert source.weights == tmp_path / expected
    assert source.config == ({"peft_type": "LORA", "r": 4} if "adapter_config.json" in names else None)


def test_several_candidates_are_listed_and_weight_name_chooses(tmp_path):
    fill(tmp_path, "a.safetensors", "b.safetensors", "notes.txt")

    with pytest.raises(AmbiguousSourceError, match=r"'a.safetensors', 'b.safetensors'\..*weight_name="):
        resolve_source(tmp_path)

    assert resolve_source(tmp_path, weight_name="b.safetensors").weights == tmp_path / "b.safetensors"


def test_many_candidates_are_counted_and_not_all_listed(tmp_path):
    fill(tmp_path, *(f"{number:03}.safetensors" for number in range(25)))

    with pytest.raises(AmbiguousSourceError, match=r"holds 25 files .*'019.safetensors' and 5 more"):
        resolve_source(tmp_path)


def test_a_folder_without_adapters_says_what_is_there(tmp_path):
    with pytest.raises(SourceNotFoundError, match="it holds nothing"):
        resolve_source(tmp_path)

    with pytest.raises(SourceNotFoundError, match=r"it holds 'model.safetensors', 'notes.txt'.*whole models"):
        resolve_source(fill(tmp_path, "notes.txt", "model.safetensors"))


def test_a_whole_models_file_name_can_still_be_named(tmp_path):
    fill(tmp_path, "model.safetensors")

    assert resolve_source(tmp_path, weight_name="model.safetensors").weights == tmp_path / "model.safetensors"


def test_an_adapter_in_a_folder_below_is_pointed_at_and_reached(tmp_path):
    fill(tmp_path, "styles/ink.safetensors", "styles/adapter_config.json")

    with pytest.raises(SourceNotFoundError, match="subfolder='styles'"):
        resolve_source(tmp_path)

    by_folder = resolve_source(tmp_path, subfolder="styles")
    assert by_folder.weights == tmp_path / "styles" / "ink.safetensors"
    assert resolve_source(tmp_path, weight_name="styles/ink.safetensors") == by_folder


def test_a_missing_file_or_folder_inside_is_named_with_what_is_there(tmp_path):
    fill(tmp_path, "a.safetensors", "styles/b.safetensors")

    with pytest.raises(
        SourceNotFoundError, match=r"no file 'c.safetensors'; it holds 'a.safetensors', 'styles/'"
    ):
        resolve_source(tmp_path, weight_name="c.safetensors")
    with pytest.raises(SourceNotFoundError, match=r"no folder 'other'; it holds 'a.safetensors', 'styles/'"):
        resolve_source(tmp_path, subfolder="other")


@pytest.mark.parametrize("argument", ["weight_name", "subfolder"])
@pytest.mark.parametrize("value", ["../out/x.safetensors", "a/../../out", "..\\out", "C:\\x", "\0"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, argument, value):
    fill(tmp_path, "in/x.safetensors", "out/x.safetensors")

    with pytest.raises(SourceError, match=f"{argument} must be a relative path"):
        resolve_source(tmp_path / "in", **{argument: value})


def test_absolute_names_are_refused(tmp_path):
    fill(tmp_path, "in/x.safetensors", "out/x.safetensors")

    with pytest.raises(SourceError, match="weight_name must be a relative path"):
        resolve_source(tmp_path / "in", weight_name=str(tmp_path / "out" / "x.safetensors"))


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path):
    fill(tmp_path, "in/notes.txt", "out/x.safetensors")
    (tmp_path / "in" / "x.safetensors").symlink_to(tmp_path / "out" / "x.safetensors")
    (tmp_path / "in" / "deep").symlink_to(tmp_path / "out")

    for kwargs in (
        {},
        {"weight_name": "x.safetensors"},
        {"subfolder": "deep"},
        {"weight_name": "deep/x.safetensors"},
    ):
        with pytest.raises(SourceError, match="leads out of the folder"):
            resolve_source(tmp_path / "in", **kwargs)

    # What the user names in full is what the user wants.
    assert resolve_source(tmp_path / "in" / "x.safetensors").label == str(tmp_path / "in" / "x.safetensors")


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path):
    fill(tmp_path, "real/files/x.safetensors")
    (tmp_path / "real" / "x.safetensors").symlink_to(tmp_path / "real" / "files" / "x.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert resolve_source(tmp_path / "link").weights.read_text() == "real/files/x.safetensors"


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt", ".PT"])
def test_pickles_need_to_be_allowed(tmp_path, suffix):
    file = fill(tmp_path, f"x{suffix}") / f"x{suffix}"

    for source in (file, tmp_path):
        with pytest.raises(SourceError, match=rf"x\{suffix}: is a pickle.*allow_pickle=True"):
            resolve_source(source)

        assert resolve_source(source, allow_pickle=True).weights == file


def test_a_peft_folder_with_a_pickle_needs_it_allowed(tmp_path):
    fill(tmp_path, "adapter_config.json", "adapter_model.bin", "training_args.bin")

    assert resolve_source(tmp_path, allow_pickle=True).weights == tmp_path / "adapter_model.bin"


def test_use_safetensors_decides_between_formats(tmp_path):
    fill(tmp_path, "x.safetensors", "x.pt")

    assert resolve_source(tmp_path, use_safetensors=True).weights.suffix == ".safetensors"
    assert resolve_source(tmp_path, use_safetensors=False, allow_pickle=True).weights.suffix == ".pt"
    with pytest.raises(SourceError, match="only such were asked for"):
        resolve_source(tmp_path / "x.pt", use_safetensors=True, allow_pickle=True)
    with pytest.raises(SourceError, match="other files were asked for"):
        resolve_source(tmp_path / "x.safetensors", use_safetensors=False)


def test_a_file_leaves_nothing_to_choose(tmp_path):
    file = fill(tmp_path, "x.safetensors") / "x.safetensors"

    assert resolve_source(file, weight_name="x.safetensors").weights == file
    for kwargs in ({"weight_name": "y.safetensors"}, {"subfolder": "s"}):
        with pytest.raises(SourceError, match="nothing to choose from"):
            resolve_source(file, **kwargs)


@pytest.mark.parametrize("content", ["{", "[1]", '"r"', "", "\xff", "[" * 100_000])
def test_a_broken_config_is_named(tmp_path, content):
    fill(tmp_path, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(content, encoding="latin-1")

    with pytest.raises(CorruptFileError, match=r"adapter_config.json: must be a JSON object"):
        resolve_source(tmp_path)


def test_an_oversized_config_is_not_read(tmp_path):
    fill(tmp_path, "adapter_model.safetensors")
    with (tmp_path / "adapter_config.json").open("wb") as file:
        file.truncate(1 << 30)

    with pytest.raises(CorruptFileError, match="got 1073741824 bytes"):
        resolve_source(tmp_path)


@pytest.mark.parametrize(
    "source", ["nope.safetensors", "./no/such", "user/repo.safetensors", "a/b/c", "no such file"]
)
def test_what_is_neither_path_nor_repository_is_told_both_ways(source):
    with pytest.raises(
        SourceNotFoundError, match=r"neither a file or folder .* nor the name of a Hub repository"
    ):
        resolve_source(source)


def test_a_path_object_is_never_a_repository(tmp_path):
    with pytest.raises(SourceNotFoundError, match="neither a file or folder"):
        resolve_source(tmp_path / "user" / "repo")


def test_a_folder_wins_over_a_repository_of_the_same_name(tmp_path, monkeypatch):
    fill(tmp_path, "user/repo/x.safetensors")
    monkeypatch.chdir(tmp_path)

    assert resolve_source("user/repo").label == os.path.join("user", "repo", "x.safetensors")  # noqa: PTH118


def test_a_missing_source_is_a_file_not_found_error_too():
    with pytest.raises(FileNotFoundError):
        resolve_source("nope.safetensors")


@pytest.mark.parametrize("source", ["", "a\0b", b"path".__class__])
def test_an_empty_or_impossible_name_is_refused(source):
    with pytest.raises(SourceError, match=r"must be (text that is not empty|a path)"):
        resolve_source(source)


@pytest.mark.parametrize("content", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_are_taken_as_a_files_content(content):
    source = resolve_source(content)

    assert (source.weights, source.label) == (b"abc", "3 bytes")


def test_an_open_file_is_read_whole_and_left_as_it_was(tmp_path):
    with (fill(tmp_path, "x.safetensors") / "x.safetensors").open("rb") as file:
        file.seek(5)

        source = resolve_source(file)

        assert (source.weights, source.label) == (b"x.safetensors", str(tmp_path / "x.safetensors"))
        assert (file.tell(), file.closed) == (5, False)


def test_a_stream_that_cannot_seek_is_read_to_its_end():
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as writer:  # noqa: PTH123
        writer.write(b"abc")
    with open(read_end, "rb") as reader:  # noqa: PTH123
        assert resolve_source(reader, weight_name="piped").weights == b"abc"


def test_a_file_opened_for_text_is_refused(tmp_path):
    with pytest.raises(SourceError, match="mode 'rb'"):
        resolve_source(io.StringIO("abc"))


def test_a_state_dict_is_passed_on_as_the_same_object():
    state = {"a": torch.ones(2), "b": torch.zeros(1)}

    source = resolve_source(state)

    assert source.weights is state
    assert source.label == "state dict"


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType])
def test_any_mapping_is_a_state_dict(kind):
    state = kind({"a": torch.ones(2)})

    assert resolve_source(state).weights is state


@pytest.mark.parametrize("state", [{"a": 1}, {1: torch.ones(1)}, {"state_dict": {"a": torch.ones(1)}}])
def test_a_mapping_of_something_else_names_the_first_wrong_entry(state):
    with pytest.raises(
        SourceError, match=r"expected a mapping of names to tensors \(got \w+ to (int|Tensor|dict)\)"
    ):
        resolve_source(state)


def test_other_objects_are_refused_by_type():
    with pytest.raises(SourceError, match=r"\(got int\)"):
        resolve_source(42)


def test_every_peft_folder_and_file_of_the_shared_data_resolves(shared_data):
    folder = shared_data / "files" / "sdxl_text_encoder_peft"

    source = resolve_source(folder)

    assert source.weights == folder / "adapter_model.safetensors"
    assert source.config["peft_type"] == "LORA"
