"""What mixes tokens, on bodies of a few nodes: attention of every kind, sums, squares and positions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx

from sparsify.attention import (
    SDPA,
    Attention,
    aligned_inputs,
    contractions,
    dependents,
    follows_tokens,
    mixes_tokens,
    moving_axes,
    moving_nodes,
    refusal_of_counts,
    refusal_of_positions,
    refusal_to_mix,
    self_attentions,
    unrecognised_mixing,
)
from sparsify.program import Body

from .sketch import Sketch, aten, expr


class Made:
    """A body of tokens (2, n, 8), a text (2, m, 8), a table (n, 8), a vector (2, 8), their number and a square (n, n)."""

    def __init__(self) -> None:
        self.sketch = sketch = Sketch()
        self.graph = sketch.graph
        self.n, self.m = sketch.sizes(12, 5)
        self.x, self.text = sketch.input("x", 2, self.n, 8), sketch.input("text", 2, self.m, 8)
        self.table, self.vector = sketch.input("table", self.n, 8), sketch.input("vector", 2, 8)
        self.count = sketch.number("count", self.n)
        self.square = sketch.input("square", self.n, self.n)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if target is not SDPA:
            return self.sketch(target, *args, **kwargs)
        node = self.graph.call_function(target, args, kwargs)  # not run: that takes long the first time
        node.meta["val"] = args[0].meta["val"]
        return node

    def heads(self, node: fx.Node, heads: int = 2) -> fx.Node:
        return self(aten.transpose.int, self(aten.unflatten.int, node, 2, [heads, -1]), 1, 2)

    def attend(self, query: fx.Node, key: fx.Node, *rest: Any, **named: Any) -> fx.Node:
        return self(SDPA, self.heads(query), self.heads(key), self.heads(key), *rest, **named)

    @property
    def body(self) -> Body:
        return self.sketch.body(moving=[self.n])


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
    (n,) = sketch.sizes(12)
    x = sketch.input("x", 2, n, 8)
    memory = sketch.attribute("memory", 2, n, 8)
    sketch.graph.call_function(SDPA, (x, memory, memory))
    assert self_attentions(sketch.body(moving=[n])) == []


SUMS: dict[str, tuple[Callable[[Made], fx.Node], bool]] = {
    "mean of the tokens": (lambda made: made(aten.mean.dim, made.x, [1]), True),
    "mean kept as a row": (lambda made: made(aten.mean.dim, made.x, [1], True), True),
    "mean of the channels": (lambda made: made(aten.mean.dim, made.x, [-1]), False),
    "sum of a table": (lambda made: made(aten.sum.dim_IntList, made.table, [0]), True),
    "sum of the text": (lambda made: made(aten.sum.dim_IntList, made.text, [1]), False),
    "largest": (lambda made: made(aten.amax.default, made.x, [1]), True),
    "least": (lambda made: made(aten.amin.default, made.x, [1]), True),
    "log of a sum": (lambda made: made(aten.logsumexp.default, made.x, [1]), True),
    "variance": (lambda made: made(aten.var.correction, made.x, [1]), True),
    "deviation": (lambda made: made(aten.std.correction, made.x, [1]), True),
    "keys by values": (lambda made: made(aten.matmul.default, made(aten.transpose.int, made.x, 1, 2), made.x), True),
    "batched product": (lambda made: made(aten.bmm.default, made(aten.transpose.int, made.x, 1, 2), made.x), True),
    "product of tables": (lambda made: made(aten.mm.default, made(aten.t.default, made.table), made.table), True),
    "einsum": (lambda made: made(aten.einsum.default, "bnc,bnd->bcd", [made.x, made.x]), True),
    "added product": (
        lambda made: made(aten.baddbmm.default, made(aten.mean.dim, made.vector, [0]), made(aten.transpose.int, made.x, 1, 2), made.x),
        True,
    ),
    "scores": (lambda made: made(aten.matmul.default, made.x, made(aten.transpose.int, made.x, 1, 2)), False),
    "a part": (lambda made: made(aten.select.int, made.x, 1, 0), False),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SUMS))
def test_sums_over_the_tokens(name: str) -> None:
    made = Made()
    write, sums = SUMS[name]
    node = write(made)
    assert contractions(made.body) == ([node] if sums else [])
    assert mixes_tokens(made.body) is sums


def test_sums_over_what_is_made_of_no_token_are_none() -> None:
    sketch = Sketch()
    (n,) = sketch.sizes(12)
    sketch.input("x", 2, n, 8)
    memory = sketch.attribute("memory", 2, n, 8)
    sketch(aten.mean.dim, memory, [1])
    assert contractions(sketch.body(moving=[n])) == []


def scores(made: Made) -> fx.Node:
    return made(aten.matmul.default, made.x, made(aten.transpose.int, made.x, 1, 2))


def test_a_row_and_a_column_per_token_must_be_attention_or_a_mask_of_it() -> None:
    made = Made()
    assert unrecognised_mixing(made.body) is None, "an input may be square"
    node = scores(made)
    said = unrecognised_mixing(made.body)
    assert said is not None and said.startswith(f"{node.name} (aten.matmul.default) has a row and a column per token")


def test_what_a_mask_is_made_of_is_accounted_for() -> None:
    made = Made()
    mask = made(aten.unsqueeze.default, made(aten.mul.Tensor, scores(made), 0.5), 1)
    made.attend(made.x, made.x, mask)
    assert unrecognised_mixing(made.body) is None


def test_the_mask_of_attention_to_a_text_accounts_for_nothing() -> None:
    made = Made()
    square = scores(made)
    mask = made(aten.slice.Tensor, square, 2, 0, 5)
    made(SDPA, made.x, made(aten.slice.Tensor, made.text, 1, 0, 5), made(aten.slice.Tensor, made.text, 1, 0, 5), mask)
    assert unrecognised_mixing(made.body) is not None


def test_multiples_count_as_tokens_and_two_sides_of_an_image_do_not() -> None:
    made = Made()
    twice = made(aten.cat.default, [made.x, made.x], 1)
    node = made(aten.matmul.default, twice, made(aten.transpose.int, made.x, 1, 2))
    assert node.name in (unrecognised_mixing(made.body) or "")
    sketch = Sketch()
    h, w = sketch.sizes(3, 4)
    sketch(aten.neg.default, sketch.input("x", 2, 8, h, w))
    assert unrecognised_mixing(sketch.body(moving=[h, w])) is None


def test_squares_of_what_does_not_follow_the_tokens_are_no_mixing() -> None:
    made = Made()
    made(aten.matmul.default, made.text, made(aten.transpose.int, made.text, 1, 2))
    assert unrecognised_mixing(made.body) is None


def test_an_entry_per_token_that_is_made_of_their_number_is_a_position() -> None:
    made = Made()
    node = made(aten.full.default, [made.count, 8], 1.0)
    assert refusal_of_positions(made.body) is None, "the same for all of them"
    made.graph.erase_node(node)
    number = made(operator.mul, made.count, 2)
    made(aten.neg.default, made.x)
    assert refusal_of_positions(made.body) is None, "a size is no entry, and tokens have values"
    places = made.graph.call_function(aten.arange.default, (number,))
    with made.sketch.mode:
        places.meta["val"] = torch.arange(2 * made.n)
    made(aten.mul.Tensor, places, 2)
    said = refusal_of_positions(made.body)
    assert said is not None and said.startswith(f"{places.name} (aten.arange.default) has one entry per token")


@pytest.mark.parametrize("target", [aten.zeros.default, aten.ones.default, aten.empty.memory_format])
def test_what_is_the_same_everywhere_is_no_position_until_it_is_summed_up(target: Any) -> None:
    made = Made()
    node = made.graph.call_function(target, ([made.count, 8],))
    node.meta["val"] = made.sketch.fake(made.n, 8)
    wide = made(aten.expand.default, node, [2, -1, -1])
    assert refusal_of_positions(made.body) is None
    made(aten.add.Tensor, wide, made.x)
    assert refusal_of_positions(made.body) is None
    places = made(aten.cumsum.default, node, 0)
    assert (refusal_of_positions(made.body) or "").startswith(places.name)


def test_values_that_were_given_stay_values_behind_other_operators() -> None:
    made = Made()
    made(aten.mul.Tensor, made(aten.neg.default, made.table), 2)
    assert refusal_of_positions(made.body) is None


def test_an_entry_that_follows_no_tokens_is_no_position() -> None:
    made = Made()
    node = made.graph.call_function(aten.arange.default, (8,))
    node.meta["val"] = made.sketch.fake(8)
    assert refusal_of_positions(made.body) is None


@pytest.mark.parametrize(
    ("condition", "count", "refused"),
    [
        (lambda n, m: n > 10, 9, True),
        (lambda n, m: n > 10, 10, True),
        (lambda n, m: n > 10, 11, False),
        (lambda n, m: sympy.Eq(n % 2, 0), 9, True),
        (lambda n, m: sympy.Eq(n % 2, 0), 8, False),
        (lambda n, m: sympy.Ne(n, 1), 1, False),  # of a size of one tracing always assumes that it is not one
        (lambda n, m: n > 10, 1, False),
        (lambda n, m: m > 10, 9, False),
        (lambda n, m: n > m, 3, False),  # the other is not known here
        (lambda n, m: True, 9, False),
    ],
)
def test_conditions_that_other_numbers_of_tokens_break(condition: Callable[..., Any], count: int, refused: bool) -> None:
    made = Made()
    n, m = expr(made.n), expr(made.m)
    body = made.body
    body.conditions = [n > 0, condition(n, m), n < 1000]
    said = refusal_of_counts(body, {n: count})
    assert (said is not None) == refused
    assert said is None or (f"takes another path for {{{n}: {count}}}" in said and str(condition(n, m)) in said)


def test_a_condition_on_other_sizes_breaks_nothing() -> None:
    made = Made()
    body = made.body
    body.conditions = [expr(made.m) > 10]
    assert refusal_of_counts(body, {expr(made.n): 9, expr(made.m): 3}) is None
    body.conditions = [expr(made.n) > expr(made.m)]
    assert refusal_of_counts(body, {expr(made.n): 3, expr(made.m): 3}) is not None
