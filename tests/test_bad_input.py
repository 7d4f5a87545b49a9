"""Bad input that is no row of ``tests.adversarial``: what later calls, reports and targets say of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import (
    SDTM,
    InputError,
    LoweringError,
    Policy,
    lower,
    sparsify,
)

from .helpers import POLICY, inputs, plain, sparse_plain


def test_a_constant_that_changes_is_captured_anew_and_a_new_tensor_is_named() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: Any, t: Any, y: Any, scale: float = 1.0, extra: Any = None) -> Any:
            return {"sample": self.inner(x, t, y) * scale}

    sparse, given = sparsify(Optional(), POLICY, example_inputs=inputs()), inputs()
    once = sparse(*given)["sample"]
    assert torch.equal(sparse(*given, scale=1.0)["sample"], once)
    assert torch.equal(sparse(*given, scale=2.0)["sample"], 2 * once)
    with pytest.raises(InputError, match=r"input \['extra'\] is a tensor but was None"):
        sparse(*inputs(), extra=torch.ones(1))


def test_part_of_a_policy_that_is_refused_is_in_the_report() -> None:
    model = plain()
    model.blocks[0].attn = copy.deepcopy(model.blocks[0].attn)
    model.blocks[0].attn.forward = lambda x: x.cumsum(dim=1) * 0.1
    sparse = sparsify(model, Policy(1, SDTM(1, 2, 1, 1), 0), example_inputs=inputs())
    (skip,) = sparse.report().skipped
    assert (skip.pass_name, skip.where) == ("pool-attention", "blocks.0")
    assert sparse.report().blocks[0].role == "dense" and sparse.report().blocks[1].role == "generate"


def test_lowering_errors() -> None:
    model, sparse = sparse_plain()
    with pytest.raises(LoweringError, match=r"target 'cuda' does not exist; there are \['aot_inductor', 'eager', 'inductor'"):
        lower(sparse, "cuda")
    with pytest.raises(
        LoweringError, match="target inductor has no option \\['speed'\\]; its options are \\['shapes', 'mode', 'scope'\\]"
    ):
        lower(sparse, "inductor", speed=3)
    with pytest.raises(LoweringError, match="not a PlainDiT"):
        lower(model)  # type: ignore[arg-type]
