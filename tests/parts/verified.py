"""A legal program of a few nodes for the verifier, and what it says once something is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from sparsify import VerificationError
from sparsify.program import Body, Program
from sparsify.verify import verify

from .sketch import Sketch, aten


class Made:
    """Two blocks of one body, which takes tokens (2, n, 8) and a vector (2, 8); behind them one operator."""

    def __init__(self, stage: str = "sparse") -> None:
        self.sketch, self.inner = Sketch(), Sketch()
        self.graph = self.sketch.graph
        self.n, self.inside = self.sketch.size(12), self.inner.size(12)
        self.x, self.c = self.sketch.input("x", 2, self.n, 8), self.sketch.input("c", 2, 8)
        body = self.body("vector", 2, 8)
        self.first = self.sketch.block("blocks.0", body, self.x, self.c)
        self.second = self.sketch.block("blocks.1", body, self.first, self.c)
        self.last = self.sketch(aten.neg.default, self.second)
        self.output = self.graph.output((self.last,))
        self.program: Program = self.sketch.program(body, stage=stage)

    def body(self, name: str, *shape: Any) -> Body:
        """A body of the tokens and another input of this name and shape."""
        sketch = Sketch(self.inner)
        x = sketch.input("tokens", 2, self.inside, 8)
        sketch.input(name, *shape)
        return sketch.body("block0", sketch(aten.relu.default, x))

    def insert(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node before the output, with a value."""
        with self.graph.inserting_before(self.output):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = self.last.meta["val"]
        return node

    def refused(self, message: str, name: str = "some-pass") -> str:
        with pytest.raises(VerificationError, match=message) as caught:
            verify(self.program, name)
        return str(caught.value)
