"""Under which input sizes a captured graph is valid: the guards met while tracing, checked once per set of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from .calls import Leaf
from .program import Program
from .sizes import dimensions


class Guards:
    """The conditions on input shapes and dtypes under which one captured graph computes what the model computes."""

    def __init__(self, program: Program) -> None:
        self._names = [node.name for node in program.placeholders]
        self._shapes = [dimensions(node.meta["val"]) for node in program.placeholders]
        self._kinds = [_kind(node.meta["val"]) for node in program.placeholders]
        env = program.shape_env
        symbols = {
            symbol for shape in self._shapes for size in shape if isinstance(size, sympy.Expr) for symbol in size.free_symbols
        }
        self._least = {symbol: int(env.var_to_range[symbol].lower) for symbol in symbols if symbol in env.var_to_range}
        conditions = {env.simplify(guard.expr) for guard in env.guards}
        # Conditions on sizes that the graph makes up itself (the pooled grid) are not the inputs' business.
        self._conditions = [
            c for c in conditions if isinstance(c, sympy.Basic) and c.free_symbols and c.free_symbols <= symbols
        ]
        self._symbols = symbols
        self._checked: dict[tuple[object, ...], str | None] = {}

    def add(self, conditions: Sequence[sympy.Basic]) -> None:
        """Take on further conditions; those on other sizes than the inputs' are left out."""
        self._conditions += [c for c in conditions if c.free_symbols and c.free_symbols <= self._symbols]

    def violation(self, inputs: Sequence[Leaf]) -> str | None:
        """What is different about these inputs, or None if the graph is valid for them."""
        key = tuple((x.shape, x.dtype, x.device.type) if isinstance(x, torch.Tensor) else x for x in inputs)
        if key not in self._checked:
            self._checked[key] = self._check(inputs)
        return self._checked[key]

    def _check(self, inputs: Sequence[Leaf]) -> str | None:
        sizes: dict[sympy.Basic, sympy.Basic] = {}
        expressions: list[tuple[str, sympy.Basic, int]] = []
        for name, shape, kind, given in zip(self._names, self._shapes, self._kinds, inputs, strict=True):
            if _kind(given) != kind:
                return f"{name} is {_kind(given)}, captured as {kind}"
            actual_shape = dimensions(given)
            if len(actual_shape) != len(shape):
                return f"{name} has {len(actual_shape)} dimensions, captured with {len(shape)}"
            for axis, (size, actual) in enumerate(zip(shape, actual_shape, strict=True)):
                if isinstance(size, sympy.Symbol):
                    if actual < self._least.get(size, 0):  # tracing takes sizes of 0 and 1 for special
                        return f"{name} has size {actual} on axis {axis}, captured for {self._least[size]} and more"
                    if sizes.setdefault(size, sympy.Integer(actual)) != actual:
                        return f"{name} has size {actual} on axis {axis}, but that of another input is {sizes[size]}"
                else:
                    expressions.append((f"{name} on axis {axis}", sympy.sympify(size), actual))
        for where, expression, actual in expressions:
            if (expected := expression.xreplace(sizes)) != actual:
                return f"{where} has size {actual}, captured with {expected}"
        return next((f"{c} does not hold" for c in self._conditions if c.xreplace(sizes) == sympy.false), None)


def _kind(value: Any) -> str:
    return f"{value.dtype} on {value.device.type}" if isinstance(value, torch.Tensor) else "an integer"
