"""Patterns: what they find, what they leave alone, and how a miss is explained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from sparsify import Policy, PolicyError, RewriteError, sparsify
from sparsify.passes import FuseAttention, NodePattern, Pattern, PatternPass, explain, find
from sparsify.program import Program
from sparsify.shapes import shape_of
from sparsify.text import graph_text

from .helpers import analysed, inputs, plain

aten = torch.ops.aten


def attention(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(q @ k, dim=-1) @ v


def graph_of(function: Any) -> fx.Graph:
    return Pattern(function).graph


@functools.cache
def captured(style: str) -> Program:
    """Not to be changed: several tests look at it."""
    return analysed(plain(style=style))


# --- traced functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "targets"),
    [
        (attention, ["aten.matmul.default", "aten.softmax.int", "aten.matmul.default"]),
        (lambda x: F.softmax(x, dim=-1), ["aten.softmax.int"]),
        (lambda x, w, b: F.silu(F.linear(x, w, b)), ["aten.linear.default", "aten.silu.default"]),
        (lambda x: 2 * x + 1, ["aten.mul.Tensor", "aten.add.Tensor"]),
        (lambda x, y: (x - y) / x, ["aten.sub.Tensor", "aten.div.Tensor"]),
        (lambda x: x.transpose(1, 2).reshape(-1, 4), ["aten.transpose.int", "aten.reshape.default"]),
        (lambda x, y: torch.cat([x, y], dim=1), ["aten.cat.default"]),
        (lambda x: x.chunk(2, dim=-1)[0] * 3, ["aten.chunk.default", "<built-in function getitem>", "aten.mul.Tensor"]),
        (lambda x: F.gelu(x, approximate="tanh"), ["aten.gelu.default"]),
        (lambda x: x.mean(dim=1, keepdim=True), ["aten.mean.dim"]),
        (lambda x: aten.expand.default(x, [1, 2]), ["aten.expand.default"]),
    ],
)
def test_plain_torch_becomes_the_operators_of_the_ir(function: Any, targets: list[str]) -> None:
    assert [str(node.target) for node in graph_of(function).nodes if node.op == "call_function"] == targets


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.shape[0] * x, "getattr in a pattern is no ATen operator"),
        (lambda x: x[:, 0], "getitem"),
        (lambda x, y: F.relu(x), "does not use its argument 'y'"),
        (lambda x: x, "must return what its operators yield"),
        (lambda x: F.relu(x, inplace=True), "fits no overload"),
        (lambda x: torch.softmax(x), "cannot be traced: softmax"),
        (lambda x: x if x else -x, "cannot be traced: symbolically traced variables"),
    ],
)
def test_a_function_that_is_no_pattern_is_refused(function: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Pattern(function)


def test_hand_written_attention_is_found_with_its_operands() -> None:
    program = captured("manual")
    (place,) = find(program, Pattern(attention))
    assert place.where == "block0"
    match = place.found
    assert list(match.inputs) == ["q", "k", "v"]
    assert match.inputs["k"].target == aten.transpose.int
    assert match.output.target == aten.matmul.default and match.output.args[1] is match.inputs["v"]
    assert len(match.nodes) == 3


def test_one_argument_stands_for_one_value() -> None:
    graph = graph_of(lambda x, y: torch.add(x * y, x * x))
    (match,) = Pattern(lambda a: a * a).find(graph)
    assert match.inputs["a"].name == "x"


def test_what_others_read_too_is_no_match() -> None:
    graph = graph_of(lambda x, w: torch.add(F.relu(F.linear(x, w)), torch.neg(F.linear(x, w))))
    assert Pattern(lambda x, w: F.relu(F.linear(x, w))).find(graph)
    leaking = fx.Graph()
    x, w = leaking.placeholder("x"), leaking.placeholder("w")
    linear = leaking.call_function(aten.linear.default, (x, w))
    relu = leaking.call_function(aten.relu.default, (linear,))
    leaking.output((relu, leaking.call_function(aten.neg.default, (linear,))))
    pattern = Pattern(lambda x, w: F.relu(F.linear(x, w)))
    assert not pattern.find(leaking)
    assert str(pattern.nearest_miss(leaking)) == (
        "matched 2 of 2 operators of the pattern: %linear_default is read outside of the pattern too, by %neg_default"
    )


# --- the nearest miss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "miss"),
    [
        (
            lambda q, k, v: F.relu(q @ k) @ v,
            "matched 1 of 3 operators of the pattern: aten.softmax.int expected as operand 0 (self) of %matmul_1, "
            "found aten.relu.default %relu",
        ),
        (
            lambda q, k, v: torch.softmax(q @ k, dim=-2) @ v,
            "matched 2 of 3 operators of the pattern: -1 expected as operand 1 (dim) of %softmax, found -2",
        ),
        (
            lambda q, k, v: torch.softmax(q + k, dim=-1) @ v,
            "matched 2 of 3 operators of the pattern: aten.matmul.default expected as operand 0 (self) of %softmax, "
            "found aten.add.Tensor %add",
        ),
        (
            lambda q, v: q @ v,
            "matched 1 of 3 operators of the pattern: aten.softmax.int expected as operand 0 (self) of %matmul, "
            "found the input %q",
        ),
        (
            lambda q: F.relu(q),
            "matched 0 of 3 operators of the pattern: no node is aten.matmul.default, which the pattern ends with",
        ),
    ],
)
def test_a_miss_says_what_came_closest_and_what_differs(there: Any, miss: str) -> None:
    graph = graph_of(there)
    pattern = Pattern(attention)
    assert not pattern.find(graph)
    assert str(pattern.nearest_miss(graph)) == miss


def test_a_value_that_should_be_the_same_twice() -> None:
    miss = Pattern(lambda a: a * a).nearest_miss(graph_of(lambda x, y: x * y))
    assert miss is not None
    assert miss.reason == "operand 1 (other) of %mul is the input %y, but a of the pattern is the input %x"


@pytest.mark.parametrize(
    ("wanted", "there", "miss"),
    [
        (
            lambda x: x.permute(0, 2, 1),
            lambda x: x.permute(0, 1, 2),
            "2 expected as item 1 of operand 1 (dims) of %permute, found 1",
        ),
        (
            lambda x: x.reshape(-1, 4),
            lambda x: x.reshape(-1, 2, 2),
            "[-1, 4] expected as operand 1 (shape) of %reshape, found [-1, 2, 2]",
        ),
        (
            lambda x: torch.cat([x, x], dim=1),
            lambda x, y: torch.cat([x, y], dim=1),
            "item 1 of operand 0 (tensors) of %cat is the input %y, but x of the pattern is the input %x",
        ),
    ],
)
def test_a_miss_says_which_item_of_a_list_differs(wanted: Any, there: Any, miss: str) -> None:
    found = Pattern(wanted).nearest_miss(graph_of(there))
    assert found is not None and found.reason == miss


def test_of_several_results_that_are_nowhere_the_miss_names_the_last() -> None:
    found = Pattern(lambda x, y: (F.relu(x), torch.neg(y))).nearest_miss(graph_of(lambda x: torch.tanh(x)))
    assert str(found) == "matched 0 of 2 operators of the pattern: no node is aten.neg.default, which the pattern ends with"


def test_in_a_program_the_miss_names_the_graph() -> None:
    program = captured("manual-after")
    text = explain(program, Pattern(attention))
    assert text is not None and text.endswith(", in block0")
    assert "aten.softmax.int expected as operand 0 (self)" in text and "found aten.to.dtype" in text


# --- conditions on one node ----------------------------------------------------------------------------------------------


def test_nodes_by_conditions_and_their_nearest_miss() -> None:
    program = captured("fused")
    wide = NodePattern(
        is_linear=lambda node: node.target == aten.linear.default,
        is_wide=lambda node: shape_of(node)[-1] >= 128,
    )
    assert [str(shape_of(place.found)[-1]) for place in find(program, wide)] == ["192", "128"]
    wider = NodePattern(is_linear=wide.conditions["is_linear"], is_wider=lambda node: shape_of(node)[-1] > 1000)
    assert not find(program, wider)
    text = explain(program, wider)
    assert text is not None and "meets is_linear, but not is_wider" in text and text.startswith("matched 1 of 2 conditions")
    none = explain(program, NodePattern(is_conv=lambda node: node.target == aten.conv3d.default))
    assert none == "matched 0 of 1 conditions of the pattern: no node meets is_conv"


# --- a pass made of two functions ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuickGelu(PatternPass):
    """``x sigmoid(a x)`` for GELU."""

    slope: float = 1.702
    name: ClassVar[str] = "quick-gelu"

    def pattern(self, x: Any) -> Any:
        return F.gelu(x, approximate="tanh")

    def replacement(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.slope * x)


def test_a_pattern_pass_replaces_every_place() -> None:
    model = plain().double()
    x, t, y = inputs()
    sparse = sparsify(model, Policy.dense(), (x.double(), t, y), passes=QuickGelu(1.5))
    text = graph_text(sparse.program.bodies["block0"].graph)
    assert "= gelu" not in text and "sigmoid" in text and "# quick-gelu from gelu" in text
    for block in model.blocks:
        block.mlp[1] = Quick()
    assert (sparse(x.double(), t, y) - model(x.double(), t, y)).abs().max() < 1e-10


class Quick(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.5 * x)


def test_places_in_a_row_follow_one_another() -> None:
    class Squares(QuickGelu):
        name = "squares"

        def pattern(self, x: Any) -> Any:
            return torch.neg(x)

        def replacement(self, x: torch.Tensor) -> torch.Tensor:
            return x * 3

    program = analysed(plain())
    node = program.block_nodes[5]
    with program.graph.inserting_before(node.next):
        twice = node
        for _ in range(3):
            twice = program.graph.call_function(aten.neg.default, (twice,))
            twice.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(twice, delete_user_cb=lambda user: user > twice)
    assert Squares().run(program) == 3
    assert "neg" not in graph_text(program.graph).replace("from neg", "")
    assert graph_text(program.graph).count("mul.Tensor(%mul_tensor") == 2


def test_a_pattern_that_matches_nowhere_ends_in_the_error() -> None:
    class Exact(QuickGelu):
        name = "exact"

        def pattern(self, x: Any) -> Any:
            return F.gelu(x)

    with pytest.raises(
        RewriteError,
        match=r"exact at the whole model: matched 0 of 1 .*: none expected as operand 1 \(approximate\) of %gelu, found tanh",
    ):
        sparsify(plain(), Policy.dense(), inputs(), passes=Exact())


def test_a_replacement_of_another_kind_is_refused_and_leaves_the_graph_as_it_was() -> None:
    class Wrong(QuickGelu):
        name = "wrong"

        def replacement(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(-1)

    program = captured("fused")
    before = graph_text(program.bodies["block0"].graph)
    assert Wrong().run(program) == 0
    assert "not what gelu does" in program.skips[-1].reason
    assert graph_text(program.bodies["block0"].graph) == before


def test_fuse_attention_leaves_nothing_to_the_pattern() -> None:
    program = analysed(plain(style="manual"))
    assert FuseAttention().run(program) == 1
    assert not find(program, Pattern(attention))
