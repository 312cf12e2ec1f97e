"""README, docs and CONTRIBUTING name what there is: files, modules, classes, arguments and options."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest
import typer

from lora_mixer.cli._app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what there was
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r"(?<![\w./-])(?:lora_mixer|ui|tests|benchmarks|docs|assets|engines|families|parsing|mixes)/[\w./-]+\w"
)
DOTTED = re.compile(r"(?<![\w./])lora_mixer(?:\.\w+)+")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
NAME = re.compile(r"[A-Za-z_]\w*")
# What other programs call things, options of theirs, and what is made up for an example: a new one of these goes here.
FOREIGN = frozenset(
    (
        *("--check", "--head", "--build-arg", "--gpus", "--rm", "HF_TOKEN"),  # ruff, Ray, Docker, the Hub
        *(
            "diff_m",
            "img_attn_q",
            "_to_q",
            "lora_unet_down_blocks_0_",
            "lycoris_down_blocks_0_",
            "_output_blocks_2_2_conv",
        ),  # keys
        *("dpmpp_2m_sde", "dpmpp_2m_k"),  # samplers of ComfyUI and A1111
        *("cast_training_params", "lora_mixer.X"),  # of diffusers; any name of the package
        *("load_in_8bit", "load_in_4bit"),  # of bitsandbytes' configurations
        *("folder_or_repo", "repo_or_path", "id_or_folder"),  # what a table's reader puts there
        *("prompt_1", "left_half", "word_1", "block_i"),  # made up in examples
        *("REPOSITORY", "CITATION", "BENCH"),  # what is put there, and files' names
    )
)


@cache
def code() -> str:
    """Return the text of the code and its settings, and the names of its files."""
    files = [
        path
        for room in ("lora_mixer", "ui", "tests", "benchmarks", "assets")
        for path in (ROOT / room).rglob("*")
    ]
    kinds = {".py", ".pyi", ".js", ".json", ".css"}
    texts = [
        path.read_text(encoding="utf-8")
        for path in files
        if path.suffix in kinds and path.name != Path(__file__).name
    ]
    stems = [path.stem for path in files if path.suffix == ".py"]
    return "\n".join(
        (
            *texts,
            *stems,
            *((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", ".gitignore")),
        )
    )


@cache
def words() -> frozenset[str]:
    return frozenset(NAME.findall(code()))


@cache
def options() -> frozenset[str]:
    """Return every option of the command, and of the scripts beside the package."""
    found = {"--help", "--version", "--debug", "--install-completion", "--show-completion"}
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        found |= {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
    for room in ("benchmarks", "tests", "assets"):
        for path in (path for path in (ROOT / room).rglob("*.py") if path.name != Path(__file__).name):
            found |= set(re.findall(r"[\"'](--[a-z][a-z0-9-]+)[\"']", path.read_text(encoding="utf-8")))
    return frozenset(found)


def spans(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [*CODE.findall(BLOCK.sub("", text)), *(body for _, body in BLOCK.findall(text))]


def resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_are_there(page):
    text = "\n".join(spans(page))
    odd = [
        path
        for path in PATH.findall(text)
        if "NAME" not in path  # of a recipe, what is to be made
        and not any((ROOT / base / path).exists() for base in ("", "lora_mixer"))
        and path not in code()
    ]
    # keys of metadata look like modules, and stand in the code as they are
    odd += [
        name
        for name in DOTTED.findall(text)
        if name not in FOREIGN and not resolves(name) and f'"{name}"' not in code()
    ]

    assert odd == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_are_those_of_the_command(page):
    odd = {option for span in spans(page) for option in OPTION.findall(span)} - options() - FOREIGN

    assert odd == set()


def named(text: str) -> set[str]:
    """Return the words of a page's code that can only be names: private, of several words, or a constant."""
    return {
        word
        for span in CODE.findall(BLOCK.sub("", text))
        for word in NAME.findall(span)
        if "_" in word.rstrip("_") or re.fullmatch(r"(?:[A-Z][a-z0-9]+){2,}|[A-Z][A-Z0-9]{4,}", word)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_code_are_in_the_code(page):
    """A name that was changed in the code alone is found here: as a word it stands nowhere any more."""
    assert named(page.read_text(encoding="utf-8")) - words() - FOREIGN == set()


@pytest.mark.parametrize(
    "word", ["_ARCHI" + "TECTURES", "_once" + "here", "FRONT" + "ALS", "Recalled" + "Rows", "a_row" + "_gone"]
)
def test_a_name_that_is_gone_is_seen_in_a_page(word):
    assert named(f"a row in `{word}` of `there.py`") - words() == {word}


def test_a_name_that_is_gone_would_be_found():
    assert "--no-such-option" not in options()
    assert not resolves("lora_mixer.recall.Recall")
    assert resolves("lora_mixer.writing.convert")
