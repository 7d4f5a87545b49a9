"""What computes tensors between the blocks, gathered into segments that a target can compile as one function each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .program import Program

Call = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Segment:
    """Operators that can run together, because as many modules run behind each of them.

    Attributes:
        nodes: nodes of the outer graph, in order.
        inputs: tensors and sizes that they read of other nodes; parameters are not among them.
        outputs: those of them that other nodes read.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @classmethod
    def of(cls, nodes: list[fx.Node]) -> Segment:
        """The segment of these nodes."""
        inside = set(nodes)
        inputs = dict.fromkeys(s for node in nodes for s in node.all_input_nodes if s not in inside and s.op != "get_attr")
        return cls(tuple(nodes), tuple(inputs), tuple(node for node in nodes if not inside.issuperset(node.users)))


def segments_of(program: Program) -> list[Segment]:
    """The operators that compute tensors behind one block and before another: merging, what models do there.

    Sizes and the density belong to the host. What stands before the first block and behind the last runs once per call,
    and a single operator, such as pooling, has nothing to be fused with: compiling them costs more than it saves.
    """
    before, behind = _modules_on_the_way(program)
    host: set[fx.Node] = set()
    groups: dict[int, list[fx.Node]] = {}
    for node in program.graph.nodes:
        alone = node.op != "call_function" or _runs_alone(node, program) or _is_result(node)
        if alone or (_is_size(node) and host.issuperset(node.all_input_nodes)):
            host.add(node)
        elif before[node] > 0 and behind[node] > 0:  # late rather than early, so that fewer tensors wait
            groups.setdefault(behind[node], []).append(node)
    return [Segment.of(nodes) for nodes in groups.values() if len(nodes) > 1]


def _modules_on_the_way(program: Program) -> tuple[dict[fx.Node, int], dict[fx.Node, int]]:
    """How many modules stand before each node, and how many behind it, on the longest way."""
    before: dict[fx.Node, int] = {}
    behind: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        before[node] = max((before[other] + _runs_alone(other, program) for other in node.all_input_nodes), default=0)
    for node in reversed(program.graph.nodes):
        behind[node] = max((behind[user] + _runs_alone(user, program) for user in node.users), default=0)
    return before, behind


def _runs_alone(node: fx.Node, program: Program) -> bool:
    """Blocks, the density, and operators that call a region, which compilers do not take outside of what they traced."""
    constants = (program.constants.get(str(s.target)) for s in node.all_input_nodes if s.op == "get_attr")
    return node.op == "call_module" or any(isinstance(constant, torch.nn.Module) for constant in constants)


def _is_result(node: fx.Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.op == "call_module"


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def graph_of(segment: Segment, change: Mapping[Any, Call]) -> tuple[fx.Graph, list[str]]:
    """A segment as a graph whose names depend on its structure alone, so that equal segments print equally.

    Args:
        segment: operators of an outer graph.
        change: functions to call in place of others.

    Returns:
        The graph, and the paths of the modules whose parameters it reads, in it called ``m0``, ``m1`` and so on.
    """
    graph, owners = fx.Graph(), dict[str, str]()
    values: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"a{i}") for i, node in enumerate(segment.inputs)}
    for node in segment.nodes:
        for source in node.all_input_nodes:
            if source not in values:  # a parameter
                path, _, name = str(source.target).rpartition(".")
                owner = owners.setdefault(path, f"m{len(owners)}")
                values[source] = graph.create_node("get_attr", f"{owner}.{name}", name=f"p{len(values)}")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        target = change.get(node.target, node.target)
        values[node] = graph.create_node("call_function", target, args, kwargs, name=f"v{len(values)}")
    graph.output(tuple(values[node] for node in segment.outputs))
    return graph, list(owners)


def with_calls(program: Program, blocks: Mapping[str, Call], segments: Mapping[Segment, Call]) -> fx.Graph:
    """The outer graph with every block, by path, and every one of these segments as one call of a function."""
    graph = fx.Graph()
    inside = {node: segment for segment in segments for node in segment.nodes}
    values: dict[fx.Node, fx.Node] = {}

    def value(node: fx.Node) -> fx.Node:
        if node not in values:
            if node in inside:
                emit(inside[node])
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                op, target = ("call_function", blocks[str(node.target)]) if "body" in node.meta else (node.op, node.target)
                values[node] = graph.create_node(op, target, args, kwargs, node.name)
        return values[node]

    def emit(segment: Segment) -> None:
        result = graph.call_function(segments[segment], tuple(map(value, segment.inputs)))
        for index, node in enumerate(segment.outputs):
            values[node] = graph.call_function(operator.getitem, (result, index))

    for node in program.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_module" and "body" not in node.meta):
            value(node)  # the density first: it waits for the device, which then should not have work queued
    for node in program.graph.nodes:  # in order, so that deep models need no deep recursion
        if (segment := inside.get(node)) is not None and segment.outputs and segment.outputs[0] not in values:
            emit(segment)
        elif "body" in node.meta:
            value(node)
    (output,) = program.graph.find_nodes(op="output")
    graph.output(fx.node.map_arg(output.args[0], value))
    return graph
