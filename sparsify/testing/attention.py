"""Attention of random DiTs: its projections, the rotation of queries and keys, and the two ways to write it down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rope = tuple[Tensor, Tensor]


class Projections(nn.Module):
    """Queries, keys and values of (batch, heads, tokens, channels), with further channels of the same input beside them."""

    def __init__(self, width: int, heads: int, qkv: str, qk_norm: str, extra: int = 0) -> None:
        super().__init__()
        self.width, self.heads, self.fused = width, heads, qkv == "fused"
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width + extra)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
            self.extra = nn.Linear(width, extra) if extra else None
        self.q_norm, self.k_norm = _norm(qk_norm, width // heads), _norm(qk_norm, width // heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Three tensors of (B, heads, N, D), and (B, N, extra) or None, of (B, N, width)."""
        batch, tokens, width = x.shape
        rest: Tensor | None
        if self.fused:
            qkv, rest = self.qkv(x), None
            if self.qkv.out_features > 3 * width:
                qkv, rest = qkv.split([3 * width, self.qkv.out_features - 3 * width], dim=-1)
            q, k, v = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            rest = None if self.extra is None else self.extra(x)
        return self.q_norm(q), self.k_norm(k), v, rest


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return nn.LayerNorm(width) if kind == "layer" else nn.RMSNorm(width)


class Attention(nn.Module):
    """Rotates queries and keys, where there are tables for it, and attends; it has no weights."""

    def __init__(self, written: bool, rope_style: str) -> None:
        super().__init__()
        self.written, self.rope_style = written, rope_style

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, heads * D) of (B, heads, N, D); tables of (N, D); a mask that broadcasts to (B, heads, N, N)."""
        if rope is not None:
            q, k = rotate(q, rope, self.rope_style), rotate(k, rope, self.rope_style)
        if self.written:
            logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
            out = (logits if mask is None else logits + mask).softmax(dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        result: Tensor = out.transpose(1, 2).flatten(2)
        return result


class CrossAttention(nn.Module):
    """Attention to the text."""

    def __init__(self, width: int, heads: int, qk_norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = _norm(qk_norm, width // heads), _norm(qk_norm, width // heads)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, N, width) of (B, N, width) and (B, words, width)."""
        sources = ((self.q, x), (self.k, text), (self.v, text))
        q, k, v = (layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, source in sources)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result


def rope_tables(cells: Tensor, head_width: int, style: str) -> Rope:
    """Cosines and sines of (N, head_width) for positions of (N, axes); every axis has its own pairs of channels."""
    pairs, axes = head_width // 2, cells.shape[-1]
    angles = []
    for axis in range(axes):
        count = pairs // axes + (axis < pairs % axes)
        speeds = 20.0 ** (-torch.arange(count, dtype=cells.dtype, device=cells.device) / count)
        angles.append(cells[:, axis, None] * speeds)
    table = torch.cat(angles, dim=-1)
    table = torch.cat([table, table], dim=-1) if style == "half" else table.repeat_interleave(2, dim=-1)
    return table.cos(), table.sin()


def rotate(x: Tensor, rope: Rope, style: str) -> Tensor:
    """(B, heads, N, D), each pair of channels turned by its angle."""
    cos, sin = rope
    if style == "half":
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return x * cos + turned * sin


def beside_text(rope: Rope, words: int, text_first: bool) -> Rope:
    """Tables with rows for the text, which is not turned."""
    cos, sin = rope
    still = cos.new_zeros(words, cos.shape[-1])
    return joined(still + 1, cos, text_first, 0), joined(still, sin, text_first, 0)


def joined(text: Tensor, image: Tensor, text_first: bool, dim: int = 1) -> Tensor:
    """Text and image as one sequence."""
    parts: Sequence[Tensor] = (text, image) if text_first else (image, text)
    return torch.cat(list(parts), dim=dim)


def parted(x: Tensor, words: int, text_first: bool) -> tuple[Tensor, Tensor]:
    """Text and image of a sequence (B, words + N, width)."""
    if text_first:
        return x[:, :words], x[:, words:]
    tokens = x.shape[1] - words
    return x[:, tokens:], x[:, :tokens]
