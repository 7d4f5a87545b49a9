"""Token merging on the small DiT, the baseline that needs no training (arXiv 2303.17604)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.token_merging import Matching
from sparsify.ends import Grid

from .model import Block, MnistDiT


class MergingBlock(nn.Module):
    """A block that merges its most alike tokens before attention and before the MLP, and copies the results back."""

    def __init__(self, block: Block, grid: Grid, merged: int) -> None:
        super().__init__()
        self.block, self.grid, self.merged = block, grid, merged

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What the block returns, approximately."""
        block = self.block
        if not self.merged:
            return block(x, condition)
        matching = Matching(x, self.grid, self.merged)
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        few = matching.merge(block.norm1(x) * (1 + scale1) + shift1)
        x = x + gate1 * matching.unmerge(block.attention(few))
        few = matching.merge(block.norm2(x) * (1 + scale2) + shift2)
        return x + gate2 * matching.unmerge(block.fc2(F.gelu(block.fc1(few), approximate="tanh")))


def merging(model: MnistDiT, grid: Grid, merged: int) -> nn.Module:
    """The model, with its own parameters, in which every block merges ``merged`` tokens away."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.blocks = nn.ModuleList(MergingBlock(block, grid, merged) for block in model.blocks)
    return twin.eval()
