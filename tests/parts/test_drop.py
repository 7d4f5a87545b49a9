"""Blocks that see some of their tokens alone, with the rows of the tables that go with these: eager torch is the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from sparsify.passes import Pass, drop_tokens
from sparsify.program import Program
from sparsify.shapes import shape_of, size_of

from .running import run_program
from .sketch import Sketch, aten


@dataclass(frozen=True)
class Dropping(Pass):
    name: ClassVar[str] = "dropping"

    def match(self, program: Program) -> list[Any]:
        return []

    def rewrite(self, program: Program, place: Any) -> None: ...


def block(x: torch.Tensor, scale: torch.Tensor, table: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The block in eager torch: it needs as many rows of the table, and rows and columns of the mask, as there are tokens."""
    return mask @ (x * scale + table)


def trunk(depth: int) -> tuple[Sketch, Program, fx.Node]:
    """Blocks in a row, and the rows to keep."""
    body = Sketch()
    tokens = body.size(7)
    x, scale, table, mask = (
        body.input("x", 2, tokens, 4), body.input("scale", 2, 1, 4), body.input("table", tokens, 4), body.input("mask", tokens, tokens),
    )  # fmt: skip
    body.output(body(aten.matmul.default, mask, body(aten.add.Tensor, body(aten.mul.Tensor, x, scale), table)))
    outer = Sketch(body)
    count = outer.size(3)
    names = {"x": (2, tokens, 4), "scale": (2, 1, 4), "table": (tokens, 4), "mask": (tokens, tokens)}
    x, scale, table, mask = (outer.input(name, *sizes) for name, sizes in names.items())
    kept = outer.input("kept", count, dtype=torch.int64)
    for index in range(depth):
        x = outer.block(f"blocks.{index}", "block0", x, scale, table, mask)
    outer.output(x)
    return outer, outer.program(body.body(moving=[tokens])), kept


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks_see_the_kept_tokens_alone(depth: int) -> None:
    _, program, kept = trunk(depth)
    drop_tokens(Dropping(), program, program.block_nodes, kept)
    x, scale, table, mask = torch.rand(2, 7, 4), torch.rand(2, 1, 4), torch.rand(7, 4), torch.rand(7, 7)
    rows = torch.tensor([4, 0, 5])
    want = x[:, rows]
    for _ in range(depth):
        want = block(want, scale, table[rows], mask[rows][:, rows])
    assert torch.equal(run_program(program, x, scale, table, mask, rows), want)
    for call in program.block_nodes:
        assert shape_of(call) == (2, size_of(kept.meta["val"].shape[0]), 4)
        assert [len(shape_of(argument)) for argument in call.args] == [3, 3, 2, 2]
        assert call.meta["passes"] == ("dropping",)
        assert call.meta["provenance"] == ("dropping", call.name)


def test_blocks_in_front_keep_all_tokens() -> None:
    _, program, kept = trunk(3)
    first, *others = program.block_nodes
    drop_tokens(Dropping(), program, others, kept)
    assert "passes" not in first.meta
    assert shape_of(first) == shape_of(program.placeholders[0])
    x, scale, table, mask = torch.rand(2, 7, 4), torch.rand(2, 1, 4), torch.rand(7, 4), torch.rand(7, 7)
    rows = torch.tensor([1, 6])
    want = block(x, scale, table, mask)[:, rows]
    for _ in others:
        want = block(want, scale, table[rows], mask[rows][:, rows])
    assert torch.equal(run_program(program, x, scale, table, mask, rows), want)


def test_rows_are_selected_in_front_of_the_block_that_reads_them() -> None:
    _, program, kept = trunk(2)
    drop_tokens(Dropping(), program, program.block_nodes, kept)
    names = [
        node.target if node.op == "call_module" else str(node.target).split(".")[-2]
        for node in program.graph.nodes
        if node.op.startswith("call")
    ]
    assert names == ["index_select"] * 4 + ["blocks.0"] + ["index_select"] * 3 + ["blocks.1"]
    made = program.graph.find_nodes(op="call_function", target=aten.index_select.default)
    assert {node.meta["provenance"].pass_name for node in made} == {"dropping"}
    assert [node.meta["provenance"].origin for node in made] == [call.name for call in program.block_nodes for _ in range(4)][
        :7
    ]


def test_no_blocks_no_change() -> None:
    _, program, kept = trunk(2)
    before = str(program.graph)
    drop_tokens(Dropping(), program, [], kept)
    assert str(program.graph) == before
