"""Of a fused projection only the rows that something reads are computed: Q for queries, K and V for keys, V for a mean."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

from ..program import Program
from ..shapes import shape_of
from .axes import RESHAPES, axis_behind, same
from .base import Pass, remove_dead

aten = torch.ops.aten


class Split(NamedTuple):
    """A change of shape: the argument with its sizes, which of them is that of the units, and their axis in the result."""

    argument: int
    position: int
    axis: int


@dataclass(frozen=True)
class Part:
    """A node that reads the units ``first`` up to ``last`` of an axis, each of ``rows`` rows of the projection.

    ``steps`` lead from the projection to the node's source; ``drops`` says whether the axis goes away.
    """

    node: fx.Node
    steps: tuple[tuple[fx.Node, Split | None], ...]
    axis: int
    first: int
    last: int
    rows: int
    drops: bool


@dataclass(frozen=True)
class Fused:
    """A projection, all its readers, and the rows from ``start`` to ``end`` that hold what they read."""

    graph: fx.Graph
    linear: fx.Node
    parts: tuple[Part, ...]
    start: int
    end: int


@dataclass(frozen=True)
class NarrowLinear(Pass):
    """Exact: the weights are views of the same parameter, so that gradients reach the rows that were used."""

    name: ClassVar[str] = "narrow-linear"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[Fused]:
        for graph in (program.graph, *(body.graph for body in program.bodies.values())):
            for linear in graph.find_nodes(op="call_function", target=aten.linear.default):
                parts = list(_parts(linear, (), len(shape_of(linear)) - 1, 0))
                known = [part for part in parts if part is not None]
                if not known or len(known) < len(parts):
                    continue
                start, end = min(p.first * p.rows for p in known), max(p.last * p.rows for p in known)
                whole = all(start % p.rows == 0 and end % p.rows == 0 for p in known)
                if end - start < shape_of(linear)[-1] and whole:
                    yield Fused(graph, linear, tuple(known), start, end)

    def rewrite(self, program: Program, place: Fused) -> None:
        graph, linear = place.graph, place.linear
        given = dict(zip(("input", "weight", "bias"), linear.args, strict=False)) | linear.kwargs
        made: dict[fx.Node, fx.Node] = {}
        with graph.inserting_before(linear):
            rows = [
                self.make(graph, aten.slice.Tensor, (given[name], 0, place.start, place.end), linear)
                for name in ("weight", "bias")
                if given.get(name) is not None
            ]
            made[linear] = self.make(graph, aten.linear.default, (given["input"], *rows), linear)
        for part in place.parts:
            units, source = (place.end - place.start) // part.rows, linear
            for step, split in part.steps:
                if step not in made:
                    with graph.inserting_before(step):
                        made[step] = self._again(graph, step, made[source], split, units)
                source = step
            with graph.inserting_before(part.node):
                part.node.replace_all_uses_with(self._part(graph, part, made[source], place.start // part.rows, units))
        remove_dead(graph)

    def run(self, program: Program) -> int:
        """As :meth:`Pass.run`, until nothing is left: what was narrowed shows which parts of a part are read."""
        total = 0
        while done := super().run(program):
            total += done
        return total

    def describe(self, place: Fused) -> str:
        return f"{place.linear.name}, rows {place.start} to {place.end}"

    def _again(self, graph: fx.Graph, step: fx.Node, source: fx.Node, split: Split | None, units: int) -> fx.Node:
        args: list[Any] = [source, *step.args[1:]]
        if split is not None:
            sizes = list(args[split.argument])
            sizes[split.position] = units
            args[split.argument] = sizes
        return self.make(graph, step.target, tuple(args), step, **step.kwargs)

    def _part(self, graph: fx.Graph, part: Part, source: fx.Node, start: int, units: int) -> fx.Node:
        first, last = part.first - start, part.last - start
        if part.drops:
            return self.make(graph, aten.select.int, (source, part.axis, first), part.node)
        if last - first == units:
            return source
        return self.make(graph, aten.slice.Tensor, (source, part.axis, first, last), part.node)


Steps = tuple[tuple[fx.Node, Split | None], ...]


def _parts(node: fx.Node, steps: Steps, axis: int, rows: int) -> Iterator[Part | None]:
    """Every reader of a part of the projection; None for one that reads all of it, or in a way that is not understood.

    ``axis`` of ``node`` counts units of ``rows`` rows; 0 if it has not been split yet.
    """
    for user in [user for user in node.users if user.users or user.op == "output"]:
        if user.op != "call_function" or not user.args or user.args[0] is not node or user.all_input_nodes.count(node) != 1:
            yield None
        elif (pieces := _pieces(user, axis)) is not None:
            yield from (Part(piece, steps, axis, first, last, rows or 1, drops) for piece, first, last, drops in pieces)
        elif user.target not in _SEVERAL and (behind := axis_behind(user, node, axis)) is not None:
            stated = Split(1, behind, behind) if user.target in RESHAPES else None
            yield from _parts(user, (*steps, (user, stated)), behind, rows)
        elif rows == 0 and (split := _split(user, axis)) is not None:
            behind_it = len(shape_of(user)) if user.target in RESHAPES else split.axis + len(user.args[2])  # type: ignore[arg-type]
            inner = math.prod(shape_of(user)[split.axis + 1 : behind_it])
            yield from _parts(user, (*steps, (user, split)), split.axis, int(inner))
        else:
            yield None


def _pieces(user: fx.Node, axis: int) -> list[tuple[fx.Node, int, int, bool]] | None:
    """If ``user`` takes ``axis`` to pieces: the nodes that hold one each, from which to which unit, and without the axis."""
    source: Any = user.args[0]
    args: Any = user.args
    size, rank = shape_of(source)[axis], len(shape_of(source))
    at = _DIM_AT.get(user.target)
    if at is None or user.kwargs or not isinstance(size, int) or int(args[at] if len(args) > at else 0) % rank != axis:
        return None
    if user.target == aten.select.int:
        index = int(args[2]) % size
        return [(user, index, index + 1, True)]
    if user.target == aten.slice.Tensor:
        start, end = [*args[2:], None, None][:2]
        if (len(args) > 4 and args[4] != 1) or not all(bound is None or isinstance(bound, int) for bound in (start, end)):
            return None
        first, last, _ = slice(start, None if end == sys.maxsize else end).indices(size)
        return [(user, first, last, False)]
    drops = user.target == aten.unbind.int
    pieces = user.meta["val"]
    sizes = [1 if drops else int(piece.shape[axis]) for piece in pieces]
    bounds = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    if any(reader.target is not operator.getitem for reader in user.users):
        return None
    read = [reader for reader in user.users if reader.users]
    return [(reader, bounds[i], bounds[i + 1], drops) for reader in read for i in [int(reader.args[1])]]  # type: ignore[arg-type]


def _split(node: fx.Node, axis: int) -> Split | None:
    """How ``node`` splits ``axis`` of its source into several, if it does; the first of them counts units of rows."""
    source: Any = node.args[0] if node.args else None
    if node.target == aten.unflatten.int:
        args: Any = node.args
        dim = int(args[1]) % len(shape_of(source))
        return Split(2, 0, dim) if dim == axis else None
    if node.target not in RESHAPES or axis != len(shape_of(source)) - 1:
        return None
    before, after = shape_of(source), shape_of(node)
    for place in range(len(after)):
        if same(math.prod(after[:place]), math.prod(before[:-1])) and same(math.prod(after[place:]), before[-1]):
            return Split(1, place, place)
    return None


_SEVERAL = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
# Where the operators that take an axis to pieces say which axis it is.
_DIM_AT: dict[object, int] = {**dict.fromkeys(_SEVERAL[:3], 2), aten.unbind.int: 1, aten.select.int: 1, aten.slice.Tensor: 1}
