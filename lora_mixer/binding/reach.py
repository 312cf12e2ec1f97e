"""What of a mix reaches no layer: weights for components that an adapter does not change, and what only denoisers have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lora_mixer.components import TE, TEXT_ENCODERS
from lora_mixer.errors import MixError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lora_mixer.mixes import Mix


class Reached(Protocol):
    """What an adapter changes, on a live model or in a file."""

    @property
    def components(self) -> Collection[str]:
        """The components."""

    @property
    def places(self) -> Collection[tuple[str, str]]:
        """The component and path of each layer."""


def check_components(mix: Mix, known: Collection[str], where: str = "in this pipeline; it has") -> None:
    """
    Check that a mix names components of the pipeline only.

    Args:
        mix: The mix.
        known: The names of the pipeline's modules, or of what else the adapters are for.
        where: What that is, before its components are named.

    Raises:
        MixError: When there is no such component; ``te`` is every text encoder, and needs one.
    """
    has_text = any(part in known for part in TEXT_ENCODERS)
    te = f", {TE}" if has_text else ""
    for name in mix.names:
        odd = {part: part for part in mix[name].named_components if part not in known}
        if not has_text and mix[name].components.get(TE):
            odd[TE] = f"{TE} (a text encoder)"
        if odd:
            there = f"{where} {', '.join(sorted(known))}{te}"
            raise MixError(
                f"{name}: no component {', '.join(odd.values())} {there}",
                adapter=name,
                component=next(iter(odd)),
                problems=tuple(Problem(name, f"no component {part} {there}") for part in odd.values()),
            )


def without_effect(mix: Mix, layers: Mapping[str, Reached]) -> list[str]:
    """
    Tell which weights and settings of a mix change nothing, since the adapter has no layers there.

    Args:
        mix: The mix.
        layers: The layers of each of its adapters.

    Returns:
        A sentence for each, of adapters that act all the same. Weights of 0 ask for nothing.

    Raises:
        MixError: When an adapter has a weight and none of it acts, or a method goes by layers that it does not have.
    """
    told: list[str] = []
    problems: list[Problem] = []
    for name in mix.names:
        parts = sorted(layers[name].components)
        adapter = mix[name]
        lost = [
            part
            for part, weight in adapter.components.items()
            if weight and not any(p == part or (part == TE and p in TEXT_ENCODERS) for p in parts)
        ]
        where = f"it changes {', '.join(parts) or 'nothing here'} only"
        if lost and not any(adapter.component_weight(part) for part in parts):
            problems.append(
                Problem(name, f"a weight for {', '.join(lost)}, and {where}: this mix would be the base.")
            )
        elif lost:
            told.append(f"{name}: a weight for {', '.join(lost)} changes nothing, {where}")
        if not set(parts) - set(TEXT_ENCODERS):
            if not mix.method.is_sum:
                problems.append(Problem(name, f"{mix.method.name} goes by the denoiser, and {where}."))
            if adapter.schedule is not None or adapter.schedules:
                told.append(
                    f"{name}: its schedule changes nothing after the start, {where}, which reads prompts once"
                )
        if adapter.blocks is not None and (idle := adapter.blocks.unmatched(layers[name].places)):
            told.append(f"{name}: {', '.join(idle[:5])}: no layer that it changes matches")
    if problems:
        raise MixError(problems=tuple(problems))
    return told
