"""The whole model as one function to compile, and around it the little that the host decides."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..flat import Flattener
from ..program import DENSITY, GRID, Program
from ..tree import Container, share_registries

Bind = Callable[[fx.Graph, nn.Module], Callable[..., Any]]


def whole_on_host(program: Program, root: nn.Module, bind: Bind, portable: bool) -> fx.Graph:
    """An outer graph in which all that computes is one call.

    Three things are decided or looked up by Python code at every call and stay in front of it: the pooled grid, a dense grid that
    is read off the inputs, and what is kept of the prompt. Their results, and the model's inputs, are the call's arguments.

    Args:
        program: captured as a whole and rewritten.
        root: the sparse model.
        bind: from the flat graph, and a module with ``root``'s parameters under the names in it, the function to call.
        portable: whether pooling must take pooled grids as open numbers.

    Returns:
        A graph with the inputs and outputs of the program's own.

    Raises:
        LoweringError: the model runs in place, so that there is no graph of the whole.
    """
    flat, host = Flattener(program, portable), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    given: dict[fx.Node, fx.Node] = {}

    def take(node: fx.Node) -> fx.Node:
        inside = flat.graph.placeholder(node.name)
        given[inside] = node
        return inside

    for node in _host_nodes(program):
        copies[node] = copy = host.node_copy(node, copies.__getitem__)
        if node.op == "placeholder":
            flat.values[node] = take(copy)
        elif _is_asked_of_host(program, node):
            results = [host.call_function(operator.getitem, (copy, index)) for index in range(len(node.meta["val"]))]
            flat.values[node] = tuple(map(take, results))
    flat.run()
    for inside in [node for node in given if not node.users]:  # such as a timestep that the density alone reads
        del given[inside]
        flat.graph.erase_node(inside)
    # Not a GraphModule: each is of a class of its own, and captures with the same code could not share what is compiled.
    owner = Container()
    share_registries(owner, root, flat.constants)
    host.output(host.call_function(bind(flat.graph, owner), tuple(given.values())))
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
