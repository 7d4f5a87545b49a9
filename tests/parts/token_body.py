"""A body in the making whose inputs follow its tokens, or do not."""

from __future__ import annotations

from typing import Any

from torch import fx

from sparsify.attention import (
    SDPA,
)
from sparsify.program import Body

from .sketch import Sketch, aten


class Made:
    """A body of tokens (2, n, 8), a text (2, m, 8), a table (n, 8), a vector (2, 8), their number and a square (n, n)."""

    def __init__(self) -> None:
        self.sketch = sketch = Sketch()
        self.graph = sketch.graph
        self.n, self.m = sketch.sizes(12, 5)
        self.x, self.text = sketch.input("x", 2, self.n, 8), sketch.input("text", 2, self.m, 8)
        self.table, self.vector = sketch.input("table", self.n, 8), sketch.input("vector", 2, 8)
        self.count = sketch.number("count", self.n)
        self.square = sketch.input("square", self.n, self.n)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if target is not SDPA:
            return self.sketch(target, *args, **kwargs)
        node = self.graph.call_function(target, args, kwargs)  # not run: that takes long the first time
        node.meta["val"] = args[0].meta["val"]
        return node

    def heads(self, node: fx.Node, heads: int = 2) -> fx.Node:
        return self(aten.transpose.int, self(aten.unflatten.int, node, 2, [heads, -1]), 1, 2)

    def attend(self, query: fx.Node, key: fx.Node, *rest: Any, **named: Any) -> fx.Node:
        return self(SDPA, self.heads(query), self.heads(key), self.heads(key), *rest, **named)

    @property
    def body(self) -> Body:
        return self.sketch.body(moving=[self.n])
