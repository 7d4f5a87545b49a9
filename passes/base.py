"""What a pass is: a frozen dataclass that matches places, checks each one, and rewrites those that pass the check."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import fx

from ..errors import PolicyError, RewriteError
from ..program import Body, Program, Skip
from ..shapes import annotate


class BlockRange(NamedTuple):
    """Blocks ``first`` to ``last`` of the trunk, both included, counted from 0 at the bottom."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: str) -> BlockRange:
        """Read ``3`` or ``0-1``."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise PolicyError(f"blocks={text} is not a block or a range of blocks such as 3 or 0-1.")
        return cls(int(match[1]), int(match[2] or match[1]))

    def of(self, program: Program) -> list[fx.Node]:
        """The trunk's nodes in this range.

        Raises:
            PolicyError: the trunk is shorter.
        """
        nodes = program.block_nodes
        if self.last >= len(nodes):
            raise PolicyError(f"blocks={self} but the trunk has blocks 0-{len(nodes) - 1}.")
        return nodes[self.first : self.last + 1]


class Provenance(NamedTuple):
    """Which pass made a node, and from which node."""

    pass_name: str
    origin: str


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a :class:`~sparsify.program.Program`.

    A subclass is a frozen dataclass whose fields are its options and whose ``name`` is kebab-case. ``match`` finds the
    places, ``check`` says why one must be left alone, ``rewrite`` changes one; the three never do each other's work.
    """

    name: ClassVar[str]

    @abstractmethod
    def match(self, program: Program) -> Iterable[Any]:
        """The places this pass applies to, as whatever ``check`` and ``rewrite`` take."""

    def check(self, program: Program, place: Any) -> str | None:
        """Why ``place`` must be left alone, naming the node, or None if it can be rewritten."""
        return None

    @abstractmethod
    def rewrite(self, program: Program, place: Any) -> None:
        """Change the program at ``place``, which has passed the check.

        Raises:
            RewriteError: what it met cannot be rewritten after all; the program is as it was.
        """

    def describe(self, place: Any) -> str:
        """A place in words, for the report."""
        return str(place)

    def run(self, program: Program) -> int:
        """Apply the pass; the number of places rewritten. Refusals go to ``program.skips``."""
        rewritten = 0
        for place in list(self.match(program)):
            reason = self.check(program, place)
            if reason is None:
                try:
                    self.rewrite(program, place)
                    rewritten += 1
                except RewriteError as error:  # seen on the way; the pass has put the program back
                    reason = str(error)
            if reason is not None:
                program.skips.append(Skip(self.name, self.describe(place), reason))
        return rewritten

    def make(self, graph: fx.Graph, target: object, args: tuple[Any, ...], origin: fx.Node, **kwargs: Any) -> fx.Node:
        """A new operator at the graph's insertion point, with its value and where it came from."""
        return self.mark(annotate(graph.call_function(target, args, kwargs)), origin)  # type: ignore[arg-type]

    def mark(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        """Record on a node that this pass made it, and from which one."""
        node.meta["provenance"] = Provenance(self.name, origin.name)
        return node


def copy_body(body: Body, name: str) -> Body:
    """A body with a graph of its own, so that rewriting it leaves blocks of other roles alone."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(body.graph, copied)
    graph.output(output)
    for node, twin in copied.items():
        twin.meta = dict(node.meta)
    return dataclasses.replace(body, name=name, graph=graph)


def remove_dead(graph: fx.Graph) -> None:
    """Remove what nothing reads; inputs stay, because the calls give them, and so do modules."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output", "call_module"))
