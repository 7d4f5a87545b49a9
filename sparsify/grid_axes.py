"""Follow one axis of a tensor back through the graph, to where axes of an input were merged into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import sympy
import torch
from torch import fx

from .shapes import Size, shape_of

aten = torch.ops.aten

VIEWS = (aten.reshape.default, aten.flatten.using_ints, aten._unsafe_view.default, aten.unflatten.int)


def ancestors_along(start: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    """Nodes that ``start`` is computed from, nearest first, with the axis that became its axis ``axis``."""
    queue, seen = deque([(start, axis)]), {start}
    while queue:
        node, axis = queue.popleft()
        yield node, axis
        for source in node.all_input_nodes:
            if source in seen or not has_shape(source):
                continue
            if node.target == aten.cat.default and axis == cat_axis(node):  # text or registers beside the tokens
                seen.add(source)
                queue.append((source, axis))
                continue
            came_from = _axis_in(source, node, axis)
            if came_from is not None and equal(shape_of(source)[came_from], shape_of(node)[axis]):
                seen.add(source)
                queue.append((source, came_from))


def _axis_in(source: fx.Node, node: fx.Node, axis: int) -> int | None:
    """Which axis of ``source`` is axis ``axis`` of ``node``."""
    rank = len(shape_of(source))
    if node.target == aten.transpose.int:
        swap = [int(dim) % rank for dim in node.args[1:3]]  # type: ignore[arg-type]
        return {swap[0]: swap[1], swap[1]: swap[0]}.get(axis, axis)
    if node.target == aten.permute.default:
        return int(node.args[1][axis]) % rank  # type: ignore[index,arg-type]
    if node.target in VIEWS:
        before = shape_of(source)
        sides = sources_of_axis(before, shape_of(node), axis)
        return before.index(sides[0]) if len(sides) == 1 else None
    from_the_end = axis - len(shape_of(node)) + rank  # elementwise operators line up their last axes
    return from_the_end if from_the_end >= 0 else None


def cat_axis(node: fx.Node) -> int:
    """The axis that a concatenation joins along."""
    return int(node.args[1]) % len(shape_of(node)) if len(node.args) > 1 else 0  # type: ignore[arg-type]


def has_shape(node: fx.Node) -> bool:
    """Whether a node is an input or a result that has a shape."""
    return node.op in ("call_function", "placeholder") and hasattr(node.meta.get("val"), "shape")


def sources_of_axis(before: Sequence[Size], after: Sequence[Size], axis: int) -> tuple[Size, ...]:
    """The neighbouring axes of ``before``, without those of size 1, that a view made axis ``axis`` of ``after`` of."""
    start = 0
    for position, size in enumerate(after):
        end, product = start, sympy.Integer(1)
        while end < len(before) and not equal(product, size):
            product = product * before[end]
            end += 1
        if not equal(product, size):
            return ()
        if position == axis:
            return tuple(side for side in before[start:end] if side != 1)
        start = end
    return ()


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are the same however they are written."""
    return bool(a == b or sympy.expand(a - b) == 0)
