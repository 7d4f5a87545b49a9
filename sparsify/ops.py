"""The two operations on token grids that a sparse graph is made of. Plain differentiable torch, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

_ADAPTIVE_POOL: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def pool_tokens(tokens: torch.Tensor, grid: Sequence[int], pooled: Sequence[int]) -> torch.Tensor:
    """Sparse tokens: the adaptive average of the dense tokens over windows of their grid (paper, section 3.2).

    Window ``i`` of ``n`` on a side of ``m`` tokens covers rows ``floor(i m / n)`` up to ``ceil((i + 1) m / n)``, so
    that sides need not be divisible.

    Args:
        tokens: (batch, prod(grid), channels), in row-major order of the grid.
        grid: the dense grid, (length,), (height, width) or (time, height, width).
        pooled: the pooled grid, no side larger than the dense grid's.

    Returns:
        (batch, prod(pooled), channels).
    """
    channels_first = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    return _ADAPTIVE_POOL[len(grid)](channels_first, tuple(pooled)).flatten(2).transpose(1, 2)


def restore_tokens(tokens: torch.Tensor, pooled: Sequence[int], grid: Sequence[int]) -> torch.Tensor:
    """Nearest-neighbour copies of sparse tokens on the dense grid (paper, section 3.2, the upsampling).

    Dense row ``i`` of ``m`` copies pooled row ``floor(i n / m)``, in whole numbers, so that no rounding can shift it.

    Args:
        tokens: (batch, prod(pooled), channels), in row-major order of the pooled grid.
        pooled: the pooled grid.
        grid: the dense grid.

    Returns:
        (batch, prod(grid), channels).
    """
    source = torch.zeros((), dtype=torch.long, device=tokens.device)
    for side, pooled_side in zip(grid, pooled, strict=True):
        rows = torch.arange(side, device=tokens.device) * pooled_side // side
        source = (source[..., None] * pooled_side) + rows
    return tokens.index_select(1, source.flatten())
