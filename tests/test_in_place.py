"""Models whose own code cannot be traced: their blocks run in its place, and compute what the eager oracle computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsify import SDTM, CaptureError, Density, Policy, RewriteError, SparseModel, sparsify

from .helpers import POLICY
from .oracle import plain_dit_run
from .plain_dit import Block, PlainDiT, randomised
from .test_exact import oracle_trunk


class Looking(PlainDiT):
    """Looks at values, so no graph holds for every call; keeps a cache; the blocks are called from a helper."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        c, tokens = self.conditioning(t, y), self.embed(x)
        if float(x.mean()) > 100:
            tokens = tokens * 2
        return self.finish(self.trunk(tokens, c), c)

    def trunk(self, tokens: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens


def looking(kind: type[Looking] = Looking, **options: Any) -> Looking:
    model = randomised(kind(depth=6, **options)).double().eval()
    assert isinstance(model, Looking)
    return model


def given(batch: int = 2, size: tuple[int, int] = (16, 16), t: int = 900) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, *size, dtype=torch.float64), torch.full((batch,), t), torch.arange(batch) % 5


def expected(
    model: Looking, sparse: SparseModel, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, factor: float
) -> torch.Tensor:
    c = model.conditioning(t, y)
    pooled = POLICY.density.grid_at(int(t[0]), model.grid)
    tokens = oracle_trunk(sparse, POLICY, model.blocks, model.embed(x) * factor, plain_dit_run(c), model.grid, pooled)
    return model.finish(tokens, c)


def opened(sparse: SparseModel) -> SparseModel:
    """Restore layers that let the sparse tokens through; at first they do not."""
    with torch.no_grad():
        for parameter in sparse.sparsify_restore.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return sparse


def test_it_is_the_oracle_on_either_branch_of_the_models_own_code_and_at_other_batches() -> None:
    model = looking()
    sparse = opened(sparsify(model, POLICY, given(), verify="full"))
    assert sparse.report().way.startswith("blocks in place: torch.export cannot trace Looking")
    for batch, t, shift, factor in ((2, 900, 0.0, 1.0), (2, 300, 200.0, 2.0), (3, 700, 0.0, 1.0)):
        x, times, y = given(batch, t=t)
        actual, want = sparse(x + shift, times, y), expected(model, sparse, x + shift, times, y, factor)
        assert want.abs().max() > 0.05 and (actual - want).abs().max() <= 1e-12
        gradients = torch.autograd.grad(actual.square().sum(), list(model.blocks.parameters()), allow_unused=True)
        wanted = torch.autograd.grad(want.square().sum(), list(model.blocks.parameters()), allow_unused=True)
        for got, wants in zip(gradients, wanted, strict=True):
            assert torch.allclose(
                got if got is not None else torch.zeros(()), wants if wants is not None else torch.zeros(()), atol=1e-9
            )


def test_the_model_is_itself_again_after_the_call_and_after_a_failing_one() -> None:
    class Failing(Looking):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if float(x.max()) > 1e6:
                self.trunk(self.embed(x), self.conditioning(t, y))
                raise ValueError("too large")
            return super().forward(x, t, y)

    model = looking(Failing)
    arguments = given()
    before = model(*arguments)
    sparse = sparsify(model, POLICY, arguments)
    sparse(*arguments)
    with pytest.raises(ValueError, match="too large"):
        sparse(arguments[0] + 1e7, *arguments[1:])
    assert torch.equal(model(*arguments), before)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_what_the_models_own_code_reads_between_blocks_is_dense() -> None:
    seen: list[torch.Tensor] = []

    class Skipping(Looking):
        def trunk(self, tokens: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            for index, block in enumerate(self.blocks):
                tokens = block(tokens, c)
                if index == 3:
                    seen.append(tokens * 1)
            return tokens + seen[-1]

    model = looking(Skipping)
    sparse = sparsify(model, POLICY, given())
    seen.clear()
    sparse(*given())
    assert [block.role for block in sparse.report().blocks][3] == "sparse"
    image = seen[0].reshape(2, 8, 8, -1)
    assert torch.equal(image[:, 0, 0], image[:, 0, 1]) and not torch.equal(
        image[:, 0, 0], image[:, 0, 7]
    )  # copies of a sparse token


def test_operators_between_blocks_that_no_graph_shows_are_refused() -> None:
    class Between(Looking):
        def trunk(self, tokens: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                tokens = block(tokens, c) * 1.5
            return tokens

    model = looking(Between)
    arguments = given()
    with pytest.raises(CaptureError, match=r"blocks\.1 does not take its tokens from blocks\.0"):
        sparsify(model, POLICY, arguments)
    dense = sparsify(model, Policy.dense(), arguments)
    assert torch.equal(dense(*arguments), model(*arguments))


def shuffled(model: Looking) -> None:
    """Tokens in an order that is not row-major."""
    model.embed = lambda x: PlainDiT.embed(model, x).flip(1)  # type: ignore[method-assign]


def test_a_grid_that_is_not_in_row_major_order_is_not_taken_for_one() -> None:
    model = looking()
    shuffled(model)
    with pytest.raises(Exception, match="the token grid cannot be found"):
        sparsify(model, POLICY, given())


@pytest.mark.parametrize("rows", [5])
@pytest.mark.parametrize("place", ["before", "after"])
def test_text_beside_the_tokens_is_found_and_never_pooled(place: str, rows: int) -> None:
    class Joint(Looking):
        def trunk(self, tokens: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            text = self.text.expand(tokens.shape[0], -1, -1)
            joined = super().trunk(torch.cat((text, tokens) if place == "before" else (tokens, text), 1), c)
            return joined[:, rows:] if place == "before" else joined[:, :-rows]

    model = looking(Joint)
    model.text = nn.Parameter(torch.randn(1, rows, 32, dtype=torch.float64))
    sparse = sparsify(model, POLICY, given(), verify="full")
    assert {n - rows for n in sparse.report().blocks[2].tokens} == {h * w for h, w in POLICY.density.grids((8, 8))}
    opened(sparse)
    assert (sparse(*given()) - model(*given())).abs().max() > 1e-6


@pytest.mark.parametrize("policy", [Policy(1, (), 5), Policy(0, SDTM(2, 1, 2, 1), 0, Density.constant(rate=0.75))], ids=str)
def test_other_policies_run_in_place(policy: Policy) -> None:
    model = looking()
    sparse = sparsify(model, policy, given())
    output = sparse(*given())
    assert output.shape == (2, 3, 16, 16) and sparse.report().gflops < sparse.report().gflops_dense


def test_a_block_that_is_called_otherwise_than_at_capture_is_an_error() -> None:
    class Moody(Looking):
        def trunk(self, tokens: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                tokens = block(tokens, c) if float(tokens.abs().max()) < 500 else block(x=tokens, c=c, flag=True)
            return tokens

    model = looking(Moody)
    sparse = sparsify(model, POLICY, given())
    x, t, y = given()
    with pytest.raises((CaptureError, TypeError), match=r"blocks\.0 is called otherwise|unexpected keyword"):
        sparse(x + 1e4, t, y)


class Summing(Block):
    """Adds a running sum over the tokens, which no split can take apart."""

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return super().forward(x + x.cumsum(1) / 10, c)


def test_all_refused_is_an_error() -> None:
    model = looking()
    for block in model.blocks:
        block.__class__ = Summing
    with pytest.raises(RewriteError, match="every rewrite was refused"):
        sparsify(model, Policy(0, SDTM(1, 2, 1, 1), 1), given())
