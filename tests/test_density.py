"""Densities against formulas written out here; as text and JSON; what is wrong with one is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify import Density, PolicyError

DENSE = (16, 16)


def side(kept: float) -> int:
    return max(1, math.floor(16 * math.sqrt(kept) + 1e-9))


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (Density.paper, lambda u: 0.2 if u < 0.25 else 0.2 + 0.7 * (u - 0.25) / 0.75),
        (Density.linear, lambda u: 0.2 + 0.7 * u),
        (Density.cosine, lambda u: 0.2 + 0.7 * math.sin(math.pi * u / 2) ** 2),
    ],
    ids=["paper", "linear", "cosine"],
)
@pytest.mark.parametrize("end", [1000, 1.0, 250])
def test_schedules_in_any_unit_and_direction(make: Callable[..., Density], rate: Callable[[float], float], end: float) -> None:
    forwards, backwards = (make(0.2, 0.9, timesteps=end, reversed=flag) for flag in (False, True))
    for percent in range(101):
        u = percent / 100
        want = (side(1 - rate(u)),) * 2
        assert forwards.grid_at(u * end, DENSE) == want
        if abs(math.sqrt(1 - rate(u)) * 16 % 1) > 1e-6:  # a rounding of 1 - u may tip what lies on the edge
            assert backwards.grid_at(end - u * end, DENSE) == want


def test_table() -> None:
    density = Density.table({500: (8, 8), 0: (12, 12), 900: 0.9})
    assert [density.grid_at(t, DENSE) for t in (0, 499.9, 500, 899, 900, 1000)] == [
        (12, 12), (12, 12), (8, 8), (8, 8), (5, 5), (5, 5),
    ]  # fmt: skip
    assert density.grids(DENSE) == {(12, 12): 0.5, (8, 8): 0.4, (5, 5): 0.1}


def test_any_function_becomes_a_few_grids_that_never_drop_more_tokens() -> None:
    def rate(t: float) -> float:
        return 0.3 + 0.6 * t**2

    density = Density.of(rate, levels=4, timesteps=1.0)
    assert len(density.steps) == 4
    for percent in range(101):
        t = percent / 100
        held = next(end for start, end in reversed(density.steps) if start <= t)
        assert isinstance(held, float) and 0 <= rate(t) - held < 0.6 / 4 + 0.002
    by_grid = Density.of(lambda t: (8, 8) if t < 300 else (4, 4))
    assert by_grid.steps == ((0, (8, 8)), (300, (4, 4)))


def test_levels_round_a_schedule_to_a_few_grids_and_reach_both_ends() -> None:
    density = Density.linear(finest=(14, 14), coarsest=(4, 4), levels=3)
    assert list(density.grids(DENSE)) == [(14, 14), (10, 10), (4, 4)]
    assert density.grid_at(0, DENSE) == (14, 14) and density.grid_at(1000, DENSE) == (4, 4)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    for density in (Density.cosine(0.5, 0.9, timesteps=1.0, reversed=True), Density.table({0: (12, 12), 500: (8, 8)})):
        density.plot(tmp_path / "made" / "density.png", DENSE)
        assert (tmp_path / "made" / "density.png").read_bytes().startswith(b"\x89PNG")


ENDS = st.one_of(st.floats(0, 0.99), st.tuples(st.integers(1, 30), st.integers(1, 30)))


@st.composite
def densities(draw: st.DrawFn) -> Density:
    options: dict[str, Any] = {"timesteps": draw(st.sampled_from([1000, 1.0, 250, 0.5])), "reversed": draw(st.booleans())}
    options["pools_time"] = draw(st.booleans())
    kind = draw(st.sampled_from(["paper", "linear", "cosine", "constant", "table"]))
    if kind == "table":
        shares = draw(st.lists(st.floats(0.01, 1), max_size=3, unique=True))
        return Density.table({0: draw(ENDS)} | {share * options["timesteps"]: draw(ENDS) for share in shares}, **options)
    low, high = sorted(draw(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))))
    if kind == "constant":
        return Density.constant(rate=low, **options)
    return getattr(Density, kind)(low, high, levels=draw(st.sampled_from([None, 2, 5])), **options)


@given(densities())
def test_text_and_json_come_back(density: Density) -> None:
    assert Density.parse(str(density)) == density
    assert Density.from_dict(json.loads(json.dumps(density.to_dict()))) == density


@given(densities(), st.floats(0, 1))
def test_every_grid_that_is_met_is_listed_or_at_the_very_end(density: Density, share: float) -> None:
    if any(isinstance(end, tuple) for _, end in density.steps):
        return  # may be larger than the dense grid
    t = int(share * density.timesteps) if density.timesteps > 1 else share * density.timesteps
    grid = density.grid_at(t, DENSE)
    assert all(1 <= n <= 16 for n in grid)
    if density.timesteps > 1 and t < density.timesteps:
        assert grid in density.grids(DENSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Density.linear(0.9, 0.2), "r_max 0.2 is below r_min 0.9"),
        (lambda: Density.paper(0.1, 0.2, timesteps=0), "timesteps is 0; it must be a number above 0"),
        (lambda: Density.paper(0.1, 0.2, levels=1), "levels is 1; it must be None or an integer of at least 2"),
        (lambda: Density.paper(0.1, 0.2, reversed="yes"), "reversed is 'yes'; it must be True or False"),
        (lambda: Density.paper(0.1, 0.2, steps=3), r"unknown option\(s\) \['steps'\]"),
        (lambda: Density.table({}), "takes a mapping such as"),
        (lambda: Density.table({10: 0.5}), "must start at 0, ascend and stay within"),
        (lambda: Density.table({0: 0.5, 2000: 0.6}), "must start at 0, ascend and stay within"),
        (lambda: Density.table({0: 1.5}), "a pruning rate lies in"),
        (lambda: Density.of(lambda t: (int(t % 9) + 1,) * 2), "gives 9 different grids; at most levels=8"),
        (lambda: Density.of(0.5), "takes a function"),
        (lambda: Density.of(lambda t: "half"), "must be a pruning rate"),
        (lambda: Density.parse("table(0:8x8"), "is not like"),
        (lambda: Density.parse("table(8x8)"), "is no timestep"),
        (lambda: Density.from_dict({"schedule": "sine", "finest": 0, "coarsest": 0, "timesteps": 1}), "schedule is 'sine'"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], Density], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make()
