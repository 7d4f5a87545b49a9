"""Symbolic shapes of nodes: computed for new nodes, and recomputed for all of them by the verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from sympy import Expr
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from .errors import RewriteError

Size: TypeAlias = Any  # a number or a sympy expression; sympy has no types


def compute_value(node: fx.Node, values: Mapping[fx.Node, Any], mode: FakeTensorMode) -> Any:
    """What a ``call_function`` node yields, as a fake tensor or symbolic size, from the values of its arguments."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    with mode, torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def annotate(node: fx.Node) -> fx.Node:
    """Give a new ``call_function`` node its value, from the values its arguments claim."""
    values = {argument: argument.meta["val"] for argument in node.all_input_nodes}
    fakes = [value for value in pytree.tree_leaves(list(values.values())) if isinstance(value, torch.Tensor)]
    sizes = [value for value in values.values() if isinstance(value, torch.SymInt)]
    if fakes:
        node.meta["val"] = compute_value(node, values, fakes[0].fake_mode)  # type: ignore[attr-defined]
    elif sizes:
        node.meta["val"] = node.target(*fx.node.map_arg(node.args, values.__getitem__))  # type: ignore[operator]
    return node


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a node's tensor as numbers and sympy expressions."""
    return tuple(size_of(size) for size in node.meta["val"].shape)


def size_of(size: int | torch.SymInt) -> Size:
    """One size as a number, or as a sympy expression with what is known about its symbols put in."""
    if isinstance(size, int):
        return size
    expression = size.node.shape_env.simplify(size.node.expr)
    return int(expression) if expression.is_number else expression


def new_size(env: ShapeEnv, name: str, hint: int) -> torch.SymInt:
    """A size that is not tied to any other, such as the number of sparse tokens."""
    source = ConstantSource(f"{name}_{len(env.backed_var_to_val)}")
    symbol = env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    size = env.create_symintnode(symbol, hint=hint, source=source)
    return size  # type: ignore[return-value]


def emit_size(graph: fx.Graph, size: Size) -> fx.Node | int:
    """Nodes that compute ``size`` from the sizes of the graph's inputs, at the current insertion point.

    Raises:
        RewriteError: the expression has a symbol that is no input's size.
    """
    if isinstance(size, int):
        return size
    symbols = {}
    for symbol in sorted(size.free_symbols, key=str):
        place = _place_of(graph, symbol)
        if place is None:
            raise RewriteError(f"the size {size} depends on {symbol}, which is no size of an input.")
        symbols[symbol] = fx.Proxy(annotate(graph.call_function(torch.ops.aten.sym_size.int, place)))
    proxy = sympy_interp(PythonReferenceAnalysis, symbols, size)
    node = proxy.node if isinstance(proxy, fx.Proxy) else int(proxy)
    for made in graph.nodes:
        if "val" not in made.meta and made.op == "call_function":
            annotate(made)
    return node


def _place_of(graph: fx.Graph, symbol: Expr) -> tuple[fx.Node, int] | None:
    for node in graph.find_nodes(op="placeholder"):
        for axis, size in enumerate(shape_of(node)):
            if size == symbol:
                return node, axis
    return None
