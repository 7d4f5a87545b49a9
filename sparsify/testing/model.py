"""A Diffusion Transformer with random weights, as its spec says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Rope, beside_text, joined, parted, rope_tables
from .blocks import Block, DoubleBlock, ParallelBlock
from .embedding import ConditionEmbedder, cells, patch_embedding, sinusoid, unpatched
from .example import CHANNELS, CLASSES, TEXT_WIDTH, patch_sides
from .modulation import SHARED_PARTS

if TYPE_CHECKING:
    from .spec import DiTSpec


class DiT(nn.Module):
    """Built by :meth:`DiTSpec.build`; ``spec`` says of what, and is what it prints."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.spec, self.patch = spec, patch_sides(spec)
        width, one = spec.width, ParallelBlock if spec.parallel else Block
        with torch.random.fork_rng(devices=[]):  # modules draw start values, which are not kept
            self.embed = patch_embedding(CHANNELS, width, self.patch)
            self.positions = nn.Parameter(torch.empty(math.prod(spec.grid), width)) if spec.positions == "learned" else None
            self.condition = ConditionEmbedder(width, CLASSES if spec.labels else 0, spec.timesteps)
            self.shared = nn.Linear(width, SHARED_PARTS * width) if spec.modulation == "adaln-single" else None
            self.embed_text = None if spec.text == "none" else nn.Linear(TEXT_WIDTH, width)
            doubles = spec.depth - spec.single if spec.text == "joint" else 0
            self.double_blocks = nn.ModuleList(DoubleBlock(spec) for _ in range(doubles))
            upper = spec.depth - spec.depth // 2 if spec.skips else spec.depth
            self.blocks = nn.ModuleList(one(spec, index >= upper) for index in range(spec.depth - doubles))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHANNELS * math.prod(self.patch))
        self.double().eval().requires_grad_(True)
        randomise(self, spec.seed)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, text: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """A tensor like the latents ``x``.

        Args:
            x: (B, channels, *sides of the latent).
            t: timesteps, (B,).
            y: labels, (B,), for models that have them.
            text: (B, words, channels of the text), for models with text.
            mask: (B, N), true for tokens to see, or (B, N, N), which is added to the logits; for models with a mask.
        """
        spec = self.spec
        grid = tuple(side // patch for side, patch in zip(x.shape[2:], self.patch, strict=True))
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        if self.positions is not None:
            tokens = tokens + self.positions
        if spec.positions == "sinusoid":
            tokens = tokens + sinusoid(cells(grid, tokens), spec.width)
        c: Tensor | None = self.condition(t, y)
        if spec.modulation == "none" and c is not None:
            tokens, c = tokens + c.unsqueeze(1), None
        elif self.shared is not None and c is not None:
            c = self.shared(F.silu(c)).unflatten(-1, (SHARED_PARTS, -1))
        if self.embed_text is not None:
            text = self.embed_text(text)
        joint = text if spec.text == "joint" else None
        rope = rope_tables(cells(grid, tokens), spec.head_width, spec.rope_style) if spec.rope else None
        rope = beside_text(rope, joint.shape[1], spec.text_first) if rope is not None and joint is not None else rope
        tokens = self._run(tokens, text, c, rope, self._mask(mask, joint, tokens.dtype))
        return unpatched(self.head(self.norm(tokens)), grid, self.patch)

    def _run(self, x: Tensor, text: Tensor | None, c: Tensor | None, rope: Rope | None, mask: Tensor | None) -> Tensor:
        """The blocks, (B, N, width) to (B, N, width)."""
        spec = self.spec
        if spec.text == "joint" and text is not None:
            for block in self.double_blocks:
                x, text = block(x, text, c, rope, mask)
            if not self.blocks:
                return x
            words = text.shape[1]
            return parted(self._one_stream(joined(text, x, spec.text_first), None, c, rope, mask), words, spec.text_first)[1]
        return self._one_stream(x, text, c, rope, mask)

    def _one_stream(self, x: Tensor, text: Tensor | None, c: Tensor | None, rope: Rope | None, mask: Tensor | None) -> Tensor:
        skips: list[Tensor] = []
        for block in self.blocks:
            x = block(x, c, rope, mask, text, skips.pop() if block.skip is not None else None)
            if self.spec.skips and len(skips) < self.spec.depth // 2 and block.skip is None:
                skips.append(x)
        return x

    def _mask(self, mask: Tensor | None, text: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """As attention takes it, for (B, heads, queries, keys); text that is joined to the tokens is seen."""
        if mask is None:
            return None
        words = 0 if text is None else text.shape[1]
        if self.spec.mask == "bias":
            sides = (words, 0) if self.spec.text_first else (0, words)
            return (F.pad(mask, sides + sides) if text is not None else mask).unsqueeze(1)
        if text is not None:
            mask = joined(mask.new_ones(mask.shape[0], words), mask, self.spec.text_first)
        if self.spec.written:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask[:, None, None, :]

    def __repr__(self) -> str:
        return f"{self.spec!r}.build()"


def randomise(model: nn.Module, seed: int) -> None:
    """Random weights everywhere, norms and gates too, so that no mistake is hidden by a zero or a one.

    Linear maps keep the size of what they are given, so that attention tells its keys apart at any width.
    """
    random = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
            if id(parameter) in norms:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.2 * noise)
