"""A Python function as a graph of ATen operators, without any shapes: what a pattern is made of."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..errors import PolicyError

aten = torch.ops.aten

_NAMES = {"truediv": "div", "mod": "remainder"}  # functions whose ATen operator has another name
_IGNORED = ("_stacklevel", "inplace")  # arguments that ATen operators do not have
_KEYWORDS = {"training": "train"}  # arguments that have another name there
# What torch runs where a number stands in front of a tensor, with the two in the other order.
_REVERSED: dict[str, Any] = {"add": aten.add, "mul": aten.mul, "sub": aten.rsub, "truediv": aten.mul}


def aten_graph(function: Callable[..., Any]) -> fx.Graph:
    """The operators that ``function`` runs, each argument of it a placeholder of that name.

    Plain torch code becomes what ``torch.export`` makes of it; what is not one operator (``.shape``, indexing with slices)
    can be written as ``torch.ops.aten...``, as the printed IR shows it.

    Raises:
        PolicyError: something in it is no ATen operator, or it does not return what operators yield.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    names = list(inspect.signature(function).parameters)
    whole = getattr(function, "__qualname__", str(function))
    try:
        result = function(*(fx.Proxy(graph.placeholder(name), tracer) for name in names))
    except (TypeError, ValueError, RuntimeError) as error:  # a wrong call, a decision by values, len()
        raise PolicyError(f"{whole} cannot be traced: {str(error).splitlines()[0]}") from error
    graph.output(fx.node.map_aggregate(result, lambda value: value.node if isinstance(value, fx.Proxy) else value))
    for node in list(graph.nodes):
        if node.op in ("call_function", "call_method"):
            _convert(node)
    graph.eliminate_dead_code()
    results = graph.output_node().all_input_nodes
    if not results or any(node.op != "call_function" for node in results):
        raise PolicyError(f"{whole} must return what its operators yield, not {graph.output_node().args[0]}.")
    if unused := [node.name for node in graph.find_nodes(op="placeholder") if not node.users]:
        raise PolicyError(f"{whole} does not use its argument {unused[0]!r}.")
    return graph


def _convert(node: fx.Node) -> None:
    """Let a node call the operator that torch would run."""
    if isinstance(node.target, torch._ops.OpOverload):
        return
    if node.target is operator.getitem and isinstance(node.args[1], int):
        return  # one of several results
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    packet = getattr(aten, _NAMES.get(name, name), None)
    if packet is None:
        raise PolicyError(f"{name} in a pattern is no ATen operator; write it as torch.ops.aten..., as it is printed.")
    args: tuple[Any, ...] = node.args
    if name in _REVERSED and not isinstance(args[0], fx.Node):
        packet, args = _REVERSED[name], args[::-1]  # torch does so as well
        if name == "truediv":
            with node.graph.inserting_before(node):
                args = (node.graph.call_function(aten.reciprocal.default, args[:1]), *args[1:])
    kwargs = {_KEYWORDS.get(key, key): value for key, value in node.kwargs.items() if key not in _IGNORED}
    overload = _overload(packet, args, kwargs)
    if overload is None and len(args) > 1 and all(isinstance(size, int) for size in args[1:]):
        args = (args[0], list(args[1:]))  # sizes or axes given one by one
        overload = _overload(packet, args, kwargs)
    if overload is None or node.kwargs.get("inplace"):
        raise PolicyError(f"{node.format_node()} in a pattern fits no overload of {packet}: {packet.overloads()}.")
    node.op, node.target = "call_function", overload
    node.args, node.kwargs = _listed(overload, args, kwargs)


def _listed(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with one number in a list where the operator takes a list, as torch itself puts it."""
    taken = overload._schema.arguments
    lists = {argument.name for argument in taken if "List[int]" in str(argument.type)}

    def listed(name: str, value: Any) -> Any:
        return [value] if name in lists and isinstance(value, int) else value

    named = zip((argument.name for argument in taken), args, strict=False)  # others have their defaults
    return tuple(listed(*each) for each in named), {name: listed(name, value) for name, value in kwargs.items()}


def _overload(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The overload that takes such arguments, where nodes stand for tensors; None if there is none."""
    tensor = torch.empty(0)
    args, kwargs = fx.node.map_arg((args, kwargs), lambda _: tensor)
    try:
        name = torch._C._jit_resolve_packet(packet._qualified_op_name, *args, **kwargs)
    except RuntimeError:
        return None
    return getattr(packet, name or "default")
