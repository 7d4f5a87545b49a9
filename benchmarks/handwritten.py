"""SparseDiT by hand, eager, on a diffusers DiT or PixArt: what one would write without a compiler, as a baseline for it.

It does what the published code does: values are projected for all tokens before their mean is taken, the mean goes through
the output projection token by token, W1 comes after the upsampling, pooling and upsampling work on images. One thing is
kinder: that code takes the mean by a matrix of ones for every head; here it is a mean unless ``ones`` is set.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsify import Policy
from sparsify.ends import Grid

from .block_parts import parts_of


def attention(attn: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool, ones: bool) -> torch.Tensor:
    """From (batch, n, channels) to (batch, N, channels); the mean over all values where ``pooling``."""
    values = attn.to_v(keys)
    if pooling and not ones:
        return attn.to_out[0](values.mean(dim=1, keepdim=True).expand_as(queries))
    values = values.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    if pooling:
        batch, heads, count = values.shape[:3]
        weights = torch.ones(batch, heads, queries.shape[1], count, dtype=values.dtype, device=values.device) / count
        mixed = weights @ values
    else:
        q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(queries), attn.to_k(keys)))
        mixed = F.scaled_dot_product_attention(q, k, values)
    return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def run_block(
    block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool, ones: bool, given: dict[str, Any]
) -> torch.Tensor:
    """A block that attends from ``queries`` to ``keys``, which are the same tensor in an ordinary block."""
    parts = parts_of(block, given["timestep"], given["class_labels"], queries.dtype)
    q = parts.before_attention(queries)
    kv = q if keys is queries else parts.before_attention(keys)
    x = queries + parts.attention_gate * attention(block.attn1, q, kv, pooling, ones)
    if block.attn2 is not None:
        text, mask = given["encoder_hidden_states"], given["encoder_attention_mask"]
        x = x + block.attn2(x, encoder_hidden_states=text, attention_mask=mask)
    return x + parts.mlp_gate * block.ff(parts.before_mlp(x))


class Restore(nn.Module):
    """``Up(X_s) W1 + X W2``, from the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sparse, self.dense = nn.Linear(width, width), nn.Linear(width, width)
        with torch.no_grad():
            for layer in (self.sparse, self.dense):
                layer.weight.zero_()
                layer.bias.zero_()
            nn.init.eye_(self.dense.weight)

    def forward(self, few: torch.Tensor, tokens: torch.Tensor, grid: Grid, pooled: Grid) -> torch.Tensor:
        """Sparse tokens on ``pooled``, dense ones on ``grid``."""
        image = few.transpose(1, 2).unflatten(2, pooled)
        up = F.interpolate(image, size=grid, mode="nearest").flatten(2).transpose(1, 2)
        return self.sparse(up) + self.dense(tokens)


class Trunk(nn.Module):
    """All blocks; it stands in the model's list as its only block and takes what a block takes."""

    def __init__(self, blocks: Sequence[Any], policy: Policy, grid: Grid, ones: bool, compiled: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm1 = blocks[0].norm1  # the model's output layers ask its first block for the embedding
        self.policy, self.grid, self.ones = policy.fitted(len(blocks)), grid, ones
        self.pooled = self.policy.density.grid_at(0, grid)
        weight = blocks[0].attn1.to_q.weight
        width = weight.shape[1]
        self.restores = nn.ModuleList(Restore(width) for _ in self.policy.sdtm).to(weight.device, weight.dtype)
        # One block at a time, as regional compilation does it: all blocks of a role share one compiled function.
        self.run = torch.compile(run_block, dynamic=False) if compiled else run_block

    def forward(self, tokens: torch.Tensor, **given: Any) -> torch.Tensor:
        """Dense tokens in and out."""
        rest = list(self.blocks)

        def run(queries: torch.Tensor, keys: torch.Tensor, pooling: bool = False) -> torch.Tensor:
            return self.run(rest.pop(0), queries, keys, pooling, self.ones, given)

        for _ in range(self.policy.poolingformer):
            tokens = run(tokens, tokens, pooling=True)
        for module, restore in zip(self.policy.sdtm, self.restores, strict=True):
            image = tokens.transpose(1, 2).unflatten(2, self.grid)
            few = F.adaptive_avg_pool2d(image, self.pooled).flatten(2).transpose(1, 2)
            for _ in range(module.generate):
                few = run(few, tokens)
            for _ in range(module.sparse):
                few = run(few, few)
            tokens = restore(few, tokens, self.grid, self.pooled)
            for _ in range(module.recover):
                tokens = run(tokens, few)
            for _ in range(module.dense):
                tokens = run(tokens, tokens)
        while rest:
            tokens = run(tokens, tokens)
        return tokens


def handwritten(model: nn.Module, policy: Policy, grid: Grid, *, ones: bool = False, compiled: bool = False) -> nn.Module:
    """The model with its blocks in a sparse trunk; it holds the model's own parameters.

    ``fix_grid`` chooses the pooled grid of the calls to come, which the published code has only one of.
    """
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.transformer_blocks = nn.ModuleList([Trunk(list(model.transformer_blocks), policy, grid, ones, compiled)])
    return twin.eval()


def fix_grid(twin: nn.Module, pooled: Grid) -> nn.Module:
    """Use this pooled grid from now on."""
    twin.transformer_blocks[0].pooled = pooled
    return twin
