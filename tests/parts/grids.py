"""An outer graph in the making whose tensors hold a token grid."""

from __future__ import annotations

import operator
from typing import Any

import sympy
from torch import fx

from sparsify.layout import Layouts
from sparsify.program import DENSITY, Program

from .sketch import Sketch, aten, expr


class Made:
    """An outer graph whose token grid is time x height x width, or the last of these, with a text of some rows."""

    def __init__(self, axes: int = 2, fixed: tuple[int, ...] = (), sequence: Any = 0) -> None:
        self.sketch = Sketch()
        self.graph = self.sketch.graph
        self.b, self.s, self.t, self.h, self.w = self.sketch.sizes(2, 5, 3, 4, 6)
        grid = fixed or tuple(map(expr, (self.t, self.h, self.w)[3 - axes :]))
        self.program: Program = self.sketch.program(grid=grid, sequence=sequence)

    @property
    def layouts(self) -> Layouts:
        return Layouts(self.program)

    def tensor(self, *shape: Any) -> fx.Node:
        return self.sketch.input(f"x{len(self.graph.nodes)}", *shape)

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        return self.sketch(target, *args)

    def cat(self, *parts: fx.Node, axis: int | None = 1) -> fx.Node:
        return self(aten.cat.default, list(parts), *(() if axis is None else (axis,)))

    def pool(self, *hints: int) -> tuple[sympy.Expr, ...]:
        """Insert the density node; the sides of the pooled grid."""
        density = self.graph.create_node("call_module", DENSITY)
        pooled = self.sketch.sizes(*hints)
        for side in reversed(range(len(hints))):  # not in their order
            self.graph.call_function(operator.getitem, (density, side)).meta["val"] = pooled[side]
        return tuple(map(expr, pooled))
