"""
Which families are read, in which spellings, with which text encoders; and the traps that tests fall into.

``python -m benchmarks.families_table > docs/families.md``. Families and spellings are the rows of ``lora_mixer/families``, text
encoders are what diffusers' pipelines of that transformer declare, and the last column is measured: every adapter of
``../shared/data/dit`` is loaded onto its tiny model and compared with its reference.
"""

from __future__ import annotations

import inspect
import logging
import typing
import warnings
from typing import Any

import diffusers

from benchmarks.peers_families import attempt, by_us
from benchmarks.peers_table import data_folder
from lora_mixer.families import family_of_class
from lora_mixer.families.spelling import read_table
from lora_mixer.families.table import FAMILIES
from tests.test_families_references import REFERENCES
from tests.test_families_traps import TRAPS
from tests.transformers_data import reference

_KINDS = {
    "CLIPTextModel": "`lora_te1_`, `lora_te_`, `clip_l.`",
    "CLIPTextModelWithProjection": "`lora_te2_`, `clip_g.`",
    "T5EncoderModel": "`lora_te3_`, OneTrainer's `lora_te2_`, `t5xxl.`",
    "UMT5EncoderModel": "`lora_te3_`, `umt5xxl.`",
}
_LANGUAGE = "`lora_te_layers_`, `text_encoders.NAME.transformer.model.`"
_ENDS = ("ControlNet", "Inpaint", "Img2Img", "PAG", "Modular", "Decoder", "Upsample")


def encoders() -> dict[str, dict[str, set[str]]]:
    """Give, by family, the components of its pipelines that encode text, and their classes."""
    found: dict[str, dict[str, set[str]]] = {}
    for name in dir(diffusers):
        if not name.endswith("Pipeline") or any(word in name for word in _ENDS):
            continue
        given = _parameters(getattr(diffusers, name))
        family = next(
            (f for kind in given.get("transformer", ()) if (f := family_of_class(kind)) is not None), None
        )
        if family is not None:
            for part, kinds in given.items():
                if part.startswith("text_encoder") and kinds:
                    found.setdefault(family.name, {}).setdefault(part, set()).update(kinds)
    return found


def _parameters(pipeline: Any) -> dict[str, list[str]]:
    try:
        hints = typing.get_type_hints(pipeline.__init__)
    except (NameError, TypeError, AttributeError):
        hints = {key: p.annotation for key, p in inspect.signature(pipeline.__init__).parameters.items()}
    return {key: [kind.__name__ for kind in _kinds(hint)] for key, hint in hints.items()}


def _kinds(hint: Any) -> list[type]:
    parts = typing.get_args(hint) or (hint,)
    return [part for part in parts if isinstance(part, type) and part is not type(None)]


def measured() -> dict[str, list[tuple[str, str]]]:
    """Load every reference; give names and outcomes by family."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in REFERENCES:
        own = reference(data_folder(), name)
        family = family_of_class(own.facts["classes"]["transformer"])
        found.setdefault(family.name if family else "of no family", []).append((name, attempt(by_us, own)))
    return found


def spellings(layouts: dict[str, str]) -> str:
    """Give the layouts of a family, each with a name of a layer as an example."""
    told = []
    for name, table in layouts.items():
        rules = [rule.spelling for rule in read_table(table)]
        shown = next((x for x in rules if "attn" in x or "attention" in x or "qkv" in x), rules[0])
        told.append(f"{name} (`{shown}`)")
    return ", ".join(told) or "the same names in all tools"


def page() -> str:
    """Return docs/families.md."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    texts, done = encoders(), measured()
    exact = sum(outcome == "exact" for own in done.values() for _, outcome in own)
    lines = [
        "# Families of transformers",
        "",
        f"Made by `python -m benchmarks.families_table > docs/families.md` with diffusers {diffusers.__version__}. Of",
        f"{len(REFERENCES)} reference adapters {exact} are exact: every weight within 1e-5 and every change within 1e-4 of a changed original",
        "checkpoint.",
        "",
        "Every family is read in diffusers' own names and in those of its original code, dotted and flat, behind every front and with every",
        "ending (`tests/test_families_fronts.py`, `tests/test_families_spellings.py`): Kohya, musubi-tuner, OneTrainer, ComfyUI,",
        "ai-toolkit, SimpleTuner, DiffSynth, PEFT. Text encoders are found by kind, whatever number a tool gives them.",
        "",
        "| family | classes begin with | spellings beside diffusers' own | Kohya's files are written in | text encoders | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        if not family.classes or not family.is_transformer:
            continue
        own = done.get(family.name, [])
        wrong = [f"{name}: {outcome}" for name, outcome in own if outcome != "exact"]
        told = "; ".join(
            f"`{part}` {', '.join(sorted(kinds))}"
            for part, kinds in sorted(texts.get(family.name, {}).items())
        )
        lines.append(
            f"| {family.name} | {', '.join(f'`{x}`' for x in family.classes)} | {spellings(dict(family.layouts))} | "
            f"{family.kohya_flat or 'diffusers names'} | {told or '-'} | "
            + (
                f"{len(own) - len(wrong)} of {len(own)}{': ' if wrong else ''}{'; '.join(wrong)} |"
                if own
                else "by rows |"
            )
        )
    lines += [
        "",
        "*by rows*: there is no tiny model of it in the shared data; its rows are tested on modules of its names",
        "(`tests/test_families_others.py`, `tests/test_families_key_lists.py`).",
        "",
        "| text encoder | how files begin |",
        "| --- | --- |",
        *(f"| {kind} | {front} |" for kind, front in _KINDS.items()),
        f"| language models (Gemma, Qwen, Llama, Mistral) | {_LANGUAGE} |",
        "| any | `text_encoder.`, `text_encoder_2.`, ..., `base_model.model.text_encoder.` |",
        "",
        "## Traps",
        "",
        "| | what | tests, and adapters of the references |",
        "| --- | --- | --- |",
    ]
    for number, (what, *places) in TRAPS.items():
        lines.append(f"| {number} | {what} | {', '.join(f'`{place}`' for place in places)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
