"""Small graphs and programs written node by node, with the shapes that a capture would give them; no model is captured."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.passes import InsertDensity, density, split
from sparsify.program import DENSITY, Body, Program
from sparsify.shapes import annotate, new_size, size_of

aten = torch.ops.aten


class Sketch:
    """A graph with a shape environment of its own, or that of another: what operators yield is then known from there."""

    def __init__(self, like: Sketch | None = None) -> None:
        self.env = ShapeEnv() if like is None else like.env
        self.mode = FakeTensorMode(shape_env=self.env) if like is None else like.mode
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
        return Program(self.graph, bodies=by_name, call=nothing, output_spec=nothing, shape_env=self.env, **given)


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
        if target == DENSITY:
            return self._attributes[DENSITY]
        if target in self._program.prompts:
            return _Body(self._program.prompts[target], "", self._attributes).run(*args)
        body = self._program.bodies[next(node for node in self._program.all_block_nodes if node.target == target).meta["body"]]
        return _Body(
            body.graph, f"{target}.", {**self._attributes, **{f"{target}.{k}": v for k, v in body.constants.items()}}
        ).run(*args)


class _Body(fx.Interpreter):
    def __init__(self, graph: fx.Graph, prefix: str, attributes: Mapping[str, torch.Tensor]) -> None:
        super().__init__(nn.Module(), graph=graph)
        self._prefix, self._attributes = prefix, attributes

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[f"{self._prefix}{target}"]


def run_program(program: Program, *values: Any, **attributes: Any) -> Any:
    """What a program yields, its blocks and prompt graphs included; ``attributes`` by their names in the model, with ``__`` for a dot.

    The pooled grid is the attribute ``sparsify_density``.
    """
    known = {name.replace("__", "."): value for name, value in attributes.items()}
    return _Model(program, known | program.constants).run(*values)


def targets(graph: fx.Graph) -> list[Any]:
    """What the nodes call, in order."""
    return [node.target for node in graph.nodes if node.op == "call_function"]


@functools.cache
def kept_sizes(*hints: int, role: str = "block") -> tuple[Any, ...]:
    """A sketch of these sizes and the sizes, the same for all who ask: what operators make of them is then known.

    Blocks and the graph around them have sizes of their own, by their ``role``.
    """
    sketch = Sketch()
    return sketch, *map(sketch.size, hints)


@pytest.fixture(autouse=True)
def shared_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that import it: sizes that passes make are the same in all tests, so that what operators yield is known from earlier ones."""
    for module in (density, split):
        monkeypatch.setattr(module, "new_size", _shared_size)


@functools.cache
def _shared_size(env: ShapeEnv, name: str, hint: int) -> Any:
    return new_size(env, name, hint)


def dense_program(
    body: Body, *, blocks: int = 1, before: int = 0, after: int = 0, schedule: Any = None, **options: Any
) -> Program:
    """Blocks in a row on the tokens of an image of 3 by 5, with so many rows of text before and behind them.

    Its inputs are ``image`` (2, 4, height, width), ``time`` (2,) and, where there are such rows, ``text`` (2, rows, 4). A
    block with a second input is given a table with a row for every token of the image.
    """
    first, h, w = kept_sizes(3, 5, role="outer")
    outer = Sketch(first)
    image, time = outer.input("image", 2, 4, h, w), outer.input("time", 2)
    text = outer.input("text", 2, before + after, 4) if before + after else None
    x = outer(aten.transpose.int, outer(aten.flatten.using_ints, image, 2), 1, 2)
    if text is not None:
        rows = [
            outer(aten.slice.Tensor, text, 1, *ends) for ends in ((0, before), (before, before + after)) if ends[0] < ends[1]
        ]
        x = outer(aten.cat.default, [*rows[: before > 0], x, *rows[before > 0 :]], 1)
    table = [outer(aten.flatten.using_ints, outer(aten.select.int, image, 0, 0), 1)] if len(body.placeholders) > 1 else []
    table = [outer(aten.transpose.int, node, 0, 1) for node in table]
    for index in range(blocks):
        x = outer.block(f"blocks.{index}", body, x, *table)
    outer.done(x)
    program = outer.program(body, **({"grid": (size_of(h), size_of(w)), "timestep": time.name} | options))
    if schedule is not None:
        assert InsertDensity(schedule).run(program) == 1
    return program
