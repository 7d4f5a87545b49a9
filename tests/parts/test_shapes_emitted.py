"""Sizes as nodes of a graph, and new ones."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from sparsify import RewriteError
from sparsify.shapes import emit_size, new_size, size_of, symbolic

from .sketch import Sketch, aten, expr


def test_new_sizes_are_tied_to_no_other() -> None:
    sketch = Sketch()
    first, second = new_size(sketch.env, "rows", 5), new_size(sketch.env, "rows", 5)
    assert size_of(first) != size_of(second)
    assert [each.node.hint for each in (first, second)] == [5, 5]
    assert first == second, "which is a guard"
    assert len(sketch.env.guards) == 1


def test_numbers_are_emitted_as_they_are() -> None:
    graph = fx.Graph()
    assert emit_size(graph, 3) == 3
    found = emit_size(graph, sympy.Integer(4))
    assert found == 4 and isinstance(found, int)
    assert not list(graph.nodes)


EXPRESSIONS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a, lambda a, b: b, lambda a, b: a + b, lambda a, b: a * b - 3, lambda a, b: (a + 1) * b,
    lambda a, b: FloorDiv(a + b, 2) if isinstance(a, sympy.Basic) else (a + b) // 2, lambda a, b: a**2 + 2 * b,
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("as_numbers", [False, True])
def test_an_expression_is_computed_from_the_sizes_of_the_inputs(expression: Callable[..., Any], as_numbers: bool) -> None:
    sketch = Sketch()
    rows, columns = sketch.sizes(5, 7)
    if as_numbers:
        sketch.number("n", rows), sketch.number("m", columns)
    else:
        sketch.input("x", 2, rows, 3), sketch.input("y", rows, columns)
    node = emit_size(sketch.graph, expression(expr(rows), expr(columns)))
    assert isinstance(node, fx.Node)
    assert all("val" in each.meta for each in sketch.graph.nodes)
    assert sympy.expand(size_of(node.meta["val"]) - expression(expr(rows), expr(columns))) == 0
    sketch.graph.output(node)
    module = fx.GraphModule({}, sketch.graph)
    found = module(11, 13) if as_numbers else module(torch.empty(2, 11, 3), torch.empty(11, 13))
    assert found == expression(11, 13)


def test_a_size_that_is_a_node_is_that_node_and_no_block_is_asked() -> None:
    sketch = Sketch()
    side = sketch.size(5)
    module = sketch.graph.create_node("call_module", "grid")
    module.meta["val"] = side
    with pytest.raises(RewriteError, match="is no size of an input"):
        emit_size(sketch.graph, expr(side))
    of_grid = sketch.graph.call_function(operator.getitem, (module, 0))
    of_grid.meta["val"] = side
    assert emit_size(sketch.graph, expr(side)) is of_grid


def test_an_axis_of_an_input_goes_before_a_node() -> None:
    sketch = Sketch()
    side = sketch.size(5)
    sketch.number("n", side)
    x = sketch.input("x", 2, side)
    node = emit_size(sketch.graph, expr(side))
    assert isinstance(node, fx.Node) and (node.target, node.args) == (aten.sym_size.int, (x, 1))


def test_nodes_that_have_a_value_keep_it() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    x = sketch.input("x", rows)
    other = sketch.graph.call_function(aten.neg.default, (x,))
    other.meta["val"] = "its own"
    assert emit_size(sketch.graph, expr(rows) + 1)
    assert other.meta["val"] == "its own"


def test_symbolic_sizes_for_shapes_of_fake_tensors() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    for number in (4, sympy.Integer(4)):
        found = symbolic(sketch.env, number, 9)
        assert found == 4 and isinstance(found, int)
    twice = symbolic(sketch.env, 2 * expr(rows), 10)
    assert isinstance(twice, torch.SymInt) and size_of(twice) == 2 * expr(rows) and twice.node.hint == 10
