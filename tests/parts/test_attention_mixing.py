"""What mixes tokens besides attention, on bodies of a few nodes: sums, squares, positions and conditions on their number."""

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
    contractions,
    mixes_tokens,
    refusal_of_counts,
    refusal_of_positions,
    unrecognised_mixing,
)

from .sketch import Sketch, aten, expr
from .token_body import Made

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
    n = sketch.size(12)
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
