"""Which values of a block do not need its tokens, and which of them the rest needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes.hoist import (
    behind,
    depending_on,
    frontier,
    given_everywhere,
    is_size,
    is_tensor,
)

from .hoisting import Block
from .sketch import Sketch, aten

# --- what depends on what -----------------------------------------------------------------------------------------------


def test_inputs_that_are_no_tokens_come_with_what_every_call_gives() -> None:
    block = Block(keys=True)
    program = block.program()
    first, second = program.block_nodes
    found = given_everywhere(program, program.bodies["block0"])
    assert found == {block.t: (first.args[1], second.args[1]), block.text: (first.args[2], second.args[2])}


def test_a_body_that_nothing_calls_is_given_nothing() -> None:
    program = Block().program()
    program.bodies["other"] = Block().sketch.body("other")
    assert given_everywhere(program, program.bodies["other"]) == {}


def test_what_is_computed_from_the_starts_alone() -> None:
    block = Block()
    found = depending_on(block.sketch.graph, [block.t, block.text])
    t, text = frozenset([block.t]), frozenset([block.text])
    expected = {block.t: t, block.linear: t, block.shifted: t, block.row: t}
    expected |= {block.text: text, block.flat: text, block.sum: text, block.both: t | text}
    assert {node: found[node] for node in expected} == expected
    assert found[block.weight] == found[block.table] == frozenset()
    for node in (block.x, block.count, block.spread, block.added, block.result, block.length, block.width):
        assert node not in found


def test_with_one_start_the_others_are_unknown() -> None:
    block = Block()
    found = depending_on(block.sketch.graph, [block.t])
    assert {block.linear, block.shifted, block.row} <= set(found)
    assert found.keys().isdisjoint({block.text, block.flat, block.sum, block.both})


def test_parameters_that_are_not_admitted_end_it() -> None:
    block = Block()
    found = depending_on(block.sketch.graph, [block.t, block.text], lambda node: node.target != "table")
    assert block.weight in found
    assert block.linear in found
    assert found.keys().isdisjoint({block.table, block.shifted, block.row, block.both})


def test_constants_depend_on_no_start() -> None:
    sketch = Sketch()
    sketch.input("x", 2)
    ones = sketch(aten.full.default, [2], 1.0)
    assert depending_on(sketch.graph, []) == {ones: frozenset()}


@pytest.mark.parametrize(
    ("target", "args", "known"),
    [
        (aten.dropout.default, (0.5, True), False),
        (aten.dropout.default, (0.5, False), True),
        (aten.rand_like.default, (), False),
        (aten.chunk.default, (2, -1), True),
        (aten.sym_size.int, (0,), False),
    ],
)
def test_random_values_and_sizes_are_not_among_them(target: Any, args: tuple[Any, ...], known: bool) -> None:
    sketch = Sketch()
    t = sketch.input("t", sketch.size(5), 8)
    node = sketch(target, t, *args)
    assert (node in depending_on(sketch.graph, [t])) is known


def test_regions_stay_where_they_are() -> None:
    sketch = Sketch()
    t = sketch.input("t", 2, 8)
    region = sketch.graph.call_function(torch.ops.higher_order.cond, (t,))
    region.meta["val"] = sketch.fake(2, 8)
    assert region not in depending_on(sketch.graph, [t])


@pytest.mark.parametrize(
    ("value", "size", "tensor"),
    [
        (3, True, False),
        (None, False, False),
        (torch.zeros(2), False, True),
        ((torch.zeros(2), torch.zeros(2)), False, True),
        ([torch.zeros(2)], False, True),
        ((torch.zeros(2), 3), False, False),
        (0.5, False, False),
    ],
)
def test_sizes_and_tensors(value: Any, size: bool, tensor: bool) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["val"] = value
    assert (is_size(node), is_tensor(node)) == (size, tensor)


def test_a_symbolic_size_is_a_size_and_a_node_without_a_value_is_neither() -> None:
    block = Block()
    assert is_size(block.length)
    assert not is_tensor(block.length)
    node = fx.Graph().placeholder("x")
    assert not is_size(node)
    assert not is_tensor(node)


# --- what the rest needs ------------------------------------------------------------------------------------------------


def test_the_rest_needs_values_and_makes_views_itself() -> None:
    block = Block()
    inside = depending_on(block.sketch.graph, [block.t, block.text])
    assert frontier(block.sketch.graph, inside) == [block.shifted, block.both]  # row is a view of shifted
    assert frontier(block.sketch.graph, inside, {block.both}) == [block.both]
    assert frontier(block.sketch.graph, inside, set()) == []
    assert frontier(block.sketch.graph, depending_on(block.sketch.graph, [block.text])) == [block.sum]


def test_results_are_needed_but_inputs_and_parameters_are_not() -> None:
    sketch = Sketch()
    x, t = sketch.input("x", 2, 4), sketch.input("t", 2, 4)
    weight = sketch.attribute("weight", 2, 4)
    view = sketch(aten.transpose.int, t, 0, 1)
    early = sketch(aten.exp.default, t)
    scaled = sketch(aten.exp.default, weight)
    rest = sketch(aten.add.Tensor, sketch(aten.add.Tensor, x, t), sketch(aten.mul.Tensor, x, scaled))
    sketch.output(rest, early, view)
    inside = depending_on(sketch.graph, [t])
    assert scaled in inside
    assert frontier(sketch.graph, inside) == [early]


def test_several_results_are_taken_from_what_was_split() -> None:
    sketch = Sketch()
    x, t = sketch.input("x", 2, 4), sketch.input("t", 2, 8)
    exp = sketch(aten.exp.default, t)
    shift, scale = sketch.items(sketch(aten.chunk.default, exp, 2, -1), 0, 1)
    sketch.output(sketch(aten.add.Tensor, sketch(aten.mul.Tensor, x, scale), shift))
    assert frontier(sketch.graph, depending_on(sketch.graph, [t])) == [exp]


def test_what_yields_several_new_tensors_is_left() -> None:
    sketch = Sketch()
    x, t = sketch.input("x", 2, 4), sketch.input("t", 2, 4)
    highest = sketch(aten.max.dim, t, 1, True)
    (value,) = sketch.items(highest, 0)
    sketch.output(sketch(aten.add.Tensor, x, value))
    assert frontier(sketch.graph, depending_on(sketch.graph, [t])) == []


def test_what_values_are_computed_from_comes_in_order_without_inputs() -> None:
    block = Block()
    inside = depending_on(block.sketch.graph, [block.t, block.text])
    assert behind([block.shifted], inside) == [block.weight, block.table, block.linear, block.shifted]
    assert behind([block.both, block.flat], inside) == [
        block.weight, block.table, block.linear, block.shifted, block.flat, block.sum, block.both,
    ]  # fmt: skip
    assert behind([], inside) == []
    assert behind([block.both], {block.both: inside[block.both]}) == [block.both]
