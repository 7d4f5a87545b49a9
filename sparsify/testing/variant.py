"""One captured random model, rewritten in several ways without being captured again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..accounting import check_density
from ..passes import Cleanup, Pass
from ..passes.base import copy_program
from ..plan import Plan
from ..policy import Policy
from ..program import Program
from ..runtime import SparseModel
from ..side_inputs import SideValues
from ..stage import Analysed, Request, analysed, apart, finished
from ..tree import kind_of
from .spec import DiTSpec


@dataclass(frozen=True)
class Way:
    """A pipeline to run a pass in.

    Attributes:
        words: for messages.
        policy: whose passes run in front of ``before``, with savings and cleanup behind everything; None for no other passes at all.
        before: passes in front of the one that is checked.
        savings: names of the exact savings behind it.
    """

    words: str
    policy: Policy | None
    before: tuple[Pass, ...] = ()
    savings: tuple[str, ...] = ()


class Captured:
    """A random model, captured and analysed once for all pipelines."""

    def __init__(self, spec: DiTSpec) -> None:
        self.model: nn.Module = spec.build()
        self._inputs: dict[str, Any] = spec.example_inputs()
        self._grid: tuple[int, ...] | None = None
        self._base = self._analysed()
        if not self._base.program.grid:  # of a sequence of fixed length, or one column, it cannot always be read off the graph
            self._grid = spec.grid
            self._base = self._analysed()

    def _analysed(self) -> Analysed:
        request = Request(
            Policy.dense(), self._grid, passes=(Cleanup(),)
        )  # with passes, everything that can be found is filled in
        with apart((), self._inputs):
            return analysed(self.model, request, (), self._inputs)

    def start(self) -> Program:
        """The program before any pass, in graphs of its own."""
        program = copy_program(self._base.program)
        program.values = SideValues(program, self.model, self._base.values)
        return program

    def sparse(self, way: Way, passes: Sequence[Pass], watch: Callable[[Program], Any] | None = None) -> SparseModel | None:
        """The model after a pipeline with these passes in it; None where nothing at all is to be run.

        Args:
            way: the pipeline.
            passes: to be run in it.
            watch: is given the program before the first pass, and returns an observer of the pipeline. Only with one the verifier
                runs after each pass; the same pipeline again is verified at its end.

        Raises:
            SparsifyError: as for ``sparsify``, but for passes that change nothing.
        """
        given = (*way.before, *passes)
        policy = Policy.dense() if way.policy is None else way.policy
        if not given and policy == Policy.dense():
            return None
        alone = way.policy is None
        request = Request(
            policy,
            self._grid,
            savings=way.savings,
            passes=given,
            alone=alone,
            verify_each=watch is not None,
            may_change_nothing=True,
        )
        with apart((), self._inputs):
            program = self.start()
            plan = Plan.of(policy, program.paths)
            pools = check_density(plan.schedule, program.grid_hint) if plan.pools else plan.rewrites
            observer = None if watch is None else watch(program)
            found = replace(self._base, program=program, pools=pools, observer=observer)
            stage = finished(self.model, found, request, self.model.training, kind_of(self.model))
        made = SparseModel(self.model, request)
        made.adopt(stage, (), self._inputs)
        return made


@functools.lru_cache(maxsize=8)
def captured(spec: DiTSpec) -> Captured:
    """Of equal specs the same, as long as nobody changes its model."""
    return Captured(spec)


def freshen(model: nn.Module, names: Sequence[str] | None = None) -> None:
    """Move new layers away from their start, equal names alike: gates that start at zero would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("sparsify_") and (names is None or name in names):
                random = torch.Generator().manual_seed(len(name) + 31 * parameter.numel())
                noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64).to(parameter)
                parameter.add_(0.3 * noise / max(1, parameter.shape[-1] if parameter.ndim > 1 else 1) ** 0.5)
