"""The whole model as one function to compile, and around it the little that the host decides."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..flat import Flattener
from ..program import DENSITY, GRID, Program

Bind = Callable[[fx.GraphModule], Callable[..., Any]]


def whole_on_host(program: Program, root: nn.Module, bind: Bind) -> fx.Graph:
    """An outer graph in which all that computes is one call.

    Three things are decided or looked up by Python code at every call and stay in front of it: the pooled grid, a dense grid that
    is read off the inputs, and what is kept of the prompt. Their results, and the model's inputs, are the call's arguments.

    Args:
        program: captured as a whole and rewritten.
        root: the sparse model.
        bind: what becomes of the flat module, which shares ``root``'s parameters: the function that the graph calls.

    Returns:
        A graph with the inputs and outputs of the program's own.

    Raises:
        LoweringError: the model runs in place, so that there is no graph of the whole.
    """
    flat, host = Flattener(program), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    given: list[fx.Node] = []

    def take(node: fx.Node) -> fx.Node:
        given.append(node)
        return flat.graph.placeholder(node.name)

    for node in _host_nodes(program):
        copies[node] = copy = host.node_copy(node, copies.__getitem__)
        if node.op == "placeholder":
            flat.values[node] = take(copy)
        elif _is_asked_of_host(program, node):
            results = [host.call_function(operator.getitem, (copy, index)) for index in range(len(node.meta["val"]))]
            flat.values[node] = tuple(map(take, results))
    flat.run()
    host.output(host.call_function(bind(flat.module(root)), tuple(given)))
    return host


def _is_asked_of_host(program: Program, node: fx.Node) -> bool:
    return node.op == "call_module" and (node.target in (DENSITY, GRID) or node.target in program.prompts)


def _host_nodes(program: Program) -> list[fx.Node]:
    """The inputs, what is asked of the host, and what that is computed from, in order."""
    wanted: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "placeholder" or node in wanted or _is_asked_of_host(program, node):
            wanted |= {node, *node.all_input_nodes}
    return [node for node in program.graph.nodes if node in wanted]
