"""A small class-conditional DiT (Peebles and Xie, arXiv 2212.09748): 32x32 pixels in patches of 2, so 16x16 tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 10
PATCH = 2
SIDE = 16  # tokens


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, N, width) and a condition (batch, width) to tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.fc2(F.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh"))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Self-attention over all tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MnistDiT(nn.Module):
    """``forward(x, timestep, label)``: images (batch, 1, 32, 32) to noise and variance, or velocity alone (batch, channels, 32, 32).

    Label 10 stands for no label. On a CPU attention trains faster written out, and runs faster ``fused``.
    """

    def __init__(
        self,
        depth: int = 12,
        width: int = 96,
        heads: int = 3,
        channels: int = 2,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.embed = nn.Conv2d(1, width, PATCH, PATCH)
        self.register_buffer("positions", positions(SIDE, width), persistent=False)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, fused) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, channels * PATCH * PATCH)
        self.reset()

    def reset(self) -> None:
        """The starting weights of DiT: every block is the identity, and the output is 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.view(self.embed.weight.shape[0], -1))
        nn.init.normal_(self.labels.weight, std=0.02)
        for linear in (self.time[0], self.time[2]):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (*(block.modulation for block in self.blocks), self.modulation, self.head):
            nn.init.zeros_(linear.weight)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """See the class."""
        condition = self.time(sinusoids(timestep).to(x.dtype)) + self.labels(label)
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        pixels = self.head(self.norm(tokens) * (1 + scale) + shift)
        pixels = pixels.unflatten(1, (SIDE, SIDE)).unflatten(-1, (PATCH, PATCH, self.channels))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sinusoids(timestep: torch.Tensor) -> torch.Tensor:
    """(batch,) to (batch, 256), as in DiT."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=timestep.device) / 128)
    angles = timestep[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (1, side * side, width)."""
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)[None].float()


def make(
    depth: int = 12, width: int = 96, heads: int = 3, channels: int = 2, fused: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and the inputs of one call, as ``sparsify train examples.mnist.model:make`` wants them."""
    inputs = {
        "x": torch.randn(2, 1, 32, 32),
        "timestep": torch.full((2,), 500),
        "label": torch.zeros(2, dtype=torch.long),
    }
    return MnistDiT(depth, width, heads, channels, fused), inputs
