"""Find places in a graph, by a traced function or by conditions on one node, and explain the nearest miss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import fx
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from ..program import Program
from .aten import aten_graph
from .nearest import Miss, nearest_miss


class Finder(Protocol):
    """What finds places in a graph."""

    def find(self, graph: fx.Graph) -> Sequence[Any]:
        """The places, in order."""
        ...

    def nearest_miss(self, graph: fx.Graph) -> Miss | None:
        """What came closest, where nothing was found."""
        ...


@dataclass(frozen=True)
class Match:
    """A place that looks like a pattern.

    Attributes:
        inputs: what stands for each argument of the pattern: a node, or a number.
        nodes: what stands for each operator of the pattern, by its name there, in order.
        outputs: those whose value the pattern returns.
    """

    inputs: Mapping[str, Any]
    nodes: Mapping[str, fx.Node]
    outputs: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        """The node whose value the pattern returns, the first of several."""
        return self.outputs[0]


class Pattern:
    """The operators that a function runs.

    An argument of the function stands for any value, the same wherever it is used; numbers are compared. What the pattern
    computes on the way is matched only where nothing else reads it. Matches do not overlap.

    ``Pattern(lambda q, k, v: torch.softmax(q @ k, dim=-1) @ v)``

    Raises:
        PolicyError: something in the function is no ATen operator.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.graph = aten_graph(function)

    @functools.cached_property
    def _matcher(self) -> SubgraphMatcher:
        return SubgraphMatcher(self.graph)

    def find(self, graph: fx.Graph) -> list[Match]:
        """The places in a graph that look like the pattern."""
        found = []
        for match in self._matcher.match(graph):
            inner = {node.name: match.nodes_map[node] for node in self.graph.nodes if node.op == "call_function"}
            inputs = {node.name: match.nodes_map[node] for node in self.graph.find_nodes(op="placeholder")}
            found.append(Match(inputs, inner, tuple(match.returning_nodes)))
        return found

    def nearest_miss(self, graph: fx.Graph) -> Miss | None:
        """The place that shares most operators with the pattern, and what is different about it."""
        return nearest_miss(self.graph, graph)


class NodePattern:
    """Nodes that meet conditions, asked in this order; one is asked only where those before it hold.

    ``NodePattern(is_linear=lambda node: node.target is aten.linear.default, is_wide=lambda node: shape_of(node)[-1] > 512)``
    """

    def __init__(self, **conditions: Callable[[fx.Node], bool]) -> None:
        self.conditions = conditions

    def find(self, graph: fx.Graph) -> list[fx.Node]:
        """The nodes of a graph that meet all conditions."""
        return [node for node in graph.nodes if self._met(node) == len(self.conditions)]

    def nearest_miss(self, graph: fx.Graph) -> Miss | None:
        """The node that meets most of them."""
        best = max(graph.nodes, key=self._met)
        names, met = list(self.conditions), self._met(best)
        if met == len(names):
            return None
        what = f"%{best.name} meets {', '.join(names[:met])}, but not {names[met]}" if met else f"no node meets {names[0]}"
        return Miss(met, len(names), "conditions", what)

    def _met(self, node: fx.Node) -> int:
        for met, condition in enumerate(self.conditions.values()):
            if not condition(node):
                return met
        return len(self.conditions)


class Place(NamedTuple):
    """One thing found in a program, with the graph that it is in and the name of that."""

    where: str
    graph: fx.Graph
    found: Any


def find(program: Program, finder: Finder) -> list[Place]:
    """All places in the outer graph and in the bodies of a program."""
    return [Place(where, graph, found) for where, graph in program.graphs.items() for found in finder.find(graph)]


def explain(program: Program, finder: Finder) -> str | None:
    """The nearest miss in the outer graph and in the bodies of a program, as a sentence."""
    return _closest((where, finder.nearest_miss(graph)) for where, graph in program.graphs.items())


def _closest(misses: Iterable[tuple[str, Miss | None]]) -> str | None:
    known = [(where, miss) for where, miss in misses if miss is not None]
    if not known:
        return None
    where, miss = max(known, key=lambda pair: (pair[1].matched, pair[1].kinship))
    return f"{miss}, in {where}" if miss.matched or miss.kinship else str(miss)
