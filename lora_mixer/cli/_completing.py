"""What a shell offers after Tab: files and the demo's names, samplers, schedules, methods; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.parsing import at_home

if TYPE_CHECKING:
    from collections.abc import Iterable

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_AT_MOST = 500


def models(incomplete: str) -> list[str]:
    """
    Return what a model's name may go on as.

    Example:
        >>> models("dem")[0]
        'demo'
    """
    return [*_beginning(incomplete, ["demo"]), *_paths(incomplete, _WEIGHTS)]


def adapters(incomplete: str) -> list[str]:
    """
    Return what an adapter's name may go on as.

    Example:
        >>> adapters("demo:wat")
        ['demo:watercolor']
    """
    choices = _paths(incomplete, _WEIGHTS)
    if "demo:".startswith(incomplete[:5]):
        from lora_mixer.demo import demo_adapters
        from lora_mixer.errors import LoraMixerError

        try:
            choices = [*_beginning(incomplete, (f"demo:{name}" for name in demo_adapters())), *choices]
        except LoraMixerError:  # the demo is not installed
            return choices
    return choices


def pictures(incomplete: str) -> list[str]:
    """Return the pictures and folders that a path may go on as."""
    return _paths(incomplete, _PICTURES)


def plans(incomplete: str) -> list[str]:
    """Return the plans and folders that a path may go on as."""
    from lora_mixer.batches import PLAN_FORMS

    return _paths(incomplete, tuple(suffix for form in PLAN_FORMS.values() for suffix in form.suffixes))


def samplers(incomplete: str) -> list[str]:
    """
    Return the samplers that a name may go on as.

    Example:
        >>> samplers("Euler")
        ['Euler', 'Euler a']
    """
    from lora_mixer.pictures import SAMPLERS

    return _beginning(incomplete, (each.name for each in SAMPLERS))


def schedules(incomplete: str) -> list[str]:
    """Return the words that a schedule may go on with."""
    from lora_mixer.pictures import SCHEDULES

    return _beginning(incomplete, SCHEDULES)


def formats(incomplete: str) -> list[str]:
    """
    Return the formats that a name may go on as.

    Example:
        >>> formats("ko")
        ['kohya']
    """
    from lora_mixer.writing import FORMATS

    return _beginning(incomplete, FORMATS)


def methods(incomplete: str) -> list[str]:
    """
    Return the merging methods that a name may go on as.

    Example:
        >>> methods("tie")
        ['ties']
    """
    from lora_mixer.merging import METHODS

    return _beginning(incomplete, METHODS)


def engines(incomplete: str) -> list[str]:
    """
    Return the engines of batches that a name may go on as.

    Example:
        >>> engines("r")
        ['ray']
    """
    from lora_mixer.batches import WORKER_ENGINES

    return _beginning(incomplete, WORKER_ENGINES)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def _paths(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """List the folders, with a slash, and the files of some endings whose paths begin so."""
    front, slash, start = incomplete.rpartition("/")
    folder = at_home(f"{front}/" if slash else ".")
    paths = []
    try:
        for place in sorted(folder.iterdir())[:_AT_MOST]:
            hidden = place.name.startswith(".") and not start.startswith(".")
            if not place.name.startswith(start) or hidden:
                continue
            if place.is_dir():
                paths.append(f"{front}{slash}{place.name}/")
            elif place.suffix.lower() in endings:
                paths.append(f"{front}{slash}{place.name}")
    except OSError:
        return []
    return paths
