"""The verifier finds what a broken pass leaves behind, names the pass and shows the IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx

from sparsify import VerificationError
from sparsify.ops import pool_tokens
from sparsify.passes import Pass, Pipeline
from sparsify.program import Program

from .helpers import analysed, plain

aten = torch.ops.aten


@dataclass(frozen=True)
class Broken(Pass):
    """A pass that does one wrong thing to the outer graph."""

    damage: Callable[[Program], None]
    name: ClassVar[str] = "broken"

    def match(self, program: Program):
        return [program]

    def rewrite(self, program: Program, place: Program) -> None:
        self.damage(program)


def first(program: Program, op: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.op == op)


def illegal_operator(program: Program) -> None:
    node = program.block_nodes[0]
    with program.graph.inserting_after(node):
        program.graph.call_function(torch.relu, (node,)).meta["val"] = node.meta["val"]


def in_place_operator(program: Program) -> None:
    node = program.block_nodes[0]
    with program.graph.inserting_after(node):
        program.graph.call_function(aten.relu_.default, (node,)).meta["val"] = node.meta["val"]


def wrong_claim(program: Program) -> None:
    node = program.graph.find_nodes(op="call_function", target=aten.transpose.int)[0]
    node.meta["val"] = node.args[0].meta["val"]


def no_claim(program: Program) -> None:
    node = program.block_nodes[0]
    with program.graph.inserting_after(node):
        program.graph.call_function(aten.relu.default, (node,))


def cannot_run(program: Program) -> None:
    node = program.graph.find_nodes(op="call_function", target=aten.linear.default)[-1]
    node.update_arg(0, program.placeholders[0])


def wrong_order(program: Program) -> None:
    nodes = program.block_nodes
    nodes[2].prepend(nodes[3])


def lost_block(program: Program) -> None:
    node = program.block_nodes[2]
    node.replace_all_uses_with(node.args[0])
    program.graph.erase_node(node)


def missing_argument(program: Program) -> None:
    node = program.block_nodes[2]
    node.args = node.args[:1]


def unknown_body(program: Program) -> None:
    program.block_nodes[2].meta["body"] = "block7"


def stale_block_claim(program: Program) -> None:
    node = program.block_nodes[0]
    with program.graph.inserting_before(node):
        fewer = program.graph.call_function(aten.slice.Tensor, (node.args[0], 1, 0, 3))
        fewer.meta["val"] = node.meta["val"].new_empty((2, 3, 32))
    node.update_arg(0, fewer)


def pooled_too_early(program: Program) -> None:
    program.stage = "captured"
    node = program.block_nodes[0]
    with program.graph.inserting_after(node):
        program.graph.call_function(pool_tokens, (node, [8, 8], [4, 4])).meta["val"] = node.meta["val"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (illegal_operator, "relu.* is not legal in the sparse stage"),
        (in_place_operator, "aten.relu_.default is not legal"),
        (wrong_claim, "claims f.*but yields|claims float32.* but yields"),
        (no_claim, "relu.* claims no value"),
        (cannot_run, "cannot run"),
        (wrong_order, "which is not defined before it"),
        (lost_block, r"the blocks called are \['blocks.0', 'blocks.1', 'blocks.3'"),
        (missing_argument, "blocks_2 gives 1 inputs, block0 takes 2"),
        (unknown_body, "has the body block7, which does not exist"),
        (stale_block_claim, "blocks_0 gives a size of .* where block0 takes"),
        (pooled_too_early, "pool_tokens.* is not legal in the captured stage"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_verifier_names_the_pass_and_shows_the_ir(damage: Callable, message: str) -> None:
    program = analysed(plain())
    with pytest.raises(VerificationError, match=message) as caught:
        Pipeline((Broken(damage),)).run(program)
    assert "pass broken left an illegal" in str(caught.value)
    assert "\n> " in str(caught.value)
