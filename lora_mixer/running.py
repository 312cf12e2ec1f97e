"""The half of a mixer that keeps compiled and captured models valid while mixes change."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_mixer.binding import find_components
from lora_mixer.engines.capture import captured
from lora_mixer.engines.stage import callers
from lora_mixer.errors import MixError
from lora_mixer.keeping import Keeping
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.engines.capture import Captured

_DENOISERS = ("unet", "transformer", "transformer_2", "prior", "model")


class Running(Keeping):
    """Room for mixes that come later, and CUDA graphs; see :class:`~lora_mixer.LoraMixer`."""

    def reserve(self, rank: int = 64, *, rows: int = 1) -> None:
        """
        Keep a side path beside the denoiser's layers, with room for mixes to come, until :meth:`release`.

        Whatever mix is set then, it is written into tensors that stay where they are: a denoiser compiled by
        ``torch.compile`` is not compiled again, and one that was captured as a CUDA graph stays valid. The layers are
        those that the loaded adapters change; adapters that are loaded later may change the same ones.

        Args:
            rank: The ranks that all active adapters may have together in a layer.
            rows: 1 where all images of a batch have one mix; else the rows of the largest denoiser batch (prompts x
                images per prompt x guidance), each of which may have its own.

        Raises:
            MixError: When no adapter is loaded, or the mix in effect needs more room; nothing has changed then.

        Example:
            >>> mixer.reserve(rank=64)  # doctest: +SKIP
            >>> pipe.unet = torch.compile(pipe.unet)  # doctest: +SKIP
            >>> mixer.set_mix({"watercolor": 0.7, "3d": "0@0,1@1"})  # doctest: +SKIP
        """
        for name, value in (("rank", rank), ("rows", rows)):
            if type(value) is not int or value < 1:
                raise MixError(f"{name} must be a whole number of at least 1, got {value!r}")
        with self._lock:
            self._stage.reserve(rank, rows, find_components(self.pipe))

    def release(self) -> None:
        """Take the reserved side path away; the mix in effect goes on without it."""
        with self._lock:
            self._stage.release(find_components(self.pipe))

    @contextmanager
    def capture(self) -> Iterator[dict[str, Captured]]:
        """
        Run the denoiser as a CUDA graph inside a block: one for each shape of its inputs, captured at the first call.

        Graphs stay valid while mixes are merged (whatever the weights, also by step), and, once the side path is
        reserved, for all others; without that, a mix beside the weights has them captured anew. Outputs are copies.

        Yields:
            By component, what runs in its place; ``captures`` counts the graphs.

        Raises:
            PipelineStateError: When the denoiser is not whole on one CUDA device.

        Example:
            >>> with mixer.capture():  # doctest: +SKIP
            ...     for mix in mixes:
            ...         with mixer.applied(mix):
            ...             pipe("a castle")
        """
        with self._lock:
            parts = {
                name: module
                for name, module in callers(self.pipe).items()
                if name in _DENOISERS and name not in TEXT_ENCODERS
            }
            with captured(parts, self._stage.beside.generations.__getitem__) as held:
                yield held
