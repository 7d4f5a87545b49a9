"""A sparse-dense module against one written out in eager torch, with and without text; and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from sparsify import Density
from sparsify.errors import RewriteError
from sparsify.passes import BlockRange, InsertDensity, SparseDense
from sparsify.passes.levels import Levels
from sparsify.passes.subset import subset_as_captured
from sparsify.program import Body, Program
from sparsify.shapes import size_of
from sparsify.text import program_text
from sparsify.verify import verify

from .blocks import attend, block, cumulated
from .hand_made import Sketch, dense_program, run_program

aten = torch.ops.aten
DENSE, SPARSE = (3, 5), (2, 3)
POOLED = Density.constant(grid=SPARSE)
PARTS = [f"{part}.{kind}" for part in ("sparse", "dense") for kind in ("weight", "bias")]


def weights(modules: int = 1) -> dict[str, torch.Tensor]:
    shapes = {"weight": (4, 4), "bias": (4,)}
    names = itertools.product(range(modules), PARTS)
    return {f"sparsify_restore.{i}.{name}": torch.randn(shapes[name.partition(".")[2]]) * 0.3 for i, name in names}


def run(program: Program, image: torch.Tensor, *text: torch.Tensor, **attributes: torch.Tensor) -> Any:
    return run_program(program, image, torch.zeros(2), *text, sparsify_density=SPARSE, **attributes)


# --- the oracle ------------------------------------------------------------------------------------------------------------


def pool(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, DENSE), SPARSE).flatten(2).transpose(1, 2)


def up(x: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(dense) * few // dense for dense, few in zip(DENSE, SPARSE, strict=True))
    return x.unflatten(1, SPARSE)[:, rows][:, :, columns].flatten(1, 2)


class Sequence:
    """Text, the tokens of the image, text."""

    def __init__(self, x: torch.Tensor, before: int, after: int) -> None:
        self.before, self.after = before, after
        self.text = x[:, :before], x[:, x.shape[1] - after :]
        self.image = x[:, before : x.shape[1] - after]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.text[0], image, self.text[1]], 1)

    def step(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Attention of an image's tokens and the text to others; the text goes on, and the tokens are returned."""
        after = Sequence(attend(self(queries), self(keys)), self.before, self.after)
        self.text = after.text
        return after.image


def module(sequence: Sequence, image: torch.Tensor, counts: tuple[int, int, int], restore: dict[str, torch.Tensor], index: int = 0) -> torch.Tensor:
    w1, b1, w2, b2 = (restore[f"sparsify_restore.{index}.{name}"] for name in PARTS)
    sparse = pool(image)
    for _ in range(counts[0]):
        sparse = sequence.step(sparse, image)
    for _ in range(counts[1]):
        sparse = sequence.step(sparse, sparse)
    dense = up(sparse) @ w1.T + b1 + image @ w2.T + b2
    for _ in range(counts[2]):
        dense = sequence.step(dense, sparse)
    return dense


# --- what it makes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 0, 1), (2, 1, 2), (1, 3, 1)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_a_module_is_what_the_paper_says(counts: tuple[int, int, int], before: int, after: int) -> None:
    """One dense block in front, and one behind."""
    involved = sum(counts)
    program = dense_program(block(), blocks=involved + 2, before=before, after=after, density=POOLED)
    assert SparseDense(BlockRange(1, involved), *counts).run(program) == 1, program.skips
    program.stage = "sparse"
    verify(program, "test")
    image, text = torch.randn(2, 4, *DENSE), [torch.randn(2, before + after, 4)] if before + after else []
    restore = weights()
    got = run(program, image, *text, **restore)
    tokens = image.flatten(2).transpose(1, 2)
    rows = torch.cat([text[0][:, :before], tokens, text[0][:, before:]], 1) if text else tokens
    sequence = Sequence(attend(rows, rows), before, after)
    dense = module(sequence, sequence.image, counts, restore)
    want = attend(sequence(dense), sequence(dense))
    assert (got - want).abs().max() < 2e-5 * want.abs().max()
    bodies = ["block0", *["block0.split"] * counts[0], *["block0"] * counts[1], *["block0.split"] * counts[2], "block0"]
    assert [node.meta["body"] for node in program.block_nodes] == bodies
    assert [node.meta.get("passes") for node in program.block_nodes] == [None, *[("sparse-dense",)] * involved, None]


def test_two_modules_have_layers_of_their_own() -> None:
    program = dense_program(block(), blocks=4, density=POOLED)
    for first in (0, 2):
        assert SparseDense(BlockRange(first, first + 1), 1, 0, 1).run(program) == 1
    assert [layer.name for layer in program.layers] == ["sparsify_restore.0", "sparsify_restore.1"]
    assert all(layer.dtype == torch.float32 and dict(layer.shapes)["dense.weight"] == (4, 4) for layer in program.layers)
    image, restore = torch.randn(2, 4, *DENSE), weights(2)
    tokens = image.flatten(2).transpose(1, 2)
    sequence = Sequence(tokens, 0, 0)
    middle = module(sequence, tokens, (1, 0, 1), restore)
    want = module(sequence, middle, (1, 0, 1), restore, 1)
    assert (run(program, image, **restore) - want).abs().max() < 2e-5 * want.abs().max()


def test_blocks_of_the_range_that_are_left_over_stay_dense() -> None:
    program = dense_program(block(), blocks=6, density=POOLED)
    assert SparseDense(BlockRange(0, 5)).run(program) == 1
    assert [node.meta["body"] for node in program.block_nodes] == ["block0.split", *["block0"] * 3, "block0.split", "block0"]
    assert program.block_nodes[5].meta.get("passes") is None


def insert(program: Program, behind: fx.Node, target: Any, *more: fx.Node) -> fx.Node:
    """An operator that takes the place of a value for all that reads it."""
    with program.graph.inserting_after(max([behind, *more])):
        node = program.graph.call_function(target, (behind, *more))
    node.meta["val"] = behind.meta["val"]
    behind.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)
    return node


def test_operators_between_blocks_move_along() -> None:
    program = dense_program(block(), blocks=3, density=POOLED)
    insert(program, program.block_nodes[0], aten.neg.default)
    insert(program, program.block_nodes[1], aten.tanh.default)
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1, program.skips
    program.stage = "sparse"
    verify(program, "test")
    image, restore = torch.randn(2, 4, *DENSE), weights()
    dense = image.flatten(2).transpose(1, 2)
    sparse = -attend(pool(dense), dense)
    sparse = attend(sparse, sparse).tanh()
    w1, b1, w2, b2 = restore.values()
    beside = (-dense).tanh()  # as if the blocks had handed on their tokens
    want = attend(up(sparse) @ w1.T + b1 + beside @ w2.T + b2, sparse)
    assert (run(program, image, **restore) - want).abs().max() < 2e-5 * want.abs().max()


def test_sparse_tokens_that_are_read_behind_the_module_are_restored() -> None:
    program = dense_program(block(), blocks=3, density=POOLED)
    first, _, last = program.block_nodes
    insert(program, last, aten.add.Tensor, first)
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1
    image, restore = torch.randn(2, 4, *DENSE), weights()
    dense = image.flatten(2).transpose(1, 2)
    sequence = Sequence(dense, 0, 0)
    want = module(sequence, dense, (1, 1, 1), restore) + up(attend(pool(dense), dense))
    assert (run(program, image, **restore) - want).abs().max() < 2e-5 * want.abs().max()


# --- what it refuses -------------------------------------------------------------------------------------------------------


def mixed(*bodies: Body, **options: Any) -> Program:
    """A row of blocks of several kinds."""
    program = dense_program(bodies[0], blocks=len(bodies), density=POOLED, **options)
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
    program = dense_program(block(), blocks=3, density=POOLED)
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


@pytest.mark.parametrize(("counts", "tried"), [((1, 1, 1), [0, 2]), ((2, 1, 1), [0, 1, 3]), ((1, 0, 2), [0, 1, 2]), ((1, 2, 1), [0, 3])])
def test_blocks_that_cross_are_noted_for_a_full_check(counts: tuple[int, int, int], tried: list[int]) -> None:
    body = block()
    program = dense_program(body, blocks=5, density=POOLED, trials={})
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
    program = dense_program(block(), blocks=3, density=POOLED)
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1 and program.trials is None


def test_a_recover_block_takes_its_tokens_from_the_blocks_before_it() -> None:
    program = dense_program(block(), blocks=3, density=POOLED)
    first, second, third = program.block_nodes
    third.replace_input_with(second, first.args[0])  # type: ignore[arg-type]
    insert(program, third, aten.add.Tensor, second)
    assert refused(program, 1, 1, 1) == "blocks.2 does not take its tokens from the blocks before it"


def test_blocks_must_be_reached_from_one_another() -> None:
    program = dense_program(block(), blocks=2, density=POOLED)
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
    outer.done(outer.block("blocks.0", body, outer(aten.permute.default, image, [0, 2, 3, 1])))
    program = outer.program(body, grid=(size_of(h), size_of(w)), timestep="time")
    assert InsertDensity(POOLED).run(program) == 1
    rewrite = SparseDense(BlockRange(0, 0), 1, 0, 1)
    levels = Levels(program, rewrite.mark)
    (call,) = program.block_nodes
    levels.sparse[call] = levels.layouts.of(call)
    with pytest.raises(RewriteError, match="blocks_0 holds the tokens of the grid on 2 axes, and one was expected"):
        rewrite._recovered(program, levels, call)
