"""Whether the queries of a block can come from other tokens than its keys, and the body in which they do."""

from __future__ import annotations

from torch import fx

from ..attention import mixes_tokens, refusal_of_counts, refusal_of_positions, refusal_to_mix, unrecognised_mixing
from ..layout import Layouts
from ..probe import refusal_to_split
from ..program import Body, Program
from ..shapes import size_of
from ..sizes import binding
from .split import split_queries_from_keys
from .subset import subset_of


def separated(program: Program, body: Body, by: str) -> Body:
    """The body of such a block with further inputs for the tokens to attend to (see ``Body.twins``), made once.

    Raises:
        RewriteError: queries and keys cannot be told apart.
    """
    name = f"{body.name}.split"
    if name not in program.bodies:
        program.bodies[name] = split_queries_from_keys(body, name, by)
    return program.bodies[name]


def refusal_to_separate(program: Program, block: fx.Node, crosses: bool, by: str) -> str | None:
    """Why a block cannot see pooled tokens, or None; asked once of each body, and tried on random numbers.

    Args:
        program: with a density node.
        block: a node of the trunk.
        crosses: whether its queries and keys are to be other tokens; or else it sees pooled tokens alone.
        by: the pass that asks.
    """
    body = program.body_of(block)
    mixes = mixes_tokens(body)
    key = f"{body.name}.split" if crosses and mixes else body.name
    if key not in program.probes:
        program.probes[key] = refusal_to_mix(body) or unrecognised_mixing(body)
        program.probes[key] = program.probes[key] or _refusal_of_sizes(program, block, body)
        if program.probes[key] is None and (crosses or not mixes):
            program.probes[key] = _try(program, block, body, mixes, by)
    return program.probes[key]


def _refusal_of_sizes(program: Program, block: fx.Node, body: Body) -> str | None:
    assert program.density is not None  # noqa: S101  # the density node was checked for
    layouts, bound = Layouts(program), binding(body, block)
    sides = [size_of(side.meta["val"]) for side in program.pooled_nodes]
    for grid in program.density.grids(program.grid_hint):
        numbers = dict(zip(sides, grid, strict=True))
        sizes = {symbol: program.hint(layouts.pooled(size).xreplace(numbers)) for symbol, size in bound.items()}
        if reason := refusal_of_counts(body, sizes):
            return reason
    return refusal_of_positions(body)


def _try(program: Program, block: fx.Node, body: Body, mixes: bool, by: str) -> str | None:
    try:
        split = separated(program, body, by) if mixes else body
        return refusal_to_split(body, split, subset_of(program, block, body))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"queries and keys cannot be told apart: {str(error).splitlines()[0]}"
