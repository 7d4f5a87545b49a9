"""Dense and sparse values of one outer graph: conversions, blocks and operators that become sparse, and the way back."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from sparsify import Density
from sparsify.errors import RewriteError
from sparsify.layers import restore_layer
from sparsify.layout import TokenAxis
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.passes import InsertDensity, Levels
from sparsify.passes.base import copy_program
from sparsify.program import DENSITY, Program, Twin
from sparsify.shapes import shape_of, size_of
from sparsify.side_inputs import Pooling

from .sketch import Sketch, aten

TEXT = 5
POOLED = {2: (3, 4), 3: (2, 3, 4)}


@functools.cache
def built(sizes: tuple[int, ...], fixed: bool, text: str, **density: Any) -> tuple[Sketch, Program, dict[str, str]]:
    """The program of a :class:`Model` and the names of its nodes; copies of it share what is known of its sizes."""
    sketch = Sketch()
    sides = list(sizes) if fixed else [sketch.size(side) for axis, side in enumerate(sizes)]
    image = sketch.input("image", 2, 4, *sides)
    sketch.input("t", 2)
    other = sketch.input("text", 2, TEXT, 4)
    tokens = sketch(aten.transpose.int, sketch(aten.flatten.using_ints, image, 2, -1), 1, 2)
    if text:
        tokens = sketch(aten.cat.default, [other, tokens] if text == "before" else [tokens, other], 1)
    table = sketch(aten.mean.dim, tokens, [0])
    mask = sketch(aten.matmul.default, table, sketch(aten.transpose.int, table, 0, 1))
    first = sketch.block("blocks.0", "block0", tokens, table)
    between = sketch(aten.mul.Tensor, first, 2.0)
    second = sketch.block("blocks.1", "block0", between, table)
    sketch.output(second)
    body = Sketch(sketch)
    rows = body.size(7)
    body.output(body(aten.add.Tensor, body.input("x", 2, rows, 4), body.input("table", rows, 4)))
    program = sketch.program(body.body(moving=[rows]), grid=tuple(map(size_of, sides)), timestep="t")
    InsertDensity(Density.constant(**density)).run(program)
    nodes = {"image": image, "text": other, "tokens": tokens, "table": table, "mask": mask}
    nodes |= {"first": first, "between": between, "second": second}
    return sketch, program, {key: node.name for key, node in nodes.items()}


class Model:
    """An image's tokens (2, h * w, 4) through two blocks with an operator in between; the grid in symbols or numbers."""

    image: fx.Node
    text: fx.Node
    tokens: fx.Node
    table: fx.Node
    mask: fx.Node
    first: fx.Node
    between: fx.Node
    second: fx.Node

    def __init__(self, *grid: int, fixed: bool = False, text: str = "", **density: Any) -> None:
        base, program, names = built(grid, fixed, text, **(density or {"grid": POOLED[len(grid)]}))
        self.program = copy_program(program)
        self.sketch = Sketch(base)
        self.sketch.graph = self.program.graph
        nodes = {node.name: node for node in self.program.graph.nodes}
        vars(self).update({key: nodes[name] for key, name in names.items()})
        self.marked: list[tuple[fx.Node, fx.Node]] = []
        self.levels = Levels(self.program, self._mark)

    def _mark(self, node: fx.Node, origin: fx.Node) -> fx.Node:
        self.marked.append((node, origin))
        return node

    def at(self, node: fx.Node) -> Any:
        return self.program.graph.inserting_before(node)

    @property
    def ends(self) -> tuple[list[Any], list[Any]]:
        """The dense and the pooled sides, as nodes."""
        return self.program.grid_nodes, list(self.program.pooled_nodes)

    def pooled(self, count: int = 0) -> Any:
        """How many sparse tokens there are, with as many other rows."""
        pooled = [size_of(node.meta["val"]) for node in self.program.pooled_nodes]
        return count + math.prod(pooled)


@pytest.fixture
def model() -> Model:
    return Model(6, 8)


def moved(model: Model) -> fx.Node:
    """The first block, sparse."""
    with model.at(model.first):
        args = [model.levels.at_sparse(argument) for argument in model.first.args]
    model.levels.move_block(model.first, args)
    return model.first


# --- to the sparse level ------------------------------------------------------------------------------------------------


def test_tokens_are_pooled_once(model: Model) -> None:
    with model.at(model.first):
        pooled = model.levels.at_sparse(model.tokens)
        assert model.levels.at_sparse(model.tokens) is pooled
    grid, sides = model.ends
    assert (pooled.target, pooled.args) == (pool_tokens, (model.tokens, grid, sides))
    assert shape_of(pooled) == (2, model.pooled(), 4)
    assert model.marked == [(pooled, model.tokens)]


def test_the_axis_of_a_table_is_said(model: Model) -> None:
    with model.at(model.first):
        pooled = model.levels.at_sparse(model.table)
    assert pooled.args[3:] == (0,)
    assert shape_of(pooled) == (model.pooled(), 4)


@pytest.mark.parametrize(("text", "rows"), [("before", (1, TEXT)), ("after", (1, 0, TEXT))])
def test_rows_beside_the_tokens_are_handed_on(text: str, rows: tuple[int, ...]) -> None:
    model = Model(6, 8, text=text)
    with model.at(model.first):
        pooled = model.levels.at_sparse(model.tokens)
    assert pooled.args[3:] == rows
    assert shape_of(pooled) == (2, model.pooled(TEXT), 4)
    restored = model.levels.restore(pooled, model.levels.layouts.of(model.tokens))
    assert restored.args[3:] == rows
    assert shape_of(restored) == shape_of(model.tokens)


def test_a_mask_is_pooled_along_both_axes_or_those_that_are_asked_for(model: Model) -> None:
    with model.at(model.first):
        both = model.levels.at_sparse(model.mask)
        columns = model.levels.at_sparse(model.mask, (), (1,))
        rows = model.levels.at_sparse(model.mask, (), (0,))
        none = model.levels.at_sparse(model.mask, (), (2,))
    assert shape_of(both) == (model.pooled(), model.pooled())
    assert (both.args[3:], both.args[0].args[3:]) == ((), (0,))
    dense = shape_of(model.mask)[0]
    assert shape_of(columns) == (dense, model.pooled())
    assert shape_of(rows) == (model.pooled(), dense)
    assert none is model.mask


def test_what_does_not_follow_the_tokens_is_the_same_at_both_levels(model: Model) -> None:
    levels, timestep = model.levels, model.program.placeholders[1]
    size = model.sketch.graph.call_function(aten.sym_size.int, (model.text, 1))
    size.meta["val"] = TEXT
    for value in (3, None, "text", timestep, model.text, size, moved(model)):
        assert levels.at_sparse(value) is value
    for value in (3, None, model.tokens, timestep):
        assert levels.at_dense(value) is value
        assert levels.bypass(value) is value


def test_sizes_are_pooled_too(model: Model) -> None:
    with model.at(model.first):
        rows = model.sketch(aten.sym_size.int, model.tokens, 1)
        twice = model.sketch(operator.mul, rows, 2)
        batch = model.sketch.size(3)
        other = model.sketch(aten.sym_size.int, model.sketch(aten.expand.default, model.text, [2, TEXT, 4]), 1)
        other.meta["val"] = batch
        pooled, pooled_twice = model.levels.at_sparse(rows), model.levels.at_sparse(twice)
        assert model.levels.at_sparse(other) is other
    assert size_of(pooled.meta["val"]) == model.pooled()
    assert size_of(pooled_twice.meta["val"]) == 2 * model.pooled()


def test_pooling_takes_back_a_restore(model: Model) -> None:
    first = moved(model)
    with model.at(model.between):
        dense = model.levels.at_dense(first)
        assert model.levels.at_dense(first) is dense
        assert model.levels.at_sparse(dense) is first
    grid, sides = model.ends
    assert (dense.target, dense.args) == (restore_tokens, (first, sides, grid))
    assert shape_of(dense) == shape_of(model.tokens)
    assert model.marked[-1] == (dense, first)


def values(method: Pooling) -> Any:
    return SimpleNamespace(pooling=lambda node, siblings: method)


def test_the_way_of_pooling_is_said_where_it_is_no_mean(model: Model) -> None:
    model.program.values = values(Pooling("max"))
    with model.at(model.first):
        assert model.levels.at_sparse(model.tokens).args[3:] == (1, 0, 0, "max")


def test_without_anything_special_the_example_changes_nothing(model: Model) -> None:
    model.program.values = values(Pooling())
    with model.at(model.first):
        assert model.levels.at_sparse(model.tokens).args[3:] == ()


def test_rotations_are_scaled_back(model: Model) -> None:
    model.program.values = values(Pooling("centre", "pair"))
    with model.at(model.first):
        scaled = model.levels.at_sparse(model.table)
    assert (scaled.target, scaled.args[1:]) == (as_rotation, ("pair",))
    assert scaled.args[0].args[3:] == (0, 0, 0, "centre")


def test_a_cosine_is_scaled_back_with_its_sine(model: Model) -> None:
    with model.at(model.first):
        sine = model.sketch(aten.sin.default, model.table)
        asked: list[Any] = []

        def pooling(node: fx.Node, siblings: Any) -> Pooling:
            asked.append((node, siblings))
            return Pooling("centre", "partner", sine)

        model.program.values = SimpleNamespace(pooling=pooling)  # type: ignore[assignment]
        scaled = model.levels.at_sparse(model.table, [sine])
    assert asked == [(model.table, [sine])]
    cosine, form, partner = scaled.args
    assert (scaled.target, form) == (as_rotation, "partner")
    grid, sides = model.ends
    assert cosine.args == (model.table, grid, sides, 0, 0, 0, "centre")
    assert partner.args == (sine, grid, sides, 0, 0, 0, "centre")
    assert shape_of(scaled) == (model.pooled(), 4)


@pytest.mark.parametrize("pools_time", [False, True])
def test_frames_that_are_kept_are_not_pooled(pools_time: bool) -> None:
    model = Model(4, 6, 8, rate=0.75, pools_time=pools_time)
    with model.at(model.first):
        per_frame = model.sketch(aten.mean.dim, model.image, [3, 4])  # (2, 4, frames)
        per_row = model.sketch(aten.mean.dim, model.image, [2, 4])  # (2, 4, rows)
        pooled = model.levels.at_sparse(per_frame)
        assert model.levels.at_sparse(per_row) is not per_row
        assert shape_of(model.levels.at_sparse(model.tokens)) == (2, model.pooled(), 4)
    assert (pooled is per_frame) is not pools_time
    restored = model.levels.restore(per_frame, [TokenAxis(2, (0,))])
    assert (restored is per_frame) is not pools_time


def test_keys_of_dense_queries(model: Model) -> None:
    split = model.program.bodies["block0"]
    split.twins = (Twin(0, "key"), Twin(2, "cross"), Twin(1, "key"))
    with model.at(model.first):
        tokens, mask, table = model.levels.keys_at_sparse(split, [model.tokens, model.table, model.mask])
    dense = shape_of(model.mask)[0]
    assert shape_of(tokens) == (2, model.pooled(), 4)
    assert shape_of(mask) == (dense, model.pooled())
    assert shape_of(table) == (model.pooled(), 4)


def test_only_tensors_are_siblings_of_keys(model: Model) -> None:
    asked: list[Any] = []
    model.program.values = SimpleNamespace(pooling=lambda node, siblings: asked.append(list(siblings)) or Pooling())
    split = model.program.bodies["block0"]
    split.twins = (Twin(0, "key"),)
    with model.at(model.first):
        size = model.sketch(aten.sym_size.int, model.tokens, 1)
        model.levels.keys_at_sparse(split, [model.tokens, size, model.table, 3])
    assert asked == [[model.tokens, model.table]]


# --- nodes that become sparse -------------------------------------------------------------------------------------------


def test_a_block_becomes_sparse_and_knows_where_its_tokens_were(model: Model) -> None:
    first = moved(model)
    assert shape_of(first) == (2, model.pooled(), 4)
    assert [argument.target for argument in first.args] == [pool_tokens, pool_tokens]
    layout = model.levels.layouts.of(model.tokens)
    assert layout == (TokenAxis(1, (0, 1)),)
    assert model.levels.sparse == {first: layout}
    assert model.levels.layout(first) == model.levels.layout(model.tokens) == layout
    assert model.levels.layout(3) == ()
    assert model.levels.arguments_of(first) == (model.tokens, model.table)
    assert model.levels.arguments_of(model.second) == model.second.args


def test_of_several_results_those_that_hold_tokens_become_sparse() -> None:
    model = Model(6, 8)
    body = model.program.bodies["block0"]
    body.updates = [0, 1]
    graph = model.program.graph
    model.first.meta["val"] = (model.tokens.meta["val"], model.text.meta["val"])
    model.first.args = (model.tokens, model.text)
    with graph.inserting_before(model.between):
        tokens, text = model.sketch.items(model.first, 0, 1)
    model.between.args = (tokens, 2.0)
    with model.at(model.first):
        args = [model.levels.at_sparse(argument) for argument in model.first.args]
    model.levels.move_block(model.first, args)
    assert list(model.levels.sparse) == [tokens]
    assert shape_of(tokens) == (2, model.pooled(), 4)
    assert shape_of(text) == (2, TEXT, 4)
    assert model.levels.bypass(tokens) is model.tokens
    model.levels.undo()
    assert shape_of(tokens) == shape_of(model.tokens)


def test_an_operator_works_on_sparse_values(model: Model) -> None:
    first = moved(model)
    dense = shape_of(model.between)
    model.levels.move_operator(model.between)
    assert model.between.args == (first, 2.0)
    assert shape_of(model.between) == (2, model.pooled(), 4)
    assert model.levels.sparse[model.between] == (TokenAxis(1, (0, 1)),)
    with model.at(model.second):
        assert shape_of(model.levels.at_dense(model.between)) == dense


def test_the_other_operands_of_a_sparse_operator_are_pooled(model: Model) -> None:
    first = moved(model)
    with model.at(model.between):
        node = model.sketch.graph.call_function(aten.add.Tensor, (first, model.table), {"alpha": 2})
        node.meta["val"] = model.tokens.meta["val"]
    with model.at(node):
        model.levels.move_operator(node)
    assert node.args[1].target is pool_tokens
    assert node.kwargs == {"alpha": 2}
    assert shape_of(node) == (2, model.pooled(), 4)


def test_shapes_in_numbers_become_sparse_too() -> None:
    model = Model(6, 8, fixed=True)
    with model.at(model.between):
        heads = model.sketch(aten.reshape.default, model.first, [2, 48, 2, 2])
    moved(model)
    with model.at(heads):
        model.levels.move_operator(heads)
    assert shape_of(heads) == (2, model.pooled(), 2, 2)
    assert model.levels.sparse[heads] == (TokenAxis(1, (0, 1)),)


def test_a_dense_size_stays_dense(model: Model) -> None:
    with model.at(model.between):
        rows = model.sketch(aten.sym_size.int, model.first, 1)
    moved(model)
    model.levels.move_operator(rows)
    assert rows.args == (model.tokens, 1)
    assert rows not in model.levels.sparse


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
def test_an_operator_that_takes_dense_tokens_alone_is_refused(error: type[Exception]) -> None:
    def picky(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1].node.hint != 48:  # type: ignore[attr-defined]
            raise error("dense alone\nmore")
        return tokens * 1

    refused(picky, "does not take sparse tokens: dense alone$")


def test_an_operator_that_makes_something_else_of_sparse_tokens_is_refused() -> None:
    def growing(tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.shape[1]
        return tokens.new_empty([2, rows if rows.node.hint == 48 else 2 * rows, 4])  # type: ignore[attr-defined]

    refused(growing, "of sparse tokens, not")


def refused(function: Callable[..., Any], words: str) -> None:
    model = Model(6, 8)
    with model.at(model.between):
        node = model.sketch(function, model.first)
    moved(model)
    with pytest.raises(RewriteError, match=words):
        model.levels.move_operator(node)
    assert node not in model.levels.sparse


# --- around and back ----------------------------------------------------------------------------------------------------


def test_around_the_module_its_operators_are_made_again(model: Model) -> None:
    with model.at(model.second):
        twice = model.sketch(aten.add.Tensor, model.between, model.between, alpha=3)
    first = moved(model)
    model.levels.move_operator(model.between)
    model.levels.move_operator(twice)
    with model.at(model.second):
        assert model.levels.bypass(first) is model.tokens
        around = model.levels.bypass(twice)
        assert model.levels.bypass(twice) is around
    (scaled, also), alpha = around.args, around.kwargs
    assert scaled is also
    assert (scaled.target, scaled.args) == (aten.mul.Tensor, (model.tokens, 2.0))
    assert alpha == {"alpha": 3}
    assert shape_of(around) == shape_of(model.tokens)


def test_everything_can_be_undone(model: Model) -> None:
    graph = model.program.graph
    before, shapes = str(graph), {node.name: shape_of(node) for node in graph.nodes}
    first = moved(model)
    model.levels.move_operator(model.between)
    with model.at(model.second):
        layer = restore_layer(0, 4, torch.float32, torch.device("cpu"))
        parameter = model.levels.parameter(layer, "sparse.weight")
        size = model.levels.size(3 * model.program.grid[0])
        dense = model.levels.at_dense(model.between)
        around = model.levels.bypass(model.between)
    assert (parameter.target, shape_of(parameter)) == ("sparsify_restore.0.sparse.weight", (4, 4))
    assert size_of(size.meta["val"]) == 3 * model.program.grid[0]
    model.levels.change(model.second, [dense, around])
    assert model.second.args == (dense, around)
    assert str(graph) != before
    model.levels.undo()
    assert str(graph) == before
    assert {node.name: shape_of(node) for node in graph.nodes} == shapes
    assert first.args == (model.tokens, model.table)
    graph.lint()


def test_a_change_keeps_the_first_arguments(model: Model) -> None:
    levels = model.levels
    levels.change(model.second, [model.tokens, model.table])
    levels.change(model.second, (model.first, model.table))
    assert model.second.args == (model.first, model.table)
    assert levels.arguments_of(model.second) == (model.between, model.table)
    levels.undo()
    assert model.second.args == (model.between, model.table)


def test_changing_a_block_changes_nothing_but_it_and_its_results(model: Model) -> None:
    model.levels.change(model.first, [model.tokens, model.table])
    assert set(model.levels._original) == {model.first, model.between}
    model.levels.change(model.between, [model.first, 3.0])
    assert set(model.levels._original) == {model.first, model.between}
    model.levels.change(model.table, model.table.args)
    assert model.mask not in model.levels._original


def test_numbers_need_no_nodes(model: Model) -> None:
    before = len(model.program.graph.nodes)
    assert model.levels.size(3) == 3
    assert len(model.program.graph.nodes) == before


def test_dense_and_sparse_values_are_those_of_eager_torch(model: Model) -> None:
    first = moved(model)
    model.levels.move_operator(model.between)
    with model.at(model.second):
        args = [model.levels.at_sparse(argument) for argument in model.second.args]
    assert args[1] is first.args[1]  # the table is pooled once
    model.levels.move_block(model.second, args)
    output = model.program.graph.output_node()
    with model.at(output):
        output.args = (model.levels.at_dense(model.second),)
    model.program.graph.lint()

    class Block(nn.Module):
        def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return x + table

    class Sides(nn.Module):
        def forward(self, *others: Any) -> tuple[int, int]:
            return 3, 4

    root = nn.Module()
    root.blocks = nn.ModuleList([Block(), Block()])
    root.add_module(DENSITY, Sides())
    image = torch.rand(2, 4, 6, 8)
    got = fx.Interpreter(root, graph=model.program.graph).run(image, torch.zeros(2), torch.rand(2, TEXT, 4))
    sparse = nn.functional.avg_pool2d(image, 2)
    table = nn.functional.avg_pool2d(image.mean(0, keepdim=True), 2)
    want = nn.functional.interpolate((sparse + table) * 2 + table, scale_factor=2).flatten(2).transpose(1, 2)
    assert torch.allclose(got, want, atol=1e-6)
