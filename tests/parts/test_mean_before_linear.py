"""A mean over the tokens moves in front of linear maps, and what follows works on one row: eager torch is the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes import MeanBeforeLinear
from sparsify.program import Body
from sparsify.shapes import shape_of

from .sketch import Sketch, aten, of_bodies, run, targets

LINEAR, EXPAND, MEAN = aten.linear.default, aten.expand.default, aten.mean.dim
Step = Callable[[Sketch, fx.Node], fx.Node]


class Block:
    """Tokens (2, N, 4), something done to them, their mean copied to all, and something done to the copies."""

    def __init__(self, before: Step, after: Step, mean: tuple[Any, ...] = ([1], True), **options: Any) -> None:
        self.sketch = sketch = Sketch()
        self.tokens = sketch.size(7)
        self.x, self.weight, self.scale = (
            sketch.input("x", 2, self.tokens, 4),
            sketch.input("w", 4, 4),
            sketch.input("s", 2, 1, 4),
        )
        self.count = sketch(aten.sym_size.int, self.x, 1)
        source = before(sketch, self.x)
        self.mean = sketch(MEAN, source, *mean, **options)
        self.copies = sketch(EXPAND, self.mean, [self.count if size == 1 else -1 for size in shape_of(self.mean)])
        self.result = after(sketch, self.copies)

    def body(self, *others: fx.Node) -> Body:
        self.sketch.output(self.result, *others)
        return self.sketch.body(moving=[self.tokens])

    def ran(self, rows: int) -> Any:
        torch.manual_seed(rows)
        inputs = [torch.rand(2, rows, 4), torch.rand(4, 4), torch.rand(2, 1, 4)]
        return run(self.sketch.graph, *(each.double() for each in inputs))

    def rewritten(self, *others: fx.Node) -> list[Any]:
        """The operators after the pass, which applies once and changes no value."""
        body = self.body(*others)
        before = [self.ran(rows) for rows in (7, 3, 1)]
        assert MeanBeforeLinear().run(of_bodies(body)) == 1
        for rows, want in zip((7, 3, 1), before, strict=True):
            got = self.ran(rows)
            for one, other in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
                assert torch.allclose(one, other, atol=1e-12)
                assert one.shape == other.shape
        return [target for target in targets(self.sketch.graph) if target is not aten.sym_size.int]

    def is_left(self) -> bool:
        return MeanBeforeLinear().run(of_bodies(self.body())) == 0


def same(sketch: Sketch, node: fx.Node) -> fx.Node:
    return node


def weight(sketch: Sketch) -> fx.Node:
    return sketch.graph.find_nodes(op="placeholder")[1]


def linear(sketch: Sketch, node: fx.Node) -> fx.Node:
    return sketch(LINEAR, node, weight(sketch))


def residual(sketch: Sketch, node: fx.Node) -> fx.Node:
    return sketch(aten.add.Tensor, sketch.graph.find_nodes(op="placeholder")[0], node)


def modulated(sketch: Sketch, node: fx.Node) -> fx.Node:
    return sketch(aten.mul.Tensor, node, sketch.graph.find_nodes(op="placeholder")[2])


def both(*steps: Step) -> Step:
    def step(sketch: Sketch, node: fx.Node) -> fx.Node:
        for each in steps:
            node = each(sketch, node)
        return node

    return step


def test_the_mean_moves_in_front_of_a_linear_map() -> None:
    block = Block(linear, residual)
    assert block.rewritten() == [MEAN, LINEAR, aten.add.Tensor]
    (mean,) = block.sketch.graph.find_nodes(op="call_function", target=MEAN)
    assert mean.args == (block.x, [1], True)
    assert mean.meta["provenance"].pass_name == "mean-before-linear"
    assert mean.meta["provenance"].origin == block.mean.name


def test_a_linear_map_of_copies_is_made_once() -> None:
    block = Block(same, both(linear, residual))
    assert block.rewritten() == [MEAN, LINEAR, aten.add.Tensor]
    assert shape_of(block.sketch.graph.find_nodes(op="call_function", target=LINEAR)[0]) == (2, 1, 4)


def test_everything_on_the_way_moves() -> None:
    block = Block(both(modulated, linear, modulated), both(modulated, linear, modulated, residual))
    muls = [aten.mul.Tensor]
    assert block.rewritten() == [MEAN, *muls, LINEAR, *muls, *muls, LINEAR, *muls, aten.add.Tensor]
    assert all(shape_of(node)[1] == 1 for node in block.sketch.graph.find_nodes(op="call_function", target=aten.mul.Tensor))


def test_what_is_no_linear_map_of_the_tokens_ends_the_way() -> None:
    squared = both(lambda sketch, node: sketch(aten.mul.Tensor, node, node), linear)
    block = Block(squared, residual)
    assert block.rewritten() == [aten.mul.Tensor, MEAN, LINEAR, aten.add.Tensor]


def test_what_needs_all_copies_gets_them() -> None:
    block = Block(linear, lambda sketch, node: sketch(aten.exp.default, node))
    assert block.rewritten() == [MEAN, LINEAR, EXPAND, aten.exp.default]
    block = Block(same, both(linear, lambda sketch, node: sketch(aten.exp.default, node)))
    assert block.rewritten() == [MEAN, LINEAR, EXPAND, aten.exp.default]
    (copies,) = block.sketch.graph.find_nodes(op="call_function", target=EXPAND)
    assert shape_of(copies) == shape_of(block.x)
    assert copies.args[1][0] == copies.args[1][2] == -1
    assert copies.meta["provenance"].pass_name == "mean-before-linear"


def test_copies_with_several_readers() -> None:
    block = Block(same, both(linear, residual))
    exp = block.sketch(aten.exp.default, block.copies)
    assert block.rewritten(exp) == [MEAN, EXPAND, LINEAR, aten.add.Tensor, aten.exp.default]


def test_an_axis_that_moves_is_followed() -> None:
    def swapped(sketch: Sketch, node: fx.Node) -> fx.Node:
        return sketch(aten.transpose.int, node, 1, 2)

    def heads(sketch: Sketch, node: fx.Node) -> fx.Node:
        count = sketch(aten.sym_size.int, node, 1)
        return sketch(aten.permute.default, sketch(aten.reshape.default, node, [2, count, 2, 2]), [0, 2, 1, 3])

    def merged(sketch: Sketch, node: fx.Node) -> fx.Node:
        count = sketch(aten.sym_size.int, node, 2)
        return sketch(aten.reshape.default, sketch(aten.permute.default, node, [0, 2, 1, 3]), [2, count, 4])

    block = Block(both(linear, swapped), both(swapped, residual), ([-1], True))
    assert block.rewritten() == [MEAN, LINEAR, aten.transpose.int, aten.transpose.int, aten.add.Tensor]
    block = Block(both(linear, heads), both(merged, linear, residual), ([2], True))
    want = [MEAN, LINEAR, aten.reshape.default, aten.permute.default, aten.permute.default, aten.reshape.default, LINEAR]
    assert block.rewritten() == [*want, aten.add.Tensor]


@pytest.mark.parametrize(
    "block",
    [
        lambda: Block(same, residual),  # no linear map
        lambda: Block(modulated, both(modulated, residual)),
        lambda: Block(linear, same, ([2], True)),  # over channels
        lambda: Block(linear, same, ([0], True)),  # over the batch
        lambda: Block(linear, same, ([1, 2], True)),
        lambda: Block(linear, same, ([1],), keepdim=True),
        lambda: Block(linear, residual, ([1], True), dtype=torch.float64),
    ],
)
def test_other_means_stay(block: Callable[[], Block]) -> None:
    assert block().is_left()


def test_a_mean_without_its_axis_stays() -> None:
    sketch = Sketch()
    tokens = sketch.size(7)
    x, w = sketch.input("x", 2, tokens, 4), sketch.input("w", 4, 4)
    for arguments in (([1],), ([1], False)):
        mean = sketch(MEAN, sketch(LINEAR, x, w), *arguments)
        last = sketch(EXPAND, mean, [2, 2, 4])
    sketch.output(last)
    assert MeanBeforeLinear().run(of_bodies(sketch.body(moving=[tokens]))) == 0


def test_a_mean_with_another_reader_stays() -> None:
    block = Block(linear, residual)
    block.sketch.output(block.result, block.mean)
    assert MeanBeforeLinear().run(of_bodies(block.sketch.body(moving=[block.tokens]))) == 0


def test_a_mean_that_is_not_copied_stays() -> None:
    sketch = Sketch()
    tokens = sketch.size(7)
    x, w = sketch.input("x", 2, tokens, 4), sketch.input("w", 4, 4)
    sketch.output(sketch(aten.add.Tensor, x, sketch(MEAN, sketch(LINEAR, x, w), [1], True)))
    assert MeanBeforeLinear().run(of_bodies(sketch.body(moving=[tokens]))) == 0


def test_a_mean_over_what_does_not_follow_the_tokens_stays() -> None:
    block = Block(linear, residual)
    block.sketch.output(block.result)
    assert MeanBeforeLinear().run(of_bodies(block.sketch.body())) == 0


def test_a_linear_map_far_behind_the_copies_is_enough() -> None:
    scaled = both(*[modulated] * 3, linear)
    assert not Block(same, scaled).is_left()
    branches = Block(same, scaled)
    branches.sketch(aten.exp.default, branches.copies)
    assert list(MeanBeforeLinear().match(of_bodies(branches.body())))


def test_places_are_described_and_frozen() -> None:
    block = Block(linear, residual)
    (place,) = MeanBeforeLinear().match(of_bodies(block.body()))
    assert MeanBeforeLinear().describe(place) == f"{block.mean.name} of block0"
    assert (place.axis, place.mean, place.copies) == (1, block.mean, block.copies)
    with pytest.raises(dataclasses.FrozenInstanceError):
        place.axis = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        MeanBeforeLinear().name = "other"  # type: ignore[misc]
    assert MeanBeforeLinear() == MeanBeforeLinear()
    assert place == dataclasses.replace(place)
    assert MeanBeforeLinear.prepares is True
