"""An eager oracle, written from the paper, of blocks that take tables, masks, skips and text with their tokens.

Positions are averaged and tables made of the averages, masks are open where any token of the window's is, features are
averaged; text is whole wherever it goes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .oracle import paper_side
from .side_input_models import HEADS, SequenceDiT, Wan, angles, cells, near
from .side_input_streams import SD3, Flux, JointBlock

RATES = (0.5, 0.8)  # of the paper's density
TIME_RATE = 0.6  # where time is pooled as well

Pair = tuple[Any, Any]  # a value at dense and at sparse level, to be indexed by "is it sparse"


@dataclass(frozen=True)
class Rows:
    """What one side of an attention sees: image tokens at a level, the text, and the skip that comes with them."""

    image: Tensor
    text: Tensor | None
    sparse: bool
    skip: Rows | None = None

    def joined(self) -> Tensor:
        return self.image if self.text is None else torch.cat([self.text, self.image], dim=1)


class Windows:
    """The cells of a grid that each cell of a pooled grid stands for."""

    def __init__(self, grid: Sequence[int], pooled: Sequence[int]) -> None:
        number = torch.arange(math.prod(grid)).reshape(tuple(grid))
        sides = list(zip(grid, pooled, strict=True))
        spans = [[slice(i * m // n, math.ceil((i + 1) * m / n)) for i in range(n)] for m, n in sides]
        self.members = [number[place].flatten() for place in itertools.product(*spans)]
        places = itertools.product(*(range(m) for m, _ in sides))
        sources = [[i * n // m for i, (m, n) in zip(place, sides, strict=True)] for place in places]
        self.sources = torch.arange(math.prod(pooled)).reshape(tuple(pooled))[tuple(torch.tensor(sources).T)]

    def mean(self, x: Tensor, axis: int = 1) -> Tensor:
        return torch.stack([x.index_select(axis, rows).mean(axis) for rows in self.members], axis)

    def peak(self, x: Tensor, axis: int) -> Tensor:
        return torch.stack([x.index_select(axis, rows).amax(axis) for rows in self.members], axis)

    def copies(self, x: Tensor) -> Tensor:
        return x[:, self.sources]

    def both(self, x: Tensor) -> Pair:
        """Features of every token, (B, N, ...); of all tokens, (B, 1, ...), they are the same at both levels."""
        return x, self.mean(x) if x.shape[1] > 1 else x


Plan = tuple[Any, Any]  # a policy, and its restore layers
Run = Callable[[nn.Module, Rows, Rows, bool], tuple[Tensor | None, Tensor]]


def trunk(
    plan: Plan, blocks: Sequence[nn.Module], image: Tensor, text: Tensor | None, run: Run, windows: Windows, skips: int = 0
) -> Tensor:
    """The image tokens behind the blocks; the last ``skips`` blocks see the results of the first, in reverse order."""
    policy, restores = plan
    done: list[Rows] = []

    def at(level: bool, value: Rows) -> Rows:
        if value.sparse != level:
            value = Rows(windows.mean(value.image) if level else windows.copies(value.image), value.text, level)
        return value

    def step(queries: Tensor, keys: Tensor, of: tuple[bool, bool], pooling: bool = False) -> Tensor:
        nonlocal text
        number = len(done)
        skip = done[len(blocks) - 1 - number] if number >= len(blocks) - skips else None
        q, k = (
            Rows(x, text, level, None if skip is None else at(level, skip))
            for x, level in zip((queries, keys), of, strict=True)
        )
        text, queries = run(blocks[number], q, k, pooling)
        done.append(Rows(queries, text, of[0]))
        return queries

    for _ in range(policy.poolingformer):
        image = step(image, image, (False, False), pooling=True)
    for module, restore in zip(policy.sdtm, restores, strict=True):
        few = windows.mean(image)
        for _ in range(module.generate):
            few = step(few, image, (True, False))
        for _ in range(module.sparse):
            few = step(few, few, (True, True))
        image = restore["sparse"](windows.copies(few)) + restore["dense"](image)
        for _ in range(module.recover):
            image = step(image, few, (False, True))
        for _ in range(module.dense):
            image = step(image, image, (False, False))
    for _ in range(policy.dense):
        image = step(image, image, (False, False))
    return image


# --- how the blocks of each family attend from queries to keys -----------------------------------------------------------


def heads(x: Tensor, turn: Tensor | None = None) -> Tensor:
    """(B, N, D) by heads, neighbouring channels turned by angles of (1 or B, N, D / heads / 2)."""
    x = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    if turn is None:
        return x
    cos, sin = turn.cos().unsqueeze(1), turn.sin().unsqueeze(1)
    return torch.stack([x[..., 0::2] * cos - x[..., 1::2] * sin, x[..., 0::2] * sin + x[..., 1::2] * cos], -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, pooling: bool = False, bias: Any = 0.0) -> Tensor:
    """Of (B, heads, N, D). A poolingformer block takes all keys that its mask leaves open alike."""
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = torch.softmax((0 * logits if pooling else logits) + bias, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def sequence_run(c: Pair, turn: Pair, bias: dict[tuple[bool, bool], Any]) -> Run:
    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[Tensor | None, Tensor]:
        def entered(side: Rows) -> Tensor:
            return side.joined() if side.skip is None else block.skip_linear(torch.cat([side.joined(), side.skip.joined()], -1))

        def modulation(side: Rows) -> tuple[Tensor, ...]:
            embedded = c[side.sparse] if block.time is None else block.time(c[side.sparse])
            return block.ada(F.silu(embedded)).chunk(6, dim=-1)

        x, (shift1, scale1, gate1, shift2, scale2, gate2) = entered(q), modulation(q)
        key_shift, key_scale, *_ = modulation(k)
        wq, wk, wv = block.qkv.weight.chunk(3)
        bq, bk, bv = block.qkv.bias.chunk(3)
        y, z = block.norm1(x) * (1 + scale1) + shift1, block.norm1(entered(k)) * (1 + key_scale) + key_shift
        queries, keys = heads(F.linear(y, wq, bq), turn[q.sparse]), heads(F.linear(z, wk, bk), turn[k.sparse])
        out = attend(queries, keys, heads(F.linear(z, wv, bv)), pooling, bias.get((q.sparse, k.sparse), 0.0))
        x = x + gate1 * block.proj(out)
        x = x + gate2 * block.mlp(block.norm2(x) * (1 + scale2) + shift2)
        return (None, x) if q.text is None else (x[:, : q.text.shape[1]], x[:, q.text.shape[1] :])

    return run


def joint_run(vec: Tensor, turn: Pair = (None, None)) -> Run:
    """SD3's and Flux's blocks, and Flux's single ones; the angles of text and image in this order."""

    def single(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[Tensor, Tensor]:
        shift, scale, gate = block.modulation(F.silu(vec))[:, None].chunk(3, dim=-1)
        count = q.image.shape[-1]
        y, z = (block.linear1(block.pre_norm(side.joined()) * (1 + scale) + shift) for side in (q, k))
        out = attend(
            heads(y[..., :count], turn[q.sparse]),
            heads(z[..., count : 2 * count], turn[k.sparse]),
            heads(z[..., 2 * count : 3 * count]),
            pooling,
        )
        x = q.joined() + gate * block.linear2(torch.cat([out, F.gelu(y[..., 3 * count :], approximate="tanh")], -1))
        return x[:, : q.text.shape[1]], x[:, q.text.shape[1] :]

    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[Tensor | None, Tensor]:
        if not isinstance(block, JointBlock):
            return single(block, q, k, pooling)
        m, m_text = (
            layer(F.silu(vec))[:, None].chunk(parts, -1)
            for layer, parts in ((block.ada, 6), (block.ada_text, 2 if block.last else 6))
        )
        y, z = (block.qkv(block.norm1(side.image) * (1 + m[1]) + m[0]).chunk(3, -1) for side in (q, k))
        t = block.qkv_text(block.norm1_text(q.text) * (1 + m_text[1]) + m_text[0]).chunk(3, -1)
        joined = [torch.cat(pair, dim=1) for pair in ((t[0], y[0]), (t[1], z[1]), (t[2], z[2]))]
        queries, keys = (
            heads(layer(x.unflatten(-1, (HEADS, -1))).flatten(-2), turn[side.sparse])
            for layer, x, side in ((block.norm_q, joined[0], q), (block.norm_k, joined[1], k))
        )
        out = attend(queries, keys, heads(joined[2]), pooling)
        text, rows = q.text, q.text.shape[1]
        x = q.image + m[2] * block.proj(out[:, rows:])
        x = x + m[5] * block.ff(block.norm2(x) * (1 + m[4]) + m[3])
        if block.last:
            return None, x
        text = text + m_text[2] * block.proj_text(out[:, :rows])
        return text + m_text[5] * block.ff_text(block.norm2_text(text) * (1 + m_text[4]) + m_text[3]), x

    return run


def wan_run(e: Pair, turn: Pair, context: Tensor) -> Run:
    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[None, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (e[q.sparse] + block.modulation).unbind(2)
        key_shift, key_scale, *_ = (e[k.sparse] + block.modulation).unbind(2)
        y, z = block.norm1(q.image) * (1 + scale1) + shift1, block.norm1(k.image) * (1 + key_scale) + key_shift
        queries, keys = heads(block.norm_q(block.q(y)), turn[q.sparse]), heads(block.norm_k(block.k(z)), turn[k.sparse])
        x = q.image + gate1 * block.o(attend(queries, keys, heads(block.v(z)), pooling))
        keys, values = heads(block.cross_k(context)), heads(block.cross_v(context))
        x = x + block.cross_o(attend(heads(block.cross_q(block.norm3(x))), keys, values))
        return None, x + gate2 * block.ffn(block.norm2(x) * (1 + scale2) + shift2)

    return run


# --- what the models compute: the oracle's trunk between what they do in front and behind ---------------------------------


def windows_of(policy: Any, call: dict[str, Any], grid: tuple[int, ...]) -> Windows:
    """Of a video each frame is pooled by itself, unless the policy says that time is pooled too."""
    step = float(call["t"].flatten()[0])
    if len(grid) == 3 and any(module.time for module in policy.sdtm):
        return Windows(grid, [math.floor(side * (1 - TIME_RATE) ** (1 / 3)) for side in grid])
    return Windows(grid, [*grid[:-2], *(paper_side(side, step, *RATES) for side in grid[-2:])])


def biases(mask: Tensor | None, windows: Windows, extras: int) -> dict[tuple[bool, bool], Tensor]:
    """What is added to the logits, by the level of queries and of keys; ``extras`` rows and columns belong to text."""
    if mask is None:
        return {}
    closes = mask.dtype == torch.bool or bool((mask < -1000).any())
    mask = torch.zeros(mask.shape).double().masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask

    def pool(x: Tensor, axis: int) -> Tensor:
        text, image = x.tensor_split([extras], dim=axis)
        return torch.cat([text, (windows.peak if closes else windows.mean)(image, axis)], dim=axis)

    rows = {False: mask, True: mask if mask.shape[-2] == 1 else pool(mask, -2)}
    return {(q, k): pool(rows[q], -1) if k else rows[q] for q in (False, True) for k in (False, True)}


def sequence(twin: SequenceDiT, plan: Plan, call: dict[str, Any]) -> Tensor:
    grid = (call["x"].shape[-2] // 2, call["x"].shape[-1] // 2)
    windows = windows_of(plan[0], call, grid)
    image, text, c = twin.prepare(call["x"], call["t"], call.get("text"), call.get("offset"))
    extras = 0 if text is None else text.shape[1]
    turn = [angles(places, twin.DIMS) for places in (cells(*grid), windows.mean(cells(*grid), 0))]
    turn = [torch.cat([torch.zeros(extras, table.shape[1]), table])[None] for table in turn]
    mask = call.get("mask") if twin.reach is None else near(*grid, twin.reach)
    run = sequence_run(windows.both(c), turn, biases(mask, windows, extras))
    image = trunk(plan, [*twin.in_blocks, *twin.out_blocks], image, text, run, windows, len(twin.out_blocks))
    return twin.finish(image, *grid)


def sd3(twin: SD3, plan: Plan, call: dict[str, Any]) -> Tensor:
    grid = (call["x"].shape[-2] // 2, call["x"].shape[-1] // 2)
    image, text, vec = twin.prepare(**call)
    return twin.finish(trunk(plan, twin.blocks, image, text, joint_run(vec), windows_of(plan[0], call, grid)), *grid)


def flux(twin: Flux, plan: Plan, call: dict[str, Any]) -> Tensor:
    places = call["img_ids"]
    grid = tuple(int(places[0, :, axis].max()) + 1 for axis in (1, 2))
    windows = windows_of(plan[0], call, grid)
    image, text, vec = twin.prepare(call["img"], call["txt"], call["t"])
    turn = [angles(torch.cat([call["txt_ids"], ids], 1), twin.DIMS) for ids in (places, windows.mean(places))]
    image = trunk(plan, [*twin.double_blocks, *twin.single_blocks], image, text, joint_run(vec, turn), windows)
    return twin.head(twin.norm(image))


def wan(twin: Wan, plan: Plan, call: dict[str, Any]) -> Tensor:
    frames, height, width = call["x"].shape[2:]
    grid = (frames, height // 2, width // 2)
    windows = windows_of(plan[0], call, grid)
    image, context, e = twin.prepare(**call)
    turn = [angles(places, twin.DIMS)[None] for places in (cells(*grid), windows.mean(cells(*grid), 0))]
    run = wan_run(windows.both(e[:, None] if e.ndim == 3 else e), turn, context)
    return twin.finish(trunk(plan, twin.blocks, image, None, run, windows), *grid)
