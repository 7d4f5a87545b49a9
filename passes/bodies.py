"""Bodies of their own for some blocks: a copy that knows the sides of its token grid, and further inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from ..attention import aligned_inputs, moving_nodes
from ..density import Grid
from ..errors import RewriteError
from ..program import Body, Program
from ..shapes import annotate, new_size, size_of, symbolic


def copy_on_grid(body: Body, name: str, grid: Grid, step: int = 1) -> Body:
    """A copy of a body that takes the sides of its token grid as further inputs.

    Inside, the number of tokens is the product of these sides, so that code can take tokens apart into rows and columns, and
    into windows of ``step`` rows or columns. The inputs are the last ones that are not for keys; :func:`give` gives them.

    Args:
        body: whose blocks see tokens of one grid alone.
        name: of the copy.
        grid: one that the tokens can lie on.
        step: what every side is a multiple of; the pass that asks has to make sure of it.

    Raises:
        RewriteError: not one size alone follows the tokens, or the block attends to other tokens.
    """
    if len(body.moving) != 1 or body.twins:
        raise RewriteError(f"{body.name} has {len(body.moving)} sizes that follow its tokens, and one was expected")
    mode = body.token_node.meta["val"].fake_mode
    env = mode.shape_env
    hints = [max(2, side // step) for side in grid]  # tracing takes a size of 1 for special
    steps = [new_size(env, f"side{axis}", hint) for axis, hint in enumerate(hints)]
    sides = [symbolic(env, step * size_of(some), step * hint) for some, hint in zip(steps, hints, strict=True)]
    count = math.prod(size_of(side) for side in sides)
    (symbol,) = body.moving
    resize = _Resize(symbol, count, math.prod(step * hint for hint in hints))
    placeholders, followers = body.placeholders, moving_nodes(body)
    aligned = {placeholders[position] for position in aligned_inputs(body)}
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in placeholders:
        made[node] = graph.node_copy(node)
        if node in aligned:
            made[node].meta["val"] = resize(node.meta["val"])
    for axis, side in enumerate(sides):
        graph.placeholder(f"side{axis}").meta["val"] = side
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        made[node] = graph.node_copy(node, made.__getitem__)
        if node in followers and node.op == "call_function":
            annotate(made[node], mode)
    conditions = [c.xreplace({symbol: count}) if isinstance(c, sympy.Basic) else c for c in body.conditions]
    moving, given = frozenset(map(size_of, steps)), body.given + len(sides)
    return dataclasses.replace(body, name=name, graph=graph, moving=moving, given=given, conditions=conditions)


def give(program: Program, block: fx.Node, body: Body, values: Sequence[Any] = (), keys: Sequence[Any] = ()) -> None:
    """Let a block run another body.

    Args:
        program: whose block it is.
        block: its node; it runs a body with fewer inputs so far.
        body: the other one.
        values: what that takes besides, behind the inputs that are not for keys: nodes of the outer graph, or numbers.
        keys: what it takes for keys, behind everything else.
    """
    end = len(block.args) - len(program.body_of(block).twins)
    block.args = (*block.args[:end], *values, *block.args[end:], *keys)
    block.meta["body"] = body.name
    program.bodies[body.name] = body
    program.annotate_block(block)


class _Resize:
    """Values with another size in place of a symbol."""

    def __init__(self, symbol: sympy.Symbol, size: sympy.Expr, hint: int) -> None:
        self._new, self._symbol, self._hint = {symbol: size}, symbol, hint

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            with value.fake_mode:  # type: ignore[attr-defined]
                return value.new_empty([self(size) for size in value.shape])
        size = sympy.sympify(size_of(value))
        if self._symbol not in size.free_symbols:
            return value
        env = value.node.shape_env
        hints = env.backed_var_to_val | {self._symbol: self._hint}
        return symbolic(env, size.xreplace(self._new), int(size.xreplace(hints)))
