"""``lora-mixer inspect``: tables and JSON for files, folders and what cannot be read."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_mixer import read_adapter
from lora_mixer.cli._app import app


def inspect(*arguments):
    return CliRunner().invoke(app, ["inspect", *(str(argument) for argument in arguments)])


@pytest.fixture
def lora(tmp_path):
    """Write a small Kohya file and return its path."""

    def write(name, rank=2, metadata=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "lora_unet_conv_in.lora_down.weight": torch.ones(rank, 4, 3, 3, dtype=torch.float16),
            "lora_unet_conv_in.lora_up.weight": torch.ones(8, rank, 1, 1, dtype=torch.float16),
            "lora_unet_conv_in.alpha": torch.tensor(1.0, dtype=torch.float16),
        }
        save_file(tensors, path, metadata)
        return path

    return write


def test_a_file_is_one_row(lora):
    path = lora("ink.safetensors", rank=3)

    result = inspect(path)

    heading, row = result.stdout.splitlines()
    assert result.exit_code == 0
    assert heading.split()[:4] == ["File", "Format", "Base", "Algorithm"]
    assert str(path) in row
    assert all(cell in row.split() for cell in ("kohya", "lora", "3", "unet", "1", "float16"))


def test_json_is_what_read_adapter_says_with_hashes(lora):
    path = lora("ink.safetensors", metadata={"ss_output_name": "ink"})

    result = inspect(path, "--json")

    (found,) = json.loads(result.stdout)
    assert found == json.loads(json.dumps(read_adapter(str(path)).to_dict()))
    assert found["metadata"]["ss_output_name"] == "ink"
    assert len(found["hashes"]["sha256"]) == 64


def test_folders_are_searched_all_the_way_down(lora, tmp_path):
    wanted = [lora("a.safetensors"), lora("deep/down/b.safetensors")]
    lora(".cache/hidden.safetensors")
    lora("unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "notes.txt").write_text("x")

    result = inspect(tmp_path, "--json")

    assert result.exit_code == 0
    assert [found["source"] for found in json.loads(result.stdout)] == [str(path) for path in wanted]


def test_a_bad_file_is_a_row_of_its_own_and_the_others_are_shown(lora, tmp_path):
    good = lora("good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    missing = tmp_path / "missing.safetensors"

    table = inspect(bad, missing, good)
    as_json = inspect(bad, missing, good, "--json")

    assert (table.exit_code, as_json.exit_code) == (1, 1)
    assert str(good) in table.stdout
    assert re.search(rf"{re.escape(str(bad))} *\n  error: ", table.stdout)
    corrupt, absent, fine = json.loads(as_json.stdout)
    assert (corrupt["source"], corrupt["error"]["type"]) == (str(bad), "CorruptFileError")
    assert (absent["source"], absent["error"]["type"]) == (str(missing), "SourceNotFoundError")
    assert fine["format"] == "kohya"


def test_a_folder_without_adapters_says_so(tmp_path):
    result = inspect(tmp_path, "--json")

    assert result.exit_code == 1
    assert "holds no adapter files" in json.loads(result.stdout)[0]["error"]["message"]


def test_pickles_are_opened_only_when_allowed(tmp_path):
    pair = {
        "lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 1, 1),
    }
    torch.save(pair, tmp_path / "x.pt")

    refused = json.loads(inspect(tmp_path / "x.pt", "--json").stdout)
    allowed = json.loads(inspect(tmp_path, "--json", "--allow-pickle").stdout)

    assert "--allow-pickle" in refused[0]["error"]["message"]
    assert allowed[0]["ranks"] == [2]


def test_escape_codes_in_metadata_do_not_reach_the_terminal(lora, tmp_path):
    path = lora("x.safetensors", metadata={"modelspec.trigger_phrase": "\x1b[31mred"})

    result = inspect(path)

    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "red" in result.stdout


def test_a_peft_folder_is_read_with_its_config(shared_data, tmp_path):
    folder = shutil.copytree(shared_data / "files" / "sdxl_text_encoder_peft", tmp_path / "peft")

    (found,) = json.loads(inspect(folder, "--json").stdout)

    config = json.loads((folder / "adapter_config.json").read_text())
    assert (found["ranks"], found["alphas"]) == ([config["r"]], [config["lora_alpha"]])


def test_every_real_file_gives_a_row(shared_data):
    files = sorted((shared_data / "files").rglob("*.safetensors"))

    result = inspect(shared_data / "files", "--json")

    rows = json.loads(result.stdout)
    assert [row["source"] for row in rows] == [str(file) for file in files]
    refused = {row["source"].rpartition("/")[2] for row in rows if "error" in row}
    assert "invokeai_test_embedding.safetensors" in refused
    assert "cloneofsimo_lora_disney.safetensors" not in refused
