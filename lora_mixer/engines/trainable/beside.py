"""What stands beside one module: the forms of all adapters in training that reach it, for each mix of a batch's rows."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.algorithms.base import LayerWeights
from lora_mixer.algorithms.combined import Combined
from lora_mixer.algorithms.values import Values
from lora_mixer.engines.denoiser.images import repeated_rows
from lora_mixer.engines.merged.tied_use import standing_in
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.trainable.direct import DirectBlocks, DirectPair
from lora_mixer.engines.trainable.forms import (
    Layer,
    PairForm,
    WholeForm,
    form_of,
    with_pairs_of_blocks,
)
from lora_mixer.engines.trainable.joined import can_join, joined
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.trainable.forms import Form
    from lora_mixer.engines.trainable.joined import Terms
    from lora_mixer.engines.trainable.together import Together

    Rows = slice | torch.Tensor
    """Rows of a batch: those beside each other, or their indices."""


class Beside:
    """
    A forward hook that gives a module what its adapters in training make of it.

    Args:
        module: The module.
        component: The component that it is in.
        path: Its path there, for messages.
        is_alone: Whether no other mix stands beside the module or is in its weight.
    """

    def __init__(self, module: nn.Module, component: str, path: str, *, is_alone: bool) -> None:
        """Start with no adapter and one mix for all rows."""
        self.module, self.component, self.path, self.scale = module, component, path, 1.0
        self._is_alone = is_alone
        self._forms: list[tuple[Form, Sequence[float]]] = []
        self._wholes: list[tuple[WholeForm, Sequence[float]]] = []
        self._confined: list[LayerWeights] = []
        self._rows: Sequence[int] | None = None
        self._pieces: dict[int, list[tuple[int, Rows]]] = {}
        self._pair: DirectPair | None = None
        self._direct: dict[int, DirectBlocks | None] = {}
        self.together: Together | None = None

    def add(
        self,
        attribute: str,
        weights: LayerWeights,
        layer: Layer,
        gains: Sequence[float],
        dropout: float,
        *,
        transposed: bool,
    ) -> None:
        """
        Take an adapter's part of one of the module's parameters.

        Args:
            attribute: Which parameter.
            weights: The change.
            layer: The module, as forms see it.
            gains: Its weight in each mix that rows can have.
            dropout: The share of inputs that training drops.
            transposed: Whether the parameter is stored (in, out).

        Raises:
            PipelineStateError: When it cannot be computed beside this module.
        """
        if isinstance(weights, Combined):  # each part is computed from the clean base
            for part in weights.parts:
                share = 0.0 if isinstance(part, Values) else dropout
                self.add(attribute, part, layer, gains, share, transposed=transposed)
            return
        form = form_of(layer, weights, attribute, dropout, transposed=transposed)
        if isinstance(form, WholeForm):
            self._wholes.append((form, gains))
        else:
            self._forms.append((form, gains))
        if type(weights).confine is not LayerWeights.confine:
            self._confined.append(weights)

    def show(self, rows: Sequence[int] | None) -> None:
        """Take the mix of each row of the calls to come; None where there is one for all."""
        self._rows, self._pieces, self._direct = rows, {}, {}
        if rows is not None:  # now, and not where a compiler looks on
            self._pieces[len(rows)] = self._told_apart(rows, len(rows))

    @property
    def can_join(self) -> bool:
        """Whether the module's own product and what adapters add to it may be one operation."""
        forms = [form for form, _ in self._forms]
        return (
            self._is_bare and bool(forms) and all(form.can_join for form in forms) and can_join(self.module)
        )

    @property
    def _is_bare(self) -> bool:
        """Whether all that stands beside the module is forms of its outputs."""
        return self._is_alone and not self._wholes and not self._confined

    def settle(self) -> bool:
        """Say whether outputs can be made within the module's ``forward``, which no form may ask for a product of its own then."""
        if not self._is_bare or not all(
            isinstance(form, PairForm) or form.can_join for form, _ in self._forms
        ):
            return False
        pairs = [
            form for form, _ in self._forms if isinstance(form, PairForm) and form.direct(1.0) is not None
        ]
        active = [(form, gains[0]) for form, gains in self._forms if gains[0]]
        if len(active) == 1 and active[0][0] in pairs:
            self._pair = active[0][0].direct(active[0][1])
        return bool(pairs) or self.can_join

    def at_once(self, args: Any) -> torch.Tensor | None:
        """Return the output of inputs with the adapters' part; None where it is made of the module's own."""
        x = args[0] if len(args) == 1 else None
        if not isinstance(x, torch.Tensor):
            return None
        if self._rows is not None:  # other rows of several mixes are put together from their own outputs
            blocks = self._blocks_of(x)
            return None if blocks is None else blocks(x, self.scale)
        if self._pair is not None:
            return self._pair(x, self.scale)
        kind = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
        made = self.together.take(self, kind) if self.together is not None else None
        if made is not None:
            return joined(self.module, x, *made)
        terms = self.terms()
        return None if terms is None else joined(self.module, x, terms)

    def versions(self) -> list[float]:
        """Return how often each of the tensors has been written to, as far as torch counts that, and the scale."""
        return [self.scale, *[tensor._version for tensor in self._counted]]  # noqa: SLF001 -- how torch tells

    @cached_property
    def _counted(self) -> list[torch.Tensor]:
        """The tensors of what is in effect, which are the same as long as this stands here."""
        active = [form.weights for form, gains in self._forms if gains[0]]
        return [tensor for weights in active for tensor in weights.tensors() if not tensor.is_inference()]

    def terms(self) -> Terms | None:
        """Return what is one operation with the module's own product where all rows have one mix; None where there is none."""
        active = [(form, gains[0]) for form, gains in self._forms if gains[0]]
        return active[0][0].terms(active[0][1] * self.scale) if len(active) == 1 else None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with the adapters' part."""
        for weights in self._confined:
            weights.confine()
        if self._rows is None:
            return self._with(module, args, output, 0)
        batch = int(output.shape[0])
        pieces = self._pieces_of(batch)
        blocks = self._blocks(pieces, args[0], output)
        if blocks is not None:
            return blocks
        outputs = [
            self._with(
                module,
                tuple(arg[rows] if _has_rows(arg, batch) else arg for arg in args),
                output[rows],
                mix,
            )
            for mix, rows in pieces
        ]
        if all(isinstance(rows, slice) for _, rows in pieces):
            return torch.cat(outputs)
        places = torch.cat([rows for _, rows in pieces if isinstance(rows, torch.Tensor)])
        return torch.empty_like(output).index_copy(0, places, torch.cat(outputs))

    def _with(self, module: nn.Module, args: Any, output: Any, mix: int) -> Any:
        """Return the output of rows that all have one mix."""
        plain = output
        active = [(form, gains[mix]) for form, gains in self._wholes if gains[mix]]
        if active:
            table: dict[str, torch.Tensor] = {}
            for whole, gain in active:
                whole.into(table, gain * self.scale)
            changed = standing_in(module, table).forward(*args)
            # where others had a part in the output, the difference is added to theirs
            output = changed if self._is_alone else output + (changed - module.forward(*args))
        for form, gains in self._forms:
            if gains[mix]:
                output = form.added(args[0], output, plain, gains[mix] * self.scale)
        return output

    def _blocks(
        self, pieces: Sequence[tuple[int, Rows]], x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the output where rows lie in equal blocks, each with one pair of the same rank; else None."""
        own = self._pair_of_each(pieces)
        if not own:
            return None
        pairs = [form.pair() for form, _ in own]
        if len({(pair.down.shape, pair.down.dtype) for pair in pairs}) != 1:
            return None
        scales = [gain * self.scale * pair.scale for (_, gain), pair in zip(own, pairs, strict=True)]
        return with_pairs_of_blocks(self.module, output, x, pairs, scales, own[0][0].layer.shape)

    def _pair_of_each(self, pieces: Sequence[tuple[int, Rows]]) -> list[tuple[PairForm, float]]:
        """Return the pair of each of equal blocks of rows and its weight; nothing where it is not one pair each."""
        sizes = {rows.stop - rows.start for _, rows in pieces if isinstance(rows, slice)}
        if self._wholes or len(sizes) != 1:
            return []
        found = []
        for mix, _ in pieces:
            active = [(form, gains[mix]) for form, gains in self._forms if gains[mix]]
            form = active[0][0] if len(active) == 1 else None
            if not isinstance(form, PairForm) or not form.is_plain:
                return []
            found.append((form, active[0][1]))
        return found

    def _blocks_of(self, x: torch.Tensor) -> DirectBlocks | None:
        """Return what gives blocks of a batch their own pairs, made once for each size of a batch; None where nothing can."""
        batch = len(x) if x.ndim > 1 else 0
        if batch not in self._direct:
            pieces = self._pieces_of(batch) if batch and type(self.module) is nn.Linear else ()
            self._direct[batch] = DirectBlocks.of(
                [form.direct(gain) for form, gain in self._pair_of_each(pieces)]
            )
        return self._direct[batch]

    def _pieces_of(self, batch: int) -> list[tuple[int, Rows]]:
        if batch not in self._pieces:
            self._pieces[batch] = self._told_apart(self._rows or (), batch)
        return self._pieces[batch]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # once for each size of a batch
    def _told_apart(self, given: Sequence[int], batch: int) -> list[tuple[int, Rows]]:
        """
        Return which rows of a batch have which mix.

        Raises:
            MixError: When it cannot be told.
        """
        rows = torch.tensor(given)
        by_row = rows if len(rows) == batch else repeated_rows(rows, rows, len(rows), batch)
        if by_row is None:
            raise MixError(
                f"got a batch of {batch} inside a call with {len(rows)} rows; rows cannot be told apart",
                key=f"{self.component}.{self.path}",
            )
        owners = by_row.expand(batch).tolist()
        starts = [place for place in range(batch) if place == 0 or owners[place] != owners[place - 1]]
        if len(starts) == len(set(owners)):  # rows of one mix lie beside each other
            stops = [*starts[1:], batch]
            return [(owners[start], slice(start, stop)) for start, stop in zip(starts, stops, strict=True)]
        device = compute_device(self.module)
        return [
            (
                mix,
                torch.tensor([place for place, owner in enumerate(owners) if owner == mix], device=device),
            )
            for mix in sorted(set(owners))
        ]


def _has_rows(arg: Any, batch: int) -> bool:
    return isinstance(arg, torch.Tensor) and arg.ndim > 0 and arg.shape[0] == batch
