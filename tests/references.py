"""The reference data of ../shared/data/generated: tiny pipelines, their inputs, and what each tool made of an adapter."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

if TYPE_CHECKING:
    from lora_mixer import LoraMixer

ROOT = Path(__file__).resolve().parent.parent
TEXT_ROOT = "text_model."


def names() -> list[str]:
    """List the references as tool/name; empty where the data is missing, which the fixture then reports."""
    data = Path(os.environ.get("LORA_MIXER_SHARED_DATA") or ROOT.parent / "shared" / "data")
    found = (data / "generated").glob("*/golden_*.json")
    return sorted(f"{path.parent.name}/{path.stem.removeprefix('golden_')}" for path in found)


@dataclass
class Reference:
    """One golden: what was loaded, and what came out."""

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    files: list[Path]

    @classmethod
    def read(cls, data: Path, name: str) -> Reference:
        tool, _, stem = name.partition("/")
        path = data / "generated" / tool / f"golden_{stem}.json"
        facts = json.loads(path.read_text())
        files = [data / "generated" / file for file in facts["adapter_files"]]
        return cls(facts, load_file(path.with_suffix(".safetensors")), files)

    @property
    def source(self) -> Path:
        """What to load: the file, or the folder of a PEFT adapter."""
        first = self.files[0]
        return first.parent if first.name in ("adapter_config.json", "adapter_model.safetensors") else first

    @property
    def base(self) -> str:
        return "sdxl" if "sdxl" in self.facts["base_model"] else "sd"

    def weights(self) -> list[str]:
        """List the user weights that there are outputs for."""
        return sorted({key.split("@")[1].split("/")[0] for key in self.tensors if key.startswith("out@")})


class Tiny:
    """A tiny pipeline with its inputs and a copy of its base."""

    def __init__(self, data: Path, kind: str) -> None:
        self.kind = kind
        self.pipe = DiffusionPipeline.from_pretrained(data / f"tiny-{kind}")
        self.pipe.set_progress_bar_config(disable=True)
        self.inputs = load_file(data / "generated" / f"inputs_{kind}.safetensors")
        self.base = {key: value.clone() for key, value in self.state().items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Give all parameters by component and path, text encoders in today's names without ``text_model.``."""
        parts = ("unet", "text_encoder", "text_encoder_2")
        return {
            f"{part}.{key.removeprefix(TEXT_ROOT)}": value
            for part in parts
            if getattr(self.pipe, part, None) is not None
            for key, value in getattr(self.pipe, part).state_dict().items()
        }

    def is_base(self) -> bool:
        """Say whether every parameter is the base's, bit for bit."""
        return all(torch.equal(value, self.base[key]) for key, value in self.state().items())

    def changes(self) -> dict[str, torch.Tensor]:
        """Give what every changed parameter differs from the base by."""
        state = self.state()
        return {
            key: state[key] - base for key, base in self.base.items() if not torch.equal(state[key], base)
        }

    @torch.no_grad()
    def outputs(self) -> dict[str, torch.Tensor]:
        """Run every component on the reference inputs."""
        given, pipe = self.inputs, self.pipe
        extra = {}
        if self.kind == "sdxl":
            conditions = {key: given[key] for key in ("text_embeds", "time_ids")}
            extra["added_cond_kwargs"] = conditions
        states = given["encoder_hidden_states"]
        out = {"unet_out": pipe.unet(given["sample"], given["timesteps"], states, **extra).sample}
        for part, ids in (("text_encoder", "input_ids"), ("text_encoder_2", "input_ids_2")):
            encoder = getattr(pipe, part, None)
            if encoder is not None:
                result = encoder(given[ids], output_hidden_states=True)
                pooled = result.pooler_output if hasattr(result, "pooler_output") else result.text_embeds
                out[f"{part}.last_hidden_state"] = result.last_hidden_state
                out[f"{part}.penultimate_hidden_state"] = result.hidden_states[-2]
                out[f"{part}.pooled"] = pooled
        return out


@functools.cache
def tiny(data: Path, kind: str) -> Tiny:
    """Give one of the two tiny pipelines, loaded once."""
    return Tiny(data, kind)


def compare(pipeline: Tiny, reference: Reference, prefixes: tuple[str, ...]) -> dict[str, float]:
    """Give the relative error (Frobenius norm) of every reference tensor under these prefixes."""
    outputs = pipeline.outputs() if any("merged@" not in prefix for prefix in prefixes) else {}
    state = pipeline.state()
    errors = {}
    for key, expected in reference.tensors.items():
        group, _, name = key.partition("/")
        if group in prefixes:
            got = state[name.replace(f".{TEXT_ROOT}", ".")] if group.startswith("merged@") else outputs[name]
            errors[key] = relative(got, expected)
    return errors


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Give |got - expected| / |expected|."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def load(mixer: LoraMixer, reference: Reference, name: str, **options: Any) -> Any:
    """Load a reference's adapter into the component that its facts name."""
    return mixer.load_lora_weights(
        reference.source, name, component=reference.facts.get("component"), strict=True, **options
    )
