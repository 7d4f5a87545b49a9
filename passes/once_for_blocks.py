"""What all blocks of a kind compute alike, from the same inputs and weights, is computed once, in front of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ..program import Body, Program
from .base import Pass, remove_dead
from .hoist import behind, depending_on, frontier, given_everywhere, hoist, into_outer


@dataclass(frozen=True)
class Common:
    """A body, the values that its calls have in common, and all that these are computed from."""

    body: Body
    values: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class OnceForBlocks(Pass):
    """Exact to the last bit: sinusoids of the timestep in every block, masks made of the same lengths, shared modulation.

    Values that follow the tokens stay, because they come at other levels in other blocks.
    """

    name: ClassVar[str] = "once-for-blocks"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[Common]:
        if program.in_place:  # its own code calls the blocks; nothing can be given to them
            return
        for body in program.bodies.values():
            calls = program.calls_of(body)
            given = given_everywhere(program, body)
            same = [node for node, values in given.items() if len(set(values)) == 1 and _goes_to_several(program, values[0])]
            inside = depending_on(body.graph, same, lambda node: _is_shared(program, body, calls, node))  # noqa: B023
            if values := frontier(body.graph, inside):
                yield Common(body, tuple(values), tuple(behind(values, inside)))

    def rewrite(self, program: Program, place: Common) -> None:
        calls = program.calls_of(place.body)
        made = into_outer(program, place.body, calls[0], place.nodes, self.name)
        hoist(program, place.body, place.values, [[made[node] for node in place.values]] * len(calls))
        remove_dead(place.body.graph)

    def describe(self, place: Common) -> str:
        return f"{', '.join(node.name for node in place.values)} of {place.body.name}"


def _goes_to_several(program: Program, value: fx.Node) -> bool:
    return sum(value in call.args for call in program.all_block_nodes) > 1


def _is_shared(program: Program, body: Body, calls: list[fx.Node], node: fx.Node) -> bool:
    """Whether all blocks have the same tensor under this name, and it is not the only one's own."""
    owners = {program.owner(f"{call.target}.{node.target}") for call in calls}
    return node.target in body.constants or (
        len(owners) == 1 and (len(calls) > 1 or not owners.isdisjoint(program.tied.values()))
    )
