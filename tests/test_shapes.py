"""Sizes as nodes: their value, and an order of terms that does not depend on what symbols are called."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify import RewriteError
from sparsify.shapes import emit_size, new_size, shape_of


def _program(names: tuple[str, str]) -> str:
    """A graph that computes (rows + 1) * columns of its two inputs, as text; sizes are called after ``names``."""
    env, graph = ShapeEnv(), fx.Graph()
    rows, columns = (new_size(env, name, hint) for name, hint in zip(names, (5, 7), strict=True))
    for name, size in (("a", rows), ("b", columns)):
        with FakeTensorMode(shape_env=env):
            graph.placeholder(name).meta["val"] = torch.empty(2, size)
    first, second = graph.nodes
    wanted = (shape_of(first)[1] + 1) * shape_of(second)[1]
    graph.output(emit_size(graph, wanted))
    module = fx.GraphModule({}, graph)
    assert module(torch.empty(2, 3), torch.empty(2, 4)) == 16
    return str(module.code)


def test_the_order_of_terms_is_that_of_the_inputs_whatever_sizes_are_called() -> None:
    codes = {_program((first, second)) for first, second in (("x", "y"), ("y", "x"), ("a", "z"), ("q", "p"), ("r", "b"))}
    assert len(codes) == 1


def test_a_size_of_no_input_is_refused() -> None:
    env, graph = ShapeEnv(), fx.Graph()
    graph.placeholder("a")
    with pytest.raises(RewriteError, match="is no size of an input"):
        emit_size(graph, new_size(env, "rows", 5).node.expr)
