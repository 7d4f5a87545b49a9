"""A Diffusion Transformer in the style of the original DiT code: a fixed positional table, adaLN-zero, forward(x, t, y)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention in one of the ways people write it."""

    def __init__(self, width: int, heads: int, style: str = "fused", dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.style = heads, style
        if style in ("fused", "manual"):
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def projections(self, x: torch.Tensor) -> list[torch.Tensor]:
        if self.style in ("fused", "manual"):
            batch, tokens, width = x.shape
            return list(self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0))
        return [self.split(layer(x)) for layer in (self.q, self.k, self.v)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.projections(x)
        if self.style == "manual":
            weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
            out = weights @ v
        elif self.style == "manual-after":
            logits = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(q.shape[-1])
            out = torch.matmul(F.softmax(logits.float(), dim=3).to(v.dtype), v)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        batch, tokens, width = x.shape
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, width)))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, style: str, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, style, dropout)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PlainDiT(nn.Module):
    """``image`` is (height, width) in latents; the token grid is that divided by ``patch``."""

    def __init__(
        self,
        depth: int = 6,
        width: int = 32,
        heads: int = 4,
        image: tuple[int, int] = (16, 16),
        patch: int = 2,
        channels: int = 3,
        classes: int = 5,
        style: str = "fused",
        dropout: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.width, self.classes, self.label_dropout = patch, width, classes, label_dropout
        self.grid = (image[0] // patch, image[1] // patch)
        self.x_embedder = nn.Conv2d(channels, width, patch, patch)
        self.register_buffer("pos_embed", torch.randn(1, math.prod(self.grid), width) * 0.2)
        self.t_mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, style, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, patch * patch * channels)

    def conditioning(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        half = 32
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t[:, None].float() * frequencies[None]
        embedded = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.head.weight.dtype)
        if self.training and self.label_dropout > 0:
            dropped = torch.rand(y.shape[0], device=y.device) < self.label_dropout
            y = torch.where(dropped, self.classes, y)
        return self.t_mlp(embedded) + self.y_embedder(y)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed

    def finish(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        x = self.head(modulate(self.norm(x), shift, scale))
        h, w = self.grid
        x = x.reshape(x.shape[0], h, w, self.patch, self.patch, -1)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], -1, h * self.patch, w * self.patch)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        c = self.conditioning(t, y)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.finish(x, c)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random gates, norms and biases everywhere, so that nothing is hidden by zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.copy_(noise * (0.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.2))
    return model
