"""What a sparse-dense module refuses, and that the program is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsify.errors import RewriteError
from sparsify.passes import BlockRange, InsertDensity, SparseDense
from sparsify.passes.levels import Levels
from sparsify.passes.subset import subset_as_captured
from sparsify.program import Body, Program
from sparsify.shapes import size_of
from sparsify.text import program_text

from .blocks import attend, block, cumulated
from .dense import dense_program
from .sketch import Sketch, aten
from .test_sparse_dense import DENSE, POOLED, insert, pool, run, up, weights

pytestmark = pytest.mark.usefixtures("shared_sizes")


def mixed(*bodies: Body, **options: Any) -> Program:
    """A row of blocks of several kinds."""
    program = dense_program(bodies[0], blocks=len(bodies), schedule=POOLED, **options)
    program.bodies.update({body.name: body for body in bodies})
    for node, body in zip(program.block_nodes, bodies, strict=True):
        node.meta["body"] = body.name
    return program


def refused(program: Program, *counts: int) -> str:
    before = program_text(program)
    assert SparseDense(BlockRange(0, len(program.paths) - 1), *counts).run(program) == 0
    assert program.layers == []
    bodies = {name for name in program.bodies if name.endswith(".split")}
    for name in bodies:
        del program.bodies[name]
    assert program_text(program) == before
    return program.skips[-1].reason


def test_without_a_density_node_there_is_nothing_to_pool_to() -> None:
    assert refused(dense_program(block(), blocks=5)) == "there is no density node; run the density pass first"


def test_blocks_are_in_one_module_at_most() -> None:
    program = dense_program(block(), blocks=3, schedule=POOLED)
    rewrite = SparseDense(BlockRange(0, 2), 1, 1, 1)
    assert rewrite.run(program) == 1 and rewrite.run(program) == 0
    assert program.skips[-1].reason == "blocks.0 is part of a sparse-dense module already"


@pytest.mark.parametrize(
    ("at", "counts", "refuses"),
    [
        (0, (1, 1, 1), True),
        (1, (1, 1, 1), False),
        (2, (1, 1, 1), True),
        (1, (2, 0, 1), True),
        (1, (1, 2, 1), False),
        (2, (1, 2, 1), False),
        (3, (1, 2, 1), True),
        (3, (1, 1, 1), False),
        (2, (1, 1, 2), True),
        (3, (1, 1, 2), True),
    ],
)
def test_blocks_that_cross_are_tried_and_sparse_ones_need_not_be(at: int, counts: tuple[int, int, int], refuses: bool) -> None:
    plain, odd = block(), block(cumulated, name="odd")
    program = mixed(*(odd if index == at else plain for index in range(4)))
    if refuses:
        assert refused(program, *counts).startswith(f"blocks.{at}: something besides attention mixes tokens")
    else:
        assert SparseDense(BlockRange(0, 3), *counts).run(program) == 1, program.skips


def test_one_block_at_least_must_attend() -> None:
    lone = block(name="lone", attends=False)
    reason = refused(mixed(lone, lone, lone), 1, 1, 1)
    assert reason == "blocks.0: no attention over the trunk's tokens was recognised in the block"
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(mixed(lone, block(), lone)) == 1


def test_blocks_without_attention_see_the_tokens_of_their_place() -> None:
    program = mixed(block(), block(name="lone", attends=False), block(), block(name="lone", attends=False))
    assert SparseDense(BlockRange(0, 3), 1, 1, 2).run(program) == 1
    image, restore = torch.randn(2, 4, *DENSE), weights()
    dense = image.flatten(2).transpose(1, 2)
    sparse = -attend(pool(dense), dense)
    w1, b1, w2, b2 = restore.values()
    want = -attend(up(sparse) @ w1.T + b1 + dense @ w2.T + b2, sparse)
    assert (run(program, image, **restore) - want).abs().max() < 2e-5 * want.abs().max()
    assert [node.meta["body"] for node in program.block_nodes] == ["block0.split", "lone", "block0.split", "lone"]


@pytest.mark.parametrize(
    ("counts", "tried"), [((1, 1, 1), [0, 2]), ((2, 1, 1), [0, 1, 3]), ((1, 0, 2), [0, 1, 2]), ((1, 2, 1), [0, 3])]
)
def test_blocks_that_cross_are_noted_for_a_full_check(counts: tuple[int, int, int], tried: list[int]) -> None:
    body = block()
    program = dense_program(body, blocks=5, schedule=POOLED, trials={})
    node = program.block_nodes[0]
    want = subset_as_captured(program, node, body)
    assert SparseDense(BlockRange(0, 4), *counts).run(program) == 1
    assert program.trials is not None and list(program.trials) == [f"blocks.{index}" for index in tried]
    assert all(trial == (body, want) for trial in program.trials.values())


def test_blocks_in_which_nothing_crosses_need_no_full_check() -> None:
    program = mixed(block(), block(), block(name="lone", attends=False), trials={})
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1
    assert list(program.trials or ()) == ["blocks.0"]


def test_without_a_full_check_nothing_is_noted() -> None:
    program = dense_program(block(), blocks=3, schedule=POOLED)
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1 and program.trials is None


def test_a_recover_block_takes_its_tokens_from_the_blocks_before_it() -> None:
    program = dense_program(block(), blocks=3, schedule=POOLED)
    first, second, third = program.block_nodes
    third.replace_input_with(second, first.args[0])  # type: ignore[arg-type]
    insert(program, third, aten.add.Tensor, second)
    assert refused(program, 1, 1, 1) == "blocks.2 does not take its tokens from the blocks before it"


def test_blocks_must_be_reached_from_one_another() -> None:
    program = dense_program(block(), blocks=2, schedule=POOLED)
    first, second = program.block_nodes
    before = program_text(program)
    with pytest.raises(RewriteError, match=r"blocks.0 is not reached from blocks.1"):
        SparseDense(BlockRange(0, 1), 1, 0, 1).rewrite(program, [second, first])
    del program.bodies["block0.split"]
    assert program_text(program) == before and program.layers == []


def test_tokens_on_two_axes_are_not_recovered() -> None:
    outer, inner = Sketch(), Sketch()
    h, w = outer.size(3), outer.size(5)
    image, _ = outer.input("image", 2, 4, h, w), outer.input("time", 2)
    sides = inner.size(3), inner.size(5)
    x = inner.input("x", 2, *sides, 4)
    body = inner.body("block0", inner(aten.neg.default, x), moving=sides)
    outer.output(outer.block("blocks.0", body, outer(aten.permute.default, image, [0, 2, 3, 1])))
    program = outer.program(body, grid=(size_of(h), size_of(w)), timestep="time")
    assert InsertDensity(POOLED).run(program) == 1
    rewrite = SparseDense(BlockRange(0, 0), 1, 0, 1)
    levels = Levels(program, rewrite.mark)
    (call,) = program.block_nodes
    levels.sparse[call] = levels.layouts.of(call)
    with pytest.raises(RewriteError, match="blocks_0 holds the tokens of the grid on 2 axes, and one was expected"):
        rewrite._recovered(program, levels, call)
