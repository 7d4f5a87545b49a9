"""Blocks and operators that become sparse, the way around them, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sparsify.errors import RewriteError
from sparsify.layers import restore_layer
from sparsify.layout import TokenAxis
from sparsify.ops import pool_tokens
from sparsify.program import DENSITY
from sparsify.shapes import shape_of, size_of

from .running import run_program
from .sketch import aten
from .two_levels import TEXT, Model, moved


@pytest.fixture
def model() -> Model:
    return Model(6, 8)


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
    image = torch.rand(2, 4, 6, 8)
    got = run_program(model.program, image, torch.zeros(2), torch.rand(2, TEXT, 4), **{DENSITY: (3, 4)})
    sparse = nn.functional.avg_pool2d(image, 2)
    table = nn.functional.avg_pool2d(image.mean(0, keepdim=True), 2)
    want = nn.functional.interpolate((sparse + table) * 2 + table, scale_factor=2).flatten(2).transpose(1, 2)
    assert torch.allclose(got, want, atol=1e-6)
