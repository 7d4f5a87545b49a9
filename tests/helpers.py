"""Small builders that several tests use."""

from __future__ import annotations

from typing import Any

import torch

from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.analysis import analyse
from sparsify.calls import CallSpec
from sparsify.capture import capture
from sparsify.program import Program

from .plain_dit import PlainDiT, randomised

POLICY = Policy(1, SDTM(1, 2, 1, 1), 0, Density.paper(r_min=0.5, r_max=0.9))


def plain(depth: int = 6, **options: Any) -> PlainDiT:
    model = randomised(PlainDiT(depth=depth, **options))
    assert isinstance(model, PlainDiT)
    return model.eval()


def inputs(batch: int = 2, size: tuple[int, int] = (16, 16), t: int = 500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, *size), torch.full((batch,), t), torch.arange(batch) % 5


def sparse_plain(depth: int = 6, policy: Policy = POLICY, **options: Any) -> tuple[PlainDiT, SparseModel]:
    model = plain(depth, **options)
    return model, sparsify(model, policy, example_inputs=inputs())


def analysed(model: PlainDiT) -> Program:
    """A captured program with grid and timestep found, before any pass."""
    call, tensors = CallSpec.of(model.forward, inputs(), {})
    program = capture(model, call, tensors)
    analyse(program, Policy.auto(), None, None)
    return program
