"""Image models in plain torch, each written as the authors of such models write them: SiT, U-ViT and relatives of DiT."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def sinusoid(x: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """Cosines and sines of ``x`` at ``dim / 2`` frequencies, in a new last dimension."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angles = x.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def unpatchify(x: torch.Tensor, h: int, w: int, p: int) -> torch.Tensor:
    x = x.reshape(x.shape[0], h, w, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], -1, h * p, w * p)


def sincos_2d(width: int, h: int, w: int) -> torch.Tensor:
    """(h * w, width): the first half of the channels tells the row, the second the column."""
    rows = sinusoid(torch.arange(h), width // 2)[:, None].expand(h, w, -1)
    columns = sinusoid(torch.arange(w), width // 2)[None].expand(h, w, -1)
    return torch.cat([rows, columns], dim=-1).reshape(h * w, width)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 32) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.mlp(sinusoid(t * 1000, self.frequencies).to(self.mlp[0].weight.dtype))


class Mlp(nn.Sequential):
    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(approximate="tanh"), nn.Linear(ratio * width, width))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, out)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class SiTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class SiT(nn.Module):
    """Class-conditional; adaLN-Zero; a fixed table of positions; time in 0..1."""

    def __init__(
        self, grid: tuple[int, int], width: int, heads: int, depth: int, channels: int, patch: int, classes: int
    ) -> None:
        super().__init__()
        self.grid, self.patch = grid, patch
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(classes + 1, width)
        self.register_buffer("pos_embed", sincos_2d(width, *grid)[None])
        self.blocks = nn.ModuleList(SiTBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        return unpatchify(self.final_layer(x, c), *self.grid, self.patch)


class UViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """Time and text are tokens in front of the image's; the second half of the blocks sees the first half's outputs."""

    def __init__(
        self, grid: tuple[int, int], width: int, heads: int, depth: int, channels: int, patch: int, text: tuple[int, int]
    ) -> None:
        super().__init__()
        self.grid, self.patch, self.width = grid, patch, width
        self.extras = 1 + text[0]
        self.patch_embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.context_embed = nn.Linear(text[1], width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.extras + grid[0] * grid[1], width))
        self.in_blocks = nn.ModuleList(UViTBlock(width, heads) for _ in range(depth // 2))
        self.mid_block = nn.ModuleList([UViTBlock(width, heads)])
        self.out_blocks = nn.ModuleList(UViTBlock(width, heads, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        time_token = self.time_embed(sinusoid(timesteps, self.width).to(x)).unsqueeze(1)
        x = torch.cat([time_token, self.context_embed(context), x], dim=1)
        x = x + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        for block in self.mid_block:
            x = block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))
        return unpatchify(x[:, self.extras :, :], *self.grid, self.patch)


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring channels of (B, heads, N, D) by the angles of (N, D) tables."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin).type_as(x)


class GroupedAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate_pairs(self.q_norm(q), *rope), rotate_pairs(self.k_norm(k), *rope)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.wo(out.transpose(1, 2).reshape(b, n, -1))


class RegisterBlock(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn = GroupedAttention(width, heads, kv_heads)
        self.w1, self.w2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, c: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        s1, b1, g1, s2, b2, g2 = self.ada(F.silu(c)).unsqueeze(1).chunk(6, dim=-1)
        x = x + g1 * self.attn(self.norm1(x) * (1 + s1) + b1, rope)
        gate, value = self.w1(self.norm2(x) * (1 + s2) + b2).chunk(2, dim=-1)
        return x + g2 * self.w2(F.silu(gate) * value)


class RegisterDiT(nn.Module):
    """Learned registers behind the image tokens; rotary positions of the image tokens only; grouped queries."""

    def __init__(self, width: int, heads: int, kv_heads: int, depth: int, channels: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patch, self.head_dim = patch, width // heads
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(classes, width)
        self.registers = nn.Parameter(torch.randn(1, 4, width))
        self.blocks = nn.ModuleList(RegisterBlock(width, heads, kv_heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def rope(self, h: int, w: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        quarter = self.head_dim // 4
        frequencies = 100.0 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
        rows = torch.arange(h, device=device)[:, None, None] * frequencies
        columns = torch.arange(w, device=device)[None, :, None] * frequencies
        angles = torch.cat([rows.expand(h, w, quarter), columns.expand(h, w, quarter)], dim=-1).flatten(0, 1)
        angles = angles.repeat_interleave(2, dim=-1)
        still = torch.zeros(self.registers.shape[1], self.head_dim, device=device)
        return torch.cat([angles.cos(), still + 1]), torch.cat([angles.sin(), still])

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder(x)
        b, _, h, w = x.shape
        x = torch.cat([x.flatten(2).transpose(1, 2), self.registers.expand(b, -1, -1)], dim=1)
        rope = self.rope(h, w, x.device)
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c, rope)
        return unpatchify(self.final_layer(x[:, : h * w], c), h, w, self.patch)
