"""
What diffusers + PEFT and this package make of every transformer's adapter in ../shared/data/dit, by family and spelling.

``python -m benchmarks.peers_families`` prints the section of docs/peers.md. Each file is loaded onto the tiny model that it
was made for, and every weight of the denoisers is compared with the reference, which no adapter converter made.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from benchmarks.peers_table import data_folder
from lora_mixer import LoraMixer
from tests.test_families_references import REFERENCES
from tests.transformers_data import Parts, Reference, distance, parts_of, plain, reference, state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_EQUAL, _CHANGE = 1e-5, 1e-4


def outcome(own: Reference, parts: Parts, before: Mapping[tuple[str, str], torch.Tensor]) -> str:
    """Compare the denoisers' weights with the reference's: exact, no effect, or how many are wrong."""
    wrong = moved = total = 0
    for part, module in parts.components.items():
        if not part.startswith("transformer"):
            continue
        wanted, found = own.merged(part), module.state_dict()
        for name, base in before.items():
            if name[0] != part:
                continue
            tensor, target = found.get(name[1]), wanted.get(plain(name[1]))
            total += target is not None
            changed = tensor is None or tensor.shape != base.shape or not torch.equal(tensor, base)
            moved += changed
            if target is None:
                wrong += changed
            elif tensor is None or tensor.shape != target.shape or distance(tensor, target) > _EQUAL:
                wrong += 1
            elif base.shape == target.shape:
                wrong += distance(tensor - base, target - base) > _CHANGE
    if not wrong:
        return "exact"
    return f"**wrong**: {wrong} of {total} weights" if moved else "**no effect**"


def by_diffusers(own: Reference, parts: Parts) -> None:
    """Load with the pipeline's converter and the model's own loader, and merge at 1."""
    pipeline = getattr(diffusers, str(own.facts["pipeline"]), None)
    if not hasattr(pipeline, "lora_state_dict"):
        raise NotImplementedError("the pipeline has no loader")
    source = own.adapter
    where: dict[str, Any] = {"weight_name": "adapter_model.safetensors"} if source.is_dir() else {}
    told: Any = pipeline.lora_state_dict(str(source), return_lora_metadata=True, **where)
    table, facts = told[0], told[-1]
    model: Any = parts.components[own.where.get("component", "transformer")]
    kept = {key: value for key, value in table.items() if key.startswith("transformer.")}
    model.load_lora_adapter(kept, prefix="transformer", adapter_name="a", metadata=facts)
    model.fuse_lora()
    model.unload_lora()


def by_us(own: Reference, parts: Parts) -> None:
    """Load with this package."""
    LoraMixer(parts).load_lora_weights(own.adapter, "a", **own.where)


def attempt(job: Callable[[Reference, Parts], None], own: Reference) -> str:
    """Run one program on a fresh model, whatever it raises."""
    parts = parts_of(data_folder(), own)
    before = state(parts)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            job(own, parts)
    except NotImplementedError as error:
        return f"no loader: {error}"
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, AssertionError) or "split_sizes" in str(error):
            return "not told: its converter holds the sizes of the full model"
        return _refused(error)
    except Exception as error:  # noqa: BLE001 -- a refusal of any kind is a result
        return _refused(error)
    return outcome(own, parts, before)


def _refused(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "/").replace("`", "'").replace(f"{data_folder()}/", "")
    told, brace, _ = text[:70].partition("{")  # a set has another order each time
    return f"refuses: {type(error).__name__}: {told}{'{...' if brace else ''}"


def section() -> str:
    """Return the part of docs/peers.md."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    rows = []
    for name in REFERENCES:
        own = reference(data_folder(), name)
        rows.append((name, own.facts["spelling"], attempt(by_diffusers, own), attempt(by_us, own)))
    counts = [sum(row[column] == "exact" for row in rows) for column in (2, 3)]
    lines = [
        "",
        "## Transformers, by family and spelling",
        "",
        "Made by `python -m benchmarks.peers_families`, at weight 1. *exact*: every weight of the denoisers is within 1e-5 of the",
        "reference, which was made by changing the original checkpoint, and every change within 1e-4. Text encoders' parts are not",
        "compared here. diffusers is asked by its pipeline's converter and the model's own loader, without what whole pipelines do for",
        "control adapters. Some of its converters hold the sizes of full models, so that a tiny one tells nothing of them.",
        "",
        f"Of {len(rows)} adapters diffusers meets {counts[0]}, `lora_mixer` {counts[1]}.",
        "",
        "| adapter | spelling | diffusers | lora_mixer |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {str(spelling).replace('|', '/')} | {theirs} | {ours} |"
            for name, spelling, theirs, ours in rows
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(section())
