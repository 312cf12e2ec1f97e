"""The adapters that ship with the demo: what each is called, how it is trained and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Adapter:
    name: str
    trigger: str
    style: str | None  # a function of styles.py; None is the subject LoRA
    layout: str  # kohya | kohya-loha | peft-folder | peft-file
    rank: int
    text_encoder: bool = False
    steps: int = 900
    rate: float = 1e-3
    title: str = ""

    @property
    def file(self) -> str:
        return self.name if self.layout == "peft-folder" else f"{self.name}.safetensors"


ADAPTERS = (
    Adapter("pixel", "pixel art", "pixel", "kohya", 4, title="Pixel art"),
    Adapter("watercolor", "watercolor painting", "watercolor", "kohya", 4, True, title="Watercolor"),
    Adapter("neon", "neon glow", "neon", "peft-folder", 5, title="Neon"),
    Adapter("ink", "ink sketch", "ink", "peft-file", 5, True, title="Ink sketch"),
    Adapter("blueprint", "blueprint drawing", "blueprint", "kohya-loha", 2, title="Blueprint"),
    Adapter("halftone", "halftone print", "halftone", "kohya", 5, title="Halftone print"),
    Adapter("lumo", "lumo", None, "kohya", 4, True, 220, 2e-3, title="Lumo, the mascot"),
)


def by_name(name: str) -> Adapter:
    return next(a for a in ADAPTERS if a.name == name)
