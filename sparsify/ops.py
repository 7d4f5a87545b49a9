"""The operations on token grids that a sparse graph is made of. Plain differentiable torch, on any device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch.nn import functional

How = Literal["mean", "max", "centre", "nearest"]
Rotation = Literal["complex", "pair", "matrix", "halves", "partner"]


def pool_tokens(
    tokens: torch.Tensor,
    grid: Sequence[int],
    pooled: Sequence[int],
    axis: int = 1,
    before: int = 0,
    after: int = 0,
    how: How = "mean",
) -> torch.Tensor:
    """Sparse tokens: what windows of the dense grid hold, as one token each (paper, section 3.2).

    Window ``i`` of ``n`` on a side of ``m`` tokens covers rows ``floor(i m / n)`` up to ``ceil((i + 1) m / n)``, so
    that sides need not be divisible.

    Args:
        tokens: prod(grid) tokens in row-major order on ``axis``, alone, behind a folded batch, or beside other rows;
            usually (batch, tokens, channels).
        grid: the dense grid, (length,), (height, width) or (time, height, width).
        pooled: the pooled grid, no side larger than the dense grid's.
        axis: the axis of the tokens.
        before: rows in front of the grid that are no tokens of it (text), handed on as they are.
        after: rows behind it.
        how: ``mean`` of the window; its ``max`` (masks); the value at its ``centre``, between the two middle rows where
            their number is even (positions); or the ``nearest`` row to the centre (indices).

    Returns:
        ``tokens`` with prod(pooled) tokens in place of prod(grid).
    """
    return _on_grid(tokens, axis, before, after, math.prod(grid), lambda rows: _pooled(rows, tuple(grid), tuple(pooled), how))


def restore_tokens(
    tokens: torch.Tensor,
    pooled: Sequence[int],
    grid: Sequence[int],
    axis: int = 1,
    before: int = 0,
    after: int = 0,
) -> torch.Tensor:
    """Nearest-neighbour copies of sparse tokens on the dense grid (paper, section 3.2, the upsampling).

    Dense row ``i`` of ``m`` copies pooled row ``floor(i n / m)``, in whole numbers, so that no rounding can shift it.

    Args:
        tokens: prod(pooled) tokens in row-major order on ``axis``; usually (batch, tokens, channels).
        pooled: the pooled grid.
        grid: the dense grid.
        axis: the axis of the tokens.
        before: rows in front of the grid that are no tokens of it, handed on as they are.
        after: rows behind it.

    Returns:
        ``tokens`` with prod(grid) tokens in place of prod(pooled).
    """
    plain = type(tokens) is torch.Tensor and all(isinstance(side, int) for side in (*pooled, *grid))
    keep = plain and not torch.compiler.is_compiling()
    rows = (_kept_rows if keep else _source_rows)(tuple(pooled), tuple(grid), tokens.device)
    return _on_grid(tokens, axis, before, after, math.prod(pooled), lambda some: some.index_select(1, rows))


def _source_rows(pooled: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """For every dense token the number of the sparse token that it copies."""
    source = torch.zeros((), dtype=torch.long, device=device)
    for side, pooled_side in zip(grid, pooled, strict=True):
        rows = torch.arange(side, device=device) * pooled_side // side
        source = (source[..., None] * pooled_side) + rows
    return source.flatten()


@functools.lru_cache(maxsize=64)
def _kept_rows(pooled: tuple[int, ...], grid: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The same, made once: a schedule has few grids, and all modules of a model have the same."""
    with torch.inference_mode(False):  # a backward pass may need them later
        return _source_rows(pooled, grid, device)


def as_rotation(value: torch.Tensor, form: Rotation, partner: torch.Tensor | None = None) -> torch.Tensor:
    """Scale rotations (RoPE) back to modulus 1.

    The mean of two neighbouring rotations, scaled back, is the rotation half-way between them.

    Args:
        value: the table, any shape.
        form: where a cosine finds its sine: ``complex`` numbers; a ``pair`` on the last axis; the columns of a 2 x 2
            ``matrix`` on the last two axes; the two ``halves`` of the last axis; another tensor, the ``partner``.
        partner: that tensor, of the shape of ``value``.

    Returns:
        ``value``, scaled.
    """
    if form == "complex":
        return value / value.abs()
    if partner is not None:
        return value * torch.rsqrt(value * value + partner * partner)
    if form == "halves":
        squares = (value * value).unflatten(-1, (2, -1)).sum(-2, keepdim=True)
        return value * torch.rsqrt(squares).expand(*squares.shape[:-2], 2, -1).flatten(-2)
    return value * torch.rsqrt((value * value).sum(-1 if form == "pair" else -2, keepdim=True))


def _is_zero(rows: int) -> bool:
    return isinstance(rows, int) and rows == 0


def _on_grid(
    tokens: torch.Tensor, axis: int, before: int, after: int, count: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``tokens`` with ``change`` applied to the rows of the grid, given to it as (batch, count, channels)."""
    axis = axis % tokens.ndim
    alone = _is_zero(before) and _is_zero(after)
    rows = tokens if alone else tokens.narrow(axis, before, count)
    changed = change(rows.reshape(-1, count, math.prod(tokens.shape[axis + 1 :])))
    changed = changed.reshape(*tokens.shape[:axis], -1, *tokens.shape[axis + 1 :])
    if alone:
        return changed
    return torch.cat((tokens.narrow(axis, 0, before), changed, tokens.narrow(axis, before + count, after)), axis)


def _pooled(rows: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...], how: How) -> torch.Tensor:
    """Pool (batch, prod(grid), channels)."""
    if how in ("centre", "nearest"):
        rows = rows.unflatten(1, grid)
        for side, (dense, sparse) in enumerate(zip(grid, pooled, strict=True)):
            rows = _middle(rows, 1 + side, dense, sparse, how)
        return rows.flatten(1, len(grid))
    if how == "max":
        rows = rows.unflatten(1, grid)
        for side, (dense, sparse) in enumerate(zip(grid, pooled, strict=True)):
            rows = _largest(rows, 1 + side, dense, sparse)
        return rows.flatten(1, len(grid))
    if rows.is_complex():
        return torch.view_as_complex(
            _pooled(torch.view_as_real(rows).flatten(2), grid, pooled, how).unflatten(2, (-1, 2)).contiguous()
        )
    return _mean(rows, grid, pooled)


def _mean(rows: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...]) -> torch.Tensor:
    """Window means of (batch, prod(grid), channels), side by side: windows are products of those of the sides."""
    if len(grid) == 1:
        return _mean_of_plane(rows, (grid[0], 1), (pooled[0], 1))
    if len(grid) == 2:
        return _mean_of_plane(rows, grid, pooled)
    (time, *plane), (pooled_time, *pooled_plane) = grid, pooled
    frames = rows.unflatten(1, (time, -1)).flatten(0, 1)
    frames = _mean_of_plane(frames, tuple(plane), tuple(pooled_plane))
    whole = frames.flatten(1).unflatten(0, (rows.shape[0], time))  # (batch, time, tokens of a frame and their channels)
    if not (isinstance(time, int) and isinstance(pooled_time, int) and time == pooled_time):
        whole = _mean_of_plane(whole, (time, 1), (pooled_time, 1))
    tokens: torch.Tensor = whole.unflatten(2, (-1, rows.shape[-1]))
    return tokens.flatten(1, 2)


def _mean_of_plane(rows: torch.Tensor, grid: tuple[int, ...], pooled: tuple[int, ...]) -> torch.Tensor:
    """The strides say that channels come last, also at a batch of one, where torch would copy into the other order and back."""
    planes = rows.contiguous().unflatten(1, grid).permute(0, 3, 1, 2)
    means: torch.Tensor = functional.adaptive_avg_pool2d(planes, (pooled[0], pooled[1]))
    return means.permute(0, 2, 3, 1).flatten(1, 2)


def _largest(rows: torch.Tensor, axis: int, dense: int, sparse: int) -> torch.Tensor:
    """The maximum over the windows of one side; adaptive_max_pool would tie a graph to the sides it was traced with."""
    window = torch.arange(sparse, device=rows.device)[:, None]
    last = ((window + 1) * dense + sparse - 1) // sparse - 1
    steps = torch.arange((dense + sparse - 1) // sparse + 1, device=rows.device)
    inside = torch.minimum(window * dense // sparse + steps, last)
    windows: torch.Tensor = rows.index_select(axis, inside.flatten()).unflatten(axis, inside.shape)
    return windows.amax(axis + 1)


def _middle(rows: torch.Tensor, axis: int, dense: int, sparse: int, how: How) -> torch.Tensor:
    window = torch.arange(sparse, device=rows.device)
    twice_centre = window * dense // sparse + ((window + 1) * dense + sparse - 1) // sparse - 1
    lower = rows.index_select(axis, twice_centre // 2)
    if how == "nearest":
        return lower
    return (lower + rows.index_select(axis, (twice_centre + 1) // 2)) / 2
