"""What the passes need to know of a captured program: its grid, which blocks see tokens of it, and the timestep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import sympy
import torch
from torch import fx, nn

from .accounting import check_density
from .calls import Leaf
from .density import Density
from .errors import CaptureError, GridError, InputError, TrunkError
from .grid import find_grid
from .in_place_grid import find_grid_in_place
from .layout import Layouts
from .plan import Plan, Policies, wants_grid
from .program import Body, Program
from .shapes import shape_of, symbolic
from .sizes import binding
from .timestep import find_timestep


def analyse(
    program: Program,
    policies: Policies,
    grid: tuple[int, ...] | None = None,
    timestep: str | None = None,
    model: nn.Module | None = None,
    inputs: Sequence[Leaf] = (),
    density: Density | None = None,
    for_passes: bool = False,
) -> bool:
    """Fill in grid, trunk and timestep where the policy needs them; whether it pools anything.

    For passes besides those of a policy all that can be found is filled in, and what a ``density`` among them needs must be.

    Raises:
        GridError: the grid is needed and cannot be found, or the given one does not fit.
        TrunkError: no block sees tokens of the grid.
        PolicyError: the policy does not fit the trunk or the grid.
        InputError: the timestep cannot be told.
    """
    needed = wants_grid(policies) or density is not None
    try:
        if program.in_place:
            assert model is not None  # noqa: S101  # it comes along with such a program
            find_grid_in_place(program, model, inputs, grid)
        else:
            find_grid(program, grid)
    except GridError as error:
        if needed or grid is not None:
            raise
        program.grid_source = str(error)
        for body in program.bodies.values():
            body.moving = _count_symbols(body)
        return Plan.of(policies, program.paths).rewrites
    find_tokens(program)
    plan = Plan.of(policies, program.paths)
    if not plan.pools and not for_passes:
        return plan.rewrites
    check_chain(program)
    restate_sizes(program)
    pools = check_density(plan.schedule, program.grid_hint) if plan.pools else plan.rewrites
    if (plan.pools and pools) or for_passes:
        program.timestep = _timestep(program, timestep, needed=density is not None or plan.pools)
    program.stage = "analysed"
    return pools


def _timestep(program: Program, given: str | None, needed: bool) -> str | None:
    try:
        return find_timestep(program, given)
    except InputError:
        if needed or given is not None:
            raise
        return None


def find_tokens(program: Program) -> None:
    """Find out for every block which of its inputs holds the grid, and leave those without one out of the trunk.

    Raises:
        TrunkError: no block has such an input.
    """
    layouts = Layouts(program)
    trunk: list[str] = []
    settled: dict[str, tuple[int, int]] = {}
    for node in program.all_block_nodes:
        body = program.body_of(node)
        place = _tokens_of(program, layouts, node, body)
        if place is None:
            continue
        if settled.setdefault(body.name, place) != place:
            raise CaptureError(f"{node.target} carries the tokens in another input than blocks that are equal to it.")
        body.token_output, body.token_axis = place
        body.tokens = body.updates[body.token_output]
        bound = binding(body, node)
        body.moving = frozenset(
            symbol for symbol, size in bound.items() if layouts.is_aligned(size) and isinstance(symbol, sympy.Symbol)
        )
        trunk.append(str(node.target))
    if not trunk:
        raise TrunkError(f"no repeated block has tokens on the {program.grid_hint} grid among its inputs.")
    program.paths = trunk


def restate_sizes(program: Program) -> None:
    """Let what goes along with the tokens claim sizes in terms of the grid, where only the block knows that it does.

    The outer trace may have taken such a size for a number, or for another symbol; a guard on the inputs holds them equal.
    """
    layouts = Layouts(program)
    for call in program.block_nodes:
        body = program.body_of(call)
        bound = binding(body, call)
        for argument, placeholder in zip(call.args, body.placeholders, strict=True):
            if not isinstance(argument, fx.Node) or not isinstance(argument.meta["val"], torch.Tensor):
                continue
            claimed = shape_of(argument)
            known = [sympy.sympify(size).xreplace(bound) for size in shape_of(placeholder)]
            if any(layouts.is_aligned(k) and sympy.expand(k - c) != 0 for c, k in zip(claimed, known, strict=True)):
                sizes = [k if layouts.is_aligned(k) else c for c, k in zip(claimed, known, strict=True)]
                fake = argument.meta["val"]
                with program.fake_mode:
                    shape = [symbolic(program.shape_env, size, program.hint(size)) for size in sizes]
                    argument.meta["val"] = fake.new_empty(shape)
                argument.meta["restated"] = True


def check_chain(program: Program) -> None:
    """Every block must be fed, directly or through operators, by the one before it; a decoder may do so through its text."""
    import networkx

    flow = networkx.DiGraph((source, node) for node in program.graph.nodes for source in node.all_input_nodes)
    for below, above in itertools.pairwise(program.block_nodes):
        if not networkx.has_path(flow, below, above):
            raise CaptureError(f"{above.target} does not take its tokens from {below.target}; they form no chain.")


def _tokens_of(program: Program, layouts: Layouts, node: fx.Node, body: Body) -> tuple[int, int] | None:
    """Which output is the next version of the tokens, and their axis: the last that holds sides of the grid."""
    best: tuple[int, tuple[int, int]] | None = None
    for output, position in enumerate(body.updates):
        argument = node.args[position]
        if isinstance(argument, fx.Node) and isinstance(argument.meta["val"], torch.Tensor) and layouts.holds_grid(argument):
            axis = max(layouts.of(argument), key=lambda place: (len(place.sides), -place.axis)).axis
            size = argument.meta["val"].numel()
            number = int(size) if isinstance(size, int) else int(size.node.hint)
            if best is None or number > best[0]:
                best = number, (output, axis)
    return None if best is None else best[1]


def _count_symbols(body: Body) -> frozenset[sympy.Symbol]:
    """Without a grid the length of the token axis is all there is to know."""
    return frozenset(sympy.sympify(shape_of(body.token_node)[1]).free_symbols)
