"""Which policies to measure: those that a forecast of error and cost finds best at a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection

from .additive import Additive, Stretch
from .costs import RoleCosts
from .paths import best_paths
from .scale import Scale, highest
from .words import neighbours

_LEVELS = tuple(index / 8 for index in range(9))


class Forecast:
    """Error and cost of every word without building it.

    Args:
        errors: squared errors at the density of the trials.
        costs: of every block by role.
        scale: from one token to the full grid.
        stretch: how errors of modules follow the level.
    """

    def __init__(self, errors: Additive, costs: RoleCosts, scale: Scale, stretch: Stretch) -> None:
        self.errors, self._costs, self._scale, self._stretch = errors, costs, scale, stretch
        self._at_level = functools.cache(lambda level: costs.at(scale.grids(level)))

    def gflops(self, word: str, level: float) -> float:
        """GFLOPs at a level."""
        by_letter = self._at_level(level)
        return self._costs.outside + sum(by_letter[letter][block] for block, letter in enumerate(word))

    def error(self, word: str, budget: float) -> float:
        """The error at the densest level that the budget allows; infinite where it allows none."""
        level = highest(lambda at: self.gflops(word, at), budget, steps=7)
        if level is None:
            return math.inf
        return math.sqrt(self.errors.square(word, self._stretch.at(level)))

    def best(self, budget: float) -> set[str]:
        """At each of several levels, the words with the least error at every cost up to ``budget`` GFLOPs."""
        found = set()
        for level in _LEVELS:
            costs, stretch = self._at_level(level), self._stretch.at(level)
            squares = {letter: [self.errors.term(letter, b, stretch) for b in range(len(costs["D"]))] for letter in costs}
            found |= {path.word for path in best_paths(squares, costs, budget - self._costs.outside)}
        return found


def proposals(forecast: Forecast, budget: float, near: Collection[str] = ()) -> list[str]:
    """Words that meet ``budget`` GFLOPs, least error first, as forecast; among them those ``near`` and all one step away."""
    words = forecast.best(budget).union(near, *map(neighbours, near))
    rated = sorted((error, word) for word in words if math.isfinite(error := forecast.error(word, budget)))
    return [word for _, word in rated]
