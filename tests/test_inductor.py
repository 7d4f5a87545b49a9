"""The inductor target: the sparse model's results, one artifact where one is promised, and no recompilation over a schedule.

What is asserted about artifacts is asserted with dynamo's own counters. Where the code that inductor makes does not matter,
``aot_eager`` stands in for it: dynamo traces, guards and counts the same, and no C++ compiler runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from sparsify import SDTM, Density, LoweringError, Policy, SparseModel, lower, sparsify

from .helpers import POLICY, inputs, plain, sparse_plain
from .test_in_place import given, looking, opened
from .zoo.__main__ import entries
from .zoo.check import at_time, difference, policy_for

STEPS = torch.linspace(999, 0, 50).round().int().tolist()  # a sampling schedule
SMALL = Policy(0, SDTM(1, 1, 1, 0), 0, Density.paper(r_min=0.5, r_max=0.9))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, mode, **options: compile_(fn, backend="aot_eager", **options))


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
        # embedding, pooling, merging, end; split blocks (generate and recover are one kind) and plain ones
        assert first == 6
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
        torch._dynamo.reset()
        counters.clear()
        policy = Policy(1, SDTM(1, middle, 1, 1) * 2, 1, POLICY.density)
        _, sparse = sparse_plain(policy.depth, policy)
        with torch.no_grad():
            lower(sparse, "inductor")(*inputs())
        counts.append(graphs())
    # embedding, pooling, merging, end; pooled, split and plain blocks
    assert counts == [7, 7]


def test_per_grid_takes_more_grids_than_dynamo_allows_shapes_of_one_function(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor", shapes="per_grid")
    pooled = [(2 + i // 6, 2 + i % 6) for i in range(12)]
    with torch.no_grad():
        for grid in pooled:
            sparse.fix(grid)
            fast(*inputs())
        warm = graphs()
        # Generate, sparse, recover, pooling and merging see the pooled grid; the embedding and the end don't.
        counts = {h * w for h, w in pooled}
        assert warm == 2 + 2 * len(pooled) + 3 * len(counts)
        for grid in pooled:
            x = inputs()
            assert (sparse.fix(grid)(*x) - fast(*x)).abs().max() <= 1e-5
    assert graphs() == warm


def test_per_grid_does_not_compile_after_its_first_time_through_the_schedule(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor", shapes="per_grid")
    grids = run_schedule(fast, sparse)
    warm = graphs()
    assert warm >= 4 * len(grids) > 8
    run_schedule(fast, sparse)
    assert graphs() == warm


def test_sizes_that_happen_to_be_equal_at_the_first_call_may_differ_later(quick: None) -> None:
    """A batch as large as the width of the tokens, and as the number of latent channels."""
    for batch in (32, 3):
        torch._dynamo.reset()
        counters.clear()
        _, sparse = sparse_plain(depth=3, policy=SMALL)
        fast = lower(sparse, "inductor")
        with torch.no_grad():
            fast(*inputs(batch, t=999))
            first = graphs()
            sparse.fix((3, 7))
            fast(*inputs(2))
        assert graphs() == first == 6


def test_the_callers_tensors_stay_as_they_were_and_views_are_taken(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor")
    x, t, y = inputs()
    with torch.no_grad():
        fast(x, t, y)
        first = graphs()
        assert not vars(x) and not vars(t) and not vars(y)
        for view in (torch.stack((x, x))[1], x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
            assert (fast(view, t, y) - sparse(x, t, y)).abs().max() <= 1e-5
    assert graphs() == first


# --- it follows the model -------------------------------------------------------------------------------------------------


def _same_gradients(fast: Any, sparse: SparseModel) -> None:
    opened(sparse)
    x, parameters = inputs(), [*sparse.parameters()]
    gradients = [torch.autograd.grad(run(*x).square().sum(), parameters, allow_unused=True) for run in (fast, sparse)]
    for name, got, want in zip(dict(sparse.named_parameters()), *gradients, strict=True):
        assert (got is None) == (want is None), name
        assert got is None or torch.allclose(got, want, rtol=1e-4, atol=1e-5), name


def test_gradients_are_those_of_the_eager_model(quick: None) -> None:
    _, sparse = sparse_plain()
    _same_gradients(lower(sparse, "inductor"), sparse)


def test_it_sees_weights_that_change_and_leaves_the_sparse_model_alone(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    before = {name: dict(vars(module)) for name, module in sparse.named_modules()}
    fast = lower(sparse, "inductor")
    x = inputs()
    with torch.no_grad():
        outputs = [fast(*x)]
        first = graphs()
        assert {name: dict(vars(module)) for name, module in sparse.named_modules()} == before
        opened(sparse)
        outputs.append(fast(*x))
        assert torch.allclose(outputs[-1], sparse(*x), atol=1e-5)
        assert graphs() == first
        sparse.load_state_dict({name: value * 1.1 for name, value in sparse.state_dict().items()}, assign=True)
        outputs.append(fast(*x))
        assert torch.allclose(outputs[-1], sparse(*x), atol=1e-5)
        sparse.double()
        outputs.append(fast(x[0].double(), *x[1:]).float())
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(outputs[:-2], outputs[1:-1], strict=True))
    assert torch.allclose(outputs[-1], outputs[-2], atol=1e-4)


def test_the_host_says_the_timestep_and_the_grid(quick: None) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    opened(sparse)
    fast = lower(sparse, "inductor")
    x = inputs(t=999)
    with torch.no_grad(), sparse.at(10):
        assert torch.allclose(fast(*x), sparse(*x), atol=1e-5)
        finest = fast(*x)
    with torch.no_grad():
        assert (fast(*x) - finest).abs().max() > 1e-5
        sparse.fix(sparse.program.density.grid_at(10, (8, 8)))
        assert torch.allclose(fast(*x), finest, atol=1e-5)


@pytest.mark.parametrize("shapes", ["dynamic", "per_grid"])
def test_a_model_that_runs_in_place_has_its_blocks_compiled(quick: None, shapes: str) -> None:
    sparse = opened(sparsify(looking(), POLICY, given()))
    fast = lower(sparse, "inductor", shapes=shapes)
    with torch.no_grad():
        for batch, t in ((2, 900), (2, 300), (3, 900)):
            x = given(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-12
            if shapes == "dynamic":
                assert graphs() == 3, "pooled, split and plain blocks"
        assert graphs() >= 3
    assert all("forward" not in module.__dict__ for module in sparse._source[0].modules())


ZOO = {"FluxTransformer2DModel": (), "SD3Transformer2DModel": pytest.mark.slow, "LatteTransformer3DModel": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in ZOO.items()])
def test_models_with_several_streams_or_chains(quick: None, name: str) -> None:
    entry = next(entry for entry in entries() if entry.name == name)
    model, example = entry.make(), entry.inputs(2, 0)
    depth = len(sparsify(model, Policy.dense(), example, **entry.options(0)).report().blocks)
    sparse = sparsify(model, policy_for(depth), example, **entry.options(0))
    fast = lower(sparse, "inductor")
    counts = set()
    with torch.no_grad():
        for share, batch in ((0.05, 2), (0.95, 3), (0.5, 2)):
            x = at_time(entry, entry.inputs(batch, 0), str(sparse.report().timestep), share)
            assert difference(fast(**x), sparse(**x)) <= 1e-5
            counts.add(graphs())
    assert len(counts) == 1 and counts.pop() < depth + 8


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shapes": "static"}, r"shapes is 'static'; target inductor takes 'dynamic', 'per_grid'"),
        ({"shapes": True}, r"shapes is True; target inductor takes 'dynamic', 'per_grid'"),
        ({"mode": "fast"}, r"mode is 'fast'; target inductor takes 'default', .*'reduce-overhead'"),
        ({"mode": ["default"]}, r"mode is \['default'\]; target inductor takes"),
        ({"dynamic": True}, r"target inductor has no option \['dynamic'\]; its options are \['shapes', 'mode'\]"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    with pytest.raises(LoweringError, match=message):
        lower(sparse, "inductor", **options)
