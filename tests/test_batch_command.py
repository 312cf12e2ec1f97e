"""The command ``lora-mixer batch``: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lora_mixer import PictureMaker
from lora_mixer.batches import dry_run, run_plan
from lora_mixer.cli._app import app
from lora_mixer.errors import SourceNotFoundError
from tests.batch_plans import GRID, hashes, plan_for


def batch(*arguments):
    return CliRunner().invoke(app, ["batch", *(str(argument) for argument in arguments)])


def test_the_command_makes_a_plan_and_keeps_it(model_folder, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model_folder, "pictures", [{"repeat": 2}])))

    first = batch(plan)
    second = batch(plan, "--json")

    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("2 made, 0 kept, 0 failed, 0 left: ")
    assert len(hashes(tmp_path / "pictures")) == 2
    assert [json.loads(line)["event"] for line in second.stdout.splitlines()] == ["start", "end"]


def test_a_failed_picture_is_told_and_in_the_exit_code(model_folder, tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model_folder, "pictures", [{"repeat": 2}])))
    monkeypatch.setattr(PictureMaker, "_call", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))

    result = batch(plan)

    assert result.exit_code == 1
    assert "RuntimeError: broken" in result.stderr


def test_a_dry_run_makes_nothing_and_says_what_it_would_take(model_folder, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model_folder, "pictures", [GRID])))

    result = batch(plan, "--dry-run")
    told = json.loads(batch(plan, "--dry-run", "--json", "--no-trial").stdout)

    assert result.exit_code == 0, result.output
    assert "8 pictures (0: 8)" in result.stdout
    assert "expected: " in result.stdout
    assert told["pictures"] == 8
    assert told["seconds"] is None
    assert not (tmp_path / "pictures").exists()


def test_the_trial_of_a_dry_run_gives_time_and_memory(model_folder):
    found = dry_run(plan_for(model_folder, "out", [GRID]))

    assert found.seconds > 0
    assert found.memory > 100e6  # the whole process, of which the tiny pipeline is a small part


def test_a_bad_plan_is_a_message_with_lines(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("jobs:\n- prompt: x\n  steps: none\n")

    result = batch(plan)

    assert result.exit_code == 2
    assert "error: plan.yaml: this plan cannot be made:" in result.stderr
    assert "line 3: jobs[0].steps: expected a valid integer, got 'none'" in result.stderr


def test_the_schema_is_printed():
    assert json.loads(batch("--schema").stdout)["title"] == "A plan of lora-mixer batch"


def test_the_command_wants_a_plan(tmp_path):
    assert batch().exit_code == 2
    assert isinstance(batch(tmp_path / "gone.yaml").exception, SystemExit)
    with pytest.raises(SourceNotFoundError):
        run_plan(tmp_path / "gone.yaml")
