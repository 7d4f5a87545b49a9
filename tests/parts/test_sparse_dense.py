"""A sparse-dense module against one written out in eager torch, with and without text; and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from sparsify import Density
from sparsify.passes import BlockRange, SparseDense
from sparsify.program import Program
from sparsify.verify import verify

from .blocks import attend, block
from .dense import dense_program
from .running import run_program
from .sketch import aten, targets

pytestmark = pytest.mark.usefixtures("shared_sizes")

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


def module(
    sequence: Sequence, image: torch.Tensor, counts: tuple[int, int, int], restore: dict[str, torch.Tensor], index: int = 0
) -> torch.Tensor:
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


@pytest.mark.parametrize(
    ("counts", "before", "after"),
    [
        ((1, 1, 1), 0, 0),
        ((1, 0, 1), 0, 0),
        ((2, 1, 2), 0, 0),
        ((1, 3, 1), 0, 0),
        ((1, 1, 1), 2, 0),
        ((2, 0, 1), 0, 3),
        ((2, 0, 2), 1, 0),
        ((2, 0, 2), 0, 1),
        ((1, 1, 1), 2, 3),
        ((2, 1, 2), 2, 3),
    ],
)
def test_a_module_is_what_the_paper_says(counts: tuple[int, int, int], before: int, after: int) -> None:
    """One dense block in front, and one behind."""
    involved = sum(counts)
    program = dense_program(block(), blocks=involved + 2, before=before, after=after, schedule=POOLED)
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
    joined = (
        counts[0] + counts[2] if before + after else 0
    )  # for the model, at the end, and for every further block that crosses
    assert targets(program.graph).count(aten.cat.default) == joined
    assert before + after > 0 or aten.slice.Tensor not in targets(program.graph)
    bodies = ["block0", *["block0.split"] * counts[0], *["block0"] * counts[1], *["block0.split"] * counts[2], "block0"]
    assert [node.meta["body"] for node in program.block_nodes] == bodies
    assert [node.meta.get("passes") for node in program.block_nodes] == [None, *[("sparse-dense",)] * involved, None]


def test_two_modules_have_layers_of_their_own() -> None:
    program = dense_program(block(), blocks=4, schedule=POOLED)
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
    program = dense_program(block(), blocks=6, schedule=POOLED)
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
    program = dense_program(block(), blocks=3, schedule=POOLED)
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
    program = dense_program(block(), blocks=3, schedule=POOLED)
    first, _, last = program.block_nodes
    insert(program, last, aten.add.Tensor, first)
    assert SparseDense(BlockRange(0, 2), 1, 1, 1).run(program) == 1
    image, restore = torch.randn(2, 4, *DENSE), weights()
    dense = image.flatten(2).transpose(1, 2)
    sequence = Sequence(dense, 0, 0)
    want = module(sequence, dense, (1, 1, 1), restore) + up(attend(pool(dense), dense))
    assert (run(program, image, **restore) - want).abs().max() < 2e-5 * want.abs().max()
