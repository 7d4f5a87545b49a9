"""What the table says of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: its class, with a suffix where a class stands twice.
        family: what the table of results sorts by.
        make: builds it, tiny, in float32 and in evaluation mode, with random weights none of which is zero.
        inputs: ``inputs(batch, size)`` gives keyword inputs; size 0 is the captured resolution, 1 another one.
        grid: ``grid(size)`` is the true grid of image, video or audio tokens at that resolution, row-major.
        sizes: how many resolutions the class can run with, 1 or 2.
        options: what ``sparsify`` has to be told besides the policy, as a user would: ``grid``, ``timestep``.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    grid: Callable[[int], tuple[int, ...]]
    sizes: int = 2
    options: Callable[[int], dict[str, Any]] = lambda size: {}

    def __str__(self) -> str:
        return self.name


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, so that no gate that starts at zero hides a block."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                scale = 0.5 / max(1.0, float(parameter.shape[-1])) ** 0.5 if parameter.ndim > 1 else 0.1
                centre = 1.0 if parameter.ndim == 1 and float(parameter.float().mean()) > 0.5 else 0.0  # norms stay near 1
                parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random numbers that are the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
