"""
FourierFT: the change is given by some entries of its spectrum, W' = W + gain * scaling * Re(ifft2(F)) (arXiv:2405.03003).

PEFT's ``fourierft_spectrum`` (n,); which entries of F they are is drawn from ``random_loc_seed``, so the file does not hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors

_SEED, _SCALING = 777, 150.0  # PEFT's defaults


@dataclass(frozen=True)
class FourierFT(LayerWeights):
    """
    Entries of a spectrum.

    Attributes:
        spectrum: (n,).
        seed: What their places are drawn from.
        scaling: What the change is multiplied by.
    """

    algorithm: ClassVar[str] = "fourierft"
    factors_of_all: ClassVar[tuple[str, ...]] = ("spectrum", "scaling")
    needs_base: ClassVar[bool] = False

    spectrum: torch.Tensor
    seed: int
    scaling: float

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> FourierFT:
        """
        Check the tensor of one module.

        Raises:
            InvalidAdapterError: When it is missing or no vector, or the configuration makes no sense.
        """
        (spectrum,) = parts.need("fourierft")
        if spectrum.ndim != 1:
            raise parts.broken("expected (frequencies,)")
        seed = parts.number("random_loc_seed", _SEED, 0, 2**63 - 1)
        return cls(spectrum, int(seed), float(parts.number("scaling", _SCALING, -1e9, 1e9)))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) != 2:
            return f"a spectrum of a matrix, the module has {shape}"
        room = shape[0] * shape[1]
        count = self.spectrum.shape[0]
        return None if count <= room else f"{count} frequencies, the module has {room}"

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002 -- every frequency reaches all rows
        """Say that rows depend on the size of the whole."""
        return True

    def needs_whole(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002
        """Say that places are drawn for the whole weight."""
        return True

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scaling * Re(ifft2(F))."""
        rows, columns = base.shape
        generator = torch.Generator().manual_seed(self.seed)
        places = torch.randperm(rows * columns, generator=generator)[: self.spectrum.shape[0]].to(base.device)
        flat = torch.zeros(rows * columns, dtype=base.dtype, device=base.device)
        dense = flat.index_put((places,), self.spectrum.to(base)).view(rows, columns)
        change: torch.Tensor = torch.fft.ifft2(dense).real
        return change * (gain * self.scaling)
