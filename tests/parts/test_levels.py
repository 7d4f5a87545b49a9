"""Conversions of dense values of an outer graph to the sparse level and back."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
from torch import fx

from sparsify.layout import TokenAxis
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.program import Twin
from sparsify.shapes import shape_of, size_of
from sparsify.side_inputs import Pooling

from .sketch import aten
from .two_levels import TEXT, Model, moved


@pytest.fixture
def model() -> Model:
    return Model(6, 8)


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
