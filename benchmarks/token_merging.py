"""Token merging (Bolya and Hoffman, arXiv 2303.17604) on a diffusers DiT or PixArt, as a baseline at equal FLOPs.

Written from the paper. In every block, each token that is not the first of its 2x2 cell looks for the most similar one that
is; the most similar pairs become their mean before attention and the MLP, and the results are copied back to both after
each. A published choice is random which token of a cell is the destination; here it is the first, so that runs are alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsify.ends import Grid

from .block_parts import parts_of
from .common import counted


class Matching:
    """Which tokens of (batch, N, channels) are merged into which; ``merged`` of them vanish."""

    def __init__(self, metric: torch.Tensor, grid: Grid, merged: int) -> None:
        sources, targets = (index.to(metric.device) for index in cells(grid))
        similarity = F.normalize(metric, dim=-1)
        best, partner = (similarity[:, sources] @ similarity[:, targets].transpose(1, 2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        gone, kept = order[:, :merged], order[:, merged:]
        partner = partner.gather(1, gone)
        # For each token, the row of the merged sequence that it gets back: kept sources first, then the targets.
        count = kept.shape[1]
        origin = torch.empty(metric.shape[:2], dtype=torch.long, device=metric.device)
        origin[:, targets] = count + torch.arange(len(targets), device=metric.device)
        rows = torch.arange(count, device=metric.device).expand_as(kept)
        origin = origin.scatter(1, sources[kept], rows).scatter(1, sources[gone], count + partner)
        self._sources, self._targets = sources, targets
        # As rows of all images, for two merges and two copies back.
        self._gone, self._kept = _rows(gone, len(sources)), _rows(kept, len(sources))
        self._partner, self._origin = _rows(partner, len(targets)), _rows(origin, count + len(targets))
        one = torch.ones_like(self._partner)
        self._counts = one.new_ones(len(metric) * len(targets)).index_add(0, self._partner, one)[:, None]

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, N, channels) to (batch, N - merged, channels)."""
        sources, targets = x[:, self._sources], x[:, self._targets]
        sums = targets.flatten(0, 1).index_add(0, self._partner, sources.flatten(0, 1).index_select(0, self._gone))
        return torch.cat([_taken(sources, self._kept), (sums / self._counts).view_as(targets)], dim=1)

    def unmerge(self, x: torch.Tensor) -> torch.Tensor:
        """Back to (batch, N, channels)."""
        return _taken(x, self._origin)


def _taken(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Of images (batch, n, channels) these rows, as many of each: whole ones, which is faster than ``gather``."""
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, (len(x), len(rows) // len(x)))


def _rows(index: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens (batch, m) out of ``count`` of each image, as rows of all images."""
    return (index + count * torch.arange(len(index), device=index.device)[:, None]).flatten()


def cells(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the tokens that may vanish, and of the first token of every 2x2 cell."""
    height, width = grid
    tokens = range(height * width)  # plain numbers: their values are known under a meta device and to the compiler
    is_first = [i // width % 2 == 0 and i % width % 2 == 0 for i in tokens]
    gone, first = ([i for i in tokens if is_first[i] == wanted] for wanted in (False, True))
    return torch.tensor(gone, device="cpu"), torch.tensor(first, device="cpu")


class MergingBlock(nn.Module):
    """A block that merges its tokens before attention, cross-attention and MLP."""

    def __init__(self, block: Any, grid: Grid, merged: int) -> None:
        super().__init__()
        self.block, self.grid, self.merged = block, grid, merged
        self.norm1 = block.norm1  # the model's output layers ask its first block for the embedding

    def forward(self, x: torch.Tensor, **given: Any) -> torch.Tensor:
        """What the block returns, approximately."""
        block = self.block
        parts = parts_of(block, given["timestep"], given["class_labels"], x.dtype)
        matching = Matching(x, self.grid, self.merged) if self.merged else _Identity()
        merge, unmerge = matching.merge, matching.unmerge
        x = x + parts.attention_gate * unmerge(block.attn1(merge(parts.before_attention(x))))
        if block.attn2 is not None:
            text, mask = given["encoder_hidden_states"], given["encoder_attention_mask"]
            x = x + unmerge(block.attn2(merge(x), encoder_hidden_states=text, attention_mask=mask))
        return x + parts.mlp_gate * unmerge(block.ff(merge(parts.before_mlp(x))))


class _Identity:
    """Nothing to merge."""

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        return x

    unmerge = merge


def merging(model: nn.Module, grid: Grid, merged: int) -> nn.Module:
    """The model, with its own parameters, in which every block merges ``merged`` tokens away."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.transformer_blocks = nn.ModuleList(MergingBlock(block, grid, merged) for block in model.transformer_blocks)
    return twin.eval()


def merged_at(
    model: nn.Module,
    inputs: dict[str, Any],
    grid: Grid,
    gflops: float,
    make: Callable[[nn.Module, Grid, int], nn.Module] = merging,
) -> tuple[int, float]:
    """How many tokens to merge for a forward pass at batch 1 that costs as near to ``gflops`` as can be, and what it costs.

    ``model`` and ``inputs`` may be on the meta device: nothing is computed. At most three tokens of four can be merged.
    ``make`` is :func:`merging`, or what stands for it with another model.
    """
    most = len(cells(grid)[0])
    found: dict[int, float] = {}

    def cost(merged: int) -> float:
        if merged not in found:
            found[merged] = counted(make(model, grid, merged), **inputs)
        return found[merged]

    # With one token merged the matching costs more than it saves; from there on the cost falls with every token.
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) > gflops else (low, middle)
    best = min((0, low, high), key=lambda merged: abs(cost(merged) - gflops))
    return best, cost(best)
