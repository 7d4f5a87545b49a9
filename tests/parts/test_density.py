"""Where the density node goes, what it reads and what it yields."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import fx

from sparsify import Density
from sparsify.passes import InsertDensity
from sparsify.program import DENSITY, GRID, Program
from sparsify.shapes import size_of

from .sketch import Sketch, aten

NAMES = {1: ["length"], 2: ["height", "width"], 3: ["time", "height", "width"]}


def model(*grid: int) -> tuple[Sketch, Program, list[Any]]:
    """A program with the timestep between other inputs, whose grid is as large as an input, and the sides of that."""
    sketch = Sketch()
    sides = sketch.sizes(*grid)
    x, _, y = sketch.input("x", 2, *sides), sketch.input("t", 2), sketch.input("y", 2)
    sketch.input("last", 2)
    sketch.output(sketch(aten.exp.default, x), sketch(aten.exp.default, y))
    return sketch, sketch.program(grid=tuple(map(size_of, sides)), timestep="t"), sides


def insert(schedule: Density, *grid: int) -> tuple[Program, fx.Node, list[fx.Node]]:
    """The program, its density node and the pooled sides."""
    _, program, _ = model(*grid)
    assert InsertDensity(schedule).run(program) == 1
    assert program.density_node is not None
    return program, program.density_node, program.pooled_nodes


@pytest.mark.parametrize("grid", [(8,), (6, 8), (4, 6, 8)])
def test_it_stands_behind_all_inputs_and_in_front_of_everything_else(grid: tuple[int, ...]) -> None:
    program, density, _ = insert(Density.constant(rate=0.5), *grid)
    program.graph.lint()
    names = [node.name for node in program.graph.nodes]
    sizes = [f"sym_size_int{'' if axis == 0 else f'_{axis}'}" for axis in range(len(grid))]
    pooled = [f"pooled_{name}" for name in NAMES[len(grid)]]
    assert names == ["x", "t", "y", "last", *sizes, "density", *pooled, "exp_default", "exp_default_1", "output"]
    assert density.target == DENSITY
    assert [str(argument) for argument in density.args] == ["t", *sizes]
    assert [node.args for node in program.graph.nodes if node.name in sizes] == [
        (program.placeholders[0], axis + 1) for axis in range(len(grid))
    ]
    assert program.pooled_nodes == [node for node in program.graph.nodes if node.name in pooled]
    assert [node.args for node in program.pooled_nodes] == [(density, axis) for axis in range(len(grid))]


def test_each_node_says_where_it_came_from() -> None:
    _, density, pooled = insert(Density.constant(rate=0.5), 6, 8)
    assert density.meta["provenance"] == ("density", "t")
    assert [node.meta["provenance"] for node in pooled] == [("density", "density")] * 2


def test_the_program_has_the_schedule() -> None:
    schedule = Density.paper(0.25, 0.75)
    assert insert(schedule, 6, 8)[0].density == schedule


def test_pooled_sides_are_sizes_of_their_own() -> None:
    program, density, pooled = insert(Density.constant(rate=0.5), 6, 8)
    assert [node.meta["val"] for node in pooled] == list(density.meta["val"])
    symbols = [size_of(node.meta["val"]) for node in pooled]
    assert all(symbol.is_symbol for symbol in symbols)
    assert len({*symbols, *program.grid}) == 4


@pytest.mark.parametrize(
    ("schedule", "hint"),
    [
        (Density.constant(grid=(4, 5)), 4),
        (Density.constant(grid=(6, 3)), 3),
        (Density.constant(grid=(2, 5)), 2),
        (Density.constant(grid=(1, 5)), 2),  # a size of one would be taken for special
        (Density.table({0: (5, 5), 1: (3, 3)}), 5),  # at timestep 0
    ],
)
def test_the_example_sizes_are_the_smallest_side_at_timestep_0(schedule: Density, hint: int) -> None:
    program, _, pooled = insert(schedule, 6, 8)
    assert [program.hint(size_of(node.meta["val"])) for node in pooled] == [hint, hint]


def test_where_time_is_not_pooled_all_frames_are_kept() -> None:
    program, _, pooled = insert(Density.constant(rate=0.75), 4, 6, 8)
    assert size_of(pooled[0].meta["val"]) == program.grid[0]
    assert pooled[0].meta["val"].node.hint == 4
    assert len({size_of(node.meta["val"]) for node in pooled[1:]} - set(program.grid)) == 2


@pytest.mark.parametrize("schedule", [Density.constant(rate=0.75, pools_time=True), Density.constant(grid=(2, 3, 4))])
def test_where_time_is_pooled_its_side_is_any_number(schedule: Density) -> None:
    program, _, pooled = insert(schedule, 4, 6, 8)
    assert size_of(pooled[0].meta["val"]) not in program.grid


def test_a_grid_that_is_read_at_run_time_comes_first() -> None:
    sketch = Sketch()
    sides = [sketch.size(6), sketch.size(8)]
    x, _ = sketch.input("x", 2, 48), sketch.input("t", 2)
    reader = sketch.graph.call_module(GRID, (x,))
    reader.meta["val"] = tuple(sides)
    rows, columns = sketch.items(reader, 0, 1)
    sketch.output(sketch(aten.exp.default, x))
    program = sketch.program(grid=tuple(map(size_of, sides)), timestep="t")
    InsertDensity(Density.constant(grid=(3, 3))).run(program)
    program.graph.lint()
    assert program.density_node is not None
    assert program.density_node.args[1:] == (rows, columns)
    assert [node.name for node in program.graph.nodes][2:6] == [reader.name, rows.name, columns.name, "density"]


def test_a_side_that_is_a_number_stays_a_number() -> None:
    _, program, _ = model(6, 8)
    program.grid = (6, 8)
    InsertDensity(Density.constant(grid=(3, 3))).run(program)
    assert program.grid_nodes == [6, 8]


def test_a_program_has_one_density_node() -> None:
    _, program, _ = model(6, 8)
    rewrite = InsertDensity(Density.constant(grid=(3, 3)))
    assert rewrite.check(program, program.placeholders[1]) is None
    assert (rewrite.run(program), rewrite.run(program)) == (1, 0)
    assert [skip.reason for skip in program.skips] == ["the program has a density node already"]
    assert len(program.graph.find_nodes(op="call_module", target=DENSITY)) == 1


def test_a_program_without_a_timestep_gets_none() -> None:
    _, program, _ = model(6, 8)
    program.timestep = None
    assert InsertDensity(Density.constant(grid=(3, 3))).run(program) == 0


def test_it_prepares_and_is_equal_by_its_schedule() -> None:
    assert InsertDensity.prepares is True
    rewrite = InsertDensity(Density.constant(grid=(3, 3)))
    assert rewrite == InsertDensity(Density.constant(grid=(3, 3))) != InsertDensity(Density.constant(grid=(3, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        rewrite.schedule = Density.constant(grid=(3, 4))  # type: ignore[misc]
