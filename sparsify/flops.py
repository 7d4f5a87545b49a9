"""Count multiply-adds on the graph, as expressions in the sizes of the inputs.

One multiply and one add count as one, as in the paper's GFLOPs. Counted are products of matrices: linear layers,
attention, convolutions, einsum. Everything else in a transformer is small beside them and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import sympy
import torch
from torch import fx

from .program import Program
from .shapes import Size, shape_of
from .sizes import binding

aten = torch.ops.aten


def graph_cost(graph: fx.Graph) -> sympy.Expr:
    """Multiply-adds of the operators in one graph, without the modules it calls."""
    counted = (_COUNTS[node.target](node) for node in graph.nodes if node.target in _COUNTS)
    return sympy.Add(*counted)


class BlockCosts:
    """Multiply-adds of the blocks of one program, as it is now: one expression for all blocks of one body and equal sizes."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._bodies = {name: graph_cost(body.graph) for name, body in program.bodies.items()}
        self._known: dict[object, sympy.Expr] = {}

    def of(self, node: fx.Node) -> sympy.Expr:
        """Those of one block."""
        name, bound = node.meta["body"], binding(self._program.body_of(node), node)
        key = (name, *bound.items())
        if key not in self._known:
            self._known[key] = self._bodies[name].xreplace(bound)
        return self._known[key]


class Numbers:
    """What expressions are at each of several sets of sizes; an expression is evaluated once, however many blocks have it."""

    def __init__(self, sizes: Sequence[Mapping[sympy.Basic, int]]) -> None:
        self._sizes = sizes
        self._known: dict[sympy.Expr, list[int]] = {}

    def of(self, expression: sympy.Expr) -> list[int]:
        """One number for each set of sizes."""
        if expression not in self._known:
            self._known[expression] = [evaluate(expression, at) for at in self._sizes]
        return self._known[expression]


def evaluate(cost: sympy.Expr, sizes: Mapping[sympy.Basic, int]) -> int:
    """The number of multiply-adds for concrete sizes; what depends on values (a count of valid tokens) counts as nothing."""
    known = cost.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()})
    return int(known.xreplace(dict.fromkeys(known.free_symbols, sympy.Integer(0))))


def _product(sizes: tuple[Size, ...]) -> Size:
    return math.prod(sizes)


def _linear(node: fx.Node) -> Size:
    return _product(shape_of(node)) * shape_of(node.args[1])[1]  # type: ignore[arg-type]


def _matmul(node: fx.Node) -> Size:
    return _product(shape_of(node)) * shape_of(node.args[0])[-1]  # type: ignore[arg-type]


def _addmm(node: fx.Node) -> Size:
    return _product(shape_of(node)) * shape_of(node.args[1])[-1]  # type: ignore[arg-type]


def _convolution(node: fx.Node) -> Size:
    return _product(shape_of(node)) * _product(shape_of(node.args[1])[1:])  # type: ignore[arg-type]


def _attention(node: fx.Node) -> Size:
    query, key, value = (shape_of(operand) for operand in node.args[:3])  # type: ignore[arg-type]
    return _product(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(node: fx.Node) -> Size:
    equation, operands = node.args[0], cast(list[fx.Node], node.args[1])
    if len(operands) != 2:
        return 0  # one operand is only moved about
    terms = str(equation).split("->")[0].replace(" ", "").split(",")
    letters = {
        letter: size
        for term, operand in zip(terms, operands, strict=True)
        for letter, size in zip(term, shape_of(operand), strict=False)
    }
    return _product(tuple(letters.values()))


_COUNTS: dict[object, Callable[[fx.Node], Size]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.scaled_dot_product_attention.default: _attention,
    aten.einsum.default: _einsum,
}
PRODUCTS = frozenset(_COUNTS)  # the operators that are counted
