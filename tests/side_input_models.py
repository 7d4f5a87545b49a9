"""Tiny models whose blocks take more than tokens and a vector, as DiT and Wan have them: tables, masks, skips, text.

Each has ``prepare``, what it does before its blocks, and ``finish``, what it does behind them, so that an oracle can stand
in for the blocks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, CHANNELS, CONTEXT = 24, 2, 3, 10


def cells(*grid: int) -> Tensor:
    """The positions of a grid's cells, (cells, axes), in row-major order."""
    places = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    return torch.stack([place.flatten() for place in places], dim=-1).double()


def angles(positions: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Axial RoPE: for each of (..., axes) positions the angles of its pairs of channels, ``dims`` channels to an axis."""
    speeds = [50.0 ** (-torch.arange(0, dim, 2).double() / dim) for dim in dims]
    return torch.cat([positions[..., axis, None] * speed for axis, speed in enumerate(speeds)], dim=-1)


def turns(positions: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of these angles."""
    table = angles(positions, dims)
    return table.cos(), table.sin()


def near(h: int, w: int, reach: int) -> Tensor:
    """Whether cells are at most ``reach`` apart, (cells, cells)."""
    places = cells(h, w)
    return ((places[:, None] - places[None]).abs() <= reach).all(dim=-1)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU("tanh"), nn.Linear(2 * WIDTH, WIDTH))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TimeEmbedder(nn.Module):
    """Times of any shape, 0 to 1000, embedded in a new last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t: Tensor) -> Tensor:
        speeds = 0.3 ** torch.arange(4).double()
        phases = t[..., None] / 100 * speeds
        return self.mlp(torch.cat([phases.cos(), phases.sin()], dim=-1))


# --- a DiT: one sequence, adaLN, cosines and sines ---------------------------------------------------------------------


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Writes into an empty tensor, as several models do."""
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


class SequenceBlock(nn.Module):
    def __init__(self, skip: bool, embeds_time: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = norm(), norm(), mlp()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.time = TimeEmbedder() if embeds_time else None
        self.ada = nn.Linear(WIDTH, 6 * WIDTH)
        self.skip_linear = nn.Linear(2 * WIDTH, WIDTH) if skip else None

    def forward(
        self, x: Tensor, c: Tensor, rope: Sequence[Tensor], mask: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        b, n, _ = x.shape
        c = c if self.time is None else self.time(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(F.silu(c)).chunk(6, dim=-1)
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1).reshape(b, n, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate_in_place(q, *rope), rotate_in_place(k, *rope)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + gate1 * self.proj(out.transpose(1, 2).reshape(b, n, -1))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class SequenceDiT(nn.Module):
    """Text, if there is any, stands before the image in one sequence; with ``skips`` late blocks see early ones' results.

    ``rope`` and ``mask`` are handed to every block as they come; without ``rope`` it is made of the image's size. A
    ``reach`` makes a mask of neighbours. With an ``offset`` of (B, h, w) every token has a time, and so a condition, of
    its own; blocks with ``embeds_time`` get the times themselves.
    """

    DIMS = (6, 6)

    def __init__(self, depth: int = 5, skips: bool = False, embeds_time: bool = False, reach: int | None = None) -> None:
        super().__init__()
        self.embeds_time, self.reach = embeds_time, reach
        self.embed = nn.Conv2d(CHANNELS, WIDTH, 2, 2)
        self.embed_text = nn.Linear(CONTEXT, WIDTH)
        self.time = TimeEmbedder()
        half = depth // 2 if skips else 0
        self.in_blocks = nn.ModuleList(SequenceBlock(False, embeds_time) for _ in range(depth - half))
        self.out_blocks = nn.ModuleList(SequenceBlock(True, embeds_time) for _ in range(half))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(
        self, x: Tensor, t: Tensor, text: Tensor | None = None, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Image tokens, text tokens, and the condition, or times, of every token or of all."""
        times = t[:, None] if offset is None else t[:, None] + offset.flatten(1)
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return tokens, None if text is None else self.embed_text(text), times if self.embeds_time else self.time(times)

    def finish(self, x: Tensor, h: int, w: int) -> Tensor:
        x = self.head(self.norm(x)).reshape(x.shape[0], h, w, 2, 2, CHANNELS)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(x.shape[0], CHANNELS, 2 * h, 2 * w)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor | None = None,
        offset: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens, texts, c = self.prepare(x, t, text, offset)
        mask = mask if self.reach is None else near(h, w, self.reach)
        cos, sin = turns(cells(h, w), self.DIMS) if rope is None else rope
        if texts is not None:
            tokens = torch.cat([texts, tokens], dim=1)
            still = cos.new_zeros(texts.shape[1], cos.shape[-1])
            cos, sin = torch.cat([still + 1, cos]), torch.cat([still, sin])
        results = []
        for block in self.in_blocks:
            tokens = block(tokens, c, (cos, sin), mask)
            results.append(tokens)
        for block, skip in zip(self.out_blocks, results[: len(self.out_blocks)][::-1], strict=True):
            tokens = block(tokens, c, (cos, sin), mask, skip)
        return self.finish(tokens if texts is None else tokens[:, texts.shape[1] :], h, w)


# --- Wan: video, text through cross-attention, complex tables ------------------------------------------------------------


class WanBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.ffn = norm(), norm(), nn.LayerNorm(WIDTH), mlp()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.cross_q, self.cross_k, self.cross_v, self.cross_o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.modulation = nn.Parameter(torch.zeros(6, WIDTH))

    def rotate(self, x: Tensor, freqs: Tensor) -> Tensor:
        z = torch.view_as_complex(x.unflatten(2, (HEADS, -1, 2)))
        return torch.view_as_real(z * freqs).flatten(3).transpose(1, 2)

    def forward(self, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor) -> Tensor:
        """``e`` is (B, 6, D), or (B, N, 6, D); ``freqs`` is complex, (1, N, 1, D / heads / 2)."""
        e = (self.modulation + e).unsqueeze(1) if e.ndim == 3 else self.modulation + e
        shift1, scale1, gate1, shift2, scale2, gate2 = (part.squeeze(2) for part in e.chunk(6, dim=2))
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k = self.rotate(self.norm_q(self.q(y)), freqs), self.rotate(self.norm_k(self.k(y)), freqs)
        v = self.v(y).unflatten(2, (HEADS, -1)).transpose(1, 2)
        x = x + gate1 * self.o(attention(q, k, v))
        q = self.cross_q(self.norm3(x)).unflatten(2, (HEADS, -1)).transpose(1, 2)
        k, v = (layer(context).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.cross_k, self.cross_v))
        x = x + self.cross_o(attention(q, k, v))
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Wan(nn.Module):
    """With an ``offset`` of (B, frames, h, w) every token has a time, and so a modulation, of its own."""

    DIMS = (4, 4, 4)

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.patch, self.text = nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), (1, 2, 2)), nn.Linear(CONTEXT, WIDTH)
        self.time, self.projection = TimeEmbedder(), nn.Linear(WIDTH, 6 * WIDTH)
        self.blocks = nn.ModuleList(WanBlock() for _ in range(depth))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(self, x: Tensor, t: Tensor, text: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, text, modulation."""
        times = t if offset is None else t[:, None] + offset.flatten(1)
        e = self.projection(self.time(times)).unflatten(-1, (6, -1))
        return self.patch(x).flatten(2).transpose(1, 2), self.text(text), e

    def finish(self, x: Tensor, f: int, h: int, w: int) -> Tensor:
        x = self.head(self.norm(x)).reshape(x.shape[0], f, h, w, 2, 2, CHANNELS)
        return torch.einsum("bfhwpqc->bcfhpwq", x).reshape(x.shape[0], CHANNELS, f, 2 * h, 2 * w)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, offset: Tensor | None = None) -> Tensor:
        grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
        tokens, context, e = self.prepare(x, t, text, offset)
        table = angles(cells(*grid), self.DIMS)
        freqs = torch.polar(torch.ones_like(table), table)[None, :, None]
        for block in self.blocks:
            tokens = block(tokens, e, freqs, context)
        return self.finish(tokens, *grid)
