"""Which nodes are equal, and that the first of them stands for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsify.passes import Share
from sparsify.passes.share import Twins

from .sketch import Sketch, aten, run, targets


def shared(sketch: Sketch, *results: Any, **options: Any) -> int:
    """How many places the pass finds in a graph with these results."""
    sketch.output(*results)
    program = sketch.program(**options)
    count = Share().run(program)
    assert Share().run(program) == 0, "a second run finds nothing"
    return count


def test_the_first_of_equal_operators_is_kept() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    first, other, third = (sketch(aten.neg.default, x) for _ in range(3))
    total = sketch(aten.add.Tensor, sketch(aten.mul.Tensor, other, 3), sketch(aten.mul.Tensor, third, 5))
    assert shared(sketch, total, first) == 1
    assert targets(sketch.graph) == [aten.neg.default, aten.mul.Tensor, aten.mul.Tensor, aten.add.Tensor]
    values = torch.tensor([[1.0, 2.0]])
    assert torch.equal(run(sketch.graph, values)[0], -8 * values)


def test_places_are_told_by_name() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    first, other, third = (sketch(aten.neg.default, x) for _ in range(3))
    sketch.output(first, other, third)
    (place,) = Share().match(sketch.program())
    assert place == Twins(first, (other, third)) and hash(place) == hash(Twins(first, (other, third)))
    assert Share().describe(place) == "neg_default and neg_default_1, neg_default_2"


def test_what_is_made_of_equal_values_is_equal() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    chains = [sketch(aten.tanh.default, sketch(aten.relu.default, sketch(aten.neg.default, x))) for _ in range(2)]
    assert shared(sketch, *chains) == 3
    assert targets(sketch.graph) == [aten.neg.default, aten.relu.default, aten.tanh.default]
    assert sketch.graph.output_node().args[0] == (chains[0], chains[0])


def test_every_body_and_the_outer_graph_are_looked_at_apart() -> None:
    outer, inner = Sketch(), Sketch()
    for sketch in (outer, inner):
        x = sketch.input("x", 2, 4)
        pair = [sketch(aten.neg.default, x) for _ in range(2)]
        if sketch is inner:
            body = sketch.body("block0", *pair)
        else:
            sketch.output(*pair)
    program = outer.program(body)
    assert Share().run(program) == 2
    assert [len(targets(graph)) for graph in program.graphs.values()] == [1, 1]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ((2,), (2,), True),
        ((2,), (2.0,), False),
        ((1,), (True,), False),
        ((0.0,), (-0.0,), False),
        ((2,), (3,), False),
    ],
)
def test_numbers_are_equal_if_they_are_of_one_type(one: tuple[Any], other: tuple[Any], equal: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    assert shared(sketch, sketch(aten.pow.Tensor_Scalar, x, *one), sketch(aten.pow.Tensor_Scalar, x, *other)) == equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1, 0], [1, 0], True),
        ([1, 0], (1, 0), True),
        ([1, 0], [0, 1], False),
        ([1, 0], [-1, 0], False),
    ],
)
def test_lists_are_equal_if_all_in_them_is(one: Any, other: Any, equal: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    assert shared(sketch, sketch(aten.permute.default, x, one), sketch(aten.permute.default, x, other)) == equal


def test_keywords_are_compared_in_any_order() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    one = sketch(aten.full_like.default, x, 1, dtype=torch.float64, pin_memory=False)
    other = sketch(aten.full_like.default, x, 1, pin_memory=False, dtype=torch.float64)
    third = sketch(aten.full_like.default, x, 1, pin_memory=False, dtype=torch.float32)
    assert shared(sketch, one, other, third) == 1
    assert len(targets(sketch.graph)) == 2


def test_operands_and_operators_must_be_the_same() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 2, 4), sketch.input("y", 2, 4)
    pairs = [sketch(aten.sub.Tensor, x, y), sketch(aten.sub.Tensor, y, x), sketch(aten.add.Tensor, x, y)]
    assert shared(sketch, *pairs, sketch(aten.neg.default, x), sketch(aten.neg.default, y)) == 0


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.rand_like.default, ()),
        (aten.dropout.default, (0.5, True)),
        (aten.empty_like.default, ()),
        (aten.new_empty.default, ([2],)),
    ],
)
def test_what_differs_at_every_run_is_never_equal(target: Any, args: tuple[Any, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    assert shared(sketch, sketch(target, x, *args), sketch(target, x, *args)) == 0


def test_dropout_that_drops_nothing_is_shared() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    assert shared(sketch, *(sketch(aten.dropout.default, x, 0.5, False) for _ in range(2))) == 1


def test_operators_of_higher_order_are_left() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    regions = []
    for _ in range(2):
        regions.append(sketch.graph.call_function(torch.ops.higher_order.wrap_with_set_grad_enabled, (False, x)))
        regions[-1].meta["val"] = x.meta["val"]
    assert shared(sketch, *regions) == 0


def test_calls_of_blocks_and_inputs_are_left() -> None:
    inner, sketch = Sketch(), Sketch()
    body = inner.body("block0", inner(aten.neg.default, inner.input("x", 2, 4)))
    x, y = sketch.input("x", 2, 4), sketch.input("y", 2, 4)
    sketch.output(sketch.block("blocks.0", body, x), sketch.block("blocks.1", body, x), y)
    assert Share().run(sketch.program(body)) == 0


def attributes(sketch: Sketch) -> list[Any]:
    return [sketch.attribute(name, 4) for name in ("a", "b", "c", "a")]


def test_one_tensor_under_several_names_is_read_once_in_the_outer_graph() -> None:
    sketch = Sketch()
    a, b, c, again = attributes(sketch)
    sums = [sketch(aten.neg.default, node) for node in (a, b, c, again)]
    assert shared(sketch, *sums, tied={"b": "a"}) == 2
    assert [node.target for node in sketch.graph.find_nodes(op="get_attr")] == ["a", "c"]
    assert sketch.graph.output_node().args[0] == (sums[0], sums[0], sums[2], sums[0])


def test_names_inside_of_blocks_are_their_own() -> None:
    outer, inner = Sketch(), Sketch()
    body = inner.body("block0", *attributes(inner))
    outer.output(outer.input("x", 2))
    assert Share().run(outer.program(body, tied={"b": "a"})) == 1
    assert [node.target for node in body.graph.find_nodes(op="get_attr")] == ["a", "b", "c"]


def test_an_attribute_is_no_operator() -> None:
    sketch = Sketch()
    node = sketch.attribute("x", 2, 4)
    assert shared(sketch, sketch(aten.neg.default, node), sketch(aten.relu.default, node)) == 0


def test_sharing_makes_no_other_model() -> None:
    assert Share.prepares
