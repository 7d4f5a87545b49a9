"""Which rows of a fused projection are computed where its readers stand behind changes of shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import fx

from .projections import SELECT, SLICE, Projection, Readers, exp, tokens_of
from .sketch import Sketch, aten


def units(shape: Callable[[Any], list[Any]], then: Readers) -> Readers:
    """The map in another shape, which may name the number of tokens."""

    def readers(sketch: Sketch, node: fx.Node) -> Sequence[fx.Node]:
        count = tokens_of(sketch)
        return then(sketch, sketch(aten.reshape.default, node, shape(count)))

    return readers


@pytest.mark.parametrize(
    ("then", "rows"),
    [
        (lambda sketch, node: [sketch(SELECT, node, 2, 0)], (0, 4)),
        (lambda sketch, node: [sketch(SELECT, node, 2, -1)], (8, 12)),
        (lambda sketch, node: [sketch(SLICE, node, 2, 1, 3)], (4, 12)),
        (lambda sketch, node: [sketch(SLICE, node, 2, 0, 1)], (0, 4)),
        (lambda sketch, node: sketch.items(sketch(aten.unbind.int, node, 2), 1), (4, 8)),
        (lambda sketch, node: sketch.items(sketch(aten.unbind.int, node, 2), 2, 1), (4, 12)),
        (lambda sketch, node: sketch.items(sketch(aten.chunk.default, node, 3, 2), 1), (4, 8)),
        (lambda sketch, node: [sketch(SELECT, sketch(aten.permute.default, node, [2, 0, 3, 1, 4]), 0, 1)], (4, 8)),
        (lambda sketch, node: [sketch(SELECT, sketch(aten.transpose.int, node, 1, 2), 1, 2)], (8, 12)),
        (
            lambda sketch, node: sketch.items(sketch(aten.unbind.int, sketch(aten.permute.default, node, [2, 0, 3, 1, 4])), 2),
            (8, 12),
        ),
        (lambda sketch, node: [sketch(SELECT, sketch(aten.mul.Tensor, node, 2.0), 2, 1)], (4, 8)),
        (lambda sketch, node: [sketch(SELECT, node, 3, 0)], None),  # of heads
        (lambda sketch, node: [sketch(SELECT, node, 1, 0)], None),
        (lambda sketch, node: sketch.items(sketch(aten.unbind.int, node, 3), 0), None),
        (lambda sketch, node: exp(sketch, [node]), None),
        (lambda sketch, node: [sketch(SELECT, node, 2, 0), sketch(SELECT, node, 2, 2)], None),
    ],
)
def test_units_of_several_rows(then: Readers, rows: tuple[int, int] | None) -> None:
    """(2, N, 3, 2, 2): three units of two heads of two channels."""
    assert Projection(units(lambda count: [2, count, 3, 2, 2], then)).narrowed()[1] == rows


def test_units_are_stated_anew() -> None:
    projection = Projection(units(lambda count: [2, count, 3, 4], lambda sketch, node: [sketch(SLICE, node, 2, 1, 3)]))
    assert projection.narrowed() == ([aten.reshape.default], (4, 12))
    (reshape,) = projection.sketch.graph.find_nodes(op="call_function", target=aten.reshape.default)
    assert reshape.args[1][0] == 2
    assert reshape.args[1][2:] == [2, 4]
    assert reshape.meta["provenance"].pass_name == "narrow-linear"


def test_an_axis_that_is_taken_apart_in_place() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SELECT, sketch(aten.unflatten.int, node, -1, [3, 2, 2]), 2, 1)]

    projection = Projection(readers)
    assert projection.narrowed()[1] == (4, 8)
    (unflatten,) = projection.sketch.graph.find_nodes(op="call_function", target=aten.unflatten.int)
    assert unflatten.args[1:] == (-1, [1, 2, 2])


def test_another_axis_that_is_taken_apart_is_followed() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SLICE, sketch(aten.unflatten.int, node, 0, [1, 2]), 3, 4, 8)]

    assert Projection(readers).narrowed()[1] == (4, 8)


def test_a_shape_that_keeps_the_rows_states_them_anew() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        count = tokens_of(sketch)
        flat = sketch(aten.reshape.default, node, [2, 1, count, 12])
        return [sketch(SLICE, flat, 3, 4, 8)]

    projection = Projection(readers)
    assert projection.narrowed()[1] == (4, 8)
    (reshape,) = projection.sketch.graph.find_nodes(op="call_function", target=aten.reshape.default)
    assert reshape.args[1][-1] == 4


def test_units_that_stay_together_are_followed() -> None:
    def then(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SELECT, sketch(aten.reshape.default, node, [2, tokens_of(sketch), 3, 2, 2]), 2, 1)]

    assert Projection(units(lambda count: [2, count, 3, 4], then)).narrowed()[1] == (4, 8)


def test_units_are_taken_apart_once() -> None:
    def then(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SELECT, sketch(aten.unflatten.int, node, 2, [3, 2]), 2, 1)]

    assert Projection(units(lambda count: [2, count, 6, 2], then)).narrowed()[1] is None


def test_shapes_that_mix_rows_with_tokens_leave_it() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SELECT, sketch(aten.reshape.default, node, [2, -1]), 1, 0)]

    assert Projection(readers).narrowed()[1] is None


def test_units_of_different_sizes_must_fit() -> None:
    """Six rows of one reader are no whole number of units of the other."""

    def readers(units_of: int) -> Readers:
        def made(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
            whole = sketch(aten.unflatten.int, node, -1, [3, 4])
            return [sketch(SELECT, whole, 2, 1), sketch(SLICE, node, 2, 4, units_of)]

        return made

    assert Projection(readers(8)).narrowed()[1] == (4, 8)
    assert Projection(readers(6)).narrowed()[1] == (4, 8)
    assert Projection(readers(10)).narrowed()[1] is None


def test_readers_behind_the_same_change_of_shape_share_it() -> None:
    def then(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SELECT, node, 2, 1), *exp(sketch, [sketch(SELECT, node, 2, 2)])]

    projection = Projection(units(lambda count: [2, count, 3, 4], then))
    behind, rows = projection.narrowed()
    assert rows == (4, 12)
    assert behind.count(aten.reshape.default) == 1
