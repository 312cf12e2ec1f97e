"""The embedded demo: a small trained pipeline and its adapters, for true pictures on a CPU, offline."""

from __future__ import annotations

import importlib.util
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SourceNotFoundError
from lora_mixer.parsing.json_text import loose_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from diffusers import StableDiffusionPipeline

__all__ = ["GUIDANCE_SCALE", "STEPS", "DemoAdapter", "demo_adapters", "load_demo"]

# What the pipeline was made for; its model card says the same.
STEPS = 20
GUIDANCE_SCALE = 3.0

_MARK = "demo:"
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DemoAdapter:
    """
    One adapter of the demo.

    Attributes:
        name: How it is called here, such as ``watercolor``.
        title: How it is called in text.
        path: Its file, or its folder.
        trigger: The words that call for it in a prompt.
        kind: ``style`` or ``subject``.
        format: ``kohya``, ``kohya-loha``, ``peft-file`` or ``peft-folder``.
        held_out: Subjects that the pipeline knows and this adapter's training never saw.

    Example:
        >>> ink = demo_adapters()["ink"]
        >>> ink.name, ink.path.name
        ('ink', 'ink.safetensors')
    """

    name: str
    title: str
    path: Path
    trigger: str
    kind: str
    format: str
    held_out: tuple[str, ...]


def load_demo(
    *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> StableDiffusionPipeline:
    """
    Load the demo's pipeline: 128 x 128 pixels, made for 20 steps and ``guidance_scale=3``.

    Args:
        dtype: The type of the weights; None is float32, in which the demo was tested.
        device: Where to put it.

    Returns:
        A plain pipeline of diffusers, which every adapter of :func:`demo_adapters` fits.

    Raises:
        SourceNotFoundError: When the demo's files are not there.

    Example:
        >>> from lora_mixer import LoraMixer, demo_adapters, load_demo
        >>> mixer = LoraMixer(load_demo())  # doctest: +SKIP
        >>> mixer.load_lora_weights(demo_adapters()["ink"].path, adapter_name="ink")  # doctest: +SKIP
        >>> mixer.pipe("a castle", num_inference_steps=20, guidance_scale=3.0).images[0]  # doctest: +SKIP
    """
    folder = demo_folder()
    import torch

    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        pipelines: Any = StableDiffusionPipeline
        loaded: StableDiffusionPipeline = pipelines.from_pretrained(
            folder, torch_dtype=torch.float32 if dtype is None else dtype, local_files_only=True
        ).to(device)
    return loaded


def demo_folder() -> Path:
    """
    Return the folder of the demo's pipeline.

    Raises:
        SourceNotFoundError: When the demo's files are not there.
    """
    return _folder("demo", "model_index.json")


def demo_adapters() -> dict[str, DemoAdapter]:
    """
    List the demo's adapters by name: the styles, then the subject.

    Returns:
        Each by its name, in the order of the table.

    Raises:
        SourceNotFoundError: When the demo's files are not there.

    Example:
        >>> demo_adapters()["watercolor"].trigger
        'watercolor painting'
        >>> [adapter.name for adapter in demo_adapters().values() if adapter.kind == "subject"]
        ['lumo']
    """
    folder = _folder("loras", "styles.json")
    table = loose_json((folder / "styles.json").read_text(encoding="utf-8"))
    held_out = tuple(table["held_out_subjects"])
    return {
        entry["name"]: DemoAdapter(
            name=entry["name"],
            title=entry["title"],
            path=folder / entry["file"],
            trigger=entry["trigger"],
            kind="style" if entry["style"] else "subject",
            format=entry["format"],
            held_out=held_out,
        )
        for entry in table["adapters"]
    }


def local_source(source: str) -> str:
    """
    Return the path of ``demo:NAME``; any other source stays as it is.

    Raises:
        SourceNotFoundError: When the demo has no such adapter, or its files are not there.

    Example:
        >>> local_source("demo:ink").endswith("ink.safetensors"), local_source("demo/ink")
        (True, 'demo/ink')
    """
    if not source.startswith(_MARK):
        return source
    adapters, name = demo_adapters(), source.removeprefix(_MARK)
    if name not in adapters:
        raise SourceNotFoundError(
            f"the demo has no adapter {name!r}; it has {', '.join(adapters)}", adapter=name
        )
    return str(adapters[name].path)


def _folder(name: str, holds: str) -> Path:
    """Find a folder of assets: beside the package in a checkout, or in the package lora-mixer-demo."""
    places = [_PACKAGE.parent / "assets" / name]
    spec = importlib.util.find_spec("lora_mixer_demo")
    if spec is not None:
        places += [Path(place) / name for place in spec.submodule_search_locations or ()]
    for place in places:
        if (place / holds).is_file():
            return place
    raise SourceNotFoundError(
        "the demo is a package of its own, which is not installed: pip install lora-mixer-demo "
        "(in a checkout: pip install ./assets)"
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what diffusers and transformers say while they load to themselves; afterwards they talk as before."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    bars = [(library, library.is_progress_bar_enabled()) for library in (of_diffusers, of_transformers)]
    levels = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    with warnings.catch_warnings():
        # The newest diffusers call it "dtype", and still take the name that the older ones need.
        warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
        try:
            for library, _ in bars:
                library.disable_progress_bar()
                library.set_verbosity_error()
            yield
        finally:
            for library, level in levels:
                library.set_verbosity(level)
            for library, shown in bars:
                if shown:
                    library.enable_progress_bar()
