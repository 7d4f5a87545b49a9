"""The blocks of random DiTs: of one stream, of one stream with attention beside the MLP, and of two streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attention import Attention, CrossAttention, Projections, Rope, joined, parted
from .modulation import Modulation, token_norm

if TYPE_CHECKING:
    from .spec import DiTSpec


class Mlp(nn.Sequential):
    """Linear, GELU, linear."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU("tanh"), nn.Linear(ratio * width, width))


class Skip(nn.Linear):
    """Joins the result of a lower block to the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """(B, N, width) of two of them."""
        return super().forward(torch.cat([x, skip], dim=-1))


class OneStream(nn.Module):
    """A block of one stream: what all kinds of it are given, and the skip that some of them are."""

    def __init__(self, spec: DiTSpec, skip: bool) -> None:
        super().__init__()
        self.skip = Skip(spec.width) if skip else None

    def forward(
        self,
        x: Tensor,
        c: Tensor | None = None,
        rope: Rope | None = None,
        mask: Tensor | None = None,
        text: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """The next tokens, (B, N, width)."""
        if self.skip is not None and skip is not None:
            x = self.skip(x, skip)
        return self.update(x, c, rope, mask, text)

    def update(self, x: Tensor, c: Tensor | None, rope: Rope | None, mask: Tensor | None, text: Tensor | None) -> Tensor:
        """The next tokens, of those that have met the skip."""
        raise NotImplementedError


class Block(OneStream):
    """One stream: attention, cross-attention if there is any, MLP."""

    def __init__(self, spec: DiTSpec, skip: bool) -> None:
        super().__init__(spec, skip)
        width = spec.width
        self.modulation = Modulation(spec.modulation, width, layers=2)
        self.norm1, self.norm2 = token_norm(spec.modulation, width), token_norm(spec.modulation, width)
        self.project = Projections(width, spec.heads, spec.qkv, spec.qk_norm)
        self.attention, self.out = Attention(spec.written, spec.rope_style), nn.Linear(width, width)
        self.cross = CrossAttention(width, spec.heads, spec.qk_norm) if spec.text == "cross" else None
        self.cross_norm = nn.LayerNorm(width) if spec.text == "cross" else None
        self.mlp = Mlp(width, spec.mlp_ratio)

    def update(self, x: Tensor, c: Tensor | None, rope: Rope | None, mask: Tensor | None, text: Tensor | None) -> Tensor:
        """The next tokens, (B, N, width)."""
        first, second = self.modulation(c)
        q, k, v, _ = self.project(first.before(self.norm1(x)))
        x = x + first.after(self.out(self.attention(q, k, v, rope, mask)))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), text)
        result: Tensor = x + second.after(self.mlp(second.before(self.norm2(x))))
        return result


class ParallelBlock(OneStream):
    """One stream, with attention and MLP side by side between one linear layer (of fused projections) and another."""

    def __init__(self, spec: DiTSpec, skip: bool) -> None:
        super().__init__(spec, skip)
        width, hidden = spec.width, spec.mlp_ratio * spec.width
        self.modulation, self.norm = Modulation(spec.modulation, width, layers=1), token_norm(spec.modulation, width)
        self.project = Projections(width, spec.heads, spec.qkv, spec.qk_norm, extra=hidden)
        self.attention, self.act = Attention(spec.written, spec.rope_style), nn.GELU("tanh")
        self.out = nn.Linear(width + hidden, width)

    def update(self, x: Tensor, c: Tensor | None, rope: Rope | None, mask: Tensor | None, text: Tensor | None) -> Tensor:
        """The next tokens, (B, N, width); it has no use for ``text``."""
        (parts,) = self.modulation(c)
        q, k, v, hidden = self.project(parts.before(self.norm(x)))
        out = self.attention(q, k, v, rope, mask)
        result: Tensor = x + parts.after(self.out(torch.cat([out, self.act(hidden)], dim=-1)))
        return result


class Stream(nn.Module):
    """The weights that text or image has to itself in a block of two streams."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        width = spec.width
        self.modulation = Modulation(spec.modulation, width, layers=2)
        self.norm1, self.norm2 = token_norm(spec.modulation, width), token_norm(spec.modulation, width)
        self.project = Projections(width, spec.heads, spec.qkv, spec.qk_norm)
        self.out, self.mlp = nn.Linear(width, width), Mlp(width, spec.mlp_ratio)


class DoubleBlock(nn.Module):
    """Two streams, text and image, that attend to each other as one sequence."""

    def __init__(self, spec: DiTSpec) -> None:
        super().__init__()
        self.text_first = spec.text_first
        self.image, self.text = Stream(spec), Stream(spec)
        self.attention = Attention(spec.written, spec.rope_style)

    def forward(
        self, x: Tensor, text: Tensor, c: Tensor | None = None, rope: Rope | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next tokens of the image, (B, N, width), and of the text, (B, words, width)."""
        image, words = self.image.modulation(c), self.text.modulation(c)
        heads = self.image.project(image[0].before(self.image.norm1(x)))[:3]
        heads_of_text = self.text.project(words[0].before(self.text.norm1(text)))[:3]
        q, k, v = (joined(*pair, self.text_first, 2) for pair in zip(heads_of_text, heads, strict=True))
        out_of_text, out = parted(self.attention(q, k, v, rope, mask), text.shape[1], self.text_first)
        x = x + image[0].after(self.image.out(out))
        x = x + image[1].after(self.image.mlp(image[1].before(self.image.norm2(x))))
        text = text + words[0].after(self.text.out(out_of_text))
        text = text + words[1].after(self.text.mlp(words[1].before(self.text.norm2(text))))
        return x, text
