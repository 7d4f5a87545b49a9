"""One capture of a model, rewritten by many plans."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..calls import split_inputs
from ..density import Density
from ..errors import PolicyError
from ..passes import InsertDensity
from ..passes.base import copy_body, copy_program
from ..plan import Plan
from ..program import Body, Program
from ..runtime import SparseModel
from ..side_inputs import SideValues
from ..stage import Analysed, Request, Stage, analysed, apart, finished
from ..tree import kind_of
from .words import plan_of

_LEAST_DEPTH = 4  # as for Policy.fit


class Variants:
    """Sparse models of one source model, which is captured and analysed once, in its present mode.

    Args:
        model: the source, all of it in one mode; its parameters are those of every variant.
        batch: one call's inputs.
        timesteps: the range of the densities that are to come.
        grid: the token grid, where it cannot be read off the graph.
        timestep: the input that carries the timestep, where it cannot be told.

    Raises:
        PolicyError: the trunk is too short, or there is nothing to pool on its grid.
        SparsifyError: as for ``sparsify``.
    """

    def __init__(
        self, model: nn.Module, batch: Any, timesteps: float, grid: Sequence[int] | None = None, timestep: str | None = None
    ) -> None:
        self.model = model
        self._args, self._kwargs = split_inputs(batch)
        self._grid = None if grid is None else tuple(grid)
        self._timestep = timestep
        any_density = Density.constant(rate=0.5, timesteps=timesteps)  # analysis asks no more than whether it pools
        request = self._request(plan_of("GR", any_density), ())
        with apart(self._args, self._kwargs):
            self.base: Analysed = analysed(model, request, self._args, self._kwargs)
        if len(self.program.paths) < _LEAST_DEPTH:
            raise PolicyError(
                f"the trunk of {type(model).__name__} has {len(self.program.paths)} blocks; a search needs {_LEAST_DEPTH} or more. "
                f"Write the policy by hand."
            )
        if not self.base.pools:
            raise PolicyError(
                f"the token grid of {type(model).__name__} is {self.program.grid_hint}: there is nothing to pool."
            )

        self._bodies: dict[str, Body] = {}  # that passes have made of this program's
        with_density = copy_program(self.program)
        with apart(self._args, self._kwargs):
            InsertDensity(any_density).run(with_density)
        # One density node for all variants: then their pooled sizes are the same symbols, and shapes are computed once.
        self._with_density = with_density

    @property
    def program(self) -> Program:
        """The program before any pass; not to be changed."""
        return self.base.program

    def fresh(self, density: Density | None = None) -> Analysed:
        """The capture with a program of its own; with a density node in it, if there is a density."""
        program = copy_program(self.program if density is None else self._with_density)
        program.density = density
        if density is None:
            program.timestep = None  # as for a policy that pools no tokens, which never looks for it
        program.bodies |= {name: copy_body(body, name) for name, body in self._bodies.items()}
        program.values = SideValues(program, self.model, self.base.values)
        return replace(self.base, program=program)

    def stage(self, plan: Plan, savings: Collection[str] = ()) -> Stage:
        """The program rewritten as planned.

        Raises:
            RewriteError: every rewrite was refused.
        """
        mode, kind = self.model.training, kind_of(self.model)
        with apart(self._args, self._kwargs):
            fresh = self.fresh(plan.schedule if plan.pools else None)
            made = finished(self.model, fresh, self._request(plan, savings), mode, kind)
        if not savings:  # which would have changed the bodies
            for name, body in made.program.bodies.items():  # making them is most of the work, and always the same
                if name not in self.program.bodies:
                    self._bodies.setdefault(name, copy_body(body, name))
        return made

    def sparse(self, stage: Stage, plan: Plan) -> SparseModel:
        """A sparse model of a stage; ``plan`` is that of the stage, but for the density."""
        if plan.pools:
            stage.program.density = plan.schedule  # the graphs are the same for all
        made = SparseModel(self.model, self._request(plan, ()))
        made.adopt(stage, self._args, self._kwargs)
        return made

    def _request(self, plan: Plan, savings: Collection[str]) -> Request:
        return Request(plan, self._grid, self._timestep, savings=tuple(savings))
