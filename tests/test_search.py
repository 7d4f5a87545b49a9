"""Policies chosen by measuring: every measurement against plain code, the choice against brute force and Policy.fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import Density, InputError, Policy, PolicyError, RewriteError, sparsify
from sparsify.search import Search, search

from . import oracle
from .helpers import plain, slow
from .plain_dit import Attention, PlainDiT
from .search_models import Batch, batches, lopsided

BUDGET = 0.6
GAINS = {2: 1.5, 5: 1.5}  # all other blocks hardly matter
QUICK: dict[str, Any] = {"calibrate": False, "spans": (0,), "curve": ()}


@pytest.fixture(scope="module")
def model() -> PlainDiT:
    return lopsided(GAINS, uniform=(1, 6))


@pytest.fixture(scope="module")
def found(model: PlainDiT) -> Search:
    return search(model, batches(), BUDGET, calibrate=False)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def error_of(run: nn.Module, model: nn.Module, calls: list[Batch]) -> float:
    """The mean over calls at evenly spread timesteps."""
    with torch.no_grad():
        return sum(relative(run(**call), model(**call)) for call in calls) / len(calls)


# --- what is measured --------------------------------------------------------------------------------------------------


def test_uniformity_is_that_of_attention_by_hand(model: PlainDiT, found: Search) -> None:
    sums = [0.0] * len(model.blocks)
    with torch.no_grad():
        for call in batches():
            c, tokens = model.conditioning(call["t"], call["y"]), model.embed(call["x"])
            for index, block in enumerate(model.blocks):
                shift, scale = block.modulation(c)[:, None].chunk(6, dim=-1)[:2]
                q, k, v = block.attn.projections(block.norm1(tokens) * (1 + scale) + shift)
                weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
                attended = weights @ v
                sums[index] += relative(v.mean(dim=-2, keepdim=True).expand_as(v), attended) / len(batches())
                tokens = block(tokens, c)
    measured = [block.uniformity for block in found.blocks]
    assert measured == pytest.approx(sums, rel=1e-3, abs=1e-5)
    assert [index for index, value in enumerate(measured) if value < 1e-5] == [1, 6]  # type: ignore[operator]


def test_pooling_one_block_alone_is_that_of_plain_code(model: PlainDiT, found: Search) -> None:
    wanted = [0.0] * len(model.blocks)
    with torch.no_grad():
        for call in batches():
            c, expected = model.conditioning(call["t"], call["y"]), model(**call)
            run = oracle.plain_dit_run(c)
            for chosen in range(len(model.blocks)):
                tokens = model.embed(call["x"])
                for index, block in enumerate(model.blocks):
                    tokens = run(block, tokens, tokens, index == chosen)
                wanted[chosen] += relative(model.finish(tokens, c), expected) / len(batches())
    assert [block.pooling for block in found.blocks] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_a_module_alone_is_that_of_plain_code(model: PlainDiT, found: Search) -> None:
    density = Density.parse(found.density)
    zero, one = torch.zeros(model.width, model.width), torch.eye(model.width)
    start = (zero, zero[0], one, zero[0])
    spans = [span for span in found.spans if span.first in (0, 2, 5)]
    assert {span.last - span.first for span in spans} == {1, 4}
    for span in spans:
        counts = (1, span.last - span.first - 1, 1, 0)
        wanted = 0.0
        with torch.no_grad():
            for call in batches():
                c, tokens = model.conditioning(call["t"], call["y"]), model.embed(call["x"])
                for block in model.blocks[: span.first]:
                    tokens = block(tokens, c)
                pooled = density.grid_at(int(call["t"][0]), model.grid)
                rest, run = list(model.blocks[span.first :]), oracle.plain_dit_run(c)
                tokens = oracle.sparse_trunk(rest, tokens, run, model.grid, pooled, 0, [counts], [start])
                wanted += relative(model.finish(tokens, c), model(**call)) / len(batches())
        assert span.error == pytest.approx(wanted, rel=1e-3, abs=1e-5)


# --- what is chosen ----------------------------------------------------------------------------------------------------


def test_cost_and_error_are_those_of_the_sparse_model(model: PlainDiT, found: Search) -> None:
    pooled = next(point for point in found.curve if point.policy.poolingformer and not point.policy.sdtm)
    for point in (found.pick, found.fit, found.curve[0], pooled):
        assert point is not None
        sparse = sparsify(model, point.policy, batches()[0])
        report = sparse.report()
        assert point.gflops == pytest.approx(report.gflops, rel=1e-9)
        assert found.gflops_dense == report.gflops_dense
        assert report.gflops <= point.budget * report.gflops_dense * (1 + 1e-9)
        assert not report.skipped
        assert point.error == pytest.approx(error_of(sparse, model, batches()), rel=1e-3, abs=1e-6)
    assert found.pick.fraction > BUDGET * 0.9  # as densely as it may


def test_blocks_that_matter_stay_dense_and_others_do_not(found: Search) -> None:
    roles = [block.role for block in found.blocks]
    assert (roles[2], roles[5]) == ("dense", "dense")
    assert roles.count("dense") == 2


@pytest.mark.parametrize("calibrate", [False, slow(True)])
def test_better_than_fit_at_equal_budget_on_other_data(model: PlainDiT, found: Search, calibrate: bool) -> None:
    if calibrate:
        found = search(model, batches(), BUDGET, candidates=3, spans=(0,), curve=())
    assert found.fit is not None and found.pick.error <= found.fit.error
    other = batches(count=4, seed=7)
    errors = []
    for point in (found.pick, found.fit):
        sparse = sparsify(model, point.policy, other[0])
        if calibrate:
            sparse.calibrate(batches())
        errors.append(error_of(sparse, model, other))
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("gains", [{}, {i: 1.0 for i in range(6)}], ids=["none", "all"])
def test_never_worse_than_fit_where_it_was_measured(gains: dict[int, float]) -> None:
    result = search(lopsided(gains, 6), batches(count=2), 0.7, candidates=2, **QUICK)
    assert result.fit is not None and result.pick.error <= result.fit.error
    assert Policy.fit(6, result.fit.policy.density) == result.fit.policy


def test_the_classmethod_is_the_same_search_and_keeps_the_shape_of_a_density() -> None:
    model, template = lopsided({2: 1.0}, 5), Density.linear(0.2, 0.6, levels=3)
    options: dict[str, Any] = {"density": template, "candidates": 2, **QUICK}
    once = search(model, batches(count=2), 0.6, **options)
    assert Policy.search(model, batches(count=2), budget=0.6, **options) == once.policy  # nothing in it is left to chance
    for point in once.curve:
        if point.policy.sdtm:
            density = point.policy.density
            assert (density.schedule, density.levels) == ("linear", 3)
            finest, coarsest = density.finest, density.coarsest
            assert isinstance(finest, float) and isinstance(coarsest, float)
            assert (1 - finest) / (1 - coarsest) == pytest.approx(2, rel=0.01) or finest == 1e-4


def test_the_whole_budget_buys_the_dense_model() -> None:
    result = search(lopsided({}, 4), batches(count=2), 1.0, candidates=1, **QUICK)
    assert result.policy == Policy.dense() and result.pick.error == 0


# --- the model and the account -----------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = lopsided(GAINS, depth=5).train()
    model.blocks[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, attributes = [m.training for m in model.modules()], {name: dict(vars(m)) for name, m in model.named_modules()}
    parameters, random = list(model.parameters()), torch.get_rng_state()
    search(model, batches(count=2), 0.6, candidates=1, spans=(0,), curve=())  # with calibration
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(vars(m).keys() == attributes[name].keys() for name, m in model.named_modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert torch.equal(torch.get_rng_state(), random)


def test_tables_json_and_picture(found: Search, tmp_path: Path) -> None:
    text = str(found)
    assert "Policy.fit there" in text and "picked" in text and "blocks.7" in text
    data = json.loads(found.to_json())
    assert Policy.from_json(json.dumps(data["pick"]["policy"])) == found.policy
    assert len(data["curve"]) == len(found.curve) and len(data["blocks"]) == 8
    costs, errors = [p.gflops for p in found.front], [p.error for p in found.front]
    assert costs == sorted(costs) and errors == sorted(errors, reverse=True)
    assert {point.source for point in found.curve} == {"search", "fit", "dense"}
    assert {0.3, 0.8, BUDGET} <= {point.budget for point in found.curve}
    assert found.plot(tmp_path / "deep" / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_block_that_refuses_is_left_dense_and_named() -> None:
    class Causal(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.projections(x)
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.proj(out.transpose(1, 2).flatten(2))

    model = plain(7)
    model.blocks[5].attn.__class__ = Causal
    calls: list[tuple[int, int]] = []
    options = QUICK | {"spans": (0, 1)}
    result = search(model, batches(count=2), 0.75, candidates=2, on_progress=lambda *at: calls.append(at), **options)
    block = result.blocks[5]
    assert block.role == "dense" and block.pooling is None and block.module is None and "is causal" in block.why
    assert all(span.error is None and "is causal" in span.why for span in result.spans if span.first <= 5 <= span.last)
    assert not sparsify(model, result.policy, batches()[0]).report().skipped
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]


NAN = [{**batches()[0], "x": torch.full((2, 3, 16, 16), float("nan"))}]
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "budget of zero": (batches(), {"budget": 0.0}, InputError, "budget is 0.0; it must be a share of the dense GFLOPs above 0"),
    "budget above one": (batches(), {"budget": 1.5}, InputError, "budget is 1.5"),
    "budget nan": (batches(), {"budget": float("nan")}, InputError, "budget is nan"),
    "budget text": (batches(), {"budget": "0.5"}, InputError, "budget is '0.5'"),
    "out of reach": (batches(), {"budget": 0.05}, PolicyError, "budget is 0.05; the least that the 5 blocks can get to is 0"),
    "no batches": ([], {}, InputError, "batches is empty"),
    "a tensor": (torch.zeros(2), {}, InputError, "batches is a Tensor; it must be a list"),
    "tensors": ([torch.zeros(2)], {}, InputError, r"batches\[0\] is a Tensor"),
    "a tuple of inputs": (tuple(batches()[0].values()), {}, InputError, r"Write \[inputs\] for a single call"),
    "other keys": ([batches()[0], {"x": 1, "t": 2}], {}, InputError, r"batches\[1\] has the inputs \['t', 'x'\], batches\[0\] has \['t', 'x', 'y'\]"),
    "nan": (NAN, {}, InputError, r"batches\[0\]: the dense model's output holds NaN"),
    "candidates": (batches(), {"candidates": 0}, InputError, "candidates is 0; it must be an integer of at least 1"),
    "spans": (batches(), {"spans": ()}, InputError, "spans is empty"),
    "curve": (batches(), {"curve": (2,)}, InputError, "curve is 2"),
    "density": (batches(), {"density": 0.5}, PolicyError, "density is 0.5"),
    "calibrate": (batches(), {"calibrate": 1}, InputError, "calibrate is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_mistakes_are_named(case: tuple[Any, dict[str, Any], type[Exception], str]) -> None:
    calls, options, error, message = case
    with pytest.raises(error, match=message):
        Policy.search(lopsided({}, depth=5), calls, **options)


def test_models_that_cannot_be_searched() -> None:
    with pytest.raises(PolicyError, match="PlainDiT has 3 blocks; a search needs 4 or more"):
        search(plain(3), batches(count=1))
    zero = plain(4)
    nn.init.zeros_(zero.head.weight), nn.init.zeros_(zero.head.bias)
    with pytest.raises(InputError, match="zero everywhere, as that of an untrained model is"):
        search(zero, batches(count=1))
    with pytest.raises(InputError, match="PlainDiT is on the meta device"):
        search(plain(4).to("meta"), batches(count=1))
    with pytest.raises(RewriteError, match="SparseModel is sparsified already; search with the original model"):
        search(sparsify(plain(4), Policy.auto()), batches(count=1))
    with pytest.raises(InputError, match="model is a str"):
        search("dit", batches())  # type: ignore[arg-type]


def test_one_timestep_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="all batches are at timestep 500"):
        search(lopsided({}, 4), batches(count=1), 0.8, candidates=1, **QUICK)
