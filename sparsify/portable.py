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
    if how != "mean":
        return pool_tokens(tokens, grid, pooled, axis, before, after, how)
    if tokens.is_complex():
        parts = pool_tokens_portably(torch.view_as_real(tokens), grid, pooled, axis % tokens.ndim, before, after)
        return torch.view_as_complex(parts.contiguous())
    return _on_grid(tokens, axis, before, after, math.prod(grid), lambda rows: _means(rows, tuple(grid), tuple(pooled)))


def _means(rows: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...]) -> torch.Tensor:
    """Window means of (batch, prod(grid), channels): sums, one side after the other, over how many rows there are."""
    batch, _, channels = rows.shape
    counts = torch.ones((1, 1), dtype=rows.dtype, device=rows.device)
    for i, (dense, sparse) in enumerate(zip(grid, pooled, strict=True)):
        inside = _windows(dense, sparse, rows)
        lead, rest = math.prod(pooled[:i]), math.prod(grid[i + 1 :])
        rows = inside @ rows.reshape(batch * lead, dense, rest * channels)
        counts = (counts * inside.sum(dim=1)).reshape(-1, 1)
    return rows.reshape(batch, math.prod(pooled), channels) / counts


def _windows(dense: int, sparse: int, like: torch.Tensor) -> torch.Tensor:
    """(sparse, dense): 1 where a row is in a window; whole numbers, so that low precision rounds the sums alone."""
    window, row = torch.arange(sparse, device=like.device)[:, None], torch.arange(dense, device=like.device)
    inside = (row >= window * dense // sparse) & (row < ((window + 1) * dense + sparse - 1) // sparse)
    return inside.to(like.dtype)
