"""A split block does to some tokens, with all of them as keys, what the block does to them among all."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from sparsify.attention import SDPA
from sparsify.errors import RewriteError
from sparsify.shapes import shape_of, size_of

from .sketch import aten, run, targets
from .splitting import Block, check, some, split

pytestmark = pytest.mark.usefixtures("shared_sizes")


def test_queries_come_from_some_tokens_and_keys_from_all() -> None:
    block = Block()
    body, made = check(block, block(aten.add.Tensor, block.attends(), block.x), (0, "key"))
    assert [node.name for node in made.placeholders] == ["x", "x_keys"]
    assert made.name == "block0.split" and body.name == "block0" and body.twins == ()
    origins = {node.meta["provenance"].origin for node in made.graph.nodes if node.op == "call_function"}
    assert origins == {
        "tanh_default (query)", "sin_default (key)", "cos_default (key)", "scaled_dot_product_attention_default (query)",
        "add_tensor (query)",
    }  # fmt: skip
    assert {node.meta["provenance"].pass_name for node in made.graph.nodes if node.op == "call_function"} == {"some-pass"}


@pytest.mark.parametrize(("tokens", "few"), [(5, 3), (8, 4), (2, 2), (3, 2)])
def test_queries_have_a_number_of_their_own(tokens: int, few: int) -> None:
    block = Block(tokens)
    mask = block.input("mask", block.tokens, block.tokens, axes=(0, 1))
    body = block.body(block.attends(mask))
    made = split(body)
    (old,) = body.moving
    (new,) = made.moving - body.moving
    assert made.moving == {old, new}
    shapes = {node.name: shape_of(node) for node in made.placeholders}
    assert shapes == {"x": (2, new, 4), "mask": (new, new), "x_keys": (2, old, 4), "mask_crosss": (new, old)}
    assert block.sketch.env.backed_var_to_val[new] == few
    results = {node.name.split("_")[0]: shape_of(node)[1] for node in made.graph.nodes if node.op == "call_function"}
    assert results == {"tanh": new, "sin": old, "cos": old, "scaled": new}


def test_one_value_may_be_query_key_and_value() -> None:
    block = Block()
    y = block(aten.tanh.default, block.x)
    check(block, block(SDPA, y, y, y), (0, "key"))


def test_the_tokens_themselves_may_be_all_three() -> None:
    block = Block()
    check(block, block(SDPA, block.x, block.x, block.x), (0, "key"))


def test_parts_of_one_projection_are_made_at_both_levels() -> None:
    block = Block()
    weight = block.input("weight", 12, 4)
    parts = block(aten.chunk.default, block(aten.linear.default, block.x, weight), 3, -1)
    q, k, v = (block(operator.getitem, parts, index) for index in range(3))
    _, made = check(block, block(SDPA, q, k, v), (0, "key"))
    assert targets(made.graph).count(aten.linear.default) == 2


def test_what_does_not_move_is_made_once() -> None:
    block = Block()
    c = block(aten.exp.default, block.input("c", 2, 1, 4))
    keys = block(aten.mul.Tensor, block.x, c)
    _, made = check(block, block(aten.mul.Tensor, block.attends(key=keys), c), (0, "key"))
    assert targets(made.graph).count(aten.exp.default) == 1


def test_text_is_attended_to_as_before() -> None:
    block = Block()
    text = block.input("text", 2, 3, 4)
    cross = block(SDPA, block(aten.exp.default, block.x), text, block(aten.neg.default, text))
    check(block, block(aten.add.Tensor, block.attends(), cross), (0, "key"))


def test_tables_follow_their_tokens() -> None:
    block = Block()
    table = block.input("table", block.tokens, 4, axes=(0,))
    q, k = (block(aten.add.Tensor, block.x, block(aten.mul.Tensor, table, factor)) for factor in (2.0, 3.0))
    check(block, block(SDPA, q, k, block.x), (0, "key"), (1, "key"))


def test_a_table_that_queries_alone_read_comes_once() -> None:
    block = Block()
    table = block.input("table", block.tokens, 4, axes=(0,))
    check(block, block(aten.mul.Tensor, block.attends(), table), (0, "key"))


@pytest.mark.parametrize("right", [True, False])
def test_linear_attention_sums_over_all_tokens(right: bool) -> None:
    block = Block()
    q, k, v = (block(target, block.x) for target in (aten.tanh.default, aten.exp.default, aten.cos.default))
    state = block(aten.matmul.default, block(aten.transpose.int, k, 1, 2), v)
    result = block(aten.matmul.default, q, state)
    if not right:
        result = block(aten.mul.Tensor, q, block(aten.sum.dim_IntList, v, [1], True))
    check(block, result, (0, "key"))


def test_what_follows_the_first_mixing_sees_queries_alone() -> None:
    block = Block()
    first = block.attends()
    keys = block(aten.neg.default, first)
    second = block(SDPA, block(aten.exp.default, first), keys, keys)
    total = block(aten.sum.dim_IntList, second, [1], True)
    body = block.body(block(aten.mul.Tensor, second, total))
    made = split(body)
    assert list(made.twins) == [(0, "key")]
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    few = some(x, (1,))
    want = F.scaled_dot_product_attention(few.tanh(), x.sin(), x.cos())
    want = F.scaled_dot_product_attention(want.exp(), -want, -want)
    assert (run(made.graph, few, x) - want * want.sum(1, keepdim=True)).abs().max() < 1e-12


def test_attentions_side_by_side_all_cross() -> None:
    block = Block()
    other = block(SDPA, block(aten.exp.default, block.x), block.x, block(aten.neg.default, block.x))
    check(block, block(aten.add.Tensor, block.attends(), other), (0, "key"))


def test_blocks_that_mix_nothing_are_refused() -> None:
    block = Block()
    text = block.input("text", 2, 3, 4)
    with pytest.raises(RewriteError, match="no attention over the trunk's tokens was recognised"):
        split(block.body(block(SDPA, block.x, text, text)))


def test_sizes_are_those_of_the_level() -> None:
    block = Block()
    count = block(aten.sym_size.int, block.x, 1)

    def again(target: Any) -> fx.Node:
        return block(aten.reshape.default, block(target, block.x), [2, count, 2, 2])

    q, k, v = (
        block(aten.transpose.int, again(target), 1, 2) for target in (aten.tanh.default, aten.sin.default, aten.cos.default)
    )
    result = block(aten.reshape.default, block(aten.transpose.int, block(SDPA, q, k, v), 1, 2), [2, count, 4])
    _, made = check(block, result, (0, "key"))
    assert targets(made.graph).count(aten.sym_size.int) == 2


@pytest.mark.parametrize("used_by", ["keys", "queries"])
def test_a_size_that_is_an_input_comes_with_the_keys_too(used_by: str) -> None:
    block = Block()
    count = block.number()
    shaped = block(aten.reshape.default, block.x, [2, count, 4])
    result = block.attends(key=shaped) if used_by == "keys" else block(aten.add.Tensor, block.attends(), shaped)
    _, made = check(block, result, (0, "key"), (1, "key"))
    assert [node.name for node in made.placeholders] == ["x", "count", "x_keys", "count_keys"]
    values = {node.name: node.meta["val"] for node in made.placeholders}
    assert size_of(values["count"]) == size_of(values["x"].shape[1])
    assert size_of(values["count_keys"]) == size_of(values["x_keys"].shape[1]) != size_of(values["count"])


def test_a_size_of_something_else_comes_once() -> None:
    block = Block()
    other = block.sketch.size(9)
    block.axes.append(())
    number = block.sketch.number("words", other)
    body = block.body(block(aten.add.Tensor, block.attends(), number))
    assert list(split(body).twins) == [(0, "key")]


def test_a_size_that_keys_do_not_have_comes_once() -> None:
    """Another table follows the tokens with a size of its own, and only queries read it."""
    block = Block()
    rows = block.sketch.size(10)
    table, count = block.sketch.input("table", 2, rows, 4), block.sketch.number("rows", rows)
    result = block(aten.neg.default, block(aten.reshape.default, table, [2, count, 4]))
    body = block.sketch.body("block0", block.attends(), result, moving=[block.tokens, rows], updates=[0, 1])
    assert list(split(body).twins) == [(0, "key")]


def test_several_results_are_asked_for_at_the_queries() -> None:
    block = Block()
    text = block.input("text", 2, 3, 4)
    body = block.body(block.attends(), block(aten.neg.default, text), updates=[0, 1])
    made = split(body)
    assert made.updates == [0, 1] and (made.tokens, made.token_output, made.token_axis) == (0, 0, 1)
    assert len(made.graph.output_node().args[0]) == 2  # type: ignore[arg-type]
