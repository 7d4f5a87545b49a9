"""Graphs, bodies and programs of a few nodes, written by hand with the shapes that a capture would give them; nothing is captured."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.program import Body, Program
from sparsify.shapes import annotate, new_size, size_of

aten = torch.ops.aten


class Sketch:
    """A graph that grows, with a shape environment of its own or that of another: graphs of one program may share theirs."""

    def __init__(self, like: Sketch | None = None) -> None:
        self.env: ShapeEnv = ShapeEnv() if like is None else like.env
        self.mode: FakeTensorMode = FakeTensorMode(shape_env=self.env) if like is None else like.mode
        self.graph = fx.Graph()

    def size(self, hint: int) -> Any:
        """A size that is left open."""
        return new_size(self.env, "size", hint)

    def sizes(self, *hints: int) -> list[Any]:
        """As many sizes that are left open."""
        return [self.size(hint) for hint in hints]

    def fake(self, *shape: Any, **options: Any) -> Any:
        """A fake tensor; ``options`` are those of ``torch.empty``."""
        with self.mode:
            return torch.empty(shape, **options)

    def input(self, name: str, *shape: Any, **options: Any) -> fx.Node:
        return _with(self.graph.placeholder(name), self.fake(*shape, **options))

    def number(self, name: str, size: Any) -> fx.Node:
        """An input that is a size."""
        return _with(self.graph.placeholder(name), size)

    def attribute(self, name: str, *shape: Any, **options: Any) -> fx.Node:
        """A parameter, buffer or constant."""
        return _with(self.graph.get_attr(name), self.fake(*shape, **options))

    def __call__(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """A call of an operator, with what it yields."""
        return annotate(self.graph.call_function(target, args, options), self.mode)

    def items(self, node: fx.Node, *indices: int) -> list[fx.Node]:
        """Some of several results."""
        values = node.meta["val"]
        return [_with(self.graph.call_function(operator.getitem, (node, index)), values[index]) for index in indices]

    def block(self, path: str, body: Body | str, *args: Any) -> fx.Node:
        """A call of a block by its body, or by the name of one that updates its first input; several results need ``items``."""
        name, updates = (body, [0]) if isinstance(body, str) else (body.name, body.updates)
        node = self.graph.create_node("call_module", path, args)
        node.meta["body"] = name
        values = [args[position].meta["val"] for position in updates]
        fresh = tuple(self.fake(*value.shape, dtype=value.dtype) for value in values)
        return _with(node, fresh[0] if len(fresh) == 1 else fresh)

    def output(self, *results: Any) -> fx.Graph:
        self.graph.output(results[0] if len(results) == 1 else results)
        return self.graph

    def body(self, name: str = "block0", *results: Any, moving: Sequence[Any] = (), **options: Any) -> Body:
        """The body that yields ``results``, or what was made its output; its first input has the tokens unless ``options`` differ."""
        if results:
            self.output(*results)
        given: dict[str, Any] = {"constants": {}, "tokens": 0, "token_output": 0, "updates": [0]} | options
        return Body(name, self.graph, moving=frozenset(map(size_of, moving)), **given)

    def program(self, *bodies: Body, **options: Any) -> Program:
        """The program of this outer graph, whose trunk is all blocks that it calls."""
        paths = [str(node.target) for node in self.graph.nodes if "body" in node.meta]
        given: dict[str, Any] = {"constants": {}, "paths": paths, "call": None, "output_spec": None} | options
        return Program(self.graph, bodies={body.name: body for body in bodies}, shape_env=self.env, **given)


def _with(node: fx.Node, value: Any) -> fx.Node:
    node.meta["val"] = value
    return node


def of_bodies(*bodies: Body) -> Program:
    """A program whose outer graph is empty."""
    outer = Sketch()
    outer.output(outer.input("x", 1))
    return outer.program(*bodies)


def of_graphs(**graphs: Any) -> Any:
    """Stands for a program of which nothing is asked but its graphs."""
    return SimpleNamespace(graphs=graphs, skips=[])


def run(graph: fx.Graph, *values: Any, **attributes: torch.Tensor) -> Any:
    """What a graph without blocks yields; ``attributes`` are what its ``get_attr`` nodes read."""
    root = nn.Module()
    for name, value in attributes.items():
        setattr(root, name, value)
    graph.lint()
    return fx.Interpreter(root, graph=graph).run(*values)


def targets(graph: fx.Graph) -> list[Any]:
    """The operators of a graph, in order."""
    return [node.target for node in graph.nodes if node.op == "call_function"]


def expr(size: torch.SymInt) -> sympy.Expr:
    """The expression of a size, as torch has it."""
    return size.node.expr


def numbers(sizes: Sequence[Any], values: Mapping[Any, int]) -> list[int]:
    """Sizes with numbers put in for symbols."""
    return [int(sympy.sympify(size).xreplace(dict(values))) for size in sizes]
