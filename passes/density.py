"""The density node: it reads the timestep at the graph's entry and yields the pooled grid (paper, timestep-wise density)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..density import Density
from ..program import DENSITY, GRID, Program
from ..shapes import emit_size, new_size, symbolic
from .base import Pass

_AXES = {1: ("length",), 2: ("height", "width"), 3: ("time", "height", "width")}


@dataclass(frozen=True)
class InsertDensity(Pass):
    """Put the density node at the entry, where a target can compute it on the host before anything else runs.

    The dense grid is computed there too, from the sizes of the inputs, so that other resolutions get theirs.
    """

    schedule: Density
    name: ClassVar[str] = "density"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.placeholders if node.name == program.timestep]

    def check(self, program: Program, place: fx.Node) -> str | None:
        if program.density_node is not None:
            return "the program has a density node already"
        return None

    def rewrite(self, program: Program, place: fx.Node) -> None:
        graph = program.graph
        grid_nodes = [user for node in graph.find_nodes(op="call_module", target=GRID) for user in node.users]
        with graph.inserting_after(max([program.placeholders[-1], *grid_nodes])):
            end_of_inputs = graph.call_function(operator.pos)  # holds the place, so that nodes keep their order
        with graph.inserting_before(end_of_inputs):
            grid = [emit_size(graph, side) for side in program.grid]
            density = self.mark(graph.create_node("call_module", DENSITY, (place, *grid), name="density"), place)
            axes = _AXES[len(grid)]
            hint = max(2, min(self.schedule.grid_at(0, program.grid_hint)))
            sides: list[int | torch.SymInt] = [new_size(program.shape_env, f"pooled{i}", hint) for i in range(len(grid))]
            if self.schedule.keeps_time(program.grid_hint):  # then it is not any number, but the number of frames
                sides[0] = symbolic(program.shape_env, program.grid[0], program.grid_hint[0])
            density.meta["val"] = tuple(sides)
            for axis in range(len(grid)):
                side = graph.create_node("call_function", operator.getitem, (density, axis), name=f"pooled_{axes[axis]}")
                side.meta["val"] = density.meta["val"][axis]
                self.mark(side, density)
        graph.erase_node(end_of_inputs)
        program.density = self.schedule
