"""Which sizes and which tokens to try a split block at."""

from __future__ import annotations

import math

import sympy
from torch import fx

from ..attention import aligned_inputs, moving_axes
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
        return _upper_rows(program, node, body, sides)
    # One size stands for all of them: the number of tokens, with the text in their sequence if there is any.
    sizes = {symbol: program.hint(size) for symbol, size in bound.items()} | _batch(body)
    sizes |= dict.fromkeys(body.moving, _LENGTH)
    few = sizes | dict.fromkeys(body.moving, len(_CHOSEN))
    rows = {}
    for position, axis, place in _places(layouts, node, body):
        if shape_of(body.placeholders[position])[axis] not in body.moving:
            rows[position, axis] = (program.hint(place.before), _LENGTH)
    return Subset(sizes, few, _CHOSEN, range(len(_CHOSEN)), rows)


def _upper_rows(program: Program, node: fx.Node, body: Body, sides: dict[sympy.Symbol, int]) -> Subset:
    layouts = Layouts(program)
    grid = _SIDES[-len(program.grid) :]
    heights = {symbol for symbol, side in sides.items() if side == len(grid) - 2}
    sizes = {symbol: program.hint(size) for symbol, size in binding(body, node).items()} | _batch(body)
    sizes |= {symbol: grid[side] for symbol, side in sides.items()}
    few = sizes | dict.fromkeys(heights, _ROWS)
    height, width = grid[-2:]
    cells = range(math.prod(grid))
    chosen = [cell for cell in cells if cell // width % height < _ROWS]
    compared = [index for index, cell in enumerate(chosen) if cell // width % height < _ROWS - _MARGIN]
    rows = {
        (position, axis): (program.hint(place.before), math.prod(grid[side] for side in place.sides))
        for position, axis, place in _places(layouts, node, body)
    }
    return Subset(sizes, few, chosen, compared, rows)


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
