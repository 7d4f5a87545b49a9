"""Symbolic shapes of nodes: computed for new nodes, and recomputed for all of them by the verifier."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import sympy
import torch
from sympy import Expr
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from .errors import RewriteError

_GIVEN = ("placeholder", "call_function")

Size: TypeAlias = Any  # a number or a sympy expression; sympy has no types

_KNOWN = "sparsify_known"  # what operators yielded, kept on the mode that they ran in

# What sizes are, by environment, as of one version of it: torch's own cache is emptied when another environment is asked.
_SIZES: WeakKeyDictionary[ShapeEnv, tuple[int, dict[Expr, Size]]] = WeakKeyDictionary()


def compute_value(node: fx.Node, values: Mapping[fx.Node, Any], mode: FakeTensorMode) -> Any:
    """What a ``call_function`` node yields, as a fake tensor or symbolic size, from the values of its arguments.

    An operator is run once for all arguments that look alike, as those of equal modules do, however many there are.
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    known = vars(mode).setdefault(_KNOWN, {})
    key = (node.target, _look(args), _look(kwargs))
    if key not in known:
        # With Python's dispatcher composite operators keep sizes symbolic, as they do while torch.export traces.
        with mode, torch.no_grad(), enable_python_dispatcher():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        if free_unbacked_symbols(value):
            return value  # sizes that depend on values are new at every run
        known[key] = value
    return known[key]


def _look(value: Any) -> Hashable:
    """All that what operators yield can depend on, when a tensor or a symbolic size is their argument."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or getattr(value, "constant", None) is not None:
            return object()  # like no other
        sizes = _look(value.shape), _look(value.stride()), _look(value.storage_offset())
        form = value.dtype, value.device, value.is_conj(), value.is_neg(), value.requires_grad
        return (*sizes, *form)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(value), value.node._expr
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_look, value))
    if isinstance(value, Mapping):
        return tuple((key, _look(item)) for key, item in value.items())
    return type(value), value


def annotate(node: fx.Node, mode: FakeTensorMode | None = None) -> fx.Node:
    """Give a new ``call_function`` node its value, from the values its arguments claim; ``mode`` is for those without any."""
    values = {argument: argument.meta["val"] for argument in node.all_input_nodes}
    fakes = [value for value in pytree.tree_leaves(list(values.values())) if isinstance(value, torch.Tensor)]
    sizes = [value for value in values.values() if isinstance(value, torch.SymInt)]
    if fakes or mode is not None:
        node.meta["val"] = compute_value(node, values, fakes[0].fake_mode if fakes else mode)  # type: ignore[attr-defined, arg-type]
    elif sizes:
        node.meta["val"] = node.target(*fx.node.map_arg(node.args, values.__getitem__))  # type: ignore[operator]
    return node


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a node's tensor as numbers and sympy expressions; () for what is no tensor."""
    return tuple(size_of(size) for size in getattr(node.meta.get("val"), "shape", ()))


def size_of(size: int | torch.SymInt) -> Size:
    """One size as a number, or as a sympy expression with what is known about its symbols put in."""
    if isinstance(size, int):
        return size
    env, expression = size.node.shape_env, size.node._expr
    version, known = _SIZES.get(env, (None, {}))
    if version != env._version_counter:
        version, known = _SIZES[env] = env._version_counter, {}
    if expression not in known:
        simple = env.simplify(size.node.expr)
        known[expression] = int(simple) if simple.is_number else simple
    return known[expression]


def new_size(env: ShapeEnv, name: str, hint: int) -> torch.SymInt:
    """A size that is not tied to any other, such as the number of sparse tokens."""
    source = ConstantSource(f"{name}_{len(env.backed_var_to_val)}")
    symbol = env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    size = env.create_symintnode(symbol, hint=hint, source=source)
    return size  # type: ignore[return-value]


def emit_size(graph: fx.Graph, size: Size) -> fx.Node | int:
    """Nodes that compute ``size`` from the sizes of the graph's inputs, at the current insertion point.

    sympy orders terms by the names of symbols, which are new in every run: here they go by the order of the inputs instead.

    Raises:
        RewriteError: the expression has a symbol that is no input's size.
    """
    if isinstance(size, int) or size.is_number:
        return int(size)
    found = {symbol: _find_symbol(graph, symbol) for symbol in size.free_symbols}
    order = {node: place for place, node in enumerate(graph.nodes)}
    symbols = sorted(found, key=lambda symbol: (order[found[symbol][0]], found[symbol][1]))
    names = {symbol: sympy.Symbol(f"i{place:03}", **symbol.assumptions0) for place, symbol in enumerate(symbols)}
    given = {names[symbol]: _emit_given(graph, *found[symbol]) for symbol in symbols}
    result: fx.Proxy = sympy_interp(PythonReferenceAnalysis, given, size.xreplace(names))
    for made in graph.nodes:
        if "val" not in made.meta and made.op == "call_function":
            annotate(made)
    return result.node


def _find_symbol(graph: fx.Graph, symbol: Expr) -> tuple[fx.Node, int]:
    """The input that has a size on an axis, or the node that is the size, with -1."""
    for node in graph.find_nodes(op="placeholder"):
        for axis, size in enumerate(shape_of(node)):
            if size == symbol:
                return node, axis
    for node in graph.nodes:  # a size that comes as a number, or a side of a grid
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and node.op in _GIVEN and size_of(value) == symbol:
            return node, -1
    raise RewriteError(f"the size {symbol} is no size of an input.")


def _emit_given(graph: fx.Graph, node: fx.Node, axis: int) -> fx.Proxy:
    return fx.Proxy(node if axis < 0 else annotate(graph.call_function(torch.ops.aten.sym_size.int, (node, axis))))


def symbolic(env: ShapeEnv, size: Size, hint: int) -> int | torch.SymInt:
    """A size as shapes of fake tensors take it."""
    size = sympy.sympify(size)
    return int(size) if size.is_number else env.create_symintnode(size, hint=hint)
