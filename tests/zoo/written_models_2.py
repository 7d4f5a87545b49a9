"""More image models in plain torch: a joint sequence with complex rotary tables, a relative bias, linear attention, experts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .written_models import FinalLayer, FusedAttention, Mlp, TimestepEmbedder, modulate, sincos_2d, unpatchify


def rotate_complex(x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
    """Multiplies (B, N, heads, D), read as D / 2 complex numbers, by (N, D / 2)."""
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * freqs_cis[None, :, None]).flatten(3).type_as(x)


class ComplexBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.w1, self.w3 = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.w2 = nn.Linear(2 * width, width, bias=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, freqs_cis: torch.Tensor, adaln_input: torch.Tensor) -> torch.Tensor:
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.modulation(adaln_input).unsqueeze(1).chunk(4, dim=2)
        q, k, v = self.qkv(self.attention_norm(x) * (1 + scale_msa)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate_complex(q, freqs_cis), rotate_complex(k, freqs_cis)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        x = x + gate_msa.tanh() * self.out(out.transpose(1, 2).flatten(2))
        y = self.ffn_norm(x) * (1 + scale_mlp)
        return x + gate_mlp.tanh() * self.w2(F.silu(self.w1(y)) * self.w3(y))


class ComplexRoPEDiT(nn.Module):
    """Text before the image in one sequence; complex rotary tables of (text position, row, column); padded text."""

    def __init__(
        self, width: int, heads: int, depth: int, channels: int, patch: int, text_width: int, axes: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.patch, self.axes = patch, axes
        self.x_embedder = nn.Linear(patch * patch * channels, width)
        self.cap_embedder = nn.Sequential(nn.RMSNorm(text_width), nn.Linear(text_width, width))
        self.t_embedder = TimestepEmbedder(width)
        self.layers = nn.ModuleList(ComplexBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def freqs(self, text: int, h: int, w: int, device: torch.device) -> torch.Tensor:
        ids = torch.zeros(text + h * w, 3, device=device)
        ids[:text, 0] = torch.arange(text, device=device)
        ids[text:, 0] = text
        ids[text:, 1] = torch.arange(h, device=device).repeat_interleave(w)
        ids[text:, 2] = torch.arange(w, device=device).repeat(h)
        tables = []
        for axis, dim in enumerate(self.axes):
            angles = torch.outer(ids[:, axis], 10000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim))
            tables.append(torch.polar(torch.ones_like(angles), angles))
        return torch.cat(tables, dim=-1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cap_feats: torch.Tensor, cap_mask: torch.Tensor) -> torch.Tensor:
        b, c, height, width = x.shape
        h, w = height // self.patch, width // self.patch
        x = x.view(b, c, h, self.patch, w, self.patch).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        text = cap_feats.shape[1]
        x = torch.cat([self.cap_embedder(cap_feats), self.x_embedder(x)], dim=1)
        mask = torch.zeros(b, 1, 1, text + h * w, dtype=x.dtype, device=x.device)
        mask[:, 0, 0, :text] = (1 - cap_mask.to(x.dtype)) * torch.finfo(x.dtype).min
        freqs_cis = self.freqs(text, h, w, x.device)
        adaln_input = self.t_embedder(t)
        for layer in self.layers:
            x = layer(x, mask, freqs_cis, adaln_input)
        return unpatchify(self.final_layer(x, adaln_input)[:, text:], h, w, self.patch)


class BiasedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).permute(0, 2, 1, 3) for layer in (self.to_q, self.to_k, self.to_v))
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn + bias
        attn = attn.softmax(dim=-1)
        return self.to_out((attn @ v).transpose(1, 2).reshape(b, n, c))


class BiasedBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = BiasedAttention(width, heads)
        self.mlp = Mlp(width)
        self.ada = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, c: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        m = self.ada(c).view(-1, 6, c.shape[-1])
        x = x + m[:, 2:3] * self.attn(modulate(self.norm1(x), m[:, 0], m[:, 1]), bias)
        return x + m[:, 5:6] * self.mlp(modulate(self.norm2(x), m[:, 3], m[:, 4]))


class HandSoftmaxDiT(nn.Module):
    """Attention written out, with a learned bias for each offset between two tokens as its only positions."""

    def __init__(self, width: int, heads: int, depth: int, channels: int, patch: int, classes: int, reach: int = 16) -> None:
        super().__init__()
        self.patch, self.reach = patch, reach
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(classes, width)
        self.relative_bias = nn.Parameter(0.02 * torch.randn((2 * reach - 1) ** 2, heads))
        self.blocks = nn.ModuleList(BiasedBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def bias(self, h: int, w: int, device: torch.device) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        coordinates = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
        offset = coordinates[:, None] - coordinates[None, :] + self.reach - 1
        index = offset[..., 0] * (2 * self.reach - 1) + offset[..., 1]
        return self.relative_bias[index].permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder(x)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        c = F.silu(self.t_embedder(t) + self.y_embedder(y))
        bias = self.bias(h, w, x.device)
        for block in self.blocks:
            x = block(x, c, bias)
        return unpatchify(self.final_layer(x, c), h, w, self.patch)


class LinearAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 0, 0, 1), value=1.0)  # the last row sums the weights
        out = (v @ k.transpose(-1, -2)) @ q
        out = out[:, :, :-1] / (out[:, :, -1:] + 1e-6)
        return self.proj(out.reshape(b, c, n).transpose(1, 2))


class ConvMlp(nn.Module):
    """Pointwise, depthwise 3x3, gate, pointwise."""

    def __init__(self, width: int, ratio: int = 2) -> None:
        super().__init__()
        self.inverted = nn.Linear(width, 2 * ratio * width)
        self.depth_conv = nn.Conv2d(2 * ratio * width, 2 * ratio * width, 3, padding=1, groups=2 * ratio * width)
        self.point = nn.Linear(ratio * width, width, bias=False)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = F.silu(self.inverted(x))
        x = x.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        value, gate = self.depth_conv(x).chunk(2, dim=1)
        return self.point((value * F.silu(gate)).flatten(2).transpose(1, 2))


class LinearBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = LinearAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = ConvMlp(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: torch.Tensor, c: torch.Tensor, height: int, width: int) -> torch.Tensor:
        modulation = self.scale_shift_table[None] + c.reshape(x.shape[0], 6, -1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        x = x + gate_msa * self.attn(self.norm1(x) * (1 + scale_msa) + shift_msa)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp, height, width)


class LinearAttentionDiT(nn.Module):
    """No positions: the depthwise convolutions of the blocks tell them. One modulation for all blocks."""

    def __init__(self, width: int, heads: int, depth: int, channels: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patch = patch
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(classes, width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(LinearBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        c = self.t_embedder(t) + self.y_embedder(y)
        c6 = self.t_block(c)
        for block in self.blocks:
            x = block(x, c6, height, width)
        return unpatchify(self.final_layer(x, c), height, width, self.patch)


class SparseExperts(nn.Module):
    """Every expert works on every token; a mask keeps the two that the gate likes best."""

    def __init__(self, width: int, experts: int, top: int = 2) -> None:
        super().__init__()
        self.top = top
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Mlp(width, 2) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.gate(x).softmax(dim=-1)
        kept = F.one_hot(scores.topk(self.top, dim=-1).indices, scores.shape[-1]).sum(dim=-2)
        weights = scores * kept
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class MoEBlock(nn.Module):
    def __init__(self, width: int, heads: int, experts: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.moe = SparseExperts(width, experts)
        self.shared = Mlp(width, 1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        y = modulate(self.norm2(x), shift_mlp, scale_mlp)
        return x + gate_mlp.unsqueeze(1) * (self.moe(y) + self.shared(y))


class MoEDiT(nn.Module):
    """Two of several experts for each token, and a shared one; positions are computed for the grid at hand."""

    def __init__(self, width: int, heads: int, depth: int, channels: int, patch: int, classes: int, experts: int) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.x_embedder = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(MoEBlock(width, heads, experts) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder(x)
        h, w = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2) + sincos_2d(self.width, h, w).to(x)
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        return unpatchify(self.final_layer(x, c), h, w, self.patch)
