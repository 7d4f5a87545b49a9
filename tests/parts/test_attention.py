"""Attention of every kind on bodies of a few nodes, and what follows the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from sparsify.attention import (
    SDPA,
    Attention,
    aligned_inputs,
    dependents,
    follows_tokens,
    mixes_tokens,
    moving_axes,
    moving_nodes,
    refusal_to_mix,
    self_attentions,
)

from .sketch import Sketch, aten, expr
from .token_body import Made


def test_operands_are_read_by_place_and_by_name() -> None:
    made = Made()
    q, k, v = made.heads(made.x), made.heads(made.text), made.heads(made.text)
    mask = made.sketch.input("mask", made.n, made.m)
    for node in (made(SDPA, q, k, v, mask), made(SDPA, q, k, value=v, attn_mask=mask)):
        assert Attention.of(node) == Attention(node, q, k, v, mask)
    assert Attention.of(made(SDPA, q, k, v)).mask is None
    assert len({Attention.of(node), Attention.of(node)}) == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "causal"),
    [
        ((), {}, False),
        ((None, 0.0, True), {}, True),
        ((None, 0.0, False), {}, False),
        ((None, 0.5), {}, False),
        ((), {"is_causal": True}, True),
        ((), {"is_causal": False}, False),
        ((), {"dropout_p": 0.5}, False),
    ],
)
def test_causal_attention_is_known_by_its_flag(args: Any, kwargs: Any, causal: bool) -> None:
    made = Made()
    node = made.attend(made.x, made.x, *args, **kwargs)
    assert Attention.of(node).is_causal is causal
    said = refusal_to_mix(made.body)
    assert said == (f"{node.name} is causal" if causal else None)


def test_causal_attention_to_a_text_is_no_reason() -> None:
    made = Made()
    made.attend(made.x, made.text, None, 0.0, True)
    assert refusal_to_mix(made.body) is None


def test_a_block_of_one_number_of_tokens_takes_no_others() -> None:
    sketch = Sketch()
    sketch.input("x", 2, 12, 8)
    assert refusal_to_mix(sketch.body()) == "the block is tied to 12 tokens"
    assert refusal_to_mix(sketch.body(token_axis=2)) == "the block is tied to 8 tokens"


@pytest.mark.parametrize(
    ("query", "value", "shared"),
    [((2, 4, 6, 8), (2, 4, 6, 8), False), ((2, 4, 6, 8), (2, 1, 6, 8), True), ((4, 6, 8), (2, 6, 8), True), ((4, 6, 8), (4, 6, 8), False),
     ((6, 8), (6, 8), False)],
)  # fmt: skip
def test_grouped_queries_share_the_heads_of_values(query: Any, value: Any, shared: bool) -> None:
    sketch = Sketch()
    q, v = sketch.input("q", *query), sketch.input("v", *value)
    assert Attention(q, q, v, v, None).shares_values is shared


def test_dependents_are_the_starts_and_all_behind_them() -> None:
    made = Made()
    a = made(aten.neg.default, made.x)
    b = made(aten.add.Tensor, a, made.x)
    c = made(aten.neg.default, made.vector)
    d = made(aten.cat.default, [b, made.text], 1)
    assert dependents(made.graph, [a]) == {a, b, d}
    assert dependents(made.graph, [made.x, c]) == {made.x, a, b, c, d}
    assert dependents(made.graph, []) == set()


def test_sizes_and_axes_that_follow_the_tokens() -> None:
    made = Made()
    n, m, body = expr(made.n), expr(made.m), made.body
    assert [follows_tokens(body, size) for size in (n, 2 * n, n + m, m, 12, sympy.Integer(12))] == [True] * 3 + [False] * 3
    assert [moving_axes(body, node) for node in (made.x, made.text, made.square, made.count)] == [[1], [], [0, 1], []]


def test_inputs_that_go_along_are_those_with_a_row_for_each_token_and_their_number() -> None:
    made = Made()
    body = made.body
    assert [body.placeholders[position].name for position in aligned_inputs(body)] == ["x", "table", "count", "square"]
    made.sketch.number("other", made.m)


def test_nodes_that_move_are_made_from_inputs_that_go_along() -> None:
    made = Made()
    a, b = made(aten.neg.default, made.table), made(aten.neg.default, made.text)
    c = made(aten.sum.dim_IntList, a, [0])
    made.graph.output(b)
    assert moving_nodes(made.body) == {made.x, made.table, made.count, made.square, a, c}


def test_attention_to_the_tokens_is_found_in_order_and_no_other() -> None:
    made = Made()
    first = made.attend(made.x, made.x)
    made.attend(made.x, made.text)
    joint = made(aten.cat.default, [made.text, made.x], 1)
    second = made.attend(made.x, joint)
    made.attend(made.x, made(aten.slice.Tensor, made.x, 1, 0, 3))  # keys of a fixed number
    across = made.heads(made(aten.transpose.int, made.x, 0, 1))  # (n, 2 heads, 2, 4): over the first axis, as over time
    made(SDPA, across, across, across)
    made.attend(
        made.x,
        made(aten.expand.default, made(aten.unsqueeze.default, made(aten.ones.default, [made.count, 8]), 0), [2, -1, -1]),
    )
    assert [attention.node for attention in self_attentions(made.body)][:2] == [first, second]
    assert len(self_attentions(made.body)) == 3, "also to what is made from their number"
    assert mixes_tokens(made.body)


def test_attention_to_rows_that_are_no_tokens_of_the_block_is_not_among_its_own() -> None:
    sketch = Sketch()
    n = sketch.size(12)
    x = sketch.input("x", 2, n, 8)
    memory = sketch.attribute("memory", 2, n, 8)
    sketch.graph.call_function(SDPA, (x, memory, memory))
    assert self_attentions(sketch.body(moving=[n])) == []
