"""``scope="model"`` of the inductor target: the whole graph as one function, with the host's decisions in front of it.

As in ``test_inductor``, artifacts are counted by dynamo, and its backends for debugging stand in for inductor where its code does
not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx, nn

from sparsify import LoweringError, Policy, SparseModel, SparsifyError, lower, sparsify
from sparsify.program import DENSITY, GRID, PROMPT
from sparsify.prompt import PromptModule

from .helpers import POLICY, inputs, plain, slow, sparse_plain
from .test_in_place import given, looking, opened
from .test_inductor import SMALL, _counting_from_zero, _same_gradients, backend, graphs, quick, run_schedule  # noqa: F401
from .zoo.__main__ import entries, entry_of
from .zoo.check import at_time, difference, policy_for


def outer_graph(fast: Any, monkeypatch: pytest.MonkeyPatch, x: dict[str, Any]) -> fx.Graph:
    """The graph that the host runs, seen at the first call."""
    from sparsify.targets import inductor

    seen: list[fx.Graph] = []
    whole = inductor.whole_on_host
    monkeypatch.setattr(inductor, "whole_on_host", lambda *given, **options: seen.append(whole(*given, **options)) or seen[-1])
    with torch.no_grad():
        fast(**x)
    return seen[0]


@pytest.mark.parametrize("shapes", ["dynamic", slow("per_grid")])
def test_inductors_code_computes_what_the_eager_model_does(shapes: str) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    fast = lower(sparse, "inductor", shapes=shapes, scope="model", check=True)
    with torch.no_grad():
        for batch, t in ((4, 10), (2, 999), (3, 600))[: 3 if shapes == "dynamic" else 1]:
            x = inputs(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def dynamic() -> Iterator[tuple[SparseModel, Any]]:
    _, sparse = sparse_plain()
    fast = lower(sparse, "inductor", scope="model")
    with backend("eager"), torch.no_grad():
        fast(*inputs(2, t=999))
    yield opened(sparse), fast


def test_dynamic_is_one_artifact_for_all_grids_and_batches(dynamic: tuple[SparseModel, Any]) -> None:
    sparse, fast = dynamic
    assert len(run_schedule(fast, sparse, (2, 3, 5))) > 2
    with torch.no_grad():
        for batch, t in ((3, 400), (8, 20)):
            x = inputs(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-6
    assert graphs() == 0


def test_per_grid_is_one_artifact_for_each_grid(quick: None) -> None:  # noqa: F811
    _, sparse = sparse_plain()
    fast = lower(sparse, "inductor", shapes="per_grid", scope="model")
    grids = run_schedule(fast, sparse)
    assert graphs() == len(grids) > 2
    run_schedule(fast, sparse)
    with torch.no_grad():
        x = inputs(t=700)
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-6
    assert graphs() == len(grids)


def test_it_sees_weights_that_change(dynamic: tuple[SparseModel, Any]) -> None:
    sparse, fast = dynamic
    x = inputs()
    with torch.no_grad():
        before = fast(*x)
        for parameter in sparse.parameters():
            parameter.mul_(1.1)
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5
        sparse.load_state_dict({name: value * 1.1 for name, value in sparse.state_dict().items()}, assign=True)
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-5
        assert (fast(*x) - before).abs().max() > 1e-3
    assert graphs() == 0


def test_gradients_are_those_of_the_eager_model() -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    with backend("aot_eager"):
        _same_gradients(lower(sparse, "inductor", shapes="per_grid", scope="model"), sparse)


@pytest.mark.parametrize(
    "name, blocks, asked",
    [("PixArtTransformer2DModel", 8, PROMPT), ("FluxTransformer2DModel", 8, GRID)],
    ids=["prompt", "grid"],
)
def test_the_host_keeps_its_decisions_and_nothing_else(
    quick: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    blocks: int,
    asked: str,
) -> None:
    entry = entry_of(name)
    sparse = sparsify(entry.make(), policy_for(blocks), entry.inputs(2, 0), **entry.options(0))
    fast = lower(sparse, "inductor", scope="model")
    graph = outer_graph(fast, monkeypatch, entry.inputs(2, 0))
    modules = [str(node.target) for node in graph.find_nodes(op="call_module")]
    assert any(target.startswith(asked) for target in modules)
    assert all(target == DENSITY or target.startswith((GRID, PROMPT)) for target in modules)
    products = [node for node in graph.nodes if node.target in (torch.ops.aten.linear.default, torch.ops.aten.mm.default)]
    assert not products and sum(node.name.startswith("model") for node in graph.nodes) == 1
    with torch.no_grad():
        for share, batch in ((0.05, 2), (0.95, 3)):
            x = at_time(entry, entry.inputs(batch, 0), str(sparse.report().timestep), share)
            assert difference(fast(**x), sparse(**x)) <= 1e-5
    assert graphs() == 1


def test_what_depends_on_the_prompt_is_still_computed_once(quick: None) -> None:  # noqa: F811
    entry = entry_of("PixArtTransformer2DModel")
    sparse = sparsify(entry.make(), policy_for(8), entry.inputs(2, 0))
    fast = lower(sparse, "inductor", scope="model")
    prompts = [module for module in sparse.modules() if isinstance(module, PromptModule)]
    calls: list[object] = []
    for module in prompts:
        (run,) = module._run
        module._run = (lambda *given, run=run: calls.append(given) or run(*given),)  # type: ignore[assignment]
    x = entry.inputs(2, 0)
    with torch.no_grad():
        for share in (0.1, 0.5, 0.9):
            fast(**at_time(entry, x, str(sparse.report().timestep), share))
    assert prompts and len(calls) == len(prompts)


def test_captures_with_the_same_code_share_what_is_compiled(quick: None) -> None:  # noqa: F811
    entry = entry_of("PixArtTransformer2DModel")
    x = entry.inputs(2, 0)
    sparse = sparsify(entry.make(), policy_for(8), x)
    fast = lower(sparse, "inductor", scope="model")
    with torch.no_grad():
        for return_dict in (True, False):
            call = {**x, "return_dict": return_dict}
            assert difference(fast(**call), sparse(**call)) <= 1e-5
        assert len(sparse._stages) == 2 and graphs() == 1
        for share, batch in ((0.05, 3), (0.95, 4)):
            call = {**at_time(entry, entry.inputs(batch, 0), str(sparse.report().timestep), share), "return_dict": False}
            assert difference(fast(**call), sparse(**call)) <= 1e-5
    assert graphs() == 1


def test_modes_dtypes_and_copies(quick: None) -> None:  # noqa: F811
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    sparse = copy.deepcopy(sparse)  # what others use stays as it is
    fast = lower(sparse, "inductor", scope="model")
    x, batch_of_one = inputs(), inputs(1)
    with torch.no_grad():
        for call in (batch_of_one, x):
            assert (fast(*call) - sparse(*call)).abs().max() <= 1e-6
        twin = lower(copy.deepcopy(sparse), "inductor", scope="model")
        next(sparse.parameters()).mul_(1.5)
        assert (fast(*x) - twin(*x)).abs().max() > 1e-4
        sparse.train()
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-6
        sparse.eval().double()
        x = (x[0].double(), *x[1:])
        assert (fast(*x) - sparse(*x)).abs().max() <= 1e-14 and fast(*x).dtype == torch.float64


@pytest.mark.parametrize("shapes", ["dynamic", "per_grid"])
def test_autocast_is_that_of_the_call(quick: None, shapes: str) -> None:  # noqa: F811
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    x = inputs()
    fast = lower(sparse, "inductor", shapes=shapes, scope="model")
    with torch.no_grad():
        exact = sparse(*x)
        with torch.autocast("cpu", torch.bfloat16):
            cast, ours = sparse(*x), fast(*x)
    own = (cast - exact).abs().max()
    assert own > 0 and (ours - exact).abs().max() <= 2 * own


class Fenced(nn.Module):
    """A model that embeds under its own autocast, whose size is open, and reads a mean without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain(depth=3)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = torch.einsum("bchw,bdhw->bcd", x, x) / x.shape[2] ** 2
        with torch.no_grad():
            mean = mixed.mean(dim=(1, 2))
        return self.inner(x + mean[:, None, None, None].float(), t, y)


@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_regions_under_autocast_and_without_gradients(quick: None, scope: str) -> None:  # noqa: F811
    sparse = sparsify(Fenced(), SMALL, inputs())
    assert not sparse.program.in_place and any("wrap_with" in str(node.target) for node in sparse.program.graph.nodes)
    fast = lower(sparse, "inductor", scope=scope)
    with torch.no_grad():
        for batch, t in ((2, 900), (3, 100)):
            x = inputs(batch, t=t)
            assert (fast(*x) - sparse(*x)).abs().max() <= 1e-6


def test_the_dense_policy_is_the_model_bit_for_bit(quick: None) -> None:  # noqa: F811
    model, x = plain(depth=3), inputs()
    with torch.no_grad():
        assert torch.equal(lower(sparsify(model, Policy.dense(), x), "inductor", scope="model")(*x), model(*x))


def test_what_only_the_host_reads_is_no_input_of_what_is_compiled(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:  # noqa: F811
    entry = entry_of("PixArtTransformer2DModel")
    sparse = sparsify(entry.make(), policy_for(8), entry.inputs(2, 0))
    graph = outer_graph(lower(sparse, "inductor", scope="model"), monkeypatch, entry.inputs(2, 0))
    (call,) = next(iter(graph.find_nodes(op="output"))).all_input_nodes
    names = {node.name for node in call.all_input_nodes}
    assert "hidden_states" in names and "encoder_hidden_states" not in names, "what it is read for is computed already"


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_every_model_of_the_zoo_that_is_one_graph(quick: None, name: str) -> None:  # noqa: F811
    entry = entry_of(name)
    try:
        sparse = sparsify(entry.make(), policy_for(8), entry.inputs(2, 0), **entry.options(0))
    except SparsifyError as error:
        pytest.skip(f"refused: {str(error).splitlines()[0]}")
    if sparse.program.in_place:
        pytest.skip("it runs in place")
    fast = lower(sparse, "inductor", scope="model")
    with torch.no_grad():
        assert difference(fast(**entry.inputs(2, 0)), sparse(**entry.inputs(2, 0))) <= 1e-5


def test_a_model_that_runs_in_place_is_refused_when_it_is_lowered() -> None:
    with pytest.raises(LoweringError, match=r"could not be captured as one graph .* 'inductor' with scope='blocks'"):
        lower(sparsify(looking(), POLICY, given()), "inductor", scope="model")
    later = lower(sparsify(looking(), POLICY), "inductor", scope="model")  # it is not captured yet
    with pytest.raises(LoweringError, match=r"with scope='blocks'"):
        later(*given())


@pytest.mark.parametrize("scope", ["whole", "block", None, True])
def test_scopes_that_do_not_exist(scope: object) -> None:
    _, sparse = sparse_plain(depth=3, policy=SMALL)
    with pytest.raises(LoweringError, match=rf"scope is {scope!r}; target inductor takes 'blocks', 'model'"):
        lower(sparse, "inductor", scope=scope)
