"""Which rows of a fused projection are computed: those that are read; eager torch says that nothing changed."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
from torch import fx

from sparsify.passes import NarrowLinear

from .projections import LINEAR, SELECT, SLICE, Projection, Readers, chunks, exp
from .sketch import Sketch, aten, of_bodies


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("read", "rows", "behind"),
    [
        ((0,), (0, 4), []),
        ((1,), (4, 8), []),
        ((2,), (8, 12), []),
        ((0, 1), (0, 8), [SLICE, SLICE]),
        ((2, 1), (4, 12), [SLICE, SLICE]),
    ],
)
def test_of_chunks_those_that_are_read(read: tuple[int, ...], rows: tuple[int, int], behind: list[Any], bias: bool) -> None:
    assert Projection(chunks(*read), bias).narrowed() == (behind, rows)


@pytest.mark.parametrize("read", [(0, 1, 2), (0, 2)])
def test_the_first_and_the_last_row_need_all_between_them(read: tuple[int, ...]) -> None:
    assert Projection(chunks(*read)).narrowed()[1] is None


@pytest.mark.parametrize(
    ("target", "args", "rows"),
    [
        (SLICE, (2, 4, 8), (4, 8)),
        (SLICE, (-1, 4, 8), (4, 8)),
        (SLICE, (2, None, 8), (0, 8)),
        (SLICE, (2, 0, 5), (0, 5)),
        (SLICE, (2, 4), (4, 12)),
        (SLICE, (2, 4, None), (4, 12)),
        (SLICE, (2, 4, sys.maxsize), (4, 12)),
        (SLICE, (2, -4, sys.maxsize), (8, 12)),
        (SLICE, (2, 0, -4), (0, 8)),
        (SLICE, (2, 4, 8, 1), (4, 8)),
        (SELECT, (2, 3), (3, 4)),
        (SELECT, (-1, -1), (11, 12)),
        (SLICE, (2, 4, 8, 2), None),  # with steps
        (SLICE, (2,), None),
        (SLICE, (2, 0, sys.maxsize), None),
        (SLICE, (1, 0, 2), None),  # of tokens
        (SLICE, (), None),
        (SELECT, (0, 1), None),
        (aten.exp.default, (), None),
    ],
)
def test_of_one_reader_what_it_takes(target: Any, args: tuple[Any, ...], rows: tuple[int, int] | None) -> None:
    projection = Projection(lambda sketch, node: [sketch(target, node, *args)])
    assert projection.narrowed()[1] == rows


def test_several_readers_are_taken_together() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(SLICE, node, 2, 2, 6), sketch(SELECT, node, 2, 8), *exp(sketch, [sketch(SLICE, node, 2, 3, 5)])]

    behind, rows = Projection(readers).narrowed()
    assert rows == (2, 9)
    assert sorted(map(str, behind)) == sorted(map(str, [SLICE, SELECT, SLICE, aten.exp.default]))


def test_a_reader_of_everything_leaves_it() -> None:
    assert Projection(lambda sketch, node: [sketch(SLICE, node, 2, 2, 6), *exp(sketch, [node])]).narrowed()[1] is None
    assert Projection(lambda sketch, node: [sketch(SLICE, node, 2, 2, 6), node]).narrowed()[1] is None
    assert Projection(lambda sketch, node: [node]).narrowed()[1] is None


def test_readers_that_nothing_reads_do_not_count() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        exp(sketch, [node])
        return [sketch(SLICE, node, 2, 2, 6)]

    assert Projection(readers).narrowed() == ([], (2, 6))


def test_a_map_that_nothing_reads_is_left() -> None:
    sketch = Sketch()
    x, w = sketch.input("x", 2, 7, 4), sketch.input("w", 12, 4)
    sketch(LINEAR, x, w)
    sketch.output(x)
    assert NarrowLinear().run(of_bodies(sketch.body())) == 0


@pytest.mark.parametrize(
    "readers",
    [
        lambda sketch, node: [sketch(aten.add.Tensor, sketch.graph.find_nodes(op="placeholder")[0], node)],  # not the first
        lambda sketch, node: [sketch(aten.mul.Tensor, node, node)],
    ],
)
def test_operands_in_other_places_leave_it(readers: Readers) -> None:
    assert Projection(readers, width=4).narrowed()[1] is None


def test_pieces_of_pieces_are_followed_to_the_end() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        (half,) = sketch.items(sketch(aten.chunk.default, node, 2, -1), 1)
        return sketch.items(sketch(aten.chunk.default, half, 2, -1), 0)

    assert Projection(readers).narrowed() == ([], (6, 9))


def test_splits_of_unequal_sizes() -> None:
    sizes = [2, 4, 6]
    pieces = {0: (0, 2), 1: (2, 6), 2: (6, 12)}
    for index, rows in pieces.items():
        split = Projection(
            lambda sketch, node, i=index: sketch.items(sketch(aten.split_with_sizes.default, node, sizes, -1), i)
        )
        assert split.narrowed() == ([], rows)
    uneven = Projection(lambda sketch, node: sketch.items(sketch(aten.split.Tensor, node, 5, -1), 2))
    assert uneven.narrowed() == ([], (10, 12))


def test_chunks_along_another_axis_leave_it() -> None:
    assert Projection(lambda sketch, node: sketch.items(sketch(aten.chunk.default, node, 2), 0)).narrowed()[1] is None
    assert Projection(lambda sketch, node: sketch.items(sketch(aten.split.Tensor, node, 1, 0), 0)).narrowed()[1] is None


def test_pieces_that_something_takes_all_of_leave_it() -> None:
    def readers(sketch: Sketch, node: fx.Node) -> list[fx.Node]:
        return [sketch(aten.cat.default, sketch(aten.chunk.default, node, 3, -1), 1)]

    assert Projection(readers).narrowed()[1] is None


def test_arguments_by_name_count() -> None:
    projection = Projection(chunks(1))
    x, weight, bias = projection.linear.args
    projection.linear.args, projection.linear.kwargs = (x, weight), {"bias": bias}
    assert projection.narrowed() == ([], (4, 8))
    sliced = Projection(lambda sketch, node: [sketch(SLICE, node, dim=2, start=4, end=8), sketch(SLICE, node, 2, 4, 8)])
    assert sliced.narrowed()[1] is None


# --- the pass -----------------------------------------------------------------------------------------------------------


def test_all_graphs_are_looked_at_and_places_described() -> None:
    block, outer = Projection(chunks(1)), Projection(chunks(2))
    program = of_bodies(block.sketch.body())
    program.graph = outer.sketch.graph
    found = list(NarrowLinear().match(program))
    assert [NarrowLinear().describe(place) for place in found] == [
        "linear_default, rows 8 to 12",
        "linear_default, rows 4 to 8",
    ]
    assert NarrowLinear().run(program) == 2


def test_it_prepares_and_what_it_finds_is_frozen() -> None:
    (place,) = NarrowLinear().match(of_bodies(Projection(chunks(1)).sketch.body()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        place.start = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        place.parts[0].first = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        NarrowLinear().name = "other"  # type: ignore[misc]
    assert NarrowLinear() == NarrowLinear()
    assert place == dataclasses.replace(place)
    assert place.parts[0] == dataclasses.replace(place.parts[0])
    assert NarrowLinear.prepares is True
