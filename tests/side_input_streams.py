"""Tiny models of text and image streams, as SD3 and Flux have them; see ``side_input_models``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .side_input_models import CHANNELS, CONTEXT, HEADS, WIDTH, SequenceDiT, TimeEmbedder, attention, cells, mlp, norm, turns


def apply_rope(x: Tensor, pe: Tensor) -> Tensor:
    """Rotates (B, heads, N, D) by (B, 1, N, D / 2, 2, 2)."""
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2)
    return (pe[..., 0] * pairs[..., 0] + pe[..., 1] * pairs[..., 1]).reshape(x.shape)


def rope_matrices(ids: Tensor, dims: tuple[int, ...]) -> Tensor:
    cos, sin = turns(ids, dims)
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).unsqueeze(1)


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
        qkv = self.qkv(self.norm1(img) * (1 + scale1) + shift1)
        qkv_text = self.qkv_text(self.norm1_text(txt) * (1 + shifts[1]) + shifts[0])
        parts = (qkv_text, qkv) if self.flux else (qkv, qkv_text)
        q, k, v = torch.cat([part.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4) for part in parts], dim=3)
        q, k = self.norm_q(q), self.norm_k(k)
        if pe is not None:
            q, k = apply_rope(q, pe), apply_rope(k, pe)
        out = attention(q, k, v)
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
        out = attention(apply_rope(q, pe), apply_rope(k, pe), v)
        return x + gate * self.linear2(torch.cat((out, F.gelu(hidden, approximate="tanh")), 2))


class SD3(nn.Module):
    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(CHANNELS, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.embed_text, self.time = nn.Linear(CONTEXT, WIDTH), TimeEmbedder()
        self.norm, self.head = norm(), nn.Linear(WIDTH, 4 * CHANNELS)
        self.blocks = nn.ModuleList(JointBlock(flux=False, last=i == depth - 1) for i in range(depth))

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
