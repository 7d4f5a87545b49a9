"""Models that do what the common ones do not."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import nn

from ..plain_dit import Attention, Block, PlainDiT
from .tiny import SIDE, AnySize, tiny

T = torch.Tensor


class NoTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: T) -> T:
        return self.layer(x)


class OnePlaceForAll(PlainDiT):
    """One module, three times in the list."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = nn.ModuleList([self.blocks[0]] * len(self.blocks))


class Rounds(PlainDiT):
    """The chain of blocks runs twice, as a recurrent model's does."""

    def forward(self, x: T, t: T, y: T) -> T:
        c, tokens = self.conditioning(t, y), self.embed(x)
        for block in (*self.blocks, *self.blocks):
            tokens = block(tokens, c)
        return self.finish(tokens, c)


class TwoTrunks(PlainDiT):
    """Two chains of like blocks, one after the other."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.more = nn.ModuleList(Block(16, 2, "fused", 0.0) for _ in self.blocks)

    def forward(self, x: T, t: T, y: T) -> T:
        c, tokens = self.conditioning(t, y), self.embed(x)
        for block in (*self.blocks, *self.more):
            tokens = block(tokens, c)
        return self.finish(tokens, c)


class Branches(TwoTrunks):
    """Two chains side by side; what they return is added."""

    def forward(self, x: T, t: T, y: T) -> T:
        c, left = self.conditioning(t, y), self.embed(x)
        right = left
        for block in self.blocks:
            left = block(left, c)
        for block in self.more:
            right = block(right, c)
        return self.finish(left + right, c)


class NoAttention(PlainDiT):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for block in self.blocks:
            block.attn = nn.Identity()


class TokensGiven(nn.Module):
    """Takes tokens as they are: no axes are merged anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = tiny().blocks

    def conditioning(self, t: T) -> T:
        return torch.sin(t[:, None].float() * torch.arange(1, 17))

    def forward(self, tokens: T, t: T) -> T:
        c = self.conditioning(t)
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens


class NoTimestep(PlainDiT):
    def forward(self, x: T, a: T, b: T) -> T:
        c, tokens = self.t_mlp[2](a[:, None] * b[:, None] + torch.zeros(16)), self.embed(x)
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.finish(tokens, c)


class InPlaceBlock(Block):
    """Writes into what it was given, as code without autograd in mind does."""

    def forward(self, x: T, c: T) -> T:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x += gate1 * self.attn(self.norm1(x).mul_(1 + scale1).add_(shift1))
        return x.add_(gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2))


class WritesIntoACopy(Block):
    def forward(self, x: T, c: T) -> T:
        x = super().forward(x, c).clone()
        x[..., ::2] = x[..., ::2] * 1.1
        return x.add_(0.01)


class BatchNormBlock(Block):
    """Statistics over all tokens of all images, where in training mode."""

    def forward(self, x: T, c: T) -> T:
        return self.over_batch(super().forward(x, c).transpose(1, 2)).transpose(1, 2)


class LooksAtValues(Block):
    def forward(self, x: T, c: T) -> T:
        return super().forward(x if x.mean() > 0 else x * 2, c)


class KeepsTheAttention(Block):
    """Leaves what it computed on itself, for somebody to look at."""

    def forward(self, x: T, c: T) -> T:
        self.last = super().forward(x, c)
        return self.last


class Causal(Attention):
    def forward(self, x: T) -> T:
        q, k, v = self.projections(x)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class BranchesOnValues(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x * 2 if float(x.mean()) > 100 else x, t, y)


class ReadsANumber(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x * (1 + t[0].item() / 1000), t, y)


class Counts(PlainDiT):
    """A buffer counts the calls, and the answer depends on it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: T, t: T, y: T) -> T:
        self.calls.add_(1)
        return super().forward(x * self.calls, t, y)


class CountsInPython(PlainDiT):
    """Remembers calls in attributes; capture must not leave any there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cache: dict[str, T] = {}
        self.calls: list[int] = []

    def forward(self, x: T, t: T, y: T) -> T:
        self.calls.append(1)
        return super().forward(x * self.cache.setdefault("table", torch.ones(1)), t, y)


class WritesAWeight(PlainDiT):
    """Normalises a weight in its forward, by a number that is read."""

    def forward(self, x: T, t: T, y: T) -> T:
        with torch.no_grad():
            self.head.weight.mul_(1 / (1 + self.head.weight.norm().item()))
        return super().forward(x, t, y)


class WritesItsInput(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x.mul_(2), t, y)


class WritesItsInputAndReadsANumber(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x.mul_(1 + t[0].item()), t, y)


class ReturnsItsInput(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> tuple[T, T, T]:
        return super().forward(x, t, y), x, x[:, :1].transpose(2, 3)


class DrawsFromPython(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x * random.random(), t, y)


class DrawsFromNumpy(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x * float(numpy.random.rand()), t, y)


class Noisy(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        return super().forward(x + torch.randn_like(x), t, y)


class Fourier(PlainDiT):
    """Complex weights ahead of the trunk."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filter = nn.Parameter(torch.randn(3, SIDE, SIDE, dtype=torch.complex64))

    def embed(self, x: T) -> T:
        return super().embed(torch.fft.ifft2(torch.fft.fft2(x) * self.filter).real)


class Fails(PlainDiT):
    def forward(self, x: T, t: T, y: T) -> T:
        raise ValueError("the model's own complaint")


class Wrapped(nn.Module):
    """Any arguments, and an object of its own around the result."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, *args: T, **kwargs: T) -> dict[str, T]:
        return {"sample": self.inner(*args, **kwargs)}


class ReturnsSizes(AnySize):
    """Numbers beside the result, as code that unpatches outside of the model wants them."""

    def forward(self, x: T, t: T, y: T) -> tuple[T, int, int]:
        return super().forward(x, t, y), x.shape[0], x.shape[2] * 2


class ReturnsASizeFromBlocks(AnySize):
    """Blocks hand a number on beside their tokens."""

    def forward(self, x: T, t: T, y: T) -> T:
        c, tokens, count = self.conditioning(t, y), self.embed(x), 0
        for block in self.blocks:
            tokens, length = block(tokens, c)
            count += length
        return self.finish(tokens * count, c)


class BlockWithASize(Block):
    def forward(self, x: T, c: T) -> tuple[T, int]:
        return super().forward(x, c), x.shape[0]
