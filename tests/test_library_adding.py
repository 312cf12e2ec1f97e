"""Files get into a library checked, whole, under safe names, and over nothing that is there."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save

from lora_mixer.errors import (
    AmbiguousSourceError,
    CorruptFileError,
    FormatError,
    NotAnAdapterError,
    SaveError,
    SourceError,
)
from lora_mixer.library import Library
from lora_mixer.library.adding import safe_name
from tests.hub_standin import Repo
from tests.loras import tensors, write_lora

LORA = save(tensors(), {"ss_output_name": "x"})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


@pytest.fixture
def library(folder, tmp_path):
    return Library([folder, tmp_path / "second"], index=tmp_path / "index.sqlite")


def peft_files(folder, **config):
    """The two files of a PEFT adapter, as a browser uploads them."""
    pair = {f"base_model.model.proj.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    (folder / "adapter_model.safetensors").write_bytes(save(pair))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config})
    )
    return folder / "adapter_model.safetensors", folder / "adapter_config.json"


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


class Dripping(io.BytesIO):
    """A stream that gives a little at a time."""

    def read(self, size=-1):
        return super().read(min(size, 7) if size > 0 else 7)


def test_a_peft_adapter_is_added_with_its_configuration(library, folder, tmp_path):
    weights, config = peft_files(tmp_path)

    entry = library.add(weights, "mine.safetensors", config=config)

    assert (entry.name, entry.problem, entry.path) == (
        "mine",
        "",
        folder / "mine" / "adapter_model.safetensors",
    )
    assert listing(folder / "mine") == ["adapter_config.json", "adapter_model.safetensors"]
    assert library.info(entry.id).format == "peft"


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [("[1]", CorruptFileError, "JSON object"), ("{", CorruptFileError, "JSON object"), (None, SourceError, "no such file"),
     ('{"peft_type": "NOT_KNOWN"}', FormatError, "NOT_KNOWN")],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused_and_leaves_nothing(
    library, folder, tmp_path, text, error, said
):
    weights, config = peft_files(tmp_path)
    config.unlink() if text is None else config.write_text(text)

    with pytest.raises(error, match=said):
        library.add(weights, "mine", config=config)

    assert listing(folder) == []


@pytest.mark.parametrize("kind", ["bytes", "stream", "dripping", "path"])
def test_a_file_is_copied_and_found(library, folder, tmp_path, kind):
    path = tmp_path / "upload"
    path.write_bytes(LORA)
    source = {"bytes": LORA, "stream": io.BytesIO(LORA), "dripping": Dripping(LORA), "path": path}[kind]

    entry = library.add(source, "my ink.safetensors")

    assert (entry.name, entry.base, entry.path) == ("my ink", "SD 1.x", folder / "my ink.safetensors")
    assert entry.path.read_bytes() == LORA
    assert listing(folder) == ["my ink.safetensors"]


def test_nothing_is_overwritten(library, folder):
    write_lora(folder / "ink.safetensors", rank=9)

    names = [library.add(LORA, "ink").name for _ in range(2)]

    assert names == ["ink_2", "ink_3"]
    assert load_file(folder / "ink.safetensors")[
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight"
    ].shape == (8, 9)


def test_on_disks_without_links_nothing_is_overwritten_either(library, folder, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("lora_mixer.library.adding.os.link", no_links)

    assert [library.add(LORA, "ink").name for _ in range(2)] == ["ink", "ink_2"]
    assert (folder / "ink.safetensors").read_bytes() == (folder / "ink_2.safetensors").read_bytes() == LORA


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (pickle.dumps({"a": 1}), NotAnAdapterError, "pickle"),
        (b"PK\x03\x04" + b"x" * 99, NotAnAdapterError, "pickle"),
        (b"<html>not found</html>", NotAnAdapterError, "HTML"),
        (b"", NotAnAdapterError, "empty"),
        (LORA[:-5], CorruptFileError, "truncated"),
        ((1 << 60).to_bytes(8, "little") + b"x" * 99, CorruptFileError, "claim"),
        (save({"model.weight": torch.ones(2, 2)}), FormatError, "no adapter|not an adapter|no LoRA|model"),
    ],
    ids=["pickle", "zip", "html", "empty", "truncated", "huge header", "no adapter"],
)
def test_what_is_no_adapter_leaves_no_file(library, folder, content, error, message):
    with pytest.raises(error, match=message) as caught:
        library.add(content, "evil.safetensors")

    assert "evil.safetensors" in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert listing(folder) == []


def test_too_large_a_file_is_refused_while_it_is_read(library, folder):
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"x" * max(size, 1)

    for source in (Endless(), LORA):
        with pytest.raises(SourceError, match="larger than the 100 bytes"):
            library.add(source, "x", limit=100)
    assert listing(folder) == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../../etc/cron.d/x.safetensors", "x"),
        ("/abs/olute.SAFETENSORS", "olute"),
        ("C:\\Windows\\x", "x"),
        ("..", "adapter"),
        ("", "adapter"),
        (".hidden.safetensors", "hidden"),
        ("a\0b\nc\u202egpj", "a_b_c_gpj"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("a:b*c?.safetensors", "a_b_c_"),
        ("x" * 500, "x" * 120),
        ("城" * 100, "城" * 40),
        ("\ud800", "_"),
        ("trailing. . ", "trailing"),
    ],
)
def test_names_are_made_safe(name, safe):
    assert safe_name(name) == safe


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..\\..\\x", "a/../../x"])
def test_no_name_leads_out_of_the_folder(library, folder, name):
    assert library.add(LORA, name).path.parent == folder


def test_only_the_librarys_own_folders_are_written(library, tmp_path):
    with pytest.raises(SourceError, match="none of the library's folders"):
        library.add(LORA, "x", folder=tmp_path)
    with pytest.raises(SourceError, match="not there now"):
        library.add(LORA, "x", folder=tmp_path / "second")
    (tmp_path / "second").mkdir()
    assert library.add(LORA, "x", folder=tmp_path / "second").root == tmp_path / "second"


def test_a_full_disk_is_told_and_leaves_nothing(library, folder, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_mixer.library.adding.os.fsync", full)

    with pytest.raises(SaveError, match="No space left"):
        library.add(LORA, "x")
    assert listing(folder) == []


def test_a_missing_file_is_told(library, tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        library.add(tmp_path / "nowhere", "x")


class TestHub:
    def test_a_repositorys_file_is_copied_under_its_name(self, hub, library, folder):
        hub.repos["user/repo"] = Repo({"style v2.safetensors": LORA})

        entry = library.add_from_hub("user/repo")

        assert (entry.name, entry.path.parent) == ("style v2", folder)
        assert not entry.path.is_symlink()
        assert entry.path.read_bytes() == LORA

    def test_a_file_that_is_called_as_every_other_gets_the_repositorys_name(self, hub, library):
        hub.repos["user/my-style"] = Repo({"pytorch_lora_weights.safetensors": LORA})

        assert library.add_from_hub("user/my-style").name == "my-style"

    def test_a_peft_repository_becomes_a_folder_with_its_configuration(self, hub, library, folder):
        pair = {
            "base_model.model.down_blocks.1.attentions.0.proj_in.lora_A.weight": torch.ones(2, 8),
            "base_model.model.down_blocks.1.attentions.0.proj_in.lora_B.weight": torch.ones(8, 2),
        }
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 16}
        files = {"adapter_model.safetensors": save(pair), "adapter_config.json": json.dumps(config).encode()}
        hub.repos["user/peft-style"] = Repo(files)

        first, second = (library.add_from_hub("user/peft-style") for _ in range(2))

        assert (first.name, second.name) == ("peft-style", "peft-style_2")
        assert json.loads((folder / "peft-style" / "adapter_config.json").read_text()) == config
        assert library.info(first.id).alphas == (16.0,)
        assert listing(folder) == ["peft-style", "peft-style_2"]

    def test_a_path_is_never_taken_for_a_repository(self, hub, library, tmp_path, monkeypatch):
        write_lora(tmp_path / "user" / "repo" / "private.safetensors")
        monkeypatch.chdir(tmp_path)

        for name in (
            str(tmp_path / "user"),
            "user/repo/private.safetensors",
            "../x",
            "~/x",
            "",
            "https://example.org/a/b",
        ):
            with pytest.raises(SourceError):
                library.add_from_hub(name)
        with pytest.raises(SourceError):  # there is such a folder here, and no such repository
            library.add_from_hub("user/repo")
        assert library.search().total == 0

    def test_what_is_wrong_with_a_repository_is_told(self, hub, library):
        hub.repos["user/two"] = Repo({"a.safetensors": LORA, "b.safetensors": LORA})
        hub.repos["user/pickle"] = Repo({"a.bin": b"x"})

        with pytest.raises(AmbiguousSourceError, match="weight_name"):
            library.add_from_hub("user/two")
        assert library.add_from_hub("user/two", weight_name="b.safetensors").name == "b"
        with pytest.raises(SourceError):
            library.add_from_hub("user/pickle")
        with pytest.raises(SourceError, match="takes"):
            library.add_from_hub("user/two", allow_pickle=True)
