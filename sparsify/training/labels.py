"""What a model does with labels, read off its graphs: how many it knows, and whether it drops some at random."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from ..probe import is_random
from ..program import Program

_EMBEDDING = torch.ops.aten.embedding.default


def known_labels(program: Program, name: str) -> int | None:
    """The rows of the smallest table that the input of this name is looked up in; None if there is no such table."""
    rows = [
        int(weight.meta["val"].shape[0])
        for graph in program.outer_graphs
        for start in graph.find_nodes(op="placeholder")
        if start.name == name
        for weight in _tables(program, start)
    ]
    return min(rows, default=None)


def drops_labels(program: Program, name: str) -> bool:
    """Whether the captured mode drops some labels at random: a number that is drawn for each row meets what comes of the labels.

    It does before there are tokens; a path of a block that is dropped for some rows is another thing. What a model that runs in place
    does outside of its blocks is not seen.
    """
    graphs = [(graph, {name}) for graph in program.outer_graphs]
    seen: set[tuple[int, frozenset[str]]] = set()
    while graphs:
        graph, given = graphs.pop()
        if (key := (id(graph), frozenset(given))) in seen:
            continue
        seen.add(key)
        of_labels, drawn = set[fx.Node](), set[fx.Node]()
        for node in graph.nodes:
            if (node.op == "placeholder" and node.name in given) or not of_labels.isdisjoint(node.all_input_nodes):
                of_labels.add(node)
            if (is_random(node) and _has_no_tokens(node, 1)) or not drawn.isdisjoint(node.all_input_nodes):
                drawn.add(node)
            if node in of_labels and node in drawn and _has_no_tokens(node, 2):
                return True
            if "body" in node.meta and node in of_labels:
                body = program.body_of(node)
                inner = {x.name for x, arg in zip(body.placeholders, node.args, strict=True) if arg in of_labels}
                graphs.append((body.graph, inner))
    return False


def _has_no_tokens(node: fx.Node, axes: int) -> bool:
    """Whether a value has at most this many axes, the rows' among them; those of one element do not count."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and len([size for size in value.shape[1:] if size != 1]) < axes


def _tables(program: Program, start: fx.Node) -> Iterator[fx.Node]:
    """The tables that whole numbers which come from ``start`` are looked up in, inside of blocks too."""
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        for user in node.users:
            if user.target is _EMBEDDING and user.args[1] is node:
                yield user.args[0]  # type: ignore[misc]
                continue
            reached = [user] if is_whole(user.meta.get("val")) else []
            if "body" in user.meta:
                inner = program.body_of(user).placeholders
                reached = [placeholder for placeholder, given in zip(inner, user.args, strict=True) if given is node]
            pending += [x for x in reached if x not in seen]
            seen.update(reached)


def is_whole(value: object) -> bool:
    """Whether it is a tensor of whole numbers."""
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
