"""What CONTRIBUTING and the CHANGELOG say of the code's names, and no linter looks for."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

import lora_mixer
from lora_mixer.families import FAMILIES
from lora_mixer.families.telling import EITHER
from tests.error_fields import Words, errors_of, made_in, said_twice

ROOT = Path(__file__).parents[1]
FOLDERS = ("lora_mixer", "ui", "comfyui")
SAY_NOTHING = frozenset(("found", "own", "msg"))


def bound_names(source: str) -> set[str]:
    """Return the names that a text of Python gives to values: assigned, looped over, arguments, caught errors."""
    nodes = list(ast.walk(ast.parse(source)))
    return (
        {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        | {node.arg for node in nodes if isinstance(node, ast.arg)}
        | {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    found = 1\n",
        "def f(own): ...",
        "[found for found in ()]",
        "try:\n    f()\nexcept E as own:\n    ...",
        "if (msg := 1): ...",
    ],
)
def test_a_name_that_says_nothing_is_seen(source: str):
    assert bound_names(source) & SAY_NOTHING


def test_names_of_values_say_what_they_are():
    """One such name is no fault; they stood in 400 functions of 3,400, which is a habit."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    functions = [
        (path.name, node.name, bound_names(ast.unparse(node)) & SAY_NOTHING)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    odd = [each for each in functions if each[-1]]

    assert len(functions) > 3000
    assert len(odd) < len(functions) / 100, odd


def what_is(name: str) -> tuple[object, bool]:
    """Return what stands under a name below the package, and whether asking for it warned of a former one."""
    value: object = lora_mixer
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for part in name.split("."):
            inside = f"{getattr(value, '__name__', '')}.{part}"
            if part in getattr(value, "__annotations__", {}):
                value = value.__annotations__[part]
            elif hasattr(value, part):
                value = getattr(value, part)
            elif hasattr(value, "__path__") and importlib.util.find_spec(inside) is not None:
                # a kernel is imported where there is Triton only
                value = inside if part == "kernel" else importlib.import_module(inside)
            else:
                return None, False
    return value, any(issubclass(warning.category, DeprecationWarning) for warning in said)


def renamed() -> list[tuple[str, str]]:
    """Return the rows of CHANGELOG's tables of names, without those whose name stayed and whose meaning changed."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("### Renamed")[2].partition("\n### ")[0]
    rows = [re.fullmatch(r"\| (.*) \| (.*) \|", line) for line in section.splitlines()]
    return [row.groups() for row in rows if row and row[1].startswith("`") and "`:" not in row[1]]


def named(cell: str) -> list[str]:
    return [name for name in re.findall(r"`([\w.]+)`", cell) if name[0] != "."]


def test_the_table_of_renames_is_true():
    rows = renamed()
    today = [name for _, now in rows for name in named(now)]
    before = [name for then, _ in rows for name in named(then) if "." in name or name[0].isupper()]

    assert (len(rows) > 40, len(today) > 80, len(before) > 80) == (True, True, True)
    assert [name for name in today if what_is(name)[0] is None] == []
    assert [name for name in before if what_is(name)[0] is not None and not what_is(name)[1]] == []


def rows_of_the_house() -> set[str]:
    """Return the files and rooms that CONTRIBUTING's table of rooms has a row for."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| room |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {
        name.rpartition("lora_mixer/")[2].rstrip("/")
        for cell in cells
        for name in re.findall(r"`([^`]+)`", cell)
    }


def test_every_room_and_every_file_of_the_top_has_a_row_in_contributing():
    top = ROOT / "lora_mixer"
    rooms = {path.parent.name for path in top.glob("*/__init__.py")}
    files = {path.name for path in top.glob("*.py*") if path.name not in ("__init__.py", "__main__.py")}

    assert (len(rooms) > 15, len(files) > 20) == (True, True)
    assert sorted((rooms | files) - {"ui", *rows_of_the_house()}) == []


def test_a_public_table_of_rows_has_a_name_of_its_own():
    """``METHODS`` and ``FORMATS`` are public names of two rooms each."""
    where: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in tree.body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            for name in (each.id for each in targets if isinstance(each, ast.Name)):
                if name in {
                    "ALGORITHMS",
                    "FAMILIES",
                    "KINDS",
                    "STARTS",
                    "TRANSFORMERS",
                    "ENGINES",
                    "DENOISERS",
                }:
                    where.setdefault(name, []).append(path)

    assert len(where) > 5
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_long_lists_are_cut_in_one_place():
    cut = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"and \{[^{}]*\} more", path.read_text(encoding="utf-8"))
    }

    assert cut == {"lora_mixer/wording.py"}


def test_a_class_name_stands_for_one_thing():
    where: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))

    assert len(where) > 300
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_families_are_asked_by_their_rows():
    """A name of a family as a text outside of ``families/`` is something known of it that does not stand in its row."""
    names = {family.name for family in FAMILIES} | set(EITHER)
    said = {
        (path, node.value)
        for path, tree in TREES.items()
        if not path.startswith("lora_mixer/families/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    }

    assert (len(names) > 40, said) == (True, set())


FOR_TESTS = {
    "forget_all",
    "forget_moulds",
}  # as a new process has it: what is remembered between calls is gone


def test_every_name_of_a_module_is_used():
    sources = [
        path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py*")
    ]
    used = Counter(word for source in sources for word in re.findall(r"\w+", source))
    names = [
        name
        for source in sources
        for node in ast.parse(source).body
        for name in (
            [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list else
            [each.id for each in getattr(node, "targets", ()) if isinstance(each, ast.Name)]
        )
    ]  # fmt: skip

    assert len(names) > 2000
    assert {name for name in names if used[name] == 1 and not name.startswith("__")} == FOR_TESTS


TREES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ERRORS = errors_of(TREES)
MADE = [made for path, tree in TREES.items() for made in made_in(path, tree, ERRORS)]
WORDS = Words(MADE)
NOT_A_FIELD = {
    ("lora_mixer/batches/on_ray.py", "address or 'this machine'"),  # of a cluster, which is no file
    ("lora_mixer/engines/offloaded.py", "name"),  # of a parameter of a module whose path is not known there
    ("lora_mixer/sources/_resolve.py", "label"),  # which is none: it is no text, or empty
    (
        "ui/handlers/make.py",
        "app.models.facts.title",
    ),  # the model that is loaded, and nothing is wrong with it
    ("ui/models.py", "self._facts.title"),  # likewise
    ("ui/reach.py", "host"),  # of the page itself
}


def test_what_an_error_names_is_a_field_of_it():
    """``--json``, the page and programs read the fields; a name in the text alone is lost on them."""
    odd = [each for made in MADE for each in WORDS.odd(made)]

    assert (len(MADE) > 600, len(WORDS.fields) > 20) == (True, True)
    assert {(each.path, each.said) for each in odd} == NOT_A_FIELD, odd


def test_a_message_does_not_say_again_what_stands_before_it():
    assert [(made.path, made.call.lineno, name) for made in MADE for name in said_twice(made)] == []


def test_what_is_said_twice_would_be_seen():
    tree = ast.parse('SaveError(f"{key[:60]!r} is odd", file=label, key=str(key)[:200])')

    assert [said_twice(made) for made in made_in("x.py", tree, ERRORS)] == [["key"]]


@pytest.mark.parametrize(
    ("lines", "lacks"),
    [
        ('raise CorruptFileError(f"the header entry of {key!r} is odd", file=label)', "key"),
        ('raise InvalidAdapterError(f"{layer.keys[0][:60]!r} is meta, {key}", file=label)', "key"),
        ('raise SaveError(f"{place}: values do not fit {dtype}")', "key"),
        ('raise SaveError(f"{self.place.component}.{self.place.path}: beside its layer")', "component"),
        ('raise SaveError(f"{layer.target.written}: no base")', "key"),
        ('raise PipelineStateError(f"{live.component}.{live.path}: {reason}")', "component"),
        ('raise SaveError(f"{stem}: cannot be written to {folder}")', "file"),
        ('raise SourceError(f"{entry.name}: {entry.path} is there")', "file"),
        ('raise SourceError(f"the library\'s folder {str(self._root)} is away")', "file"),
        ('raise SourceError(f"{repo_id} is gated")', "file"),
        ('raise SourceNotFoundError(f"there is no {name!r} at {url[:500]}")', "file"),
        ('message = f"{label} holds nothing"\n    raise SourceNotFoundError(message)', "file"),
        ('raise SaveError(f"{odd_place} is there")', "file"),
        ('raise MatchError(f"there is no component {component!r} here")', "component"),
        ('raise AdapterNameError(f"{adapter_name!r} is in use")', "adapter"),
        ('raise MixError(f"max_rank must be 1 or more, got {rank}")', "argument"),
        ('raise MixError(f"{argument} must be one of {known}")', "argument"),
        ('raise PictureError("; ".join(problems))', "problems"),
        ('raise SaveError(f"what was written is odd: {first_of(wrong, 5, between=chr(10))}", **facts)', None),
        ('listed = first_of(wrong, 5, between="\\n")\n    raise MixError(f"odd:{listed}")', "problems"),
        ('raise SaveError(f"{len(lost)} keys would be lost: {first_of(lost, 5)}", file=label)', "problems"),
        ('return SaveError(f"{key}: is odd", file=label)', "key"),
        ('raise PictureError(f"{path}: no such file", field="image")', None),
        ('raise SaveError(f"{dtype} is odd", file=label, key=key)', None),
    ],
)
def test_the_test_before_finds_what_was_there_once(lines, lacks):
    tree = ast.parse(f"def f(odd_place: str | os.PathLike[str]):\n    {lines}\n")

    odd = [each for made in made_in("x.py", tree, ERRORS) for each in WORDS.odd(made)]

    assert {lacks} - {None} <= {field for each in odd for field in each.lacks}
    assert bool(odd) is (lacks is not None)
