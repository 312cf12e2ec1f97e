"""Adapters and models that make pictures in few steps: known by their names and headers, with the values they were made for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_mixer.adapter import AdapterInfo


@dataclass(frozen=True)
class Proposal:
    """
    What a few-step adapter or model is best used with.

    Attributes:
        method: How it was distilled: ``LCM``, ``Lightning``, ``Hyper-SD``, ``DMD2``, ``Turbo``, ``TCD``, ``PCM``, ``Flash``.
        steps: Denoising steps.
        guidance_scale: Guidance; 1 is none, which also halves the work.
        sampler: The sampler.
        schedule: Its schedule's words, or None.

    Example:
        >>> Proposal("LCM", 4, 1.0, "LCM").fields["steps"]
        4
    """

    method: str
    steps: int
    guidance_scale: float
    sampler: str | None
    schedule: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """
        Its values by the fields of a picture.

        Example:
            >>> propose("lcm-lora-sdv1-5").fields
            {'steps': 4, 'guidance_scale': 1.0, 'sampler': 'LCM'}
        """
        names = ("steps", "guidance_scale", "sampler", "schedule")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


# The first that fits: "Hyper-SDXL-8steps-CFG" is not a plain Hyper, "turbo" stands in many names.
_METHODS: tuple[tuple[re.Pattern[str], Proposal], ...] = tuple(
    (re.compile(pattern), proposal)
    for pattern, proposal in (
        (r"\bdmd ?2?\b", Proposal("DMD2", 4, 1.0, "LCM")),
        (r"\bhyper(?: ?sd\w*)?\b.*\bcfg\b", Proposal("Hyper-SD", 8, 5.0, "DDIM", "trailing")),
        (
            r"\bhyper ?(?:sd|flux)\w*\b|\bhyper\b(?=.*\bsteps?\b)",
            Proposal("Hyper-SD", 8, 1.0, "DDIM", "trailing"),
        ),
        # the word alone is weather
        (
            r"(?=.*\b(?:xl|sdxl|sd\w*|qwen|flux|wan|\d+ ?steps?)\b).*\blightning\b",
            Proposal("Lightning", 4, 1.0, "Euler", "trailing"),
        ),
        (r"\bpcm\b", Proposal("PCM", 4, 1.0, "DDIM", "trailing")),
        (r"\btcd\b", Proposal("TCD", 4, 1.0, "TCD")),
        (r"\blcm\b", Proposal("LCM", 4, 1.0, "LCM")),
        (r"\bflash ?(?:sd|sdxl|diffusion)\b", Proposal("Flash", 4, 1.0, "LCM")),
        (r"\bturbo\b", Proposal("Turbo", 4, 1.0, "Euler a", "trailing")),
    )
)
_STEPS = re.compile(r"\b(\d{1,2}) ?(?:steps?|s(?=tep))\b")
_NAMED = ("modelspec.title", "ss_output_name", "modelspec.description", "name", "title")
_STEPS_AT_MOST = 32


def propose(*names: str) -> Proposal | None:
    """
    Say what an adapter or a model of such names is best used with, where it is one of few steps.

    Args:
        names: Its name, its file's name, its titles; the first that tells it decides.

    Returns:
        The proposal, with the number of steps that the name says; None for all others.

    Example:
        >>> propose("sdxl_lightning_8step_lora.safetensors").steps, propose("watercolor")
        (8, None)
    """
    for name in names:
        spaced = re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z])(?=\d+ ?-?_?step)", " ", name[:300].lower()))
        for pattern, proposal in _METHODS:
            if pattern.search(spaced):
                return _with_steps(proposal, spaced)
    return None


@cache
def _flows() -> re.Pattern[str]:
    """Return what finds the name of a family that brings its sampler among words, with a version behind it or without."""
    from lora_mixer.families import FAMILIES

    names = {
        re.sub(r"[^a-z0-9]+", " ", said)
        for family in FAMILIES
        if family.brings_sampler
        for said in family.said
    }
    return re.compile(rf"\b(?:{'|'.join(sorted(names))})(?:\d\w*|video)?\b")


def _with_steps(proposal: Proposal, name: str) -> Proposal:
    from dataclasses import replace

    if _flows().search(name):  # their samplers are of another kind, and their own does
        proposal = replace(proposal, sampler=None, schedule=None)
    said = _STEPS.search(name)
    if said is None or not 1 <= int(said[1]) <= _STEPS_AT_MOST:
        return proposal
    steps = int(said[1])
    if proposal.method == "Hyper-SD" and steps == 1:  # made for one step of TCD
        return replace(proposal, steps=1, sampler="TCD", schedule=None)
    return replace(proposal, steps=steps)


def propose_for(adapters: Mapping[str, AdapterInfo]) -> dict[str, Proposal]:
    """
    Say which of the adapters make pictures in few steps, by their names, files and headers.

    Args:
        adapters: As ``mixer.adapters``.

    Returns:
        A proposal for each of them that does; no entry for the others.

    Example:
        >>> propose_for({})
        {}
    """
    proposals = {}
    for name, info in adapters.items():
        proposal = propose(name, *_names_of(info))
        if proposal is not None:
            proposals[name] = proposal
    return proposals


def _names_of(info: AdapterInfo) -> Iterable[str]:
    yield re.split(r"[/\\\\]", str(info.source))[-1]
    metadata = info.metadata
    yield from (str(metadata[key]) for key in _NAMED if metadata.get(key))
