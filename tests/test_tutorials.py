"""The lines of the tutorials do what the pages say, in the order in which a reader types them; the site is built from them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_mixer import read_picture
from lora_mixer.cli._app import app
from tests import single_files
from tests.models import tiny_sd
from tests.small_pipe import pairs_for, written

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page: str) -> None:
    """Type what a page shows; plain text blocks are for other machines, or do not end."""
    for kind, text in BLOCKS.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if kind == "yaml":
            Path("plan.yaml").write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, page, "exec"), {"__name__": page})  # noqa: S102 -- our own page
        elif kind == "sh":
            for line in text.strip().splitlines():
                program, *words = shlex.split(line)
                assert program == "lora-mixer"
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, f"{line}\n{done.output}"


def pixels(name: str) -> bytes:
    with Image.open(name) as image:
        return image.tobytes()


def test_the_first_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    follow("first-picture.md")

    made = ["castle.png", "ink.png", "half.png", "both.png", "turn.png", "python.png"]
    assert len({pixels(name) for name in made}) == len(made)
    assert read_picture("both.png").mix.to_text() == "ink:0.5, neon:0.6"


def test_a_checkpoint_and_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    single_files.write_checkpoint(tiny_sd(), tmp_path / "dreamy.safetensors")
    (tmp_path / "loras").mkdir()
    for seed, name in enumerate(("ink", "neon")):
        pairs = pairs_for(tiny_sd(), seed, lambda _, path: "attn" in path)
        save_file(written(pairs), tmp_path / "loras" / f"{name}.safetensors")

    follow("checkpoint.md")

    castle = read_picture("castle.png")
    assert (castle.mix.to_text(), castle.sampler, castle.steps) == ("ink:0.8", "DPM++ 2M Karras", 12)
    assert len({pixels(name) for name in ("castle.png", "glow.png", "mine.png")}) == 3
    assert len(list(Path("pictures").glob("0*.png"))) == 6
    assert len(list(Path("pictures/sheets").iterdir())) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="what builds the site needs Python 3.11")
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("LoraMixer", "load_lora_weights", "read_adapter", "run_plan", "Library", "MatchError"):
        assert f">{name}" in reference
