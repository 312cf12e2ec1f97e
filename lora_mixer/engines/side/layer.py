"""
The side path of one layer: y = W x + B (g * (A x)), with all active adapters stacked and gains g between.

The base is never touched, and no B A is ever made. Where all rows have the same gains they are folded into B, so that
a step costs two products beside the layer and no further pass over its activations. Rows with gains of their own have
them in between, as Punica (arXiv:2310.18547) serves batches of many adapters.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from lora_mixer.engines.denoiser.cuda_graph import in_graph
from lora_mixer.engines.modes import lasting
from lora_mixer.engines.side.support import layer_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from lora_mixer.engines.side.gain_buffers import AdapterPart, GainBuffers

_HALVES = (torch.float16, torch.bfloat16)
_KERNEL_RANKS = 256  # it is compiled for each number of ranks, its loop unrolled


@cache
def _kernel() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None:
    """Return the kernel for graphs, or None where Triton is missing or cannot compile."""
    try:
        from lora_mixer.engines.side.kernel import add_product

        a = torch.eye(16, device="cuda", dtype=torch.float16)
        out = a.clone()
        add_product(out, a, a)
        return add_product if torch.equal(out, 2 * a) else None
    except Exception:  # noqa: BLE001 -- no compiler, an old driver, another vendor: there is the library's product
        return None


def add_rows(output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """
    Add ``hidden @ up.T`` to an output whose last dimension is the layer's, in place where that can be.

    Example:
        >>> add_rows(torch.zeros(1, 2), torch.ones(1, 1), torch.tensor([[2.0], [3.0]]))
        tensor([[2., 3.]])
    """
    one_type = output.dtype == hidden.dtype == up.dtype  # autocast makes halves of some of them
    if torch.is_grad_enabled() or not output.is_contiguous() or not one_type:
        return output + functional.linear(hidden, up.to(hidden.dtype)).to(output.dtype)
    flat = output.view(-1, output.shape[-1])  # (rows, out)
    beside = hidden.reshape(-1, hidden.shape[-1])  # (rows, R)
    fits = output.dtype in _HALVES and up.shape[1] <= _KERNEL_RANKS
    if fits and not torch.compiler.is_compiling() and in_graph() and (add := _kernel()):
        add(flat, beside, up)
    else:
        flat.addmm_(beside, up.T)
    return output


def add_planes(output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Add a 1x1 convolution of ``hidden`` (b, R, *places) to an output (b, out, *places), in place where that can be."""
    free = not torch.is_grad_enabled() and output.dtype == hidden.dtype == up.dtype
    if free and output.is_contiguous():
        flat = hidden.flatten(2)  # (b, R, n)
        output.view(*output.shape[:2], -1).baddbmm_(up.expand(len(flat), -1, -1), flat)  # (b, out, n)
        return output
    last = output.movedim(1, -1)  # (b, *places, out)
    if free and last.is_contiguous():  # channels_last
        add_rows(last, hidden.movedim(1, -1), up)
        return output
    added = torch.einsum("or,br...->bo...", up.to(hidden.dtype), hidden)  # (b, out, *places)
    return output + added.to(output.dtype)


class SideLayer:
    """
    The forward hook of one layer; it holds tensors that stay where they are while a mix changes.

    Args:
        name: Component and path, for messages.
        module: The layer: linear or convolution.
        rank: How many ranks there is room for.
        down: (rank, in, *kernel), where the stacked A are written; a part of a larger tensor, maybe.
        shape: The logical shape of the layer's weight, (out, in, *kernel).
        buffers: The gains of the layer's component.
        span: Its place among the ranks of all layers of the buffers.
        raw: (out, rank), where the stacked B are written; a part of a larger tensor, maybe.
        up: The same with gains folded in; ``raw`` itself where they are not.
        off_picture: Whether its rows are known not to be the picture's.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        rank: int,
        down: torch.Tensor,
        shape: tuple[int, ...],
        buffers: GainBuffers,
        span: slice,
        raw: torch.Tensor,
        up: torch.Tensor,
        *,
        off_picture: bool,
    ) -> None:
        """Hold the tensors; all zeros: nothing is added yet."""
        self.name = name
        self.rank = rank
        self.shape = shape
        self.buffers = buffers
        self.span = span
        self.off_picture = off_picture
        self.down = down
        self.raw, self.up = raw, up
        self.alone = False
        self.shared: SharedDown | None = None
        self.start = 0
        self._key: tuple[object, ...] = ()
        self._parts: Sequence[AdapterPart] = ()
        is_conv = layer_kind(module) == "conv"
        conv: Any = module
        self._conv = (
            {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation} if is_conv else None
        )
        self._dimensions = len(shape) - 2 if is_conv else 0
        once = is_conv and all(n == 1 for n in (*shape[2:], *conv.stride))
        self._pointwise = once and all(n == 0 for n in conv.padding) if is_conv else False
        self.gain = buffers.gain_of(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; identities of tensors are none of its."""
        return {**vars(self), "_key": ()}

    def join(self, stacked: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Be a part of what layers share again, after a copy."""
        if stacked is not None:
            self.raw, self.up = stacked
        if self.shared is not None:
            self.down = self.shared.down[self.start : self.start + self.rank]

    def load(self, parts: Sequence[AdapterPart]) -> None:
        """Write the parts' factors; nothing to do where they are in place already."""
        key = tuple((id(part.pair.up), id(part.pair.down), part.pair.scale) for part in parts)
        if key == self._key:
            return
        self._key = ("half written",)  # until all is in place
        wide = torch.promote_types(torch.float32, self.down.dtype)
        used = 0
        for part in parts:
            rows = slice(used, used + part.rank)
            down = part.pair.down.to(self.down.device, wide) * part.pair.scale  # (r, in * kernel)
            self.down[rows].copy_(down.reshape(part.rank, *self.shape[1:]))  # (r, in, *kernel)
            self.raw[:, rows].copy_(part.pair.up)  # (out, r)
            used = rows.stop
        self.down[used:].zero_()
        self.raw[:, used:].zero_()
        if self.shared is not None:
            self.shared.forget()
        self._key = key
        self._parts = tuple(parts)  # ids stay theirs while these live

    def fold(self) -> None:
        """Multiply the gains into B, where no stack does it."""
        if self.up is not self.raw:
            torch.mul(self.raw, self.gain[0], out=self.up)  # (out, R) by (R,)

    def __call__(
        self, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """Add what the adapters add; differentiable, and in place where no gradient is asked for."""
        x = args[0]  # (b, ..., in), or (b, in, *places)
        if x.device != output.device:  # offloading moves inputs behind the hooks' back
            x = x.to(output.device)
        if self._conv is None and x.shape[-1] > self.shape[1]:  # another adapter gives the layer more of them
            x = x[..., : self.shape[1]]
        down, up = self._factors(x)
        if self._conv is None:
            hidden = self._hidden(x, down)  # (b, ..., R)
            gain = self._gain(hidden, channels_first=False)
            if gain is not None:
                hidden = hidden * gain
            return add_rows(output, hidden, up)
        if self._pointwise and output.ndim == self._dimensions + 2:
            last = x.movedim(1, -1)  # (b, *places, in)
            if last.is_contiguous():
                hidden = functional.linear(last, down.flatten(1)).movedim(-1, 1)  # (b, R, *places)
            else:
                flat = torch.bmm(down.flatten(1).expand(len(x), -1, -1), x.flatten(2))  # (b, R, n)
                hidden = flat.view(len(x), -1, *x.shape[2:])  # (b, R, *places)
        else:
            convolve = getattr(functional, f"conv{self._dimensions}d")
            hidden = convolve(x, down, None, **self._conv)  # (b, R, *places)
        gain = self._gain(hidden, channels_first=True)
        if gain is not None:
            hidden = hidden * gain
        return add_planes(output, hidden, up)

    def _factors(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (R, in, *kernel) and B (out, R) where the inputs are, in a type that meets theirs."""
        moved = self.down.device != x.device
        # autocast brings both to one type by itself, and inputs may have another at each call
        typed = self.down.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)
        if moved or typed:
            if torch.compiler.is_compiling():  # a graph keeps what it has; what is held follows outside of it
                to = x.dtype if typed else self.down.dtype
                return self.down.to(x.device, to), self.up.to(x.device, to)
            self._follow(x.device, x.dtype if typed else self.down.dtype)
        return self.down, self.up

    def _hidden(self, x: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        shared = self.shared
        if shared is None or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return functional.linear(x, down)
        return shared.hidden(x, slice(self.start, self.start + self.rank))

    def _gain(self, hidden: torch.Tensor, *, channels_first: bool) -> torch.Tensor | None:
        """Return the gains in a shape that multiplies ``hidden``; None where they are folded in."""
        buffers = self.buffers
        if buffers.masks is not None:
            return buffers.placed(self, hidden, channels_first=channels_first)
        if buffers.folds:
            return None
        batch = hidden.shape[0]
        room = self.gain.shape[0]
        # a graph does not ask how many rows a call has: it would be another one for each number
        told = room == 1 or batch <= room if torch.compiler.is_compiling() else buffers.count == batch
        gain = self.gain[:batch] if told else buffers.repeated(self, self.gain, batch)  # (b, R), or (1, R)
        gain = gain.to(hidden)  # (b, R), or (1, R)
        spread = [1] * (hidden.ndim - 2)
        return (
            gain.view(len(gain), -1, *spread)
            if channels_first
            else gain.view(len(gain), *spread, gain.shape[1])
        )

    def _follow(self, device: torch.device, dtype: torch.dtype) -> None:
        """Go where the inputs are: written anew from the adapters' own factors, so that nothing is rounded twice."""
        with lasting():
            folded = self.up is not self.raw
            self.down = torch.zeros_like(self.down, device=device, dtype=dtype)
            self.raw = torch.zeros_like(self.raw, device=device, dtype=dtype)
            self.shared, self.alone = None, True  # tensors of other layers have not moved
            self.up = torch.zeros_like(self.raw) if folded else self.raw
            self.gain = self.buffers.gain_of(self)
            self._key = ()
            self.load(self._parts)
            self.fold()


class SharedDown:
    """
    The A of layers that have one input, such as queries, keys and values: one product for all of them.

    Where the layers turn out to be given different inputs, each has a product of its own from then on.

    Args:
        down: The stacked A, (ranks of all, in).
        members: How many layers share it.
    """

    def __init__(self, down: torch.Tensor, members: int) -> None:
        """Hold the tensor; an input is held until all members have had it."""
        self.down = down
        self._members = members
        self._input: tuple[torch.Tensor, int] | None = None
        self._hidden = down
        self._asked: set[int] = set()
        self._scattered = False

    def hidden(self, x: torch.Tensor, ranks: slice) -> torch.Tensor:
        """Return A x for the ranks of one member; what all share is computed for the first of them that asks."""
        # the same object may hold other values by now; inference tensors do not tell
        version = 0 if x.is_inference() else x._version  # noqa: SLF001
        known = self._input is not None and self._input[0] is x and self._input[1] == version
        if not known and self._input is not None:
            self._scattered = (
                ranks.start not in self._asked
            )  # else it is the next call, after one that was interrupted
            self.forget()
        if self._scattered:
            return functional.linear(x, self.down[ranks])
        if not known:
            self._input, self._hidden = (x, version), functional.linear(x, self.down)
        hidden = self._hidden[..., ranks]  # (b, ..., R of one member)
        self._asked.add(ranks.start)
        if len(self._asked) == self._members:
            self.forget()
        return hidden

    def forget(self) -> None:
        """Let go of the input."""
        self._input, self._hidden = None, self.down
        self._asked.clear()
