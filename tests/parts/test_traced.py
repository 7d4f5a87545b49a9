"""Python code written into a graph: order, sizes, devices, what it asks of sizes, and errors that leave the graph alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsify.errors import RewriteError
from sparsify.facts import FACTS
from sparsify.passes.traced import write
from sparsify.shapes import shape_of, size_of

from .sketch import Sketch, aten, run, targets


def a_graph(hint: int = 3) -> tuple[Sketch, fx.Node, fx.Node]:
    """``relu(x)`` of (size, 4), and the node of it."""
    sketch = Sketch()
    x = sketch.input("x", sketch.size(hint), 4)
    relu = sketch(aten.relu.default, x)
    sketch.output(relu)
    return sketch, x, relu


def names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.nodes]


@pytest.mark.parametrize("after", [True, False])
def test_operators_keep_their_order_at_the_insertion_point(after: bool) -> None:
    sketch, x, relu = a_graph()
    with sketch.graph.inserting_after(x) if after else sketch.graph.inserting_before(relu):
        result, made = write(sketch.graph, lambda v: (-v + 1) * 2, [x])
    assert targets(sketch.graph) == [aten.neg.default, aten.add.Tensor, aten.mul.Tensor, aten.relu.default]
    assert [node.target for node in made] == targets(sketch.graph)[:3] and result is made[-1]
    relu.replace_input_with(x, result)
    values = torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    assert torch.equal(run(sketch.graph, values), ((1 - values) * 2).relu())


def test_sizes_stay_open() -> None:
    sketch, x, _ = a_graph()
    with sketch.graph.inserting_after(x):
        result, made = write(sketch.graph, lambda v: torch.arange(v.shape[0]), [x])
    assert shape_of(result) == shape_of(x)[:1] and isinstance(shape_of(result)[0], sympy.Symbol)
    assert all("val" in node.meta for node in made)
    sketch.graph.output_node().args = (result,)
    assert torch.equal(run(sketch.graph, torch.randn(5, 4)), torch.arange(5))


def test_composite_operators_stay_whole() -> None:
    sketch = Sketch()
    x, w = sketch.input("x", sketch.size(3), 4), sketch.input("w", 2, 4)
    sketch.output(x)
    with sketch.graph.inserting_after(w):
        _, made = write(sketch.graph, lambda a, b: torch.softmax(torch.nn.functional.linear(a, b), -1), [x, w])
    assert [node.target for node in made] == [aten.linear.default, aten.softmax.int]


def test_arguments_may_be_nested_numbers_or_the_same_twice() -> None:
    sketch, x, relu = a_graph()
    with sketch.graph.inserting_after(relu):
        result, made = write(sketch.graph, lambda pair, more, factor, flag: (pair[0] - pair[1] * factor, {"k": [more[0]], "f": flag}),
                             [[x, relu], (x,), 3, "as it is"])  # fmt: skip
    assert [node.target for node in made] == [aten.mul.Tensor, aten.sub.Tensor]
    assert made[0].args == (relu, 3) and made[1].args == (x, made[0])
    assert result == (made[1], {"k": [x], "f": "as it is"})


def test_values_that_are_one_object_are_told_apart() -> None:
    sketch = Sketch()
    x = sketch.input("x", sketch.size(3), 4)
    one, other = sketch(aten.relu.default, x), sketch(aten.relu.default, x)
    assert one.meta["val"] is other.meta["val"], "else this tests nothing"
    sketch.output(one, other)
    with sketch.graph.inserting_after(other):
        _, made = write(sketch.graph, lambda a, b: a - b, [one, other])
    assert made[0].args == (one, other)


def test_a_size_may_be_given() -> None:
    sketch = Sketch()
    x, count = sketch.input("x", sketch.size(3), 4), sketch.number("count", sketch.size(7))
    sketch.output(x)
    with sketch.graph.inserting_after(count):
        result, made = write(sketch.graph, lambda a, n: (a * n, n + 1), [x, count])
    assert size_of(result[1].meta["val"]) == size_of(count.meta["val"]) + 1
    assert {node.target for node in made} == {aten.mul.Tensor, operator.add}
    sketch.graph.output_node().args = (result,)
    assert run(sketch.graph, torch.ones(1, 4), 5)[1] == 6


def test_what_nobody_reads_is_not_written() -> None:
    sketch, x, _ = a_graph()
    with sketch.graph.inserting_after(x):
        _, made = write(sketch.graph, lambda v: (torch.tanh(v), -v)[1], [x])
    assert [node.target for node in made] == [aten.neg.default]


def test_what_is_made_is_on_the_device_of_what_is_given() -> None:
    sketch = Sketch()
    x = sketch.input("x", 3, 4, device="meta")
    sketch.output(x)
    with sketch.graph.inserting_after(x):
        result, _ = write(sketch.graph, lambda v: torch.ones(4), [x])
    assert result.meta["val"].device.type == "meta"
    assert write(sketch.graph, lambda: torch.ones(2), [])[0].meta["val"].device.type == "meta", "or as those of the graph"


def test_a_mode_without_open_sizes_will_do() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = FakeTensorMode().from_tensor(torch.ones(2, 3))
    graph.output(x)
    with graph.inserting_after(x):
        result, made = write(graph, lambda v: v * 2 if v.shape[0] > 1 else v, [x])
    assert made == [result] and FACTS not in result.meta


def test_what_it_asks_of_sizes_is_noted_on_what_it_made() -> None:
    sketch, x, _ = a_graph(hint=5)
    symbol = shape_of(x)[0]
    with sketch.graph.inserting_after(x):
        _, first = write(sketch.graph, lambda v: -v * 2 if v.shape[0] > 4 else v, [x])
        _, second = write(sketch.graph, lambda v: -v if v.shape[0] < 9 else v, [x])
        _, third = write(sketch.graph, lambda v: -v, [x])
    assert [node.meta[FACTS] for node in first] == [(symbol > 4,)] * 2
    assert [node.meta[FACTS] for node in second] == [(symbol < 9,)]
    assert FACTS not in third[0].meta


def failing(error: Exception) -> Callable[..., Any]:
    def fails(*values: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (ValueError("odd"), "odd"),
        (TypeError("no such thing"), "no such thing"),
        (IndexError("too far"), "too far"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_code_that_does_not_run_is_refused_with_shapes(error: Exception, reason: str) -> None:
    sketch = Sketch()
    x, count = sketch.input("x", 3, 4), sketch.number("count", sketch.size(7))
    sketch.output(x)
    before = names(sketch.graph)
    with pytest.raises(RewriteError) as caught:
        write(sketch.graph, failing(error), [x, count])
    assert str(caught.value) == f"fails does not run on %x: [3, 4], %count: a size: {reason}"
    assert names(sketch.graph) == before


def test_other_errors_are_bugs_and_stay_what_they_are() -> None:
    sketch, x, _ = a_graph()
    with pytest.raises(KeyError, match="missing"):
        write(sketch.graph, failing(KeyError("missing")), [x])


def test_open_sizes_of_a_refusal_have_no_quotes() -> None:
    sketch, x, _ = a_graph()
    with pytest.raises(RewriteError, match=r"does not run on %x: \[\w+, 4\]: "):
        write(sketch.graph, lambda v: v @ v, [x])


def test_tensors_of_numbers_are_refused() -> None:
    sketch, x, _ = a_graph()
    before = names(sketch.graph)
    with pytest.raises(RewriteError, match=r"<lambda> makes the tensor .* of numbers; make it with torch.full or torch.arange"):
        write(sketch.graph, lambda v: v * torch.tensor([1.0, 2.0, 3.0, 4.0]), [x])
    assert names(sketch.graph) == before


def test_nothing_is_written_for_what_hands_on_its_argument() -> None:
    sketch, x, _ = a_graph()
    assert write(sketch.graph, lambda v: v, [x]) == (x, [])
