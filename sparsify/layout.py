"""Where the token grid sits in the axes of a tensor: folded into one axis or spread over several, beside text or alone.

An axis of ``B*h*w`` holds a grid behind a folded batch, one of ``s + h*w`` holds text beside it. Both are read off the
symbolic size; on which side the text stands is read off the concatenation that joined them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from .errors import RewriteError
from .grid_axes import cat_axis
from .program import Program, block_behind
from .shapes import Size, shape_of, size_of
from .sizes import binding

aten = torch.ops.aten


@dataclass(frozen=True)
class TokenAxis:
    """One axis of a tensor that holds (part of) the token grid.

    Attributes:
        axis: counted from the front.
        sides: which sides of the grid it holds, in row-major order.
        before: how many rows that are no tokens of the grid (text, registers) stand before them.
        after: how many stand behind.
    """

    axis: int
    sides: tuple[int, ...]
    before: Size = 0
    after: Size = 0


Layout = tuple[TokenAxis, ...]


class Layouts:
    """The layouts of the nodes of one outer graph, and the sizes they have once the grid is pooled."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._marks = [sympy.Symbol(f"side{index}", integer=True, positive=True) for index in range(len(program.grid))]
        self._sided = list(zip(self._marks, program.grid, strict=True))
        self._total = math.prod(program.grid)
        self._fixed = bool(program.grid) and isinstance(self._total, int)
        self._lengths = {self._total, program.sequence} if isinstance(program.sequence, int) else {self._total}

    def holds_grid(self, node: fx.Node) -> bool:
        """Whether a tensor has the whole grid in its axes."""
        shape = shape_of(node)
        if self._fixed:
            return any(size in self._lengths for size in shape)
        marks = set().union(*(self._marked(size).free_symbols for size in shape))
        open_sides = [{m for m, side in pairs if not isinstance(side, int)} for pairs in (self._sided[-2:], self._sided)]
        return (open_sides[0] or open_sides[1]) <= marks  # the time axis of a video may be folded into the batch

    def sides_in(self, size: Size) -> list[int]:
        """Which sides of the grid a size depends on."""
        if self._fixed:
            return list(range(len(self._marks))) if size in self._lengths else []
        free = self._marked(size).free_symbols
        return [index for index, mark in enumerate(self._marks) if mark in free]

    def is_aligned(self, size: Size) -> bool:
        """Whether a size depends on the grid."""
        return bool(self.sides_in(size))

    def pooled(self, size: Size) -> sympy.Expr:
        """What becomes of a size when the dense grid gives way to the pooled one."""
        if not self.is_aligned(size):
            return sympy.sympify(size)
        program = self._program
        pooled = [size_of(node.meta["val"]) for node in program.pooled_nodes]
        try:
            rest, folded, sides = self._taken_apart(str(size), size)
        except RewriteError:  # a size inside of an operator, a flag: any function of the sides
            return self._marked(size).xreplace(dict(zip(self._marks, pooled, strict=True)))
        return sympy.sympify(rest + folded * math.prod(pooled[side] for side in sides))

    def of(self, node: fx.Node) -> Layout:
        """The axes of a tensor that hold the grid; none if it does not follow the tokens.

        Raises:
            RewriteError: a size depends on the grid in a way that is no folding of it.
        """
        return self._of(node)

    @functools.cache  # noqa: B019  # lives as long as one pass over one program
    def _of(self, node: fx.Node) -> Layout:
        axes = []
        for axis, size in enumerate(shape_of(node)):
            if not self.is_aligned(size):
                continue
            rest, _, sides = self._taken_apart(node.name, size)
            before = self._rows_before(node, axis, set()) if rest != 0 else 0
            if before is None:
                before = self._known.get(rest)
            if before is None:
                raise RewriteError(
                    f"{node.name} holds {rest} rows beside the tokens of the grid, and it is not clear on which side"
                )
            axes.append(TokenAxis(axis, sides, before, size_of_sum(rest, before)))
        return tuple(axes)

    @functools.cached_property
    def _known(self) -> dict[Size, Size]:
        """By the number of rows beside the grid, how many stand before it: in the trunk's tokens and inside its blocks."""
        known: dict[Size, Size] = dict(self._program.rows_before)
        for call in self._program.block_nodes:
            for position in self._program.body_of(call).updates:
                tokens = call.args[position]
                for axis, size in enumerate(shape_of(tokens)):  # type: ignore[arg-type]
                    if self.is_aligned(size) and (rest := self._taken_apart(str(tokens), size)[0]) != 0:
                        before = self._rows_before(tokens, axis, set())  # type: ignore[arg-type]
                        known.update({} if before is None else {rest: before})
        for call in {self._program.body_of(call).name: call for call in self._program.block_nodes}.values():
            for rest, before in self._joined_inside(call, known):
                known.setdefault(rest, before)
        return known

    def _joined_inside(self, call: fx.Node, known: dict[Size, Size]) -> list[tuple[Size, Size]]:
        """The rows beside and before the grid wherever the block of this call joins text to its tokens."""
        body = self._program.body_of(call)
        bound = binding(body, call)
        found = []
        for node in body.graph.find_nodes(op="call_function", target=aten.cat.default):
            dim = cat_axis(node)
            parts = [sympy.sympify(shape_of(part)[dim]).xreplace(bound) for part in node.args[0]]
            moving = [index for index, part in enumerate(parts) if self.is_aligned(part)]
            if len(moving) == 1:
                (at,) = moving
                before, after = sympy.Add(*parts[:at]), sympy.Add(*parts[at + 1 :])
                with_them = self._taken_apart(node.name, parts[at])[0]  # rows that go with the tokens: a history
                if with_them == 0 or with_them in known:
                    found.append((before + with_them + after, before + (known[with_them] if with_them != 0 else 0)))
        return found

    def _marked(self, size: Size) -> sympy.Expr:
        """The size with the sides of the grid written as marks."""
        expression = sympy.sympify(size)
        if self._fixed or expression.is_number:
            return expression
        marks = {side: mark for mark, side in self._sided if not isinstance(side, int)}
        return sympy.expand(expression.xreplace(marks))

    def _taken_apart(self, name: str, size: Size) -> tuple[Size, Size, tuple[int, ...]]:
        """In ``rest + folded * side * side`` the rows beside the grid, what is folded with it, and which sides these are."""
        if self._fixed:
            return size - self._total, 1, tuple(range(len(self._marks)))
        terms = sympy.Add.make_args(self._marked(size))
        moving = [term for term in terms if term.free_symbols & set(self._marks)]
        rest = sympy.Add(*(term for term in terms if term not in moving))
        factors = list(sympy.Mul.make_args(moving[0])) if len(moving) == 1 else []
        sides = [index for index, mark in enumerate(self._marks) if mark in factors]
        folded = sympy.Mul(*(factor for factor in factors if factor not in self._marks))
        for index in reversed(range(min(sides, default=0))):  # a side that is a number is no symbol to look for
            side = self._program.grid[index]
            number = folded.as_coeff_Mul()[0]
            if isinstance(side, int) and number % side == 0:
                sides.insert(0, index)
                folded = folded / side
        while sides and sides[-1] + 1 < len(self._marks) and self._program.grid[sides[-1] + 1] == 1:
            sides.append(sides[-1] + 1)  # of one column
        nested = bool(folded.free_symbols & set(self._marks))
        repeated = sum(factor in self._marks for factor in factors) > len(sides)
        if not sides or nested or repeated or (folded != 1 and rest != 0) or sides != list(range(sides[0], sides[-1] + 1)):
            raise RewriteError(f"the size {size} of {name} depends on the token grid in a way that is not understood")
        return rest, folded, tuple(sides)

    def _rows_before(self, node: fx.Node, axis: int, seen: set[fx.Node]) -> Size | None:
        """How many rows stand before the grid on this axis, from the concatenation it came from."""
        size = shape_of(node)[axis]
        if node in seen or len(seen) > 400:
            return None
        seen.add(node)
        if node.target == aten.cat.default:
            parts: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
            if cat_axis(node) == axis:
                rows: Size = 0
                for part in parts:
                    if self.is_aligned(part_size := shape_of(part)[axis]):
                        inner = 0 if self._taken_apart(part.name, part_size)[0] == 0 else self._rows_before(part, axis, seen)
                        return None if inner is None else rows + inner
                    rows = rows + part_size
        for source in self._sources(node):
            shape = shape_of(source)
            if size in shape and (found := self._rows_before(source, shape.index(size), seen)) is not None:
                return found
        return None

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """Where a node's rows come from; for a block's result, the input that it is the next version of."""
        block, output = block_behind(node)
        if block is not None:
            return [block.args[self._program.body_of(block).updates[output]]]  # type: ignore[list-item]
        return node.all_input_nodes


def size_of_sum(rest: Size, before: Size) -> Size:
    """The rows behind the grid: what is left of those beside it."""
    after = sympy.expand(sympy.sympify(rest) - before)
    return int(after) if after.is_number else after
