"""The inductor target: the sparse model's results, one artifact where one is promised, and no recompilation over a schedule.

What is asserted about artifacts is asserted with dynamo's own counters. Where the code that inductor makes does not matter,
dynamo's backends for debugging stand in for it: dynamo traces, guards and counts the same, and no C++ compiler runs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.compile_cost import cold
from sparsify import SDTM, Density, LoweringError, Policy, SparseModel, lower, sparsify
from sparsify.targets.compiled import ForAllShapes

from .helpers import POLICY, inputs, plain, slow, sparse_plain
from .test_in_place import given, looking, opened
from .zoo.__main__ import entry_of
from .zoo.check import at_time, difference, policy_for

STEPS = torch.linspace(999, 0, 50).round().int().tolist()  # a sampling schedule
SMALL = Policy(0, SDTM(1, 1, 1, 0), 0, Density.paper(r_min=0.5, r_max=0.9))


@pytest.fixture(autouse=True)
def _counting_from_zero() -> None:
    counters.clear()


@contextmanager
def backend(name: str) -> Iterator[None]:
    compile_ = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda fn, mode="default", **options: compile_(fn, backend=name, **options))
        yield


@pytest.fixture
def quick() -> Iterator[None]:
    with backend("eager"):
        yield


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@torch.no_grad()
def run_schedule(fast: Any, sparse: SparseModel, batches: tuple[int, ...] = (2,)) -> set[tuple[int, ...]]:
    """Every step and batch size; the pooled grids that were used."""
    for index, t in enumerate(STEPS):
        fast(*inputs(batches[index % len(batches)], t=t))
    return {sparse.program.density.grid_at(t, (8, 8)) for t in STEPS}


# --- the compiler itself ------------------------------------------------------------------------------------------------


def test_dynamic_is_one_artifact_of_each_kind_for_all_grids_and_batches() -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor")
    with torch.no_grad():
        x = inputs(4, t=10)
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5
        first = graphs()
        assert first == 2, "split blocks (generate and recover are one kind) and plain ones"
        for batch, t in ((2, 999), (3, 600), (6, 300)):
            x = inputs(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5
        assert len(run_schedule(fast, sparse, (2, 3, 4, 6))) > 2
    assert graphs() == first


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["dynamic", "per_grid"])
def test_gradients_and_modes_of_compiled_code(shapes: str) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    _same_gradients(lower(sparse, "inductor", shapes=shapes, mode="reduce-overhead"), sparse)


@pytest.mark.slow
def test_bfloat16_is_as_close_as_the_dense_models_own() -> None:
    model, x = plain(depth=3), inputs()
    half = copy.deepcopy(model).bfloat16()
    rounded = (x[0].bfloat16(), *x[1:])
    sparse, half_sparse = sparsify(model, SMALL, x), sparsify(half, SMALL, rounded)
    with torch.no_grad():
        own = (half(*rounded).float() - model(*x)).abs().max()
        error = (lower(half_sparse, "inductor")(*rounded).float() - sparse(*x)).abs().max()
    assert 0 < error <= 2 * own


# --- what is compiled, and when -------------------------------------------------------------------------------------------


def test_the_number_of_artifacts_does_not_grow_with_depth(quick: None) -> None:
    counts = []
    for middle in (1, 4):
        counters.clear()
        policy = Policy(1, SDTM(1, middle, 1, 1) * 2, 1, POLICY.density)
        _, sparse = sparse_plain(policy.depth, policy)
        with torch.no_grad():
            lower(sparse, "inductor", shapes="per_grid")(*inputs())
        counts.append(graphs())
    assert counts == [5, 5], "pooled blocks; split and plain ones at two numbers of tokens"


@pytest.mark.slow
def test_per_grid_takes_more_grids_than_dynamo_allows_shapes_of_one_function(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor", shapes="per_grid")
    pooled = [(2 + i // 6, 2 + i % 6) for i in range(12)]
    with torch.no_grad():
        for grid in pooled:
            sparse.fix(grid)
            fast(*inputs())
        warm = graphs()
        assert warm == 3 * len({h * w for h, w in pooled}) > 8, "generate, sparse and recover, for each number of tokens"
        for grid in pooled:
            x = inputs()
            assert (sparse.fix(grid)(*x) - fast(*x)).abs().max() <= 1e-5
    assert graphs() == warm


def test_per_grid_does_not_compile_after_its_first_time_through_the_schedule(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor", shapes="per_grid")
    grids = run_schedule(fast, sparse)
    warm = graphs()
    assert warm >= 3 * len(grids) > 8
    run_schedule(fast, sparse)
    assert graphs() == warm


@pytest.fixture(scope="module")
def dynamic() -> Iterator[tuple[SparseModel, Any]]:
    """Compiled by a call whose batch is as large as the tokens are wide."""
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor")
    with backend("eager"), torch.no_grad():
        fast(*inputs(32, t=999))
    yield opened(sparse), fast


def test_sizes_that_happen_to_be_equal_at_the_first_call_may_differ_later(dynamic: tuple[SparseModel, Any]) -> None:
    sparse, fast = dynamic
    with torch.no_grad():
        for grid, batch in (((3, 7), 2), ((2, 2), 3), ((5, 2), 64)):
            sparse.fix(grid)
            x = inputs(batch)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5
    sparse.fix(None)
    assert graphs() == 0


def test_the_callers_tensors_stay_as_they_were_and_views_are_taken(quick: None) -> None:
    twice = ForAllShapes(lambda owner, x, size: x * size, {"mode": "default"}).bound(torch.nn.Module(), "twice")
    square = torch.randn(4, 4)
    for x in (square, torch.randn(5, 3, 7)[:, 2], torch.randn(6, 3).T, torch.randn(1, 8)[0].reshape(2, 4)):
        assert torch.equal(twice(x, 2), x * 2) and not vars(x)
    assert torch.equal(twice(square, 5), square * 5)
    assert graphs() == 1


# --- it follows the model -------------------------------------------------------------------------------------------------


def _same_gradients(fast: Any, sparse: SparseModel) -> None:
    opened(sparse)
    x, parameters = inputs(), [*sparse.parameters()]
    gradients = [torch.autograd.grad(run(*x).square().sum(), parameters, allow_unused=True) for run in (fast, sparse)]
    for name, got, want in zip(dict(sparse.named_parameters()), *gradients, strict=True):
        assert (got is None) == (want is None), name
        assert got is None or torch.allclose(got, want, rtol=1e-4, atol=1e-5), name


def test_gradients_are_those_of_the_eager_model() -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    with backend("aot_eager"):
        _same_gradients(lower(sparse, "inductor", shapes="per_grid"), sparse)


def test_it_sees_weights_that_change_and_leaves_the_sparse_model_alone(dynamic: tuple[SparseModel, Any]) -> None:
    sparse, fast = dynamic
    x = inputs()
    with torch.no_grad():
        outputs = [fast(*x)]
        attributes = {name: dict(vars(module)) for name, module in sparse.named_modules()}
        next(sparse.parameters()).mul_(1.5)
        outputs.append(fast(*x))
        assert (outputs[-1] - sparse(*x)).abs().max() <= 1e-5
        assert {name: dict(vars(module)) for name, module in sparse.named_modules()} == attributes
        sparse.load_state_dict({name: value * 1.1 for name, value in sparse.state_dict().items()}, assign=True)
        outputs.append(fast(*x))
        assert (outputs[-1] - sparse(*x)).abs().max() <= 1e-5
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.pairwise(outputs))
    assert graphs() == 0


def test_the_host_says_the_timestep_and_the_grid(dynamic: tuple[SparseModel, Any]) -> None:
    sparse, fast = dynamic
    x = inputs(t=999)
    with torch.no_grad(), sparse.at(10):
        finest = fast(*x)
        assert (finest - sparse(*x)).abs().max() <= 1e-5
    with torch.no_grad():
        assert (fast(*x) - finest).abs().max() > 1e-3
        sparse.fix(POLICY.density.grid_at(10, (8, 8)))
        assert (fast(*x) - finest).abs().max() <= 1e-5
    sparse.fix(None)


@pytest.mark.parametrize("shapes", ["dynamic", slow("per_grid")])
def test_a_model_that_runs_in_place_has_its_blocks_compiled(quick: None, shapes: str) -> None:
    sparse = opened(sparsify(looking(), POLICY, given()))
    fast = lower(sparse, "inductor", shapes=shapes)
    with torch.no_grad():
        for batch, t in ((2, 900), (2, 300), (3, 900))[: 3 if shapes == "dynamic" else 1]:
            x = given(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-12
            if shapes == "dynamic":
                assert graphs() == 3, "pooled, split and plain blocks"
        assert graphs() >= 3
    assert all("forward" not in module.__dict__ for module in sparse._source[0].modules())


# Number of blocks; the first runs every time.
ZOO = {"FluxTransformer2DModel": 8, "SD3Transformer2DModel": 8, "HunyuanDiT2DModel": 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_models_with_several_streams_or_chains(quick: None, name: str) -> None:
    entry = entry_of(name)
    sparse = sparsify(entry.make(), policy_for(ZOO[name]), entry.inputs(2, 0), **entry.options(0))
    fast = lower(sparse, "inductor")
    counts = set()
    with torch.no_grad():
        for share, batch in ((0.05, 2), (0.95, 3)):
            x = at_time(entry, entry.inputs(batch, 0), str(sparse.report().timestep), share)
            assert difference(fast(**x), sparse(**x)) <= 1e-5
            counts.add(graphs())
    assert len(counts) == 1 and counts.pop() <= 8


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shapes": "static"}, r"shapes is 'static'; target inductor takes 'dynamic', 'per_grid'"),
        ({"shapes": True}, r"shapes is True; target inductor takes 'dynamic', 'per_grid'"),
        ({"mode": "fast"}, r"mode is 'fast'; target inductor takes 'default', .*'reduce-overhead'"),
        ({"mode": ["default"]}, r"mode is \['default'\]; target inductor takes"),
        ({"dynamic": True}, r"target inductor has no option \['dynamic'\]; its options are \['shapes', 'mode', 'scope'\]"),
    ],
)
def test_options_that_are_not_allowed(dynamic: tuple[SparseModel, Any], options: dict[str, Any], message: str) -> None:
    sparse, _ = dynamic
    with pytest.raises(LoweringError, match=message):
        lower(sparse, "inductor", **options)


# --- its cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shapes, flat, share", [("dynamic", "dynamic", 1 / 3), ("per_grid", "static", 1 / 2)])
def test_28_blocks_compile_in_a_share_of_the_time_that_they_take_flat(shapes: str, flat: str, share: float) -> None:
    """Processor time, with empty caches; C++ compilers included. Static code is made for each number of tokens of a block."""
    ours, theirs = (cold(way, depth=28, width=64) for way in (f"regions, {shapes}", f"flat, {flat}"))
    assert ours["graphs"] <= 5 and theirs["graphs"] == 1
    assert ours["seconds"] <= share * theirs["seconds"]
