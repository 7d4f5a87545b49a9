"""What makes a random DiT's tokens and condition: patches, positions, timestep and label; and latents of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def cells(grid: Sequence[int], like: Tensor) -> Tensor:
    """The positions of a grid's cells, (cells, axes), in row-major order."""
    places = torch.meshgrid(*(torch.arange(side, device=like.device) for side in grid), indexing="ij")
    return torch.stack([place.flatten() for place in places], dim=-1).to(like.dtype)


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Sines of (cells, axes) at ``width`` frequencies, (cells, width); no two axes have one in common."""
    axes = positions.shape[-1]
    order = torch.arange(width, dtype=positions.dtype, device=positions.device)
    angles = order.new_zeros(positions.shape[0], 1)
    for axis in range(axes):
        angles = angles + positions[:, axis, None] * 0.7 ** (order + axis / axes)
    return (angles + order * (math.pi / 2)).sin()


class ConditionEmbedder(nn.Module):
    """Timesteps, and labels if there are any, as one vector for each row."""

    FREQUENCIES = 4

    def __init__(self, width: int, classes: int, timesteps: float) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.mlp = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width) if classes else None

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        """(B, width) of (B,) and (B,)."""
        dtype = next(self.mlp.parameters()).dtype
        speeds = 0.3 ** torch.arange(self.FREQUENCIES, dtype=dtype, device=t.device)
        angles = t[:, None].to(dtype) * (10 / self.timesteps) * speeds
        c: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return c if self.label is None else c + self.label(y)


def patch_embedding(channels: int, width: int, patch: tuple[int, ...]) -> nn.Module:
    """A convolution in steps of its own size."""
    kinds: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return kinds[len(patch) - 1](channels, width, patch, patch)


def unpatched(x: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """(B, channels, *sides of the latent) of (B, cells, channels * cells of a patch)."""
    axes = len(patch)
    x = x.reshape(x.shape[0], *grid, *patch, -1)
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    x = x.permute(0, 1 + 2 * axes, *pairs)
    return x.reshape(*x.shape[:2], *(side * p for side, p in zip(grid, patch, strict=True)))
