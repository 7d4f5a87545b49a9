"""What each exact saving gave: multiply-adds, and bytes that operators read and write."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from .accounting import Costs, densities_of, sizes_at
from .flops import evaluate
from .program import Program
from .shapes import shape_of
from .sizes import binding


@dataclass(frozen=True)
class Total:
    """Of one forward pass at batch 1, mean over the schedule."""

    multiply_adds: float
    bytes: float

    @classmethod
    def of(cls, program: Program) -> Total:
        """Count a program as it is now."""
        cost, seen = Costs.of(program).total, dict[Any, int]()
        adds = moved = 0.0
        for grid, share in densities_of(program):
            sizes = sizes_at(program, grid)
            blocks = sum(_of_call(program, call, sizes, seen) for call in program.all_block_nodes)
            adds += share * evaluate(cost, sizes)
            moved += share * (_bytes(program.graph, sizes) + blocks)
        return cls(adds, moved)


@dataclass(frozen=True)
class Saving:
    """One pass: how many places it rewrote, and what a forward pass costs less for it."""

    pass_name: str
    places: int
    gflops: float
    megabytes: float

    @classmethod
    def between(cls, name: str, places: int, before: Total, after: Total) -> Saving:
        """The difference between two counts."""
        adds, moved = before.multiply_adds - after.multiply_adds, before.bytes - after.bytes
        return cls(name, places, adds / 1e9, moved / 1e6)


def _of_call(program: Program, call: fx.Node, sizes: Mapping[sympy.Basic, int], seen: dict[Any, int]) -> int:
    body = program.body_of(call)
    bound = {symbol: evaluate(size, sizes) for symbol, size in binding(body, call).items()}
    key = (body.name, tuple(bound.items()))
    if key not in seen:
        seen[key] = _bytes(body.graph, bound)
    return seen[key]


def _bytes(graph: fx.Graph, sizes: Mapping[sympy.Basic, int]) -> int:
    """What the operators of one graph read and write; views move nothing."""
    known: dict[fx.Node, int] = {}

    def size_of_value(node: fx.Node) -> int:
        if node not in known:
            value = node.meta.get("val")
            number = value.element_size() if isinstance(value, torch.Tensor) else 0
            for size in shape_of(node) if number else ():
                number *= size if isinstance(size, int) else sizes.get(size) or evaluate(size, sizes)
            known[node] = number
        return known[node]

    moved = 0
    for node in graph.nodes:
        if node.op == "call_function" and not _is_view(node):
            read = size_of_value(node) if node.target in _GATHERS else sum(map(size_of_value, node.all_input_nodes))
            moved += read + size_of_value(node)
    return moved


_GATHERS = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)  # read as much as they write


def _is_view(node: fx.Node) -> bool:
    """Whether an operator only describes memory of its input anew (as far as its schema tells), or yields no tensor."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem or not isinstance(node.meta.get("val"), torch.Tensor)
    returns = node.target._schema.returns
    return bool(returns) and returns[0].alias_info is not None
