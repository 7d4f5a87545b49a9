"""Graphs of a few nodes, written by hand, with fake tensors whose sizes are numbers or symbols."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.program import Body, Program
from sparsify.shapes import annotate, new_size, size_of

aten = torch.ops.aten


class Tiny:
    """A graph that grows; ``env`` and ``mode`` may be shared by the graphs of one program."""

    def __init__(self, like: Tiny | None = None) -> None:
        self.env = like.env if like else ShapeEnv()
        self.mode = like.mode if like else FakeTensorMode(shape_env=self.env)
        self.graph = fx.Graph()

    def size(self, name: str, hint: int) -> torch.SymInt:
        return new_size(self.env, name, hint)

    def fake(self, *sizes: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
        with self.mode:
            return torch.empty(sizes, dtype=dtype, device=device)

    def input(self, name: str, *sizes: Any, dtype: torch.dtype = torch.float32) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.fake(*sizes, dtype=dtype)
        return node

    def number(self, name: str, size: torch.SymInt) -> fx.Node:
        """An input that is a size."""
        node = self.graph.placeholder(name)
        node.meta["val"] = size
        return node

    def parameter(self, name: str, *sizes: int) -> fx.Node:
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake(*sizes)
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return annotate(self.graph.call_function(target, args, kwargs), self.mode)

    def items(self, node: fx.Node, *indices: int) -> list[fx.Node]:
        """Some of several results."""
        made = []
        for index in indices:
            made.append(item := self.graph.call_function(operator.getitem, (node, index)))
            item.meta["val"] = node.meta["val"][index]
        return made

    def block(self, path: str, body: str, *args: Any) -> fx.Node:
        """A call of a block; it yields the next version of its first argument."""
        node = self.graph.call_module(path, args)
        node.meta["body"], node.meta["val"] = body, self.fake(*args[0].meta["val"].shape)
        return node

    def output(self, *nodes: fx.Node) -> fx.Graph:
        self.graph.output(nodes[0] if len(nodes) == 1 else nodes)
        return self.graph

    def body(self, name: str = "block0", moving: Sequence[torch.SymInt] = (), **options: Any) -> Body:
        options = {"constants": {}, "tokens": 0, "token_output": 0, "updates": [0]} | options
        return Body(name, self.graph, moving=frozenset(map(size_of, moving)), **options)

    def program(self, bodies: Sequence[Body] = (), **options: Any) -> Program:
        paths = [str(node.target) for node in self.graph.nodes if "body" in node.meta]
        named = {body.name: body for body in bodies}
        return Program(self.graph, {}, named, paths, None, None, self.env, **options)  # type: ignore[arg-type]


def of_bodies(*bodies: Body) -> Program:
    """A program whose outer graph is empty."""
    outer = Tiny()
    outer.output(outer.input("x", 1))
    return outer.program(bodies)


def run(graph: fx.Graph, *inputs: Any, parameters: Mapping[str, torch.Tensor] | None = None) -> Any:
    """What a graph without blocks gives."""
    root = nn.Module()
    for name, value in (parameters or {}).items():
        setattr(root, name, value)
    graph.lint()
    return fx.Interpreter(root, graph=graph).run(*inputs)


def targets(graph: fx.Graph) -> list[Any]:
    """The operators of a graph, in order."""
    return [node.target for node in graph.nodes if node.op == "call_function"]


def numbers(sizes: Sequence[Any], values: Mapping[Any, int]) -> list[int]:
    """Sizes with numbers put in for symbols."""
    return [int(sympy.sympify(size).xreplace(dict(values))) for size in sizes]
