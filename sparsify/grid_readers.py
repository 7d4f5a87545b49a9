"""How the token grid is read at every call where the sizes of the inputs do not tell it (packed tokens)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import GridError


def checked_sides(given: Sequence[int]) -> tuple[int, ...]:
    """The grid that a caller gives.

    Raises:
        GridError: it is none.
    """
    sides = tuple(given)
    whole = all(not isinstance(side, bool) and isinstance(side, int) and (side >= 1 or side == -1) for side in sides)
    if not 1 <= len(sides) <= 3 or not whole or sides.count(-1) > 1:
        raise GridError(f"grid is {given!r}; it must be one to three integers of at least 1, such as (32, 32); one may be -1.")
    return sides


@dataclass(frozen=True)
class FixedGrid:
    """A grid that the caller gave; one side may be -1, for what the number of tokens leaves."""

    given: tuple[int, ...]

    def sides(self, count: int) -> tuple[int, ...]:
        """The sides for ``count`` tokens; their product is not checked."""
        known = math.prod(side for side in self.given if side != -1)
        return tuple(count // known if side == -1 else side for side in self.given)


@dataclass(frozen=True)
class GridOfPositions:
    """A grid that a table of positions spans, a row per token and a column per axis."""

    rank: int

    def sides(self, count: int, positions: torch.Tensor) -> tuple[int, ...]:
        """The sides that the positions span."""
        sides = sides_of_positions(positions, count)
        if sides is None or len(sides) != self.rank:
            raise GridError(f"the positions of this call do not span a grid of {self.rank} axes in row-major order.")
        return sides


@dataclass(frozen=True)
class GridOfLatent:
    """A grid of the last axes of a latent, in steps of a patch."""

    steps: tuple[int, ...]

    def sides(self, count: int, latent: torch.Tensor) -> tuple[int, ...]:
        """The sides, without what a patch leaves over."""
        sizes = latent.shape[latent.ndim - len(self.steps) :]
        return tuple(size // step for size, step in zip(sizes, self.steps, strict=True))


class GridModule(nn.Module):
    """The grid node at run time: the number of tokens, and a table of positions, in; sides of the dense grid out."""

    def __init__(self, reader: Any, beside: bool = False) -> None:
        super().__init__()
        self.reader = reader
        self.beside = beside  # whether other rows stand beside the grid

    def forward(self, count: int, *positions: torch.Tensor) -> tuple[int, ...]:
        """The sides, whose product is ``count``, or less where text stands beside the grid."""
        sides: tuple[int, ...] = self.reader.sides(count, *positions)
        if math.prod(sides) > count or (math.prod(sides) < count and not self.beside):
            raise GridError(f"the grid {sides} has {math.prod(sides)} tokens but this call has {count}; pass another grid=.")
        return sides


def sides_of_positions(positions: torch.Tensor, count: int) -> tuple[int, ...] | None:
    """The grid whose ``count`` cells in row-major order are ``positions`` of (..., rows, columns), or None if there is none.

    Where there are more rows, the others are those of a text before or behind the tokens.
    """
    if not positions.numel():
        return None
    table = positions.detach().reshape(-1, *positions.shape[-2:])[0].double().cpu()
    ends = (table,) if table.shape[0] == count else (table[-count:], table[:count])
    return next((sides for rows in ends if (sides := _sides_of_table(rows)) is not None and rows.shape[0] == count), None)


def _sides_of_table(table: torch.Tensor) -> tuple[int, ...] | None:
    if not table.isfinite().all():
        return None
    table = table - table.amin(dim=0)
    moving = [column for column in table.unbind(-1) if float(column.max()) > 0]
    columns = [column / float(column[column > 0].min()) for column in moving]  # in steps, which rounding leaves inexact
    sides = [round(float(column.max())) + 1 for column in columns]
    if not 1 <= len(sides) <= 3 or math.prod(sides) != table.shape[0]:
        return None
    cells = torch.cartesian_prod(*(torch.arange(side) for side in sides)).reshape(-1, len(sides))
    return tuple(sides) if torch.allclose(torch.stack(columns, dim=-1), cells.double(), rtol=0, atol=0.01) else None
