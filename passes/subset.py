"""Which sizes and which tokens to try a split block at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sympy
from torch import fx

from ..attention import aligned_inputs, moving_axes
from ..density import Grid
from ..layout import Layouts, TokenAxis
from ..probe import Subset
from ..program import Body, Program
from ..shapes import shape_of
from ..sizes import binding

_LENGTH = 24  # divisible by most window sizes
_CHOSEN = (1, 2, 5, 11, 17, 22)
_SIDES, _ROWS, _MARGIN = (3, 8, 4), 6, 2  # of a grid: its sides, how many of its rows are taken, and how many are near the cut


def subset_of(program: Program, node: fx.Node, body: Body) -> Subset:
    """For a block called by ``node``: any tokens where they are just a list, the upper rows where they are an image."""
    layouts, bound = Layouts(program), binding(body, node)
    sides = {symbol: places[0] for symbol in body.moving if len(places := layouts.sides_in(bound[symbol])) == 1}
    if len(program.grid) > 1 and set(sides) == body.moving and len(sides) > 1:
        grid = _SIDES[-len(program.grid) :]
        sizes = _hints(program, bound) | _batch(body) | {symbol: grid[side] for symbol, side in sides.items()}
        few = sizes | {symbol: _ROWS for symbol, side in sides.items() if side == len(grid) - 2}
        upper = _Choice(len(grid) - 2, range(_ROWS), range(_ROWS - _MARGIN))
        return Subset(sizes, few, *_rows(program, layouts, node, body, grid, upper, sizes))
    # One size stands for all of them: the number of tokens, with the text in their sequence if there is any.
    sizes = _hints(program, bound) | _batch(body) | dict.fromkeys(body.moving, _LENGTH)
    few = sizes | dict.fromkeys(body.moving, len(_CHOSEN))
    index: dict[tuple[int, int], Sequence[int]] = {}
    before = 0
    for position, axis, place in _places(layouts, node, body):
        index[position, axis] = _CHOSEN
        if shape_of(body.placeholders[position])[axis] not in body.moving:
            start, end = program.hint(place.before), program.hint(place.after)
            index[position, axis] = [
                *range(start),
                *(start + i for i in _CHOSEN),
                *range(start + _LENGTH, start + _LENGTH + end),
            ]
            before = start if (position, axis) == (body.tokens, body.token_axis) else before
    return Subset(sizes, few, index, range(before, before + len(_CHOSEN)))


def subset_as_captured(program: Program, node: fx.Node, body: Body) -> Subset:
    """The same at the sizes of the capture, to try a block on what it is really given."""
    layouts, bound = Layouts(program), binding(body, node)
    grid, sizes = program.grid_hint, _hints(program, bound)
    if len(grid) > 1 and sum(len(layouts.sides_in(bound[symbol])) == 1 for symbol in body.moving) > 1:
        rows = -(-grid[-2] // 2)
        choice = _Choice(len(grid) - 2, range(rows), range(max(1, rows - _MARGIN)))
    else:  # every other column
        columns = range(min(1, grid[-1] - 1), grid[-1], 2)
        choice = _Choice(len(grid) - 1, columns, columns)
    index, compared = _rows(program, layouts, node, body, grid, choice, sizes)
    few = {symbol: len(choice.taken) for symbol in body.moving if layouts.sides_in(bound[symbol]) == [choice.side]}
    for (position, axis), rows_taken in index.items():
        symbol = shape_of(body.placeholders[position])[axis]
        few |= {symbol: len(rows_taken)} if symbol in body.moving else {}
    return Subset(sizes, sizes | few, index, compared)


class _Choice(NamedTuple):
    """Which tokens to take: those at some places along one side of the grid; fewer of them are compared."""

    side: int
    taken: range
    compared: range


def _rows(
    program: Program, layouts: Layouts, node: fx.Node, body: Body, grid: Grid, choice: _Choice, sizes: Mapping[Any, int]
) -> tuple[dict[tuple[int, int], list[int]], list[int]]:
    """The rows to take of each aligned axis, all that stands beside the grid among them, and which of the tokens' to compare."""
    index: dict[tuple[int, int], list[int]] = {}
    compared: list[int] = []
    for position, axis, place in _places(layouts, node, body):
        length = int(sympy.sympify(shape_of(body.placeholders[position])[axis]).xreplace(sizes))
        before, end = program.hint(place.before), length - program.hint(place.after)
        at = {row: _place_on(choice.side, row - before, place.sides, grid) for row in range(before, end)}
        index[position, axis] = [
            *range(before),
            *(r for r in at if at[r] is None or at[r] in choice.taken),
            *range(end, length),
        ]
        if (position, axis) == (body.tokens, body.token_axis):
            compared = [
                i
                for i, row in enumerate(index[position, axis])
                if row in at and (at[row] is None or at[row] in choice.compared)
            ]
    return index, compared


def _place_on(side: int, row: int, sides: Sequence[int], grid: Grid) -> int | None:
    """Where along a side of the grid a row of an axis lies; None if the axis does not hold this side."""
    return row // math.prod(grid[other] for other in sides if other > side) % grid[side] if side in sides else None


def _hints(program: Program, bound: dict[sympy.Basic, sympy.Basic]) -> dict[sympy.Basic, int]:
    return {symbol: program.hint(size) for symbol, size in bound.items()}


def _batch(body: Body) -> dict[sympy.Basic, int]:
    size = shape_of(body.token_node)[1 - body.token_axis]
    return {size: 2} if isinstance(size, sympy.Symbol) else {}


def _places(layouts: Layouts, node: fx.Node, body: Body) -> list[tuple[int, int, TokenAxis]]:
    """Every axis of an input that holds the tokens, with what stands beside them."""
    found = []
    for position in aligned_inputs(body):
        argument = node.args[position]
        by_axis = {place.axis: place for place in layouts.of(argument)} if isinstance(argument, fx.Node) else {}
        found += [(position, axis, by_axis[axis]) for axis in moving_axes(body, body.placeholders[position]) if axis in by_axis]
    return found
