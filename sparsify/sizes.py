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
        elif isinstance(inner, sympy.Mul) and len(inner.args) == 2 and inner.args[0].is_number and inner.args[1].is_symbol:
            number, symbol = inner.args  # a side that is known to be a multiple of a number
            bound.setdefault(symbol, sympy.sympify(outer) / number)
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
        for symbol, size in (fact.args, fact.args[::-1]) if isinstance(fact, sympy.Eq) else ():
            if isinstance(symbol, sympy.Symbol):
                set_equal(env, symbol, size)
                break


def set_equal(env: ShapeEnv, symbol: sympy.Symbol, size: Size) -> None:
    """Write ``size`` wherever the graph's sizes have ``symbol``, unless either is known in terms of the other already."""
    known = env.simplify(sympy.sympify(size))
    if env.simplify(symbol) == symbol and symbol not in known.free_symbols:
        env.replacements[symbol] = known
        env._update_version_counter()


def mismatch(env: ShapeEnv, body: Body, call: fx.Node) -> str | None:
    """Two sizes of a call that must be equal inside the block and are not, as a sentence, or None."""
    bound = binding(body, call)
    for inner, outer in _pairs(body, call):
        expected = sympy.sympify(inner)
        if expected.is_number:
            continue  # fixed inside: a guard on the inputs sees to it
        if expected.free_symbols <= set(bound) and not _is_known_equal(env, sympy.sympify(outer), expected.xreplace(bound)):
            return (
                f"{call.name} gives a size of {outer} where {body.name} takes {inner}, {expected.xreplace(bound)} at this call"
            )
    return None


def _is_known_equal(env: ShapeEnv, a: sympy.Expr, b: sympy.Expr) -> bool:
    a, b = env.simplify(a), env.simplify(b)
    if sympy.expand(a - b) == 0:
        return True
    known = [guard.expr.args for guard in env.guards if isinstance(guard.expr, sympy.Eq)]
    asked = {_equality(a, b), _equality(b, a)}  # which side a term is on depends on the names of symbols
    return not asked.isdisjoint(_equality(env.simplify(x), env.simplify(y)) for x, y in known)


def _equality(a: sympy.Expr, b: sympy.Expr) -> sympy.Basic:
    """``a == b`` without common terms and factors, so that it ties a symbol to a symbol where it can."""
    parts = sympy.Add.make_args(sympy.expand(a - b))
    if len(parts) == 2:
        a, b = parts[0], -parts[1]
    numerator, denominator = sympy.fraction(sympy.cancel(a / b)) if b != 0 else (a, b)
    return sympy.Eq(numerator, denominator)


def _pairs(body: Body, call: fx.Node) -> list[tuple[Size, Size]]:
    pairs: list[tuple[Size, Size]] = []
    for argument, placeholder in zip(call.args, body.placeholders, strict=True):
        value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
        pairs += zip(dimensions(placeholder.meta["val"]), dimensions(value), strict=True)
    return pairs
