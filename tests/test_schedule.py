"""Schedules: values at steps, exact at the ends, written in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_mixer.errors import MixError
from lora_mixer.mixes import Constant, Keyframes, Ramp, Schedule, SliderStart, Window, schedule_of
from lora_mixer.mixes.schedule import EASES

values = st.floats(-1e6, 1e6)
fractions = st.floats(0, 1)
step_numbers = st.integers(0, 200).map(float)


def spans(positions: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[float, float]]:
    """Pairs of different positions in their order."""
    return st.tuples(positions, positions).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)  # type: ignore[arg-type]


units = st.sampled_from([("fraction", fractions), ("step", step_numbers)])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule."""
    unit, positions = draw(units)
    span = draw(spans(positions))
    kind = draw(st.sampled_from(["constant", "window", "open", "ramp", "keyframes", "slider"]))
    if kind == "constant":
        return Constant(draw(values))
    if kind == "window":
        return Window(*span, unit)  # type: ignore[arg-type]
    if kind == "open":
        return Window(span[0], None, unit)  # type: ignore[arg-type]
    if kind == "ramp":
        return Ramp(draw(values), draw(values), *span, draw(st.sampled_from(sorted(EASES))), unit)  # type: ignore[arg-type]
    if kind == "slider":
        return SliderStart(draw(st.floats(0, 1000)), 1000)
    at = draw(st.lists(positions, min_size=1, max_size=5, unique=True))
    return Keyframes([(position, draw(values)) for position in at], unit)  # type: ignore[arg-type]


class TestValues:
    """What a schedule gives at each step."""

    @given(values, values, st.sampled_from(sorted(EASES)), st.integers(2, 60))
    def test_a_ramp_over_the_run_has_exact_ends(
        self, first: float, last: float, ease: str, steps: int
    ) -> None:
        """Not almost: the first and the last step have the values that were written."""
        ramp = Ramp(first, last, ease=ease)

        assert ramp.at(0, steps) == first
        assert ramp.at(steps - 1, steps) == last

    @given(values, values, st.sampled_from(sorted(EASES)), st.integers(1, 60))
    def test_a_ramp_stays_between_its_values_and_never_turns(
        self, first: float, last: float, ease: str, steps: int
    ) -> None:
        """All eases are monotone."""
        found = [Ramp(first, last, ease=ease).at(step, steps) for step in range(steps)]

        assert found == sorted(found, reverse=last < first)
        assert all(min(first, last) <= value <= max(first, last) for value in found)

    @pytest.mark.parametrize(
        ("ease", "quarter", "half", "three_quarters"),
        [
            ("linear", 0.25, 0.5, 0.75),
            ("ease_in", 0.0625, 0.25, 0.5625),
            ("ease_out", 0.4375, 0.75, 0.9375),
            ("ease_in_out", (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2),
        ],
    )
    def test_eases_have_their_formulas(
        self, ease: str, quarter: float, half: float, three_quarters: float
    ) -> None:
        """t, t^2, 1 - (1 - t)^2, (1 - cos(pi t)) / 2."""
        found = [Ramp(ease=ease).at(step, 5) for step in range(5)]

        assert found == pytest.approx([0.0, quarter, half, three_quarters, 1.0], abs=1e-15)

    def test_a_ramp_by_steps_does_not_depend_on_their_number(self) -> None:
        """Steps 2 to 6, in a short and in a long run."""
        ramp = Ramp(1, 0, 2, 6)

        assert [ramp.at(step, 50) for step in range(8)] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        assert [ramp.at(step, 4) for step in range(4)] == [1.0, 1.0, 1.0, 0.75]

    @given(st.integers(1, 100), fractions)
    def test_two_windows_that_meet_share_all_steps(self, steps: int, where: float) -> None:
        """No step is in both, none in neither."""
        parts = [Window(0, where, "fraction")] if where else []
        parts += [Window(where, 1, "fraction")] if where < 1 else []

        assert [sum(part.at(step, steps) for part in parts) for step in range(steps)] == [1.0] * steps

    def test_a_window_by_steps_is_on_from_start_up_to_stop(self) -> None:
        """The stop itself is off, as in LBW."""
        assert [Window(1, 3).at(step, 5) for step in range(5)] == [0.0, 1.0, 1.0, 0.0, 0.0]
        assert [Window(2).at(step, 4) for step in range(4)] == [0.0, 0.0, 1.0, 1.0]

    def test_tenths_of_ten_steps_fall_on_the_steps(self) -> None:
        """0.3 of 10 steps is step 3, whatever 0.3 * 10 is in binary."""
        found = [
            int(sum(Window(0, tenth / 10, "fraction").at(step, 10) for step in range(10)))
            for tenth in range(1, 11)
        ]

        assert found == list(range(1, 11))

    def test_keyframes_are_joined_by_lines_and_held_outside(self) -> None:
        """Before the first its value, after the last its value."""
        frames = Keyframes([(2, 0.5), (4, 1), (8, 0)])

        assert [frames.at(step, 10) for step in range(10)] == [
            0.5,
            0.5,
            0.5,
            0.75,
            1.0,
            0.75,
            0.5,
            0.25,
            0.0,
            0.0,
        ]

    def test_two_keyframes_at_one_position_are_a_jump(self) -> None:
        """The later one has the position."""
        frames = Keyframes([(0, 1), (5, 1), (5, 0.2), (10, 0.2)])

        assert [frames.at(step, 11) for step in (4, 5, 6)] == [1.0, 0.2, 0.2]

    def test_the_last_step_has_the_last_fraction(self) -> None:
        """Not steps - 2, as in SD.Next, nor steps."""
        assert [Keyframes([(0, 0), (1, 1)]).at(step, 4) for step in range(4)] == [0.0, 1 / 3, 2 / 3, 1.0]

    def test_one_step_is_the_beginning(self) -> None:
        """With one step there is no way to go."""
        assert Ramp(0.2, 1).at(0, 1) == 0.2
        assert Window(0, 0.5).at(0, 1) == 1.0

    def test_steps_past_the_end_count_as_the_last(self) -> None:
        """Some schedulers call the denoiser more often than they say."""
        assert Ramp(0, 1).at(9, 5) == 1.0
        assert Window(0.5, 1).at(9, 5) == 1.0

    def test_a_slider_starts_when_the_noise_is_low_enough(self) -> None:
        """By timestep where it is known, else by an even spacing."""
        slider = SliderStart(700)

        assert [slider.at(0, 30, timestep=t) for t in (999, 701, 700, 1)] == [0.0, 0.0, 1.0, 1.0]
        assert [slider.at(step, 10) for step in range(10)] == [0.0] * 3 + [1.0] * 7

    @pytest.mark.parametrize(("step", "steps"), [(-1, 5), (0, 0)])
    def test_a_step_that_cannot_be_is_refused(self, step: int, steps: int) -> None:
        """A negative step would read from the end."""
        with pytest.raises(MixError, match="expected a step from 0"):
            Constant(1).at(step, steps)


class TestUnits:
    """Positions are fractions or steps."""

    @pytest.mark.parametrize(
        ("text", "unit"), [("0@0,1@1", "fraction"), ("0@0,1@2", "step"), ("0@0,1@1s", "step")]
    )
    def test_fractions_if_none_is_above_1(self, text: str, unit: str) -> None:
        """The rule of loractl, with an "s" for what it cannot say."""
        schedule = schedule_of(text)

        assert isinstance(schedule, Keyframes)
        assert schedule.unit == unit

    def test_a_given_unit_is_kept(self) -> None:
        """Step 1 is not the end."""
        assert Ramp(0, 1, 0, 1, unit="step").at(1, 50) == 1.0
        assert Ramp(0, 1, 0, 1).at(1, 51) == pytest.approx(0.02)

    def test_a_fraction_above_1_is_refused(self) -> None:
        """There is nothing after the end."""
        with pytest.raises(MixError, match="expected a number from 0 to 1, got 2"):
            Window(0, 2, "fraction")


class TestText:
    """One line says a schedule."""

    @given(schedules())
    def test_a_schedule_reads_back_as_the_same(self, schedule: Schedule) -> None:
        """To the last bit."""
        assert schedule_of(schedule.to_text()) == schedule

    @given(schedules(), st.integers(1, 40))
    def test_the_simplest_schedule_has_the_same_values(self, schedule: Schedule, steps: int) -> None:
        """Which lets equal mixes be found equal."""
        expected = [schedule.at(step, steps) for step in range(steps)]

        assert [schedule.simplest().at(step, steps) for step in range(steps)] == expected

    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            (0.5, Constant(0.5)),
            ("0.5", Constant(0.5)),
            ("0@0,1@0.5", Keyframes([(0, 0), (0.5, 1)])),
            ("0~0;1~10", Keyframes([(0, 0), (10, 1)])),
            (" 1 @ 0.5 , 0 @ 0 ", Keyframes([(0, 0), (0.5, 1)])),
            ("linear(0, 1)", Ramp(0, 1)),
            ("ease_in(0, 1, 0.2, stop=0.8)", Ramp(0, 1, 0.2, 0.8, "ease_in")),
            ("ease_out(first=1, last=0, start=2s, stop=10s)", Ramp(1, 0, 2, 10, "ease_out")),
            ("window(0.2, 0.8)", Window(0.2, 0.8)),
            ("window(5s)", Window(5, None, "step")),
            ("window(stop=1s)", Window(0, 1, "step")),
            ("slider(700)", SliderStart(700)),
            ({"start": 5, "stop": 20}, Window(5, 20)),
            ({"start": 0, "stop": 1, "unit": "step"}, Window(0, 1, "step")),
            ({"ramp": "ease_in_out", "first": 1, "last": 0}, Ramp(1, 0, ease="ease_in_out")),
            ({"keyframes": [[0, 0.1], [0.5, 1]]}, Keyframes([(0, 0.1), (0.5, 1)])),
            ({"slider": 800}, SliderStart(800)),
        ],
    )
    def test_every_form_is_read(self, form: object, expected: Schedule) -> None:
        """Numbers, keyframes, calls and dicts."""
        assert schedule_of(form) == expected

    @pytest.mark.parametrize(
        ("form", "said"),
        [
            ("lineer(0, 1)", 'Did you mean "linear"'),
            ("linear(0, 1, 0.8, 0.2)", "a start below the stop"),
            ("linear(0, 1, 2, 3, 4)", "at most 4 values"),
            ("linear(0, 1, strat=2)", 'Did you mean "start"'),
            ("linear(0, 1, first=2)", "given twice"),
            ("window(5s, x)", "expected a position"),
            ("0@0,1", "expected keyframes such as"),
            ("0@0,x@1", "expected keyframes such as"),
            ("0@0,1@nan", "finite number"),
            ("nan@0", "finite number"),
            ("0@-1", "at least 0"),
            ("1@0,2@0,3@0", "at most two keyframes at 0"),
            ("slider(2000)", "from 0 to 1000"),
            ("", "expected"),
            ("(", "expected"),
            ({"start": 5, "strop": 9}, 'Did you mean "stop"'),
            ({"ramp": "linear", "keyframes": []}, "expected one of"),
            ({"slider": 800, "stop": 3}, "do not go together"),
            ({"keyframes": []}, "at least one keyframe"),
            ({"keyframes": 3}, "expected a pair"),
            ({"ramp": "bounce"}, "expected one of"),
            ({"ramp": [1]}, "expected one of"),
            ({"start": "5"}, "finite number"),
            ({"start": 0, "unit": "hours"}, '"fraction" or "step"'),
            ({}, "expected one of"),
            (None, "finite number"),
            (True, "finite number"),
            ([0, 1], "finite number"),
        ],
    )
    def test_other_things_are_refused_with_a_reason(self, form: Any, said: str) -> None:
        """Always our error."""
        with pytest.raises(MixError, match=r"schedule cannot be used") as caught:
            schedule_of(form)

        assert said in str(caught.value)
