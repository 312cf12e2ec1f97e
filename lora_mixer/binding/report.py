"""What a load matched and what it did not, as values and as a short table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.problem import Problem, Surface
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.problem import AbsenceReason, NoteKind, Remark, UnusedReason

_SHOWN = 5


@dataclass(frozen=True)
class ComponentMatch:
    """
    One component's part of a load.

    Attributes:
        component: Its name in the pipeline, or the name that the keys give where the pipeline has no such part.
        matched: Paths of the live modules that the adapter changes.
        unmatched: Modules as the file spells them, with the reason why none was found: a text with its ``kind``.
        keys_used: Number of keys that ended up in matched modules.
        keys_unused: Keys of unmatched modules.
        layers: Number of layers of the file that the matched modules are made of: fewer where one fills several, as a fused
            projection does, more where one module takes several.

    Example:
        >>> part = ComponentMatch("unet", ("conv_in",), {}, keys_used=2)
        >>> len(part.matched), part.keys_unused
        (1, ())
    """

    component: str
    matched: tuple[str, ...] = ()
    unmatched: Mapping[str, Remark[AbsenceReason]] = field(default_factory=dict)
    keys_used: int = 0
    keys_unused: tuple[str, ...] = ()
    layers: int | None = None


@dataclass(frozen=True)
class MatchReport:
    """
    The outcome of one ``load_lora_weights``.

    Attributes:
        adapter_name: The name it was loaded under.
        source: Where it is from.
        format: The layout of its keys.
        components: One entry for each component that the keys name or that was matched.
        unused_keys: Keys that belong to no module at all, with the reason: a text with its ``kind``.
        notes: Remarks on the file, such as embeddings that are not applied: texts with their ``kind``.

    Example:
        >>> report = MatchReport("ink", "ink.safetensors", "kohya", (ComponentMatch("unet", ("conv_in",), {}, 2),))
        >>> report.matched, report.unmatched
        (1, 0)
    """

    adapter_name: str
    source: str
    format: str
    components: tuple[ComponentMatch, ...]
    unused_keys: Mapping[str, Remark[UnusedReason]] = field(default_factory=dict)
    notes: tuple[Remark[NoteKind], ...] = ()

    @property
    def matched(self) -> int:
        """Number of live modules that the adapter changes."""
        return sum(len(part.matched) for part in self.components)

    @property
    def unmatched(self) -> int:
        """Number of modules of the file that the pipeline does not have."""
        return sum(len(part.unmatched) for part in self.components)

    @property
    def complete(self) -> bool:
        """Whether every module and every key of the file is used."""
        return self.unmatched == 0 and not self.unused_keys

    @property
    def problems(self) -> tuple[Problem, ...]:
        """
        What of the file is not used, as errors carry it: each module and key as the file spells it, with the reason.

        Example:
            >>> from lora_mixer.problem import AbsenceReason, Remark
            >>> why = Remark("has no such module", AbsenceReason.NO_MODULE)
            >>> part = ComponentMatch("unet", (), {"unet.conv": why}, 0)
            >>> [each.place for each in MatchReport("ink", "ink.safetensors", "kohya", (part,)).problems]
            ['unet.conv']
        """
        absent = [
            Problem(place, str(why), reason=why.kind)
            for part in self.components
            for place, why in part.unmatched.items()
        ]
        unused = [Problem(key, str(why), reason=why.kind) for key, why in self.unused_keys.items()]
        return (*absent, *unused)

    def __str__(self) -> str:
        """Return the table for programs."""
        return self.text_on(Surface.PYTHON)

    def text_on(self, surface: Surface) -> str:
        """
        Return a short table in the words of a surface: a line for each component, then what is left over and why.

        Args:
            surface: Where it is read.

        Returns:
            The table.

        Example:
            >>> MatchReport("ink", "ink.safetensors", "kohya", ()).text_on(Surface.PAGE)
            'ink: ink.safetensors (kohya)'
        """
        return "\n".join((f"{self.adapter_name}: {self.source} ({self.format})", *self._rows_on(surface)))

    def table_on(self, surface: Surface) -> str:
        """
        Return the table without its first line, for whoever names the file.

        Args:
            surface: Where it is read.

        Example:
            >>> part = ComponentMatch("unet", ("conv_in",), {}, 2)
            >>> MatchReport("ink", "ink.safetensors", "kohya", (part,)).table_on(Surface.PAGE)
            '  unet     1 of    1 modules,    2 of    2 keys'
        """
        return "\n".join(self._rows_on(surface))

    def _rows_on(self, surface: Surface) -> list[str]:
        lines: list[str] = []
        width = max((len(part.component) for part in self.components), default=0)
        for part in self.components:
            keys = part.keys_used + len(part.keys_unused)
            total = len(part.matched) + len(part.unmatched)
            in_file = "" if part.layers in (None, len(part.matched)) else f" ({part.layers} in the file)"
            lines.append(
                f"  {part.component:<{width}}  {len(part.matched):>4} of {total:>4} modules{in_file}, "
                f"{part.keys_used:>4} of {keys:>4} keys"
            )
            reasons: dict[str, list[str]] = {}
            for name, why in part.unmatched.items():
                reasons.setdefault(why.text_on(surface), []).append(name)
            for reason, names in reasons.items():
                lines.append(f"    not matched, {reason}: {first_of(names, _SHOWN)}")
        if self.unused_keys:
            keys_left = list(self.unused_keys)
            lines.append(f"  {len(keys_left)} keys not used: {first_of(keys_left, _SHOWN)}")
        return [*lines, *(f"  note: {note.text_on(surface)}" for note in self.notes)]
