"""One live parameter that adapters change, and its kept base."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.multiprocessing.reductions import StorageWeakRef

from lora_mixer.binding.index import OWN_INPUTS
from lora_mixer.engines.merged.as_left import is_as_written, that_differ
from lora_mixer.engines.merged.computed import write_under
from lora_mixer.engines.merged.cores import on_all_cores
from lora_mixer.engines.merged.group_files import write_tensors
from lora_mixer.engines.merged.host_memory import copy_to_host
from lora_mixer.engines.merged.patched_base import PatchedBase, patched
from lora_mixer.engines.merged.versions import COUNT, in_graphs, set_versions
from lora_mixer.engines.modes import writing
from lora_mixer.engines.offloaded import stored_values
from lora_mixer.errors import PipelineStateError
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lora_mixer.algorithms import Factors
    from lora_mixer.engines.merged.group_files import StoredTensor

_T = TypeVar("_T")

_its_base: Any = operator.attrgetter("_kept")
_its_version: Any = operator.attrgetter("_version")
_expired: Any = torch.UntypedStorage._expired  # noqa: SLF001 -- what StorageWeakRef asks, without its detours

KeepBase = Literal["device", "host", "patch", "none", "auto"]
"""
Where kept bases live: beside the weights, in host memory (pinned when there is a GPU), in the mixed weights themselves with a patch beside
them, nowhere, or where there is room.
"""

AT_ONCE = 1 << 28
"""Bytes of bases that are whole at a time where none is kept whole."""


_OVERLAPPING = "its weights are a view in which numbers share their memory (expand); make them a tensor of their own (clone)"

KeptRecord = dict[str, Any]
"""What a slot said at one time: the kept base, whether a mix is in the parameter, how that was found, and the narrower tensor."""

_RECORDED = (
    "_kept",
    "whole_because",
    "blended",
    "locked",
    "_seen",
    "_storage",
    "_address",
    "_origin",
    "content",
    "_narrow",
    "_is_copy",
)


class KeptWeight:
    """
    A parameter by its place in the module tree, with the clean base once something is to be written.

    Args:
        name: Component and path, for messages.
        module: The module that owns it.
        attribute: ``weight`` or ``bias``.
        keep_on: Where the base is kept; with ``"none"`` it is let go of as soon as it is back.

    Attributes:
        locked: Whether the parameter cannot be rewritten (quantised, on meta); only the side path serves it then.
        stored: Where its values are read from at each call, where that is a file; None where it holds them.
        whole_because: Why a copy of the base is kept where none was asked for; None where there is none.
    """

    def __init__(self, name: str, module: nn.Module, attribute: str, keep_on: KeepBase) -> None:
        """Note the place; nothing is copied yet."""
        self.name = name
        self.module = module
        self.attribute = attribute
        self.keep_on = keep_on
        self._kept: torch.Tensor | PatchedBase | None = None
        self.whole_because: str | None = None
        self.blended = False
        self.locked = False
        self.stored: StoredTensor | None = None
        self._seen: torch.Tensor | None = None
        self._storage: StorageWeakRef | None = None
        self._address = 0
        self._origin = 0  # its version where what it holds has the number 0
        self.content = 0  # the number of what it holds
        self.counted: torch.Tensor | None = (
            None  # the parameter as it was seen last, where it has a version of its own
        )
        # the base's own tensor, its number of inputs and the component's configuration, while it is wider
        self._narrow: tuple[torch.Tensor, int, Any] | None = None
        self._is_copy = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the module needs: the copied parameter counts as seen, wherever it lies; its base is a whole one."""
        return {
            **vars(self),
            "_kept": self.base,
            "_storage": None,
            "_seen": None,
            "counted": None,
            "_is_copy": True,
        }

    @property
    def base(self) -> torch.Tensor | None:
        """
        The kept base; made anew each time while it is in the mixed weight.

        Raises:
            PipelineStateError: When somebody has written over the weight that it is in.
        """
        return self._whole() if isinstance(self._kept, PatchedBase) else self._kept

    @base.setter
    def base(self, base: torch.Tensor | None) -> None:
        self._kept = base

    @property
    def has_base(self) -> bool:
        """Whether a base is kept, in whatever form."""
        return self._kept is not None

    @property
    def is_plain(self) -> bool:
        """Whether putting its base back is a copy into the parameter, and nothing else."""
        odd = self.locked or self.stored or self.is_wide or self.is_patched or self._original is not None
        return type(self) is KeptWeight and self.keep_on not in ("none", "patch") and not odd

    @property
    def is_patched(self) -> bool:
        """Whether the base is in the mixed weight, with a patch beside it."""
        return isinstance(self._kept, PatchedBase)

    @property
    def is_lost(self) -> bool:
        """Whether the base was in a mixed weight that somebody has written over; it reads the weight."""
        return isinstance(self._kept, PatchedBase) and not self._kept.is_whole

    @property
    def base_place(self) -> tuple[torch.device, int] | None:
        """Where what is kept of the base lies, and how many bytes that is."""
        return None if self._kept is None else (self._kept.device, self._kept.nbytes)

    @property
    def base_bytes(self) -> int:
        """What the whole base is in bytes, whether kept or not."""
        kept = self._kept
        return kept.mixed.nbytes if isinstance(kept, PatchedBase) else self.parameter.nbytes

    def make_whole(self) -> None:
        """Have the base in memory of its own, where it comes out."""
        self._kept = self._whole()

    @property
    def is_left(self) -> bool:
        """Whether the parameter holds the mix that its base is in no more; it reads the weight."""
        kept, held = self._kept, self.held
        if not isinstance(kept, PatchedBase) or held is None:
            return False
        same = held.device.type != "meta" and held.data_ptr() == kept.mixed.data_ptr()
        return self.is_lost or not (same or is_as_written(held, kept.mixed))

    def _whole(self) -> torch.Tensor | None:
        kept = self._kept
        if not isinstance(kept, PatchedBase):
            return kept
        base = kept.read()
        if base is None:
            raise_problems([self._of_loss()])
        return base

    def _of_loss(self) -> Problem:
        return Problem(
            self.name,
            "something else has written over it while adapters were active, and its base went with that, as "
            "keep_base='patch' has no second copy; call mixer.rebase() to take what is there now as the new base",
        )

    @property
    def parameter(self) -> torch.Tensor:
        """The live parameter, looked up anew: ``.to`` and offloading may replace it."""
        parameter = self.module._parameters.get(self.attribute)  # noqa: SLF001 -- ten times faster than getattr
        return getattr(self.module, self.attribute) if parameter is None else parameter

    @property
    def live(self) -> torch.Tensor:
        """The live values for writing; writes through here leave the parameter's version counter alone."""
        original = None if self._kept is None else self._original
        return self.parameter.data if original is None else original.data

    @property
    def _original(self) -> torch.Tensor | None:
        """What a parametrisation that came after the mix computes the weight from; None without one, or where it has another form."""
        parametrizations: Any = self.module._modules.get("parametrizations")  # noqa: SLF001 -- ten times faster than getattr
        if (
            parametrizations is None
            or self.attribute not in parametrizations
            or any(hasattr(step, "right_inverse") for step in parametrizations[self.attribute])
        ):
            return None
        original = getattr(parametrizations[self.attribute], "original", None)
        return original if isinstance(original, nn.Parameter) else None

    @property
    def _is_computed(self) -> bool:
        """Whether the module computes it from other parameters by now."""
        weight = getattr(self.module, self.attribute, None)
        return isinstance(weight, torch.Tensor) and self.module._parameters.get(self.attribute) is None  # noqa: SLF001

    def clean(self) -> torch.Tensor:
        """Return the base model's own as it is kept, or the parameter itself while nothing is written to it."""
        if self._narrow is not None:
            return self._narrow[0].to(self.live)
        if self._kept is None and self.stored is not None:
            return self.stored.read()
        if self._kept is None or not (self.blended or self.locked or self.stored or self.is_wide):
            return self.live  # others may have written to it since the base was kept
        base = self._whole()
        return self.live if base is None else base

    @property
    def held(self) -> torch.Tensor | None:
        """What the weight holds, wherever offloading keeps it; None where that is not in memory."""
        if self.stored is not None:
            return self.stored.read()
        if self.parameter.device.type != "meta":
            return self.live
        place = stored_values(self.module, self.attribute)
        value: torch.Tensor | None = None if place is None else place[0].get(place[1])
        return value

    @property
    def is_others(self) -> bool:
        """Whether it is certain that somebody else has replaced, written or packed the parameter since it was stamped."""
        if not self.can_restore:
            return True
        is_elsewhere = self.parameter.device.type == "meta" or self._original is not None
        return not is_elsewhere and self._overwritten(self.parameter)

    @property
    def is_written(self) -> bool:
        """Whether somebody else has written to it, where it is known to hold no mix of its own, or what it holds to be no mix."""
        return self.blended or self.base is None or self.is_others or that_differ([(self.live, self.base)])[0]

    @property
    def unchanged(self) -> bool:
        """Whether the parameter is where and what it was at the last :meth:`stamp`, but for our own writes."""
        parameter = self.parameter
        if self._is_copy:
            return False
        if self.locked:
            return parameter is self._seen
        return (
            parameter is self._seen
            # an address alone says little: .to() and back may get the freed memory again
            and self._storage is not None
            and not self._storage.expired()  # type: ignore[no-untyped-call]
            and parameter.data_ptr() == self._address
            and _version(parameter) == self.version
            and (self._kept is None or self._kept.dtype == parameter.dtype)
        )

    def stamp(self) -> None:
        """Remember the parameter as it is now, to notice when others move or change it."""
        self._seen, self._is_copy, self.counted = self.parameter, False, None
        self.locked = unsupported(self._seen) is not None
        if not self.locked:
            self._storage = StorageWeakRef(self._seen.untyped_storage())  # type: ignore[no-untyped-call]
            self._address = self._seen.data_ptr()
            if not self.blended:
                self.content = 0
            self._origin = (_version(self._seen) - self.content) % COUNT
            self.counted = None if self._seen.is_inference() else self._seen

    @property
    def writer(self) -> KeptWeight:
        """Who writes the parameter."""
        return self

    @property
    def version(self) -> int:
        """The parameter's version where nobody else has written to it."""
        writer = self.writer
        return (writer._origin + writer.content) % COUNT  # noqa: SLF001 -- of its class

    def problem(self) -> Problem | None:
        """Say why a mix in the parameter cannot be changed now, or None; without a mix in it there is no problem."""
        parameter = self.parameter
        if not self.blended:
            return None
        reason = unsupported(parameter)
        if reason and self.can_restore:
            return None  # the base can be written where the values are now; what is mixed then runs beside
        if reason:
            return Problem(
                self.name, f"an adapter is merged into it, and {reason}. restore_base() puts the base back"
            )
        if self.is_lost:
            return self._of_loss()
        if self._kept is not None and self._overwritten(parameter):
            return Problem(self.name, OVERWRITTEN)
        return None

    def _overwritten(self, parameter: torch.Tensor) -> bool:
        if self._is_copy:
            return False
        # .to() keeps the object and its version; load_state_dict and others change one of them
        return parameter is not self._seen or _version(parameter) != self.version

    def follow(self) -> None:
        """Take note of a parameter that has moved or changed; while it is clean, what it holds now is the base."""
        if not self.blended:
            self.base = None
        self.stamp()

    @property
    def can_restore(self) -> bool:
        """Whether the base can be written, also where a mix cannot: offloaded weights, and those stored in 8 bits."""
        parameter: torch.Tensor | None = self.parameter
        if parameter is None:  # emptied by what replaced the module, as quanto does to save memory
            return False
        if parameter.device.type == "meta":
            return stored_values(self.module, self.attribute) is not None
        if not isinstance(parameter, nn.Parameter):  # computed: what is written to it goes nowhere
            return self._original is not None
        return type(parameter.data) is torch.Tensor and parameter.is_floating_point()

    def write_base(self) -> bool:
        """
        Write the base where offloading keeps the values.

        Returns:
            Whether that was it; else the parameter itself holds them.
        """
        base = self.base if self.parameter.device.type == "meta" else None
        if base is None:
            return False
        stored = stored_values(self.module, self.attribute)
        if stored is None:
            raise_problems([Problem(self.name, str(unsupported(self.parameter)))])
            return False
        table, key = stored
        if key in table:
            table[key].copy_(base)
        else:  # on disk: what is in memory comes first
            table[key] = base.to("cpu", copy=True)
        return True

    def replace_by_base(self) -> bool:
        """Put the base in the place, or under, what a library has made of the parameter; say whether that can be."""
        parameters = self.module._parameters  # noqa: SLF001
        if self.base is not None and self._is_computed:
            weight = getattr(self.module, self.attribute)
            return write_under(self.module, self.attribute, self.base.to(weight.device, weight.dtype))
        plain = type(self.module).__module__.startswith("torch.nn.")
        base = self.base
        if base is None or not plain or parameters.get(self.attribute) is None:
            return False
        parameters[self.attribute] = nn.Parameter(
            base.to(self.parameter.device, copy=True), requires_grad=False
        )
        return True

    def keep(self) -> torch.Tensor:
        """Keep the base if it is not kept yet, follow the parameter's dtype and device, and return it."""
        live = self.live
        base = self._whole()
        if base is None:
            base = self._copy(live)
        elif base.dtype != live.dtype:
            # .to(dtype) rounded the mix; rounding the base gives what .to(dtype) makes of a pipeline without adapters
            base = base.to(live.dtype)
        if self.keep_on in ("device", "patch") and base.device != live.device:
            base = base.to(live.device)
        elif self.keep_on == "host" and base.device.type != "cpu":
            base = copy_to_host(base)
        self._kept = base
        return base

    def patch(self, pairs: Sequence[tuple[Factors, float]], *, transposed: bool) -> None:
        """
        Keep the base in the weight that a mix was just written into, and a patch beside it; where that cannot be, it stays whole.

        Args:
            pairs: What the mix is made of, and the weights.
            transposed: Whether the weight is stored (in, out).
        """
        if not isinstance(self._kept, torch.Tensor) or not self.blended:
            return
        patch = patched(self.live, self._kept, pairs, transposed=transposed)
        if isinstance(patch, PatchedBase):
            self._kept, self.whole_because = patch, None
        else:
            self.whole_because = patch

    def _copy(self, live: torch.Tensor) -> torch.Tensor:
        if self.keep_on == "host" and live.device.type != "cpu":
            return copy_to_host(live)
        return live.detach().clone()

    @property
    def is_wide(self) -> bool:
        """Whether the parameter has more inputs now than the base model's."""
        return self._narrow is not None

    def resize(self, columns: int | None, root: nn.Module) -> bool:
        """
        Give the parameter more inputs, zeros at first, or put the base's own tensor back.

        Args:
            columns: How many inputs; None for those of the base model.
            root: The component, whose configuration tells pipelines how many there are.

        Returns:
            Whether anything was to be done.
        """
        attributes = self.module.__dict__
        counted = "in_features" if "in_features" in attributes else "in_channels"
        if self.parameter.shape[1] == columns or (columns is None and self._narrow is None):
            return False
        with torch.no_grad():
            if self._narrow is None:
                base = self.keep()
                if self.blended:
                    self.live.copy_(base)
                self._narrow = (self.live, attributes[counted], root.__dict__.get("_internal_dict"))
            narrow, before, config = self._narrow
            narrow = narrow.to(self.live)  # others may have moved it
            if columns is None:
                self.parameter.data, self.base, self._narrow = narrow, None, None
            else:
                wide = narrow.new_zeros(
                    narrow.shape[0], columns, *narrow.shape[2:]
                )  # (out, columns, *kernel)
                wide[:, : narrow.shape[1]] = narrow
                self.parameter.data = wide
                self.base = self._copy(wide)
        setattr(self.module, counted, before if columns is None else columns)
        if config is not None and "in_channels" in config:
            if columns is None:
                root.__dict__["_internal_dict"] = config
            else:
                register: Any = root
                register.register_to_config(in_channels=config["in_channels"] * columns // before)
        self.blended = False
        self._mark()
        increment_version(self.parameter)
        self.stamp()
        return True

    def _mark(self) -> None:
        """Let the module say how many inputs are its own, while it has more."""
        if self._narrow is None:
            self.module.__dict__.pop(OWN_INPUTS, None)
        else:
            self.module.__dict__[OWN_INPUTS] = self._narrow[1]

    def record(self) -> KeptRecord:
        """Note the base and whether a mix is in the parameter."""
        return {key: vars(self)[key] for key in _RECORDED}

    def roll_back(self, record: KeptRecord) -> None:
        """Keep the base that was recorded again."""
        vars(self).update(record)
        self._mark()

    def let_go(self) -> None:
        """Give back what the weight has beside its parameter; most have nothing."""

    def rebase(self) -> None:
        """Take what the parameter holds now as the base."""
        self._narrow = None
        self._mark()
        self.base = None
        self.blended = False
        self.stamp()


def restore(slots: Iterable[KeptWeight]) -> None:
    """Write the bases of all blended parameters back, bit for bit, in a few large copies; blended until that is done."""
    slots = list(slots)
    in_mixes = [slot for slot in slots if slot.is_patched]
    _restore([slot for slot in slots if not slot.is_patched])
    for lot in in_lots(in_mixes, lambda slot: slot.base_bytes):
        make_whole(lot)
        _restore(lot)


def _copies(slots: Iterable[KeptWeight]) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Sort live values and their bases into what one call can copy."""
    pairs: dict[tuple[object, ...], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for slot in slots:
        live, base = slot.live, slot.keep()
        # what was made in inference mode is written in that mode
        pair = pairs.setdefault((live.device, base.device, live.dtype, live.is_inference()), ([], []))
        pair[0].append(live)
        pair[1].append(base)
    return list(pairs.values())


def _restore(slots: Sequence[KeptWeight]) -> None:
    for slot in slots:
        slot.let_go()
    held = [slot for slot in slots if slot.has_base and slot.blended]
    write_tensors([(slot.stored, slot.base) for slot in held if slot.stored and slot.base is not None])
    for lives, bases in _copies([slot for slot in held if not (slot.locked and slot.write_base())]):
        with writing(lives[0]):
            torch._foreach_copy_(lives, bases)
    for slot in held:
        slot.blended = False
    for slot in slots:
        if slot.keep_on in ("none", "patch") and not slot.is_wide:
            slot.base = slot.whole_because = None


class Restoration:
    """
    Puts the bases of some parameters back again and again: while the same ones hold a mix, all that is left are the copies.

    It is as good as the list of its parameters: whoever finds one moved, replaced or stored elsewhere makes another.

    Args:
        slots: The parameters.
    """

    def __init__(self, slots: Sequence[KeptWeight]) -> None:
        """Find nothing yet."""
        self.slots = slots
        self._held: list[KeptWeight] = []
        self._bases: list[object] = []
        self._copies: list[tuple[list[torch.Tensor], list[torch.Tensor]]] | None = None

    def restore(self) -> None:
        """Write the bases of all blended ones back, bit for bit; blended until that is done."""
        held = [slot for slot in self.slots if slot.blended]
        known = self._copies is not None and held == self._held
        if not known or not all(map(operator.is_, map(_its_base, held), self._bases)):
            has_all = all(slot.has_base and slot.is_plain for slot in held)
            restore(self.slots)
            self._copies = _copies(held) if has_all and all(slot.is_plain for slot in self.slots) else None
            self._held, self._bases = held, list(map(_its_base, held))
            return
        for lives, kept in self._copies or ():
            with writing(lives[0]):
                torch._foreach_copy_(lives, kept)
        for slot in held:
            slot.blended = False


def refuse_lost(slots: Iterable[KeptWeight]) -> None:
    """
    Refuse to go on where the base of a weight was in one that somebody has written over; nothing was written yet.

    Raises:
        PipelineStateError: With all of them.
    """
    raise_problems([slot._of_loss() for slot in slots if slot.is_lost])  # noqa: SLF001


def make_whole(slots: Sequence[KeptWeight]) -> None:
    """Have the bases of some weights whole until they are patched or put back."""
    slots = [slot for slot in slots if slot.is_patched]
    on_all_cores([slot.make_whole for slot in slots], in_host_memory(slots))


def in_host_memory(slots: Iterable[KeptWeight]) -> int:
    """Count the weights that a CPU works on; threads only get into each other's way before a GPU."""
    return sum(slot.parameter.numel() for slot in slots if slot.parameter.device.type == "cpu")


def in_lots(things: Iterable[_T], size: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yield things in order, as many at a time as are at most :data:`AT_ONCE` bytes, or one."""
    lot: list[_T] = []
    total = 0
    for thing in things:
        added = size(thing)
        if lot and total + added > AT_ONCE:
            yield lot
            lot, total = [], 0
        lot.append(thing)
        total += added
    if lot:
        yield lot


def renumber(slots: Iterable[KeptWeight], number: int) -> None:
    """Let autograd know by its number what parameters hold."""
    counted = [(slot, slot.counted) for slot in slots if slot.counted is not None]
    for slot, _ in counted:
        slot.content = number
    set_versions([parameter for _, parameter in counted], [slot.version for slot, _ in counted])


def begin_numbers(slots: Iterable[KeptWeight]) -> None:
    """Let the number of what parameters hold be 0."""
    for slot in slots:
        slot._origin, slot.content = slot.version, 0  # noqa: SLF001 -- of this file


def count_write(slots: Iterable[KeptWeight]) -> None:
    """Let autograd know that parameters were written, whatever they hold now."""
    for slot in slots:
        if slot.counted is not None:
            slot._origin += 1  # noqa: SLF001 -- of this file
            set_versions([slot.counted], [slot.version])


def unsupported(parameter: torch.Tensor | None) -> str | None:
    """Say why a parameter's values cannot be rewritten in place, or None if they can."""
    if parameter is None:
        return "its weights were taken away by something else"
    if parameter.device.type == "meta":
        return (
            "its weights are on the meta device (sequential CPU offload, device_map or low_cpu_mem_usage); use "
            "enable_model_cpu_offload(), which keeps weights in memory, or offload while no adapter is merged"
        )
    if (
        type(parameter.data) is not torch.Tensor
        or parameter.is_quantized
        or not parameter.is_floating_point()
    ):
        kept = f"{type(parameter).__name__} of {parameter.dtype}"
        return f"its weights are quantised ({kept}); load the base unquantised (float16, bfloat16 or float32)"
    if not isinstance(parameter, nn.Parameter):
        return (
            "its weights are computed from other parameters (weight norm or another parametrisation); remove the "
            "parametrisation before loading adapters"
        )
    if parameter.dtype.itemsize == 1:
        return f"its weights are stored as {parameter.dtype}; load the base as float16, bfloat16 or float32"
    is_view = parameter.layout is torch.strided and 0 in parameter.stride()
    shares = is_view and torch._debug_has_internal_overlap(parameter) == 1  # noqa: SLF001 -- torch's own question
    return _OVERLAPPING if shares else None


OVERWRITTEN = (
    "changed by something else while adapters were active; call mixer.rebase() to take what is there now as the new base, or "
    "mixer.restore_base() to put the kept one back"
)
"""What to do where others wrote into a weight that has a mix in it."""


class Watch:
    """
    Many parameters as they were at one time: one look at all of them costs a fraction of one look at each.

    Args:
        slots: The parameters, just stamped or found unchanged.
    """

    def __init__(self, slots: Sequence[KeptWeight]) -> None:
        """Note where and what they are."""
        self._lookups = [(slot.module._parameters.get, slot.attribute) for slot in slots]  # noqa: SLF001
        self._seen = [get(name) for get, name in self._lookups]
        self.is_whole = all(parameter is not None for parameter in self._seen)
        pairs = [(slot, slot.parameter) for slot in slots if not slot.locked]
        plain = [parameter for _, parameter in pairs]
        self._plain, self._addresses = plain, [parameter.data_ptr() for parameter in plain]
        counted = [(slot, parameter) for slot, parameter in pairs if not parameter.is_inference()]
        self._counted = [parameter for _, parameter in counted]
        self._writers = [slot.writer for slot, _ in counted]
        self._versions: list[int] = []
        self.count()
        # an address alone says little: .to() and back may get the freed memory again
        self._storages = [StorageWeakRef(parameter.untyped_storage()) for parameter in plain]  # type: ignore[no-untyped-call]
        self._references = [storage.cdata for storage in self._storages]

    def count(self) -> None:
        """Note their versions, as they are where nobody else has written to them."""
        self._versions = [(x._origin + x.content) % COUNT for x in self._writers]  # noqa: SLF001 -- a call for each costs as much again

    def in_graphs(self) -> bool:
        """Whether a graph has saved any of them."""
        return in_graphs(self._counted)

    def holds(self) -> bool:
        """Whether all parameters are where and what they were, but for our own writes; every switch asks, so it is maps of C's."""
        return (
            self.is_whole
            and all(map(operator.is_, [get(name) for get, name in self._lookups], self._seen))
            and list(map(torch.Tensor.data_ptr, self._plain)) == self._addresses
            and list(map(_its_version, self._counted)) == self._versions
            and not any(map(_expired, self._references))
        )


def check(slots: list[KeptWeight]) -> bool:
    """
    Look whether parameters are still what they were.

    Returns:
        Whether any of them has moved (device, dtype, storage) since it was last stamped.

    Raises:
        PipelineStateError: With all parameters that cannot be worked on.
    """
    moved = [slot for slot in slots if not slot.unchanged]
    raise_problems([problem for slot in moved if (problem := slot.problem())])
    for slot in moved:
        slot.follow()
    return bool(moved)


def raise_problems(problems: Sequence[Problem], shown: int = 5) -> None:
    """
    Raise one error for all problems, or return when there are none.

    Raises:
        PipelineStateError: Listing the first ``shown``.
    """
    if problems:
        listed = first_of([str(problem) for problem in problems], shown, between="\n  ", last="\n  ")
        raise PipelineStateError(
            f"this pipeline cannot take adapters as it is:\n  {listed}", problems=problems
        )


def _version(parameter: torch.Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version  # noqa: SLF001 -- the public way to see writes
