"""How the condition (timestep and label) moves the tokens of a block: shifts, scales and gates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SHARED_PARTS = 6  # what the projection that adaLN-single shares makes for every block


class Parts(NamedTuple):
    """What surrounds one layer of a block, each (B, 1, width), or None where the model has none."""

    shift: Tensor | None = None
    scale: Tensor | None = None
    gate: Tensor | None = None

    def before(self, x: Tensor) -> Tensor:
        """The input of the layer."""
        return x if self.shift is None or self.scale is None else x * (1 + self.scale) + self.shift

    def after(self, x: Tensor) -> Tensor:
        """The output of the layer."""
        return x if self.gate is None else self.gate * x


class Modulation(nn.Module):
    """The parts of ``layers`` layers, one or two, of a block."""

    def __init__(self, kind: str, width: int, layers: int) -> None:
        super().__init__()
        self.kind, self.layers = kind, layers
        self.each = {"none": 0, "shift-scale": 2}.get(kind, 3)
        if kind == "adaln-single":
            self.table = nn.Parameter(torch.empty(self.each * layers, width))
        elif kind != "none":
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, self.each * layers * width))

    def forward(self, c: Tensor | None) -> list[Parts]:
        """Of (B, width), or (B, SHARED_PARTS, width) where the projection is shared."""
        if self.kind == "none" or c is None:
            return [Parts()] * self.layers
        if self.kind == "adaln-single":
            parts = (self.table + c[:, : self.each * self.layers]).chunk(self.each * self.layers, dim=1)
        else:
            parts = self.mlp(c).unsqueeze(1).chunk(self.each * self.layers, dim=-1)
        return [Parts(*parts[start : start + self.each]) for start in range(0, len(parts), self.each)]


def token_norm(kind: str, width: int) -> nn.LayerNorm:
    """The norm before a layer; what modulates it takes the place of its weights."""
    return nn.LayerNorm(width, elementwise_affine=kind == "none", eps=1e-6)
