"""Under which input sizes a captured graph is valid: the guards met while tracing, checked once per set of sizes."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from .program import Program
from .shapes import shape_of


class Guards:
    """The conditions on input shapes and dtypes under which one captured graph computes what the model computes."""

    def __init__(self, program: Program) -> None:
        self._names = [node.name for node in program.placeholders]
        self._shapes = [shape_of(node) for node in program.placeholders]
        self._kinds = [(node.meta["val"].dtype, node.meta["val"].device.type) for node in program.placeholders]
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
        self._checked: dict[tuple[object, ...], str | None] = {}

    def violation(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """What is different about these inputs, or None if the graph is valid for them."""
        key = tuple((tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors)
        if key not in self._checked:
            self._checked[key] = self._check(tensors)
        return self._checked[key]

    def _check(self, tensors: Sequence[torch.Tensor]) -> str | None:
        sizes: dict[sympy.Basic, sympy.Basic] = {}
        expressions: list[tuple[str, sympy.Basic, int]] = []
        for name, shape, kind, tensor in zip(self._names, self._shapes, self._kinds, tensors, strict=True):
            if (tensor.dtype, tensor.device.type) != kind:
                return f"{name} is {tensor.dtype} on {tensor.device.type}, captured as {kind[0]} on {kind[1]}"
            if tensor.ndim != len(shape):
                return f"{name} has {tensor.ndim} dimensions, captured with {len(shape)}"
            for axis, (size, actual) in enumerate(zip(shape, tensor.shape, strict=True)):
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
