"""Which sizes and which tokens to try a split block at."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        return _upper_rows(program, layouts, node, body, grid, (_ROWS, _ROWS - _MARGIN), (sizes, few))
    # One size stands for all of them: the number of tokens, with the text in their sequence if there is any.
    sizes = _hints(program, bound) | _batch(body) | dict.fromkeys(body.moving, _LENGTH)
    few = sizes | dict.fromkeys(body.moving, len(_CHOSEN))
    index: dict[tuple[int, int], Sequence[int]] = {}
    before = 0
    for position, axis, place in _places(layouts, node, body):
        index[position, axis] = _CHOSEN
        if shape_of(body.placeholders[position])[axis] not in body.moving:
            start, end = program.hint(place.before), program.hint(place.after)
            index[position, axis] = [*range(start), *(start + i for i in _CHOSEN), *range(start + _LENGTH, start + _LENGTH + end)]
            before = start if (position, axis) == (body.tokens, body.token_axis) else before
    return Subset(sizes, few, index, range(before, before + len(_CHOSEN)))


def subset_as_captured(program: Program, node: fx.Node, body: Body) -> Subset:
    """The upper half of the grid at the sizes of the capture, to try a block on what it is really given."""
    layouts, bound = Layouts(program), binding(body, node)
    grid, sizes = program.grid_hint, _hints(program, bound)
    rows = -(-grid[_upper(grid)] // 2)
    is_image = sum(len(layouts.sides_in(bound[symbol])) == 1 for symbol in body.moving) > 1
    subset = _upper_rows(program, layouts, node, body, grid, (rows, max(1, rows - _MARGIN * is_image)), (sizes, sizes))
    few = {symbol: rows for symbol in body.moving if layouts.sides_in(bound[symbol]) == [_upper(grid)]}
    for (position, axis), index in subset.index.items():
        symbol = shape_of(body.placeholders[position])[axis]
        few |= {symbol: len(index)} if symbol in body.moving else {}
    return Subset(sizes, sizes | few, subset.index, subset.compared)


def _upper_rows(
    program: Program, layouts: Layouts, node: fx.Node, body: Body, grid: Grid, rows: tuple[int, int], sizes: tuple[dict, dict]
) -> Subset:
    """The tokens in the first rows of every frame; those next to the cut are not compared."""
    taken, compared = rows
    index: dict[tuple[int, int], Sequence[int]] = {}
    agree: list[int] = []
    for position, axis, place in _places(layouts, node, body):
        size = sympy.sympify(shape_of(body.placeholders[position])[axis])
        length = int(size.xreplace(sizes[0])) - program.hint(place.after)
        heights = {row: _height(row - program.hint(place.before), place.sides, grid) for row in range(length)}
        after = range(length, length + program.hint(place.after))
        index[position, axis] = [*(row for row, height in heights.items() if height < taken), *after]
        if (position, axis) == (body.tokens, body.token_axis):
            agree = [i for i, row in enumerate(index[position, axis]) if row < length and 0 <= heights[row] < compared]
    return Subset(*sizes, index, agree)


def _upper(grid: Grid) -> int:
    """The side whose first half is taken: the height, or the length of a sequence."""
    return max(0, len(grid) - 2)


def _height(row: int, sides: Sequence[int], grid: Grid) -> int:
    """In which row of the image a row of an axis lies: 0 where the axis does not hold the height, -1 for text before it."""
    if row < 0 or _upper(grid) not in sides:
        return min(row, 0)
    return row // math.prod(grid[side] for side in sides if side > _upper(grid)) % grid[_upper(grid)]


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
