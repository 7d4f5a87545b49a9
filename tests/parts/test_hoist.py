"""Which values of a block do not need its tokens, and how they leave it: eager torch says that nothing changed."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from sparsify.passes.base import remove_dead
from sparsify.passes.hoist import (
    behind,
    depending_on,
    frontier,
    given_everywhere,
    hoist,
    into_outer,
    is_size,
    is_tensor,
)
from sparsify.program import Body, Program, Twin
from sparsify.shapes import shape_of, size_of

from .sketch import Sketch, aten

TABLE = torch.linspace(-1, 1, 4)


class Block:
    """Tokens (2, N, 4), timestep (2, 8), text (2, M, 4), the number N; with ``keys`` the tokens come once more."""

    def __init__(self, keys: bool = False) -> None:
        self.sketch = sketch = Sketch()
        self.tokens, self.rows = sketch.size(7), sketch.size(5)
        self.x, self.t = sketch.input("x", 2, self.tokens, 4), sketch.input("t", 2, 8)
        self.text, self.count = sketch.input("text", 2, self.rows, 4), sketch.number("count", self.tokens)
        self.key = sketch.input("key", 2, self.tokens, 4) if keys else None
        self.weight, self.table = sketch.attribute("weight", 4, 8), sketch.attribute("table", 4)
        self.linear = sketch(aten.linear.default, self.t, self.weight)
        self.shifted = sketch(aten.add.Tensor, self.linear, self.table)
        self.row = sketch(aten.unsqueeze.default, self.shifted, 1)
        self.length = sketch(aten.sym_size.int, self.text, 1)
        self.width = sketch(operator.mul, self.length, 4)
        self.flat = sketch(aten.reshape.default, self.text, [2, self.width])
        self.sum = sketch(aten.sum.dim_IntList, self.flat, [1], True)
        self.both = sketch(aten.mul.Tensor, self.shifted, self.sum)
        self.spread = sketch(aten.expand.default, self.row, [2, self.count, 4])
        self.added = sketch(aten.add.Tensor, self.x if self.key is None else self.key, self.spread)
        self.result = sketch(aten.add.Tensor, self.added, sketch(aten.unsqueeze.default, self.both, 1))
        sketch.output(self.result)

    def body(self) -> Body:
        twins = (Twin(0, "key"),) if self.key is not None else ()
        return self.sketch.body(moving=[self.tokens], constants={"table": TABLE}, twins=twins)

    def program(self, depth: int = 2) -> Program:
        outer = Sketch(self.sketch)
        tokens, rows = outer.size(6), outer.size(3)
        x, text = outer.input("x", 2, tokens, 4), outer.input("text", 2, rows, 4)
        times, count = [outer.input(f"t{index}", 2, 8) for index in range(depth)], outer.number("count", tokens)
        for index, t in enumerate(times):
            x = outer.block(f"blocks.{index}", "block0", x, t, text, count, *([x] if self.key is not None else []))
        outer.output(x)
        return outer.program(self.body())


def ran(program: Program, rows: int = 5) -> torch.Tensor:
    """What the program gives, where every block has a weight of its own."""
    torch.manual_seed(0)
    root = nn.Module()
    calls = program.block_nodes
    root.blocks = nn.ModuleList()
    for call in calls:
        module = fx.GraphModule({"weight": torch.rand(4, 8), "table": TABLE}, program.body_of(call).graph)
        module.weight = torch.rand(4, 8)
        root.blocks.append(module)
    root.table = TABLE
    program.graph.lint()
    inputs = [torch.rand(2, 6, 4), torch.rand(2, rows, 4), *(torch.rand(2, 8) for _ in calls), 6]
    return fx.Interpreter(root, graph=program.graph).run(*inputs)


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


# --- moving it out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
def test_blocks_take_values_from_outside_and_give_what_they_gave(keys: bool) -> None:
    block = Block(keys)
    program = block.program()
    body = program.bodies["block0"]
    before = [ran(program, rows) for rows in (5, 2)]
    inside = depending_on(block.sketch.graph, [block.t, block.text])
    wanted = frontier(block.sketch.graph, inside)
    results = []
    for call in program.calls_of(body):
        copies = into_outer(program, body, call, behind(wanted, inside), "moving")
        results.append([copies[node] for node in wanted])
        for node in wanted:
            made = copies[node]
            assert made.target == node.target
            assert made.meta["provenance"] == ("moving", node.name)
            assert made < call
            assert shape_of(made) == shape_of(node)
    hoist(program, body, wanted, results)
    remove_dead(body.graph)
    assert not body.graph.find_nodes(op="get_attr")
    names = ["x", "t", "text", "count", f"{block.shifted.name}_given", f"{block.both.name}_given"]
    assert [node.name for node in body.placeholders] == [*names, *(["key"] if keys else [])]
    assert body.given == 2
    for call, made in zip(program.block_nodes, results, strict=True):
        assert call.args[4:6] == tuple(made)
        assert len(call.args) == 6 + keys
    assert [node.target for node in program.graph.find_nodes(op="get_attr")] == [
        "blocks.0.weight", "table", "blocks.1.weight", "table",
    ]  # fmt: skip
    assert program.constants == {"table": TABLE}
    assert [torch.equal(ran(program, rows), want) for rows, want in zip((5, 2), before, strict=True)] == [True, True]


def test_copies_know_their_parameters_and_sizes() -> None:
    block = Block()
    program = block.program()
    (call, _), body = program.block_nodes, program.bodies["block0"]
    block.weight.meta["val"] = block.sketch.fake(8, 4, dtype=torch.float32).t()
    copies = into_outer(program, body, call, [block.weight, block.flat], "moving")
    weight = copies[block.weight].meta["val"]
    assert (weight.shape, weight.stride(), weight.dtype) == ((4, 8), (1, 4), torch.float32)
    assert weight.fake_mode is program.fake_mode
    rows = size_of(program.placeholders[1].meta["val"].shape[1])
    assert shape_of(copies[block.flat]) == (2, 4 * rows)


def test_no_values_no_change() -> None:
    program = Block().program()
    before = str(program.graph), str(program.bodies["block0"].graph)
    hoist(program, program.bodies["block0"], [], [[], []])
    assert (str(program.graph), str(program.bodies["block0"].graph)) == before
    assert program.bodies["block0"].given == 0


def test_every_call_must_give_its_values() -> None:
    block = Block()
    program = block.program()
    with pytest.raises(ValueError, match="zip"):
        hoist(program, program.bodies["block0"], [block.shifted], [[block.shifted]])
