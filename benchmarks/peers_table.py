"""
What diffusers + PEFT and this package make of every adapter in ../shared/data, as a table in Markdown.

``python -m benchmarks.peers_table > docs/peers.md``. Every generated adapter is loaded into the tiny pipeline that it was
made on, by each program, and its outputs at each noted weight are compared with those of the tool that made it
(relative Frobenius norm, the largest of all outputs and weights). Real files are loaded onto full-size modules without
weights, and their changes compared with the noted ones. Transformers have a section of their own
(``benchmarks.peers_families``).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lora_mixer import LoraMixer
from tests.references import Reference, Tiny, names, relative, tiny
from tests.test_references import MIX, OTHER_OUTPUTS, STRENGTHS

if TYPE_CHECKING:
    from collections.abc import Callable

_EQUAL = 1e-5
_NOTHING = "**loads nothing**, with a warning only"
_REAL = (
    "catundchat_pytorch_lora_weights.safetensors",
    "cloneofsimo_lora_disney.safetensors",
    "cloneofsimo_lora_illust.pt",
    "lycoris_smart_falcon_8_lokr.safetensors",
    "sdxl_text_encoder_peft",
    "invokeai_test_embedding.safetensors",
)


def data_folder() -> Path:
    """Find the reference data, where the tests find it."""
    found = os.environ.get("LORA_MIXER_SHARED_DATA")
    return Path(found) if found else Path(__file__).resolve().parents[2] / "shared" / "data"


def verdict(error: float) -> str:
    """Say in one word or number how far off outputs are."""
    return "equal" if error <= _EQUAL else f"**off by {error:.2g}**"


def reason(error: Exception) -> str:
    """Give the first line of an error, short, with nothing that would break a table."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace("|", "/").replace("`", "'").replace(f"{data_folder()}/", "")
    return f"refuses: {type(error).__name__}: {text[:90]}{'...' if len(text) > 90 else ''}"


def worst(pipeline: Tiny, reference: Reference, prefix: str) -> float:
    """Compare the pipeline's outputs with a reference's; errors of every output."""
    outputs = pipeline.outputs()
    errors = [
        relative(outputs[key.partition("/")[2]], expected)
        for key, expected in reference.tensors.items()
        if key.startswith(f"{prefix}/")
    ]
    return max(errors)


@contextlib.contextmanager
def fresh(data: Path, kind: str) -> Any:
    """Give a copy of a tiny pipeline that a peer may change as it likes."""
    whole = tiny(data, kind)
    other = copy.copy(whole)
    other.pipe = copy.deepcopy(whole.pipe)
    yield other


def by_diffusers(data: Path, name: str, reference: Reference) -> str:
    """Load with ``pipe.load_lora_weights`` and compare at each weight."""
    source = reference.source
    with fresh(data, reference.base) as pipeline:
        pipe = pipeline.pipe
        if source.is_dir():
            pipe.load_lora_weights(str(source), weight_name="adapter_model.safetensors", adapter_name="a")
        else:
            pipe.load_lora_weights(str(source.parent), weight_name=source.name, adapter_name="a")
        if not any("lora_" in key for part in parts(pipe).values() for key in part.state_dict()):
            return _NOTHING
        errors = []
        for weight in reference.weights():
            pipe.set_adapters("a", float(weight))
            errors.append(worst(pipeline, reference, f"{outputs_of(name)}@{weight}"))
        return verdict(max(errors))


def by_peft(data: Path, name: str, reference: Reference) -> str:
    """Load a PEFT folder with ``PeftModel.from_pretrained`` and compare at weight 1."""
    if not reference.source.is_dir():
        return "-"
    with fresh(data, reference.base) as pipeline:
        component = reference.facts.get("component") or "unet"
        part = getattr(pipeline.pipe, component)
        wrapped = peft.PeftModel.from_pretrained(part, str(reference.source))
        if outputs_of(name) == "merged_out":
            wrapped.merge_and_unload()
        return verdict(worst(pipeline, reference, f"{outputs_of(name)}@1.0"))


def by_us(data: Path, name: str, reference: Reference) -> str:
    """Load with this package, strictly, and compare at each weight; then ask for the base."""
    pipeline = tiny(data, reference.base)
    mixer = LoraMixer(pipeline.pipe)
    try:
        mixer.load_lora_weights(
            reference.source,
            "a",
            component=reference.facts.get("component"),
            strict=True,
            dora_strength=STRENGTHS.get(name),
        )
        errors = []
        for weight in reference.weights():
            mixer.set_adapters("a", float(weight))
            errors.append(worst(pipeline, reference, f"{outputs_of(name)}@{weight}"))
    finally:
        mixer.unload_lora_weights()
    return verdict(max(errors)) if pipeline.is_base() else "the base did not come back"


def outputs_of(name: str) -> str:
    """Name the outputs that count: the tool's forward, or its merge where the forward is known wrong."""
    return OTHER_OUTPUTS[name][0].rstrip("@") if name in OTHER_OUTPUTS else "out"


def parts(pipe: Any) -> dict[str, torch.nn.Module]:
    """List the modules of a pipeline."""
    return {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}


def attempt(job: Callable[..., str], *arguments: Any) -> str:
    """Run one program, whatever it raises."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return job(*arguments)
        except Exception as error:  # noqa: BLE001 -- a refusal of any kind is a result
            return reason(error)


def full_size(width: int, **fields: Any) -> StableDiffusionPipeline:
    """Make SD 1.5 or SD 2.1 without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=width, **fields)
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    return StableDiffusionPipeline(
        vae=None, text_encoder=text, tokenizer=None, unet=unet, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def real_by_diffusers(path: Path) -> str:
    """Load a real file with diffusers; how many modules of the model got a layer."""
    linear = {"use_linear_projection": True, "attention_head_dim": (5, 10, 20, 20)}
    pipe = full_size(1024, **linear) if path.suffix == ".pt" else full_size(768, attention_head_dim=8)
    name = "adapter_model.safetensors" if path.is_dir() else path.name
    pipe.load_lora_weights(str(path if path.is_dir() else path.parent), weight_name=name, adapter_name="a")
    layers = [m for part in parts(pipe).values() for m in part.modules() if hasattr(m, "lora_A")]
    return f"loads: {len(layers)} modules" if layers else _NOTHING


def real_by_us(path: Path) -> str:
    """Bind a real file to the same modules; weights are not needed for that."""
    from lora_mixer.binding import bind, find_components
    from lora_mixer.formats import read_source
    from lora_mixer.sources import resolve_source

    linear = {"use_linear_projection": True, "attention_head_dim": (5, 10, 20, 20)}
    pipe = full_size(1024, **linear) if path.suffix == ".pt" else full_size(768, attention_head_dim=8)
    adapter = read_source(resolve_source(path, allow_pickle=True))
    report = bind(adapter, find_components(pipe), "a").report
    words = (
        f", words {', '.join(f'`{w}`' for w in adapter.info.embeddings)} on request"
        if adapter.info.embeddings
        else ""
    )
    missing = f", {report.unmatched} not" if report.unmatched else ""
    return f"loads: {report.matched} modules{missing}{words}"


def main() -> None:
    """Print the page."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = Path(
        os.environ.get("LORA_MIXER_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared/data"
    )
    rows: list[tuple[str, str, str, str]] = []
    for name in names():
        if name == MIX:
            continue
        reference = Reference.read(data, name)
        row = (
            name,
            attempt(by_diffusers, data, name, reference),
            attempt(by_peft, data, name, reference),
            attempt(by_us, data, name, reference),
        )
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    real = [
        (f, attempt(real_by_diffusers, data / "files" / f), attempt(real_by_us, data / "files" / f))
        for f in _REAL
    ]
    from benchmarks.peers_families import section  # which asks this module where the data is

    print(page(rows, real))
    print(section())


def page(rows: list[tuple[str, str, str, str]], real: list[tuple[str, str, str]]) -> str:
    """Lay the results out."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("diffusers", "peft", "transformers", "torch")
    )
    count = [sum(row[column] == "equal" for row in rows) for column in (1, 2, 3)]
    folders = sum(row[2] != "-" for row in rows)
    lines = [
        "# The same files in other programs",
        "",
        "Made by `python -m benchmarks.peers_table > docs/peers.md` (CPU, fp32; " + versions + ").",
        "",
        "Each file was written by a real tool on a tiny pipeline. *equal*: every output, at weight 1.0 and 0.6 where the",
        "tool has both, is within 1e-5 (relative) of that of the tool that wrote the file; *off by*: the largest such error.",
        "PEFT is asked only for its own folders, at weight 1.",
        "",
        f"Of {len(rows)} adapters diffusers meets {count[0]}, PEFT {count[1]} of its {folders} folders, `lora_mixer` {count[2]}.",
        "",
    ]
    tool = ""
    for name, *cells in rows:
        folder, _, adapter = name.partition("/")
        if folder != tool:
            tool = folder
            lines += [
                "",
                f"## {folder}",
                "",
                "| adapter | diffusers | PEFT | lora_mixer |",
                "| --- | --- | --- | --- |",
            ]
        lines.append(f"| {adapter} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Real files, on full-size models",
        "",
        "| file | diffusers | lora_mixer |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in real]
    lines += [
        "",
        "The changes that these files make are compared with noted ones in `tests/test_real_files.py`.",
        "",
        "References follow the tool's own forward; for "
        + ", ".join(OTHER_OUTPUTS)
        + " its merge (docs/formats.md says why). LyCORIS' DoRAs are asked for under the name of its own meaning of weights below 1"
        + " (`dora_strength`); the one in use agrees at 1 only.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
