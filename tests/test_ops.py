"""Pooling and restoring on grids of one to three axes, against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.ops import pool_tokens, restore_tokens

grids = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


def windows(side: int, pooled: int) -> list[range]:
    return [range(i * side // pooled, math.ceil((i + 1) * side / pooled)) for i in range(pooled)]


@given(grids, st.data())
def test_pooling_is_the_mean_of_windows_and_restoring_copies_the_nearest(grid: tuple[int, ...], data: st.DataObject) -> None:
    pooled = tuple(data.draw(st.integers(1, side)) for side in grid)
    tokens = torch.randn(2, math.prod(grid), 3, dtype=torch.float64)
    image = tokens.reshape(2, *grid, 3)
    few = pool_tokens(tokens, grid, pooled)
    for index, place in enumerate(itertools.product(*(range(n) for n in pooled))):
        cells = itertools.product(*(windows(side, n)[i] for side, n, i in zip(grid, pooled, place, strict=True)))
        expected = torch.stack([image[(slice(None), *cell)] for cell in cells]).mean(dim=0)
        assert (few[:, index] - expected).abs().max() < 1e-12
    many = restore_tokens(few, pooled, grid)
    assert many.shape == tokens.shape
    for index, place in enumerate(itertools.product(*(range(n) for n in grid))):
        source = 0
        for i, side, n in zip(place, grid, pooled, strict=True):
            source = source * n + i * n // side
        assert torch.equal(many[:, index], few[:, source])


@pytest.mark.parametrize("grid", [(5,), (4, 6), (2, 3, 4)], ids=str)
def test_the_full_grid_is_the_identity(grid: tuple[int, ...]) -> None:
    tokens = torch.randn(2, math.prod(grid), 3)
    assert torch.equal(pool_tokens(tokens, grid, grid), tokens)
    assert torch.equal(restore_tokens(tokens, grid, grid), tokens)


def test_gradients_are_right() -> None:
    tokens = torch.randn(1, 20, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool_tokens(x, (4, 5), (3, 2)), (tokens,))
    few = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: restore_tokens(x, (3, 2), (4, 5)), (few,))
