"""The words with the least error at every cost: shortest paths over the blocks of a trunk, with two lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# What may follow each letter: modules of one generate and one recover block, as in the paper. "T" is a dense block above
# which no module comes; it is written "D".
_NEXT = {"": "PG", "P": "PGT", "G": "SR", "S": "SR", "R": "GD", "D": "GD", "T": "T"}
_LAST = "PRDT"


class Path(NamedTuple):
    """A word, or the beginning of one, with its cost and its error."""

    cost: float
    error: float
    word: str


def best_paths(
    errors: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]], most: float = math.inf, width: int = 48
) -> list[Path]:
    """Of all words that rewrite something, those that no other beats in both cost and error, cheapest first.

    Args:
        errors: by letter, what each block adds to the error in that role.
        costs: likewise to the cost.
        most: the highest cost.
        width: how many beginnings of each kind to go on with; if there are more, of those that cost about the same the best
            are kept, and what is found may not be the best.
    """
    depth = len(costs["D"])
    # What the blocks above cost at least: a beginning that leaves less than that leads nowhere.
    rest = [0.0] * (depth + 1)
    for block in reversed(range(depth)):
        rest[block] = rest[block + 1] + min(costs[letter][block] for letter in costs)
    beginnings = {"": [Path(0.0, 0.0, "")]}
    for block in range(depth):
        longer: dict[str, list[Path]] = {}
        for state, paths in beginnings.items():
            for letter in _NEXT[state]:
                shown = "D" if letter == "T" else letter
                cost, error = costs[shown][block], errors[shown][block]
                if math.isfinite(error):
                    longer.setdefault(letter, []).extend(Path(p.cost + cost, p.error + error, p.word + shown) for p in paths)
        limit = most - rest[block + 1]
        beginnings = {state: _thinned(_front(p for p in paths if p.cost <= limit), width) for state, paths in longer.items()}
    return _front(path for state in _LAST for path in beginnings.get(state, ()))


def _front(paths: Iterable[Path]) -> list[Path]:
    """Those that no other beats, cheapest first."""
    found: list[Path] = []
    for path in sorted(paths):
        if not found or path.error < found[-1].error:
            found.append(path)
    return found


def _thinned(front: list[Path], width: int) -> list[Path]:
    """The cheapest, and the best of each of ``width`` ranges of cost."""
    if len(front) <= width:
        return front
    cheapest, step = front[0], (front[-1].cost - front[0].cost) / width
    ranges = {int((path.cost - cheapest.cost) / step): path for path in front}  # of one range the last, with the least error
    return list(dict.fromkeys([cheapest, *ranges.values()]))
