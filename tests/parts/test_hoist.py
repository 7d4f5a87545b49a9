"""Values leave the blocks for the outer graph: eager torch says that nothing changed."""

from __future__ import annotations

import pytest
import torch

from sparsify.passes.base import remove_dead
from sparsify.passes.hoist import (
    behind,
    depending_on,
    frontier,
    hoist,
    into_outer,
)
from sparsify.shapes import shape_of, size_of

from .hoisting import TABLE, Block, ran


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
