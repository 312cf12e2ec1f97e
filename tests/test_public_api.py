"""What ``lora_mixer`` promises by name is there and explains itself."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

import pytest

import lora_mixer
import lora_mixer.errors
import lora_mixer.library
import lora_mixer.picture_metadata
import lora_mixer.sources


def public_names():
    for module in (lora_mixer, lora_mixer.library, lora_mixer.picture_metadata, lora_mixer.sources):
        yield from ((module, name) for name in getattr(module, "__all__", ()))
    for name, value in vars(lora_mixer.errors).items():
        if isinstance(value, type):
            yield lora_mixer.errors, name


def test_all_is_sorted_and_names_nothing_twice():
    names = list(getattr(lora_mixer, "__all__", ()))

    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("module", "name"), [pytest.param(m, n, id=f"{m.__name__}.{n}") for m, n in public_names()]
)
def test_every_public_name_exists_with_a_docstring(module, name):
    value = getattr(module, name)

    if inspect.isclass(value) or inspect.isroutine(value):
        assert (value.__doc__ or "").strip()
        # A dataclass without one gets its signature as a docstring.
        assert not value.__doc__.startswith(f"{name}(")
    elif isinstance(value, Mapping | str | tuple) and name != "__version__":
        assert value
    elif name != "__version__":
        assert inspect.ismodule(value)


def test_every_error_is_one_of_the_packages_own():
    module = lora_mixer.errors
    errors = [x for x in vars(module).values() if inspect.isclass(x) and x.__module__ == module.__name__]

    assert len(errors) > 10
    assert all(issubclass(error, lora_mixer.errors.LoraMixerError) for error in errors)


def test_a_package_without_exports_says_what_it_is_for():
    assert importlib.import_module("lora_mixer.ui").__doc__


@pytest.mark.parametrize(
    ("former", "now"),
    [("MixBook", "SavedMixes"), ("strengths", "layer_norms"), ("Axis", "GridAxis"), ("StepReport", "StepProgress"),
     ("Recall", "AdapterMatches"), ("RecalledAdapter", "PictureAdapter"), ("picture_text", "infotext")],
)  # fmt: skip
def test_names_from_before_the_first_tag_answer_with_a_warning(former, now):
    with pytest.warns(DeprecationWarning, match=now):
        assert getattr(lora_mixer, former) is getattr(lora_mixer, now)


@pytest.mark.parametrize(("former", "now"), [("Settings", "ServerOptions"), ("Studio", "AppState")])
def test_names_of_the_page_from_before_the_first_tag_answer_with_a_warning(former, now):
    page = importlib.import_module("lora_mixer.ui")

    with pytest.warns(DeprecationWarning, match=now):
        assert getattr(page, former) is getattr(page, now)
