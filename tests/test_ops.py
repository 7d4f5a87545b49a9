"""Pooling and restoring on grids of one to three axes, against loops."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

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


class Recorder(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


_COPIES = ("clone.default", "copy_.default", "_to_copy.default", "contiguous.default")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("grid", "pooled"), [((12,), (5,)), ((8, 6), (3, 4)), ((3, 8, 6), (3, 3, 4)), ((4, 8, 6), (2, 3, 4))], ids=str
)
def test_pooling_copies_nothing(batch: int, grid: tuple[int, ...], pooled: tuple[int, ...]) -> None:
    """No transposes into channels-first and back: means are taken of tokens as they lie, and lie that way themselves."""
    with Recorder() as recorder:
        few = pool_tokens(torch.randn(batch, math.prod(grid), 16), grid, pooled)
    assert few.is_contiguous()
    assert not set(_COPIES) & set(recorder.names)
    assert sum("adaptive_avg_pool" in name for name in recorder.names) == (2 if grid[0] == 4 else 1)


def test_pooling_at_batch_one_costs_no_more_than_a_share_of_batch_two() -> None:
    """Torch takes the strides of a batch of one for those of channels first, if they are left to chance, and copies: six times."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    inputs = {batch: torch.randn(batch, 1024, 768) for batch in seconds}
    for _ in range(15):
        for batch, tokens in inputs.items():
            started = time.process_time()
            pool_tokens(tokens, (32, 32), (10, 10))
            seconds[batch].append(time.process_time() - started)
    assert min(seconds[1]) < 1.5 * min(seconds[2])


def test_the_rows_to_copy_are_found_once() -> None:
    few = torch.randn(1, 12, 4)
    restore_tokens(few, (3, 4), (7, 9))
    with Recorder() as recorder:
        restore_tokens(few, (3, 4), (7, 9))
    assert [name for name in recorder.names if "view" not in name] == ["index_select.default"]
    with torch.inference_mode():
        restore_tokens(few, (3, 4), (8, 9))
    restore_tokens(few.requires_grad_(), (3, 4), (8, 9)).sum().backward()
