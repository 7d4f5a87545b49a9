"""Where the grid sits in the axes of a tensor, on graphs of a few nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy

from sparsify.errors import RewriteError
from sparsify.layout import TokenAxis

from .grids import Made
from .sketch import expr

SHAPES: list[tuple[int, Callable[[Made], Any], bool]] = [
    (2, lambda made: (made.b, made.h * made.w, 8), True),
    (2, lambda made: (made.b, 8, made.h, made.w), True),
    (2, lambda made: (made.b * made.h * made.w, 8), True),
    (2, lambda made: (made.b, made.s + made.h * made.w, 8), True),
    (2, lambda made: (made.h * made.w, 8), True),
    (2, lambda made: (made.b, made.h, 8), False),
    (2, lambda made: (made.b, made.w, 8), False),
    (2, lambda made: (made.b, made.s, 8), False),
    (2, lambda made: (24, 8), False),
    (1, lambda made: (made.b, made.w), True),
    (1, lambda made: (made.b, made.h), False),
    (3, lambda made: (made.b, made.t, made.h, made.w), True),
    (3, lambda made: (made.b * made.t, made.h * made.w), True),
    (3, lambda made: (made.b, made.h * made.w), True),
    (3, lambda made: (made.b, made.t * made.w), False),
    (3, lambda made: (made.b, made.t), False),
]


@pytest.mark.parametrize(("axes", "shape", "holds"), SHAPES)
def test_a_tensor_holds_the_grid_if_its_axes_have_all_sides_but_the_time(
    axes: int, shape: Callable[[Made], Any], holds: bool
) -> None:
    made = Made(axes)
    assert made.layouts.holds_grid(made.tensor(*shape(made))) is holds


def test_what_is_no_tensor_holds_no_grid() -> None:
    made = Made()
    node = made.sketch.number("n", made.h * made.w)
    assert not made.layouts.holds_grid(node) and made.layouts.of(node) == ()
    assert Made(fixed=(4, 4)).layouts.sides_in(16) == [0, 1]


@pytest.mark.parametrize(("size", "holds"), [(24, True), (29, True), (5, False), (12, False), (48, False)])
def test_a_grid_of_numbers_is_known_by_its_number_of_tokens_alone_or_in_the_sequence(size: int, holds: bool) -> None:
    made = Made(fixed=(4, 6), sequence=29)
    assert made.layouts.holds_grid(made.tensor(2, size, 8)) is holds
    assert made.layouts.sides_in(size) == ([0, 1] if holds else [])
    assert made.layouts.is_aligned(size) is holds


def test_a_sequence_that_is_an_expression_adds_no_length_to_a_grid_of_numbers() -> None:
    made = Made(fixed=(4, 6))
    made.program.sequence = 24 + expr(made.s)
    assert made.layouts.sides_in(24) == [0, 1]
    assert made.layouts.sides_in(29) == [] == made.layouts.sides_in(24 + expr(made.s))


def test_sides_that_a_size_depends_on() -> None:
    made = Made(3)
    t, h, w, b, s = map(expr, (made.t, made.h, made.w, made.b, made.s))
    layouts = made.layouts
    for size, sides in ((t * h * w, [0, 1, 2]), (b * h, [1]), (s + h * w, [1, 2]), (t + w, [0, 2]), (s, []), (b, []), (7, []),
                        (sympy.Integer(7), [])):  # fmt: skip
        assert layouts.sides_in(size) == sides
        assert layouts.is_aligned(size) is bool(sides)


def test_what_becomes_of_sizes_when_the_grid_is_pooled() -> None:
    made = Made(3)
    pooled_t, pooled_h, pooled_w = made.pool(2, 3, 2)
    t, h, w, b, s = map(expr, (made.t, made.h, made.w, made.b, made.s))
    for size, pooled in (
        (t * h * w, pooled_t * pooled_h * pooled_w),
        (b * t * h * w, b * pooled_t * pooled_h * pooled_w),
        (h * w, pooled_h * pooled_w),
        (2 * w, 2 * pooled_w),
        (s + h * w, s + pooled_h * pooled_w),
        (s, s),
        (7, sympy.Integer(7)),
        (h + w, pooled_h + pooled_w),  # inside of an operator: any function of the sides
        (t * w, pooled_t * pooled_w),
        (h**2, pooled_h**2),
    ):
        assert sympy.expand(made.layouts.pooled(size) - pooled) == 0
        assert isinstance(made.layouts.pooled(size), sympy.Basic)


def test_a_grid_of_numbers_is_pooled_beside_its_text() -> None:
    made = Made(fixed=(4, 6), sequence=29)
    height, width = made.pool(2, 3)
    assert made.layouts.pooled(24) == height * width
    assert made.layouts.pooled(29) == 5 + height * width
    assert made.layouts.pooled(12) == 12


def axes_of(made: Made, *shape: Any) -> list[TokenAxis]:
    return list(made.layouts.of(made.tensor(*shape)))


def test_a_grid_alone_in_one_axis_or_several() -> None:
    made = Made()
    assert axes_of(made, made.b, made.h * made.w, 8) == [TokenAxis(1, (0, 1), 0, 0)]
    assert axes_of(made, made.b, 8, made.h, made.w) == [TokenAxis(2, (0,)), TokenAxis(3, (1,))]
    assert axes_of(made, made.b * made.h * made.w, 8) == [TokenAxis(0, (0, 1))]
    assert axes_of(made, made.b * made.h, 8, 2 * made.w) == [TokenAxis(0, (0,)), TokenAxis(2, (1,))]
    assert axes_of(made, made.b, made.s, 8) == []
    video = Made(3)
    assert axes_of(video, video.b * video.t, video.h * video.w) == [TokenAxis(0, (0,)), TokenAxis(1, (1, 2))]
    assert axes_of(video, video.b, video.t * video.h * video.w) == [TokenAxis(1, (0, 1, 2))]
    assert len({TokenAxis(1, (0,)), TokenAxis(1, (0,), 0, 0)}) == 1


@pytest.mark.parametrize(
    ("fixed", "factor", "sides"),
    [
        ((4, "h", "w"), 4, (0, 1, 2)),
        ((4, "h", "w"), 8, (0, 1, 2)),
        ((4, "h", "w"), 2, (1, 2)),
        ((4, "h", "w"), 1, (1, 2)),
        ((4, "h", "w"), 6, (1, 2)),
        (("t", "h", "w"), 4, (1, 2)),
    ],
)
def test_a_side_that_is_a_number_is_a_factor_of_the_size(fixed: Any, factor: int, sides: tuple[int, ...]) -> None:
    made = Made(3)
    named = {"t": expr(made.t), "h": expr(made.h), "w": expr(made.w)}
    made.program.grid = tuple(named.get(side, side) for side in fixed)
    assert axes_of(made, made.b * factor * made.h * made.w) == [TokenAxis(0, sides)]


def test_two_sides_that_are_numbers() -> None:
    made = Made(3)
    made.program.grid = (2, 3, expr(made.w))
    assert axes_of(made, 6 * made.w) == [TokenAxis(0, (0, 1, 2))]
    assert axes_of(made, 3 * made.w) == [TokenAxis(0, (1, 2))]
    assert axes_of(made, 5 * made.w) == [TokenAxis(0, (2,))]
    made.pool(2, 2, 3)
    pooled = made.layouts.pooled(12 * expr(made.w))
    assert len(pooled.free_symbols) == 3 and pooled.as_coeff_Mul()[0] == 2, "two grids are folded into it"


def test_sides_of_one_behind_a_side_are_in_its_axis() -> None:
    made = Made()
    made.program.grid = (expr(made.h), 1)
    assert axes_of(made, made.b, made.h, 8) == [TokenAxis(1, (0, 1))]
    video = Made(3)
    video.program.grid = (expr(video.t), 1, 1)
    assert axes_of(video, video.b, 8, video.t) == [TokenAxis(2, (0, 1, 2))]
    video.program.grid = (1, expr(video.h), 1)
    assert axes_of(video, video.b, video.h, 8) == [TokenAxis(1, (0, 1, 2))]


@pytest.mark.parametrize(
    "size",
    [
        lambda made: made.h * made.h * made.w,
        lambda made: made.h * made.w + made.h,
        lambda made: made.h + made.w,
        lambda made: made.t * made.w,
        lambda made: made.b * made.h * made.w + made.s,
        lambda made: 2 * made.h * made.w + 1,
        lambda made: (made.h // 2) * made.w,
    ],
)
def test_sizes_that_are_no_folding_of_the_grid_are_refused(size: Callable[[Made], Any]) -> None:
    made = Made(3)
    node = made.tensor(made.b, size(made))
    with pytest.raises(RewriteError, match=f"of {node.name} depends on the token grid in a way that is not understood"):
        made.layouts.of(node)
