"""Plain eager forms of the three example passes, written from what they are said to do; ``run`` as in tests.oracle."""

from __future__ import annotations

from typing import Any

import torch

from .oracle import Run, average, nearest


def dense(blocks: Any, tokens: torch.Tensor, run: Run) -> torch.Tensor:
    for block in blocks:
        tokens = run(block, tokens, tokens, False)
    return tokens


def sprint_trunk(
    blocks: list[Any], tokens: torch.Tensor, run: Run, grid: tuple[int, int], middle: slice, stride: int, layer: Any
) -> torch.Tensor:
    """Blocks in front on all tokens, those in the middle on a strided grid of them, fusion, blocks behind."""
    tokens = dense(blocks[: middle.start], tokens, run)
    kept = [i * grid[1] + j for i in range(0, grid[0], stride) for j in range(0, grid[1], stride)]
    few = dense(blocks[middle], tokens[:, kept], run)
    restored = [few[:, kept.index(i)] if i in kept else layer.mask.expand(few.shape[0], -1) for i in range(grid[0] * grid[1])]
    both = torch.cat([tokens, torch.stack(restored, dim=1)], dim=2)
    return dense(blocks[middle.stop :], both @ layer.weight.T + layer.bias, run)


def windowed_run(run: Run, grid: tuple[int, int], window: int) -> Run:
    """A block whose tokens see those of their own window: the block run on each window by itself."""

    def within(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        assert queries is keys and not pooling
        out = torch.empty_like(queries)
        for top in range(0, grid[0], window):
            for left in range(0, grid[1], window):
                rows = [i * grid[1] + j for i in range(top, top + window) for j in range(left, left + window)]
                out[:, rows] = run(block, queries[:, rows], queries[:, rows], False)
        return out

    return within


def windows_in_sparse_blocks(
    blocks: list[Any], tokens: torch.Tensor, run: Run, grid: Any, pooled: Any, window: int, restore: Any
) -> torch.Tensor:
    """One poolingformer block, one SDTM(1, 2, 1, 1) with windows in its two sparse blocks, one dense block."""
    tokens = run(blocks[0], tokens, tokens, True)
    few = run(blocks[1], average(tokens, grid, pooled), tokens, False)
    few = windowed_run(run, pooled, window)(blocks[2], few, few, False)
    few = windowed_run(run, pooled, window)(blocks[3], few, few, False)
    tokens = restore["sparse"](nearest(few, pooled, grid)) + restore["dense"](tokens)
    tokens = run(blocks[4], tokens, few, False)
    return run(blocks[5], tokens, tokens, False)


def pooled_keys_trunk(blocks: list[Any], tokens: torch.Tensor, run: Run, grid: Any, pooled: Any, which: range) -> torch.Tensor:
    """In some blocks tokens attend to the averages of windows of themselves."""
    for index, block in enumerate(blocks):
        keys = average(tokens, grid, pooled) if index in which else tokens
        tokens = run(block, tokens, keys, False)
    return tokens
