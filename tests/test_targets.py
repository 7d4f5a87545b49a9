"""Lowering never changes results beyond rounding."""

from __future__ import annotations

import torch

from sparsify import lower

from .helpers import inputs, sparse_plain


def test_eager_is_the_model_itself() -> None:
    _, sparse = sparse_plain()
    given = inputs()
    assert torch.equal(lower(sparse, "eager")(*given), sparse(*given))
