"""At which sizes and on which tokens a block is tried: indices worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from torch import fx

from sparsify.passes.subset import subset_as_captured, subset_of
from sparsify.program import Body, Program
from sparsify.shapes import size_of

from .dense import dense_program
from .sketch import Sketch, aten

pytestmark = pytest.mark.usefixtures("shared_sizes")

CHOSEN = [1, 2, 5, 11, 17, 22]
COLUMNS = [1, 3, 6, 8, 11, 13]  # 1 and 3 of every row of five


def listed(before: int = 0, after: int = 0) -> tuple[Body, sympy.Symbol]:
    """A block of (2, before + tokens + after, 4), and the symbol for its tokens."""
    sketch = Sketch()
    tokens = sketch.size(15)
    x = sketch.input("x", 2, tokens + (before + after), 4)
    if before + after:  # what tells how many of them are the image's
        sketch.input("table", tokens, 4)
    return sketch.body("block0", sketch(aten.neg.default, x), moving=[tokens]), size_of(tokens)


def plain(subset: Any) -> Any:
    """The parts of a subset, with lists in place of ranges."""
    return {key: list(rows) for key, rows in subset.index.items()}, list(subset.compared)


def call_of(program: Program) -> fx.Node:
    return program.block_nodes[0]


def test_of_a_list_some_tokens_are_taken_from_all_over() -> None:
    body, tokens = listed()
    program = dense_program(body)
    subset = subset_of(program, call_of(program), body)
    assert subset.sizes == {tokens: 24} and subset.few == {tokens: 6}
    assert plain(subset) == ({(0, 1): CHOSEN}, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3), (2, 3)])
def test_rows_of_text_are_all_taken_and_not_compared(before: int, after: int) -> None:
    body, tokens = listed(before, after)
    program = dense_program(body, before=before, after=after)
    subset = subset_of(program, call_of(program), body)
    assert subset.sizes == {tokens: 24} and subset.few == {tokens: 6}
    rows = [*range(before), *(before + i for i in CHOSEN), *range(before + 24, before + 24 + after)]
    assert plain(subset) == ({(0, 1): rows, (1, 0): CHOSEN}, list(range(before, before + 6)))


def test_text_and_tokens_that_the_block_takes_for_one_list_are_one() -> None:
    body, _tokens = listed()
    program = dense_program(body, before=2)
    subset = subset_of(program, call_of(program), body)
    assert plain(subset) == ({(0, 1): CHOSEN}, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("axis", [0, 1])
def test_an_open_batch_has_two(axis: int) -> None:
    inner, outer = Sketch(), Sketch()
    (batch, tokens), (all_batches, all_tokens) = ((sketch.size(3), sketch.size(15)) for sketch in (inner, outer))
    x, y = ((batch, tokens), (all_batches, all_tokens)) if axis == 1 else ((tokens, batch), (all_tokens, all_batches))
    node = inner.input("x", *x, 4)
    body = inner.body("block0", inner(aten.neg.default, node), moving=[tokens], token_axis=axis)
    outer.output(outer.block("blocks.0", body, outer.input("x", *y, 4)))
    program = outer.program(body, grid=(size_of(all_tokens),))
    subset = subset_of(program, call_of(program), body)
    assert subset.sizes == {size_of(tokens): 24, size_of(batch): 2}
    assert subset.few == {size_of(tokens): 6, size_of(batch): 2}
    assert plain(subset) == ({(0, axis): CHOSEN}, [0, 1, 2, 3, 4, 5])
    assert subset_as_captured(program, call_of(program), body).sizes == {size_of(tokens): 15, size_of(batch): 3}


def test_one_side_of_an_image_is_a_list() -> None:
    """Attention along the rows of an image; its columns are folded into the batch."""
    inner, outer = Sketch(), Sketch()
    h, w = outer.size(3), outer.size(5)
    rows, tokens = inner.size(6), inner.size(5)
    node = inner.input("x", rows, tokens, 4)
    body = inner.body("block0", inner(aten.neg.default, node), moving=[tokens])
    outer.input("image", 2, 4, h, w)
    outer.output(outer.block("blocks.0", body, outer.input("x", 2 * h, w, 4)))
    program = outer.program(body, grid=(size_of(h), size_of(w)))
    subset = subset_of(program, call_of(program), body)
    assert subset.sizes == {size_of(tokens): 24, size_of(rows): 2}
    assert plain(subset) == ({(0, 1): CHOSEN}, [0, 1, 2, 3, 4, 5])
    captured = subset_as_captured(program, call_of(program), body)
    assert captured.sizes == {size_of(tokens): 5, size_of(rows): 6} and captured.few == {size_of(tokens): 2, size_of(rows): 6}
    assert plain(captured) == ({(0, 1): [1, 3]}, [0, 1])


class Spread:
    """A block that takes its tokens with their grid, folded into one axis or as axes of their own, and one call of it."""

    def __init__(self, *grid: int, folded: bool, table: bool = False, lead: bool = False) -> None:
        inner, outer = Sketch(), Sketch()
        self.sides = [inner.size(side) for side in grid]
        self.symbols = [size_of(side) for side in self.sides]
        given = [outer.size(side) for side in grid]
        shapes = [self._shape(sides, folded) for sides in (self.sides, given)]
        x, y = inner.input("x", *shapes[0]), outer.input("x", *shapes[1])
        inputs, args = [x], [y]
        for place, (own, its) in enumerate(zip(self.sides, given, strict=True) if folded else ()):
            inputs.append(inner.number(f"side{place}", own))
            args.append(outer.number(f"side{place}", its))
        if table:
            inputs.append(inner.input("table", self.sides[-1], 4))
            args.append(outer.input("table", given[-1], 4))
        self.body = inner.body("block0", inner(aten.neg.default, x), moving=self.sides)
        outer.output(outer.block("blocks.0", self.body, *args))
        self.program = outer.program(self.body, grid=tuple(size_of(side) for side in given))

    def _shape(self, sides: list[Any], folded: bool) -> list[Any]:
        total = 1
        for side in sides:
            total = total * side
        return [2, total, 4] if folded else [2, *sides, 4]

    def of(self, choose: Any) -> Any:
        return choose(self.program, self.program.block_nodes[0], self.body)

    def sizes(self, *numbers: int) -> dict[sympy.Symbol, int]:
        return dict(zip(self.symbols, numbers, strict=True))


def test_of_an_image_the_upper_rows_are_taken() -> None:
    block = Spread(3, 5, folded=True)
    subset = block.of(subset_of)
    assert subset.sizes == block.sizes(8, 4) and subset.few == block.sizes(6, 4)
    assert plain(subset) == ({(0, 1): list(range(24))}, list(range(16)))


def test_of_an_image_whose_sides_are_axes_too() -> None:
    block = Spread(3, 5, folded=False, table=True)
    subset = block.of(subset_of)
    assert subset.sizes == block.sizes(8, 4) and subset.few == block.sizes(6, 4)
    assert plain(subset) == ({(0, 1): [0, 1, 2, 3, 4, 5], (0, 2): [0, 1, 2, 3], (1, 0): [0, 1, 2, 3]}, [0, 1, 2, 3])


def test_of_a_video_the_upper_rows_of_every_frame_are_taken() -> None:
    block = Spread(2, 3, 5, folded=True)
    subset = block.of(subset_of)
    assert subset.sizes == block.sizes(3, 8, 4) and subset.few == block.sizes(3, 6, 4)
    rows = [frame * 32 + row for frame in range(3) for row in range(24)]
    compared = [frame * 24 + row for frame in range(3) for row in range(16)]
    assert plain(subset) == ({(0, 1): rows}, compared)


def test_a_length_is_a_list() -> None:
    block = Spread(7, folded=False)
    subset = block.of(subset_of)
    assert subset.sizes == block.sizes(24) and subset.few == block.sizes(6)
    assert plain(subset) == ({(0, 1): CHOSEN}, [0, 1, 2, 3, 4, 5])


# --- at the sizes of the capture -------------------------------------------------------------------------------------------


def test_as_captured_every_other_column_is_taken() -> None:
    body, tokens = listed()
    program = dense_program(body)
    subset = subset_as_captured(program, call_of(program), body)
    assert subset.sizes == {tokens: 15} and subset.few == {tokens: 6}
    assert plain(subset) == ({(0, 1): COLUMNS}, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3), (2, 3)])
def test_as_captured_text_is_taken_and_not_compared(before: int, after: int) -> None:
    body, _tokens = listed(before, after)
    program = dense_program(body, before=before, after=after)
    subset = subset_as_captured(program, call_of(program), body)
    rows = [*range(before), *(before + i for i in COLUMNS), *range(before + 15, before + 15 + after)]
    assert plain(subset) == ({(0, 1): rows, (1, 0): COLUMNS}, list(range(before, before + 6)))


@pytest.mark.parametrize(
    ("grid", "rows", "compared"),
    [
        ((3, 5), 2, 1),
        ((4, 3), 2, 1),
        ((8, 2), 4, 2),
        ((9, 2), 5, 3),
        ((2, 4), 1, 1),
    ],
)
def test_as_captured_the_upper_half_of_an_image_is_taken(grid: tuple[int, int], rows: int, compared: int) -> None:
    block = Spread(*grid, folded=True)
    subset = block.of(subset_as_captured)
    assert subset.sizes == block.sizes(*grid) and subset.few == block.sizes(rows, grid[1])
    assert plain(subset) == ({(0, 1): list(range(rows * grid[1]))}, list(range(compared * grid[1])))


def test_as_captured_of_a_video() -> None:
    block = Spread(2, 3, 5, folded=True)
    subset = block.of(subset_as_captured)
    assert subset.few == block.sizes(2, 2, 5)
    assert plain(subset)[0] == {(0, 1): [*range(10), *range(15, 25)]}
    assert plain(subset)[1] == [*range(5), *range(10, 15)]


@pytest.mark.parametrize(("length", "rows"), [(7, [1, 3, 5]), (6, [1, 3, 5]), (2, [1])])
def test_as_captured_of_a_length(length: int, rows: list[int]) -> None:
    block = Spread(length, folded=False)
    subset = block.of(subset_as_captured)
    assert subset.sizes == block.sizes(length) and subset.few == block.sizes(len(rows))
    assert plain(subset) == ({(0, 1): rows}, list(range(len(rows))))


def test_of_a_single_column_all_is_taken() -> None:
    body, tokens = listed()
    outer = Sketch()
    outer.output(outer.block("blocks.0", body, outer.input("x", 2, 15, 4)))
    program = outer.program(body, grid=(15, 1))
    subset = subset_as_captured(program, call_of(program), body)
    assert subset.sizes == subset.few == {tokens: 15}
    assert plain(subset) == ({(0, 1): list(range(15))}, list(range(15)))
