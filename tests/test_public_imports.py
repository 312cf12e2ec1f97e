"""The command line and the web page use public names only: those in ``__all__`` of the package and its rooms."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRONTS = {"cli": ("lora_mixer/cli", "lora_mixer.cli"), "ui": ("ui", "lora_mixer.ui")}


def imports(folder: Path, own: str):
    """Yield what is imported from the package besides the front's own modules: file, module and name."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, "") for alias in node.names if inside(alias.name, own))
            elif isinstance(node, ast.ImportFrom) and not node.level and inside(node.module or "", own):
                yield from ((path, node.module or "", alias.name) for alias in node.names)


def inside(module: str, own: str) -> bool:
    mine = module == own or module.startswith(f"{own}.")
    return (module == "lora_mixer" or module.startswith("lora_mixer.")) and not mine


def is_public(module: str, name: str) -> bool:
    """Whether a name stands in an ``__all__``: of the package, or of the room that it is taken from."""
    package = importlib.import_module("lora_mixer")
    room = module.removeprefix("lora_mixer").removeprefix(".")
    if not room:
        promised = getattr(package, "__all__", ())
        return name in promised or name == "__version__" or (ROOT / "lora_mixer" / name).is_dir()
    if room == "errors" or (name in package.__all__ and "." not in room):
        return True
    found = importlib.import_module(module)
    return "." not in room and name in getattr(found, "__all__", ())


@pytest.mark.parametrize("front", FRONTS)
def test_fronts_import_public_names_only(front):
    folder, own = FRONTS[front]
    found = list(imports(ROOT / folder, own))

    assert len(found) > 10
    hidden = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path, module, name in found
        if not is_public(module, name)
        and not module.startswith("lora_mixer.ui")  # the page is started by the command
    ]
    assert hidden == []


def test_a_hidden_name_would_be_found():
    assert not is_public("lora_mixer.writing.parts", "open_files")
    assert not is_public("lora_mixer.writing", "write_adapters")
    assert is_public("lora_mixer.writing", "merge")
    assert is_public("lora_mixer", "LoraMixer")


def test_no_room_imports_what_another_keeps_to_itself():
    """Files and names with an underscore are their room's own; what two rooms need has none."""
    odd = []
    for path in sorted((ROOT / "lora_mixer").rglob("*.py")):
        room = path.relative_to(ROOT / "lora_mixer").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_mixer."):
                parts = node.module.split(".")
                names = [*parts[1:], *(alias.name for alias in node.names)]
                if parts[1] != room and any(name.startswith("_") for name in names):
                    odd.append(f"{room}: {node.module} {[alias.name for alias in node.names]}")

    assert odd == []
