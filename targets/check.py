"""Compare what a target computes with the eager sparse model, at every pooled grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..clock import Clock
from ..ends import Grid
from ..errors import LoweringError
from ..runtime import SparseModel
from .artifact import Artifact
from .exported import every_grid

# Of the largest output. Below float32 both sides round, each in its own order of operations.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Difference:
    """Largest difference to eager at one pooled grid.

    Attributes:
        error: absolute; not a number where one side is not.
        scale: the largest output.
        relative: the largest over the outputs, each relative to its own largest value.
    """

    grid: Grid | None
    error: float
    scale: float
    relative: float
    dtype: torch.dtype


def differences(sparse: SparseModel, lowered: Callable[..., Any], example_inputs: Any = None) -> list[Difference]:
    """How far ``lowered`` is from ``sparse`` on one call, at every pooled grid it was compiled for, finest first."""
    stage, inputs = sparse.stage_for(example_inputs)
    leaves = lowered.interface.with_batch(inputs) if isinstance(lowered, Artifact) else inputs
    args, kwargs = stage.program.call.unflatten(leaves)
    density = stage.program.density
    grids: Sequence[Grid | None] = (None,)
    if density is not None:
        grids = lowered.interface.grids if isinstance(lowered, Artifact) else every_grid(density, stage.program.grid_hint)
    found = []
    for grid in grids:
        with torch.no_grad():
            want = _at(sparse._clock, grid, sparse, args, kwargs)
            got = _at(lowered._clock if isinstance(lowered, Artifact) else sparse._clock, grid, lowered, args, kwargs)
        pairs = list(zip(_tensors(want), _tensors(got), strict=True))
        # As tensors, whose maximum is not a number if one of them is not.
        errors = torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs])
        scales = torch.stack([a.double().abs().max() for a, _ in pairs])
        relative = torch.where(errors == 0, 0.0, errors / scales).max()
        found.append(Difference(grid, float(errors.max()), float(scales.max()), float(relative), pairs[0][0].dtype))
    return found


def check(sparse: SparseModel, lowered: Callable[..., Any], example_inputs: Any = None) -> list[Difference]:
    """As :func:`differences`.

    Raises:
        LoweringError: one is larger than rounding explains, or not a number.
    """
    found = differences(sparse, lowered, example_inputs)
    if all(difference.scale == 0 for difference in found):
        warnings.warn("the model's outputs are 0 on this call, so comparing with eager proves nothing.", stacklevel=2)
    for difference in found:
        if not difference.relative <= TOLERANCES.get(difference.dtype, 1e-4):
            raise LoweringError(
                f"the lowered model differs from eager by {difference.error:.1e} at the pooled grid {difference.grid}, of outputs up "
                f"to {difference.scale:.1e}; {difference.dtype} allows {TOLERANCES.get(difference.dtype, 1e-4):.0e} of that."
            )
    return found


def _at(clock: Clock, grid: Grid | None, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    before = clock.grid
    clock.grid = grid if grid is not None else before
    try:
        return run(*args, **kwargs)
    finally:
        clock.grid = before


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, dict):  # a result read from a file is no pytree node
        output = list(output.values())
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
