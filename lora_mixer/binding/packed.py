"""Models whose layers are packed in a form of their own (nunchaku's SVDQuant, GPTQ, AWQ): refused by name, never in part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.errors import MatchError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.binding.index import ModuleIndex

_NUNCHAKU = (
    "nunchaku's layers call kernels of their own, past what stands beside a layer: give it the file by its own "
    "transformer.update_lora_params(path) and set_lora_strength(weight), or load the model unpacked"
)
_OTHERS = "load the model as it was before, or packed by bitsandbytes, torchao, quanto or as GGUF, which adapters run beside"


def refuse_packed(
    unmatched: Mapping[str, Sequence[str]], indexes: Mapping[str, ModuleIndex], total: int, source: str
) -> None:
    """
    Refuse an adapter some of whose layers would be in packed layers, for all that is known.

    Args:
        unmatched: By component, the modules of the file that were not found.
        indexes: The components.
        total: How many modules the file has.
        source: The file.

    Raises:
        MatchError: When a component with such modules has packed layers.
    """
    for part, names in unmatched.items():
        index = indexes.get(part)
        if index is None or not names:
            continue
        kind = type(index.root).__name__
        is_nunchaku = kind.startswith("Nunchaku") or type(index.root).__module__.startswith("nunchaku")
        if index.packed or is_nunchaku:
            held = ", ".join(f"{count} {name}" for name, count in index.packed.items()) or "blocks of its own"
            raise MatchError(
                f"{len(names)} of its {total} modules, such as {names[0]}, are none that can be changed in {part}, a {kind} "
                f"with packed layers ({held}): {_NUNCHAKU if is_nunchaku else _OTHERS}; nothing was changed",
                file=source,
                component=part,
                problems=[Problem(name, f"is none that can be changed in {part}") for name in names],
            )
