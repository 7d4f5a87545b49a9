"""Tiny models in four families' own manner, whose blocks take more than tokens and a vector: tables, text, masks, skips.

Each has ``prepare``, what it does before its blocks, and ``finish``, what it does behind them, so that an oracle can stand
in for the blocks alone.
"""

from __future__ import annotations

from typing import Any

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


def near(h: int, w: int, reach: int) -> Tensor:
    """Whether cells are at most ``reach`` apart, (cells, cells)."""
    places = cells(h, w)
    return ((places[:, None] - places[None]).abs() <= reach).all(dim=-1)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU("tanh"), nn.Linear(2 * WIDTH, WIDTH))


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
        self,
        x: Tensor,
        c: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        skip: Tensor | None = None,
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

    ``rope`` and ``mask`` are handed to every block as they come; without ``rope`` it is made of the image's size. A ``reach``
    makes a mask of neighbours. With an ``offset`` of (B, h, w) every token has a time, and so a condition, of its own; blocks with ``embeds_time`` get
    the times themselves.
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
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens, texts, c = self.prepare(x, t, text, offset)
        extras = 0
        if self.reach is not None:
            mask = near(h, w, self.reach)
        if rope is None:
            table = angles(cells(h, w), self.DIMS)
            rope = table.cos(), table.sin()
        if texts is not None:
            extras = texts.shape[1]
            tokens = torch.cat([texts, tokens], dim=1)
            still = rope[0].new_zeros(extras, rope[0].shape[-1])
            rope = torch.cat([still + 1, rope[0]]), torch.cat([still, rope[1]])
        skips = []
        for block in self.in_blocks:
            tokens = block(tokens, c, rope, mask)
            skips.append(tokens)
        skips = skips[: len(self.out_blocks)]  # a middle block's result is nobody's skip
        for block in self.out_blocks:
            tokens = block(tokens, c, rope, mask, skips.pop())
        return self.finish(tokens[:, extras:], h, w)


# --- SD3 and Flux: two streams with one attention; Flux then has one stream, and tables of 2 x 2 matrices ----------------


def apply_rope(x: Tensor, pe: Tensor) -> Tensor:
    """Rotates (B, heads, N, D) by (B, 1, N, D / 2, 2, 2)."""
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2)
    return (pe[..., 0] * pairs[..., 0] + pe[..., 1] * pairs[..., 1]).reshape(x.shape)


def rope_matrices(ids: Tensor, dims: tuple[int, ...]) -> Tensor:
    table = angles(ids, dims)
    return torch.stack([table.cos(), -table.sin(), table.sin(), table.cos()], dim=-1).unflatten(-1, (2, 2)).unsqueeze(1)


class JointBlock(nn.Module):
    """SD3 has the image first in its attention, the text first in what it returns, and a last block that ends the text.

    Flux has the text first in its attention and the image first in what it returns.
    """

    def __init__(self, flux: bool, last: bool = False) -> None:
        super().__init__()
        self.flux, self.last = flux, last
        self.norm1, self.norm2, self.ff, self.proj = norm(), norm(), mlp(), nn.Linear(WIDTH, WIDTH)
        self.qkv, self.qkv_text = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH // HEADS), nn.RMSNorm(WIDTH // HEADS)
        self.ada, self.ada_text = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(WIDTH, (2 if last else 6) * WIDTH)
        self.norm1_text = norm()
        if not last:
            self.norm2_text, self.ff_text, self.proj_text = norm(), mlp(), nn.Linear(WIDTH, WIDTH)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor | None = None) -> Any:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(F.silu(vec))[:, None].chunk(6, dim=-1)
        shifts = self.ada_text(F.silu(vec))[:, None].chunk(2 if self.last else 6, dim=-1)
        parts = [
            self.qkv(self.norm1(img) * (1 + scale1) + shift1),
            self.qkv_text(self.norm1_text(txt) * (1 + shifts[1]) + shifts[0]),
        ]
        parts = parts[::-1] if self.flux else parts
        q, k, v = torch.cat([part.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4) for part in parts], dim=3)
        q, k = self.norm_q(q), self.norm_k(k)
        if pe is not None:
            q, k = apply_rope(q, pe), apply_rope(k, pe)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        first, second = out[:, : parts[0].shape[1]], out[:, parts[0].shape[1] :]
        out, out_text = (second, first) if self.flux else (first, second)
        img = img + gate1 * self.proj(out)
        img = img + gate2 * self.ff(self.norm2(img) * (1 + scale2) + shift2)
        if self.last:
            return None, img
        txt = txt + shifts[2] * self.proj_text(out_text)
        txt = txt + shifts[5] * self.ff_text(self.norm2_text(txt) * (1 + shifts[4]) + shifts[3])
        return (img, txt) if self.flux else (txt, img)


class SingleBlock(nn.Module):
    """Attention and MLP side by side, with one linear layer in front and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.pre_norm = nn.Linear(WIDTH, 3 * WIDTH), norm()
        self.linear1, self.linear2 = nn.Linear(WIDTH, 5 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(vec))[:, None].chunk(3, dim=-1)
        qkv, hidden = torch.split(self.linear1((1 + scale) * self.pre_norm(x) + shift), [3 * WIDTH, 2 * WIDTH], dim=-1)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(apply_rope(q, pe), apply_rope(k, pe), v).transpose(1, 2).flatten(2)
        return x + gate * self.linear2(torch.cat((out, F.gelu(hidden, approximate="tanh")), 2))


class SD3(nn.Module):
    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(CHANNELS, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.embed_text, self.time = nn.Linear(CONTEXT, WIDTH), TimeEmbedder()
        self.blocks = nn.ModuleList(JointBlock(flux=False, last=i == depth - 1) for i in range(depth))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(self, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(x)
        h, w = x.shape[-2:]
        return x.flatten(2).transpose(1, 2) + self.position(cells(h, w)), self.embed_text(text), self.time(t)

    finish = SequenceDiT.finish

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens, text, vec = self.prepare(x, t, text)
        for block in self.blocks:
            text, tokens = block(img=tokens, txt=text, vec=vec)
        return self.finish(tokens, h, w)


class Flux(nn.Module):
    """A packed latent of (B, N, C); ids of (B, rows, 3) say where its tokens and those of the text are."""

    DIMS = (4, 4, 4)

    def __init__(self, doubles: int = 3, singles: int = 3, unbind: bool = True) -> None:
        super().__init__()
        self.unbind = unbind  # tells tracing how many columns the ids have
        self.img_in, self.txt_in, self.time = nn.Linear(CHANNELS, WIDTH), nn.Linear(CONTEXT, WIDTH), TimeEmbedder()
        self.double_blocks = nn.ModuleList(JointBlock(flux=True) for _ in range(doubles))
        self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(singles))
        self.norm, self.head = norm(), nn.Linear(WIDTH, CHANNELS)

    def prepare(self, img: Tensor, txt: Tensor, t: Tensor, **_: Any) -> tuple[Tensor, ...]:
        return self.img_in(img), self.txt_in(txt), self.time(t)

    def forward(self, img: Tensor, txt: Tensor, t: Tensor, img_ids: Tensor, txt_ids: Tensor) -> Tensor:
        img, txt, vec = self.prepare(img, txt, t)
        ids = torch.cat((txt_ids, img_ids), dim=1)
        pe = rope_matrices(torch.stack(ids.unbind(-1), dim=-1) if self.unbind else ids, self.DIMS)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, pe)
        x = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            x = block(x, vec, pe)
        return self.head(self.norm(x[:, txt.shape[1] :]))


# --- Wan: video, text through cross-attention, complex tables ------------------------------------------------------------


class WanBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.ffn = norm(), norm(), nn.LayerNorm(WIDTH), mlp()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.cross_q, self.cross_kv, self.cross_o = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
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
        x = x + gate1 * self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        q = self.cross_q(self.norm3(x)).unflatten(2, (HEADS, -1)).transpose(1, 2)
        k, v = self.cross_kv(context).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.cross_o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Wan(nn.Module):
    """With an ``offset`` of (B, frames, h, w) every token has a time, and so a modulation, of its own."""

    DIMS = (4, 4, 4)

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.patch, self.text, self.time = (
            nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), (1, 2, 2)),
            nn.Linear(CONTEXT, WIDTH),
            TimeEmbedder(),
        )
        self.projection = nn.Linear(WIDTH, 6 * WIDTH)
        self.blocks = nn.ModuleList(WanBlock() for _ in range(depth))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(self, x: Tensor, t: Tensor, text: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, text, modulation."""
        times = t if offset is None else t[:, None] + offset.flatten(1)
        return (
            self.patch(x).flatten(2).transpose(1, 2),
            self.text(text),
            self.projection(self.time(times)).unflatten(-1, (6, -1)),
        )

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
