"""Read the token grid off the graph: it is where the axes of the latent are merged into one axis of tokens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import sympy
from torch import fx

from .errors import GridError
from .program import Program
from .shapes import Size, shape_of


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
    for node in _ancestors_with(tokens, count):
        for source in node.all_input_nodes:
            if _has_shape(source) and (sides := _merged(shape_of(source), shape_of(node), count)):
                return sides, f"axes merged by {node.name}"
    raise GridError(
        f"the token grid cannot be read off the graph: no view merges axes into the {count} tokens of {tokens.name}. "
        f"Pass grid=(height, width), or (time, height, width)."
    )


def _checked(given: Sequence[int], tokens: fx.Node, count: Size) -> tuple[int, ...]:
    sides = tuple(given)
    if not 1 <= len(sides) <= 3 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise GridError(f"grid is {given!r}; it must be one to three integers of at least 1, such as (32, 32).")
    hint = tokens.meta["val"].shape[1]
    actual = hint if isinstance(hint, int) else hint.node.hint
    if math.prod(sides) != actual:
        raise GridError(f"grid {sides} has {math.prod(sides)} tokens but the trunk has {actual} ({count}).")
    return sides


def _ancestors_with(start: fx.Node, count: Size) -> Iterator[fx.Node]:
    """Nodes that ``start`` is computed from and that still have the token count in their shape, nearest first."""
    queue, seen = deque([start]), {start}
    while queue:
        node = queue.popleft()
        yield node
        for source in node.all_input_nodes:
            if source not in seen and _has_shape(source) and count in shape_of(source):
                seen.add(source)
                queue.append(source)


def _has_shape(node: fx.Node) -> bool:
    return node.op in ("call_function", "placeholder") and hasattr(node.meta.get("val"), "shape")


def _merged(before: Sequence[Size], after: Sequence[Size], count: Size) -> tuple[Size, ...] | None:
    """The two or more neighbouring axes of ``before`` that became the one axis of size ``count`` of ``after``."""
    start = 0
    for size in after:
        end, product = start, sympy.Integer(1)
        while end < len(before) and not _equal(product, size):
            product = product * before[end]
            end += 1
        if not _equal(product, size):
            return None
        sides = tuple(side for side in before[start:end] if side != 1)
        if _equal(size, count) and len(sides) >= 2:
            return sides
        start = end
    return None


def _equal(a: Size, b: Size) -> bool:
    return bool(a == b or sympy.expand(a - b) == 0)
