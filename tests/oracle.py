"""A plain eager SparseDiT, written from the paper alone: the oracle that the compiler is compared with.

It knows nothing of graphs, passes or the package under test. A *block function* ``run(block, queries, keys, pooling)``
says how a family's block attends from one set of tokens to another; the rest is the paper's section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Run = Callable[[Any, torch.Tensor, torch.Tensor, bool], torch.Tensor]


def average(tokens: torch.Tensor, grid: tuple[int, int], pooled: tuple[int, int]) -> torch.Tensor:
    """Adaptive average pooling, window by window."""
    h, w = grid
    image = tokens.reshape(tokens.shape[0], h, w, -1)
    rows = []
    for i in range(pooled[0]):
        top, bottom = i * h // pooled[0], math.ceil((i + 1) * h / pooled[0])
        for j in range(pooled[1]):
            left, right = j * w // pooled[1], math.ceil((j + 1) * w / pooled[1])
            rows.append(image[:, top:bottom, left:right].mean(dim=(1, 2)))
    return torch.stack(rows, dim=1)


def nearest(tokens: torch.Tensor, pooled: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Nearest-neighbour upsampling, token by token."""
    source = [(i * pooled[0] // grid[0]) * pooled[1] + j * pooled[1] // grid[1] for i in range(grid[0]) for j in range(grid[1])]
    return torch.stack([tokens[:, s] for s in source], dim=1)


def sparse_trunk(
    blocks: list[Any],
    tokens: torch.Tensor,
    run: Run,
    grid: tuple[int, int],
    pooled: tuple[int, int],
    poolingformer: int,
    modules: list[tuple[int, int, int, int]],
    restores: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The three segments, bottom to top; ``restores`` holds (W1, b1, W2, b2) of every module."""
    rest = list(blocks)
    for _ in range(poolingformer):
        tokens = run(rest.pop(0), tokens, tokens, True)
    for (generate, sparse, recover, dense), (w1, b1, w2, b2) in zip(modules, restores, strict=True):
        few = average(tokens, grid, pooled)
        for _ in range(generate):
            few = run(rest.pop(0), few, tokens, False)
        for _ in range(sparse):
            few = run(rest.pop(0), few, few, False)
        tokens = F.linear(nearest(few, pooled, grid), w1, b1) + F.linear(tokens, w2, b2)
        for _ in range(recover):
            tokens = run(rest.pop(0), tokens, few, False)
        for _ in range(dense):
            tokens = run(rest.pop(0), tokens, tokens, False)
    for block in rest:
        tokens = run(block, tokens, tokens, False)
    return tokens


def paper_side(side: int, t: float, r_min: float, r_max: float, steps: int = 1000) -> int:
    """The pooled side at timestep t, straight from the paper's formula."""
    rate = r_min if t < steps / 4 else ((4 * steps - 4 * t) * r_min + (4 * t - steps) * r_max) / (3 * steps)
    return math.floor(side * math.sqrt(1 - rate))


# --- how the blocks of three families attend from queries to keys ------------------------------------------------------


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, pooling: bool) -> torch.Tensor:
    """Attention by the book, on (batch, tokens, channels)."""
    if pooling:
        return v.mean(dim=1, keepdim=True).expand(-1, q.shape[1], -1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def plain_dit_run(c: torch.Tensor) -> Run:
    """For tests.plain_dit."""

    def run(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(c)[:, None].chunk(6, dim=-1)
        attn = block.attn
        q_in, kv_in = (block.norm1(x) * (1 + scale1) + shift1 for x in (queries, keys))
        if hasattr(attn, "qkv"):
            (wq, wk, wv), (bq, bk, bv) = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
        else:
            (wq, wk, wv), (bq, bk, bv) = (
                [getattr(layer, name) for layer in (attn.q, attn.k, attn.v)] for name in ("weight", "bias")
            )
        out = attend(F.linear(q_in, wq, bq), F.linear(kv_in, wk, bk), F.linear(kv_in, wv, bv), attn.heads, pooling)
        x = queries + gate1 * attn.proj(out)
        return x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)

    return run


def diffusers_attention(attn: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
    """diffusers' ``Attention`` module by its layers."""
    out = attend(attn.to_q(queries), attn.to_k(keys), attn.to_v(keys), attn.heads, pooling)
    return attn.to_out[0](out)


def diffusers_dit_run(timestep: torch.Tensor, labels: torch.Tensor) -> Run:
    """For ``DiTTransformer2DModel``: every block embeds timestep and label itself."""

    def run(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        embedded = block.norm1.emb(timestep, labels, hidden_dtype=queries.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = block.norm1.linear(F.silu(embedded))[:, None].chunk(6, dim=-1)
        q_in, kv_in = (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1 for x in (queries, keys))
        x = queries + gate1 * diffusers_attention(block.attn1, q_in, kv_in, pooling)
        return x + gate2 * block.ff(block.norm3(x) * (1 + scale2) + shift2)

    return run


def pixart_run(modulation: torch.Tensor, text: torch.Tensor, text_bias: torch.Tensor) -> Run:
    """For ``PixArtTransformer2DModel``: shared modulation plus a table in each block, and cross-attention to text."""

    def run(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        batch = queries.shape[0]
        table = block.scale_shift_table[None] + modulation.reshape(batch, 6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = table.chunk(6, dim=1)
        q_in, kv_in = (block.norm1(x) * (1 + scale1) + shift1 for x in (queries, keys))
        x = queries + gate1 * diffusers_attention(block.attn1, q_in, kv_in, pooling)
        cross = block.attn2
        q, k, v = (
            y.unflatten(-1, (cross.heads, -1)).transpose(1, 2) for y in (cross.to_q(x), cross.to_k(text), cross.to_v(text))
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + text_bias[:, None], dim=-1)
        x = x + cross.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        return x + gate2 * block.ff(block.norm2(x) * (1 + scale2) + shift2)

    return run
