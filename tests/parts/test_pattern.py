"""What patterns find in small graphs, and which miss counts as the nearest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from sparsify.passes import NodePattern, Pattern, explain, find
from sparsify.passes.nearest import Miss
from sparsify.passes.pattern import Match, Place

from .sketch import aten, of_graphs


def graph_of(function: Any) -> fx.Graph:
    return Pattern(function).graph


def two_results(x: Any, y: Any) -> Any:
    return torch.neg(F.relu(x)), torch.tanh(y)


def test_a_match_names_inputs_operators_and_results() -> None:
    graph = graph_of(lambda a, b: torch.tanh(torch.neg(F.relu(a)) * torch.tanh(b)))
    a, b, relu, neg, tanh, *_ = graph.nodes
    (match,) = Pattern(two_results).find(graph)
    assert match.inputs == {"x": a, "y": b}
    assert list(match.nodes.values()) == [relu, neg, tanh] and list(match.nodes) == ["relu", "neg", "tanh"]
    assert match.outputs == (neg, tanh) and match.output is neg


def test_the_output_of_a_match_is_its_first() -> None:
    first, second = graph_of(lambda a: F.relu(torch.neg(a))).nodes.__iter__(), object()
    node = next(first)
    assert Match({}, {}, (node, second)).output is node  # type: ignore[arg-type]


def test_an_argument_may_stand_for_a_number() -> None:
    (match,) = Pattern(lambda x, y: x * y).find(graph_of(lambda a: a * 3))
    assert match.inputs["y"] == 3 and match.inputs["x"].name == "a"


def test_numbers_of_a_pattern_are_compared() -> None:
    pattern = Pattern(lambda x: x * 3)
    assert len(pattern.find(graph_of(lambda a: a * 3))) == 1
    assert pattern.find(graph_of(lambda a: a * 4)) == []


def test_all_places_are_found_and_none_twice() -> None:
    graph = graph_of(lambda a: F.relu(torch.neg(F.relu(torch.neg(a)))))
    found = Pattern(lambda x: F.relu(torch.neg(x))).find(graph)
    assert sorted(match.output.name for match in found) == ["relu", "relu_1"]
    chain = graph_of(lambda a: torch.neg(torch.neg(torch.neg(a))))
    assert len(Pattern(lambda x: torch.neg(torch.neg(x))).find(chain)) == 1, "matches do not overlap"


def test_a_pattern_compares_again_and_again() -> None:
    pattern = Pattern(lambda x: torch.neg(x))
    assert [len(pattern.find(graph_of(lambda a: torch.neg(a)))) for _ in range(2)] == [1, 1]
    assert pattern.nearest_miss(graph_of(lambda a: F.relu(a))) == Miss(
        0, 1, "operators", "no node is aten.neg.default, which the pattern ends with"
    )


# --- conditions on one node ----------------------------------------------------------------------------------------------

GRAPH = graph_of(lambda a, b: torch.tanh(F.relu(a) * b))  # placeholders a, b; relu, mul, tanh, output


def is_call(node: fx.Node) -> bool:
    return node.op == "call_function"


def is_unary(node: fx.Node) -> bool:
    assert is_call(node), "a condition is asked only where those before it hold"
    return len(node.args) == 1


def test_nodes_that_meet_all_conditions() -> None:
    assert [node.name for node in NodePattern(is_call=is_call, is_unary=is_unary).find(GRAPH)] == ["relu", "tanh"]
    assert [node.name for node in NodePattern(is_call=is_call).find(GRAPH)] == ["relu", "mul", "tanh"]
    assert NodePattern(never=lambda node: False).find(GRAPH) == []


def test_where_nodes_meet_all_conditions_nothing_missed() -> None:
    assert NodePattern(is_call=is_call, is_unary=is_unary).nearest_miss(GRAPH) is None


def test_the_nearest_miss_meets_the_most_conditions() -> None:
    finder = NodePattern(is_call=is_call, is_unary=is_unary, is_last=lambda node: node.name == "mul", more=lambda node: True)
    miss = finder.nearest_miss(GRAPH)
    assert miss == Miss(2, 4, "conditions", "%relu meets is_call, is_unary, but not is_last")


def test_where_no_node_meets_the_first_condition_that_is_said() -> None:
    miss = NodePattern(never=lambda node: False, is_call=is_call).nearest_miss(GRAPH)
    assert miss == Miss(0, 2, "conditions", "no node meets never")


# --- programs ------------------------------------------------------------------------------------------------------------


def test_places_carry_their_graph_and_its_name() -> None:
    outer, inner = graph_of(lambda a: torch.neg(a)), graph_of(lambda a: torch.neg(torch.neg(a)))
    places = find(of_graphs(outer=outer, block0=inner), NodePattern(is_neg=lambda node: node.target == aten.neg.default))
    assert [(place.where, place.graph, place.found.name) for place in places] == [
        ("outer", outer, "neg"),
        ("block0", inner, "neg"),
        ("block0", inner, "neg_1"),
    ]
    assert all(isinstance(place, Place) for place in places)


class Missing:
    """Finds nothing; a graph stands for its own miss."""

    def find(self, graph: Any) -> list[Any]:
        return []

    def nearest_miss(self, graph: Any) -> Miss | None:
        return graph  # type: ignore[no-any-return]


def miss(matched: int, kinship: int, reason: str) -> Miss:
    return Miss(matched, 5, "operators", reason, kinship)


@pytest.mark.parametrize(
    ("misses", "want"),
    [
        ([], None),
        ([None, None], None),
        ([miss(1, 0, "why"), None], "matched 1 of 5 operators of the pattern: why, in graph0"),
        ([miss(1, 9, "less"), miss(2, 0, "more")], "matched 2 of 5 operators of the pattern: more, in graph1"),
        (
            [miss(2, 1, "strange"), miss(2, 3, "akin"), miss(2, 2, "less")],
            "matched 2 of 5 operators of the pattern: akin, in graph1",
        ),
        ([miss(0, 0, "nowhere")], "matched 0 of 5 operators of the pattern: nowhere"),
        ([None, miss(0, 2, "akin")], "matched 0 of 5 operators of the pattern: akin, in graph1"),
    ],
)
def test_the_nearest_of_several_misses_is_told(misses: list[Miss | None], want: str | None) -> None:
    assert explain(of_graphs(**{f"graph{index}": each for index, each in enumerate(misses)}), Missing()) == want
