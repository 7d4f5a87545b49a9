"""Colours of a graph's nodes, equal only for nodes that may stand for each other: Weisfeiler-Lehman on the flow of data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx, nn

from ..shapes import size_of
from .effects import effect_of
from .held import Held, digest, hash_of, held_by_graph, module_text, name_of, type_text

Operands = tuple[str, ...]  # where in a node's arguments another one stands, such as ("0", "1.2", "bias")


@dataclass(frozen=True)
class Labels:
    """What of a node counts, besides what it is connected to.

    Attributes:
        metadata: whether the value it claims does.
        parameters: whether the name of a parameter does.
        constants: tensors and regions by name; these count as what they are, not by their names. Of parameters the shapes count.
        modules: those that a graph calls, by name. They count by class, options, and what they hold; graphs in them by their nodes.
        graphs: those met so far, of both that are compared.
    """

    metadata: bool
    parameters: bool
    constants: Mapping[str, Any]
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    graphs: Graphs = field(default_factory=lambda: Graphs())

    def of(self, node: fx.Node, position: int) -> str:
        """``position`` is that among the inputs of the graph."""
        if node.op == "placeholder":
            return f"input {position}"
        if node.op == "get_attr":
            return f"get_attr {self._named(node)}"
        target = node.target if isinstance(node.target, str) else name_of(node.target)
        if node.op == "call_module" and (module := self.modules.get(str(node.target))) is not None:
            target = f"{target if self.parameters else ''} {module_text(module, self._graph)}"
        body = " as a block" if "body" in node.meta else ""
        return f"{node.op} {target}{body} {_outline(node.args)} {_outline(node.kwargs)}"

    def _named(self, node: fx.Node) -> str:
        constant = self.constants.get(str(node.target))
        if isinstance(constant, fx.GraphModule):
            return f"region {self._region(constant)}"
        if isinstance(constant, nn.Parameter):
            return f"{node.target if self.parameters else 'parameter'} {type_text(constant)}"
        if isinstance(constant, torch.Tensor):
            return f"constant {digest(constant)}"
        return str(node.target) if self.parameters else "parameter"

    def inside(self, held: Held) -> Labels:
        """For the graph that a called module runs: names in it are those of that module."""
        return replace(self, constants=held.constants, modules=held.modules)

    def _graph(self, held: Held) -> str:
        return f"graph {self.graphs.name_of(Coloured(held.graph, self.inside(held)))}"

    def _region(self, region: fx.GraphModule) -> str:
        held = held_by_graph(region)
        own = replace(self, constants={**self.constants, **held.constants}, modules=held.modules)
        return self.graphs.name_of(Coloured(region.graph, own))


class Coloured:
    """A graph with a colour for every node."""

    def __init__(self, graph: fx.Graph, labels: Labels) -> None:
        self.nodes = list(graph.nodes)
        self.modules = labels.modules
        self.operands = _operands(self.nodes, labels.modules)
        positions = {node: index for index, node in enumerate(graph.find_nodes(op="placeholder"))}
        self.labels = {node: labels.of(node, positions.get(node, -1)) for node in self.nodes}
        if labels.metadata or not labels.parameters:  # what has no name still has a shape
            for node, value in _values(self.nodes, self._order()).items():
                if labels.metadata or node.op == "get_attr":
                    self.labels[node] += f": {value}"
        self.above = self._from_above(self.labels)
        self.colours = self._refined()

    @property
    def is_discrete(self) -> bool:
        """Whether no two nodes have the same colour."""
        return len(set(self.colours.values())) == len(self.nodes)

    def is_connected_like(self, other: Coloured) -> bool:
        """Whether a graph with the same colours is isomorphic."""
        if self.is_discrete:  # every node has a colour of its own: the colours are the isomorphism
            return True
        import networkx

        by = networkx.algorithms.isomorphism
        return bool(
            networkx.is_isomorphic(
                self._as_networkx(),
                other._as_networkx(),
                node_match=by.categorical_node_match("colour", None),
                edge_match=by.categorical_edge_match("operands", None),
            )
        )

    def _as_networkx(self) -> Any:
        """A directed graph with ``colour`` at its nodes and ``operands`` at its edges."""
        import networkx

        made = networkx.DiGraph()
        for node in self.nodes:
            made.add_node(node, colour=self.colours[node])
        for (source, node), places in self.operands.items():
            made.add_edge(source, node, operands=places)
        return made

    def _order(self) -> dict[fx.Node, tuple[int, str]]:
        """An order in which nodes come behind what they are computed from, and that depends on the flow of data alone."""
        above, level = self._from_above(self.labels), dict[fx.Node, int]()
        for node in self.nodes:
            level[node] = 1 + max((level[source] for source in node.all_input_nodes), default=0)
        return {node: (level[node], above[node]) for node in self.nodes}

    def _from_above(self, labels: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
        """Of each node, all that it is computed from."""
        sources = defaultdict(list)
        for (source, node), places in self.operands.items():
            sources[node].append((places, source))
        found: dict[fx.Node, str] = {}
        for node in self.nodes:
            found[node] = hash_of(labels[node], sorted((places, found[source]) for places, source in sources[node]))
        return found

    def _refined(self) -> dict[fx.Node, str]:
        """From above, then from below, then from all sides until nothing more is told apart."""
        readers, sources = defaultdict(list), defaultdict(list)
        for (source, node), places in self.operands.items():
            readers[source].append((places, node))
            sources[node].append((places, source))
        colours = dict(self.above)
        for node in reversed(self.nodes):
            colours[node] = hash_of(colours[node], sorted((places, colours[reader]) for places, reader in readers[node]))
        count = 0
        while len(set(colours.values())) > count:
            count = len(set(colours.values()))
            colours = {
                node: hash_of(
                    colours[node],
                    sorted((places, colours[source]) for places, source in sources[node]),
                    sorted((places, colours[reader]) for places, reader in readers[node]),
                )
                for node in self.nodes
            }
        return colours


class Graphs:
    """Graphs inside of others; isomorphic ones get one name, also where colours alone cannot tell others from them."""

    def __init__(self) -> None:
        self._met: dict[str, list[Coloured]] = {}

    def name_of(self, coloured: Coloured) -> str:
        """The name of a graph, the same for all that are isomorphic to it."""
        key = hash_of(sorted(coloured.colours.values()))
        alike = self._met.setdefault(key, [])
        for number, other in enumerate(alike):
            if coloured.is_connected_like(other):
                return f"{key} {number}"
        alike.append(coloured)
        return f"{key} {len(alike) - 1}"


def unmatched(a: Coloured, b: Coloured) -> str | None:
    """A node of one graph for which the other has none of its colour, in words; None if the colours are the same."""
    if Counter(a.colours.values()) == Counter(b.colours.values()):
        return None
    for mine, theirs, names in ((a, b, "ab"), (b, a, "ba")):
        for kind in ("labels", "above", "colours"):
            left, right = getattr(mine, kind), Counter(getattr(theirs, kind).values())
            spare = Counter(left.values()) - right
            found = [node for node in mine.nodes if left[node] in spare]
            if found:
                why = {"labels": "like it", "above": "computed from the same", "colours": "read by the same"}[kind]
                return f"%{found[0].name} of {names[0]} ({mine.labels[found[0]]}) has no node {why} in {names[1]}"
    return "they are refined in another number of steps"


def _operands(nodes: Iterable[fx.Node], modules: Mapping[str, nn.Module]) -> dict[tuple[fx.Node, fx.Node], Operands]:
    """Every edge, with the places at which the one stands among the arguments of the other.

    Operators that draw random numbers are chained in their order. Where one writes into a tensor all are: who reads it, under which
    of its names and views, is not known.
    """
    found: dict[tuple[fx.Node, fx.Node], Operands] = {}
    nodes = list(nodes)
    effects = {node: effect_of(node, modules.get(str(node.target))) for node in nodes}
    all_count, last = "writes" in effects.values(), None
    for node in nodes:
        for place, source in (*_places(node.args, ""), *_places(node.kwargs, "")):
            found[source, node] = (*found.get((source, node), ()), place)
        if effects[node] is not None or (all_count and node.op.startswith("call")):
            if last is not None:
                found[last, node] = (*found.get((last, node), ()), "order")
            last = node
    return found


def _places(argument: Any, at: str) -> Iterable[tuple[str, fx.Node]]:
    if isinstance(argument, fx.Node):
        yield at, argument
    for key, item in _items(argument):
        yield from _places(item, f"{at}.{key}" if at else str(key))


def _items(argument: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(argument, Mapping):
        return sorted(argument.items())
    if isinstance(argument, slice):
        return [(name, getattr(argument, name)) for name in ("start", "stop", "step")]
    return enumerate(argument) if isinstance(argument, (list, tuple)) else ()


def _outline(argument: Any) -> str:
    """Arguments with a mark where nodes stand; 1, 1.0 and True are different, and so are 0.0 and -0.0."""
    if isinstance(argument, fx.Node):
        return "%"
    if isinstance(argument, (Mapping, slice)):
        return f"{{{', '.join(f'{key}: {_outline(item)}' for key, item in _items(argument))}}}"
    if isinstance(argument, (list, tuple)):  # torch.fx makes either of what was the other
        return f"({', '.join(map(_outline, argument))})"
    return repr(argument)


def _values(nodes: Iterable[fx.Node], order: Mapping[fx.Node, tuple[int, str]]) -> dict[fx.Node, str]:
    """What each node claims, with symbols numbered in this order: what makes a size comes before what has it in a shape."""
    inputs = [node for node in nodes if node.op == "placeholder"]
    rest = sorted((node for node in nodes if node.op != "placeholder"), key=order.__getitem__)
    values = {node: node.meta.get("val") for node in (*inputs, *rest)}
    names = _numbered([size for value in values.values() for size in _sizes(value)])
    return {node: _value(value, names) for node, value in values.items()}


def _sizes(value: Any) -> Iterable[Any]:
    if isinstance(value, torch.SymInt):
        yield sympy.sympify(size_of(value))
    for item in value.shape if isinstance(value, torch.Tensor) else value if isinstance(value, (list, tuple)) else ():
        yield from _sizes(item)


def _numbered(sizes: list[Any]) -> dict[sympy.Symbol, sympy.Symbol]:
    """A number for each symbol: a size with one new symbol says which it is, and one with several waits for these."""
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    waiting = list(dict.fromkeys(size for size in sizes if size.free_symbols))
    while waiting:
        ready = [size for size in waiting if len(size.free_symbols - names.keys()) <= 1]
        for size in ready or waiting[:1]:
            for symbol in sorted(size.free_symbols - names.keys(), key=str):
                names[symbol] = sympy.Symbol(f"d{len(names)}", integer=True, positive=True)
        waiting = [size for size in waiting if size.free_symbols - names.keys()]
    return names


def _value(value: Any, names: dict[sympy.Symbol, sympy.Symbol]) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}[{', '.join(_value(size, names) for size in value.shape)}] on {value.device}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_value(item, names) for item in value)})"
    if isinstance(value, torch.SymInt):
        return str(sympy.sympify(size_of(value)).xreplace(names))
    return str(value) if isinstance(value, int) else type(value).__name__
