"""
What users import explains itself: a summary, each argument, what comes back, what is raised, and an example that runs.

``tests/test_examples.py`` runs the examples. A method that a base class explains need not say it again; one is shown by its own
example or by that of its class; "Return ..." as a method's summary says what comes back.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import textwrap
from enum import Enum
from pathlib import Path

import pytest

import lora_mixer
import lora_mixer.training
import lora_mixer.ui
from lora_mixer.errors import LoraMixerError

ROOT = Path(__file__).resolve().parent.parent

MODULES = (
    "lora_mixer",
    "lora_mixer.bases",
    "lora_mixer.batches",
    "lora_mixer.errors",
    "lora_mixer.fresh",
    "lora_mixer.library",
    "lora_mixer.merging",
    "lora_mixer.mixes",
    "lora_mixer.picture_metadata",
    "lora_mixer.pictures",
    "lora_mixer.sites",
    "lora_mixer.sources",
    "lora_mixer.training",
    "lora_mixer.ui",
    "lora_mixer.writing",
)

RUN_BY_TESTS = {
    "lora_mixer.LoraMixer.capture": "tests/test_reserved.py",  # a CUDA device
    "lora_mixer.LoraMixer.load_textual_inversion": "tests/test_textual_inversion.py",  # a pipeline with a tokenizer
    "lora_mixer.LoraMixer.unload_textual_inversion": "tests/test_textual_inversion.py",
    "lora_mixer.Library.add_from_hub": "tests/test_library_adding.py",  # the Hub
    "lora_mixer.PictureMaker": "tests/test_pictures.py",  # a pipeline
    "lora_mixer.PictureMaker.make": "tests/test_pictures.py",
    "lora_mixer.PictureMaker.resolve": "tests/test_pictures.py",
    "lora_mixer.from_adapter": "tests/test_from_adapter.py",  # the Hub
    "lora_mixer.load_demo": "tests/test_demo_pictures.py",  # minutes
    "lora_mixer.load_pipeline": "tests/test_models.py",  # a model
    "lora_mixer.run_plan": "tests/test_batches.py",
    "lora_mixer.pictures.find_models": "tests/test_models.py",
    "lora_mixer.pictures.read_checkpoint": "tests/test_models.py",
    **{
        f"lora_mixer.sites.ModelSite.{name}": "tests/test_sites.py"
        for name in ("by_hash", "newest", "find", "download")
    },
    "lora_mixer.training.adapter_trainer": "tests/test_trainer.py",
    "lora_mixer.ui.AppState": "tests/browser.py",  # a server
    "lora_mixer.ui.build": "tests/test_light_imports.py",
    "lora_mixer.ui.launch": "tests/browser.py",
    "lora_mixer.writing.bake": "tests/test_cli_writing.py",  # a pipeline
    "lora_mixer.writing.push_to_hub": "tests/test_publishing.py",  # the Hub
    "lora_mixer.writing.extract": "tests/test_writing_api.py",
}
"""Examples that no docstring can run here, and the test that does what they show."""

HANDED_ON = {"lora_mixer.ui.AppState"}
"""What users make and hand on; its methods are the page's."""


def names():
    """Yield every class and function that a public module promises, once, with where it is found first."""
    seen = set()
    for module in map(importlib.import_module, MODULES):
        listed = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        for name in listed:
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and id(value) not in seen:
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value


def methods(owner):
    """Yield the public methods that a class defines itself; fields and properties are its attributes."""
    for name, value in vars(owner).items():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        wanted = inspect.isfunction(function) and function.__module__.startswith(("lora_mixer", "ui"))
        if not name.startswith("_") and wanted and not function.__name__.startswith(("_", "model_post_init")):
            yield name, function


def explained(owner, name, function):
    """Return the docstring of a method, that of what it overrides behind it."""
    return "\n".join(
        inspect.cleandoc(vars(base)[name].__doc__ or "")
        for base in inspect.getmro(owner)
        if name in vars(base) and getattr(vars(base)[name], "__doc__", None)
    ) or inspect.cleandoc(function.__doc__ or "")


def section(doc, *titles):
    """Return the sections of docstrings that have one of these titles; empty where there is none."""
    return "".join(re.findall(rf"^(?:{'|'.join(titles)}):\n((?:[ \t]+.*\n?|\n)+)", doc + "\n", re.MULTILINE))


def unnamed(doc, parameters):
    """Return the parameters that no entry of the arguments is about."""
    told = section(doc, "Args", "Attributes")
    entries = {
        name.strip("* `")
        for line in re.findall(r"^ +([*`\w, ]+):", told, re.MULTILINE)
        for name in line.split(",")
    }
    return [name for name in parameters if name not in entries]


def arguments(function):
    return [
        name
        for name in inspect.signature(function).parameters
        if name not in ("self", "cls") and not name.startswith("_")
    ]


def gives(function):
    return inspect.signature(function).return_annotation not in (
        None,
        "None",
        inspect.Signature.empty,
        "NoReturn",
    )


def raised(function):
    """Return the classes that a function itself raises by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        ):
            error = function.__globals__.get(node.exc.func.id)
            if inspect.isclass(error) and issubclass(error, LoraMixerError):
                yield error


def unraised(function, doc):
    told = section(doc, "Raises")
    return sorted(
        {
            error.__name__
            for error in raised(function)
            if not any(base.__name__ in told for base in error.__mro__)
        }
    )


def shown(doc):
    examples = doctest.DocTestParser().get_examples(doc)
    return bool(examples) and not any(doctest.SKIP in each.options for each in examples)


def all_examples(owner):
    """Return what the examples of a class and its methods say."""
    docs = [
        doc
        for base in inspect.getmro(owner)
        if base is not object
        for doc in (base.__doc__, *(f.__doc__ for _, f in methods(base)))
    ]
    return "".join(
        each.source
        for doc in docs
        for each in doctest.DocTestParser().get_examples(doc or "")
        if doctest.SKIP not in each.options
    )


def lacks_of_function(doc, function, *, is_method=False):
    lacks = [f"argument {name}" for name in unnamed(doc, arguments(function))]
    summary = doc.partition("\n")[0]
    if (
        gives(function)
        and not section(doc, "Returns", "Yields")
        and not (is_method and summary.startswith("Return "))
    ):
        lacks.append("what it returns")
    return lacks + [f"raises {name}" for name in unraised(function, doc)]


def lacks_of_class(owner):
    doc = inspect.cleandoc(owner.__doc__ or "")
    lacks = []
    if dataclasses.is_dataclass(owner):
        inherited = "\n".join(
            inspect.cleandoc(base.__doc__ or "") for base in inspect.getmro(owner) if base is not object
        )
        own = [
            field.name
            for field in dataclasses.fields(owner)
            if field.init and not field.name.startswith("_") and not field.metadata
        ]
        documented = inspect.getsource(owner)  # fields may have a docstring of their own
        lacks += [
            f"field {name}"
            for name in unnamed(inherited, own)
            if not re.search(rf'^    {name}: [^\n]*\n(?:[^"\n]*\n)*? +r?"""', documented, re.MULTILINE)
        ]
    elif "__init__" in vars(owner) and not issubclass(owner, Exception | Enum):
        lacks += [f"argument {name}" for name in unnamed(doc, arguments(owner.__init__))]
    if (
        not shown(doc)
        and not issubclass(owner, Enum)
        and not shown("\n".join(f.__doc__ or "" for _, f in methods(owner)))
    ):
        lacks.append("example")
    return lacks


def lacks():
    """Return what every public name lacks, by name."""
    table = {}
    for path, value in names():
        doc = inspect.cleandoc(value.__doc__ or "")
        summary = doc.partition("\n")[0]
        table[path] = [] if summary else ["summary"]
        if inspect.isclass(value):
            table[path] += lacks_of_class(value)
            examples = all_examples(value)
            for name, function in () if path in HANDED_ON else methods(value):
                told = explained(value, name, function)
                missing = lacks_of_function(told, function, is_method=True)
                if not told:
                    missing.append("summary")
                if not re.search(rf"\.{name}\(", examples):
                    missing.append("example")
                table[f"{path}.{name}"] = missing
        else:
            table[path] += lacks_of_function(doc, value)
            if not shown(doc):
                table[path].append("example")
    return {
        name: [each for each in missing if each != "example" or name not in RUN_BY_TESTS]
        for name, missing in table.items()
    }


TABLE = lacks()


@pytest.mark.parametrize("name", TABLE)
def test_a_public_name_explains_itself(name):
    assert TABLE[name] == []


@pytest.mark.parametrize("name", RUN_BY_TESTS)
def test_what_no_docstring_can_run_is_shown_and_tested(name):
    module, *path = name.removeprefix("lora_mixer.").split(".")
    value = getattr(lora_mixer, module)
    for part in path:
        value = getattr(value, part)
    called = name.rpartition(".")[2]

    assert called in "".join(each.source for each in doctest.DocTestParser().get_examples(value.__doc__))
    assert called in (ROOT / RUN_BY_TESTS[name]).read_text(encoding="utf-8")


def test_every_public_module_is_looked_at():
    assert len(TABLE) > 300
    assert {"lora_mixer.LoraMixer.set_mix", "lora_mixer.writing.merge", "lora_mixer.Mix.of"} <= TABLE.keys()


def test_what_is_missing_would_be_found():
    def bare(path, *, size=1):
        """Do something."""
        if size:
            raise LoraMixerError("no")
        return path

    bare.__annotations__["return"] = "str"

    assert lacks_of_function(inspect.cleandoc(bare.__doc__), bare) == [
        "argument path",
        "argument size",
        "what it returns",
        "raises LoraMixerError",
    ]
    assert not shown(">>> bare(1)  # doctest: +SKIP")
    assert shown(">>> 1\n1")
