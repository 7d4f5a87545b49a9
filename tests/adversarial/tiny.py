"""A DiT of three blocks on 4 x 4 tokens, what it is given, and what it must answer by the hand-written oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from ..oracle import Run, plain_dit_run
from ..plain_dit import Block, PlainDiT, randomised
from ..test_exact import oracle_trunk, randomise_restores

# One block of each kind; 3 x 3 tokens near the data and 2 x 2 from the middle on.
POLICY = Policy(0, SDTM(1, 1, 1, 0), 0, Density.table({0: (3, 3), 500: (2, 2)}))
TOLERANCE = 1e-5
SIDE = 8

# What a test's block does to what the block of the oracle returns: (index, block, value) to value.
Change = Callable[[int, Any, torch.Tensor], torch.Tensor]


class AnySize(PlainDiT):
    """No positional table, so it takes any image."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        z = self.x_embedder(x)
        self.__dict__["grid"] = tuple(z.shape[2:])
        return z.flatten(2).transpose(1, 2)

    def finish(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        x, (h, w), p = self.head(self.norm(x) * (1 + scale) + shift), self.grid, self.patch
        x = x.reshape(x.shape[0], h, w, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(x.shape[0], 3, h * p, w * p)


def tiny(cls: type[PlainDiT] = PlainDiT, block: type[Block] | None = None, depth: int = 3, **options: Any) -> PlainDiT:
    """A random model, in evaluation mode."""
    settings: dict[str, Any] = {"depth": depth, "width": 16, "heads": 2, "image": (SIDE, SIDE)}
    model = cls(**(settings | options))
    for each in model.blocks if block is not None else ():
        each.__class__ = block
    made = randomised(model)
    assert isinstance(made, PlainDiT)
    return made.eval()


def given(batch: int = 2, t: float = 700, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[torch.Tensor, ...]:
    """The inputs of one call."""
    return torch.randn(batch, 3, *size), torch.full((batch,), t), torch.arange(batch) % 5


@functools.cache
def shared() -> tuple[PlainDiT, SparseModel]:
    """A model and its sparse form, captured once for all rows that only differ in what they give it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny()
        sparse = sparsify(model, POLICY, given())
        randomise_restores(sparse)
    return model, sparse


@torch.no_grad()
def expected(
    sparse: SparseModel,
    model: PlainDiT,
    inputs: Any,
    pooled: tuple[int, int] = (2, 2),
    change: Change | None = None,
    policy: Policy = POLICY,
) -> torch.Tensor:
    """What the oracle makes of a call, with the model's own weights and the new layers of ``sparse``."""
    x, t, y = inputs
    conditioning = model.conditioning(t, y)
    tokens = model.embed(x)
    plain = plain_dit_run(conditioning)
    places = {id(block): index for index, block in enumerate(model.blocks)}

    def changed(block: Any, queries: torch.Tensor, keys: torch.Tensor, pooling: bool) -> torch.Tensor:
        value = plain(block, queries, keys, pooling)
        return value if change is None else change(places[id(block)], block, value)

    run: Run = changed
    return model.finish(oracle_trunk(sparse, policy, model.blocks, tokens, run, model.grid, pooled), conditioning)
