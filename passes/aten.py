"""A Python function as a graph of ATen operators, without any shapes: what a pattern is made of."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from ..errors import PolicyError

aten = torch.ops.aten

_NAMES = {"truediv": "div", "mod": "remainder", "view": "reshape"}  # functions that are another operator in captured graphs
_IGNORED = ("_stacklevel", "inplace")  # arguments that ATen operators do not have
_NORMS = (torch.nn.functional.layer_norm, torch.nn.functional.group_norm)
_KEYWORDS = {"training": "train"}  # arguments that have another name there
_ONE_BY_ONE = ("view", "reshape", "permute", "expand", "repeat", "tile", "flip")  # methods whose sizes or axes need no list
# What torch runs where a number stands before one of Python's operators, with the two in the other order.
_REVERSED: dict[Any, Any] = {
    operator.add: aten.add,
    operator.mul: aten.mul,
    operator.sub: aten.rsub,
    operator.truediv: aten.mul,
}


def aten_graph(function: Callable[..., Any]) -> fx.Graph:
    """The operators that ``function`` runs, each argument of it a placeholder of that name.

    Calls become what captured graphs have for them. Where one does not, or is not one operator (``.shape``, indexing with
    slices), it can be written as ``torch.ops.aten...``, as the printed IR shows it.

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
    packet, args, kwargs = _spelt(node, name, packet)
    overload, args, kwargs = _resolved(packet, args, kwargs)
    if overload is None or node.kwargs.get("inplace"):
        raise PolicyError(f"{node.format_node()} in a pattern fits no overload of {packet}: {packet.overloads()}.")
    if node.target in _NORMS:
        kwargs[overload._schema.arguments[-1].name] = False  # cudnn, which captures go without
    node.op, node.target = "call_function", overload
    node.args, node.kwargs = _listed(overload, args, kwargs)


_Call: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]  # an operator and its arguments


def _spelt(node: fx.Node, name: str, packet: Any) -> _Call:
    """The call as torch spells it where Python has several ways."""
    args: tuple[Any, ...] = node.args
    kwargs = {_KEYWORDS.get(key, key): value for key, value in node.kwargs.items() if key not in _IGNORED}
    if node.target in _REVERSED and not isinstance(args[0], fx.Node):
        packet, args = _REVERSED[node.target], args[::-1]
        if node.target is operator.truediv:
            with node.graph.inserting_before(node):
                args = (node.graph.call_function(aten.reciprocal.default, args[:1]), *args[1:])
    elif name in _ONE_BY_ONE and len(args) > 1 and all(isinstance(size, int) for size in args[1:]):
        args = (args[0], list(args[1:]))
    elif name == "split" and len(args) > 1 and isinstance(args[1], (list, tuple)):
        packet = aten.split_with_sizes
    elif name == "where" and node.op == "call_method":
        args = (*args[1::-1], *args[2:])  # the tensor whose method it is stands behind the condition
    return packet, args, kwargs


def _resolved(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """The overload that takes the arguments, None if there is none, and the arguments as it takes them."""
    if len(args) == 1 and not kwargs and "correction" in packet.overloads():  # variance over all axes
        return packet.correction, args, kwargs
    overload = _overload(packet, args, kwargs)
    if overload is not None and 1 in _numbers_for_flags(overload, args):
        args = (args[0], [args[1]], *args[2:])  # an axis
        overload = _overload(packet, args, kwargs)
    if overload is None and "default" in packet.overloads():  # with lists where one number is given
        args, kwargs = _listed(packet.default, args, kwargs)
        overload = _overload(packet, args, kwargs)
    return None if overload is None or _numbers_for_flags(overload, args) else overload, args, kwargs


def _numbers_for_flags(overload: Any, args: tuple[Any, ...]) -> list[int]:
    """The arguments that are numbers where flags are taken, which Python's own functions do not allow."""
    taken = zip(overload._schema.arguments, args, strict=False)
    return [index for index, (argument, value) in enumerate(taken) if type(value) is int and str(argument.type) == "bool"]


def _listed(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with numbers in a list where the operator takes one, as torch itself puts them."""
    taken = overload._schema.arguments
    lists = {argument.name: argument.N or 1 for argument in taken if "List[int]" in str(argument.type)}

    def listed(name: str, value: Any) -> Any:
        if name not in lists or not isinstance(value, (int, tuple)):
            return value
        return [value] * lists[name] if isinstance(value, int) else list(value)

    names = [argument.name for argument in taken] + [""] * len(args)  # too many arguments stay too many
    named = zip(names, args, strict=False)  # others have their defaults
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
