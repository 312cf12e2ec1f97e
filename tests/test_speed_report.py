"""`measure_speed` and `lora-mixer bench` report what they measured, and leave the pipeline as it was. Speeds themselves are not tested."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lora_mixer import (
    LoraMixer,
    MatchError,
    MixError,
    PictureRequest,
    demo_adapters,
    load_demo,
    measure_speed,
)
from lora_mixer.cli._app import app
from tests.weights import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

UNITS = {"seconds", "bytes", "times", "values"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7)).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("place", ["device", "host", "patch", "none", "auto"])
def test_figures_of_a_bare_module_are_those_that_can_be_counted(place: str) -> None:
    module = net()
    clean = Snapshot.of(module)

    report = measure_speed(module, rank=3, repeats=1, keep_base=place)

    clean.assert_untouched(module)
    assert report["weights that it touches"] == 4 * (12 * 20 + 20 + 20 * 7 + 7)
    # fp16 pairs of rank 3 in four files
    assert report["memory of the adapters"] == 4 * 2 * 3 * (12 + 20 + 20 + 7)
    copies = 4 * (12 * 20 + 20 * 7)
    kept = report["memory of kept bases"]
    assert 0 < kept < copies / 2 if place == "patch" else kept == (0 if place == "none" else copies)
    assert report["values that differ from the base afterwards"] == 0
    for count in (1, 2, 4):
        assert report[f"set a mix of {count}"] > 0
    for one in report.measurements:
        assert one.unit in UNITS
        assert math.isfinite(one.value)
        assert one.limit is None or one.limit > 0
    assert LoraMixer(module).get_active_adapters() == []


def test_an_error_on_the_way_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = net()
    clean = Snapshot.of(module)
    (tmp_path / "broken.safetensors").write_bytes(b"no file of tensors")

    with pytest.raises(Exception, match="broken"):
        measure_speed(module, [tmp_path / "broken.safetensors"], repeats=1)

    clean.assert_untouched(module)


@pytest.mark.parametrize(("rank", "repeats"), [(0, 1), (4, 0), (-1, 3)])
def test_counts_below_one_are_refused(rank: int, repeats: int) -> None:
    with pytest.raises(MixError, match=f"at least 1, got {repeats} and {rank}"):
        measure_speed(net(), rank=rank, repeats=repeats)


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(MatchError, match="no linear layer"):
        measure_speed(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_pictures_of_the_demo_are_made_with_its_own_adapters() -> None:
    pipe = load_demo()
    clean = Snapshot.of(pipe)
    files = [one.path for one in demo_adapters().values() if one.path.suffix == ".safetensors"][:2]

    report = measure_speed(pipe, files, request=PictureRequest("a castle", steps=1), repeats=1)

    clean.assert_untouched(pipe)
    assert report["a picture of the base"] > 0
    ratio = next(one for one in report.measurements if one.name == "a picture with 2 adapters")
    assert ratio.limit == report["a picture of the base"]
    text = str(report)
    assert "set a mix of 2" in text
    assert f"torch {torch.__version__}" in text


def test_the_command_gives_a_table_and_json() -> None:
    options = ["bench", "--steps", "0", "--repeats", "1", "--rank", "2"]
    table = CliRunner().invoke(app, options)
    facts: dict[str, Any] = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)

    assert table.exit_code == 0
    assert "load a file" in table.stdout
    assert facts["model"] == "demo"
    names = [one["name"] for one in facts["measurements"]]
    assert names[-1] == "values that differ from the base afterwards"
    assert facts["measurements"][-1]["value"] == 0
    assert "torch" in facts["machine"]
