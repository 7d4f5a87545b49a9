"""Compare what a target computes with the eager sparse model, at every pooled grid."""

from __future__ import annotations

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
    """Largest difference to eager at one pooled grid, absolute, beside the largest output."""

    grid: Grid | None
    error: float
    scale: float
    dtype: torch.dtype

    @property
    def relative(self) -> float:
        """Relative to the largest output, or to 1 where that is smaller."""
        return self.error / max(1.0, self.scale)


def differences(sparse: SparseModel, lowered: Callable[..., Any], example_inputs: Any = None) -> list[Difference]:
    """How far ``lowered`` is from ``sparse`` on one call, at every pooled grid it was compiled for, finest first."""
    stage, inputs = sparse.stage_for(example_inputs)
    args, kwargs = stage.program.call.unflatten(inputs)
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
        error = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
        scale = max(float(a.double().abs().max()) for a, _ in pairs)
        found.append(Difference(grid, error, scale, pairs[0][0].dtype))
    return found


def check(sparse: SparseModel, lowered: Callable[..., Any], example_inputs: Any = None) -> list[Difference]:
    """As :func:`differences`.

    Raises:
        LoweringError: one is larger than rounding explains, or not a number.
    """
    found = differences(sparse, lowered, example_inputs)
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
