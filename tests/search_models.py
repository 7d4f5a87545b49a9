"""A model whose blocks matter differently in a known way, and batches for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .helpers import plain
from .plain_dit import Block, PlainDiT

Batch = dict[str, torch.Tensor]


def lopsided(gains: Mapping[int, float], depth: int = 8, uniform: tuple[int, ...] = (), **options: object) -> PlainDiT:
    """A plain DiT whose blocks matter differently.

    Block ``i`` adds ``gains[i]`` times what it would and attends to few tokens; those not named add a twentieth. ``uniform`` ones
    have no queries, so that they attend to all tokens alike.
    """
    torch.manual_seed(0)
    model = plain(depth, **options)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            for rows in (2, 5):  # the gates of attention and MLP
                linear = block.modulation[1]
                for parameter in (linear.weight, linear.bias):
                    parameter.view(6, model.width, -1)[rows] *= gains.get(index, 0.05)
            for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
                queries, _, values = parameter.view(3, model.width, -1)
                queries *= 0 if index in uniform else 8 if index in gains else 1
                values *= 4 if index in gains else 1
    return model


def batches(count: int = 4, batch: int = 2, seed: int = 0, longest: int = 1000) -> list[Batch]:
    """Random latents at timesteps spread over the schedule."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(batch, 3, 16, 16, generator=generator),
            "t": torch.full((batch,), int(longest * (index + 0.5) / count)),
            "y": torch.randint(0, 5, (batch,), generator=generator),
        }
        for index in range(count)
    ]
