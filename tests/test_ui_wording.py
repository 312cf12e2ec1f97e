"""
Messages name what their reader can do in the reader's words: arguments for programs, options in a terminal, fields on the page.

All texts of the package's code are looked at: what one surface alone can do stands in a ``Remedy``, which has words for each.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lora_mixer
from lora_mixer import LoraMixerError, PictureError, PictureRequest, read_adapter
from lora_mixer.formats import reader
from lora_mixer.pictures.checkpoints import read_checkpoint
from lora_mixer.pictures.maker import out_of_memory
from lora_mixer.pictures.model_options import ModelOptions
from lora_mixer.problem import Remedy, Surface
from lora_mixer.ui.messages import words_of
from lora_mixer.wording import shown
from lora_mixer.writing import resize

ROOT = Path(lora_mixer.__file__).parent
VALUE = re.compile(r"\b[a-z]\w*=(?:True|False|None)\b")
ARGUMENT = re.compile(r"\b[a-z]\w*=(?=[\s.,;:)]|$)")
CALL = re.compile(r"\b[a-z_][a-z_.]*\((?:\)|\.\.\.)|\b(?:mixer\.|load_lora_weights|load_textual_inversion)")
OPTION = re.compile(r"(?:^|[\s(])--[a-z]")
TYPE = re.compile(r"\((?:an?) (?:int|str|float|bool|list|dict|tuple|NoneType)\)")

OF_ALL = (
    "algorithms",
    "batches",
    "binding/bind",
    "engines/placement",
    "families",
    "formats",
    "hashes",
    "library",
    "merging",
    "mixes",
    "parsing",
    "picture_metadata",
    "pictures",
    "sidecar_facts",
    "sites",
    "sources",
    "textual_inversion/files",
    "writing",
)
"""What the page and the command line use; the others (training, takeover, compiling, ...) are for programs alone."""


def texts_of(node: ast.AST):
    """Yield the texts of some code, with X where values go in."""
    inner = {
        id(part)
        for each in ast.walk(node)
        if isinstance(each, ast.JoinedStr)
        for part in ast.walk(each)
        if part is not each
    }
    for each in ast.walk(node):
        if id(each) in inner:
            continue
        if isinstance(each, ast.JoinedStr):
            yield (
                each,
                "".join(part.value if isinstance(part, ast.Constant) else "X" for part in each.values),
            )
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each, each.value


def code():
    """Yield the package's files as trees, but for the command line and the page themselves."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("cli/", "ui/")):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def remedies(tree: ast.AST):
    """Yield the calls that make a remedy of words for each surface."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Remedy":
            yield node


def test_what_one_surface_can_do_stands_in_a_remedy_and_nowhere_else():
    found, seen = [], 0
    for name, tree in code():
        aside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        aside |= {id(text) for remedy in remedies(tree) for text, _ in texts_of(remedy)}
        patterns = [VALUE, OPTION, TYPE, *([ARGUMENT, CALL] if name.startswith(OF_ALL) else [])]
        for node, text in texts_of(tree):
            seen += 1
            if id(node) not in aside and " " in text.strip() and any(p.search(text) for p in patterns):
                found.append(f"{name}:{node.lineno}: {text}")
    assert seen > 5000
    assert found == []


def test_a_remedy_speaks_to_each_surface_in_its_own_words():
    wrong, seen = [], 0
    for name, tree in code():
        for call in remedies(tree):
            words = dict(zip(("python", "command", "page", "plan"), call.args, strict=False))
            words |= {str(keyword.arg): keyword.value for keyword in call.keywords}
            said = {surface: [text for _, text in texts_of(value)] for surface, value in words.items()}
            seen += 1
            foreign = [text for text in said.get("python", []) if OPTION.search(text)]
            for surface in ("command", "page"):
                foreign += [
                    text
                    for text in said.get(surface, [])
                    if any(p.search(text) for p in (VALUE, ARGUMENT, CALL, TYPE))
                ]
            wrong += [f"{name}:{call.lineno}: {text}" for text in foreign]
    assert seen > 25
    assert wrong == []


def pickle_called_safetensors(folder):
    path = folder / "x.safetensors"
    path.write_bytes(b"\x80\x02}q\x00X" + bytes(64))
    read_adapter(path)


def pickle(folder):
    path = folder / "x.ckpt"
    path.write_bytes(b"\x80\x02}q\x00.")
    read_checkpoint(path)


def several_files(folder):
    for name in "ab":
        (folder / f"{name}.safetensors").write_bytes(b"")
    read_adapter(folder)


def no_memory(_):
    raise out_of_memory(PictureRequest("a", width=64, height=64), "cuda:0")


def no_rank(folder):
    resize(folder / "x.safetensors", folder / "y.safetensors")


def option_of_the_model(_):
    raise PictureError("the VAE of X has no tiling", option="vae_tiling")


RAISING = {
    pickle_called_safetensors: ("allow_pickle=True", "--allow-pickle", "safetensors only", "allow_pickle=True"),
    pickle: ("allow_pickle=", "--allow-pickle", "--allow-pickle when the page is started", "entry allow_pickle"),
    several_files: ("weight_name=", "Name the file itself", "File in it", "weight_name="),
    no_memory: (
        "dtype='float16', fp8=True", "--dtype float16, --fp8", "start the page with, in this order: --dtype", "fp8: true"
    ),
    no_rank: ("give a rank, an energy", "--rank, --energy or --sv-ratio", "a Rank, an Energy", "give a rank"),
    option_of_the_model: ("vae_tiling: the VAE", "--vae-tiling: the VAE", "--vae-tiling: the VAE", "vae_tiling: the"),
}  # fmt: skip
"""What raises, and what it says to a program, in a terminal, on the page and in a plan."""


@pytest.mark.parametrize("surface", list(Surface), ids=lambda each: each.name.lower())
@pytest.mark.parametrize("wrong", RAISING, ids=lambda each: each.__name__)
def test_an_error_tells_each_reader_what_that_one_can_do(wrong, surface, tmp_path):
    with pytest.raises(LoraMixerError) as raised:
        wrong(tmp_path)
    error = raised.value
    expected = dict(zip(Surface, RAISING[wrong], strict=True))[surface]
    assert expected in error.text_on(surface)
    if surface is Surface.PYTHON:
        assert str(error) == error.text_on(surface)
        assert not OPTION.search(str(error))
    elif surface is not Surface.PLAN:
        assert not any(pattern.search(error.text_on(surface)) for pattern in (VALUE, ARGUMENT, CALL))
    if surface is Surface.PAGE:
        assert expected in words_of(error)


def test_a_remark_tells_each_reader_what_that_one_can_do():
    remark = reader._left_out(["vae"])
    assert "subfolder='vae'" in str(remark)
    assert "subfolder" not in remark.text_on(Surface.COMMAND) + remark.text_on(Surface.PAGE)


def test_a_surface_without_a_way_is_told_none():
    error = LoraMixerError("this cannot be trained", remedy=Remedy("load it with trainable=True"))
    assert str(error) == "this cannot be trained; load it with trainable=True"
    assert error.text_on(Surface.PAGE) == error.text_on(Surface.COMMAND) == "this cannot be trained"


def test_every_option_of_the_model_has_one_name_on_the_command_line():
    for name in ModelOptions.__dataclass_fields__:
        remedy = Remedy.option("name it", name)
        assert remedy.python.endswith(f"{name}=")
        assert f"--{name.replace('_', '-')}" in remedy.command


@pytest.mark.parametrize("value", [0, "x", None, [1], {"a": 1}, True, (1,), 2.5])
def test_no_type_of_a_value_is_told(value):
    found = words_of(LoraMixerError(f"steps: expected a whole number, got {shown(value)}; give another"))
    assert found == f"steps: expected a whole number, got {value!r}; give another"


@pytest.mark.parametrize(
    "text",
    [
        "ink: te=0.2 is not a weight; write ink:unet=0.5,te=0.2",
        "the mix: expected one line such as ink:0.8,start=0.3, or JSON",
        "ink.safetensors: cut short.",
    ],
)
def test_the_pages_own_grammar_stays(text):
    assert words_of(LoraMixerError(text)) == text
