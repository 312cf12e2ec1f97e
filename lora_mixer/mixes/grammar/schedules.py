"""
The forms of a schedule: a number, ``w@s,w@s``, ``linear(0, 1)``, ``window(0.2, 0.8)``, ``slider(800)``, or a dict.

``w@s,w@s`` is the grammar of sd-webui-loractl: ``,`` or ``;`` between keyframes, ``@`` or ``~`` before the position;
positions are fractions if none is above 1, else steps. An ``s`` behind a position makes all of them steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_mixer.errors import MixError
from lora_mixer.mixes.grammar.tokens import WrittenCall, is_number, read_call
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.schedule import EASES, Constant, Keyframes, Ramp, Schedule, SliderStart, Window
from lora_mixer.wording import did_you_mean, list_of, shown

SCHEDULE_KEYS = ("start", "stop", "unit", "ramp", "first", "last", "keyframes", "slider", "train_steps")
"""The keys of the dict form."""
_POSITION = re.compile(r"[\d.]+")

_BUILDERS: dict[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "constant": (Constant, ("value",)),
    "window": (Window, ("start", "stop")),
    "slider": (SliderStart, ("start_noise", "train_steps")),
    **{
        ease: (lambda ease=ease, **given: Ramp(ease=ease, **given), ("first", "last", "start", "stop"))
        for ease in EASES
    },
}


def looks_like_schedule(value: object) -> bool:
    """
    Tell a schedule from a plain weight, where either may stand.

    Example:
        >>> looks_like_schedule("0@0,1@0.5"), looks_like_schedule("0.5"), looks_like_schedule({"start": 5})
        (True, False, True)
    """
    if isinstance(value, str):
        return not is_number(value) and any(mark in value for mark in "@~(")
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= set(SCHEDULE_KEYS)
    return isinstance(value, Schedule)


def read_schedule(spec: object, where: str, reading: Reading) -> Schedule | None:
    """
    Read a schedule in any form.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_schedule("0@0;1@10", "", Reading())
        Keyframes(points=((0.0, 0.0), (10.0, 1.0)), unit='step')
    """
    if isinstance(spec, Schedule):
        return spec
    if isinstance(spec, str) and not is_number(spec):
        return _read_text(spec, where, reading)
    if isinstance(spec, Mapping):
        return _read_dict(spec, where, reading)
    number = float(spec) if isinstance(spec, str) else spec
    return _build(lambda: Constant(number), where, reading)  # type: ignore[arg-type]


def schedule_of(spec: object) -> Schedule:
    """
    Read a schedule in any form; ``docs/mixes.md`` lists them.

    Args:
        spec: A schedule, a number, a text or a dict.

    Returns:
        The schedule.

    Raises:
        MixError: With everything that is wrong.

    Example:
        >>> schedule_of("ease_in(0, 1, 0.2, 0.8)").at(9, 10)
        1.0
    """
    reading = Reading()
    schedule = read_schedule(spec, "", reading)
    reading.finish("schedule")
    return schedule or Constant()


def read_span(text: str, where: str, reading: Reading) -> Schedule | None:
    """
    Read ``a-b``, the ``step=`` argument of LBW: on from step a up to, not including, step b.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_span("5-20", "", Reading())
        Window(start=5.0, stop=20.0, unit='step')
    """
    start, dash, stop = (part.strip() for part in text.partition("-"))
    if not dash or not (start or stop) or not _POSITION.fullmatch(start + stop):
        reading.problem(where, f'expected a span such as "5-20", got {shown(text)}.')
        return None
    return read_window(start or None, stop or None, where, reading)


def read_window(start: object, stop: object, where: str, reading: Reading) -> Schedule | None:
    """
    Read ``start=`` and ``stop=``: whole numbers are steps, as in LBW, and numbers with a point are fractions.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_window("1", None, "", Reading()), read_window("0.2", "0.8", "", Reading())
        (Window(start=1.0, stop=None, unit='step'), Window(start=0.2, stop=0.8, unit='fraction'))
    """
    given = [str(text) for text in (start, stop) if text is not None]
    units = {"fraction" if "." in text else "step" for text in given if text.strip() not in {"0", "0s"}}
    if len(units) > 1:
        reading.problem(
            where, f"expected start and stop both in steps or both as fractions, got {list_of(given)}."
        )
        return None
    unit = units.pop() if units else "fraction"
    named = {key: text for key, text in (("start", start), ("stop", stop)) if text is not None}
    return _call("window", WrittenCall("window", [], {**named, "unit": unit}), where, reading)


def _read_text(text: str, where: str, reading: Reading) -> Schedule | None:
    if "@" in text or "~" in text:
        return _read_keyframes(text, where, reading)
    call = read_call(text, where, reading)
    if call is None or call.name not in _BUILDERS:
        hint = did_you_mean(call.name, _BUILDERS) if call else ""
        reading.problem(
            where,
            f'expected "0@0,1@0.5" or one of {list_of(_BUILDERS)} with brackets, got {shown(text)}.{hint}',
        )
        return None
    return _call(call.name, call, where, reading)


def _call(name: str, call: WrittenCall, where: str, reading: Reading) -> Schedule | None:
    before = len(reading.problems)
    builder, keys = _BUILDERS[name]
    known = (*keys, "unit")
    if len(call.positional) > len(keys):
        reading.problem(where, f"expected at most {len(keys)} values ({list_of(keys)}) for {name}, got more.")
    given = dict(zip(keys, call.positional, strict=False))
    for key, value in call.named.items():
        if key in given:
            reading.problem(where, f"{key} is given twice; give it one value.")
        elif key not in known:
            reading.unknown_key(where, key, known)
        given[key] = value
    for key in ("start", "stop"):
        if isinstance(value := given.get(key), str):
            given[key], is_step = _read_position(value, f"{where}.{key}" if where else key, reading)
            given["unit"] = "step" if is_step else given.get("unit")
    if len(reading.problems) > before:
        return None
    if given.get("unit", "") is None:
        del given["unit"]
    return _build(lambda: builder(**given), where, reading)


def _read_position(text: str, where: str, reading: Reading) -> tuple[float, bool]:
    stripped = text.strip()
    digits = stripped.removesuffix("s")
    if not is_number(digits):
        reading.problem(where, f'expected a position such as 0.5 or 10s, got "{text}".')
        return 0.0, False
    return float(digits), digits != stripped


def _read_keyframes(text: str, where: str, reading: Reading) -> Schedule | None:
    before = len(reading.problems)
    points: list[tuple[float, float]] = []
    steps = False
    for item in re.split("[,;]", text):
        value, *rest = re.split("[@~]", item)
        if len(rest) != 1 or not is_number(value):
            reading.problem(
                where, f'expected keyframes such as "0@0,1@0.5", got {shown(item.strip())} in {shown(text)}.'
            )
            continue
        position, is_step = _read_position(rest[0], where, reading)
        steps = steps or is_step
        points.append((position, float(value)))
    if len(reading.problems) > before:
        return None
    return _build(lambda: Keyframes(points, "step" if steps else None), where, reading)


def _read_dict(spec: Mapping[Any, object], where: str, reading: Reading) -> Schedule | None:
    unknown = [key for key in spec if key not in SCHEDULE_KEYS]
    for key in unknown:
        reading.unknown_key(where, key, SCHEDULE_KEYS)
    kinds = [kind for kind in ("keyframes", "ramp", "slider") if kind in spec]
    if len(kinds) > 1 or not spec:
        reading.problem(
            where,
            f'expected one of "keyframes", "ramp", "slider" or "start"/"stop", got {shown(dict(spec))}.',
        )
    if unknown or len(kinds) > 1 or not spec:
        return None
    rest = {key: value for key, value in spec.items() if key not in kinds}
    if kinds == ["keyframes"]:
        return _checked(Keyframes, {"points": spec["keyframes"], **rest}, where, reading)
    if kinds == ["ramp"]:
        return _checked(Ramp, {"ease": spec["ramp"], **rest}, where, reading)
    if kinds == ["slider"]:
        return _checked(SliderStart, {"start_noise": spec["slider"], **rest}, where, reading)
    return _checked(Window, rest, where, reading)


def _checked(
    builder: Callable[..., Schedule], given: Mapping[str, object], where: str, reading: Reading
) -> Schedule | None:
    try:
        return _build(lambda: builder(**given), where, reading)
    except TypeError:
        reading.problem(where, f"the keys {list_of(given)} do not go together; see docs/mixes.md.")
        return None


def _build(make: Callable[[], Schedule], where: str, reading: Reading) -> Schedule | None:
    try:
        return make()
    except MixError as error:
        reading.take(where, error)
        return None
