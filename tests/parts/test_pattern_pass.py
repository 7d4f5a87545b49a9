"""A pass made of two functions: where it replaces, in which order, and what it refuses and leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from sparsify.passes import PatternPass
from sparsify.text import graph_text

from .sketch import Sketch, aten, of_graphs, run, targets


@dataclass(frozen=True)
class Swap(PatternPass):
    """What to look for and what to put there, as options."""

    what: Callable[..., Any]
    by: Callable[..., Any]
    name: ClassVar[str] = "swap"

    def pattern(self, x: Any) -> Any:
        return self.what(x)

    def replacement(self, x: Any) -> Any:
        return self.by(x)


@dataclass(frozen=True)
class SwapTwo(Swap):
    name: ClassVar[str] = "swap-two"

    def pattern(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.what(x, y)

    def replacement(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.by(x, y)


def negs(count: int) -> fx.Graph:
    """That many negations in a row."""
    sketch = Sketch()
    node = sketch.input("x", sketch.size(3), 4)
    for _ in range(count):
        node = sketch(aten.neg.default, node)
    return sketch.output(node)


X = torch.tensor([[1.0, -2.0, 0.5, 3.0]])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_place_in_a_row_is_replaced(count: int) -> None:
    graph = negs(count)
    assert Swap(torch.neg, lambda x: x * 3).run(of_graphs(outer=graph)) == count
    assert targets(graph) == [aten.mul.Tensor] * count
    assert torch.equal(run(graph, X), X * 3**count)


def test_places_come_last_first() -> None:
    graph, other = negs(3), negs(1)
    places = list(Swap(torch.neg, torch.tanh).match(of_graphs(outer=graph, block0=other)))
    assert [(place.where, place.found.output.name) for place in places] == [
        ("block0", "neg_default"), ("outer", "neg_default_2"), ("outer", "neg_default_1"), ("outer", "neg_default"),
    ]  # fmt: skip
    assert Swap(torch.neg, torch.tanh).describe(places[1]) == "neg_default_2 of outer"


def test_what_is_put_there_says_where_it_comes_from() -> None:
    graph = negs(1)
    Swap(torch.neg, lambda x: torch.tanh(x) * 2).run(of_graphs(outer=graph))
    made = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.meta["provenance"] for node in made] == [("swap", "neg_default")] * 2
    assert [node.meta["val"].shape for node in made] == [made[0].args[0].meta["val"].shape] * 2


def test_several_results_are_each_replaced() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 2, 4), sketch.input("y", 3, 4)
    first, second = sketch(aten.relu.default, x), sketch(aten.tanh.default, y)
    graph = sketch.output(sketch(aten.neg.default, second), first)
    swap = SwapTwo(lambda x, y: (torch.relu(x), torch.tanh(y)), lambda x, y: [x * 2, y * 3])
    assert swap.run(of_graphs(outer=graph)) == 1
    assert aten.relu.default not in targets(graph) and aten.tanh.default not in targets(graph)
    got = run(graph, X.repeat(2, 1), X.repeat(3, 1))
    assert torch.equal(got[0], -3 * X.repeat(3, 1)) and torch.equal(got[1], 2 * X.repeat(2, 1))


@pytest.mark.parametrize(
    "by",
    [
        lambda x: x.sum(-1),
        lambda x: x.double(),
        lambda x: torch.zeros_like(x, device="meta"),
        lambda x: (torch.tanh(x), torch.relu(x)),
        lambda x: (),
        lambda x: x.shape[0],
    ],
    ids=["other axes", "other dtype", "other device", "two results", "no result", "a size"],
)
def test_another_kind_of_result_is_refused_and_the_graph_stays(by: Callable[..., Any]) -> None:
    graph = negs(2)
    before, given = graph_text(graph), of_graphs(outer=graph)
    assert Swap(torch.neg, by).run(given) == 0
    assert len(given.skips) == 2
    assert [skip.where for skip in given.skips] == ["neg_default_1 of outer", "neg_default of outer"]
    assert all("not what neg_default" in skip.reason for skip in given.skips)
    assert graph_text(graph) == before


def test_the_reason_names_both_results() -> None:
    given = of_graphs(outer=negs(1))
    Swap(torch.neg, lambda x: x.sum(-1)).run(given)
    assert given.skips[0].reason == "the replacement yields ['sum_dim_int_list'], not what neg_default does"


def test_an_input_that_is_computed_later_is_refused() -> None:
    """What is put in front of the first result would read it."""
    sketch = Sketch()
    x, y = sketch.input("x", 2, 4), sketch.input("y", 2, 4)
    first = sketch(aten.relu.default, x)
    late = sketch(aten.neg.default, y)
    graph = sketch.output(sketch(aten.tanh.default, late), first)
    before, given = graph_text(graph), of_graphs(outer=graph)
    assert SwapTwo(lambda x, y: (torch.relu(x), torch.tanh(y)), lambda x, y: (x, y)).run(given) == 0
    assert given.skips[0].reason == "neg_default is computed behind relu_default, which would come to depend on it"
    assert graph_text(graph) == before


def test_numbers_that_arguments_stand_for_reach_the_replacement() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    graph = sketch.output(sketch(aten.mul.Tensor, x, 5))
    assert SwapTwo(lambda x, y: x * y, lambda x, y: x + y).run(of_graphs(outer=graph)) == 1
    assert torch.equal(run(graph, X), X + 5)


def test_where_nothing_matches_the_miss_is_told() -> None:
    given = of_graphs(outer=negs(1))
    assert Swap(torch.tanh, torch.neg).run(given) == 0
    (skip,) = given.skips
    assert skip.where == "the whole model" and "no node is aten.tanh.default" in skip.reason


def test_a_pattern_is_traced_once() -> None:
    traced = []

    def what(x: Any) -> Any:
        traced.append(x)
        return torch.tanh(x)

    swap = Swap(what, torch.neg)
    for _ in range(2):
        swap.run(of_graphs(outer=negs(1)))
    assert len(traced) == 1


@pytest.mark.parametrize("missing", ["pattern", "replacement"])
def test_both_functions_are_asked_for(missing: str) -> None:
    half = type("Half", (PatternPass,), {"name": "half", "pattern": torch.neg, "replacement": torch.neg} | {missing: None})
    delattr(half, missing)
    half = type(
        "Half", (PatternPass,), {key: value for key, value in vars(half).items() if key in ("name", "pattern", "replacement")}
    )
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        half()
