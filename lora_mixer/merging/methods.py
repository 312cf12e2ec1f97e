"""All merging methods by name, and one of them with its settings, checked once and applied layer by layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lora_mixer.merging.breadcrumbs import BREADCRUMBS
from lora_mixer.merging.dare import DARE, DARE_TIES
from lora_mixer.merging.della import DELLA
from lora_mixer.merging.knots import KNOTS
from lora_mixer.merging.magnitude import MAGNITUDE
from lora_mixer.merging.method import MethodSpec, Value, layer_generator, read_settings, refuse
from lora_mixer.merging.orthogonal import ORTHOGONAL
from lora_mixer.merging.ties import TIES
from lora_mixer.merging.weighted_sum import SUM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.merging.weighted_sum import Pair

METHODS: Mapping[str, MethodSpec] = {
    spec.name: spec for spec in (SUM, KNOTS, ORTHOGONAL, TIES, DARE, DARE_TIES, DELLA, BREADCRUMBS, MAGNITUDE)
}
"""Every merging method by its name; a new one is a row here."""

_ELSEWHERE = {
    "b-lora": "B-LoRA is block weights of a mix: content.safetensors:blocks=b-lora:content "
    "style.safetensors:blocks=b-lora:style"
}
"""How names begin that are looked for here and stand elsewhere, and where."""

_TEXT = re.compile(r"([\w-]+)\s*(?:\((.*)\))?", re.DOTALL)


class MergeMethod:
    """
    How several adapters become one: a method of :data:`METHODS` with its settings.

    Args:
        name: The method's name.
        **settings: Those of its settings that are not as by default.

    Attributes:
        spec: The method.
        settings: All its settings by name.

    Raises:
        MixError: When the name or a setting is unknown, or a value is impossible; all problems at once.

    Example:
        >>> MergeMethod("ties", density=0.2)
        MergeMethod('ties(density=0.2, majority=total, average=count, scale=1.0)')
        >>> import torch
        >>> changes = {"ink": torch.tensor([[1.0, -2.0]]), "oil": torch.tensor([[3.0, 2.0]])}
        >>> MergeMethod.of("ties(density=1)").merge_changes(changes, {"ink": 1.0, "oil": 1.0}).shape
        torch.Size([1, 2])
        >>> MergeMethod.of("ties(density=1)").merge_vectors({name: change[0] for name, change in changes.items()}, {"ink": 1.0, "oil": 1.0}).shape
        torch.Size([2])
        >>> pairs = {name: (torch.ones(3, 1), change) for name, change in changes.items()}
        >>> up, down = MergeMethod.of("sum").merge_pairs(pairs, {"ink": 1.0, "oil": 0.5})
        >>> (up @ down)[0]
        tensor([ 2.5000, -1.0000])
    """

    spec: MethodSpec
    settings: Mapping[str, Value]

    def __init__(self, name: str = "sum", **settings: Value) -> None:
        """Look the method up and check its settings."""
        if name not in METHODS:
            more = next((f"; {text}" for start, text in _ELSEWHERE.items() if name.startswith(start)), "")
            refuse([f"method {name!r} is unknown; there are {', '.join(METHODS)}{more}"])
        self.spec = METHODS[name]
        self.settings = read_settings(self.spec, settings)

    @classmethod
    def of(cls, method: MergeMethod | str, **more: Value) -> MergeMethod:
        """
        Read a method as users write it.

        Args:
            method: A method, or text: a name, or ``name(setting=value, ...)``.
            **more: Settings beside those in the text.

        Returns:
            The method with its settings.

        Raises:
            MixError: When it cannot be read.

        Example:
            >>> MergeMethod.of("dare(seed=7)").settings["seed"]
            7
        """
        if isinstance(method, MergeMethod):
            return cls(method.name, **{**method.settings, **more}) if more else method
        match = _TEXT.fullmatch(str(method).strip())
        name, inside = match.groups() if match is not None else ("", None)
        if not name:
            refuse([f"expected a method such as ties or ties(density=0.2), got {method!r}"])
        settings: dict[str, Any] = dict(more)
        for part in inside.split(",") if inside and inside.strip() else ():
            key, equals, value = (text.strip() for text in part.partition("="))
            if not equals or key in settings:
                refuse([f"expected each setting once, as {name}(name=value), got {method!r}"])
            settings[key] = value.strip("\"'")
        return cls(name, **settings)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.spec.name

    @property
    def needs_rank(self) -> bool:
        """Whether it makes full matrices, so that a rank must be asked for."""
        return self.spec.works_on == "changes"

    def merge_pairs(self, pairs: Mapping[str, Pair], weights: Mapping[str, float], place: str = "") -> Pair:
        """
        Merge one layer's low-rank pairs; for methods that work on pairs.

        Args:
            pairs: (up, down) of each adapter by its name, alpha / rank multiplied in.
            weights: Each adapter's weight.
            place: The layer's name, which draws are seeded with.

        Returns:
            The merged pair.
        """
        pair: Pair = self._run(self.spec.merge, pairs, weights, place)
        return pair

    def merge_changes(
        self, changes: Mapping[str, torch.Tensor], weights: Mapping[str, float], place: str = ""
    ) -> torch.Tensor:
        """
        Merge one layer's full weight changes; for methods that work on them.

        Args:
            changes: The change of each adapter at weight 1 by its name, (out, in * kernel).
            weights: Each adapter's weight.
            place: The layer's name, which draws are seeded with.

        Returns:
            The merged change.
        """
        change: torch.Tensor = self._run(self.spec.merge, changes, weights, place)
        return change

    def merge_vectors(
        self, changes: Mapping[str, torch.Tensor], weights: Mapping[str, float], place: str = ""
    ) -> torch.Tensor:
        """
        Merge changes of a norm or a bias, for every method.

        Args:
            changes: The change of each adapter at weight 1 by its name, (n,).
            weights: Each adapter's weight.
            place: Its name, which draws are seeded with.

        Returns:
            The merged change.
        """
        change: torch.Tensor = self._run(self.spec.merge_vectors, changes, weights, place)
        return change

    def _run(self, function: Any, parts: Mapping[str, Any], weights: Mapping[str, float], place: str) -> Any:
        # sorted, so that rounding does not depend on the order either
        names: Sequence[str] = list(parts) if self.spec.ordered else sorted(parts)
        settings: dict[str, Any] = dict(self.settings)
        if self.spec.draws:
            seed = settings.pop("seed")
            settings["generators"] = [layer_generator(seed, place, name) for name in names]
        return function([parts[name] for name in names], [weights[name] for name in names], **settings)

    def to_text(self) -> str:
        """
        Return the method as one word with its settings, as ``of`` reads it.

        Example:
            >>> MergeMethod("magnitude").to_text()
            'magnitude(density=0.5)'
        """
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.name}({settings})" if settings else self.name

    def __repr__(self) -> str:
        return f"MergeMethod({self.to_text()!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MergeMethod) and self.to_text() == other.to_text()

    def __hash__(self) -> int:
        return hash(self.to_text())
