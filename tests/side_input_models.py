"""Tiny models in four families' own manner, whose blocks take more than tokens and a vector: tables, text, masks, skips.

Each has ``prepare``, what it does before its blocks, and ``finish``, what it does behind them, so that an oracle can stand
in for the blocks alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, CHANNELS, CONTEXT = 24, 2, 3, 10


def cells(*grid: int) -> torch.Tensor:
    """The positions of a grid's cells, (cells, axes), in row-major order."""
    places = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    return torch.stack([place.flatten() for place in places], dim=-1).double()


def angles(positions: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Axial RoPE: for each of (..., axes) positions the angles of its pairs of channels, ``dims`` channels to an axis."""
    speeds = [50.0 ** (-torch.arange(0, dim, 2).double() / dim) for dim in dims]
    return torch.cat([positions[..., axis, None] * speed for axis, speed in enumerate(speeds)], dim=-1)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU("tanh"), nn.Linear(2 * WIDTH, WIDTH))


class TimeEmbedder(nn.Module):
    """Times of any shape, 0 to 1000, embedded in a new last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        speeds = 0.3 ** torch.arange(4).double()
        phases = t[..., None] / 100 * speeds
        return self.mlp(torch.cat([phases.cos(), phases.sin()], dim=-1))


# --- a DiT: one sequence, adaLN, cosines and sines ---------------------------------------------------------------------


def rotate_in_place(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
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
        x: torch.Tensor,
        c: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
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

    ``rope`` and ``mask`` are handed to every block as they come; without ``rope`` it is made of the image's size. With
    an ``offset`` of (B, h, w) every token has a time, and so a condition, of its own; blocks with ``embeds_time`` get
    the times themselves.
    """

    DIMS = (6, 6)

    def __init__(self, depth: int = 6, skips: bool = False, embeds_time: bool = False) -> None:
        super().__init__()
        self.embeds_time = embeds_time
        self.embed = nn.Conv2d(CHANNELS, WIDTH, 2, 2)
        self.embed_text = nn.Linear(CONTEXT, WIDTH)
        self.time = TimeEmbedder()
        half = depth // 2 if skips else 0
        self.in_blocks = nn.ModuleList(SequenceBlock(False, embeds_time) for _ in range(depth - half))
        self.out_blocks = nn.ModuleList(SequenceBlock(True, embeds_time) for _ in range(half))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor | None = None, offset: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Image tokens, text tokens, and the condition, or times, of every token or of all."""
        times = t[:, None] if offset is None else t[:, None] + offset.flatten(1)
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return tokens, None if text is None else self.embed_text(text), times if self.embeds_time else self.time(times)

    def finish(self, x: torch.Tensor, h: int, w: int) -> torch.Tensor:
        x = self.head(self.norm(x)).reshape(x.shape[0], h, w, 2, 2, CHANNELS)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(x.shape[0], CHANNELS, 2 * h, 2 * w)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor | None = None,
        rope: tuple[torch.Tensor, torch.Tensor] | None = None,
        mask: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
    ) -> torch.Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens, texts, c = self.prepare(x, t, text, offset)
        extras = 0
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


# --- SD3: two streams, one attention -----------------------------------------------------------------------------------


class JointBlock(nn.Module):
    """The last one gives the text no further, as in SD3."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.norm1, self.norm1_context, self.norm2 = norm(), norm(), norm()
        self.qkv, self.qkv_context = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH // HEADS), nn.RMSNorm(WIDTH // HEADS)
        self.ada, self.ada_context = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(WIDTH, (2 if last else 6) * WIDTH)
        self.proj, self.ff = nn.Linear(WIDTH, WIDTH), mlp()
        self.proj_context = None if last else nn.Linear(WIDTH, WIDTH)
        self.norm2_context, self.ff_context = (None, None) if last else (norm(), mlp())

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor) -> Any:
        x, text, c = hidden_states, encoder_hidden_states, F.silu(temb)[:, None]
        b, n, _ = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c).chunk(6, dim=-1)
        shifts = self.ada_context(c).chunk(2 if self.ff_context is None else 6, dim=-1)
        image = self.qkv(self.norm1(x) * (1 + scale1) + shift1)
        context = self.qkv_context(self.norm1_context(text) * (1 + shifts[1]) + shifts[0])
        q, k, v = (y.view(b, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for y in torch.cat([image, context], 1).chunk(3, -1))
        out = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        out = out.transpose(1, 2).reshape(b, -1, WIDTH)
        out, out_context = out[:, :n], out[:, n:]
        x = x + gate1 * self.proj(out)
        x = x + gate2 * self.ff(self.norm2(x) * (1 + scale2) + shift2)
        if self.ff_context is None:
            return None, x
        text = text + shifts[2] * self.proj_context(out_context)
        return text + shifts[5] * self.ff_context(self.norm2_context(text) * (1 + shifts[4]) + shifts[3]), x


class JointDiT(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(CHANNELS, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.embed_text, self.time = nn.Linear(CONTEXT, WIDTH), TimeEmbedder()
        self.blocks = nn.ModuleList(JointBlock(last=i == depth - 1) for i in range(depth))
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)

    def prepare(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Image tokens, text tokens, condition."""
        x = self.embed(x)
        h, w = x.shape[-2:]
        return x.flatten(2).transpose(1, 2) + self.position(cells(h, w)), self.embed_text(text), self.time(t)

    finish = SequenceDiT.finish

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens, text, c = self.prepare(x, t, text)
        for block in self.blocks:
            text, tokens = block(hidden_states=tokens, encoder_hidden_states=text, temb=c)
        return self.finish(tokens, h, w)


# --- Flux: two streams, then one; tables of 2 x 2 matrices made of ids ---------------------------------------------------


def apply_rope(x: torch.Tensor, pe: torch.Tensor) -> torch.Tensor:
    """Rotates (B, heads, N, D) by (B, 1, N, D / 2, 2, 2)."""
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2)
    return (pe[..., 0] * pairs[..., 0] + pe[..., 1] * pairs[..., 1]).reshape(x.shape)


def rope_matrices(ids: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    table = angles(ids, dims)
    pe = torch.stack([table.cos(), -table.sin(), table.sin(), table.cos()], dim=-1)
    return pe.unflatten(-1, (2, 2)).unsqueeze(1)


class DoubleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_mod, self.txt_mod = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(WIDTH, 6 * WIDTH)
        self.img_norm1, self.img_norm2, self.txt_norm1, self.txt_norm2 = norm(), norm(), norm(), norm()
        self.img_qkv, self.txt_qkv = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.img_proj, self.txt_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.img_mlp, self.txt_mlp = mlp(), mlp()

    def forward(self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor, pe: torch.Tensor) -> Any:
        i_shift, i_scale, i_gate, i_shift2, i_scale2, i_gate2 = self.img_mod(F.silu(vec))[:, None].chunk(6, dim=-1)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = self.txt_mod(F.silu(vec))[:, None].chunk(6, dim=-1)
        heads = [
            qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            for qkv in (
                self.txt_qkv((1 + t_scale) * self.txt_norm1(txt) + t_shift),
                self.img_qkv((1 + i_scale) * self.img_norm1(img) + i_shift),
            )
        ]
        q, k, v = torch.cat(heads, dim=3)
        out = F.scaled_dot_product_attention(apply_rope(q, pe), apply_rope(k, pe), v).transpose(1, 2).flatten(2)
        t_out, i_out = out[:, : txt.shape[1]], out[:, txt.shape[1] :]
        img = img + i_gate * self.img_proj(i_out)
        img = img + i_gate2 * self.img_mlp((1 + i_scale2) * self.img_norm2(img) + i_shift2)
        txt = txt + t_gate * self.txt_proj(t_out)
        return img, txt + t_gate2 * self.txt_mlp((1 + t_scale2) * self.txt_norm2(txt) + t_shift2)


class SingleBlock(nn.Module):
    """Attention and MLP side by side, with one linear layer in front and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.pre_norm = nn.Linear(WIDTH, 3 * WIDTH), norm()
        self.linear1, self.linear2 = nn.Linear(WIDTH, 5 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, vec: torch.Tensor, pe: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(F.silu(vec))[:, None].chunk(3, dim=-1)
        qkv, hidden = torch.split(self.linear1((1 + scale) * self.pre_norm(x) + shift), [3 * WIDTH, 2 * WIDTH], dim=-1)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(apply_rope(q, pe), apply_rope(k, pe), v).transpose(1, 2).flatten(2)
        return x + gate * self.linear2(torch.cat((out, F.gelu(hidden, approximate="tanh")), 2))
