"""A forecast of errors: squared errors of the output add up, one term for each block and role.

Errors that come from different blocks are about orthogonal in a space of so many dimensions, so that their squares add. The
forecast only proposes what to measure next; what is chosen was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .words import REWRITTEN

_DAMPING = 0.1  # of the pull towards the shared-out errors, where measurements leave terms open
_EXACT = 1e-3  # of the median squared error: what is below counts as exact
_PARTS = "GSR"  # whose errors depend on the density
_LEAST = 1e-3


class Observation(NamedTuple):
    """A measured error of the output; infinite where the roles were refused.

    ``stretch`` is the squared error of modules at that density, in terms of that at the density of the trials.
    """

    word: str
    error: float
    stretch: float = 1.0


@dataclass(frozen=True)
class Additive:
    """By letter, the squared error that each block brings in that role at the density of the trials."""

    squares: dict[str, tuple[float, ...]]

    @classmethod
    def fit(cls, observations: Sequence[Observation], depth: int) -> Additive:
        """Least squares on relative errors, damped towards the errors shared out evenly among the blocks that are rewritten.

        A role that was refused to a block in every trial gets an infinite error.
        """
        found = [o for o in observations if math.isfinite(o.error)]
        prior = _shared_out(found, depth)
        if found:
            prior = _solved(found, prior, depth)
        refused = _always_refused(observations)
        return cls(
            {
                letter: tuple(math.inf if (letter, block) in refused else prior[letter, block] for block in range(depth))
                for letter in REWRITTEN
            }
        )

    def square(self, word: str, stretch: float = 1.0) -> float:
        """The squared error of a word."""
        return sum(self.term(letter, block, stretch) for block, letter in enumerate(word))

    def term(self, letter: str, block: int, stretch: float = 1.0) -> float:
        """The part of one block in one role."""
        if letter == "D":
            return 0.0
        return self.squares[letter][block] * (stretch if letter in _PARTS else 1.0)


class Stretch:
    """How the squared error of modules follows the level of the density: linear between measured levels, flat outside.

    Args:
        measured: levels with the squared error there.
        reference: the level at which it is 1.
    """

    def __init__(self, measured: Sequence[tuple[float, float]], reference: float) -> None:
        self._measured = sorted(measured)
        self._unit = self._interpolated(reference) or 1.0

    def at(self, level: float) -> float:
        """The factor at a level; never so small that nothing is left of an error."""
        return max(_LEAST, self._interpolated(level) / self._unit)

    def _interpolated(self, level: float) -> float:
        if not self._measured:
            return 1.0
        below = max((point for point in self._measured if point[0] <= level), default=self._measured[0])
        above = min((point for point in self._measured if point[0] >= level), default=self._measured[-1])
        if above[0] == below[0]:
            return below[1]
        share = (level - below[0]) / (above[0] - below[0])
        return (1 - share) * below[1] + share * above[1]


_Terms = dict[tuple[str, int], float]


def _terms(word: str) -> list[tuple[str, int]]:
    return [(letter, block) for block, letter in enumerate(word) if letter != "D"]


def _shared_out(found: Sequence[Observation], depth: int) -> _Terms:
    """Of the errors that a term has a part in the smallest, divided by the number of blocks behind it.

    The smallest, because no term is larger than any error it is part of: a block that matters much must not rub off on those
    beside it.
    """
    known: _Terms = {}
    for observation in found:
        terms = _terms(observation.word)
        for term in terms:
            share = observation.error**2 / len(terms) / (observation.stretch if term[0] in _PARTS else 1.0)
            known[term] = min(share, known.get(term, share))
    overall = statistics.fmean(known.values()) if known else 1.0
    means = {}
    for letter in REWRITTEN:
        alike = [value for (other, _), value in known.items() if other == letter]
        means[letter] = statistics.fmean(alike) if alike else overall
    return {(letter, block): known.get((letter, block), means[letter]) for letter in REWRITTEN for block in range(depth)}


def _solved(found: Sequence[Observation], prior: _Terms, depth: int) -> _Terms:
    index = {term: at for at, term in enumerate(prior)}
    start = torch.tensor(list(prior.values()), dtype=torch.float64)
    matrix = torch.zeros(len(found), len(index), dtype=torch.float64)
    for row, observation in enumerate(found):
        for letter, block in _terms(observation.word):
            matrix[row, index[letter, block]] = observation.stretch if letter in _PARTS else 1.0
    squares = torch.tensor([o.error**2 for o in found], dtype=torch.float64)
    weight = 1 / (squares + _EXACT * squares.median() + 1e-30)
    unit = start + start.view(len(REWRITTEN), depth).mean(dim=1).repeat_interleave(depth) + 1e-30  # how far a term may move
    scaled = weight[:, None] * matrix * unit
    damped = scaled.T @ scaled + _DAMPING * torch.eye(len(index), dtype=torch.float64)
    change = torch.linalg.solve(damped, scaled.T @ (weight * (squares - matrix @ start)))
    return dict(zip(prior, (start + unit * change).clamp(min=0).tolist(), strict=True))


def _always_refused(observations: Sequence[Observation]) -> set[tuple[str, int]]:
    refused = {term for o in observations if math.isinf(o.error) for term in _terms(o.word)}
    return refused - {term for o in observations if math.isfinite(o.error) for term in _terms(o.word)}
