"""Functions of the timestep rounded to a few grids, on schedules short enough to work out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from sparsify import PolicyError
from sparsify.discretise import discretised, is_discrete, sampled


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [(1000, True), (1000.0, True), (2, True), (1, False), (1.0, False), (0.5, False), (2.5, False), (True, False)],
)
def test_timesteps_are_discrete_up_to_a_whole_number_above_one(timesteps: float, expected: bool) -> None:
    assert is_discrete(timesteps) is expected


def test_what_is_no_number_is_not_discrete() -> None:
    assert not is_discrete(float("nan"))
    assert not is_discrete("1000")  # type: ignore[arg-type]


def test_discrete_timesteps_are_all_below_the_last() -> None:
    assert sampled(2) == [0, 1]
    assert sampled(5.0) == [0, 1, 2, 3, 4]
    assert all(isinstance(t, int) for t in sampled(5.0))


@pytest.mark.parametrize("end", [1.0, 0.5, 2.5])
def test_a_continuous_range_is_sampled_finely_and_with_both_ends(end: float) -> None:
    points = sampled(end)
    assert points[0] == 0 and points[-1] == end
    assert len(points) == 1000
    assert all(b - a == pytest.approx(end / 999) for a, b in pairwise(points))


@pytest.mark.parametrize(
    ("ends", "levels", "expected"),
    [
        ([0.0, 0.1, 0.2, 0.3], 2, {0: 0.0, 2: 0.15}),  # the steps are at 0 and 0.15
        ([0.3, 0.2, 0.1, 0.0], 2, {0: 0.15, 2: 0.0}),
        ([0.1, 0.4, 0.1, 0.7], 3, {0: 0.1, 1: 0.3, 2: 0.1, 3: 0.5}),  # 0.1, 0.3, 0.5; the first comes back
        ([0.2, 0.5, 0.5, 0.8], 3, {0: 0.2, 1: 0.4, 3: 0.6}),
        ([0.5, 0.5, 0.5], 2, {0: 0.5}),
        ([0.0, 5e-324], 3, {0: 0.0, 1: 5e-324}),  # a third of that is no number of its own
        ([0.0, 0.3, 0.9], 9, {0: 0.0, 1: 0.3, 2: 0.8}),  # 0.3 lies on a step, and is one for all that floats make of it
        ([(8, 8), (8, 8), (4, 4)], 2, {0: (8, 8), 2: (4, 4)}),
        ([[8, 8], (8, 8)], 2, {0: (8, 8)}),
        ([(8, 8), 0.5, 0.5], 2, {0: (8, 8), 1: 0.5}),
        ([(8, 8), 0.25, 0.75], 4, {0: (8, 8), 1: 0.25, 2: 0.625}),
    ],
)
def test_rates_are_rounded_down_to_even_steps_and_grids_stay(ends: list[Any], levels: int, expected: dict[float, Any]) -> None:
    found = discretised(lambda t: ends[int(t)], levels, len(ends))
    assert list(found) == list(expected)
    assert list(found.values()) == [value if isinstance(value, tuple) else pytest.approx(value) for value in expected.values()]


@pytest.mark.parametrize("levels", [2, 3, 7, 10])
def test_no_rate_is_rounded_up_and_none_by_more_than_a_step(levels: int) -> None:
    rates = [0.9 * (t / 99) ** 2 for t in range(100)]
    found = discretised(rates.__getitem__, levels, 100)
    assert len(set(found.values())) == levels
    for t, rate in enumerate(rates):
        held = next(end for start, end in reversed(found.items()) if start <= t)
        assert isinstance(held, float) and -1e-9 <= rate - held <= 0.9 / levels + 1e-9


def test_rates_that_lie_on_steps_stay_on_them() -> None:
    for levels in range(2, 40):
        rates = [0.1 + 0.8 * (step / levels) for step in range(levels + 1)]
        found = discretised(rates.__getitem__, levels, len(rates))
        assert list(found) == list(range(levels)), "each rate but the last has a step of its own"


def test_as_many_grids_as_levels_are_allowed_and_no_more() -> None:
    grids = [(9, 9), (6, 6), (3, 3)]
    assert discretised(lambda t: grids[int(t)], 3, 3) == {0: (9, 9), 1: (6, 6), 2: (3, 3)}
    with pytest.raises(PolicyError, match="gives 3 different grids; at most levels=2"):
        discretised(lambda t: grids[int(t)], 2, 3)


@pytest.mark.parametrize("levels", [1, 0, True, 2.0, "3", None])
def test_levels_are_whole_numbers_of_at_least_two(levels: Any) -> None:
    with pytest.raises(PolicyError, match="it must be an integer of at least 2"):
        discretised(lambda t: 0.5, levels, 10)


def test_what_is_no_function_or_gives_no_end_is_named() -> None:
    with pytest.raises(PolicyError, match=r"takes a function from timestep to rate or grid, not 0.5"):
        discretised(0.5, 8, 10)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"Density.of\(3\) is 1.5"):
        discretised(lambda t: 1.5 if t == 3 else 0.5, 8, 10)
