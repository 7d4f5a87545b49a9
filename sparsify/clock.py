"""What time it is, as the host says: then no timestep is read from a device (paper, timestep-wise density)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from .density import Density
from .ends import Grid, is_grid, is_number
from .errors import InputError


@dataclass
class Clock:
    """A timestep or a pooled grid that holds for the calls to come; None leaves it to the model's own timestep input."""

    timestep: float | None = None
    grid: Grid | None = None


class DensityModule(nn.Module):
    """The density node at run time: timestep in, sides of the pooled grid out."""

    def __init__(self, density: Density, clock: Clock) -> None:
        super().__init__()
        self.density, self.clock = density, clock
        self._warned = False

    def forward(self, timestep: torch.Tensor, *grid: int) -> tuple[int, ...]:
        """The densest grid that the timesteps of the batch ask for; an empty batch gets the coarsest."""
        if self.clock.grid is not None:
            pooled = fitting(self.clock.grid, grid)
        elif self.clock.timestep is not None:
            pooled = self.density.grid_at(self.clock.timestep, grid)
        else:
            pooled = max((self.density.grid_at(t, grid) for t in self._read(timestep)), key=math.prod)
        if pooled == grid:
            raise InputError(f"the pooled grid is the full {grid} grid at this resolution: there is nothing to pool.")
        return pooled

    def _read(self, timestep: torch.Tensor) -> list[float]:
        """One read of the device per call."""
        if timestep.is_meta:
            raise InputError(
                "the timestep is on the meta device, where it has no value; say it with at(timestep) or fix(grid)."
            )
        if timestep.is_complex():
            raise InputError(f"the timestep is a tensor of {timestep.dtype}; it must hold real numbers.")
        timesteps: list[float] = timestep.flatten().tolist()
        if not self._warned and self.density.timesteps >= 100 and any(0 < t < 1 for t in timesteps):
            self._warned = True
            warnings.warn(
                f"the timesteps of this call lie between 0 and 1 but the density {self.density} takes them from 0 to "
                f"{self.density.timesteps}, so it keeps its finest grid. For flow matching give it timesteps=1.0, and "
                f"reversed=True where t = 1 is the data.",
                stacklevel=2,
            )
        return timesteps or [self.density.noise]


class Timed:
    """What has a density: its host can say what time it is."""

    _clock: Clock

    def _density(self) -> Density:
        """The schedule behind the pooled grids; an InputError where there is none."""
        raise NotImplementedError

    @contextmanager
    def at(self, timestep: float) -> Iterator[Self]:
        """Within this context the density takes ``timestep`` from the host; no call waits for a device to read its own.

        Raises:
            InputError: ``timestep`` is no number in the density's range, or this model has no density.
        """
        before = self._clock.timestep
        self._clock.timestep = checked_timestep(timestep, self._density())
        try:
            yield self
        finally:
            self._clock.timestep = before

    def fix(self, grid: Grid | None) -> Self:
        """Use this pooled grid at every timestep, whatever the density says; ``None`` gives the density its say again."""
        self._density()
        self._clock.grid = None if grid is None else checked_grid(grid)
        return self

    def step_callback(self) -> StepCallback:
        """For ``callback_on_step_end`` of a diffusers pipeline: the host tells the timestep of each step after the first."""
        return StepCallback(self._clock, self._density())


class StepCallback:
    """A diffusers ``callback_on_step_end`` that tells a sparse model the timestep of the next step.

    The scheduler's timesteps are read once per run; its range is scaled to that of the density. The first step of a run
    reads the timestep from the model's own input.
    """

    def __init__(self, clock: Clock, density: Density) -> None:
        self._clock, self._density = clock, density
        self._timesteps: list[float] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline when a step is done."""
        if step == 0:
            self._timesteps = self._scaled(pipe.scheduler)
        is_last = step + 1 >= len(self._timesteps)
        self._clock.timestep = None if is_last else self._timesteps[step + 1]
        return tensors

    def _scaled(self, scheduler: Any) -> list[float]:
        longest = float(scheduler.config.num_train_timesteps)
        shares = [min(1.0, max(0.0, float(t) / longest)) for t in scheduler.timesteps.tolist()]
        return [self._density.timesteps * (1 - share if self._density.reversed else share) for share in shares]


def fitting(pooled: Grid, dense: Grid) -> Grid:
    """``pooled``, if it can be the pooled grid of ``dense``.

    Raises:
        InputError: it has other axes, or a side that is larger.
    """
    if len(pooled) != len(dense) or any(p > side for p, side in zip(pooled, dense, strict=True)):
        raise InputError(f"the fixed grid {pooled} does not fit the {dense} token grid of this call; fix another one.")
    return pooled


def checked_timestep(timestep: object, density: Density) -> float:
    """A timestep as a number.

    Raises:
        InputError: it is none, would have to be read from a device, or lies outside the density's range.
    """
    if isinstance(timestep, torch.Tensor) and timestep.device.type == "cpu" and timestep.numel() == 1:
        timestep = timestep.item()
    if not is_number(timestep):
        raise InputError(
            f"at() takes a timestep as a Python number or a CPU tensor of one element, so that no device is waited for; "
            f"not {_described(timestep)}."
        )
    try:
        value = float(timestep)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond floating point
        value = math.inf if timestep > 0 else -math.inf  # type: ignore[operator]
    if not 0 <= value <= density.timesteps:
        shown = timestep if math.isfinite(value) else value  # the integer may have too many digits to print
        raise InputError(f"timestep {shown} is outside [0, {density.timesteps}], the range of this policy's density.")
    return value


def checked_grid(grid: object) -> Grid:
    """A pooled grid.

    Raises:
        InputError: it is not one to three integers of at least 1.
    """
    if not is_grid(grid):
        raise InputError(f"fix() takes a pooled grid of one to three integers of at least 1, such as (8, 8), not {grid!r}.")
    return tuple(grid)  # type: ignore[arg-type]


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} on {value.device}"
    return repr(value)
