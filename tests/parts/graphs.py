"""Graphs of a few nodes with symbolic sizes, bodies and programs, written by hand."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.program import Body, Program
from sparsify.shapes import annotate, new_size

aten = torch.ops.aten


class Sizes:
    """Symbols of one environment, and nodes whose values are made of them."""

    def __init__(self) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)

    def new(self, *hints: int) -> list[torch.SymInt]:
        return [new_size(self.env, "size", hint) for hint in hints]

    def fake(self, *shape: Any, **options: Any) -> torch.Tensor:
        with self.mode:
            return torch.empty(shape, **options)

    def tensor(self, graph: fx.Graph, name: str, *shape: Any, **options: Any) -> fx.Node:
        """An input of this shape."""
        return self.number(graph, name, self.fake(*shape, **options))

    def number(self, graph: fx.Graph, name: str, value: Any) -> fx.Node:
        """An input that is a size."""
        node = graph.placeholder(name)
        node.meta["val"] = value
        return node


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node with its value."""
    return annotate(graph.call_function(target, args, kwargs))


def expr(size: torch.SymInt) -> sympy.Expr:
    return size.node.expr


def body_of(graph: fx.Graph, output: Any = None, name: str = "block0", **options: Any) -> Body:
    """A body that updates its first input."""
    if not graph.find_nodes(op="output"):
        graph.output(output if output is not None else next(iter(graph.nodes)))
    return Body(name, graph, {}, 0, 0, options.pop("updates", [0]), **options)


def block(graph: fx.Graph, path: str, body: str, *args: fx.Node | int) -> fx.Node:
    """A call of a block whose result has the shape of its first argument."""
    node = graph.create_node("call_module", path, args)
    node.meta.update(body=body, val=args[0].meta["val"])  # type: ignore[union-attr]
    return node


def program_of(graph: fx.Graph, sizes: Sizes, *bodies: Body, **options: Any) -> Program:
    nothing: Any = None
    paths = options.pop("paths", [str(node.target) for node in graph.nodes if "body" in node.meta])
    return Program(graph, {}, {body.name: body for body in bodies}, paths, nothing, nothing, sizes.env, **options)
