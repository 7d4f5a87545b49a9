"""Audio and video models in plain torch: positions looked up by number, a time of each frame, a mask over frames."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .written_models import FinalLayer, FusedAttention, Mlp, TimestepEmbedder, modulate, rotate_pairs


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class RotaryAttention(nn.Module):
    def __init__(self, width: int, heads: int, longest: int) -> None:
        super().__init__()
        self.heads, dim = heads, width // heads
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        angles = torch.outer(torch.arange(longest).float(), 10000.0 ** (-torch.arange(0, dim, 2).float() / dim))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        b, n, c = x.size()
        q = self.q_proj(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.heads, c // self.heads).transpose(1, 2)
        cos, sin = self.cos_cached[position_ids].unsqueeze(1), self.sin_cached[position_ids].unsqueeze(1)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).contiguous().view(b, n, c))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(context, 2 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AudioBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int, longest: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = RotaryAttention(width, heads, longest)
        self.cross_attn = CrossAttention(width, heads, context)
        self.ff = Mlp(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self, x: torch.Tensor, modulation: torch.Tensor, context: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation).unbind(1)
        x = x + gate1[:, None] * self.self_attn(modulate(self.norm1(x), shift1, scale1), position_ids)
        x = x + self.cross_attn(self.norm2(x), context)
        return x + gate2[:, None] * self.ff(modulate(self.norm3(x), shift2, scale2))


class AudioDiT1D(nn.Module):
    """A latent of (B, C, L), one token for each of L; every row may start at another position of the recording."""

    def __init__(self, width: int, heads: int, depth: int, channels: int, context: int, longest: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv1d(channels, width, kernel_size=1)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.layers = nn.ModuleList(AudioBlock(width, heads, context, longest) for _ in range(depth))
        self.final_layer = FinalLayer(width, channels)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.proj_in(x).transpose(1, 2)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        emb = self.t_embedder(t)
        modulation = self.t_block(emb).unflatten(-1, (6, -1))
        for layer in self.layers:
            x = layer(x, modulation, context, position_ids)
        return self.final_layer(x, emb).transpose(1, 2)


class TokenTimeBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width)
        self.table = nn.Parameter(torch.zeros(1, 1, 6 * width))

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class TokenTimestepDiT(nn.Module):
    """Each frame has its own time, as in diffusion forcing, and so each token its own modulation; learned positions by axis."""

    def __init__(self, width: int, heads: int, depth: int, channels: int, patch: int, longest: int) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Conv3d(channels, width, (1, patch, patch), (1, patch, patch))
        self.pos_t = nn.Parameter(torch.randn(longest, 1, 1, width))
        self.pos_h = nn.Parameter(torch.randn(1, longest, 1, width))
        self.pos_w = nn.Parameter(torch.randn(1, 1, longest, width))
        self.t_embedder = TimestepEmbedder(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(TokenTimeBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, frame_offset: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 4, 1)
        b, frames, h, w, _ = x.shape
        x = (x + self.pos_t[:frames] + self.pos_h[:, :h] + self.pos_w[:, :, :w]).reshape(b, frames * h * w, -1)
        times = (t[:, None] + frame_offset).clamp(0, 1)
        modulation = self.modulation(self.t_embedder(times)).repeat_interleave(h * w, dim=1)
        for block in self.blocks:
            x = block(x, modulation)
        x = self.proj_out(self.norm_out(x)).view(b, frames, h, w, self.patch, self.patch, -1)
        return torch.einsum("bthwpqc->bcthpwq", x).reshape(b, -1, frames, h * self.patch, w * self.patch)


class MaskedVideoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: torch.Tensor, c: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        qkv = self.qkv(modulate(self.norm1(x), shift1, scale1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + gate1[:, None] * self.proj(out.transpose(1, 2).flatten(2))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class WindowMaskVideoDiT(nn.Module):
    """A token sees its own frame and the ``window`` frames before it; three-dimensional rotary positions."""

    def __init__(
        self, width: int, heads: int, depth: int, channels: int, patch: int, axes: tuple[int, ...], window: int
    ) -> None:
        super().__init__()
        self.patch, self.axes, self.window = patch, axes, window
        self.patch_embed = nn.Conv3d(channels, width, (1, patch, patch), (1, patch, patch))
        self.t_embedder = TimestepEmbedder(width)
        self.blocks = nn.ModuleList(MaskedVideoBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def rope(self, grid: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
        angles = []
        for place, dim in zip(places, self.axes, strict=True):
            frequencies = 1000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim)
            angles.append(torch.outer(place.flatten().float(), frequencies))
        table = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
        return table.cos(), table.sin()

    def frame_mask(self, frames: int, tokens: int, device: torch.device) -> torch.Tensor:
        frame = torch.arange(frames, device=device).repeat_interleave(tokens)
        age = frame[:, None] - frame[None, :]
        return (age >= 0) & (age <= self.window)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        b, _, frames, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        cos, sin = self.rope((frames, h, w), x.device)
        mask = self.frame_mask(frames, h * w, x.device)
        c = self.t_embedder(t)
        for block in self.blocks:
            x = block(x, c, cos, sin, mask)
        x = self.final_layer(x, c).view(b, frames, h, w, self.patch, self.patch, -1)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, -1, frames, h * self.patch, w * self.patch)
