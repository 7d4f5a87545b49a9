"""Densities of a few grids out of any function of the timestep."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from .ends import End, checked_end, is_number
from .errors import PolicyError

_SAMPLES = 1000  # of a continuous range of timesteps


def is_discrete(timesteps: float) -> bool:
    """Whether timesteps up to T are whole numbers: T is one, above 1."""
    return is_number(timesteps) and timesteps == int(timesteps) and timesteps > 1


def sampled(timesteps: float) -> list[float]:
    """Every whole timestep below T, or points of a continuous range [0, T] with its ends."""
    if is_discrete(timesteps):
        return list(range(int(timesteps)))
    return [timesteps * index / (_SAMPLES - 1) for index in range(_SAMPLES)]


def discretised(function: Callable[[float], End], levels: int, timesteps: float) -> dict[float, End]:
    """From which timestep on which end holds; rates are rounded down, to more tokens, on ``levels`` even steps.

    Raises:
        PolicyError: no function, no end, or more different grids than ``levels``.
    """
    if not callable(function):
        raise PolicyError(f"Density.of takes a function from timestep to rate or grid, not {function!r}.")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise PolicyError(f"Density.of: levels is {levels!r}; it must be an integer of at least 2.")
    ends = {t: checked_end(f"of({t:g})", function(t)) for t in sampled(timesteps)}
    rates = [end for end in ends.values() if not isinstance(end, tuple)] or [math.nan]  # which nothing is rounded to
    low = min(rates)
    width = (max(rates) - low) / levels

    def rounded(end: End) -> End:
        if isinstance(end, tuple) or width == 0:  # all rates are one
            return end
        return low + width * min(levels - 1, math.floor((end - low) / width + 1e-9))

    order = [(t, rounded(end)) for t, end in ends.items()]
    if (count := len({end for _, end in order})) > levels:
        raise PolicyError(f"Density.of: the function gives {count} different grids; at most levels={levels} may be.")
    return dict([order[0], *(after for before, after in pairwise(order) if before[1] != after[1])])
