"""The wheel: one import package with the web page and the demo's files inside, working outside of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copy what packages are built from: what an earlier build left in the checkout must not end up in a wheel."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lora_mixer", "ui", "assets"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    # Stand-ins where the real ones are missing, so that the rule is tested either way.
    for name in ("demo/x.txt", "loras/deep/x.txt", "training/x.txt", "training/make.py"):
        (tree / "assets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "assets" / name).write_text("x")
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return built(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def demo_wheel(tree, tmp_path_factory):
    return built(tree / "assets", tmp_path_factory.mktemp("demo"))


def built(folder, out):
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "wheel", str(folder), "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--wheel-dir", str(out),
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_there_is_one_top_level_package(names):
    assert {name.split("/")[0] for name in names} == {"lora_mixer"}


def test_every_module_of_the_tree_is_in_it(names):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lora_mixer").rglob("*.py")}
    pages = {f"lora_mixer/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "ui").rglob("*.py")}

    assert "lora_mixer/ui/__init__.py" in pages
    assert {"lora_mixer/ui/static/core.js", "lora_mixer/ui/static/base.css"} <= names
    assert modules | pages <= names


def test_it_says_that_it_is_typed(names):
    assert "lora_mixer/py.typed" in names


def test_the_demo_is_a_package_of_its_own(wheel, names, demo_wheel):
    """The library is small; what weighs is in lora-mixer-demo, without what made it."""
    assert wheel.stat().st_size < 3e6
    assert not [name for name in names if "assets/" in name or name.endswith(".safetensors")]
    with zipfile.ZipFile(demo_wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"lora_mixer_demo"}
    assert {"lora_mixer_demo/demo/x.txt", "lora_mixer_demo/loras/deep/x.txt"} <= held
    assert {"lora_mixer_demo/demo/model_index.json", "lora_mixer_demo/loras/styles.json"} <= held
    assert not [name for name in held if "training" in name]


def test_nothing_else_is_in_it(names):
    assert not [name for name in names if "/test" in name or name.endswith(".pyc")]


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder


@pytest.fixture(scope="module")
def with_demo(outside, demo_wheel):
    with zipfile.ZipFile(demo_wheel) as archive:
        archive.extractall(outside / "site")
    return outside


def run_outside(folder, script):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    # -I: neither the current folder nor PYTHONPATH may lend it anything.
    script = f"import sys; sys.path.insert(0, 'site')\n{script}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_it_works_outside_of_the_checkout(outside):
    found = run_outside(
        outside,
        "import lora_mixer, lora_mixer.ui, lora_mixer.sources\n"
        "print(lora_mixer.__file__, lora_mixer.ui.__file__, sep='\\n')\n",
    )

    package, page = (Path(line).parent for line in found.stdout.split("\n")[:2])
    assert (outside / package).resolve() == (outside / "site" / "lora_mixer").resolve()
    assert page == package / "ui"


def test_without_the_demo_it_says_which_package_has_it(outside):
    found = run_outside(
        outside,
        "from lora_mixer import load_demo\n"
        "try:\n"
        "    load_demo()\n"
        "except FileNotFoundError as error:\n"
        "    print(error)\n",
    )

    assert "pip install lora-mixer-demo" in found.stdout


def test_the_demo_in_it_loads_without_a_word(with_demo):
    outside = with_demo
    found = run_outside(
        outside,
        "from lora_mixer import LoraMixer, demo_adapters, load_demo\n"
        "mixer = LoraMixer(load_demo())\n"
        "for adapter in demo_adapters().values():\n"
        "    report = mixer.load_lora_weights(adapter.path, adapter_name=adapter.name, strict=True)\n"
        "    print(adapter.name, adapter.path)\n",
    )

    loaded = dict(line.split(" ", 1) for line in found.stdout.splitlines())
    assert list(loaded) == ["pixel", "watercolor", "neon", "ink", "blueprint", "halftone", "lumo"]
    inside = (outside / "site" / "lora_mixer_demo" / "loras").resolve()
    assert {(outside / path).resolve().parent for path in loaded.values()} == {inside}
    # torchao and bitsandbytes, which the tests of quantised bases need, talk of themselves when diffusers imports them
    foreign = ("torchao", "torch/utils/_pytree.py", "kernels-community")
    assert [line for line in found.stderr.splitlines() if not any(name in line for name in foreign)] == []


def test_every_python_of_the_classifiers_is_tested():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]

    assert matrix == claimed
    assert f'requires-python = ">={claimed[0]}"' in project


def test_the_floors_are_tested_at_their_lowest():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    commands = "\n".join(step.get("run", "") for step in workflow["jobs"]["lowest"]["steps"])
    named = re.findall(r"tests/test_\w+\.py", commands)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert "--resolution lowest-direct" in commands
    assert named
    assert all((ROOT / name).is_file() for name in named)
    assert '"pillow>=11.1"' in project  # earlier ones lose settings of JPEG and WebP
    assert "gradio" not in project.partition("[project.optional-dependencies]")[0]
    assert all("<7" in line for line in project.splitlines() if re.match(r"(ui|mcp) = .*gradio", line))
