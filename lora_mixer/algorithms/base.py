"""What every adapter algorithm offers to the engines: shapes, exact low-rank factors or a weight change."""

from __future__ import annotations

import abc
import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora_mixer.algorithms.outputs import Factors, OutputChange
from lora_mixer.errors import InvalidAdapterError
from lora_mixer.parsing.module_ends import Configuration
from lora_mixer.parsing.values import is_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Ranges = tuple[tuple[int, int], ...]
"""Rows of a weight as (start, stop) after (start, stop), in an order that need not be ascending."""


@dataclass(frozen=True)
class ModuleTensors:
    """
    The tensors that a file holds for one module, by role, before an algorithm makes sense of them.

    Attributes:
        tensors: Role to tensor, as :mod:`lora_mixer.formats.leaves` names roles.
        alpha: The stored alpha, or that of the file's configuration; None where there is none.
        scale: A scale that overrides alpha / rank; None where there is none.
        rank_stabilised: Whether the scale is alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732).
        label: The module's spelling, for messages.
        module: The module's spelling without its component, as configurations name it.
        scalar: A factor on top of the scale (LyCORIS ``use_scalar`` before it was folded into the weights).
        config: The file's PEFT configuration; empty where there is none.
        rank: The rank that the configuration gives this module; None where there is none.
        spellings: Other spellings of the module that a configuration may use.
        parameters: The module's parameters that the configuration names, each with its scale and alpha.
        beside: Roles of the module's tensors that other algorithms take.
    """

    tensors: Mapping[str, torch.Tensor]
    alpha: float | None
    scale: float | None
    rank_stabilised: bool
    label: str
    module: str = ""
    scalar: float = 1.0
    config: Configuration = field(default_factory=Configuration)
    rank: int | None = None
    spellings: tuple[str, ...] = ()
    parameters: tuple[tuple[str, float, float | None], ...] = ()
    beside: frozenset[str] = frozenset()

    def need(self, *roles: str) -> tuple[torch.Tensor, ...]:
        """
        Take tensors that must be there.

        Raises:
            InvalidAdapterError: Naming those that are missing.
        """
        missing = [role for role in roles if role not in self.tensors]
        if missing:
            there = ", ".join(self.tensors) or "nothing else"
            raise InvalidAdapterError(
                f"{', '.join(missing)} is missing beside {there}; the file is incomplete", key=self.label
            )
        return tuple(self.tensors[role] for role in roles)

    def scale_for(self, rank: int) -> float:
        """Return alpha / rank (or what overrides it) times the scalar; no alpha means alpha = rank, as in every tool."""
        scale = self.scale
        if scale is None:
            scale = (
                1.0
                if self.alpha is None
                else self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)
            )
        return scale * self.scalar

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """
        Read an option of the configuration that must be a number in a range.

        Raises:
            InvalidAdapterError: When it is none.
        """
        value = self.config.get(name, default)
        if not is_number(value) or not least <= value <= most:
            raise InvalidAdapterError(
                f"{name} is {value!r} in the configuration, expected a number from {least:g} to {most:g}",
                key=self.label,
            )
        return value

    def broken(self, why: str) -> InvalidAdapterError:
        """Return the error for tensors that do not belong together, with all shapes."""
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in self.tensors.items())
        return InvalidAdapterError(f"{shapes}: {why}", key=self.label)


_PLAIN = frozenset(("None", "bool", "int", "float", "str"))
"""How the types of fields that hold no tensor are written."""
_TENSOR = "torch.Tensor"


_HELD: dict[Any, tuple[str, ...]] = {}
_PARTS: dict[Any, tuple[str, ...]] = {}
"""Names of fields by class; tables, since compilers look through these and not through ``dataclasses.fields``."""


def _held_fields(kind: Any) -> tuple[str, ...]:
    """Return the fields that may hold tensors or other parts; files have thousands of modules, which are asked again and again."""
    names = _HELD.get(kind)
    if names is None:
        names = _HELD[kind] = _fields_beyond(kind, _PLAIN)
    return names


def _part_fields(kind: Any) -> tuple[str, ...]:
    """Return the fields that may hold other parts."""
    names = _PARTS.get(kind)
    if names is None:
        names = _PARTS[kind] = _fields_beyond(kind, _PLAIN | {_TENSOR})
    return names


def _fields_beyond(kind: Any, known: frozenset[str]) -> tuple[str, ...]:
    fields = dataclasses.fields(kind)  # every algorithm is a dataclass
    return tuple(f.name for f in fields if not {part.strip() for part in str(f.type).split("|")} <= known)


class LayerWeights(abc.ABC):
    """
    One module's part of an adapter: tensors as they lie in the file, and what they mean.

    A new algorithm is a frozen dataclass with these methods and a ``from_parts``; it is listed in
    :data:`lora_mixer.algorithms.table.ALGORITHMS` and needs nothing else. Its fields are tensors, other layer weights
    (what it modifies) or plain values.
    """

    algorithm: ClassVar[str]
    """The name that reports show."""

    alpha: float | None = None
    """The alpha in force, or None where the file has none or it does not scale."""

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The names of all algorithms at work, the outer first."""
        return (self.algorithm, *(name for part in self.inner_parts() for name in part.algorithms))

    told_by_shapes: ClassVar[bool] = False
    """Whether shapes, dtypes and single numbers (alpha, scale) decide all of it, its tensors' values aside, in ``take`` as well:
    files of the same shapes are then built once (:mod:`lora_mixer.algorithms.moulds`)."""

    reaches_twins: ClassVar[bool] = False
    """Whether the change is one of the parameter, whatever modules share it, and not of the module that is named."""

    factors_of_all: ClassVar[tuple[str, ...]] = ()
    """Fields of which one alone, all zeros, leaves nothing of the change."""

    beside_only: ClassVar[bool] = False
    """Whether no weight of the layer can hold the change, so that it runs beside the layer whatever the mix."""

    @property
    def rank(self) -> int | None:
        """The rank, or None for an algorithm that has none."""
        return None

    @property
    def in_width(self) -> int | None:
        """The input width of the module that this was made for, where the tensors tell; it names the base family."""
        return None

    @property
    def took_from_base(self) -> bool:
        """Whether training took a part out of the base's own tensor, which is gone for every module that shares it."""
        return any(part.took_from_base for part in self.inner_parts())

    def inner_parts(self) -> Iterator[LayerWeights]:
        """Yield the changes that this one modifies or adds up."""
        for name in _part_fields(type(self)):
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from (part for part in value if isinstance(part, LayerWeights))
            elif isinstance(value, LayerWeights):
                yield value

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held."""
        for name in _held_fields(type(self)):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, tuple):
                for part in value:
                    if isinstance(part, LayerWeights):
                        yield from part.tensors()
            elif isinstance(value, LayerWeights):
                yield from value.tensors()

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> LayerWeights:
        """Return the same with every tensor replaced by ``move`` of it."""
        changed: dict[str, Any] = {}
        for name in _held_fields(type(self)):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                changed[name] = move(value)
            elif isinstance(value, LayerWeights):
                changed[name] = value.map(move)
            elif isinstance(value, tuple) and any(isinstance(part, LayerWeights) for part in value):
                changed[name] = tuple(part.map(move) for part in value)
        same: Any = self
        moved: LayerWeights = dataclasses.replace(same, **changed)
        return moved

    def limited(self, rank: int) -> LayerWeights:  # noqa: ARG002 -- only ordered ranks can be cut off
        """Return the same with at most ``rank`` ranks, the first ones; itself where ranks have no order."""
        return self

    def rows(self, start: int, stop: int, total: int) -> LayerWeights:
        """
        Return the change of the rows from ``start`` up to ``stop`` of a layer of ``total`` rows, exactly.

        Example:
            >>> from lora_mixer.algorithms.full import Full
            >>> fused = Full(torch.arange(6.0).reshape(3, 2), None, 1.0)
            >>> fused.rows(1, 2, 3).delta(torch.zeros(1, 2), 2.0)
            tensor([[4., 6.]])
        """
        return self.take(((start, stop),), total)

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """
        Return the change of some rows of a layer of ``total`` rows, exactly.

        Args:
            ranges: (start, stop) after (start, stop), in the order in which the rows are to stand.
            total: Rows of the whole layer.
        """
        return self if ranges == ((0, total),) else Sliced(self, ranges, total, self.alpha)

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002 -- most algorithms work row by row
        """Say whether the change of a row of a weight of ``shape`` depends on other rows of the base."""
        return False

    def needs_whole(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002 -- only rows of a fused layer can
        """Say whether a weight of ``shape`` is too little to compute the change from: other modules hold the rest."""
        return False

    def is_zero(self) -> bool:
        """Say whether the change is zero at every weight, as where nothing was trained; False where that cannot be seen."""
        return any(is_nothing(getattr(self, name)) for name in self.factors_of_all)

    def confine(self) -> None:  # noqa: B027 -- most have nothing to do
        """Put tensors in training back to where the algorithm keeps them, in place; most leave them free."""

    @property
    def changes_weight(self) -> bool:
        """Whether this changes the weight at all, and not the bias alone."""
        return True

    @abc.abstractmethod
    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape`` (out, in, *kernel), or None if it can."""

    def lycoris_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by the ends of the keys that LyCORIS gives them, scale included; none where it has no such kind."""
        return {}

    def factors(self, shape: tuple[int, ...]) -> Factors | None:  # noqa: ARG002 -- most algorithms have none
        """Return the exact low-rank form for a weight of ``shape``, or None if there is none worth using."""
        return None

    @abc.abstractmethod
    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """
        Return the weight change at weight ``gain``, computed from the clean base.

        Args:
            base: The base weight in fp32 or fp64, (out, in, *kernel).
            gain: The user's weight.

        Returns:
            A tensor of the base's shape and dtype; all zeros for a gain of 0.
        """

    needs_base: ClassVar[bool] = True
    """Whether :meth:`delta` looks at the base's values, and not at its shape and type alone."""

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """
        Return the change of a linear layer at weight ``gain`` as what it does to outputs, for a weight that stays as it is.

        Args:
            base: Gives the clean base (out, in) in fp32 at least, which may be a product with a packed weight.
            shape: The weight's, (out, in).
            gain: The user's weight.
        """
        if not gain:
            return OutputChange()
        pair = self.factors(shape)
        if pair is not None:
            return OutputChange(pair=Factors(pair.up, pair.down, pair.scale * gain))
        nothing = torch.zeros((), device=next(self.tensors()).device).expand(shape)
        return OutputChange(dense=self.delta(base() if self.needs_base else nothing, gain))

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:  # noqa: ARG002
        """
        Return the change of the bias (out,) at weight ``gain``, or None where the adapter has none.

        Args:
            base: The clean bias in fp32 or fp64, or None for a module without one.
            gain: The user's weight.
        """
        return None


class Wrapped(LayerWeights):
    """Another change in another place: what is known of that one is known of this."""

    inner: LayerWeights

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those of the change within."""
        return self.inner.algorithms

    @property
    def rank(self) -> int | None:
        """The rank of the change within."""
        return self.inner.rank

    @property
    def in_width(self) -> int | None:
        """Input width of the change within."""
        return self.inner.in_width

    def is_zero(self) -> bool:
        """Say whether the change within is zero."""
        return self.inner.is_zero()

    def limited(self, rank: int) -> LayerWeights:
        """Limit the change within."""
        same: Any = self
        limited: LayerWeights = dataclasses.replace(same, inner=self.inner.limited(rank))
        return limited


@dataclass(frozen=True)
class Sliced(Wrapped):
    """
    Some rows of another change.

    Attributes:
        inner: The change of the whole layer.
        ranges: Which rows, as (start, stop), in the order in which the live module has them.
        total: Rows of the whole layer.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "rows"
    told_by_shapes: ClassVar[bool] = True

    inner: LayerWeights
    ranges: Ranges
    total: int
    alpha: float | None

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        rows = count_rows(self.ranges)
        if rows != shape[0]:
            return f"{rows} rows of a fused layer, the module has {shape[0]}"
        return self.inner.misfit((self.total, *shape[1:]))

    def needs_whole(self, shape: tuple[int, ...]) -> bool:
        """Say whether other rows of the base are needed."""
        return self.inner.mixes_rows((self.total, *shape[1:]))

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return the rows of ``up``, and the same ``down``."""
        pair = self.inner.factors((self.total, *shape[1:]))
        return None if pair is None else Factors(take_rows(pair.up, self.ranges), pair.down, pair.scale)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """
        Return these rows of the change, from the base's own rows.

        Raises:
            TypeError: When other rows of the base are needed, so that :meth:`delta_of` has to be asked.
        """
        if self.needs_whole(tuple(base.shape)):
            raise TypeError(f"{'+'.join(self.algorithms)} on a fused layer needs the base of the whole layer")
        return self.delta_of(spread_rows(base, self.ranges, self.total), gain)

    def delta_of(self, whole: torch.Tensor, gain: float) -> torch.Tensor:
        """
        Return these rows of the change.

        Args:
            whole: The clean base of the whole layer, (total, in, *kernel), in the order of the file.
            gain: The user's weight.
        """
        return take_rows(self.inner.delta(whole, gain), self.ranges)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return these rows of the bias's change."""
        whole = None if base is None else spread_rows(base, self.ranges, self.total)
        change = self.inner.bias_delta(whole, gain)
        return None if change is None else take_rows(change, self.ranges)


class Factored(LayerWeights):
    """An algorithm that is a low-rank pair in disguise: its change is ``gain * scale * up @ down``."""

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * up @ down in the base's dtype and shape."""
        pair = self.factors(tuple(base.shape))
        if pair is None:
            raise TypeError(f"{type(self).__name__} must give factors for every weight it fits")
        return (pair.up.to(base) @ pair.down.to(base)).mul_(gain * pair.scale).reshape(base.shape)


class HasPair(LayerWeights):
    """An algorithm of a pair ``up`` (out, rank) and ``down`` (rank, in), whatever it makes of their product."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        """The rank of the pair."""
        return self.down.shape[0]

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.down.shape[1]

    factors_of_all: ClassVar[tuple[str, ...]] = ("up", "down", "rank")

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return flat_misfit((self.up.shape[0], math.prod(self.down.shape[1:])), shape)


def count_rows(ranges: Ranges) -> int:
    """Count the rows that ranges hold."""
    return sum(stop - start for start, stop in ranges)


def take_rows(tensor: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Return rows of a tensor in the order of the ranges: a view where they are one."""
    pieces = [tensor[start:stop] for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # (rows, ...)


def take_bias(bias: torch.Tensor, ranges: Ranges, total: int) -> torch.Tensor:
    """Return a bias's values for rows; with all rows all of them, which may be another number where weights are transposed."""
    return bias.flatten() if ranges == ((0, total),) else take_rows(bias.flatten(), ranges)


def spread_rows(rows: torch.Tensor, ranges: Ranges, total: int) -> torch.Tensor:
    """Put rows at their places among ``total``, zeros elsewhere."""
    whole = rows.new_zeros(total, *rows.shape[1:])  # (total, ...)
    start = 0
    for first, last in ranges:
        whole[first:last] = rows[start : start + last - first]
        start += last - first
    return whole


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """Flatten a weight's shape to (out, in * kernel); a vector has one column."""
    return shape[0], math.prod(shape[1:])


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop a 1x1 kernel: such convolutions and linears are one."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def flat_misfit(made_for: tuple[int, int], shape: tuple[int, ...]) -> str | None:
    """Compare (out, in * kernel) with a weight's shape; say what differs, or None."""
    if len(shape) < 2:
        return f"made for a weight of {made_for[0]} x {made_for[1]}, the module has a vector of {math.prod(shape)}"
    there = rows_and_columns(shape)
    return (
        None
        if made_for == there
        else f"made for a weight of {made_for[0]} x {made_for[1]}, the module has {there[0]} x {there[1]}"
    )


def is_nothing(value: torch.Tensor | float | None) -> bool:
    """Say whether a number, or a tensor that is there, is all zeros."""
    return value == 0 if isinstance(value, int | float) else all_zero(value)


def all_equal(tensor: torch.Tensor | None, value: float) -> bool:
    """Say whether a tensor has one value alone, or is not there."""
    return tensor is None or (not tensor.is_meta and bool((tensor.float() == value).all()))


def all_zero(tensor: torch.Tensor | None) -> bool:
    """Say whether a tensor is there and all zeros; nearly always its first value tells."""
    if tensor is None or tensor.is_meta or tensor.numel() == 0 or float(tensor[(0,) * tensor.ndim]) != 0:
        return False
    return not bool(tensor.float().any())


def all_finite(tensor: torch.Tensor) -> bool:
    """Say whether no value is NaN or Inf; torch cannot tell that of types of one byte, and whole numbers always are."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    return bool((tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all())


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32 at least: products of halves would round before they are summed."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
