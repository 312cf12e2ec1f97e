"""What was written is read again and compared before it takes its place: a file that says something else is not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms import Dora
from lora_mixer.algorithms.frobenius import pair_norm
from lora_mixer.errors import LoraMixerError, SaveError
from lora_mixer.formats import read_source
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.problem import Problem
from lora_mixer.sources import AdapterSource
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_mixer.adapter import Adapter
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.writing.layers import ModulePlace, NewLayer

    Locate = Callable[[Adapter], Sequence[tuple[ModulePlace, LayerWeights]]]
    """Finds the modules of an adapter's layers."""

_HALF = 2e-2  # bfloat16 has 8 bits, in both factors


def check_written(
    staged: Mapping[Path, Path],
    *,
    layers: Sequence[NewLayer],
    spelling: Callable[[ModulePlace], str] | None,
    locate: Locate | None,
) -> None:
    """
    Read files back and compare them with what they shall hold.

    Args:
        staged: For each path, where its content lies.
        layers: What was to be written.
        spelling: The name of a module in the file, for comparison where ``locate`` is None; None for dotted names.
        locate: Finds the modules of what is read.

    Raises:
        SaveError: When a module is missing, stands where it should not, or has another change.
    """
    read: dict[tuple[str, str], LayerWeights] = {}
    wanted = {(layer.place.component, layer.place.path): layer for layer in layers}
    spelled = {spelling(layer.place): key for key, layer in wanted.items()} if spelling is not None else {}
    wrong: list[Problem] = []
    for path, spare in staged.items():
        if path.suffix.lower() != ".safetensors":
            continue
        config = staged.get(path.with_name("adapter_config.json"))
        given = None if config is None else loose_json(config.read_text(encoding="utf-8"))
        try:
            adapter = read_source(AdapterSource(label=str(path), weights=spare, config=given))
            if locate is not None:
                places = [((place.component, place.path), weights) for place, weights in locate(adapter)]
            else:
                places = [
                    (spelled.get(layer.target.written, ("", layer.target.written)), layer.weights)
                    for layer in adapter.layers
                ]
        except LoraMixerError as error:
            raise SaveError(
                f"what was written cannot be read back: {error.reason}",
                file=str(path),
                problems=error.problems,
            ) from error
        for key, weights in places:
            if key in read:
                wrong.append(Problem(".".join(key), "twice"))
            read[key] = weights
    wrong += [Problem(".".join(key), "not in the file") for key in wanted if key not in read]
    # rows of a fused layer that nobody changes are zeros
    extra = [key for key, weights in read.items() if key not in wanted and not weights.is_zero()]
    wrong += [Problem(".".join(key), "not asked for") for key in extra]
    wrong += [
        Problem(".".join(key), "another change")
        for key, layer in wanted.items()
        if key in read and not _same(layer, read[key])
    ]
    if wrong:
        paths = ", ".join(str(path) for path in staged)
        listed = first_of([f"{one.place} ({one.text})" for one in wrong], 5)
        raise SaveError(
            f"what was written reads back as something else, so it was not kept: {listed}",
            file=paths,
            problems=wrong,
        )


def _same(layer: NewLayer, weights: LayerWeights) -> bool:
    if layer.leaves:
        return True  # its own tensors, under their own names
    if layer.lengths is not None:
        dora = next((part for part in (weights, *weights.inner_parts()) if isinstance(part, Dora)), None)
        return (
            dora is not None
            and dora.is_by_output(layer.place.shape) == layer.by_output
            and _near(dora.magnitude.flatten().cpu(), layer.lengths.cpu(), _HALF)
            and _same(replace(layer, lengths=None, bias=None), dora.inner)
        )
    if layer.vector is not None:
        change = weights.delta(torch.zeros(layer.place.shape), 1.0)
        return _near(change.flatten(), layer.vector.flatten(), _HALF)
    if layer.up is None:
        return True
    shape = layer.place.shape
    there = weights.factors(shape)
    if there is None:  # a pair beside a difference of the bias
        change = weights.delta(torch.zeros(shape), 1.0).flatten(1).double()
        up, down = layer.pair
        return _near(change, (up.double() @ down.double()) * (layer.alpha / layer.rank), _HALF)
    up, down = (half.double().cpu() for half in layer.pair)
    other_up, other_down = there.up.double().cpu(), there.down.double().cpu()
    # |A B - C D| from the cores, without a full matrix
    left = torch.cat([up * (layer.alpha / layer.rank), -there.scale * other_up], dim=1)  # (out, 2 R)
    right = torch.cat([down, other_down])  # (2 R, in * kernel)
    wanted = pair_norm(up, down, layer.alpha / layer.rank)
    return pair_norm(left, right, 1.0) <= _HALF * wanted + 1e-12


def _near(got: torch.Tensor, wanted: torch.Tensor, share: float) -> bool:
    return float((got.double() - wanted.double()).norm()) <= share * float(wanted.double().norm()) + 1e-12
