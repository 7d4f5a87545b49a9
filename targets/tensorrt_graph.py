"""Changes of a flat graph for TensorRT: what it has no converters for, in operators that have one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ..real import with_graph

aten = torch.ops.aten


def for_tensorrt(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The module in float32 where it is in float64, and without scattering into interleaved halves.

    Rotary tables are often made in float64, which TensorRT has not, and rotated pairs written into an empty tensor.

    Args:
        module: a flat graph; it is not changed.
        example: inputs of one call.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    doubles = {name: _single(value) for name, value in vars(module).items() if name in read}
    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _single)
        if node.op == "get_attr" and "." in node.target and _is_double(module, node.target):
            with graph.inserting_after(node):
                single = graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float32})
            node.replace_all_uses_with(single, delete_user_cb=lambda user, keep=single: user is not keep)
    for node in graph.find_nodes(op="call_function", target=aten.slice_scatter.default):
        _interleave(graph, node)
    graph.eliminate_dead_code()
    graph.lint()
    return with_graph(module, graph, doubles)


def interleaved(base: torch.Tensor, even: torch.Tensor, odd: torch.Tensor, axis: int) -> torch.Tensor:
    """``base`` with ``even`` and ``odd`` rows of one axis replaced: by stacking, where that covers it."""
    if even.shape[axis] != odd.shape[axis]:
        return base.slice_scatter(even, axis, 0, sys.maxsize, 2).slice_scatter(odd, axis, 1, sys.maxsize, 2)
    return torch.stack((even, odd), axis + 1).flatten(axis, axis + 1)


def _interleave(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrite the second of two scatters that fill even and odd rows."""
    first, odd, *where = node.args
    if not (isinstance(first, fx.Node) and first.target is node.target) or len(where) < 4:
        return
    base, even, *there = first.args
    axis = where[0]
    halves = there == [axis, 0, sys.maxsize, 2] and where == [axis, 1, sys.maxsize, 2]
    if halves and isinstance(axis, int) and axis >= 0:
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_function(interleaved, (base, even, odd, axis)))


def _single(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
        return value.to(torch.float32)
    return torch.float32 if isinstance(value, torch.dtype) and value == torch.float64 else value


def _is_double(module: fx.GraphModule, target: str) -> bool:
    path, _, name = target.rpartition(".")
    value = getattr(module.get_submodule(path), name)
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64
