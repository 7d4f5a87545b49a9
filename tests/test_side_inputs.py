"""What goes along with tokens, and text beside them, against an eager oracle: tables, masks, conditions, skips, streams."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import SDTM, Density, Policy, SparseModel, sparsify

from .helpers import slow
from .plain_dit import randomised
from .side_input_models import CHANNELS, CONTEXT, SequenceDiT, Wan, cells, turns
from .side_input_oracle import RATES, TIME_RATE, flux, sd3, sequence, wan
from .side_input_streams import SD3, Flux

DENSITY = Density.paper(*RATES)
TOLERANCE = 1e-9
GRIDS = ((6, 4), (5, 6))
THREE_GRIDS = (GRIDS[0], GRIDS[0], GRIDS[1])  # of the three calls below
VIDEOS = ((3, 5, 4), (4, 4, 6))


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


def check(
    model: nn.Module, policy: Policy, expected: Callable[..., torch.Tensor], *calls: dict[str, Any], **options: Any
) -> None:
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
    dense = SimpleNamespace(poolingformer=0, sdtm=(), dense=policy.depth), ()
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


def test_rotary_tables_beside_text() -> None:
    """Text in the sequence of the image goes on from block to block: none sees it as it was two blocks before."""
    policy = Policy(0, (SDTM(2, 0, 1, 0), SDTM(1, 1, 2, 0)), 1, DENSITY)
    check(SequenceDiT(depth=8), policy, sequence, *three_calls(5))


def test_rotary_tables_that_are_inputs_of_the_model() -> None:
    calls = three_calls()
    for call, grid in zip(calls, THREE_GRIDS, strict=True):
        call["rope"] = turns(cells(*grid), SequenceDiT.DIMS)
    check(SequenceDiT(), POLICY, sequence, *calls)


def test_boolean_mask_over_pairs_of_tokens() -> None:
    check(SequenceDiT(reach=1), POLICY, sequence, *three_calls())


def test_bias_over_pairs_of_tokens() -> None:
    """It closes nothing, and so is no mask but a feature of pairs, which is averaged."""
    calls = three_calls()
    for call, grid in zip(calls, THREE_GRIDS, strict=True):
        call["mask"] = noise(1, 1, math.prod(grid), math.prod(grid))
    check(SequenceDiT(), POLICY, sequence, *calls)


@pytest.mark.parametrize("kind", ["additive", "boolean"])
def test_mask_over_keys(kind: str) -> None:
    """The additive one of text and image; beside the boolean one, every token has a condition of its own."""
    calls = three_calls(5 if kind == "additive" else 0)
    for call, grid in zip(calls, THREE_GRIDS, strict=True):
        batch, rows = call["x"].shape[0], math.prod(grid) + (call["text"].shape[1] if kind == "additive" else 0)
        allowed = torch.rand(batch, 1, 1, rows) < 0.4
        call["mask"] = (~allowed).double() * -1e4 if kind == "additive" else allowed
        call |= {} if kind == "additive" else {"offset": noise(batch, *grid) * 50}
    check(SequenceDiT(), POLICY, sequence, *calls)


def test_every_token_has_a_timestep_that_blocks_embed() -> None:
    calls = three_calls()
    for call, grid in zip(calls, THREE_GRIDS, strict=True):
        call["offset"] = noise(call["x"].shape[0], *grid) * 50
    check(SequenceDiT(embeds_time=True), POLICY, sequence, *calls)


SKIPS = {
    "into and inside a module": Policy(2, SDTM(1, 4, 1, 0), 1, DENSITY),
    "from one module to another": Policy(1, (SDTM(1, 2, 1, 0), SDTM(1, 1, 1, 0)), 1, DENSITY),
}


@pytest.mark.parametrize(
    "policy", [policy if i == 0 else slow(policy) for i, policy in enumerate(SKIPS.values())], ids=SKIPS.keys()
)
def test_long_skips(policy: Policy) -> None:
    check(SequenceDiT(depth=9, skips=True), policy, sequence, *three_calls(4))


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


FLUX = {  # which kind of block stands on both sides of the seam between double and single blocks
    "generate": Policy(1, SDTM(3, 0, 1, 0), 1, DENSITY),
    "recover": Policy(0, SDTM(1, 1, 2, 0), 2, DENSITY),
    "sparse": Policy(1, SDTM(1, 2, 1, 0), 1, DENSITY),
}


@pytest.mark.parametrize("seam", ["generate", "recover"])
def test_two_streams_that_become_one(seam: str) -> None:
    check(Flux(), FLUX[seam], flux, flux_call(), flux_call(step=100), flux_call(3, GRIDS[1], 500, 9))


def test_ids_whose_columns_are_not_counted() -> None:
    check(Flux(unbind=False), FLUX["sparse"], flux, flux_call(), flux_call(3, GRIDS[1], 500, 9))


def test_packed_tokens_on_a_grid_that_is_given() -> None:
    check(Flux(), FLUX["sparse"], flux, flux_call(), flux_call(3, (5, 4), 500, 9), grid=(-1, 4))


@pytest.mark.parametrize(
    ("time", "by_token"), [(False, False), (False, True), (True, True)], ids=["frames", "frames, own times", "time, own times"]
)
def test_video(time: bool, by_token: bool) -> None:
    policy = Policy(1, SDTM(1, 1, 1, 0, time=time), 1, Density.constant(rate=TIME_RATE) if time else DENSITY)
    calls = []
    for batch, grid, step in ((2, VIDEOS[0], 900.0), (2, VIDEOS[0], 100.0), (3, VIDEOS[1], 500.0)):
        frames, h, w = grid
        call = {"x": noise(batch, CHANNELS, frames, 2 * h, 2 * w), "text": noise(batch, 7, CONTEXT)}
        call["t"] = torch.full((batch,), step, dtype=torch.float64)
        calls.append(call | ({"offset": noise(batch, *grid) * 50} if by_token else {}))
    check(Wan(), policy, wan, *calls)
