"""Which rows of a fused projection are computed: those that are read; eager torch says that nothing changed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes import NarrowLinear
from sparsify.shapes import shape_of

from .sketch import Sketch, aten, of_bodies, run, targets

LINEAR, SLICE, SELECT = aten.linear.default, aten.slice.Tensor, aten.select.int
Readers = Callable[[Sketch, fx.Node], Sequence[fx.Node]]


class Projection:
    """Tokens (2, N, 4) mapped to 12 rows, and what reads them."""

    def __init__(self, readers: Readers, bias: bool = True, width: int = 12) -> None:
        self.sketch = sketch = Sketch()
        self.width, self.tokens = width, sketch.size(7)
        self.x, weight, shift = sketch.input("x", 2, self.tokens, 4), sketch.input("w", width, 4), sketch.input("b", width)
        sketch(aten.sym_size.int, self.x, 1)
        self.linear = sketch(LINEAR, self.x, weight, *([shift] if bias else []))
        sketch.output(*readers(sketch, self.linear))

    def ran(self) -> list[torch.Tensor]:
        torch.manual_seed(0)
        found = run(self.sketch.graph, torch.rand(2, 5, 4), torch.rand(self.width, 4), torch.rand(self.width))
        return list(found) if isinstance(found, tuple) else [found]

    def narrowed(self) -> tuple[list[Any], tuple[int, int] | None]:
        """The operators behind the map, and which rows of the weight it has, None if all; no result changes."""
        before = self.ran()
        count = NarrowLinear().run(of_bodies(self.sketch.body(moving=[self.tokens])))
        after = self.ran()
        for one, other in zip(before, after, strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-6)
        (linear,) = self.sketch.graph.find_nodes(op="call_function", target=LINEAR)
        operators = targets(self.sketch.graph)
        behind = operators[operators.index(LINEAR) + 1 :]
        if count == 0:
            assert linear is self.linear
            return behind, None
        (rows,) = {rows_of(node) for node in linear.args[1:]}
        assert all(node.users for node in self.sketch.graph.nodes if node.op == "call_function")
        assert linear.meta["provenance"].pass_name == "narrow-linear"
        assert shape_of(linear)[-1] == rows[1] - rows[0]
        return behind, rows


def rows_of(node: Any) -> tuple[int, int]:
    """Which rows of a parameter slices of it are, one after the other."""
    first, count = 0, shape_of(node)[0]
    while node.target is SLICE:
        node, axis, start, _ = node.args
        assert axis == 0
        first += start
    return first, first + count


def tokens_of(sketch: Sketch) -> fx.Node:
    """How many tokens there are."""
    return sketch.graph.find_nodes(op="call_function", target=aten.sym_size.int)[0]


def chunks(*read: int, of: int = 3) -> Readers:
    return lambda sketch, node: sketch.items(sketch(aten.chunk.default, node, of, -1), *read)


def exp(sketch: Sketch, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [sketch(aten.exp.default, node) for node in nodes]


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


# --- behind changes of shape --------------------------------------------------------------------------------------------


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
    assert reshape.args[1][0] == 2  # type: ignore[index]
    assert reshape.args[1][2:] == [2, 4]  # type: ignore[index]
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
    assert reshape.args[1][-1] == 4  # type: ignore[index]


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
