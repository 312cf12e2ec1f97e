"""Which engine serves a mix, and beside which layers the side path stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_mixer.engines.merged.kept_weight import raise_problems, unsupported
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.algorithms import Factors
    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.active import ActiveMixes


@dataclass(frozen=True)
class Selection:
    """
    How a setting is served.

    Attributes:
        engine: ``merged`` once, merged anew at each step (``steps``), or ``side``.
        beside: For each adapter, which of its layers have the side path.
        follows: Whether gains change from call to call, so that the denoiser has to be watched.
    """

    engine: Literal["merged", "steps", "side"]
    beside: Mapping[str, Sequence[bool]]
    follows: bool


def choose(
    setting: ActiveMixes,
    layers: Mapping[str, Sequence[BoundLayer]],
    locks: Mapping[str, Sequence[bool]],
    pairs: Callable[[str], Sequence[Factors | None]],
    *,
    reserved: bool,
) -> Selection:
    """
    Choose the cheaper engine that can serve a setting, unless the setting says which.

    Args:
        setting: The mixes.
        layers: The layers of each adapter.
        locks: Which of them cannot be rewritten.
        pairs: Gives the low-rank forms of an adapter's layers, None for those that have none.
        reserved: Whether there is a side path already.

    Raises:
        MixError: When no engine, or not the one asked for, can serve the mixes.
        PipelineStateError: When weights that cannot be rewritten would have to be.
    """
    mixes = setting.every
    images = len(mixes)
    by_place = images > 1 or any(mix[name].mask is not None for mix in mixes for name in mix.names)
    moving = any(not mix.is_constant for mix in mixes)
    if setting.engine == "merged":
        if by_place:
            msg = "masks and mixes per image cannot be merged into weights; use engine='side' or 'auto'"
            raise MixError(msg)
        raise_problems(
            [
                f"{_path(layer)}: {_reason(layer)}; engine='auto' runs beside it"
                for name, own in layers.items()
                for layer, locked in zip(own, locks[name], strict=True)
                if locked
            ]
        )

    def beside(*, denoisers: bool) -> dict[str, list[bool]]:
        return {
            name: [
                locked or (denoisers and (images > 1 or layer.live.component not in TEXT_ENCODERS))
                for layer, locked in zip(own, locks[name], strict=True)
            ]
            for name, own in layers.items()
        }

    can_merge = setting.engine != "side" and not by_place
    wants_side = not can_merge or (setting.engine == "auto" and (moving or reserved))
    if wants_side:
        chosen = beside(denoisers=True)
        dense = _dense(layers, chosen, pairs)
        if not dense:
            return Selection("side", chosen, moving or by_place)
        if not can_merge:
            shown = ", ".join(f"{name} ({layer.weights.algorithms[0]})" for name, layer in dense.items())
            msg = (
                f"{shown}: changes weights in a way that has no low-rank form, so it has no side path; "
                "constant mixes and schedules of it can be merged (engine='merged')"
            )
            raise MixError(msg)
    chosen = beside(denoisers=False)
    raise_problems(
        [
            f"{_path(layer)}: {_reason(layer)}; and {name} ({layer.weights.algorithms[0]}) has no low-rank form there, so "
            "that it cannot run beside it either"
            for name, layer in _dense(layers, chosen, pairs).items()
        ]
    )
    return Selection("steps" if moving else "merged", chosen, moving)


def _dense(
    layers: Mapping[str, Sequence[BoundLayer]],
    beside: Mapping[str, Sequence[bool]],
    pairs: Callable[[str], Sequence[Factors | None]],
) -> dict[str, BoundLayer]:
    """Give, for each adapter that has any, its first layer beside which it cannot stand."""
    table = {}
    for name, own in layers.items():
        if not any(beside[name]):
            continue
        for layer, out, pair in zip(own, beside[name], pairs(name), strict=True):
            if out and pair is None:
                table[name] = layer
                break
    return table


def _reason(layer: BoundLayer) -> str:
    """Say why a layer cannot be rewritten."""
    if layer.weights.beside_only:
        return "no weight of a convolution in groups can hold a pair over all of its inputs"
    return unsupported(layer.live.weight) or "its weights are read from files at each call"


def _path(layer: BoundLayer) -> str:
    return f"{layer.live.component}.{layer.live.path}"
