"""Strategies of policies that are legal for a model: segments that cover its blocks, grids that fit its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from torch import nn

from ..density import Density, Schedule
from ..ends import End, Grid
from ..policy import SDTM, Policy
from .reading import Trunk, trunk_of

_RATES = st.sampled_from([0.5, 0.1, 0.25, 0.75, 0.9, 0.97])


def policies(
    for_model: nn.Module,
    example_inputs: Any = None,
    *,
    grid: Sequence[int] | None = None,
    timesteps: float | None = None,
) -> st.SearchStrategy[Policy]:
    """Policies that rewrite a block at least, each legal for the model and with fewer tokens at every timestep.

    They shrink to one poolingformer block below dense ones, and to a constant density.

    Args:
        for_model: a model of :func:`~sparsify.testing.dits`, or any other, which is captured here, once.
        example_inputs: one call's inputs, for a model that is not of ``dits``.
        grid: its token grid, where it cannot be read off the graph.
        timesteps: the timestep of pure noise; that of the model's spec, or 1000.

    Raises:
        InputError: example inputs are needed.
        SparsifyError: as for ``sparsify``.
    """
    return _policies(trunk_of(for_model, example_inputs, grid, timesteps))


@st.composite
def _policies(draw: st.DrawFn, trunk: Trunk) -> Policy:
    pools_attention = draw(st.sampled_from([True, False])) or math.prod(trunk.grid[-2:]) < 2
    has_modules = not pools_attention or draw(st.booleans())
    if not has_modules:
        bottom = draw(st.integers(1, trunk.depth))
        return Policy(bottom, (), trunk.depth - bottom)
    bottom = draw(st.integers(1, trunk.depth - 2)) if pools_attention and trunk.depth > 2 else 0
    time = len(trunk.grid) == 3 and draw(st.booleans())
    chosen = draw(modules(trunk.depth - bottom, time))
    density = draw(densities(trunk.grid, trunk.timesteps, time))
    return Policy(bottom, chosen, trunk.depth - bottom - sum(module.depth for module in chosen), density)


@st.composite
def modules(draw: st.DrawFn, depth: int, time: bool = False) -> tuple[SDTM, ...]:
    """One module or several, of at most ``depth`` blocks together; ``depth`` is at least 2."""
    found: list[SDTM] = []
    while depth >= 2 and (not found or draw(st.booleans())):
        generate = draw(st.integers(1, min(2, depth - 1)))
        recover = draw(st.integers(1, min(2, depth - generate)))
        sparse = draw(st.integers(0, min(3, depth - generate - recover)))
        dense = draw(st.integers(0, min(2, depth - generate - recover - sparse)))
        found.append(SDTM(generate, sparse, recover, dense, time=time))
        depth -= found[-1].depth
    return tuple(found)


@st.composite
def densities(draw: st.DrawFn, grid: Grid, timesteps: float, time: bool = False) -> Density:
    """Densities of every schedule that pool tokens of ``grid`` at every timestep; of a video's frames only with ``time``."""
    sides = grid if time else grid[-2:]
    schedule: Schedule = draw(st.sampled_from(["constant", "paper", "linear", "cosine", "table"]))
    options: dict[str, Any] = {"timesteps": timesteps, "reversed": draw(st.booleans())}
    if time:
        options["pools_time"] = True
    if schedule == "constant":
        end = draw(_ends(sides))
        return Density(schedule, end, end, **options)
    if schedule == "table":
        later = draw(st.lists(_steps(timesteps), max_size=3, unique=True))
        return Density.table({0: draw(_ends(sides)), **{t: draw(_ends(sides)) for t in later}}, **options)
    options["levels"] = draw(st.none() | st.integers(2, 5))
    finest = draw(_ends(sides))
    coarsest = draw(_coarser(finest, sides))
    return Density(schedule, finest, coarsest, **options)


def _steps(timesteps: float) -> st.SearchStrategy[float]:
    """Timesteps above 0 at which a table may change."""
    return st.integers(1, 99).map(lambda percent: timesteps * percent / 100)


def _ends(sides: Grid) -> st.SearchStrategy[End]:
    """Pooled grids of fewer tokens than ``sides``, or rates."""
    return _grids_within(sides).filter(lambda pooled: pooled != sides) | _RATES


def _coarser(finest: End, sides: Grid) -> st.SearchStrategy[End]:
    """What may be the other end of a density with this finest one."""
    if isinstance(finest, tuple):
        return _grids_within(finest) | _RATES
    return _RATES.filter(lambda rate: rate >= finest) | _grids_within(sides).filter(lambda pooled: pooled != sides)


def _grids_within(sides: Grid) -> st.SearchStrategy[Grid]:
    return st.tuples(*(st.integers(1, side) for side in sides))
