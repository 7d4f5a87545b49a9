"""A fused projection with its readers, and which rows of it the pass leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sparsify.passes import NarrowLinear
from sparsify.shapes import shape_of

from .sketch import Sketch, aten, of_bodies, run, targets

LINEAR, SLICE, SELECT = aten.linear.default, aten.slice.Tensor, aten.select.int
Readers = Callable[[Sketch, fx.Node], Sequence[fx.Node]]


class Projection:
    """Tokens (2, N, 4) mapped to 12 rows, and what reads them."""

    def __init__(self, readers: Readers, bias: bool = True, width: int = 12) -> None:
        self.sketch = sketch = Sketch()
        self.width, self.tokens = width, sketch.size(7)
        self.x, weight, shift = sketch.input("x", 2, self.tokens, 4), sketch.input("w", width, 4), sketch.input("b", width)
        sketch(aten.sym_size.int, self.x, 1)
        self.linear = sketch(LINEAR, self.x, weight, *([shift] if bias else []))
        sketch.output(*readers(sketch, self.linear))

    def ran(self) -> list[torch.Tensor]:
        torch.manual_seed(0)
        found = run(self.sketch.graph, torch.rand(2, 5, 4), torch.rand(self.width, 4), torch.rand(self.width))
        return list(found) if isinstance(found, tuple) else [found]

    def narrowed(self) -> tuple[list[Any], tuple[int, int] | None]:
        """The operators behind the map, and which rows of the weight it has, None if all; no result changes."""
        before = self.ran()
        count = NarrowLinear().run(of_bodies(self.sketch.body(moving=[self.tokens])))
        after = self.ran()
        for one, other in zip(before, after, strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-6)
        (linear,) = self.sketch.graph.find_nodes(op="call_function", target=LINEAR)
        operators = targets(self.sketch.graph)
        behind = operators[operators.index(LINEAR) + 1 :]
        if count == 0:
            assert linear is self.linear
            return behind, None
        (rows,) = {rows_of(node) for node in linear.args[1:]}
        assert all(node.users for node in self.sketch.graph.nodes if node.op == "call_function")
        assert linear.meta["provenance"].pass_name == "narrow-linear"
        assert shape_of(linear)[-1] == rows[1] - rows[0]
        return behind, rows


def rows_of(node: Any) -> tuple[int, int]:
    """Which rows of a parameter slices of it are, one after the other."""
    first, count = 0, shape_of(node)[0]
    while node.target is SLICE:
        node, axis, start, _ = node.args
        assert axis == 0
        first += start
    return first, first + count


def tokens_of(sketch: Sketch) -> fx.Node:
    """How many tokens there are."""
    node: fx.Node = sketch.graph.find_nodes(op="call_function", target=aten.sym_size.int)[0]
    return node


def chunks(*read: int, of: int = 3) -> Readers:
    return lambda sketch, node: sketch.items(sketch(aten.chunk.default, node, of, -1), *read)


def exp(sketch: Sketch, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [sketch(aten.exp.default, node) for node in nodes]
