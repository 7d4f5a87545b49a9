"""The configurations of the SparseDiT paper (arXiv 2412.06028, its tables of configurations), as data.

The paper prints for each row a range of pruning rates, rounded to two digits, and the pooled grids at its ends. The two
disagree by one token a side where the floor of ``side * sqrt(1 - r)`` loses one: 0.61 on a 16x16 grid gives 9x9, not
10x10. Each row takes the reading whose cost is closer to the GFLOPs that the paper prints for it.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import PolicyError


class Row(NamedTuple):
    """One published configuration: ``rates`` as printed, ``finest`` and ``coarsest`` as taken, rates or pooled grids."""

    model: str
    resolution: int
    depth: int
    poolingformer: int
    sdtm: tuple[tuple[int, int, int, int], ...]
    dense: int
    rates: tuple[float, float]
    finest: float | tuple[int, int]
    coarsest: float | tuple[int, int]


_FOUR = ((1, 3, 1, 1),) * 4
_TWO = ((1, 2, 1, 1),) * 2

# The first row of a model and resolution is the one taken when no rates are named.
ROWS = (
    Row("DiT-XL/2", 512, 28, 2, _FOUR, 2, (0.90, 0.96), (10, 10), (6, 6)),
    Row("DiT-XL/2", 512, 28, 2, _FOUR, 2, (0.61, 0.86), 0.61, 0.86),
    Row("DiT-XL/2", 256, 28, 1, _FOUR, 3, (0.61, 0.86), 0.61, 0.86),
    Row("DiT-XL/2", 256, 28, 1, _FOUR, 3, (0.44, 0.61), (12, 12), (10, 10)),
    # The paper does not print the segments of DiT-B; these reproduce its FLOPs.
    Row("DiT-B/2", 256, 12, 1, _TWO, 1, (0.61, 0.86), 0.61, 0.86),
)


def find(model: str, resolution: int, rates: tuple[float, float] | None = None) -> Row:
    """The row of that model and resolution; among several, the one with these ``rates``, or the first."""
    rows = [row for row in ROWS if (row.model, row.resolution) == (model, resolution)]
    for row in rows:
        if rates is None or tuple(rates) == row.rates:
            return row
    if rows:
        raise PolicyError(f"rates={rates!r}: the paper has {model} at {resolution} with {[row.rates for row in rows]}.")
    names = sorted({(row.model, row.resolution) for row in ROWS})
    raise PolicyError(f"the paper has no configuration for {model!r} at {resolution!r}; it has {names}. See Policy.fit(depth).")
