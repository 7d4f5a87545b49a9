"""One number for how dense a schedule is: its shape stays, the share of tokens it keeps is scaled, and a budget is filled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..density import Density
from ..ends import End, Grid

_STEP = 1e-4  # pruning rates are whole multiples of it, rounded up, to fewer tokens
_CLOSE = 1e-3  # of the budget: near enough


class Filled(NamedTuple):
    """A density that meets a budget from below: its level on the scale, and the GFLOPs with it."""

    density: Density
    level: float
    gflops: float


class Scale:
    """Densities of one shape, from level 0, a single pooled token, to level 1, all but the full grid.

    In between, the share of tokens that each end of the template keeps is multiplied by one factor; the logarithm of the
    factor is linear in the level. An end that has reached a bound stays there.

    Args:
        template: the density whose schedule is kept; ends given as grids become pruning rates.
        dense: the token grid.
    """

    def __init__(self, template: Density, dense: Grid) -> None:
        self._template, self._dense = template, dense
        keeps_time = template.keeps_time(dense)
        self._axes = dense[1:] if keeps_time else dense
        self._pools_time = template.pools_time or (len(dense) == 3 and not keeps_time)
        ends = (template.finest, template.coarsest, *(end for _, end in template.steps))
        shares = [self._share(end) for end in ends]
        self._least, self._most = _STEP / max(shares), 1 / min(shares)
        self._known: dict[float, tuple[Density, dict[Grid, float]]] = {}

    def density(self, level: float) -> Density:
        """The density at a level from 0 to 1."""
        return self._at(level)[0]

    def grids(self, level: float) -> dict[Grid, float]:
        """Its pooled grids with their shares of the timesteps."""
        return self._at(level)[1]

    def mean(self, cost: Callable[[Grid], float], level: float) -> float:
        """The mean over the timesteps of what a pooled grid costs."""
        return sum(share * cost(grid) for grid, share in self.grids(level).items())

    def fill(self, cost: Callable[[Grid], float], budget: float) -> Filled | None:
        """The densest one whose mean cost is within ``budget``; None if even a single token costs more."""
        level = highest(lambda at: self.mean(cost, at), budget)
        return None if level is None else Filled(self.density(level), level, self.mean(cost, level))

    def _at(self, level: float) -> tuple[Density, dict[Grid, float]]:
        if level not in self._known:
            density = self._scaled(self._least * (self._most / self._least) ** level)
            self._known[level] = density, density.grids(self._dense)
        return self._known[level]

    def _scaled(self, factor: float) -> Density:
        template = self._template
        finest, coarsest = (self._rate(end, factor) for end in (template.finest, template.coarsest))
        steps = tuple((t, self._rate(end, factor)) for t, end in template.steps)
        coarsest = coarsest if template.steps else max(finest, coarsest)
        return replace(template, finest=finest, coarsest=coarsest, steps=steps, pools_time=self._pools_time)

    def _share(self, end: End) -> float:
        """Of the tokens, how many an end keeps."""
        if not isinstance(end, tuple):
            return 1 - end
        return min(1.0, math.prod(end) / math.prod(self._axes if len(end) == len(self._axes) else self._dense))

    def _rate(self, end: End, factor: float) -> float:
        steps = math.ceil((1 - factor * self._share(end)) / _STEP - 1e-9)
        # The full grid is never reached: a module that pools nothing would drop what its blocks computed.
        return round(min(max(steps, 1), round(1 / _STEP) - 1) * _STEP, 4)


def highest(gflops: Callable[[float], float], budget: float, steps: int = 14) -> float | None:
    """The highest level, up to halving [0, 1] ``steps`` times, at which a rising cost is within the budget, or None."""
    low, high = 0.0, 1.0
    if gflops(low) > budget:
        return None
    if gflops(high) <= budget:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        cost = gflops(middle)
        low, high = (middle, high) if cost <= budget else (low, middle)
        if budget * (1 - _CLOSE) <= cost <= budget:
            break
    return low
