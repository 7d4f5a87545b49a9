"""Lowering never changes results beyond rounding."""

from __future__ import annotations

import torch

from sparsify import lower

from .helpers import inputs, sparse_plain


def test_eager_is_the_model_itself() -> None:
    _, sparse = sparse_plain()
    given = inputs()
    assert torch.equal(lower(sparse, "eager")(*given), sparse(*given))


def test_inductor_agrees_and_compiles_each_kind_of_block_once() -> None:
    _, sparse = sparse_plain(depth=6)
    torch._dynamo.reset()
    fast = lower(sparse, "inductor")
    with torch.no_grad():
        for batch, t in ((2, 10), (2, 600), (3, 990), (4, 400)):
            given = inputs(batch, t=t)
            assert (fast(*given) - sparse(*given)).abs().max() <= 1e-5
        frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert frames <= 6, "three kinds of block, not six blocks times four calls"
        for t in range(0, 1000, 97):
            fast(*inputs(2, t=t))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames, "no recompilation over the schedule"
    assert all(
        "code" not in vars(block) or not hasattr(block.code, "_torchdynamo_orig_callable") for block in sparse.blocks.children()
    )
