"""One outer graph whose values may be dense or sparse: two blocks with an operator in between."""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import fx

from sparsify import Density
from sparsify.passes import InsertDensity, Levels
from sparsify.passes.base import copy_program
from sparsify.program import Program
from sparsify.shapes import size_of

from .sketch import Sketch, aten

TEXT = 5
POOLED = {2: (3, 4), 3: (2, 3, 4)}


@functools.cache
def built(sizes: tuple[int, ...], fixed: bool, text: str, **density: Any) -> tuple[Sketch, Program, dict[str, str]]:
    """The program of a :class:`Model` and the names of its nodes; copies of it share what is known of its sizes."""
    sketch = Sketch()
    sides = list(sizes) if fixed else sketch.sizes(*sizes)
    image = sketch.input("image", 2, 4, *sides)
    sketch.input("t", 2)
    other = sketch.input("text", 2, TEXT, 4)
    tokens = sketch(aten.transpose.int, sketch(aten.flatten.using_ints, image, 2, -1), 1, 2)
    if text:
        tokens = sketch(aten.cat.default, [other, tokens] if text == "before" else [tokens, other], 1)
    table = sketch(aten.mean.dim, tokens, [0])
    mask = sketch(aten.matmul.default, table, sketch(aten.transpose.int, table, 0, 1))
    first = sketch.block("blocks.0", "block0", tokens, table)
    between = sketch(aten.mul.Tensor, first, 2.0)
    second = sketch.block("blocks.1", "block0", between, table)
    sketch.output(second)
    body = Sketch(sketch)
    rows = body.size(7)
    body.output(body(aten.add.Tensor, body.input("x", 2, rows, 4), body.input("table", rows, 4)))
    program = sketch.program(body.body(moving=[rows]), grid=tuple(map(size_of, sides)), timestep="t")
    InsertDensity(Density.constant(**density)).run(program)
    nodes = {"image": image, "text": other, "tokens": tokens, "table": table, "mask": mask}
    nodes |= {"first": first, "between": between, "second": second}
    return sketch, program, {key: node.name for key, node in nodes.items()}


class Model:
    """An image's tokens (2, h * w, 4) through two blocks with an operator in between; the grid in symbols or numbers."""

    image: fx.Node
    text: fx.Node
    tokens: fx.Node
    table: fx.Node
    mask: fx.Node
    first: fx.Node
    between: fx.Node
    second: fx.Node

    def __init__(self, *grid: int, fixed: bool = False, text: str = "", **density: Any) -> None:
        base, program, names = built(grid, fixed, text, **(density or {"grid": POOLED[len(grid)]}))
        self.program = copy_program(program)
        self.sketch = Sketch(base)
        self.sketch.graph = self.program.graph
        nodes = {node.name: node for node in self.program.graph.nodes}
        vars(self).update({key: nodes[name] for key, name in names.items()})
        self.marked: list[tuple[fx.Node, fx.Node]] = []
        self.levels = Levels(self.program, self._mark)

    def _mark(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        self.marked.append((node, origin))
        return node

    def at(self, node: fx.Node) -> Any:
        return self.program.graph.inserting_before(node)

    @property
    def ends(self) -> tuple[list[Any], list[Any]]:
        """The dense and the pooled sides, as nodes."""
        return self.program.grid_nodes, list(self.program.pooled_nodes)

    def pooled(self, count: int = 0) -> Any:
        """How many sparse tokens there are, with as many other rows."""
        pooled = [size_of(node.meta["val"]) for node in self.program.pooled_nodes]
        return count + math.prod(pooled)


def moved(model: Model) -> fx.Node:
    """The first block, sparse."""
    with model.at(model.first):
        args = [model.levels.at_sparse(argument) for argument in model.first.args]
    model.levels.move_block(model.first, args)
    return model.first
