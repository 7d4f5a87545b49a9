"""A sparse model as an ``ExportedProgram``: what every target that compiles ahead of time starts from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from ..calls import Leaf
from ..clock import fitting
from ..density import Density
from ..ends import Grid, is_grid
from ..errors import LoweringError
from ..flat import flat_module, refuse_in_place
from ..grid_readers import GridOfPositions
from ..program import GRID, Program
from ..real import without_complex
from ..runtime import SparseModel
from ..shapes import shape_of
from ..stage import Stage
from .interface import BATCH, FlatInput, Interface
from .simplify import simplify

LARGEST_BATCH = 64  # that a program with an open batch is compiled for unless the caller says another
_SIDES = {1: ("length",), 2: ("height", "width"), 3: ("time", "height", "width")}


@dataclass(frozen=True)
class Exported:
    """One flat program.

    Attributes:
        program: flat tensors in, a tuple of tensors out. Every block is written out; only operators of ATen are left.
        interface: how to call it.
        example: flat tensors of one call, with the carrier of the pooled grid behind them where that is open.
        sides: of the carrier, by axis, where they are open: name, least and largest side.
    """

    program: ExportedProgram
    interface: Interface
    example: tuple[torch.Tensor, ...]
    sides: Mapping[int, tuple[str, int, int]]


def exported(
    sparse: SparseModel,
    *,
    example_inputs: Any = None,
    grids: Sequence[Grid] | None = None,
    pooled: Grid | None = None,
    batch: int | tuple[int, int] | None = None,
    real: bool = False,
    change: Callable[[fx.GraphModule, Sequence[torch.Tensor]], fx.GraphModule] | None = None,
) -> Exported:
    """Export a sparse model for inference at the resolution, and with the texts' lengths, of one call.

    Args:
        sparse: captured, in evaluation mode.
        example_inputs: a call to export for; the one the model was captured with if not given.
        grids: pooled grids to compile for; those of the density if not given.
        pooled: the one of them to write into the program; without it the pooled grid stays open, and comes in as the sizes
            of one more input, a bool tensor ``pooled_grid``.
        batch: a batch size, or a least and a largest one; 2 to 64 where the capture leaves it open, if not given.
        real: write complex numbers as pairs of real ones.
        change: a last change of the flat graph, which is given the example.

    Raises:
        LoweringError: the model cannot be exported, or an option does not fit it.
    """
    stage, inputs = stage_for(sparse, example_inputs)
    program = stage.program
    axes = _batch_axes(program)
    _check_sizes(stage, inputs, axes)
    interface = _interface(program, axes, inputs, grids if pooled is None else [pooled], pooled is None, batch)
    example = [x.contiguous() for x in interface.with_batch(inputs) if isinstance(x, torch.Tensor)]
    sides = _open_sides(interface) if pooled is None else {}
    if interface.density is not None and pooled is None:
        example.append(torch.zeros(_usual(interface), dtype=torch.bool, device=example[0].device))
    module = flat_module(program, sparse, pooled)
    if real:
        module = without_complex(module)
    if change is not None:
        module = change(module, example)
    try:
        with torch.no_grad():
            traced = torch.export.export(
                module, tuple(example), dynamic_shapes=_dynamic_shapes(interface, sides, len(example)), strict=False
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoweringError(
            f"torch.export cannot trace the sparse graph: {reason} (batch={1 if not axes else interface.batch})"
        ) from error
    simplify(traced.graph)
    return Exported(traced, interface, tuple(example), sides)


def stage_for(sparse: SparseModel, example_inputs: Any = None) -> tuple[Stage, list[Leaf]]:
    """The capture for a call, and the call's flat inputs, in evaluation mode.

    Raises:
        LoweringError: the model is in training mode, or runs in place.
    """
    stage, inputs = sparse.stage_for(example_inputs)
    if stage.mode is not False:
        raise LoweringError("the model is in training mode; call .eval() on it, and give example_inputs, before lowering it.")
    refuse_in_place(stage.program)
    if wrong := [node.name for node in stage.program.placeholders if getattr(node.meta["val"], "is_complex", bool)()]:
        raise LoweringError(f"the input {wrong[0]} is complex, which compiled programs do not take: use the target 'inductor'.")
    return stage, inputs


def _check_sizes(stage: Stage, inputs: Sequence[Leaf], axes: Mapping[int, Sequence[int]]) -> None:
    """The sizes of the capture are written into the program, so that the call must have them too, but for the batch."""
    for i, (node, given, captured) in enumerate(zip(stage.program.placeholders, inputs, stage.example, strict=True)):
        sizes = [
            [s for axis, s in enumerate(x.shape) if axis not in axes.get(i, ())] if isinstance(x, torch.Tensor) else x
            for x in (given, captured)
        ]
        if sizes[0] != sizes[1]:
            raise LoweringError(
                f"example_inputs has {node.name} of sizes {sizes[0]}, and the model was captured with {sizes[1]}: call sparsify "
                f"with these example_inputs, and lower the result."
            )


def grids_for(sparse: SparseModel, example_inputs: Any = None, grids: Sequence[Grid] | None = None) -> tuple[Grid, ...]:
    """The pooled grids to compile for, finest first.

    Raises:
        LoweringError: one of ``grids`` is no grid or does not fit the tokens, or the model pools nothing.
    """
    program = stage_for(sparse, example_inputs)[0].program
    return _grids(program, grids)


def _grids(program: Program, grids: Sequence[Grid] | None) -> tuple[Grid, ...]:
    if program.density is None:
        if grids is not None:
            raise LoweringError(f"grids={grids!r}, but this policy pools no tokens.")
        return ()
    if grids is None:
        return every_grid(program.density, program.grid_hint)
    if not grids or not all(map(is_grid, grids)):
        raise LoweringError(f"grids={grids!r}; it must be a list of pooled grids such as [(8, 8), (4, 4)].")
    return tuple(sorted({fitting(tuple(grid), program.grid_hint) for grid in grids}, key=math.prod, reverse=True))


def every_grid(density: Density, dense: Grid) -> tuple[Grid, ...]:
    """Every pooled grid that a density can give, its two ends included, finest first."""
    ends = {density.grid_at(0, dense), density.grid_at(density.timesteps, dense)}
    return tuple(sorted(ends | set(density.grids(dense)), key=math.prod, reverse=True))


def _interface(
    program: Program,
    axes: Mapping[int, Sequence[int]],
    inputs: Sequence[Leaf],
    grids: Sequence[Grid] | None,
    between: bool,
    batch: int | tuple[int, int] | None,
) -> Interface:
    flat = tuple(
        _flat_input(node, x, axes.get(i, ())) for i, (node, x) in enumerate(zip(program.placeholders, inputs, strict=True))
    )
    tensor = next(x for x in inputs if isinstance(x, torch.Tensor))
    names = [node.name for node in program.placeholders]
    return Interface(
        call=program.call,
        output=program.output_spec,
        inputs=flat,
        device=tensor.device.type,
        batch=_batch_range(bool(axes), batch, next((int(inputs[i].shape[a[0]]) for i, a in axes.items()), 1)),  # type: ignore[union-attr]
        dense_grid=program.grid_hint,
        density=program.density,
        timestep=names.index(program.timestep) if program.density is not None and program.timestep is not None else None,
        grids=_grids(program, grids),
        between=between,
        positions=_positions(program, names),
    )


def _flat_input(node: fx.Node, given: Leaf, batch_axes: Sequence[int]) -> FlatInput:
    if not isinstance(given, torch.Tensor):
        return FlatInput(node.name, (), None, int(given))
    shape = tuple(BATCH if axis in batch_axes else int(size) for axis, size in enumerate(given.shape))
    return FlatInput(node.name, shape, given.dtype)


def _batch_range(is_open: bool, batch: int | tuple[int, int] | None, captured: int) -> tuple[int, int]:
    if not is_open:
        least, most = (1, 1) if batch is None else _pair(batch)
        if (least, most) != (1, 1):
            raise LoweringError(
                f"batch={batch!r}, but the model was captured at a batch of one, for which tracing may take other paths; give "
                f"example_inputs with a batch of at least two."
            )
        return 1, 1
    least, most = (2, LARGEST_BATCH) if batch is None else _pair(batch)
    if not 2 <= least <= most:
        raise LoweringError(
            f"batch={batch!r}; it must be a number of at least 2, or a least and a largest one such as (2, 16). For a batch of "
            f"one give example_inputs of one."
        )
    return least, max(most, captured) if batch is None else most


def _pair(batch: int | tuple[int, int]) -> tuple[int, int]:
    pair = (batch, batch) if isinstance(batch, int) else tuple(batch)
    if len(pair) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) for size in pair):
        raise LoweringError(f"batch={batch!r}; it must be a number, or a least and a largest one such as (2, 16).")
    return pair


def _batch_axes(program: Program) -> dict[int, list[int]]:
    """By flat input, the axes that are as long as the batch: those of the size that most inputs have first."""
    env, nodes = program.shape_env, program.placeholders
    firsts = Counter(shape_of(node)[0] for node in nodes if shape_of(node) and isinstance(shape_of(node)[0], sympy.Symbol))
    if not firsts:
        return {}
    symbol = firsts.most_common(1)[0][0]
    hint = env.backed_var_to_val[symbol]

    def is_batch(axis: int, size: Any) -> bool:
        # Sizes that tracing could not tie together, such as that of a mask that is broadcast, are as long nevertheless.
        same = axis == 0 and isinstance(size, sympy.Symbol) and env.backed_var_to_val[size] == hint
        return bool(size == symbol) or same

    found = {i: [axis for axis, size in enumerate(shape_of(node)) if is_batch(axis, size)] for i, node in enumerate(nodes)}
    return {i: axes for i, axes in found.items() if axes}


def _positions(program: Program, names: Sequence[str]) -> tuple[int, GridOfPositions] | None:
    if not isinstance(program.grid_reader, GridOfPositions):
        return None  # the sizes of the inputs, which are checked, tell the grid
    (node,) = program.graph.find_nodes(op="call_module", target=GRID)
    table = node.args[1]
    if not isinstance(table, fx.Node) or table.op != "placeholder":
        raise LoweringError(f"the token grid is read from the computed table {table}; compiled programs need it as an input.")
    return names.index(table.name), program.grid_reader


def _open_sides(interface: Interface) -> dict[int, tuple[str, int, int]]:
    """The axes of the pooled grid that differ among the grids to compile for."""
    names = _SIDES[len(interface.dense_grid)]
    columns = enumerate(zip(*interface.grids, strict=True))
    return {i: (f"pooled_{names[i]}", min(sides), max(sides)) for i, sides in columns if min(sides) < max(sides)}


def _usual(interface: Interface) -> Grid:
    """A pooled grid to trace with: sides of 0 and 1 would be taken for special."""
    least = [min(sides) for sides in zip(*interface.grids, strict=True)]
    finest = interface.grids[0]
    return tuple(max(small, min(side, max(2, side - 1))) for small, side in zip(least, finest, strict=True))


def _dynamic_shapes(interface: Interface, sides: Mapping[int, tuple[str, int, int]], count: int) -> Any:
    batch = Dim(BATCH, min=interface.batch[0], max=interface.batch[1]) if interface.has_open_batch else None
    tensors = [i for i in interface.inputs if i.dtype is not None]
    shapes: list[dict[int, Any]] = [
        {axis: batch for axis, size in enumerate(i.shape) if size == BATCH} if batch is not None else {} for i in tensors
    ]
    if count > len(tensors):
        shapes.append({axis: Dim(name, min=least, max=most) for axis, (name, least, most) in sides.items()})
    return tuple(shapes)
