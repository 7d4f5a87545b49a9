"""What strategies need to know of a model that is not one of ours: found as ``sparsify`` finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..api import sparsify
from ..ends import Grid
from ..errors import GridError, InputError
from ..policy import Policy
from ..runtime import SparseModel
from .spec import DiTSpec


class Trunk(NamedTuple):
    """The blocks that a policy is about: how many, the grid of their tokens, and the timestep of pure noise."""

    depth: int
    grid: Grid
    timesteps: float


def spec_of(model: nn.Module) -> DiTSpec | None:
    """The spec of a model that has one."""
    spec = getattr(model, "spec", None)
    return spec if isinstance(spec, DiTSpec) else None


def trunk_of(model: nn.Module, example_inputs: Any, grid: Sequence[int] | None = None, timesteps: float | None = None) -> Trunk:
    """Read off the spec, or else off the model's graph in one capture.

    Raises:
        InputError: the model has no spec, and there are no example inputs.
        SparsifyError: as for ``sparsify``, where the model has no trunk or grid that can be found.
    """
    if (spec := spec_of(model)) is not None:
        return Trunk(spec.depth, spec.grid, spec.timesteps if timesteps is None else timesteps)
    report = dense(model, example_inputs, grid).report()
    if not report.grid:
        raise GridError(report.grid_source)
    return Trunk(len(report.blocks), report.grid, 1000 if timesteps is None else timesteps)


def dense(model: nn.Module, example_inputs: Any, grid: Sequence[int] | None = None) -> SparseModel:
    """A capture in which nothing is rewritten.

    Raises:
        InputError: there are no example inputs.
    """
    if not isinstance(example_inputs, (Mapping, Sequence)) or not len(example_inputs):
        raise InputError(
            f"{type(model).__name__} was not built by a DiTSpec, so it must be looked at: give one call's example_inputs, a tuple of "
            f"positional or a dict of keyword inputs; not {type(example_inputs).__name__}."
        )
    return sparsify(model, Policy.dense(), example_inputs, grid=grid, savings=False)
