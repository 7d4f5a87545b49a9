"""Whether a pass says what it did: on every node that it made, and on every block that it gave another body."""

from __future__ import annotations

import torch
from torch import fx

from ..program import Program


class Watch:
    """Looks at a program before and after each run of one pass; made in front of the pipeline, then called as its observer.

    Attributes:
        problem: the first thing that the pass did not record, in words.
    """

    def __init__(self, program: Program, name: str) -> None:
        self.problem: str | None = None
        self._name = name
        self._look(program)

    def __call__(self, stage: str, program: Program) -> None:
        """``stage`` is the pass that the program has just been through."""
        if stage == self._name and self.problem is None:
            self.problem = self._unmarked(program) or self._unrecorded(program)
        self._look(program)

    def _look(self, program: Program) -> None:
        self._nodes = {where: set(graph.nodes) for where, graph in program.graphs.items()}
        self._seen = {(node.name, str(node.target)) for nodes in self._nodes.values() for node in nodes}
        self._bodies = {node.target: node.meta["body"] for node in program.all_block_nodes}

    def _unmarked(self, program: Program) -> str | None:
        for where, graph in program.graphs.items():
            for node in graph.nodes:
                known = node in self._nodes[where] if where in self._nodes else _is_copy(node, self._seen)
                if not known and _needs_origin(node) and (reason := self._missing(node)):
                    return f"%{node.name} of {where} ({node.target}) {reason}; use self.make, self.trace or self.mark"
        return None

    def _missing(self, node: fx.Node) -> str | None:
        made_by = node.meta.get("provenance")
        if made_by is None:
            return "does not say which pass made it"
        pass_name, origin = made_by
        if pass_name != self._name:
            return f"says that {pass_name} made it, and it was made by {self._name}"
        return None if isinstance(origin, str) and origin else f"says that it came from {origin!r}, which is no name of a node"

    def _unrecorded(self, program: Program) -> str | None:
        for node in program.all_block_nodes:
            if node.meta["body"] != self._bodies.get(node.target) and self._name not in node.meta.get("passes", ()):
                return f"{node.target} runs {node.meta['body']} now and does not record that {self._name} rewrote it; use self.mark"
        return None


def _is_copy(node: fx.Node, seen: set[tuple[str, str]]) -> bool:
    """Whether a node of a new graph is one of another graph as it was; copies of graphs keep the names."""
    return (node.name, str(node.target)) in seen


def _needs_origin(node: fx.Node) -> bool:
    """Not inputs, parameters and arithmetic of sizes."""
    if node.op not in ("call_function", "call_module", "call_method"):
        return False
    value = node.meta.get("val")
    return not isinstance(value, (int, torch.SymInt))
