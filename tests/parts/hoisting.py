"""A block some of whose values do not need its tokens, and what a program of it gives."""

from __future__ import annotations

import operator
from typing import Any

import torch

from sparsify.program import Body, Program, Twin

from .running import run_program
from .sketch import Sketch, aten

TABLE = torch.linspace(-1, 1, 4)


class Block:
    """Tokens (2, N, 4), timestep (2, 8), text (2, M, 4), the number N; with ``keys`` the tokens come once more."""

    def __init__(self, keys: bool = False) -> None:
        self.sketch = sketch = Sketch()
        self.tokens, self.rows = sketch.size(7), sketch.size(5)
        self.x, self.t = sketch.input("x", 2, self.tokens, 4), sketch.input("t", 2, 8)
        self.text, self.count = sketch.input("text", 2, self.rows, 4), sketch.number("count", self.tokens)
        self.key = sketch.input("key", 2, self.tokens, 4) if keys else None
        self.weight, self.table = sketch.attribute("weight", 4, 8), sketch.attribute("table", 4)
        self.linear = sketch(aten.linear.default, self.t, self.weight)
        self.shifted = sketch(aten.add.Tensor, self.linear, self.table)
        self.row = sketch(aten.unsqueeze.default, self.shifted, 1)
        self.length = sketch(aten.sym_size.int, self.text, 1)
        self.width = sketch(operator.mul, self.length, 4)
        self.flat = sketch(aten.reshape.default, self.text, [2, self.width])
        self.sum = sketch(aten.sum.dim_IntList, self.flat, [1], True)
        self.both = sketch(aten.mul.Tensor, self.shifted, self.sum)
        self.spread = sketch(aten.expand.default, self.row, [2, self.count, 4])
        self.added = sketch(aten.add.Tensor, self.x if self.key is None else self.key, self.spread)
        self.result = sketch(aten.add.Tensor, self.added, sketch(aten.unsqueeze.default, self.both, 1))
        sketch.output(self.result)

    def body(self) -> Body:
        twins = (Twin(0, "key"),) if self.key is not None else ()
        return self.sketch.body(moving=[self.tokens], constants={"table": TABLE}, twins=twins)

    def program(self, depth: int = 2) -> Program:
        outer = Sketch(self.sketch)
        tokens, rows = outer.size(6), outer.size(3)
        x, text = outer.input("x", 2, tokens, 4), outer.input("text", 2, rows, 4)
        times, count = [outer.input(f"t{index}", 2, 8) for index in range(depth)], outer.number("count", tokens)
        for index, t in enumerate(times):
            x = outer.block(f"blocks.{index}", "block0", x, t, text, count, *([x] if self.key is not None else []))
        outer.output(x)
        return outer.program(self.body())


def ran(program: Program, rows: int = 5) -> Any:
    """What the program gives, where every block has a weight of its own."""
    torch.manual_seed(0)
    calls = program.block_nodes
    weights = {f"blocks__{index}__weight": torch.rand(4, 8) for index in range(len(calls))}
    inputs = [torch.rand(2, 6, 4), torch.rand(2, rows, 4), *(torch.rand(2, 8) for _ in calls), 6]
    return run_program(program, *inputs, **weights)
