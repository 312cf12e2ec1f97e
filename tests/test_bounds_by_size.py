"""A small file that names large products is described in memory that follows its size, and its norms are right."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import LoraMixerError, SaveError, read_adapter
from lora_mixer.library import layer_norms
from lora_mixer.library.norms import hadamard_norm
from lora_mixer.writing import convert, merge, resize
from tests.fuzz import _peak, _resident

if TYPE_CHECKING:
    from pathlib import Path

WIDE = 20_000


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def loha(out: int, rank: int, width: int) -> dict[str, torch.Tensor]:
    return {
        f"net.hada_w{n}_{side}": draw(*shape)
        for n in (1, 2)
        for side, shape in (("a", (out, rank)), ("b", (rank, width)))
    }


FILES: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any] | None]] = {
    "loha of a huge product": (loha(WIDE, 1, WIDE), None),
    "loha of a huge rank": (loha(1, WIDE, 1), None),
    "lora of a huge rank": ({"net.lora_A.weight": draw(WIDE, 1), "net.lora_B.weight": draw(1, WIDE)}, None),
    "lora of a huge product": (
        {"net.lora_A.weight": draw(1, 5 * WIDE), "net.lora_B.weight": draw(5 * WIDE, 1)}, None,
    ),
    "lokr of a huge product": ({"net.lokr_w1": draw(200, 200), "net.lokr_w2": draw(200, 200)}, None),
    "lokr of a huge rank": (
        {"net.lokr_w1": draw(1, 1), "net.lokr_w2_a": draw(1, WIDE), "net.lokr_w2_b": draw(WIDE, 1)}, None,
    ),
    "hra": ({"base_model.model.net.hra_u": draw(64, 512)}, {"peft_type": "HRA", "apply_GS": True}),
    "oft of many blocks": ({"net.oft_blocks": draw(WIDE, 2, 2)}, None),
    "boft of many stages": ({"net.oft_blocks": draw(30, 64, 4, 4)}, None),
    "vera": (
        {
            "base_model.model.net.vera_lambda_b": draw(1), "base_model.model.net.vera_lambda_d": draw(WIDE),
            "base_model.vera_A": draw(WIDE, 1), "base_model.vera_B": draw(1, WIDE),
        },
        {"peft_type": "VERA"},
    ),
    "glora": (
        {
            "net.a1.weight": draw(WIDE, 1), "net.a2.weight": draw(1, WIDE),
            "net.b1.weight": draw(WIDE, 1), "net.b2.weight": draw(1, WIDE),
        },
        None,
    ),
    "dora": (
        {
            "net.lora_A.weight": draw(WIDE, 1), "net.lora_B.weight": draw(1, WIDE),
            "net.dora_scale": draw(1, 1),
        },
        None,
    ),
    "c3a": ({"base_model.model.net.c3a_kernel": draw(1, 1, WIDE)}, {"peft_type": "C3A"}),
    "hira": ({"net.hira_A": draw(WIDE, 1), "net.hira_B": draw(1, WIDE)}, None),
    "adalora": (
        {
            "base_model.model.net.lora_A": draw(WIDE, 1), "base_model.model.net.lora_B": draw(1, WIDE),
            "base_model.model.net.lora_E": draw(WIDE, 1),
        },
        {"peft_type": "ADALORA", "lora_alpha": 8},
    ),
    "many pairs": (
        {
            f"net{n}.lora_{side}.weight": draw(*shape)
            for n in range(200)
            for side, shape in (("A", (200, 1)), ("B", (1, 200)))
        },
        None,
    ),
}  # fmt: skip


def written(folder: Path, name: str) -> tuple[Path, int]:
    """Write one of the files, or a folder of PEFT's; give it and the file's bytes."""
    tensors, config = FILES[name]
    file = folder / "adapter_model.safetensors"
    save_file(tensors, file)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return (folder if config is not None else file), file.stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_a_file_takes_memory_that_follows_its_size(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    if _peak() is None:
        pytest.skip("this system does not tell the most memory that a process had")
    before = _resident()
    with suppress(LoraMixerError):
        assert str(read_adapter(source))
        layer_norms(source)
    assert (_peak() or 0) - before <= 20 * size + (64 << 20)


@pytest.mark.parametrize("name", ["loha of a huge rank", "lora of a huge rank", "lora of a huge product"])
def test_writing_it_anew_does_too(tmp_path: Path, name: str) -> None:
    source, size = written(tmp_path, name)
    if _peak() is None:
        pytest.skip("this system does not tell the most memory that a process had")
    before = _resident()
    for number, form in enumerate(("kohya", "diffusers")):
        with suppress(LoraMixerError):
            convert(source, tmp_path / f"{number}.safetensors", format=form)
            resize(source, tmp_path / f"r{number}.safetensors", rank=2)
    assert (_peak() or 0) - before <= 20 * size + (64 << 20)


@pytest.mark.parametrize("name", ["loha of a huge product", "lora of a huge product"])
def test_full_matrices_that_no_layer_has_are_refused(tmp_path: Path, name: str) -> None:
    source, _ = written(tmp_path, name)
    with pytest.raises(SaveError, match="in full would have"):
        merge([(source, 1.0), (source, 0.5)], tmp_path / "out.safetensors", method="ties", rank=2)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("out", "width"), [(7, 5), (3, 60), (60, 3), (40, 40), (1, 9)])
@pytest.mark.parametrize(("rank", "other"), [(1, 1), (2, 3), (4, 4), (5, 9)])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_norms_of_products_of_products_are_right(
    out: int, width: int, rank: int, other: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_mixer.library.norms._BLOCK_AT_MOST", block)
    a, b, c, d = draw(out, rank), draw(rank, width), draw(out, other), draw(other, width)
    expected = ((a.double() @ b.double()) * (c.double() @ d.double())).norm()
    assert hadamard_norm(a, b, c, d) == pytest.approx(float(expected), rel=1e-9)


def test_a_norm_that_would_take_minutes_is_not_worked_out() -> None:
    a = torch.empty(1 << 16, 8, device="meta")
    b = torch.empty(8, 1 << 16, device="meta")
    assert hadamard_norm(a, b, a, b) is None
