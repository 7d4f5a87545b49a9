"""A compiled program that is called like the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ..clock import Clock, Timed
from ..density import Density
from ..ends import Grid
from ..errors import InputError
from .interface import Caller, Interface

# Runs flat input tensors at a pooled grid (None where nothing is pooled) to flat output tensors.
Run: TypeAlias = Callable[[Sequence[torch.Tensor], Grid | None], Sequence[torch.Tensor]]


def path_of(path: Path, grid: Grid | None) -> Path:
    """The file of one pooled grid: ``model.onnx`` becomes ``model_8x8.onnx``."""
    return path if grid is None else path.with_stem(f"{path.stem}_{'x'.join(map(str, grid))}")


class Artifact(Timed):
    """What a target compiled ahead of time. The host reads the timestep, or says it (``at``, ``fix``, ``step_callback``)."""

    def __init__(self, interface: Interface, run: Run, clock: Clock | None = None) -> None:
        self.interface = interface
        self._clock = Clock() if clock is None else clock
        self._caller = Caller(interface, self._clock)
        self._run = run
        self._carriers: dict[tuple[Grid, torch.device], torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these arguments.

        Raises:
            InputError: the call is not one that was compiled: other shapes, dtypes, devices, constants or pooled grids.
        """
        inputs, grid = self._caller.flat(args, kwargs)
        return self.interface.output.unflatten(self._run(inputs, grid))

    def _carrier(self, grid: Grid, device: torch.device) -> torch.Tensor:
        """The tensor whose sizes tell a program with an open pooled grid which one it is; nothing reads what it holds."""
        if (grid, device) not in self._carriers:
            self._carriers[grid, device] = torch.zeros(grid, dtype=torch.bool, device=device)
        return self._carriers[grid, device]

    def _density(self) -> Density:
        if self.interface.density is None:
            raise InputError("this program pools no tokens, so it has no density.")
        return self.interface.density

    def __repr__(self) -> str:
        grids = ", ".join("x".join(map(str, grid)) for grid in self.interface.grids) or "none"
        return f"{type(self).__name__}(pooled grids {grids}; batch {self.interface.batch}; {self.interface.device})"
