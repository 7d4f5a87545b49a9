"""A linear map of each token moves before the nearest-neighbour copies of tokens: copies need not be computed again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from ..ops import restore_tokens
from ..program import Program
from .axes import LINEAR, axis_behind
from .base import Pass


@dataclass(frozen=True)
class LinearBeforeCopy(Pass):
    """Exact to the last bit where the product of matrices is: each dense token is a copy of a sparse one.

    At the end of a module ``W1 up(X_s)`` becomes ``up(W1 X_s)`` (paper, section 3.2): as many products as sparse tokens.
    """

    name: ClassVar[str] = "linear-before-copy"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[tuple[fx.Node, fx.Node]]:
        """Linear maps, with the restored tokens that they map."""
        for copies in program.graph.find_nodes(op="call_function", target=restore_tokens):
            for user in list(copies.users):
                if user.target in LINEAR and axis_behind(user, copies, _axis(copies)) is not None:
                    yield user, copies

    def rewrite(self, program: Program, place: tuple[fx.Node, fx.Node]) -> None:
        linear, copies = place
        graph = program.graph
        with graph.inserting_before(linear):
            early = self.make(graph, linear.target, (copies.args[0], *linear.args[1:]), linear, **linear.kwargs)
            late = self.make(graph, restore_tokens, (early, *copies.args[1:]), copies, **copies.kwargs)
        linear.replace_all_uses_with(late)
        graph.erase_node(linear)
        if not copies.users:
            graph.erase_node(copies)

    def describe(self, place: tuple[fx.Node, fx.Node]) -> str:
        linear, copies = place
        return f"{linear.name} of {copies.name}"


def _axis(copies: fx.Node) -> int:
    args: Any = copies.args
    rank: int = copies.meta["val"].ndim
    return int(args[3] if len(args) > 3 else 1) % rank
