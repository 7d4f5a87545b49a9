"""Equal sub-graphs are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..probe import is_random
from ..program import Program
from .base import Pass

_UNDEFINED = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default}


@dataclass(frozen=True)
class Twins:
    """Nodes of one graph that compute the same as ``first``."""

    first: fx.Node
    others: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Share(Pass):
    """Exact to the last bit: of operators with equal arguments the first is kept.

    That is the modulation of both streams of a split block, conditioning that the model embeds in several places, and the
    same tensor read under several names. Operators that draw random numbers are never equal.
    """

    name: ClassVar[str] = "share"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[Twins]:
        graphs = [program.graph, *(body.graph for body in program.bodies.values())]
        for index, graph in enumerate(graphs):
            yield from _twins(graph, program.owner if index == 0 else str)

    def rewrite(self, program: Program, place: Twins) -> None:
        for node in place.others:
            node.replace_all_uses_with(place.first)
        for node in reversed(place.others):
            node.graph.erase_node(node)

    def describe(self, place: Twins) -> str:
        return f"{place.first.name} and {', '.join(node.name for node in place.others)}"


def _twins(graph: fx.Graph, owner: Any) -> Iterable[Twins]:
    """``owner`` gives equal tensors one name."""
    numbers: dict[fx.Node, int] = {}  # equal for nodes that compute the same
    first: dict[Any, fx.Node] = {}
    others: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        numbers[node] = len(numbers)
        if (key := _key(node, numbers, owner)) is None:
            continue
        twin = first.setdefault(key, node)
        if twin is not node:
            numbers[node] = numbers[twin]
            others.setdefault(twin, []).append(node)
    return [Twins(node, tuple(found)) for node, found in others.items()]


def _key(node: fx.Node, numbers: Mapping[fx.Node, int], owner: Any) -> Any:
    """What is equal for nodes that compute the same; None for what is never equal to anything."""
    if node.op == "get_attr":
        return ("get_attr", owner(str(node.target)))
    if node.op != "call_function" or is_random(node) or node.target in _UNDEFINED:
        return None
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    return (node.target, _hashable(node.args, numbers), _hashable(node.kwargs, numbers))


def _hashable(argument: Any, numbers: Mapping[fx.Node, int]) -> Any:
    if isinstance(argument, fx.Node):
        return ("node", numbers[argument])
    if isinstance(argument, (list, tuple)):
        return tuple(_hashable(item, numbers) for item in argument)
    if isinstance(argument, dict):
        return tuple((key, _hashable(argument[key], numbers)) for key in sorted(argument))
    return (type(argument), repr(argument))  # 1, 1.0 and True are not equal here, nor are 0.0 and -0.0
