"""How many labels a model knows, read off its graphs: a label beyond them would be an error deep inside, or none at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from ..program import Program

_EMBEDDING = torch.ops.aten.embedding.default


def known_labels(program: Program, name: str) -> int | None:
    """The rows of the smallest table that the input of this name is looked up in; None if there is no such table."""
    rows = [
        int(weight.meta["val"].shape[0])
        for graph in (program.graph, *program.prompts.values())
        for start in graph.find_nodes(op="placeholder")
        if start.name == name
        for weight in _tables(program, start)
    ]
    return min(rows, default=None)


def _tables(program: Program, start: fx.Node) -> Iterator[fx.Node]:
    """The tables that whole numbers which come from ``start`` are looked up in, inside of blocks too."""
    pending, seen = [start], {start}
    while pending:
        node = pending.pop()
        for user in node.users:
            if user.target is _EMBEDDING and user.args[1] is node:
                yield user.args[0]  # type: ignore[misc]
                continue
            reached = [user] if _is_whole(user) else []
            if "body" in user.meta:
                inner = program.body_of(user).placeholders
                reached = [placeholder for placeholder, given in zip(inner, user.args, strict=True) if given is node]
            pending += [x for x in reached if x not in seen]
            seen.update(reached)


def _is_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
