"""Sides of the grid from what a caller gives, from tables of positions, from the latent, and what the module refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsify import GridError
from sparsify.grid_readers import FixedGrid, GridModule, GridOfLatent, GridOfPositions, checked_sides, sides_of_positions


def cells(*sides: int, step: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    """Positions in row-major order, written as loops."""
    rows: list[list[float]] = [[]]
    for side in sides:
        rows = [[*row, offset + step * place] for row in rows for place in range(side)]
    return torch.tensor(rows)


@pytest.mark.parametrize("given", [(5,), (32, 32), (2, 3, 4), (-1, 4), (4, -1), (-1,), (1, 1)])
def test_a_grid_that_a_caller_may_give(given: tuple[int, ...]) -> None:
    assert checked_sides(list(given)) == given


@pytest.mark.parametrize("given", [(), (2, 2, 2, 2), (0, 4), (-2, 4), (4, -3), (True, 4), (2.0, 4), ("4", 4), (-1, -1), "ab"])
def test_a_grid_that_no_caller_may_give(given: Any) -> None:
    with pytest.raises(GridError, match=r"one to three integers of at least 1, .* one may be -1"):
        checked_sides(given)


@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [((4, -1), 24, (4, 6)), ((-1, 4), 24, (6, 4)), ((-1,), 7, (7,)), ((2, 3, -1), 24, (2, 3, 4)), ((2, 3), 99, (2, 3)),
     ((4, -1), 26, (4, 6))],
)  # fmt: skip
def test_an_open_side_is_what_the_tokens_leave(given: tuple[int, ...], count: int, expected: tuple[int, ...]) -> None:
    assert FixedGrid(given).sides(count) == expected


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ((1, 4, 16, 18), (2, 2), (8, 9)),
        ((1, 4, 17, 19), (2, 2), (8, 9)),
        ((1, 4, 3, 8, 8), (1, 2, 4), (3, 4, 2)),
        ((1, 6), (3,), (2,)),
    ],
)
def test_the_grid_of_a_latent_is_its_last_axes_in_patches(
    shape: tuple[int, ...], steps: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert GridOfLatent(steps).sides(0, torch.empty(shape)) == expected


@pytest.mark.parametrize(("sides", "beside", "fits"), [
    ((3, 4), False, True), ((3, 4), True, True), ((3, 3), False, False), ((3, 3), True, True), ((3, 5), False, False),
    ((3, 5), True, False),
])  # fmt: skip
def test_the_product_is_the_number_of_tokens_or_less_beside_text(sides: tuple[int, ...], beside: bool, fits: bool) -> None:
    module = GridModule(FixedGrid(sides), beside)
    if fits:
        assert module(12) == sides
    else:
        with pytest.raises(GridError, match="tokens but this call has 12"):
            module(12)


def test_a_grid_stands_alone_unless_said_otherwise() -> None:
    with pytest.raises(GridError, match=r"\(3, 3\) has 9 tokens"):
        GridModule(FixedGrid((3, 3)))(12)


def test_the_module_hands_positions_to_its_reader() -> None:
    assert GridModule(GridOfPositions(2))(15, cells(3, 5)) == (3, 5)


@pytest.mark.parametrize("sides", [(7,), (2,), (3, 5), (5, 3), (2, 3, 4)])
@pytest.mark.parametrize(("step", "offset"), [(1.0, 0.0), (0.5, -3.0), (2.0, 100.0), (0.1, 0.0), (1 / 25, 0.0)])
def test_positions_of_a_grid(sides: tuple[int, ...], step: float, offset: float) -> None:
    table, count = cells(*sides, step=step, offset=offset), len(cells(*sides))
    assert sides_of_positions(table, count) == sides
    assert sides_of_positions(table[None].expand(2, -1, -1), count) == sides
    assert GridOfPositions(len(sides)).sides(count, table) == sides


def test_the_first_of_a_batch_of_tables_is_read() -> None:
    assert sides_of_positions(torch.stack((cells(3, 5), cells(5, 3))), 15) == (3, 5)


def test_a_column_that_stands_still_is_no_axis() -> None:
    table = torch.cat((torch.full((15, 1), 3.0), cells(3, 5)), dim=-1)
    assert sides_of_positions(table, 15) == (3, 5)


def test_steps_may_differ_between_axes() -> None:
    assert sides_of_positions(cells(3, 5) * torch.tensor([4.0, 0.5]), 15) == (3, 5)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("behind", [False, True])
def test_rows_of_text_stand_before_or_behind(rows: int, behind: bool) -> None:
    text = torch.zeros(rows, 2)
    table = torch.cat([cells(3, 5), text] if behind else [text, cells(3, 5)])
    assert sides_of_positions(table, 15) == (3, 5)


def with_a_gap() -> torch.Tensor:
    table = cells(3, 5)
    table[table == 2] = 2.5
    return table


def one_off(far: int) -> torch.Tensor:
    table = cells(20_000, 1).double()
    table[far] += 0.1
    return table


def with_a(value: float) -> torch.Tensor:
    table = cells(3, 5)
    table[4, 1] = value
    return table


NO_GRID = {
    "backwards": cells(3, 5).flip(0),
    "columns first": cells(3, 5)[:, [1, 0]],
    "a cell is missing": cells(3, 5)[:-1],
    "a cell twice": torch.cat((cells(3, 5)[:-1], cells(3, 5)[-2:-1])),
    "uneven steps": with_a_gap(),
    "four axes": cells(2, 2, 2, 2),
    "all the same": torch.zeros(15, 2),
    "one token": torch.zeros(1, 2),
    "no token": torch.zeros(0, 2),
    "one far from its cell, far out": one_off(15_000),
    "a nan": with_a(math.nan),
    "an infinity": with_a(math.inf),
}


@pytest.mark.parametrize("name", sorted(NO_GRID))
def test_positions_that_span_no_grid(name: str) -> None:
    table = NO_GRID[name]
    assert sides_of_positions(table, len(table)) is None
    with pytest.raises(GridError, match="do not span a grid of 2 axes in row-major order"):
        GridOfPositions(2).sides(len(table), table)


@pytest.mark.parametrize("count", [14, 16, 30])
def test_a_grid_of_another_number_of_tokens_is_none(count: int) -> None:
    assert sides_of_positions(cells(3, 5), count) is None


def test_a_grid_of_other_axes_than_at_the_capture_is_refused() -> None:
    with pytest.raises(GridError, match="grid of 3 axes"):
        GridOfPositions(3).sides(15, cells(3, 5))


@pytest.mark.parametrize("make", [lambda: FixedGrid((2, 3)), lambda: GridOfPositions(2), lambda: GridOfLatent((2, 2))])
def test_a_reader_is_the_same_for_ever(make: Callable[[], Any]) -> None:
    """Captures share it, and are compared by it."""
    assert make() == make() and hash(make()) == hash(make())
