"""Small builders that several tests use."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import fx, nn

from sparsify import SDTM, Density, Policy, SparseModel, sparsify
from sparsify.analysis import analyse
from sparsify.calls import CallSpec
from sparsify.capture import capture
from sparsify.export import capture_module
from sparsify.passes.base import remove_dead
from sparsify.program import Body, Program
from sparsify.shapes import size_of
from sparsify.tree import function_of

from .plain_dit import PlainDiT, randomised

POLICY = Policy(1, SDTM(1, 2, 1, 1), 0, Density.paper(r_min=0.5, r_max=0.9))


THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def few(count: int, many: int = 150) -> settings:
    """For property tests whose every example captures a model: ``count`` examples, or ``many`` in the thorough profile."""
    # Shrinking takes minutes, since each trial is a capture; the thorough run has it.
    phases = [phase for phase in Phase if THOROUGH or phase not in (Phase.shrink, Phase.explain)]
    return settings(max_examples=many if THOROUGH else count, phases=phases)


def slow(*values: Any) -> Any:
    """Parameters of a test that ``make test`` leaves to ``make test-all``."""
    return pytest.param(*values, marks=pytest.mark.slow)


def plain(depth: int = 6, **options: Any) -> PlainDiT:
    model = randomised(PlainDiT(depth=depth, **options))
    assert isinstance(model, PlainDiT)
    return model.eval()


def inputs(batch: int = 2, size: tuple[int, int] = (16, 16), t: int = 500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, *size), torch.full((batch,), t), torch.arange(batch) % 5


def sparse_plain(depth: int = 6, policy: Policy = POLICY, **options: Any) -> tuple[PlainDiT, SparseModel]:
    """A copy of a model and its sparse form, which are made once in a process: copying takes a hundredth of the time."""
    return copy.deepcopy(_made_once(depth, policy, tuple(options.items())))


@functools.cache
def _made_once(depth: int, policy: Policy, options: tuple[tuple[str, Any], ...]) -> tuple[PlainDiT, SparseModel]:
    model = plain(depth, **dict(options))
    return model, sparsify(model, policy, example_inputs=inputs())


def analysed(model: PlainDiT) -> Program:
    """A captured program with grid and timestep found, before any pass."""
    call, tensors = CallSpec.of(model.forward, inputs(), {})
    program = capture(model, call, tensors)
    analyse(program, Policy.auto(), None, None)
    return program


def lone_block(module: nn.Module, x: torch.Tensor, *others: torch.Tensor) -> Program:
    """A program of one block, captured alone: ``module`` of (batch, tokens, channels) and tensors that are no tokens."""
    call, leaves = CallSpec.of(module.forward, (x, *others), {})
    captured = capture_module(module, call, leaves)
    (output,) = captured.graph.find_nodes(op="output")
    (output.args,) = [tuple(output.args[0])]
    remove_dead(captured.graph)
    tokens = captured.graph.find_nodes(op="placeholder")[0].meta["val"].shape[1]
    body = Body("block0", captured.graph, captured.constants, 0, 0, [0], moving=frozenset([size_of(tokens)]))
    outer = fx.Graph()
    outer.output(outer.placeholder("x"))
    return Program(outer, {}, {"block0": body}, [], call, captured.output_spec, captured.shape_env)


def run_block(program: Program, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Run the block of :func:`lone_block`, as it is now, with the module's own parameters."""
    module.__dict__.update(program.bodies["block0"].constants)
    result: torch.Tensor = function_of(program.bodies["block0"].graph)(module, *inputs)
    return result
