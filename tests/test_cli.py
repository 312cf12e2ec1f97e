"""The command line as a whole: it starts fast, explains itself, and fails in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lora_mixer
from lora_mixer.cli._app import app
from lora_mixer.cli._terminal import plain
from lora_mixer.errors import MixError

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "transformers", "gradio", "huggingface_hub", "numpy")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["inspect", "--help"], ["generate", "--help"], ["demo", "--help"]]
)
def test_help_imports_nothing_heavy(command):
    script = (
        "import sys\nfrom lora_mixer.cli._app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as done:\n    code = done.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_runs_as_a_process_of_its_own(shared_data):
    file = shared_data / "files" / "catundchat_pytorch_lora_weights.safetensors"

    done = subprocess.run(
        [sys.executable, "-m", "lora_mixer", "inspect", str(file)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert file.name in done.stdout


def test_version_is_the_packages():
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"lora-mixer {lora_mixer.__version__}\n")


def test_every_command_is_in_the_help():
    result = run("--help")

    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("inspect", "generate", "demo", "--version"))


def test_an_expected_error_is_one_line_on_stderr():
    result = run("generate", "--model", "m", "--prompt", "p", "--lora", "x:nan")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --lora 'x:nan': expected FILE, FILE:0.7")
    assert result.stderr.count("\n") == 1


def test_debug_lets_the_error_through():
    result = run("--debug", "generate", "--model", "m", "--prompt", "p", "--lora", "x:nan")

    assert isinstance(result.exception, MixError)


@pytest.mark.parametrize("arguments", [["nope"], ["inspect"], ["generate"], ["generate", "--steps", "0"]])
def test_wrong_usage_exits_with_2(arguments):
    assert run(*arguments).exit_code == 2


def test_what_a_file_says_cannot_steer_the_terminal():
    assert plain("a\x1b]0;b\x07\r\nc\x9b") == "a\ufffd]0;b\ufffd\ufffd\nc\ufffd"
