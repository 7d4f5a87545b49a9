"""Pooling for compilers: adaptive pooling with matrices, because few take its window sizes as open numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .ops import How, _on_grid, pool_tokens


def pool_tokens_portably(
    tokens: torch.Tensor,
    grid: Sequence[int],
    pooled: Sequence[int],
    axis: int = 1,
    before: int = 0,
    after: int = 0,
    how: How = "mean",
) -> torch.Tensor:
    """As :func:`sparsify.ops.pool_tokens`, which says what the arguments are, out of operators that every target has."""
    if how != "mean" or tokens.is_complex():
        return pool_tokens(tokens, grid, pooled, axis, before, after, how)
    return _on_grid(tokens, axis, before, after, math.prod(grid), lambda rows: _means(rows, tuple(grid), tuple(pooled)))


def _means(rows: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...]) -> torch.Tensor:
    """Window means of (batch, prod(grid), channels), one side after the other."""
    batch, _, channels = rows.shape
    for i, (dense, sparse) in enumerate(zip(grid, pooled, strict=True)):
        lead, rest = math.prod(pooled[:i]), math.prod(grid[i + 1 :])
        sums = _windows(dense, sparse, rows) @ rows.reshape(batch * lead, dense, rest * channels)
        rows = sums
    return rows.reshape(batch, math.prod(pooled), channels)


def _windows(dense: int, sparse: int, like: torch.Tensor) -> torch.Tensor:
    """(sparse, dense): the share of each row in each window."""
    window, row = torch.arange(sparse, device=like.device)[:, None], torch.arange(dense, device=like.device)
    first, end = window * dense // sparse, ((window + 1) * dense + sparse - 1) // sparse
    inside = (row >= first) & (row < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
