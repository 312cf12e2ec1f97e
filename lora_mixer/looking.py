"""What a mixer lets one look at: nothing here changes anything."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_mixer.errors import AdapterNameError
from lora_mixer.memory import MemoryReport
from lora_mixer.mixes import Mix, parse_prompt

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.binding import MatchReport
    from lora_mixer.engines import BaseDevice, Setting, Stage


@dataclass(frozen=True)
class Loaded:
    """What is remembered of a loaded adapter."""

    info: AdapterInfo
    report: MatchReport


class Looking:
    """The read-only half of :class:`~lora_mixer.LoraMixer`."""

    _keep_base: BaseDevice
    _stage: Stage
    _loaded: dict[str, Loaded]
    _held: Setting
    _enabled: bool
    _lock: threading.RLock

    def get_active_adapters(self) -> list[str]:
        """List the names in effect, in the order given to ``set_adapters``; none while disabled."""
        with self._lock:
            return list(self._held.names) if self._enabled else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """List the loaded adapters of each component that has any."""
        with self._lock:
            table: dict[str, list[str]] = {}
            for name, loaded in self._loaded.items():
                for part in loaded.report.components:
                    if part.matched:
                        table.setdefault(part.component, []).append(name)
            return table

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """What is loaded, by name: source, format, base family, ranks, sizes, hashes, trigger words, metadata."""
        with self._lock:
            return MappingProxyType({name: loaded.info for name, loaded in self._loaded.items()})

    @property
    def reports(self) -> Mapping[str, MatchReport]:
        """The report of each load, by adapter name."""
        with self._lock:
            return MappingProxyType({name: loaded.report for name, loaded in self._loaded.items()})

    @property
    def mix(self) -> Mix:
        """
        The mix in effect: empty while disabled or when nothing is active.

        Where each image of a batch has its own, this is the first; :attr:`mixes` has all.
        """
        return next(iter(self.mixes), Mix.of({}))

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The mixes in effect: one for all images, or one for each prompt of a batch."""
        with self._lock:
            return self._held.mixes if self._enabled else ()

    @property
    def is_in_parameters(self) -> bool:
        """Whether the whole mix is in the pipeline's parameters, so that ``save_pretrained`` saves it."""
        with self._lock:
            return self._stage.is_in_parameters

    def memory(self) -> MemoryReport:
        """Count the bytes of adapters and kept bases."""
        with self._lock:
            sizes = {name: loaded.info.bytes for name, loaded in self._loaded.items()}
            return MemoryReport(sizes, self._stage.merged.base_bytes(), self._keep_base)

    def parse_prompt(
        self, prompt: str, *, presets: Mapping[str, Sequence[float]] | None = None
    ) -> tuple[str, Mix]:
        """
        Take ``<lora:name:weight>`` tags out of a prompt; the names are those of loaded adapters.

        Args:
            prompt: The prompt, or a negative prompt, as it was typed.
            presets: LBW lists that may be named, beside the built-in ones.

        Returns:
            The prompt without the tags, and the mix that they say, for ``applied`` and ``set_mix``.

        Raises:
            MixError: With everything that is wrong: names that are not loaded, names given twice, odd weights.

        Example:
            >>> prompt, mix = mixer.parse_prompt("a castle <lora:watercolor:0.7>")  # doctest: +SKIP
            >>> unwanted, less = mixer.parse_prompt("blurry <lora:3d:0.4>")  # doctest: +SKIP
            >>> with mixer.applied(mix, negative=less):  # doctest: +SKIP
            ...     pipe(prompt, negative_prompt=unwanted)
        """
        with self._lock:
            return parse_prompt(prompt, list(self._loaded), presets)

    def _unknown(self, names: Sequence[str], where: str) -> AdapterNameError:
        loaded = ", ".join(self._loaded) or "none"
        return AdapterNameError(
            f"{where} names {', '.join(map(repr, names))}, which is not loaded; loaded are: {loaded}"
        )
