"""Pooling of every kind beside other rows and on any axis, and rotations, against loops and complex numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.shapes import new_size

GRIDS = [
    ((5,), (3,)), ((7,), (7,)), ((4,), (1,)), ((4, 6), (2, 3)), ((5, 7), (3, 4)), ((3, 2), (3, 1)),
    ((2, 4, 6), (2, 2, 3)), ((3, 4, 5), (2, 3, 2)), ((3, 4, 4), (1, 4, 4)),
]  # fmt: skip


def windows(side: int, pooled: int) -> list[list[int]]:
    return [list(range(i * side // pooled, math.ceil((i + 1) * side / pooled))) for i in range(pooled)]


def middle(window: list[int]) -> list[int]:
    """The row in the middle, or the two rows around it."""
    return [window[(len(window) - 1) // 2], window[len(window) // 2]]


def by_hand(tokens: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...], how: str) -> torch.Tensor:
    """Pool (batch, tokens, channels) window by window."""
    image, found = tokens.unflatten(1, grid), []
    for place in itertools.product(*map(range, pooled)):
        spans = [windows(side, n)[i] for side, n, i in zip(grid, pooled, place, strict=True)]
        if how == "nearest":
            spans = [middle(span)[:1] for span in spans]
        elif how == "centre":
            spans = [middle(span) for span in spans]
        cells = torch.stack([image[(slice(None), *cell)] for cell in itertools.product(*spans)])
        found.append(cells.amax(0) if how == "max" else cells.mean(0))
    return torch.stack(found, 1)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and float((a - b).abs().max()) < 1e-12


@pytest.mark.parametrize(("grid", "pooled"), GRIDS, ids=str)
@pytest.mark.parametrize("how", ["mean", "max", "centre", "nearest"])
def test_every_way_of_pooling_against_loops(grid: tuple[int, ...], pooled: tuple[int, ...], how: Any) -> None:
    tokens = torch.randn(2, math.prod(grid), 3, dtype=torch.float64)
    assert close(pool_tokens(tokens, list(grid), list(pooled), how=how), by_hand(tokens, grid, pooled, how))


@pytest.mark.parametrize(("grid", "pooled"), GRIDS[3:8], ids=str)
@pytest.mark.parametrize("how", ["mean", "centre"])
def test_complex_tokens_are_pooled_part_by_part(grid: tuple[int, ...], pooled: tuple[int, ...], how: Any) -> None:
    tokens = torch.randn(2, math.prod(grid), 3, dtype=torch.complex128)
    parts = (by_hand(part, grid, pooled, how) for part in (tokens.real, tokens.imag))
    assert close(pool_tokens(tokens, grid, pooled, how=how), torch.complex(*parts))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_rows_beside_the_grid_stay_and_the_axis_may_be_any(axis: int, before: int, after: int) -> None:
    grid, pooled = (4, 3), (2, 2)
    rows = torch.randn(2, before + 12 + after, 3, dtype=torch.float64)
    few = torch.cat((rows[:, :before], by_hand(rows[:, before : before + 12], grid, pooled, "mean"), rows[:, before + 12 :]), 1)
    moved, want = rows.movedim(1, axis), few.movedim(1, axis)
    assert close(pool_tokens(moved, grid, pooled, axis, before, after), want)
    copies = torch.tensor([0, 0, 1, 0, 0, 1, 2, 2, 3, 2, 2, 3])  # rows 0, 0, 1, 1 by columns 0, 0, 1
    many = torch.cat((few[:, :before], few[:, before : before + 4][:, copies], few[:, before + 4 :]), 1)
    assert torch.equal(restore_tokens(want, pooled, grid, axis, before, after), many.movedim(1, axis))


def test_tokens_are_on_the_second_axis_and_alone_unless_said_otherwise() -> None:
    tokens = torch.arange(8.0).reshape(1, 4, 2)
    few = pool_tokens(tokens, (4,), (2,))
    assert few.tolist() == [[[1.0, 2.0], [5.0, 6.0]]]
    assert restore_tokens(few, (2,), (4,)).tolist() == [[[1.0, 2.0], [1.0, 2.0], [5.0, 6.0], [5.0, 6.0]]]


@pytest.mark.parametrize("how", ["mean", "max", "centre", "nearest"])
def test_a_batch_that_is_folded_into_the_axis(how: Any) -> None:
    tokens = torch.randn(2, 12, 3, dtype=torch.float64)
    few = pool_tokens(tokens.flatten(0, 1), (4, 3), (2, 2), 0, how=how)
    assert close(few, by_hand(tokens, (4, 3), (2, 2), how).flatten(0, 1))
    assert restore_tokens(few, (2, 2), (4, 3), 0).shape == (24, 3)


def test_the_nearest_of_indices_stays_an_index() -> None:
    assert pool_tokens(torch.arange(7)[None], (7,), (3,), how="nearest").tolist() == [[1, 3, 5]]


class Indices(TorchDispatchMode):
    """Counts the tables of rows that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += "arange" in str(func)
        return func(*args, **(kwargs or {}))


def test_rows_to_copy_are_kept_by_grids_and_never_for_other_kinds_of_tensors() -> None:
    few = torch.randn(1, 6, 2)
    restore_tokens(few, (2, 3), (5, 11))
    with Indices() as indices:
        restore_tokens(few, [2, 3], [5, 11])
        assert indices.made == 0
        restore_tokens(few, (3, 2), (5, 11))
        assert indices.made == 2
        restore_tokens(torch.nn.Parameter(few), (2, 3), (5, 11))
        assert indices.made == 4, "of another class than a plain tensor: a fake one keeps nothing"


def test_sides_may_be_symbols_and_stay_apart() -> None:
    """Pooling must not find out whether two sides are equal: the graph would hold for these alone."""
    env = ShapeEnv()
    time, pooled_time = (new_size(env, "side", hint) for hint in (3, 2))
    with FakeTensorMode(shape_env=env):
        tokens = torch.empty(2, time * 6, 4)
        few = pool_tokens(tokens, (time, 3, 2), (pooled_time, 2, 1))
        assert few.shape[1].node.hint == 4
        assert restore_tokens(few, (pooled_time, 2, 1), (time, 3, 2)).shape[1].node.hint == 18
    assert [str(guard.expr) for guard in env.guards if guard.expr.func.__name__ == "Equality"] == []


@pytest.mark.parametrize("half", [1, 3])
def test_rotations_scaled_back_to_modulus_one_in_every_form(half: int) -> None:
    rotations = torch.randn(4, half, dtype=torch.complex128)
    want = torch.exp(1j * rotations.angle())
    cosine, sine = rotations.real, rotations.imag
    assert close(as_rotation(rotations, "complex"), want)
    assert close(as_rotation(torch.view_as_real(rotations), "pair"), torch.view_as_real(want))
    halves = as_rotation(torch.cat((cosine, sine), -1), "halves")
    assert close(halves, torch.cat((want.real, want.imag), -1))
    assert close(as_rotation(cosine, "partner", sine), want.real)
    assert close(as_rotation(sine, "partner", cosine), want.imag)

    def matrices(z: torch.Tensor) -> torch.Tensor:
        return torch.stack((torch.stack((z.real, -z.imag), -1), torch.stack((z.imag, z.real), -1)), -2)

    assert close(as_rotation(matrices(rotations), "matrix"), matrices(want))


def test_the_columns_of_a_matrix_are_scaled_each_by_its_own_modulus() -> None:
    matrix = torch.tensor([[3.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    assert close(as_rotation(matrix, "matrix"), torch.tensor([[0.6, 0.0], [0.8, 1.0]], dtype=torch.float64))
    rows = torch.tensor([[1.0, 0.0], [2 / 5**0.5, 1 / 5**0.5]], dtype=torch.float64)
    assert close(as_rotation(matrix, "pair"), rows), "and a pair is a row"
