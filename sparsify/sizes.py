"""Tie the sizes that a block was captured with to the sizes of the outer graph that it is called with."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .errors import CaptureError
from .program import Body
from .shapes import Size, size_of


def dimensions(value: Any) -> tuple[Size, ...]:
    """The sizes that a flat input brings: those of a tensor's axes, or itself."""
    if isinstance(value, torch.Tensor):
        return tuple(map(size_of, value.shape))
    return (size_of(value),)


def binding(body: Body, call: fx.Node) -> dict[sympy.Basic, sympy.Basic]:
    """What each size symbol of a body is at one call of it, in the symbols of the outer graph."""
    bound: dict[sympy.Basic, sympy.Basic] = {}
    for inner, outer in _pairs(body, call):
        if isinstance(inner, sympy.Symbol):
            bound.setdefault(inner, sympy.sympify(outer))
    return bound


def bind_sizes(env: ShapeEnv, body: Body, call: fx.Node) -> None:
    """Let the outer graph know what the block knows: which sizes are equal, and what it took for granted about them.

    Blocks are opaque while the outer graph is traced, so that what ties a table of positions to the tokens, say, is
    only seen inside. It becomes a guard outside, and equal sizes become one symbol.

    Raises:
        CaptureError: the sizes of the call contradict those of the block.
    """
    bound = binding(body, call)
    facts = [
        _equality(sympy.sympify(outer), sympy.sympify(inner).xreplace(bound))
        for inner, outer in _pairs(body, call)
        if sympy.sympify(inner).free_symbols <= set(bound)  # the names of the block's symbols may be those of others outside
    ]
    facts += [c.xreplace(bound) for c in body.conditions if isinstance(c, sympy.Basic) and c.free_symbols <= set(bound)]
    for fact in dict.fromkeys(facts):
        if fact == sympy.true:
            continue
        if fact == sympy.false or not env.evaluate_expr(fact):
            raise CaptureError(f"{call.target} is called with sizes that it was not captured for: {fact} does not hold.")


def _equality(a: sympy.Expr, b: sympy.Expr) -> sympy.Basic:
    """``a == b`` without common factors, so that it ties a symbol to a symbol where it can."""
    numerator, denominator = sympy.fraction(sympy.cancel(a / b)) if b != 0 else (a, b)
    return sympy.Eq(numerator, denominator)


def _pairs(body: Body, call: fx.Node) -> list[tuple[Size, Size]]:
    pairs: list[tuple[Size, Size]] = []
    for argument, placeholder in zip(call.args, body.placeholders, strict=True):
        value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
        pairs += zip(dimensions(placeholder.meta["val"]), dimensions(value), strict=True)
    return pairs
