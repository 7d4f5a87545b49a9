"""The first torch.export of a process takes a second longer than the next: it is done once, in the process that the others are forked off."""

from __future__ import annotations

import sys


def warm_up() -> None:
    """Export a small module, if torch has been imported; only fake tensors are computed with, so that no thread is started."""
    if "torch" not in sys.modules:
        return
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            q, k, v = self.layer(x).chunk(3, -1)
            return x + nn.functional.scaled_dot_product_attention(q, k, v) * t[:, None, None]

    size = torch.export.Dim.AUTO
    shapes = ({0: size, 1: size}, {0: size})
    torch.export.export(Attention(), (torch.randn(2, 7, 8), torch.randn(2)), dynamic_shapes=shapes, strict=False)
