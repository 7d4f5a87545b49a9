"""Find the token grid: where axes of the latent become tokens, or what the inputs say of it."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from .errors import GridError
from .grid_axes import VIEWS, ancestors_along, equal, has_shape, sources_of_axis
from .grid_readers import FixedGrid, GridOfPositions, checked_sides, sides_of_positions
from .program import GRID, Program
from .shapes import Size, emit_size, new_size, shape_of, size_of
from .sizes import set_equal

aten = torch.ops.aten


def find_grid(program: Program, given: Sequence[int] | None = None) -> None:
    """Set the dense token grid in row-major order, (h, w), (t, h, w) or (n,), and where it was found.

    In this order: what the caller gives; a view that merges axes of the latent, which is row-major by definition; a size
    that is a product of them; integers among the inputs, and then tables of positions, that multiply to the number of
    tokens; the length of a latent of (batch, channels, length).

    Raises:
        GridError: none of these is there, or the ``given`` grid does not have as many tokens as the trunk.
    """
    streams = _streams(program)
    if given is not None:
        _give_grid(program, streams, checked_sides(given))
        return
    for find in (_merged_axes, _factors, _from_integers, _from_positions, _from_length):
        for tokens in streams:
            if found := find(program, tokens):
                program.grid, program.grid_source = found
                program.sequence = shape_of(tokens)[1]
                return
    tokens = streams[0]
    raise GridError(
        f"the token grid cannot be read off the graph: the {shape_of(tokens)[1]} tokens of {tokens.name} are not made by merging "
        f"axes of an input. Pass grid=(height, width), or (time, height, width), or (-1,) for a sequence such as audio."
    )


def _streams(program: Program) -> list[fx.Node]:
    """What blocks update, the streams of the longest chain first, and among these the longest sequence."""
    by_path = {node.target: node for node in program.all_block_nodes}
    found: dict[fx.Node, tuple[int, int]] = {}
    for chain in program.chains.values():
        block = by_path[chain[0]]
        for position in program.body_of(block).updates:
            tokens: fx.Node = block.args[position]  # type: ignore[assignment]
            found.setdefault(tokens, (-len(chain), -program.hint(shape_of(tokens)[1])))
    return sorted(found, key=found.__getitem__)


def _merged_axes(program: Program, tokens: fx.Node) -> tuple[tuple[Size, ...], str] | None:
    """The axes that a view merges into the axis of the tokens."""
    unclear = None
    size = sympy.sympify(shape_of(tokens)[1])
    terms = sympy.Add.make_args(sympy.expand(size)) if size.free_symbols else ()
    for node, axis in ancestors_along(tokens, 1):
        for source in node.all_input_nodes if node.target in VIEWS else ():
            if has_shape(source) and len(sides := sources_of_axis(shape_of(source), shape_of(node), axis)) >= 2:
                sides = tuple(factor for side in sides for factor in _in_order(program, side))
                if _are_axes_of_the_latent(sides):
                    if terms and not any(equal(math.prod(sides), term) for term in terms):
                        continue  # a table of positions for some of the axes
                    return sides, f"axes merged by {node.name}"
                unclear = unclear or GridError(
                    f"the token grid is not clear: {node.name} merges axes of sizes {sides}, which are not the axes of an "
                    f"input, as with tokens in windows. Pass grid=(height, width) if the tokens are in row-major order."
                )
    if unclear is not None:
        raise unclear
    return None


def _are_axes_of_the_latent(sides: Sequence[Size]) -> bool:
    """Two or three axes that each go with one axis of the inputs, or that are all fixed numbers."""
    symbols: list[set[sympy.Symbol]] = [getattr(side, "free_symbols", set()) for side in sides]
    open_sides = [free for free in symbols if free]
    return len(sides) <= 3 and all(len(s) == 1 for s in open_sides) and len(set().union(*symbols)) == len(open_sides)


def _factors(program: Program, tokens: fx.Node) -> tuple[tuple[Size, ...], str] | None:
    """The factors of a term of the number of tokens that each go with an axis of one input, in the order of these axes."""
    for term in sympy.Add.make_args(sympy.expand(sympy.sympify(shape_of(tokens)[1]))):
        sides = _in_order(program, term)
        if len(sides) in (2, 3):
            return sides, f"sizes of the inputs in {tokens.name}"
    return None


def _in_order(program: Program, product: Size) -> tuple[Size, ...]:
    """The factors of a product in the order of the axes of the input that they belong to, or else the product alone."""
    factors = [factor for factor in sympy.Mul.make_args(sympy.sympify(product)) if factor != 1]
    numbers = [
        sympy.sympify(size_of(value)) for node in program.placeholders if isinstance(value := node.meta["val"], torch.SymInt)
    ]
    for shape in (*map(shape_of, program.placeholders), numbers):
        order = [size.free_symbols for size in map(sympy.sympify, shape)]
        axes = [next((i for i, symbols in enumerate(order) if symbols and f.free_symbols <= symbols), None) for f in factors]
        if len(factors) > 1 and None not in axes and len(set(axes)) == len(axes):
            return tuple(factor for _, factor in sorted(zip(axes, factors, strict=True), key=lambda pair: pair[0]))  # type: ignore[arg-type,return-value]
    return (product,)


def _from_integers(program: Program, tokens: fx.Node) -> tuple[tuple[Size, ...], str] | None:
    """Neighbouring integers among the inputs whose product is the number of tokens."""
    values = [node.meta.get("val") for node in program.placeholders]
    open_sizes = [
        (node.name, size_of(v)) for node, v in zip(program.placeholders, values, strict=True) if isinstance(v, torch.SymInt)
    ]
    fixed = [(name, c) for name, c in zip(program.call.names, program.call.constants, strict=True) if type(c) is int]
    for symbol in _lone_symbols(program, tokens):
        for integers in (open_sizes, fixed):
            for count in (3, 2):
                for start in range(len(integers) - count + 1):
                    names, sides = zip(*integers[start : start + count], strict=True)
                    numbers = tuple(map(program.hint, sides))
                    if math.prod(numbers) == program.hint(symbol) and min(numbers) > 0:
                        grid = sides if integers is open_sizes else read_grid(program, symbol, FixedGrid(numbers))
                        set_equal(program.shape_env, symbol, math.prod(grid))
                        return grid, f"the inputs {', '.join(names)}"
    return None


def _from_positions(program: Program, tokens: fx.Node) -> tuple[tuple[Size, ...], str] | None:
    """A table of positions among the inputs, with a row per token, or per token and text, and a column per axis."""
    found: list[tuple[int, int, int, sympy.Symbol, fx.Node, int]] = []
    length = program.hint(shape_of(tokens)[1])
    for symbol in _lone_symbols(program, tokens):
        count = program.hint(symbol)
        for node in program.placeholders:
            shape = shape_of(node)
            if len(shape) < 2 or program.hint(shape[-1]) not in (2, 3, 4) or program.hint(shape[-2]) not in (count, length):
                continue
            value = None if program.values is None else program.values.of(node)
            sides = None if value is None else sides_of_positions(value, count)
            if sides is not None:
                found.append((min(len(sides), 2), count, len(found), symbol, node, len(sides)))
    if not found:
        return None
    *_, symbol, node, rank = max(found)  # a text that counts its words is a line; a picture is more than that
    if isinstance(rows := shape_of(node)[-2], sympy.Symbol) and rows != symbol and program.hint(rows) == program.hint(symbol):
        set_equal(program.shape_env, rows, symbol)
    grid = read_grid(program, symbol, GridOfPositions(rank), node)
    set_equal(program.shape_env, symbol, math.prod(grid))
    return grid, f"the positions in {node.name}"


def _from_length(program: Program, tokens: fx.Node) -> tuple[tuple[Size, ...], str] | None:
    """The last axis of a latent of (batch, channels, length)."""
    for term in sympy.Add.make_args(sympy.expand(sympy.sympify(shape_of(tokens)[1]))):
        for latent in program.placeholders:
            shape = shape_of(latent)
            last: set[sympy.Basic] = getattr(shape[-1], "free_symbols", set()) if len(shape) == 3 else set()
            if last and term.free_symbols == last and latent.meta["val"].is_floating_point():
                return (term,), f"the length of {latent.name}"
    return None


def _give_grid(program: Program, streams: Sequence[fx.Node], given: tuple[int, ...]) -> None:
    """The grid that the caller gives, put in the place of the number of tokens."""
    program.grid_source = "given by the caller"
    for tokens in streams:
        count = shape_of(tokens)[1]
        if isinstance(count, int):
            if count == math.prod(sides := FixedGrid(given).sides(count)):
                program.grid = sides
                return
            continue
        known = list(_sides_read(program, tokens))
        for grid, sides in known:
            if FixedGrid(given).sides(math.prod(sides)) == sides:
                program.grid = grid
                return
        for symbol in _lone_symbols(program, tokens):
            if math.prod(FixedGrid(given).sides(program.hint(symbol))) == program.hint(symbol):
                program.grid = read_grid(program, symbol, FixedGrid(given))
                set_equal(program.shape_env, symbol, math.prod(program.grid))
                return
        lines = (count,) if known else (count, *sympy.Add.make_args(count))  # the model's own axes are more than a line
        for size in lines if len(given) == 1 or not known else ():
            if size.free_symbols and (line := _as_line(given, size, program.hint(size))):
                program.grid = line
                return
    counts = [f"{program.hint(shape_of(tokens)[1])} ({shape_of(tokens)[1]})" for tokens in streams[:2]]
    for sides in (sides for tokens in streams for _, sides in _sides_read(program, tokens)):
        if math.prod(FixedGrid(given).sides(count := math.prod(sides))) == count:
            raise GridError(
                f"grid {given} is not the grid {sides} that the model makes its {count} tokens of; pass {sides} or none."
            )
    if any(math.prod(sides := FixedGrid(given).sides(n := program.hint(shape_of(t)[1]))) == n for t in streams):
        raise GridError(
            f"grid {given} has the right number of tokens, but it cannot be tied to the sizes of the inputs: the trunk has "
            f"{' or '.join(counts)}. Give the model's own axes, or pass {(math.prod(sides),)} to pool along the sequence."
        )
    raise GridError(f"grid {given} has {math.prod(given)} tokens but the trunk has {' or '.join(counts)}.")


def _as_line(given: tuple[int, ...], size: Size, tokens: int) -> tuple[Size, ...] | None:
    """A grid with one side that is not 1, such as (4, 1), with ``size`` as this side; None if the given one is not of ``tokens``."""
    sides = FixedGrid(given).sides(tokens)
    if math.prod(sides) != tokens or max(sides) != tokens:
        return None
    long = sides.index(tokens)
    return tuple(size if axis == long else 1 for axis in range(len(sides)))


def _sides_read(program: Program, tokens: fx.Node) -> Iterator[tuple[tuple[Size, ...], tuple[int, ...]]]:
    """Grids that are read off the graph, and their sides in this call."""
    for find in (_merged_axes, _factors):
        with contextlib.suppress(GridError):
            if found := find(program, tokens):
                yield found[0], tuple(map(program.hint, found[0]))


def _lone_symbols(program: Program, tokens: fx.Node) -> list[sympy.Symbol]:
    """Symbols that may stand for the number of tokens of the grid: terms of the length of the sequence."""
    terms = sympy.Add.make_args(sympy.sympify(shape_of(tokens)[1]))
    return [term for term in terms if isinstance(term, sympy.Symbol)]


def read_grid(program: Program, count: sympy.Symbol, reader: Any, *inputs: fx.Node) -> tuple[sympy.Symbol, ...]:
    """Put a node at the entry that reads the grid at every call; its sides as symbols."""
    graph, numbers = program.graph, program.hint(count)
    values = [None if program.values is None else program.values.of(node) for node in inputs]
    sides = reader.sides(numbers, *values)
    with graph.inserting_after(program.placeholders[-1]):
        end_of_inputs = graph.call_function(operator.pos, (0,))  # holds the place, so that nodes keep their order
    with graph.inserting_before(end_of_inputs):
        tokens = emit_size(graph, count)
        node = graph.create_node("call_module", GRID, (tokens, *inputs), name="grid")
        node.meta["val"] = tuple(new_size(program.shape_env, f"grid{i}", max(2, side)) for i, side in enumerate(sides))
        for axis in range(len(sides)):
            side = graph.call_function(operator.getitem, (node, axis))
            side.meta["val"] = node.meta["val"][axis]
    graph.erase_node(end_of_inputs)
    program.grid_reader = reader
    return tuple(size_of(side) for side in node.meta["val"])
