"""Small graphs and programs written node by node, with the shapes that a capture would give them; no model is captured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.program import Body, Program
from sparsify.shapes import annotate, new_size, size_of

aten = torch.ops.aten


class Sketch:
    """A graph with a shape environment of its own."""

    def __init__(self) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self.graph = fx.Graph()

    def size(self, hint: int) -> Any:
        """A size that is left open."""
        return new_size(self.env, "size", hint)

    def fake(self, *shape: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
        with self.mode:
            return torch.empty(shape, dtype=dtype, device=device)

    def input(self, name: str, *shape: Any, **options: Any) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.fake(*shape, **options)
        return node

    def number(self, name: str, size: Any) -> fx.Node:
        """An input that is a size."""
        node = self.graph.placeholder(name)
        node.meta["val"] = size
        return node

    def attribute(self, name: str, *shape: Any, **options: Any) -> fx.Node:
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake(*shape, **options)
        return node

    def __call__(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        return annotate(self.graph.call_function(target, args, options), self.mode)

    def block(self, path: str, body: Body, *args: fx.Node) -> fx.Node:
        """A call of a block; with several results its users are ``operator.getitem`` nodes."""
        node = self.graph.create_node("call_module", path, args, name=path.replace(".", "_"))
        values = [args[position].meta["val"] for position in body.updates]
        fresh = tuple(self.fake(*value.shape, dtype=value.dtype) for value in values)
        node.meta |= {"body": body.name, "val": fresh[0] if len(fresh) == 1 else fresh}
        return node

    def done(self, *results: Any) -> fx.Graph:
        self.graph.output(results[0] if len(results) == 1 else results)
        return self.graph

    def body(self, name: str, *results: Any, moving: Any = (), **options: Any) -> Body:
        """The body that yields ``results``; its first input has the tokens unless ``options`` say otherwise."""
        given: dict[str, Any] = {"constants": {}, "tokens": 0, "token_output": 0, "updates": [0]} | options
        return Body(name, self.done(*results), moving=frozenset(size_of(size) for size in moving), **given)

    def program(self, *bodies: Body, **options: Any) -> Program:
        """The program of this outer graph, whose trunk is all blocks that it calls."""
        paths = [str(node.target) for node in self.graph.nodes if "body" in node.meta]
        given: dict[str, Any] = {"constants": {}, "paths": paths} | options
        nothing = cast(Any, None)
        by_name = {body.name: body for body in bodies}
        return Program(
            self.graph, bodies=by_name, call=nothing, output_spec=nothing, shape_env=self.env, **given
        )


def run(graph: fx.Graph, *values: Any, **attributes: torch.Tensor) -> Any:
    """What a graph yields; ``attributes`` are what its ``get_attr`` nodes read."""
    module = nn.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    return fx.Interpreter(module, graph=graph).run(*values)


class _Model(fx.Interpreter):
    def __init__(self, program: Program, attributes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self._program, self._attributes = program, attributes

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._program.prompts:
            return _Body(self._program.prompts[target], "", self._attributes).run(*args)
        body = self._program.bodies[next(node for node in self._program.all_block_nodes if node.target == target).meta["body"]]
        return _Body(body.graph, f"{target}.", {**self._attributes, **{f"{target}.{k}": v for k, v in body.constants.items()}}).run(*args)


class _Body(fx.Interpreter):
    def __init__(self, graph: fx.Graph, prefix: str, attributes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=graph)
        self._prefix, self._attributes = prefix, attributes

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[f"{self._prefix}{target}"]


def run_program(program: Program, *values: Any, **attributes: Any) -> Any:
    """What a program yields, its blocks and prompt graphs included; ``attributes`` by their names in the model, with ``__`` for a dot."""
    known = {name.replace("__", "."): value for name, value in attributes.items()}
    return _Model(program, known | program.constants).run(*values)


def targets(graph: fx.Graph) -> list[Any]:
    """What the nodes call, in order."""
    return [node.target for node in graph.nodes if node.op == "call_function"]
