"""What goes along with tokens, and text beside them, against an eager oracle written from the paper: tables, masks, skips.

The oracle has positions averaged and tables made of the averages, masks that are open where any token of the window's is,
and features averaged; text is whole wherever it goes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from .oracle import paper_side
from .plain_dit import randomised
from .side_input_models import CHANNELS, CONTEXT, HEADS, SD3, Flux, JointBlock, SequenceDiT, Wan, angles, cells, near

RATES = (0.5, 0.8)
DENSITY = Density.paper(*RATES)
TOLERANCE = 1e-9
TIME_RATE = 0.6
GRIDS = ((6, 4), (5, 6))
VIDEOS = ((3, 5, 4), (4, 4, 6))

Pair = tuple[Any, Any]  # a value at dense and at sparse level, to be indexed by "is it sparse"


@dataclass(frozen=True)
class Rows:
    """What one side of an attention sees: image tokens at a level, the text, and the skip that comes with them."""

    image: torch.Tensor
    text: torch.Tensor | None
    sparse: bool
    skip: Rows | None = None

    def joined(self) -> torch.Tensor:
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

    def mean(self, x: torch.Tensor, axis: int = 1) -> torch.Tensor:
        return torch.stack([x.index_select(axis, rows).mean(axis) for rows in self.members], axis)

    def peak(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.stack([x.index_select(axis, rows).amax(axis) for rows in self.members], axis)

    def copies(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.sources]

    def both(self, x: torch.Tensor) -> Pair:
        """Features of every token, (B, N, ...); of all tokens, (B, 1, ...), they are the same at both levels."""
        return x, self.mean(x) if x.shape[1] > 1 else x


Plan = tuple[Any, Any]  # a policy, and its restore layers
Run = Callable[[nn.Module, Rows, Rows, bool], tuple[torch.Tensor | None, torch.Tensor]]


def trunk(
    plan: Plan,
    blocks: Sequence[nn.Module],
    image: torch.Tensor,
    text: torch.Tensor | None,
    run: Run,
    windows: Windows,
    skips: int = 0,
) -> torch.Tensor:
    """The image tokens behind the blocks; the last ``skips`` blocks see the results of the first, in reverse order."""
    policy, restores = plan
    done: list[Rows] = []

    def at(level: bool, value: Rows) -> Rows:
        if value.sparse != level:
            value = Rows(windows.mean(value.image) if level else windows.copies(value.image), value.text, level)
        return value

    def step(queries: torch.Tensor, keys: torch.Tensor, of: tuple[bool, bool], pooling: bool = False) -> torch.Tensor:
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


def heads(x: torch.Tensor, turn: torch.Tensor | None = None) -> torch.Tensor:
    """(B, N, D) by heads, neighbouring channels turned by angles of (1 or B, N, D / heads / 2)."""
    x = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    if turn is None:
        return x
    cos, sin = turn.cos().unsqueeze(1), turn.sin().unsqueeze(1)
    return torch.stack([x[..., 0::2] * cos - x[..., 1::2] * sin, x[..., 0::2] * sin + x[..., 1::2] * cos], -1).flatten(-2)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pooling: bool = False, bias: Any = 0.0) -> torch.Tensor:
    """Of (B, heads, N, D). A poolingformer block takes all keys that its mask leaves open alike."""
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = torch.softmax((0 * logits if pooling else logits) + bias, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def sequence_run(c: Pair, turn: Pair, bias: dict[tuple[bool, bool], Any]) -> Run:
    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        def entered(side: Rows) -> torch.Tensor:
            return side.joined() if side.skip is None else block.skip_linear(torch.cat([side.joined(), side.skip.joined()], -1))

        def modulation(side: Rows) -> tuple[torch.Tensor, ...]:
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


def joint_run(vec: torch.Tensor, turn: Pair = (None, None)) -> Run:
    """SD3's and Flux's blocks, and Flux's single ones; the angles of text and image in this order."""

    def single(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[torch.Tensor, torch.Tensor]:
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

    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        if not isinstance(block, JointBlock):
            return single(block, q, k, pooling)
        m, m_text = (layer(F.silu(vec))[:, None].chunk(parts, -1) for layer, parts in ((block.ada, 6), (block.ada_text, 2 if block.last else 6)))
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


def wan_run(e: Pair, turn: Pair, context: torch.Tensor) -> Run:
    def run(block: nn.Module, q: Rows, k: Rows, pooling: bool) -> tuple[None, torch.Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (e[q.sparse] + block.modulation).unbind(2)
        key_shift, key_scale, *_ = (e[k.sparse] + block.modulation).unbind(2)
        y, z = block.norm1(q.image) * (1 + scale1) + shift1, block.norm1(k.image) * (1 + key_scale) + key_shift
        queries, keys = heads(block.norm_q(block.q(y)), turn[q.sparse]), heads(block.norm_k(block.k(z)), turn[k.sparse])
        x = q.image + gate1 * block.o(attend(queries, keys, heads(block.v(z)), pooling))
        keys, values = map(heads, block.cross_kv(context).chunk(2, -1))
        x = x + block.cross_o(attend(heads(block.cross_q(block.norm3(x))), keys, values))
        return None, x + gate2 * block.ffn(block.norm2(x) * (1 + scale2) + shift2)

    return run


# --- what the models compute: the oracle's trunk between what they do in front and behind ---------------------------------


def windows_of(policy: Policy, call: dict[str, Any], grid: tuple[int, ...]) -> Windows:
    """Of a video each frame is pooled by itself, unless the policy says that time is pooled too."""
    step = float(call["t"].flatten()[0])
    if len(grid) == 3 and any(module.time for module in policy.sdtm):
        return Windows(grid, [math.floor(side * (1 - TIME_RATE) ** (1 / 3)) for side in grid])
    return Windows(grid, [*grid[:-2], *(paper_side(side, step, *RATES) for side in grid[-2:])])


def biases(mask: torch.Tensor | None, windows: Windows, extras: int) -> dict[tuple[bool, bool], torch.Tensor]:
    """What is added to the logits, by the level of queries and of keys; ``extras`` rows and columns belong to text."""
    if mask is None:
        return {}
    closes = mask.dtype == torch.bool or bool((mask < -1000).any())
    mask = torch.zeros(mask.shape).double().masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask

    def pool(x: torch.Tensor, axis: int) -> torch.Tensor:
        text, image = x.tensor_split([extras], dim=axis)
        return torch.cat([text, (windows.peak if closes else windows.mean)(image, axis)], dim=axis)

    rows = {False: mask, True: mask if mask.shape[-2] == 1 else pool(mask, -2)}
    return {(q, k): pool(rows[q], -1) if k else rows[q] for q in (False, True) for k in (False, True)}


def sequence(twin: SequenceDiT, plan: Plan, call: dict[str, Any]) -> torch.Tensor:
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


def sd3(twin: SD3, plan: Plan, call: dict[str, Any]) -> torch.Tensor:
    grid = (call["x"].shape[-2] // 2, call["x"].shape[-1] // 2)
    image, text, vec = twin.prepare(**call)
    return twin.finish(trunk(plan, twin.blocks, image, text, joint_run(vec), windows_of(plan[0], call, grid)), *grid)


def flux(twin: Flux, plan: Plan, call: dict[str, Any]) -> torch.Tensor:
    places = call["img_ids"]
    grid = tuple(int(places[0, :, axis].max()) + 1 for axis in (1, 2))
    windows = windows_of(plan[0], call, grid)
    image, text, vec = twin.prepare(call["img"], call["txt"], call["t"])
    turn = [angles(torch.cat([call["txt_ids"], ids], 1), twin.DIMS) for ids in (places, windows.mean(places))]
    image = trunk(plan, [*twin.double_blocks, *twin.single_blocks], image, text, joint_run(vec, turn), windows)
    return twin.head(twin.norm(image))


def wan(twin: Wan, plan: Plan, call: dict[str, Any]) -> torch.Tensor:
    frames, height, width = call["x"].shape[2:]
    grid = (frames, height // 2, width // 2)
    windows = windows_of(plan[0], call, grid)
    image, context, e = twin.prepare(**call)
    turn = [angles(places, twin.DIMS)[None] for places in (cells(*grid), windows.mean(cells(*grid), 0))]
    run = wan_run(windows.both(e[:, None] if e.ndim == 3 else e), turn, context)
    return twin.finish(trunk(plan, twin.blocks, image, None, run, windows), *grid)


def compare(sparse: SparseModel, twin: nn.Module, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Outputs agree, and the gradients of all parameters under a random cotangent; these reach every block."""
    assert expected.abs().max() > 0.05, "a test against zeros proves nothing"
    assert (actual - expected).abs().max() <= TOLERANCE
    cotangent = torch.randn_like(actual)
    mine = dict(sparse.named_parameters())
    theirs = dict(twin.named_parameters()) | {n: p for n, p in mine.items() if n.startswith("sparsify_restore")}
    assert mine.keys() == theirs.keys()
    got = torch.autograd.grad(actual, list(mine.values()), cotangent, allow_unused=True)
    want = torch.autograd.grad(expected, [theirs[name] for name in mine], cotangent, allow_unused=True)
    reached = set()
    for (name, parameter), g, w in zip(mine.items(), got, want, strict=True):
        g, w = (torch.zeros_like(parameter) if x is None else x for x in (g, w))
        assert (g - w).abs().max() <= TOLERANCE * max(1.0, float(w.abs().max())), name
        reached |= {path for path in sparse.program.paths if name.startswith(f"{path}.") and g.any()}
    assert reached == set(sparse.program.paths)


def check(model: nn.Module, policy: Policy, expected: Callable[..., torch.Tensor], *calls: dict[str, Any], **options: Any) -> None:
    """The model is captured with the first call alone, and all calls give what the oracle gives."""
    model = randomised(model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)  # so that attention is not uniform
    twin = copy.deepcopy(model)
    sparse = sparsify(model, policy, calls[0], **options)
    assert not sparse.report().skipped, sparse.report().skipped
    with torch.no_grad():
        for parameter in sparse.sparsify_restore.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    dense = Policy(policy.depth), ()
    dense[0].__dict__.update(poolingformer=0, dense=policy.depth)  # which no Policy may be, but the oracle can
    for call in calls:
        assert (expected(twin, dense, call) - twin(**call)).abs().max() <= TOLERANCE, "the oracle's blocks are not the model's"
        compare(sparse, twin, sparse(**call), expected(twin, (policy, sparse.sparsify_restore), call))
    assert len(sparse._stages) == 1


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def image_call(batch: int = 2, grid: tuple[int, int] = GRIDS[0], step: float = 900, text: int = 0) -> dict[str, Any]:
    call = {"x": noise(batch, CHANNELS, 2 * grid[0], 2 * grid[1]), "t": torch.full((batch,), step, dtype=torch.float64)}
    return call | ({"text": noise(batch, text, CONTEXT)} if text else {})


def three_calls(text: int = 0) -> tuple[dict[str, Any], ...]:
    """Two densities, and another resolution, batch size and length of the text."""
    return image_call(text=text), image_call(step=100, text=text), image_call(3, GRIDS[1], 500, text + 2 if text else 0)


POLICY = Policy(1, SDTM(1, 1, 1, 0), 1, DENSITY)


SEQUENCES = {
    "one of each": (POLICY, 0),
    "two generate": (Policy(0, SDTM(2, 0, 1, 1), 1, DENSITY), 5),
    "two recover": (Policy(0, SDTM(1, 1, 2, 0), 1, DENSITY), 5),
    "two modules": (Policy(0, SDTM(1, 0, 1, 0) * 2, 1, DENSITY), 5),
}


@pytest.mark.parametrize(("policy", "text"), SEQUENCES.values(), ids=SEQUENCES.keys())
def test_rotary_tables(policy: Policy, text: int) -> None:
    check(SequenceDiT(), policy, sequence, *three_calls(text))


def test_rotary_tables_that_are_inputs_of_the_model() -> None:
    calls = three_calls()
    for call, grid in zip(calls, (GRIDS[0], GRIDS[0], GRIDS[1]), strict=True):
        table = angles(cells(*grid), SequenceDiT.DIMS)
        call["rope"] = (table.cos(), table.sin())
    check(SequenceDiT(), POLICY, sequence, *calls)


def test_mask_over_pairs_of_tokens() -> None:
    check(SequenceDiT(reach=1), POLICY, sequence, *three_calls())


@pytest.mark.parametrize("kind", ["keys", "keys and text", "open keys", "pairs", "bias"])
def test_masks_that_are_inputs_of_the_model(kind: str) -> None:
    """Additive and boolean masks of keys, an additive one of pairs, and a bias, which closes nothing and so is averaged."""
    calls = three_calls(5 if kind == "keys and text" else 0)
    for call, grid in zip(calls, (GRIDS[0], GRIDS[0], GRIDS[1]), strict=True):
        if kind in ("pairs", "bias"):
            call["mask"] = noise(1, 1, *(math.prod(grid),) * 2) if kind == "bias" else near(*grid, 1).double().log()
        else:
            rows = math.prod(grid) + (call["text"].shape[1] if "text" in call else 0)
            allowed = torch.rand(call["x"].shape[0], 1, 1, rows) < 0.5
            call["mask"] = allowed if kind == "open keys" else (~allowed).double() * -1e4
    check(SequenceDiT(), POLICY, sequence, *calls)


@pytest.mark.parametrize("embeds_time", [False, True], ids=["condition", "timestep"])
def test_every_token_has_a_timestep(embeds_time: bool) -> None:
    calls = three_calls()
    for call, grid in zip(calls, (GRIDS[0], GRIDS[0], GRIDS[1]), strict=True):
        call["offset"] = torch.rand(call["x"].shape[0], *grid).double() * 50
    check(SequenceDiT(embeds_time=embeds_time), POLICY, sequence, *calls)


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 4, 1, 0), (4, 1, 1, 0)], ids=str)
def test_long_skips(shape: tuple[int, ...]) -> None:
    """From sparse to dense blocks, among sparse ones, and from dense ones into and across the module."""
    bottom, sparse, recover, dense = shape
    policy = Policy(bottom, SDTM(1, sparse, recover, dense), 7 - bottom - 1 - sparse - recover - dense, DENSITY)
    check(SequenceDiT(depth=7, skips=True), policy, sequence, *three_calls(4))


def test_two_streams() -> None:
    check(SD3(), Policy(0, SDTM(2, 0, 2, 0), 1, DENSITY), sd3, *three_calls(7))


def flux_call(batch: int = 2, grid: tuple[int, int] = GRIDS[0], step: float = 900, text: int = 7) -> dict[str, Any]:
    places, words = cells(1, *grid), cells(text, 1, 1)
    return {
        "img": noise(batch, math.prod(grid), CHANNELS),
        "txt": noise(batch, text, CONTEXT),
        "t": torch.full((batch,), step, dtype=torch.float64),
        "img_ids": places.expand(batch, -1, -1),
        "txt_ids": words.expand(batch, -1, -1),
    }


FLUX = {
    "sparse at the seam": Policy(1, SDTM(1, 2, 1, 0), 1, DENSITY),
    "generate at the seam": Policy(1, SDTM(3, 0, 1, 0), 1, DENSITY),
    "recover at the seam": Policy(0, SDTM(1, 1, 2, 0), 2, DENSITY),
}


@pytest.mark.parametrize("policy", FLUX.values(), ids=FLUX.keys())
def test_two_streams_that_become_one(policy: Policy) -> None:
    check(Flux(), policy, flux, flux_call(), flux_call(step=100), flux_call(3, GRIDS[1], 500, 9))


def test_ids_whose_columns_are_not_counted() -> None:
    check(Flux(unbind=False), FLUX["sparse at the seam"], flux, flux_call(), flux_call(3, GRIDS[1], 500, 9))


@pytest.mark.parametrize("grid", [(6, 4), (-1, 4)], ids=str)
def test_packed_tokens_on_a_grid_that_is_given(grid: tuple[int, int]) -> None:
    other = flux_call(3, (6 if grid[0] == 6 else 5, 4), 500, 9)
    check(Flux(), FLUX["sparse at the seam"], flux, flux_call(), other, grid=grid)


@pytest.mark.parametrize("time", [False, True], ids=["time kept", "time pooled"])
@pytest.mark.parametrize("by_frame", [False, True], ids=["one time", "a time for each frame"])
def test_video(time: bool, by_frame: bool) -> None:
    policy = Policy(1, SDTM(1, 1, 1, 0, time=time), 1, Density.constant(rate=TIME_RATE) if time else DENSITY)
    calls = []
    for batch, (frames, h, w), step in ((2, VIDEOS[0], 900.0), (2, VIDEOS[0], 100.0), (3, VIDEOS[1], 500.0)):
        call = {"x": noise(batch, CHANNELS, frames, 2 * h, 2 * w), "text": noise(batch, 7, CONTEXT)}
        call["t"] = torch.full((batch,), step, dtype=torch.float64)
        calls.append(call | ({"offset": torch.rand(batch, frames).double() * 50} if by_frame else {}))
    check(Wan(), policy, wan, *calls)
