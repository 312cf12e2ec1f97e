"""
diffusers' own words for adapters, spoken by a mixer: leaving diffusers' loader is one line.

After ``LoraMixer(pipe, take_over=True)`` the pipeline's ``load_lora_weights``, ``set_adapters``, ``fuse_lora`` and the
others, and those of its parts (``pipe.unet.set_adapters``), work as diffusers documents them, on the mixer's adapters.
diffusers keeps the active adapters of each component apart; so does this, and makes one mix of them.

Words stand in the dictionaries of the objects, in front of the methods of their classes, and go without trace.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_mixer.atomic import write_files
from lora_mixer.binding.components import component_name, find_components
from lora_mixer.diffusers_arguments import refuse_arguments
from lora_mixer.errors import AdapterNameError, MixError, SaveError
from lora_mixer.formats.container import load_tensors
from lora_mixer.interrupts import Interruptible, at_once, uninterrupted
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lora_mixer.binding import MatchReport
    from lora_mixer.mixes import Mix

_FUSED = "_merged_adapters"
"""Where a pipeline has the names that ``num_fused_loras`` counts."""
_WEIGHTS_NAME = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class _KnownComponent:
    """
    What diffusers knows of one component.

    Attributes:
        held: The adapters that it has layers of.
        weights: The active ones, each with a number or diffusers' dict by block.
        fused: What is fused, likewise; while there is any, only that is in effect.
        is_off: Whether adapters are disabled.
    """

    held: tuple[str, ...] = ()
    weights: Mapping[str, Any] = field(default_factory=dict)
    fused: Mapping[str, Any] = field(default_factory=dict)
    is_off: bool = False

    @property
    def effect(self) -> Mapping[str, Any]:
        """The weights in effect."""
        if self.is_off:
            return {}
        chosen = self.fused or self.weights
        return {name: weight for name, weight in chosen.items() if name in self.held}


class DiffusersWords:
    """
    A mixer in diffusers' words.

    Args:
        mixer: The :class:`lora_mixer.LoraMixer` of a pipeline, or of a bare model.
    """

    def __init__(self, mixer: Any) -> None:
        """Say nothing yet; :meth:`place` puts the words on the pipeline."""
        self._mixer = mixer
        self._parts: dict[str, _KnownComponent] = {}
        self._last: tuple[Mix, ...] = ()  # as these words have left it
        self._said: set[str] = set()

    # --- where they stand ------------------------------------------------------------------------------------------

    def place(self, then: Callable[[], object] = lambda: None) -> None:
        """
        Put the words in front of the methods of the pipeline and of its parts; all of them or none.

        Args:
            then: What belongs to it; where that fails, the words are taken off again.
        """
        before = {id(owner): (owner, self._own_words(owner)) for owner in self._owners()}

        def undo() -> None:
            for owner, words in before.values():
                self._take_from(owner)
                vars(owner).update(words)

        def work() -> None:
            self._place()
            then()
            self._last = self._mixer.mixes

        at_once(work, undo)

    def _owners(self) -> list[Any]:
        pipe = self._mixer.pipe
        return [pipe, *find_components(pipe).values()]

    @staticmethod
    def _own_words(owner: Any) -> dict[str, Word]:
        return {word: value for word, value in vars(owner).items() if isinstance(value, Word)}

    def _take_from(self, owner: Any) -> None:
        for word in self._own_words(owner):
            del vars(owner)[word]

    def _place(self) -> None:
        pipe = self._mixer.pipe
        owners: dict[str | None, Any] = {}
        owners.update(find_components(pipe))
        if owners.get(component_name(pipe)) is not pipe:
            owners[None] = pipe
        for part, owner in owners.items():
            table = _OF_PIPELINES if part is None else _OF_MODELS
            for word, method in table.items():
                if inspect.isfunction(inspect.getattr_static(type(owner), word, None)):
                    vars(owner)[word] = Word(self, owner, word, method, part)

    def take_away(self, guard: Callable[[], object]) -> None:
        """Give the pipeline and its parts their own words back, and put guards in their place; all of it or nothing."""
        before = [(owner, self._own_words(owner)) for owner in self._owners()]
        fused = {name: value for name, value in vars(self._mixer.pipe).items() if name == _FUSED}

        def work() -> None:
            for owner, _ in before:
                self._take_from(owner)
            self._count_fused({})
            guard()

        def undo() -> None:
            for owner, words in before:
                vars(owner).update(words)
            vars(self._mixer.pipe).update(fused)

        at_once(work, undo)

    # --- loading and letting go ------------------------------------------------------------------------------------

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> MatchReport:
        """Load an adapter and make it the active one of the components that it has layers of."""
        before = set(self._names())
        hotswap = kwargs.pop("hotswap", False)
        report: MatchReport = self._mixer.load_lora_weights(
            pretrained_model_name_or_path_or_dict,
            adapter_name,
            hotswap=hotswap and adapter_name in before,
            activate=False,
            **kwargs,
        )
        name = report.adapter_name
        reached = [part.component for part in report.components if part.matched]
        parts = dict(self._parts)
        for part in reached:
            old = parts.get(part, _KnownComponent())
            weights = old.weights if hotswap and name in before else {name: 1.0}
            parts[part] = replace(old, held=(*[x for x in old.held if x != name], name), weights=weights)
        self._apply(parts)
        return report

    def load_lora_adapter(
        self,
        part: str,
        pretrained_model_name_or_path_or_dict: Any,
        prefix: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> MatchReport:
        """Load an adapter into one component; keys say which component they mean or none, so ``prefix`` adds nothing."""
        del prefix
        return self.load_lora_weights(
            pretrained_model_name_or_path_or_dict, component=part, hotswap=hotswap, **kwargs
        )

    def unload_lora_weights(self, part: str | None = None) -> None:
        """Let all adapters go; what is fused stays in the weights, as in diffusers."""
        chosen = self._chosen(part)
        if any(self._parts[name].fused for name in chosen):
            fused = {name: replace(x, weights={}) for name, x in self._parts.items()}
            if len(chosen) < len(self._parts):
                raise MixError(
                    f"{part}: what is fused becomes a part of the base when it is unloaded, and that cannot be done for one "
                    "component alone; call the pipeline's unload_lora_weights(), or unfuse_lora() first",
                    component=part,
                )
            self._apply(fused)
            self._mixer.rebase(bake=True)
        self._delete(None, chosen)

    def delete_adapters(self, adapter_names: str | Sequence[str], part: str | None = None) -> None:
        """Let some adapters go."""
        names = _listed(adapter_names)
        self._known(names, "delete_adapters")
        self._delete(names, self._chosen(part))

    def save_lora_adapter(
        self,
        part: str,
        save_directory: Any,
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Write one component's layers of an adapter under their names in the component."""
        from safetensors.torch import save

        self._known([adapter_name], "save_lora_adapter")
        if not safe_serialization:
            raise SaveError(
                "without safe_serialization it would be a pickle; adapters are written as safetensors only",
                argument="safe_serialization",
            )
        folder = Path(save_directory)
        if folder.is_file():
            raise SaveError("is a file; expected a folder", file=str(folder))
        with tempfile.TemporaryDirectory() as room:
            path = Path(room) / _WEIGHTS_NAME
            self._mixer.save_lora_weights(
                path, adapter_name, format="diffusers", dtype="float32" if upcast_before_saving else None
            )
            front = f"{part}."
            tensors = {k.removeprefix(front): v for k, v in load_tensors(path).items() if k.startswith(front)}
        whole = save(tensors, {"format": "pt"})

        def write(stream: IO[bytes]) -> None:
            stream.write(whole)

        write_files({folder / (weight_name or _WEIGHTS_NAME): write})

    # --- mixing ----------------------------------------------------------------------------------------------------

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Any = None, part: str | None = None
    ) -> None:
        """Make these the active adapters; of the pipeline, a dict's weights are by component, of a model by block."""
        names = _listed(adapter_names)
        self._known(names, "set_adapters")
        given = (
            list(adapter_weights)
            if isinstance(adapter_weights, list | tuple)
            else [adapter_weights] * len(names)
        )
        if len(given) != len(names):
            raise MixError(
                f"expected one weight for each of {len(names)} adapters, got {len(given)}",
                argument="adapter_weights",
            )
        parts = dict(self._parts)
        for component in self._chosen(part):
            weight_of = {}
            for name, weight in zip(names, given, strict=True):
                if part is None and isinstance(weight, dict):
                    self._check_components(name, weight)
                    weight = weight.get(component)  # noqa: PLW2901
                weight_of[name] = 1.0 if weight is None else weight
            parts[component] = replace(parts[component], weights=weight_of)
        self._apply(parts)

    def set_adapter(self, part: str, adapter_name: str | Sequence[str]) -> None:
        """Make these the active adapters of a model, at the weights that they have, 1 where they have none."""
        names = _listed(adapter_name)
        known = self._parts.get(part, _KnownComponent()).weights
        self.set_adapters(names, [known.get(name, 1.0) for name in names], part)

    def disable_lora(self, part: str | None = None) -> None:
        """Put the base into effect."""
        self._change(part, is_off=True)

    def enable_lora(self, part: str | None = None) -> None:
        """Put the active adapters into effect again."""
        self._change(part, is_off=False)

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hold the active adapters, times a scale, whatever is set later; unloading then leaves them in the weights."""
        del safe_fusing  # adapters with NaN are refused as they are loaded
        refuse_arguments("fuse_lora", kwargs, ("components", "lora_scale", "safe_fusing", "adapter_names"))
        if components is not None and not components:
            raise MixError(
                "components is an empty list; name the components to fuse, such as ['unet']",
                argument="components",
            )
        names = None if adapter_names is None else _listed(adapter_names)
        self._known(names or (), "fuse_lora")
        parts = dict(self._parts)
        for component in parts if components is None else components:
            old = parts.get(component)
            if old is None:
                continue
            chosen = dict.fromkeys(names, 1.0) | dict(old.weights) if names else old.weights
            kept = {x: _times(w, lora_scale) for x, w in chosen.items() if names is None or x in names}
            parts[component] = replace(old, fused={**old.fused, **kept})
        self._apply(parts)

    def unfuse_lora(self, components: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Take back what was fused: the active adapters are in effect at their own weights."""
        refuse_arguments("unfuse_lora", kwargs, ("components",))
        if components is not None and not components:
            raise MixError(
                "components is an empty list; name the components to unfuse, such as ['unet']",
                argument="components",
            )
        wanted = self._parts if components is None else components
        self._apply({n: replace(x, fused={}) if n in wanted else x for n, x in self._parts.items()})

    # --- answers ---------------------------------------------------------------------------------------------------

    def get_active_adapters(self) -> list[str]:
        """List the active adapters, disabled or not, as diffusers does."""
        self._follow()
        return list(dict.fromkeys(name for part in self._parts.values() for name in part.weights))

    def active_adapters(self, part: str) -> list[str]:
        """List the active adapters of a model."""
        self._follow()
        return list(self._parts.get(part, _KnownComponent()).weights)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """List the adapters of each component."""
        self._follow()
        return {name: list(part.held) for name, part in self._parts.items() if part.held}

    def say_once(self, word: str, why: str) -> None:
        """Warn once that a word changes nothing here."""
        if word not in self._said:
            self._said.add(word)
            warnings.warn(f"{word}() changes nothing on a LoraMixer: {why}", UserWarning, stacklevel=4)

    # --- inside ----------------------------------------------------------------------------------------------------

    def whole(self) -> Interruptible[None]:
        """Say a word all or nothing, though it is several calls of the mixer: what is known here goes back with these."""
        inside = self._mixer._said()  # noqa: SLF001 -- of one kind with the mixer
        before: list[tuple[dict[str, _KnownComponent], tuple[Mix, ...]]] = []

        @uninterrupted
        def begin() -> None:
            before.append((self._parts, self._last))
            inside.__enter__()

        @uninterrupted
        def end(error: BaseException | None) -> None:
            try:
                inside.__exit__(None if error is None else type(error), error, None)
            except BaseException as again:
                error = again
                raise
            finally:
                if error is not None:
                    self._parts, self._last = before[0]
                    self._count_fused(self._parts)

        return Interruptible(begin, end)

    def _names(self) -> list[str]:
        self._follow()
        return list(self._mixer.adapters)

    def _chosen(self, part: str | None) -> list[str]:
        self._follow()
        return list(self._parts) if part is None else [part] if part in self._parts else []

    def _known(self, names: Sequence[str], word: str) -> None:
        loaded = self._names()
        unknown = [name for name in names if name not in loaded]
        if unknown:
            raise AdapterNameError(
                f"{word} names {', '.join(map(repr, unknown))}, which is not loaded; loaded are: {', '.join(loaded) or 'none'}",
                adapter=unknown[0],
                problems=[Problem(name, "is not loaded") for name in unknown],
            )

    def _check_components(self, name: str, weights: Mapping[str, Any]) -> None:
        there = find_components(self._mixer.pipe)
        odd = [key for key in weights if key not in there]
        if odd:
            raise MixError(
                f"{name}: this pipeline has no {', '.join(odd)}; weights by component are for {', '.join(there)}",
                component=odd[0],
                adapter=name,
                problems=tuple(Problem(name, f"this pipeline has no {part}") for part in odd),
            )

    def _change(self, part: str | None, **changes: Any) -> None:
        chosen = self._chosen(part)
        self._apply({n: replace(x, **changes) if n in chosen else x for n, x in self._parts.items()})

    def _follow(self) -> None:
        """Take up what was loaded, let go or set by the mixer's own words."""
        held, now_set = self._mixer.get_list_adapters(), self._mixer.mixes
        parts = {}
        for component in {**self._parts, **held}:
            old = self._parts.get(component, _KnownComponent())
            # an adapter may have been let go in one component only
            known = {name for part in self._parts.values() for name in part.held}
            now = held.get(component, [])
            names = tuple(n for n in (*old.held, *(n for n in now if n not in known)) if n in now)
            weights = {n: w for n, w in old.weights.items() if n in self._mixer.adapters}
            parts[component] = replace(old, held=names, weights=weights)
        if now_set != self._last:
            parts = {name: _taken_up(name, part, now_set) for name, part in parts.items()}
        self._parts, self._last = parts, now_set

    def _apply(self, parts: dict[str, _KnownComponent]) -> None:
        """Put what each component is to hold into effect as one mix."""
        names = list(dict.fromkeys(name for part in parts.values() for name in part.effect))
        weights = [
            {c: part.effect.get(name, 0.0) for c, part in parts.items() if name in part.held}
            for name in names
        ]
        self._mixer.set_adapters(names, weights)
        self._parts, self._last = parts, self._mixer.mixes
        self._count_fused(parts)

    def _delete(self, names: Sequence[str] | None, chosen: Sequence[str]) -> None:
        """Let adapters go in some components, and for good where no component has them any more."""
        parts = {}
        for component, old in self._parts.items():
            gone = set(old.held if names is None else names) if component in chosen else set()
            parts[component] = replace(
                old,
                held=tuple(n for n in old.held if n not in gone),
                weights={n: w for n, w in old.weights.items() if n not in gone},
                fused={n: w for n, w in old.fused.items() if n not in gone},
            )
        left = {name for part in parts.values() for name in part.held}
        gone_for_good = [name for name in self._mixer.adapters if name not in left]
        self._apply(parts)
        if gone_for_good:
            self._mixer.delete_adapters(gone_for_good)

    def _count_fused(self, parts: Mapping[str, _KnownComponent]) -> None:
        pipe = self._mixer.pipe
        if hasattr(type(pipe), _FUSED):
            names = {name for part in parts.values() for name in part.fused}
            vars(pipe).pop(_FUSED, None)
            if names:
                vars(pipe)[_FUSED] = FusedNames(self)

    @property
    def fused_names(self) -> set[str]:
        """The adapters that are fused now, whatever the mixer's own words have done since."""
        now_set = self._mixer.mixes
        if now_set and now_set != self._last:  # another mix is in effect
            return set()
        return {name for part in self._parts.values() for name in part.fused if name in self._mixer.adapters}


class FusedNames(AbstractSet[str]):
    """
    The names that a pipeline's ``num_fused_loras`` counts, as they are when they are asked for.

    Args:
        words: Who knows them.
    """

    def __init__(self, words: DiffusersWords) -> None:
        """Hold it."""
        self._words = words

    def __contains__(self, name: object) -> bool:
        return name in self._words.fused_names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._words.fused_names))

    def __len__(self) -> int:
        return len(self._words.fused_names)

    @classmethod
    def _from_iterable(cls, names: Iterable[str]) -> set[str]:  # type: ignore[override]
        return set(names)


class Word:
    """
    A word of diffusers on a pipeline or a model, in front of the method of its class.

    Args:
        words: The mixer in diffusers' words.
        owner: The pipeline or model.
        word: The method's name.
        method: What says it; of models it takes the component first.
        part: The component, None for the pipeline.
    """

    def __init__(self, words: DiffusersWords, owner: Any, word: str, method: Any, part: str | None) -> None:
        """Hold all of them; copies of the owner have copies of this."""
        self._words, self._owner, self._word, self._method, self._part = words, owner, word, method, part

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the method of the class."""
        return inspect.signature(getattr(type(self._owner), self._word).__get__(self._owner))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Say it, with the defaults of the class where they tell which components are meant."""
        if "components" in self.__signature__.parameters and "components" not in kwargs and not args:
            kwargs["components"] = self.__signature__.parameters["components"].default or None
        given = (self._words,) if self._part is None else (self._words, self._part)
        with nullcontext() if self._word in _CHANGE_NOTHING else self._words.whole():
            return self._method(*given, *args, **kwargs)


def _taken_up(component: str, part: _KnownComponent, mixes: tuple[Mix, ...]) -> _KnownComponent:
    """
    Return a part as the mixer's own words have left it.

    Raises:
        MixError: When diffusers' words cannot say what they have set.
    """
    if not mixes:  # disabled
        return replace(part, is_off=True)
    (mix, *others) = mixes
    if others or not mix.is_constant or any(mix[name].blocks is not None for name in mix.names):
        raise MixError(
            "the mix in effect has a schedule, a mask, block weights or a method, or there are several; diffusers' words cannot "
            "change a part of it. Use the mixer's own (LoraMixer.of(pipe)), or set a plain mix by its set_adapters() first"
        )
    weights = {name: mix[name].component_weight(component) for name in mix.names}
    return replace(part, weights=weights, fused={}, is_off=False)


def _times(weight: Any, scale: float) -> Any:
    """Multiply a weight, or all in a dict by block."""
    if isinstance(weight, dict):
        return {key: _times(value, scale) for key, value in weight.items()}
    return [_times(x, scale) for x in weight] if isinstance(weight, list) else weight * scale


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _set_lora_device(words: DiffusersWords, *_: Any, **__: Any) -> None:
    words.say_once("set_lora_device", "adapters follow the layers that they change")


def _hotswap(words: DiffusersWords, *_: Any, **__: Any) -> None:
    words.say_once(
        "enable_lora_hotswap",
        "an adapter of any rank is replaced where hotswap is asked for, and compiled code stays as it is",
    )


def _unload_of_pipeline(words: DiffusersWords, reset_to_overwritten_params: bool = False) -> None:
    del (
        reset_to_overwritten_params
    )  # none is overwritten here: whole weights of a file are mixed like all else
    words.unload_lora_weights()


@dataclass(frozen=True)
class _OfModel:
    """Lets a word of pipelines speak of one component: it takes the component first."""

    method: Any

    def __call__(self, words: DiffusersWords, part: str, *args: Any, **kwargs: Any) -> Any:
        return self.method(words, *args, part=part, **kwargs)


def _set_of_model(words: DiffusersWords, part: str, adapter_names: Any, weights: Any = None) -> None:
    words.set_adapters(adapter_names, weights, part)


def _fuse_of_model(
    words: DiffusersWords,
    part: str,
    lora_scale: float = 1.0,
    safe_fusing: bool = False,
    adapter_names: Any = None,
) -> None:
    words.fuse_lora([part], lora_scale, safe_fusing, adapter_names)


def _unfuse_of_model(words: DiffusersWords, part: str) -> None:
    words.unfuse_lora([part])


_OF_PIPELINES = {
    "load_lora_weights": DiffusersWords.load_lora_weights,
    "unload_lora_weights": _unload_of_pipeline,
    "set_adapters": DiffusersWords.set_adapters,
    "disable_lora": DiffusersWords.disable_lora,
    "enable_lora": DiffusersWords.enable_lora,
    "delete_adapters": DiffusersWords.delete_adapters,
    "fuse_lora": DiffusersWords.fuse_lora,
    "unfuse_lora": DiffusersWords.unfuse_lora,
    "get_active_adapters": DiffusersWords.get_active_adapters,
    "get_list_adapters": DiffusersWords.get_list_adapters,
    "set_lora_device": _set_lora_device,
    "enable_lora_hotswap": _hotswap,
}
_OF_MODELS = {
    "load_lora_adapter": DiffusersWords.load_lora_adapter,
    "save_lora_adapter": DiffusersWords.save_lora_adapter,
    "unload_lora": _OfModel(DiffusersWords.unload_lora_weights),
    "set_adapters": _set_of_model,
    "set_adapter": DiffusersWords.set_adapter,
    "disable_lora": _OfModel(DiffusersWords.disable_lora),
    "enable_lora": _OfModel(DiffusersWords.enable_lora),
    "disable_adapters": _OfModel(DiffusersWords.disable_lora),
    "enable_adapters": _OfModel(DiffusersWords.enable_lora),
    "active_adapters": DiffusersWords.active_adapters,
    "delete_adapters": _OfModel(DiffusersWords.delete_adapters),
    "fuse_lora": _fuse_of_model,
    "unfuse_lora": _unfuse_of_model,
    "enable_lora_hotswap": _OfModel(_hotswap),
}
"""Words of diffusers' pipelines and models, and of Transformers' models where these have them."""

_CHANGE_NOTHING = frozenset(
    (
        "active_adapters", "enable_lora_hotswap", "get_active_adapters", "get_list_adapters", "save_lora_adapter",
        "set_lora_device",
    )
)  # fmt: skip
