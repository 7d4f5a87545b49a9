"""Read the token grid off the graph: it is where the axes of the latent are merged into one axis of tokens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import sympy
import torch
from torch import fx

from .errors import GridError
from .program import Program
from .shapes import Size, shape_of

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten._unsafe_view.default, aten.unflatten.int)


def find_grid(program: Program, given: Sequence[int] | None = None) -> tuple[tuple[Size, ...], str]:
    """The dense token grid in row-major order, (h, w), (t, h, w) or (n,), and where it was found.

    A view that merges axes is row-major by definition, so its input's axes are the grid in the right order.

    Raises:
        GridError: no merge was found, or the ``given`` grid does not have as many tokens as the trunk.
    """
    tokens = program.tokens_in(program.block_nodes[0])
    count = shape_of(tokens)[1]
    if given is not None:
        return _checked(given, tokens, count), "given by the caller"
    for node, axis in _ancestors_along(tokens, 1):
        for source in node.all_input_nodes if node.target in _VIEWS else ():
            if _has_shape(source) and len(sides := _sources_of_axis(shape_of(source), shape_of(node), axis)) >= 2:
                if not _are_axes_of_the_latent(sides):
                    raise GridError(
                        f"the token grid is not clear: {node.name} merges axes of sizes {sides}, which are not the axes of an "
                        f"input, as with tokens in windows. Pass grid=(height, width) if the tokens are in row-major order."
                    )
                return sides, f"axes merged by {node.name}"
    raise GridError(
        f"the token grid cannot be read off the graph: no view merges axes into the {count} tokens of {tokens.name}. "
        f"Pass grid=(height, width), or (time, height, width)."
    )


def _are_axes_of_the_latent(sides: Sequence[Size]) -> bool:
    """Two or three axes that each go with one axis of the inputs, or that are all fixed numbers."""
    symbols: list[set[sympy.Symbol]] = [getattr(side, "free_symbols", set()) for side in sides]
    fixed = not any(symbols)
    return len(sides) <= 3 and (fixed or (all(len(s) == 1 for s in symbols) and len(set().union(*symbols)) == len(sides)))


def _checked(given: Sequence[int], tokens: fx.Node, count: Size) -> tuple[int, ...]:
    sides = tuple(given)
    if not 1 <= len(sides) <= 3 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise GridError(f"grid is {given!r}; it must be one to three integers of at least 1, such as (32, 32).")
    hint = tokens.meta["val"].shape[1]
    actual = hint if isinstance(hint, int) else hint.node.hint
    if math.prod(sides) != actual:
        raise GridError(f"grid {sides} has {math.prod(sides)} tokens but the trunk has {actual} ({count}).")
    return sides


def _ancestors_along(start: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    """Nodes that ``start`` is computed from, nearest first, with the axis that became its axis ``axis``."""
    queue, seen = deque([(start, axis)]), {start}
    while queue:
        node, axis = queue.popleft()
        yield node, axis
        for source in node.all_input_nodes:
            if source in seen or not _has_shape(source):
                continue
            came_from = _axis_in(source, node, axis)
            if came_from is not None and _equal(shape_of(source)[came_from], shape_of(node)[axis]):
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
    if node.target in _VIEWS:
        before = shape_of(source)
        sides = _sources_of_axis(before, shape_of(node), axis)
        return before.index(sides[0]) if len(sides) == 1 else None
    from_the_end = axis - len(shape_of(node)) + rank  # elementwise operators line up their last axes
    return from_the_end if from_the_end >= 0 else None


def _has_shape(node: fx.Node) -> bool:
    return node.op in ("call_function", "placeholder") and hasattr(node.meta.get("val"), "shape")


def _sources_of_axis(before: Sequence[Size], after: Sequence[Size], axis: int) -> tuple[Size, ...]:
    """The neighbouring axes of ``before``, without those of size 1, that a view made axis ``axis`` of ``after`` of."""
    start = 0
    for position, size in enumerate(after):
        end, product = start, sympy.Integer(1)
        while end < len(before) and not _equal(product, size):
            product = product * before[end]
            end += 1
        if not _equal(product, size):
            return ()
        if position == axis:
            return tuple(side for side in before[start:end] if side != 1)
        start = end
    return ()


def _equal(a: Size, b: Size) -> bool:
    return bool(a == b or sympy.expand(a - b) == 0)
