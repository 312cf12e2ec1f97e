"""The half of a mixer that writes what it holds, and looks after the base when others have changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.binding import find_components
from lora_mixer.errors import MixError
from lora_mixer.looking import Looking
from lora_mixer.writing import live as saving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from lora_mixer.engines import Words
    from lora_mixer.mixes import Mix
    from lora_mixer.writing import SaveReport


class Keeping(Looking):
    """Saving, and the base's care; see :class:`~lora_mixer.LoraMixer`."""

    pipe: Any
    _words: Words

    # --- writing -----------------------------------------------------------------------------------------------

    def save_lora_weights(
        self,
        save_directory_or_path: Any,
        adapter_names: str | Sequence[str] | None = None,
        *,
        format: str = "diffusers",  # noqa: A002 -- the word for it
        rank: int | None = None,
        dtype: torch.dtype | str | None = None,
        weights: Any = None,
    ) -> SaveReport:
        """
        Write an adapter as it was loaded, or a mix as one adapter, to files that other programs read.

        Args:
            save_directory_or_path: A ``.safetensors`` file, or a folder. PEFT's format is always a folder, with one
                folder per component inside where there are several.
            adapter_names: One name, which at weight 1 is written with its own tensors and scales, or several, which
                become one adapter; the mix in effect when None.
            format: ``"diffusers"``, ``"kohya"`` or ``"peft"``.
            rank: The rank to cut to; None is exact, at the sum of the ranks.
            dtype: ``float32``, ``float16`` or ``bfloat16``; by default each tensor's own, float32 for sums.
            weights: Weights for the names as in ``set_adapters``; without names, a mix in any form.

        Returns:
            The files, and what the rank left out of each layer.

        Raises:
            AdapterNameError: When a name is unknown.
            MixError: When there is nothing to save, or the mix changes from step to step.
            SaveError: When the format or the disk cannot take it; what was there before is still there.

        Example:
            >>> mixer.save_lora_weights("mine.safetensors", weights={"a": 0.7, "b": 0.3}, rank=32)  # doctest: +SKIP
        """
        with self._lock:
            choice = saving.choose(
                self._held.every if self._enabled else (),
                save_directory_or_path,
                adapter_names,
                weights,
                format=format,
                rank=rank,
                dtype=dtype,
            )
            unknown = [name for name in choice.mix.names if name not in self._loaded]
            if unknown:
                raise self._unknown(unknown, "save_lora_weights")
            components = find_components(self.pipe)
            check_components(choice.mix, components)
            infos = {name: self._loaded[name].info for name in choice.mix.names}
            return saving.save(choice, saving.hold(choice.mix, infos, self._stage, components), components)

    # --- when others changed the weights -------------------------------------------------------------------------

    def rebase(self) -> None:
        """
        Take what the weights hold now as the new base, after something else has changed them on purpose.

        No adapter is active afterwards; call ``set_adapters`` or ``enable_lora`` again.
        """
        with self._lock, self._words.changed(shown=False):
            self._stage.rebase()
            self._enabled = False

    def restore_base(self) -> None:
        """Write the kept base over whatever the weights hold now; no adapter is active afterwards."""
        with self._lock, self._words.changed(shown=False):
            self._stage.restore()
            self._enabled = False


def check_components(mix: Mix, known: Mapping[str, nn.Module]) -> None:
    """
    Check that a mix names components of the pipeline only.

    Args:
        mix: The mix.
        known: The pipeline's modules by name.

    Raises:
        MixError: When there is no such component.
    """
    for name in mix.names:
        odd = [part for part in mix[name].named_components if part not in known]
        if odd:
            msg = f"{name}: no component {', '.join(odd)} in this pipeline; it has {', '.join(sorted(known))}, te"
            raise MixError(msg)
