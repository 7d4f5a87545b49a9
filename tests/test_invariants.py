"""What must hold of every model, policy and pipeline, tried on random ones.

Each test states one law. How many examples each gets is set by the profile: ``HYPOTHESIS_PROFILE=thorough pytest
tests/test_invariants.py`` tries a hundred and more.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.common import counted
from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.passes import SAVINGS, Pass, Pipeline, PoolAttention
from sparsify.passes.base import BlockRange
from sparsify.passes.pipeline import SAVING_NAMES, pipeline_for
from sparsify.testing import DiTSpec, assert_equivalent, dits, inputs, isomorphic, policies
from sparsify.testing.variant import freshen
from sparsify.text import program_text

from .helpers import few

FEW = few(2)
EXACT = 1e-12


class Case(NamedTuple):
    model: nn.Module
    policy: Policy
    given: dict[str, Any]

    def sparse(self, **options: Any) -> SparseModel:
        return sparsify(self.model, self.policy, example_inputs=self.given, grid=grid_of(self.model), **options)


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    model = draw(dits(**fixed))
    return Case(model, draw(policies(model)), draw(inputs(model)))


def grid_of(model: nn.Module) -> tuple[int, ...] | None:
    """What cannot be read off every graph, such as that of a table of learned positions; text among the tokens says it itself."""
    return None if model.spec.text == "joint" else model.spec.grid  # type: ignore[union-attr,return-value]


def sparse_with_random_restores(case: Case, **options: Any) -> SparseModel:
    """Restore layers start as the identity, which hides what passes do to them."""
    sparse = case.sparse(**options)
    freshen(sparse)
    return sparse


def floating(given: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}


def outputs(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**given)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value where that is over 1."""
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


# --- the identity ---------------------------------------------------------------------------------------------------


@FEW
@given(st.data())
def test_the_dense_policy_is_the_identity(data: st.DataObject) -> None:
    model = data.draw(dits())
    given = data.draw(inputs(model))
    sparse = sparsify(model, Policy.dense(), example_inputs=given, grid=grid_of(model))
    assert torch.equal(outputs(sparse, given), outputs(model, given))
    assert_equivalent(sparse, model, given)


@FEW
@given(st.data())
@pytest.mark.filterwarnings("ignore:.*full")
def test_a_full_grid_is_the_identity(data: st.DataObject) -> None:
    model = data.draw(dits())
    depth = model.spec.depth
    given = data.draw(inputs(model))
    policy = Policy(0, SDTM(1, depth - 2, 1, 0) if depth > 2 else SDTM(1, 0, 1, 0), 0, Density.constant(rate=0.0))
    sparse = sparsify(model, policy, example_inputs=given, grid=grid_of(model))
    assert far(outputs(sparse, given), outputs(model, given)) <= EXACT
    assert {block.role for block in sparse.report().blocks} == {"dense"}


# --- exact passes ---------------------------------------------------------------------------------------------------


@FEW
@given(cases())
def test_exact_savings_are_exact_in_float64_with_their_gradients(case: Case) -> None:
    plain = sparse_with_random_restores(case, savings=False)
    cheaper = sparse_with_random_restores(Case(copy.deepcopy(case.model), case.policy, case.given))
    assert far(outputs(cheaper, case.given), outputs(plain, case.given)) <= EXACT
    assert_equivalent(cheaper, plain, case.given)


@pytest.mark.parametrize("saving", SAVING_NAMES)
@few(1, many=50)
@given(case=cases())
def test_each_saving_alone_is_exact(saving: str, case: Case) -> None:
    plain = sparse_with_random_restores(case, savings=False)
    cheaper = sparse_with_random_restores(case, savings=[saving])
    assert far(outputs(cheaper, case.given), outputs(plain, case.given)) <= EXACT


@FEW
@given(cases(), st.permutations([*range(len(SAVINGS))]))
def test_savings_in_any_order_leave_the_same_function(case: Case, order: list[int]) -> None:
    """They need not leave the same graph: one may leave less for the next to do."""
    depth = case.model.spec.depth  # type: ignore[union-attr]
    own = tuple(each for each in pipeline_for(case.policy, depth) if not isinstance(each, SAVINGS))
    in_order = sparsify(case.model, Pipeline(own), example_inputs=case.given, grid=grid_of(case.model))
    shuffled = Pipeline((*own[:-1], *(SAVINGS[index]() for index in order), own[-1]))
    cheaper = sparsify(case.model, shuffled, example_inputs=case.given, grid=grid_of(case.model))
    assert far(outputs(cheaper, case.given), outputs(in_order, case.given)) <= EXACT


@FEW
@given(dits(), st.data())
def test_blocks_pooled_in_any_order_leave_the_same_graph(model: nn.Module, data: st.DataObject) -> None:
    given = model.spec.example_inputs()  # type: ignore[union-attr,operator]
    order = data.draw(st.permutations([*range(model.spec.depth)]))  # type: ignore[union-attr,arg-type]
    one_by_one = Pipeline.parse(",".join(["fuse-attention", *(f"pool-attention{{blocks={i}}}" for i in order), "cleanup"]))
    at_once = Pipeline.parse(f"fuse-attention,pool-attention{{blocks=0-{len(order) - 1}}},cleanup")
    a, b = (sparsify(model, each, example_inputs=given, grid=grid_of(model)) for each in (one_by_one, at_once))
    assert torch.equal(outputs(a, given), outputs(b, given))
    assert isomorphic(a.program.graph, b.program.graph)
    bodies = [sorted(program_text(each.program).count(op) for op in ("mean.dim", "linear.default")) for each in (a, b)]
    assert bodies[0] == bodies[1] or len(a.program.bodies) > len(b.program.bodies)


@FEW
@given(cases())
def test_running_a_pipeline_again_changes_nothing(case: Case) -> None:
    program = case.sparse().program
    before = program_text(program)
    again: list[Pass] = [saving() for saving in SAVINGS]
    pooled = [index for index, role in enumerate(case.policy.roles(len(program.paths))) if role.name == "poolingformer"]
    again += [PoolAttention(BlockRange(index, index)) for index in pooled]
    counts = [each.run(program) for each in again]
    assert program_text(program) == before
    assert not any(counts), "a pass says that it rewrote something"


# --- round trips ----------------------------------------------------------------------------------------------------


@FEW
@given(cases())
def test_pipelines_and_policies_come_back_from_text(case: Case) -> None:
    assert Policy.from_json(case.policy.to_json()) == case.policy
    pipeline = pipeline_for(case.policy, case.model.spec.depth)  # type: ignore[union-attr]
    assert Pipeline.parse(str(pipeline)) == pipeline
    by_text = sparsify(case.model, Pipeline.parse(str(pipeline)), example_inputs=case.given, grid=grid_of(case.model))
    assert torch.equal(outputs(by_text, case.given), outputs(case.sparse(), case.given))


@FEW
@given(cases())
def test_weights_come_back_from_safetensors(case: Case) -> None:
    sparse = sparse_with_random_restores(case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: x.contiguous() for name, x in sparse.state_dict().items()}, file)
        blank = copy.deepcopy(case.model)
        with torch.no_grad():
            for parameter in blank.parameters():
                parameter.zero_()
        other = Case(blank, case.policy, case.given).sparse()
        assert not torch.equal(outputs(other, case.given), outputs(sparse, case.given))
        other.load_state_dict(load_file(file))
    assert torch.equal(outputs(other, case.given), outputs(sparse, case.given))
    dense = {name: x for name, x in other.state_dict().items() if not name.startswith("sparsify_")}
    assert dense.keys() == case.model.state_dict().keys()


@FEW
@given(cases())
def test_copies_and_moves_keep_the_function(case: Case) -> None:
    sparse = sparse_with_random_restores(case)
    want = outputs(sparse, case.given)
    twin = copy.deepcopy(sparse)
    assert torch.equal(outputs(twin, case.given), want)
    single = {name: x.float() if name in floating(case.given) else x for name, x in case.given.items()}
    got = outputs(twin.float(), single)
    assert got.dtype == torch.float32
    assert far(got.double(), want) <= 1e-4
    assert torch.equal(outputs(sparse, case.given), want), "the first one was not moved"
    twin.to("meta")
    on_meta = {
        name: x.to("meta") if isinstance(x, torch.Tensor) and name in floating(case.given) else x for name, x in single.items()
    }
    assert all(x.is_meta for x in twin.state_dict().values()) and on_meta.keys() == single.keys()
    twin.to_empty(device="cpu").double().load_state_dict(sparse.state_dict())
    assert torch.equal(outputs(twin, case.given), want)


# --- batches --------------------------------------------------------------------------------------------------------


def of_three(case: Case) -> dict[str, Any]:
    """Inputs of three, all at one timestep: the batch has one density."""
    return case.model.spec.example_inputs(batch=3, seed=5, timestep=0.4 * case.model.spec.timesteps)  # type: ignore[union-attr,operator,no-any-return]


@FEW
@given(cases(), st.permutations([0, 1, 2]))
def test_the_output_commutes_with_permuting_the_batch(case: Case, order: list[int]) -> None:
    sparse, three = sparse_with_random_restores(case), of_three(case)
    permuted = {name: x[order] for name, x in three.items()}
    assert far(outputs(sparse, permuted), outputs(sparse, three)[order]) <= EXACT


@FEW
@given(cases(), st.integers(0, 2))
def test_batch_elements_do_not_influence_each_other(case: Case, changed: int) -> None:
    sparse, three = sparse_with_random_restores(case), of_three(case)
    before = outputs(sparse, three)
    name, x = next(iter(floating(three).items()))
    other = x.clone()
    other[changed] += 1
    difference = (outputs(sparse, three | {name: other}) - before).flatten(1).abs().amax(dim=1)
    kept = [index for index in range(3) if index != changed]
    scale = max(1.0, float(before.abs().max()))
    assert difference[kept].max() <= EXACT * scale < difference[changed]
    alone = outputs(sparse, {name: x[changed : changed + 1] for name, x in three.items()})
    assert far(alone, before[changed : changed + 1]) <= EXACT


# --- capture and cost -----------------------------------------------------------------------------------------------


@FEW
@given(cases(), st.booleans())
def test_capture_leaves_the_model_as_it_was(case: Case, training: bool) -> None:
    model = case.model.train(training)
    [*model.modules()][-1].training = not training  # modes may be mixed
    state = {name: x.clone() for name, x in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    kinds = {name: (type(module), module.forward.__func__) for name, module in model.named_modules()}
    given = {name: x.clone() for name, x in case.given.items()}
    random = torch.get_rng_state()
    case.sparse()
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: (type(module), module.forward.__func__) for name, module in model.named_modules()} == kinds
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(given[name], x) for name, x in case.given.items())


@FEW
@given(cases())
def test_gflops_are_those_that_torch_counts(case: Case) -> None:
    sparse = case.sparse()
    report, spec = sparse.report(), case.model.spec  # type: ignore[union-attr]
    one = spec.example_inputs(batch=1)  # type: ignore[union-attr,operator]
    assert report.gflops_dense == pytest.approx(counted(case.model, **one), rel=1e-9)
    for density in report.densities:
        if case.policy.sdtm:
            sparse.fix(density.grid)
        sparse.forget_prompts()
        assert density.gflops + report.gflops_once == pytest.approx(counted(sparse, **one), rel=1e-9)


def test_the_strategies_reach_more_than_the_plainest_model() -> None:
    """Or else every law above would be tried on one kind of model."""
    seen: set[str] = set()

    @settings(max_examples=30)
    @given(dits())
    def look(model: nn.Module) -> None:
        plain = DiTSpec()
        seen.update(name for name in DiTSpec.__dataclass_fields__ if getattr(model.spec, name) != getattr(plain, name))

    look()
    assert len(seen) >= 8, seen
