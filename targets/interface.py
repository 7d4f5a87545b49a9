"""What a host must know to call a compiled program: its flat inputs, its sizes, and how the timestep picks a pooled grid."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..calls import CallSpec
from ..clock import Clock, DensityModule
from ..density import Density
from ..ends import Grid
from ..errors import ConstantError, GridError, InputError
from ..grid_readers import GridOfPositions

BATCH = "batch"


class Unflatten(Protocol):
    """Puts flat output tensors into what the model returns."""

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """The result that carries ``tensors``."""


@dataclass(frozen=True)
class FlatInput:
    """One flat input of a compiled program.

    Attributes:
        name: of the placeholder.
        shape: each axis a number, or ``"batch"`` where it is as long as the batch; () for an integer.
        dtype: of the tensor; None for an integer.
        value: of an integer, which is part of the program.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype | None
    value: int | None = None


@dataclass(frozen=True)
class Interface:
    """How a model call becomes a call of a compiled program, and back.

    Attributes:
        call: how the model's arguments become flat inputs.
        output: how flat outputs become what the model returns.
        inputs: the flat inputs.
        device: the type of the device they lie on.
        batch: least and largest batch size, equal where it is fixed.
        dense_grid: of the tokens; the compiled program knows no other resolution.
        density: which picks the pooled grid; None if nothing is pooled.
        timestep: which flat input the density reads.
        grids: pooled grids that were compiled, finest first.
        between: whether one program serves these grids and those whose sides lie between theirs.
        positions: which flat input holds the tokens' positions, and how they tell the dense grid, if they do.
    """

    call: CallSpec
    output: Unflatten
    inputs: tuple[FlatInput, ...]
    device: str
    batch: tuple[int, int]
    dense_grid: Grid
    density: Density | None
    timestep: int | None
    grids: tuple[Grid, ...]
    between: bool
    positions: tuple[int, GridOfPositions] | None = None

    @property
    def has_open_batch(self) -> bool:
        """Whether several batch sizes are served."""
        return self.batch[0] < self.batch[1]

    def with_batch(self, leaves: Sequence[Any]) -> list[Any]:
        """Flat inputs with their rows repeated or left out, where their batch size is not one that is served."""
        return [self._with_batch(leaf, flat) for leaf, flat in zip(leaves, self.inputs, strict=True)]

    def _with_batch(self, leaf: Any, flat: FlatInput) -> Any:
        for axis, size in enumerate(flat.shape):
            if size == BATCH:
                wanted = min(max(given := leaf.shape[axis], self.batch[0]), self.batch[1])
                if wanted != given:
                    leaf = leaf.index_select(axis, torch.arange(wanted, device=leaf.device) % given)
        return leaf


class Caller:
    """Checks and flattens calls of one compiled program; what was checked once is not checked again."""

    def __init__(self, interface: Interface, clock: Clock) -> None:
        self.interface = interface
        self._density = None if interface.density is None else DensityModule(interface.density, clock)
        self._valid: set[tuple[object, ...]] = set()
        self._seen_positions: tuple[Any, int] | None = None

    def flat(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Grid | None]:
        """The flat input tensors of a call, and the pooled grid for it.

        Raises:
            InputError: the call is not one that was compiled; the message says in what it differs.
        """
        try:
            leaves = self.interface.call.flatten(args, kwargs)
        except ConstantError as error:
            raise InputError(f"{error} Lower the model again with example_inputs of this form.") from error
        key = tuple((x.shape, x.dtype, x.device) if isinstance(x, torch.Tensor) else x for x in leaves)
        if key not in self._valid:
            self._check(leaves)
            self._valid.add(key)
        self._check_positions(leaves)
        # Compiled code has the strides of its example built in, and takes others without a word.
        return [x.contiguous() for x in leaves if isinstance(x, torch.Tensor)], self._grid(leaves)

    def _grid(self, leaves: Sequence[Any]) -> Grid | None:
        if self._density is None or self.interface.timestep is None:
            return None
        grid = self._density(leaves[self.interface.timestep], *self.interface.dense_grid)
        if not is_compiled(grid, self.interface.grids, self.interface.between):
            known = ", ".join(_text(g) for g in self.interface.grids)
            raise InputError(
                f"the pooled grid {_text(grid)} was not compiled; there {'are those between' if self.interface.between else 'is'} "
                f"{known}. Lower the model again with grids=[..., {grid}]."
            )
        return tuple(grid)

    def _check(self, leaves: Sequence[Any]) -> None:
        least, most = self.interface.batch
        batch: int | None = None
        for given, expected in zip(leaves, self.interface.inputs, strict=True):
            if not isinstance(given, torch.Tensor):
                if given != expected.value:
                    raise InputError(
                        f"input {expected.name} is {given}, compiled for {expected.value}; lower the model again for it."
                    )
                continue
            if given.dtype != expected.dtype:
                raise InputError(
                    f"input {expected.name} is {given.dtype}, compiled for {expected.dtype}; convert it with .to()."
                )
            if given.device.type != self.interface.device:
                raise InputError(
                    f"input {expected.name} is on {given.device}, compiled for {self.interface.device}; move it, or lower the "
                    f"model on that device."
                )
            shape = tuple(given.shape)
            sizes = [size for size, wanted in zip(shape, expected.shape, strict=False) if wanted == BATCH]
            batch = sizes[0] if batch is None and sizes else batch
            wanted_shape = tuple(batch if size == BATCH else size for size in expected.shape)
            if shape != wanted_shape or any(not least <= size <= most for size in sizes):
                sides = f"{least} to {most}" if least < most else least
                raise InputError(
                    f"input {expected.name} has shape {shape}, compiled for {_text(expected.shape)} with batch {sides}; lower the "
                    f"model again with example_inputs of this shape{' or another batch=' if sizes else ''}."
                )

    def _check_positions(self, leaves: Sequence[Any]) -> None:
        """Packed tokens of another grid may be as many, and would give another picture without an error."""
        if self.interface.positions is None:
            return
        index, reader = self.interface.positions
        table: torch.Tensor = leaves[index]
        is_counted = not table.is_inference()  # such tensors do not tell when they change
        seen, version = self._seen_positions or (None, -1)
        if is_counted and seen is not None and seen() is table and version == table._version:
            return
        grid = reader.sides(math.prod(self.interface.dense_grid), table)
        if grid != self.interface.dense_grid:
            raise GridError(
                f"the tokens of this call lie on a {_text(grid)} grid, compiled for {_text(self.interface.dense_grid)}."
            )
        self._seen_positions = (weakref.ref(table), table._version) if is_counted else None


def is_compiled(grid: Grid, grids: Sequence[Grid], between: bool) -> bool:
    """Whether programs for ``grids`` serve ``grid``."""
    if not between or not grids or len(grid) != len(grids[0]):
        return tuple(grid) in grids
    return all(min(sides) <= side <= max(sides) for side, *sides in zip(grid, *grids, strict=True))


def _text(sides: Sequence[Any]) -> str:
    return "x".join(map(str, sides))
