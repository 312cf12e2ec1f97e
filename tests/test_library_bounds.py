"""What a stranger's folder may cost: links out of it, equal copies by the thousand, packed archives."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import CorruptFileError, Library, SourceError, read_adapter
from lora_mixer.library import _scanning

if TYPE_CHECKING:
    from pathlib import Path

PAIR = {
    "base_model.model.a.lora_A.weight": torch.ones(2, 4),
    "base_model.model.a.lora_B.weight": torch.ones(4, 2),
}


def folder_with_config(place: Path) -> Path:
    place.mkdir(parents=True)
    save_file(PAIR, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 16}
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


def test_a_configuration_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = folder_with_config(tmp_path / "elsewhere")
    inside = folder_with_config(tmp_path / "library" / "x")
    (inside / "adapter_config.json").unlink()
    (inside / "adapter_config.json").symlink_to(outside / "adapter_config.json")

    with pytest.raises(SourceError, match="leads out of the adapter's folder"):
        read_adapter(inside)
    library = Library(tmp_path / "library", index=tmp_path / "index.sqlite")
    library.refresh()
    (entry,) = library.find("adapter_model")
    assert "leads out of the adapter's folder" in entry.problem


def test_a_folder_of_links_to_one_other_folder_is_that_folder(tmp_path: Path) -> None:
    """As managers of models lay files out: weights and configuration are both links to where they lie together."""
    real = folder_with_config(tmp_path / "store")
    links = tmp_path / "links"
    links.mkdir()
    for file in real.iterdir():
        (links / file.name).symlink_to(file)

    info = read_adapter(links / "adapter_model.safetensors")

    assert info.alphas == read_adapter(real).alphas


def test_equal_copies_are_looked_at_once_each_and_moved_ones_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "many"
    folder = folder_with_config(root / "first")
    for number in range(30):
        shutil.copytree(folder, root / f"copy{number}")
    looked: list[str] = []
    real = os.path.lexists
    monkeypatch.setattr(_scanning.os.path, "lexists", lambda path: looked.append(str(path)) or real(path))
    library = Library(root, index=tmp_path / "index.sqlite")

    assert library.refresh().added == 31
    assert len(looked) <= 31  # it was one look for each pair of copies

    ids = {entry.path: entry.id for entry in library.search().entries}
    for number in range(3):
        (root / f"copy{number}").rename(root / f"moved{number}")
    assert library.refresh().moved == 3
    now = {entry.path: entry.id for entry in library.search().entries}
    assert set(now.values()) <= set(ids.values())


@pytest.mark.parametrize("times", [5, 400])
def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path, times: int) -> None:
    plain = tmp_path / "plain.pt"
    torch.save(
        {"a.lora_A.weight": torch.zeros(64, times * 64), "a.lora_B.weight": torch.zeros(64, 64)}, plain
    )
    assert read_adapter(plain, allow_pickle=True).ranks == (64,)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))

    with pytest.raises(CorruptFileError, match=r"a packed archive of .* that unpacks to"):
        read_adapter(packed, allow_pickle=True)
