"""Random models, grids and policies: verified, finite and equal to the oracle."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify import Density, Policy, sparsify
from sparsify.passes import Cleanup
from sparsify.testing.policy_strategies import modules
from sparsify.text import program_text
from sparsify.verify import verify

from . import oracle
from .helpers import few
from .plain_dit import PlainDiT, randomised
from .test_exact import oracle_trunk, randomise_restores


class Example(NamedTuple):
    model: PlainDiT
    policy: Policy
    batch: int


@st.composite
def examples(draw: st.DrawFn) -> Example:
    depth, heads = draw(st.integers(4, 9)), draw(st.sampled_from([1, 2, 4]))
    image = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    width = heads * draw(st.sampled_from([4, 8]))
    style = draw(st.sampled_from(["fused", "manual", "manual-after", "separate"]))
    model = PlainDiT(depth=depth, width=width, heads=heads, image=(image[0] * 2, image[1] * 2), style=style)
    bottom = draw(st.integers(0, depth - 2))
    chosen = draw(modules(depth - bottom))
    pooled = tuple(draw(st.integers(1, side)) for side in image)
    if pooled == image:
        pooled = (image[0] - 1, image[1])
    coarsest = tuple(draw(st.integers(1, side)) for side in pooled)
    density = Density.paper(finest=pooled, coarsest=coarsest)
    policy = Policy(bottom, chosen, depth - bottom - sum(m.depth for m in chosen), density)
    return Example(randomised(model).double().eval(), policy, draw(st.integers(1, 3)))  # type: ignore[arg-type]


@few(4)
@given(examples(), st.integers(0, 999))
def test_random_models_equal_the_oracle(example: Example, step: int) -> None:
    model, policy, batch = example
    h, w = (side * model.patch for side in model.grid)
    x, t, y = torch.randn(batch, 3, h, w, dtype=torch.float64), torch.full((batch,), step), torch.randint(0, 5, (batch,))
    twin = copy.deepcopy(model)
    sparse = sparsify(model, policy, example_inputs=(x, t, y))
    randomise_restores(sparse)
    c = twin.conditioning(t, y)
    pooled = policy.density.grid_at(step, model.grid)
    tokens = oracle_trunk(sparse, policy, twin.blocks, twin.embed(x), oracle.plain_dit_run(c), model.grid, pooled)
    expected = twin.finish(tokens, c)
    output = sparse(x, t, y)
    assert output.isfinite().all()
    assert (output - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max().detach()))

    program = sparse.program
    verify(program, "the whole pipeline")
    before = program_text(program)
    Cleanup().run(program)
    assert program_text(program) == before, "cleanup has a fixed point"
    roles = [role.name for role in policy.roles(len(program.paths))]
    assert [block.role for block in sparse.report().blocks] == roles
    few = torch.Size(pooled).numel()
    expected_tokens = [few if role in ("generate", "sparse") else torch.Size(model.grid).numel() for role in roles]
    column = [d.grid for d in sparse.report().densities].index(pooled)
    assert [block.tokens[column] for block in sparse.report().blocks] == expected_tokens
