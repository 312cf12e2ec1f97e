"""Which engine has which layers of a mix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_mixer.engines.merged.kept_weight import raise_problems
from lora_mixer.errors import MixError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.engine import Engine, Shares, Wish


def choose(wish: Wish, engines: Sequence[Engine]) -> dict[str, dict[str, Sequence[bool]]]:
    """
    Share a mix's layers out.

    The cheapest engine that can carry the mix out, or the one that was asked for, takes what it can; what that leaves goes to
    the first other one that can have it.

    Args:
        wish: The mixes and the adapters' layers.
        engines: Those that there are.

    Returns:
        By engine, for each adapter, which of its layers it has.

    Raises:
        MixError: When no engine, or not the one asked for, can serve the mixes, or there is none of that name.
        PipelineStateError: When nobody can have a layer.
    """
    first, taken = _first(wish, engines)
    shares: dict[str, dict[str, Sequence[bool]]] = {engine.name: {} for engine in engines}
    takers = [engine for engine in engines if engine is first or engine.cost(wish) is not None]
    for engine in takers:
        shares[engine.name] = {name: [False] * len(taken_places) for name, taken_places in taken.items()}
    shares[first.name] = dict(taken)
    others = [*(engine for engine in takers if engine is not first), first]
    problems = []
    for name, taken_places in taken.items():
        if all(taken_places):
            continue
        given = {engine.name: list(shares[engine.name][name]) for engine in takers}
        for place, layer in enumerate(wish.layers[name]):
            if taken_places[place]:
                continue
            taker = next((one for one in others if one.refusal(wish, name, place) is None), None)
            if taker is None:
                in_order = sorted(takers, key=lambda engine: engine.cost(wish) or 0.0)
                reasons = [str(engine.refusal(wish, name, place)) for engine in in_order]
                problems.append(Problem(f"{layer.live.component}.{layer.live.path}", "; and ".join(reasons)))
                break
            given[taker.name][place] = True
        for engine in takers:
            shares[engine.name][name] = given[engine.name]
    raise_problems(problems)
    return shares


def _first(wish: Wish, engines: Sequence[Engine]) -> tuple[Engine, Shares]:
    """Return the engine that has the first pick, and what it takes."""
    asked = wish.setting.engine
    if asked != "auto":
        known = {engine.name: engine for engine in engines if engine.is_asked_for}
        if asked not in known:
            raise MixError(
                f"engine must be one of {', '.join(['auto', *known])}, got {asked!r}", argument="engine"
            )
        return known[asked], known[asked].share(wish)
    priced = [(cost, engine) for engine in engines if (cost := engine.cost(wish)) is not None]
    refusals: list[MixError] = []
    for cost, engine in sorted(priced, key=lambda pair: pair[0]):
        try:
            return engine, engine.share(wish)
        except MixError as error:
            if refusals and cost == math.inf:  # it was told not to, which is another way out
                both = (refusals[0], error)
                raise MixError(
                    f"{refusals[0]}; and {error}",
                    problems=tuple(p for one in both for p in one.problems or (Problem("", str(one)),)),
                ) from error
            refusals.append(error)
    raise refusals[0]
