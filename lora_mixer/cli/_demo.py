"""``lora-mixer demo``: a contact sheet of the embedded pipeline and its adapters, and the base back to the byte."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer import picture_metadata
from lora_mixer.cli._options import AsJson  # noqa: TC001 -- typer reads it at runtime
from lora_mixer.cli._output import OutputError
from lora_mixer.cli._saying import say
from lora_mixer.cli._terminal import console, plain, print_error
from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from rich.console import Console

    from lora_mixer.demo import DemoAdapter
    from lora_mixer.mixer import LoraMixer

    Pictures = NDArray[np.float32]  # (n, 128, 128, 3) in [0, 1]

EXIT_NOT_EQUAL = 1
SUBJECTS = "castle,pizza,rocket,owl"
# Two styles that leave each other room, and one that grows evenly with its weight.
MIXED = {"watercolor": 0.6, "ink": 0.6}
GROWING = "ink"
WEIGHTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class _Column:
    """What one column shows: the mix of its pictures, and the words that go into their prompts."""

    heading: str
    mix: Mapping[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def demo(
    *,
    out: Annotated[str, typer.Option(help="Where to write the sheet, a .png path.")] = "demo.png",
    seed: Annotated[int, typer.Option(min=0, help="Of the first row; the next have the next.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of every picture; 20 look cleaner and take longer.")] = 8,
    subjects: Annotated[
        str, typer.Option(help="What to draw, with commas between: one row each.")
    ] = SUBJECTS,
    as_json: AsJson = False,
) -> None:
    """Draw a contact sheet with the embedded pipeline: the base, every style, mixes, and the base again."""
    start = time.perf_counter()
    names = [name.strip() for name in subjects.split(",") if name.strip()]
    if not names:
        raise LoraMixerError(
            "--subjects names none; example: --subjects 'castle, red apple'", argument="subjects"
        )
    path = _writable(out)
    terminal = console(stderr=as_json)
    terminal.print("Loading the demo's pipeline and adapters ...")
    from lora_mixer.demo import demo_adapters

    adapters = demo_adapters()
    mixer = _mixer(adapters)
    styles = [adapter for adapter in adapters.values() if adapter.kind == "style"]
    subject = next(adapter for adapter in adapters.values() if adapter.kind == "subject")
    bands = [
        ([f"a {name}" for name in names], names, _style_columns(styles)),
        ([subject.trigger], [subject.name], _subject_columns(subject, styles)),
    ]
    drawn = _draw(mixer, bands, seed, steps, terminal)
    from lora_mixer.demo import GUIDANCE_SCALE
    from lora_mixer.pictures import Band, contact_sheet

    sheet = contact_sheet(
        [
            Band([column.heading for column in columns], _rows(labels, pictures))
            for (_, labels, columns), pictures in zip(bands, drawn, strict=True)
        ]
    )
    picture_metadata.save_picture(
        sheet,
        path,
        picture_metadata.PictureSettings(
            seed=seed,
            steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            model="lora_mixer demo",
            extra={"subjects": ", ".join(names)},
        ),
    )
    equal = all(pictures[0].tobytes() == pictures[-1].tobytes() for pictures in drawn)
    if equal:
        terminal.print("The last column equals the first to the byte: disable_lora gave the base back.")
    count = sum(len(column) for pictures in drawn for column in pictures)
    took = time.perf_counter() - start
    facts = {
        "file": str(path),
        "pictures": count,
        "steps": steps,
        "seconds": round(took, 3),
        "restored": equal,
    }
    say(f"{path}: {count} pictures of {steps} steps in {took:.0f} s", facts, as_json=as_json)
    if not equal:
        print_error("the last column differs from the first: disable_lora did not give the base back.")
        raise typer.Exit(EXIT_NOT_EQUAL)


def _writable(out: str) -> Path:
    """Fail before the work and not after it."""
    path = Path(out)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise OutputError(f"--out must be a .png path (got {out!r}).", argument="out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error}. Choose another place with --out.", file=str(path), argument="out"
        ) from error
    return path


def _mixer(adapters: Mapping[str, DemoAdapter]) -> LoraMixer:
    from lora_mixer.demo import load_demo
    from lora_mixer.mixer import LoraMixer

    pipe: Any = load_demo()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    for name, adapter in adapters.items():
        mixer.load_lora_weights(adapter.path, adapter_name=name, strict=True)
    return mixer


def _style_columns(styles: list[DemoAdapter]) -> list[_Column]:
    words = {style.name: (style.trigger,) for style in styles}
    # Without words for it, an adapter of weight 0 is the base: so the weights are seen alone.
    growing = [_Column(f"{GROWING}\n{weight:g}", {GROWING: weight}) for weight in WEIGHTS]
    both = "\n".join(f"{name} {weight:g}" for name, weight in MIXED.items())
    return [
        _Column("base"),
        *growing,
        *(
            _Column(f"{style.name}\n1", {style.name: 1.0}, words[style.name])
            for style in _last(styles, GROWING)
        ),
        _Column(both, MIXED, tuple(word for name in MIXED for word in words[name])),
        _Column("base again"),
    ]


def _subject_columns(subject: DemoAdapter, styles: list[DemoAdapter]) -> list[_Column]:
    subject_name = subject.name
    return [
        _Column("base"),
        *(_Column(f"{subject_name}\n{weight:g}", {subject_name: weight}) for weight in (*WEIGHTS, 1.0)),
        *(
            _Column(
                f"{subject_name} 1\n{style.name} 0.8", {subject_name: 1.0, style.name: 0.8}, (style.trigger,)
            )
            for style in styles
        ),
        _Column("base again"),
    ]


def _last(styles: list[DemoAdapter], name: str) -> list[DemoAdapter]:
    """Begin with the style that the columns before lead up to."""
    return sorted(styles, key=lambda style: style.name != name)


def _draw(
    mixer: LoraMixer,
    bands: list[tuple[list[str], list[str], list[_Column]]],
    seed: int,
    steps: int,
    terminal: Console,
) -> list[list[Pictures]]:
    """Draw every column of every band, one batch each."""
    from rich.progress import Progress

    with Progress(console=terminal, transient=True) as progress:
        task = progress.add_task("", total=sum(len(prompts) * len(columns) for prompts, _, columns in bands))
        drawn: list[list[Pictures]] = []
        for prompts, labels, columns in bands:
            pictures = []
            for column in columns:
                what = " ".join(column.heading.split())
                progress.update(task, description=f"{', '.join(plain(label) for label in labels)}: {what}")
                if column.mix:
                    mixer.set_adapters(list(column.mix), list(column.mix.values()))
                else:
                    mixer.disable_lora()
                pictures.append(_column(mixer.pipe, prompts, column.words, seed, steps))
                progress.advance(task, len(prompts))
            drawn.append(pictures)
    return drawn


def _column(pipe: Any, prompts: list[str], words: tuple[str, ...], seed: int, steps: int) -> Pictures:
    import torch

    from lora_mixer.demo import GUIDANCE_SCALE

    # As numbers: two pictures can be equal as bytes of an image and still not be the same.
    pictures: Pictures = pipe(
        [", ".join((prompt, *words)) for prompt in prompts],
        num_inference_steps=steps,
        guidance_scale=GUIDANCE_SCALE,
        generator=[torch.Generator().manual_seed(seed + row) for row in range(len(prompts))],
        output_type="np",
    ).images
    return pictures


def _rows(labels: list[str], columns: list[Pictures]) -> list[tuple[str, list[Image]]]:
    from PIL import Image

    return [
        (label, [Image.fromarray((column[row] * 255).round().astype("uint8")) for column in columns])
        for row, label in enumerate(labels)
    ]
