"""What the code of passes took for granted about sizes when it was traced: it becomes a condition of the capture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
from torch import fx

from .errors import RewriteError
from .program import Program
from .shapes import size_of
from .sizes import binding

FACTS = "facts"  # where nodes that were traced keep them


def facts_of(program: Program) -> list[sympy.Basic]:
    """Conditions on the sizes of the program's inputs, from its outer graph and from the bodies that it calls.

    Raises:
        RewriteError: one does not hold at a pooled grid of the schedule.
    """
    found = list(_facts_in(program.graph))
    for call in program.all_block_nodes:
        body = program.body_of(call)
        if inner := list(_facts_in(body.graph)):
            bound = binding(body, call)
            found += [fact.xreplace(bound) for fact in inner]
    found = list(dict.fromkeys(found))
    axes: dict[Any, Any] = {size_of(node.meta["val"]): node.args[1] for node in program.pooled_nodes}  # of sides that are read
    known: dict[Any, Any] = dict(program.shape_env.backed_var_to_val)
    for grid in program.density.grids(program.grid_hint) if program.density is not None else ():
        sizes = known | {side: grid[axis] for side, axis in axes.items()}
        if broken := [fact for fact in found if fact.xreplace(sizes) == sympy.false]:
            raise RewriteError(
                f"the code of a pass was traced where {broken[0]}, which does not hold at the pooled grid {grid}."
            )
    return found


def _facts_in(graph: fx.Graph) -> Iterable[sympy.Basic]:
    return (fact for node in graph.nodes for fact in node.meta.get(FACTS, ()))
