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
    return min((int(lookup.args[0].meta["val"].shape[0]) for lookup in _lookups(program, name)), default=None)  # type: ignore[union-attr]


def drops_labels(program: Program, name: str) -> bool:
    """Whether the labels that reach a table depend on random numbers: the captured mode drops some of them."""
    return any(_depends_on_chance(lookup) for lookup in _lookups(program, name))


def _depends_on_chance(node: fx.Node) -> bool:
    pending, seen = [node], {node}
    while pending:
        at = pending.pop()
        if is_random(at):
            return True
        fresh = [x for x in at.all_input_nodes if x not in seen]
        seen.update(fresh)
        pending += fresh
    return False


def _lookups(program: Program, name: str) -> Iterator[fx.Node]:
    """Where numbers that come from the input of this name choose rows of a table."""
    for node in _labels(program, name):
        yield from (user for user in node.users if user.target is _EMBEDDING and user.args[1] is node)


def _labels(program: Program, name: str) -> Iterator[fx.Node]:
    """The input of this name, and all whole numbers that come from it, inside of blocks too."""
    graphs = (program.graph, *program.prompts.values())
    pending = [start for graph in graphs for start in graph.find_nodes(op="placeholder") if start.name == name]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        for user in node.users:
            reached = [user] if _is_whole(user) else []
            if "body" in user.meta:
                inner = program.body_of(user).placeholders
                reached = [placeholder for placeholder, given in zip(inner, user.args, strict=True) if given is node]
            pending += [x for x in reached if x not in seen]
            seen.update(reached)


def _is_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
