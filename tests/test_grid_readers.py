"""Grids out of position ids, against the ids that pipelines write."""

from __future__ import annotations

import pytest
import torch

from sparsify import GridError
from sparsify.grid_readers import FixedGrid, GridOfPositions, sides_of_positions


def ids(*sides: int, step: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(side) * step + offset for side in sides)).reshape(-1, len(sides))


@pytest.mark.parametrize("sides", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize(("step", "offset"), [(1.0, 0.0), (0.5, 3.0), (2.0, 100.0)])
def test_a_table_of_cells(sides: tuple[int, ...], step: float, offset: float) -> None:
    table = ids(*sides, step=step, offset=offset)
    assert sides_of_positions(table, table.shape[0]) == sides
    assert sides_of_positions(table.expand(2, -1, -1), table.shape[0]) == sides


@pytest.mark.parametrize("behind", [False, True])
def test_text_beside_the_cells(behind: bool) -> None:
    text = torch.zeros(4, 2)
    parts = [ids(3, 5), text] if behind else [text, ids(3, 5)]
    assert GridOfPositions(2).sides(15, torch.cat(parts)) == (3, 5)


@pytest.mark.parametrize(
    "table",
    [
        ids(3, 5).flip(0),
        ids(3, 5)[torch.randperm(15, generator=torch.Generator().manual_seed(1))],
        ids(3, 5)[:-1],
        torch.randn(15, 2),
    ],
    ids=["backwards", "shuffled", "a cell is missing", "no grid"],
)
def test_what_is_no_row_major_grid(table: torch.Tensor) -> None:
    assert sides_of_positions(table, table.shape[0]) is None
    with pytest.raises(GridError, match="do not span a grid of 2 axes in row-major order"):
        GridOfPositions(2).sides(table.shape[0], table)


def test_one_side_left_open() -> None:
    assert FixedGrid((4, -1)).sides(24) == (4, 6)
