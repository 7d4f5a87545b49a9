"""Why the tokens of a block cannot attend to other groups of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from sparsify.passes.places import refusal_to_regroup
from sparsify.passes.split import split_queries_from_keys
from sparsify.program import Body

from .blocks import attention, block, squared
from .dense import dense_program
from .sketch import Sketch, aten

pytestmark = pytest.mark.usefixtures("shared_sizes")


def regroup(body: Body) -> str | None:
    program = dense_program(body)
    return refusal_to_regroup(program, program.block_nodes[0])


def test_attention_among_the_tokens_alone_may_be_regrouped() -> None:
    assert regroup(block(softmax=True)) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda: block(softmax=True, is_causal=True), "is causal"),
        (lambda: block(squared), "has a row and a column per token"),
        (block, "no attention over the trunk's tokens was recognised"),
    ],
)
def test_attention_that_is_not_plain_is_refused(body: Any, reason: str) -> None:
    assert reason in str(regroup(body()))


def with_attention(build: Any) -> str | None:
    sketch = Sketch()
    tokens = sketch.size(15)
    x = sketch.input("x", 2, tokens, 4)
    return regroup(sketch.body("block0", build(sketch, x), moving=[tokens]))


SDPA = aten.scaled_dot_product_attention.default


def masked(sketch: Sketch, x: fx.Node) -> fx.Node:
    return sketch(SDPA, x, x, x, sketch(aten.sum.dim_IntList, sketch(aten.transpose.int, x, 1, 2), [1], True))


def longer(queries: bool, keys: bool) -> Any:
    """Queries or keys have one row more than there are tokens."""

    def build(sketch: Sketch, x: fx.Node) -> fx.Node:
        more = sketch(aten.cat.default, [x, sketch(aten.slice.Tensor, x, 1, 0, 1)], 1)
        made = sketch(SDPA, more if queries else x, more if keys else x, more if keys else x)
        return sketch(aten.slice.Tensor, made, 1, 0, sketch(aten.sym_size.int, x, 1)) if queries else made

    return build


def test_a_mask_is_refused_by_name() -> None:
    assert with_attention(masked) == "scaled_dot_product_attention_default has the mask sum_dim_int_list"


@pytest.mark.parametrize(("queries", "keys"), [(True, False), (False, True), (True, True)])
def test_other_tokens_among_queries_or_keys_are_refused(queries: bool, keys: bool) -> None:
    want = "scaled_dot_product_attention_default joins other tokens to those of the grid"
    assert with_attention(longer(queries, keys)) == want


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_are_no_tokens(heads: int) -> None:
    def build(sketch: Sketch, x: fx.Node) -> fx.Node:
        q = sketch(aten.expand.default, sketch(aten.unsqueeze.default, x, 1), [2, heads, -1, 4])
        return sketch(aten.sum.dim_IntList, sketch(SDPA, q, q, q), [1])

    assert with_attention(build) is None


def test_tokens_with_sides_of_their_own_are_refused() -> None:
    sketch = Sketch()
    sides = sketch.size(3), sketch.size(5)
    x = sketch.input("x", 2, sides[0] * sides[1], 4)
    for side in sides:
        sketch.number("side", side)
    body = sketch.body("block0", attention(sketch, x), moving=sides)
    program = dense_program(block())
    program.bodies["block0"] = body
    assert refusal_to_regroup(program, program.block_nodes[0]) == "it does not take its tokens as one list"


def test_blocks_with_keys_of_their_own_are_refused() -> None:
    program = dense_program(block(softmax=True))
    program.bodies["block0"] = split_queries_from_keys(program.bodies["block0"], "block0", "some-pass")
    assert refusal_to_regroup(program, program.block_nodes[0]) == "its queries and keys are different tokens"
