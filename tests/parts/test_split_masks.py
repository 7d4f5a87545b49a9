"""Masks of a split block: rows for queries, columns for keys, wherever they come from."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from sparsify.errors import RewriteError

from .sketch import aten, targets
from .splitting import Block, check, split

pytestmark = pytest.mark.usefixtures("shared_sizes")


@pytest.mark.parametrize("keyword", [True, False])
def test_a_mask_has_rows_for_queries_and_columns_for_keys(keyword: bool) -> None:
    block = Block()
    mask = block(aten.mul.Tensor, block.input("mask", block.tokens, block.tokens, axes=(0, 1)), 2.0)
    result = block.attends(attn_mask=mask) if keyword else block.attends(mask)
    check(block, result, (0, "key"), (1, "cross"))


def test_a_mask_for_keys_comes_with_them() -> None:
    block = Block()
    check(block, block.attends(block.input("mask", 2, 1, block.tokens, axes=(2,))), (0, "key"), (1, "key"))


def test_a_mask_of_one_axis_is_for_keys() -> None:
    block = Block()
    check(block, block.attends(block.input("mask", block.tokens, axes=(0,))), (0, "key"), (1, "key"))


def test_a_mask_for_queries_comes_with_them() -> None:
    block = Block()
    check(block, block.attends(block.input("mask", 2, block.tokens, 1, axes=(1,))), (0, "key"))


def test_a_mask_that_does_not_move_is_made_once() -> None:
    block = Block()
    check(block, block.attends(block.input("mask", 2, 1, 1)), (0, "key"))


def test_a_mask_of_a_value_for_each_token_is_made_of_both() -> None:
    """``|a_i - a_j|``: rows of queries, columns of keys."""
    block = Block()
    place = block.input("place", block.tokens, axes=(0,))
    rows, columns = block(aten.unsqueeze.default, place, 1), block(aten.unsqueeze.default, place, 0)
    mask = block(aten.abs.default, block(aten.sub.Tensor, rows, columns))
    _, made = check(block, block.attends(mask), (0, "key"), (1, "key"))
    assert targets(made.graph).count(aten.unsqueeze.default) == 2


TURNS: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.transpose.int, (1, 2)),
    (aten.transpose.int, (-1, -2)),
    (aten.transpose.int, (2, -2)),
    (aten.permute.default, ([0, 2, 1],)),
    (aten.permute.default, ([0, -1, -2],)),
    (aten.mT.default, ()),
]


def square(block: Block) -> fx.Node:
    return block.input("mask", 2, block.tokens, block.tokens, axes=(1, 2))


@pytest.mark.parametrize(("turn", "how"), TURNS)
def test_a_mask_that_is_turned_twice_is_as_before(turn: Any, how: tuple[Any, ...]) -> None:
    block = Block()
    mask = block(turn, block(aten.exp.default, block(turn, square(block), *how)), *how)
    check(block, block.attends(mask), (0, "key"), (1, "cross"))


@pytest.mark.parametrize(("turn", "how"), TURNS)
def test_a_table_that_is_turned_over_is_refused(turn: Any, how: tuple[Any, ...]) -> None:
    block = Block()
    mask = block(turn, square(block), *how)
    with pytest.raises(RewriteError, match="the table mask is read with its rows for keys and its columns for queries"):
        split(block.body(block.attends(mask)))


def test_a_table_of_two_axes_may_be_turned_by_t() -> None:
    block = Block()
    mask = block.input("mask", block.tokens, block.tokens, axes=(0, 1))
    check(block, block.attends(block(aten.t.default, block(aten.t.default, mask))), (0, "key"), (1, "cross"))


@pytest.mark.parametrize(
    ("turn", "how"), [(aten.transpose.int, (0, 1)), (aten.transpose.int, (-3, -4)), (aten.permute.default, ([1, 0, 2, 3],))]
)
def test_turning_other_axes_changes_nothing(turn: Any, how: tuple[Any, ...]) -> None:
    block = Block()
    mask = block.input("mask", 2, 1, block.tokens, block.tokens, axes=(2, 3))
    turned = block(aten.select.int, block(turn, mask, *how), 0, 0)
    check(block, block.attends(turned), (0, "key"), (1, "cross"))


@pytest.mark.parametrize("table", [False, True])
def test_one_size_stands_for_queries_in_rows_and_for_keys_in_columns(table: bool) -> None:
    block = Block()
    mask = block.input("mask", *((block.tokens,) if table else (1,)), block.tokens, axes=(0, 1) if table else (1,))
    count, batch = block(aten.sym_size.int, block.x, 1), block(aten.sym_size.int, block.x, 0)
    wide = block(aten.expand.default, mask, [batch, count, count])
    _, made = check(block, block.attends(wide), (0, "key"), (1, "cross" if table else "key"))
    (node,) = made.graph.find_nodes(op="call_function", target=aten.expand.default)
    rows, columns = node.args[1][1:]
    assert rows is not columns and [size.args[0].name for size in (rows, columns)] == ["x", "x_keys"]


@pytest.mark.parametrize("join", [aten.stack.default, aten.cat.default])
def test_masks_may_be_joined(join: Any) -> None:
    block = Block()
    lead = () if join is aten.stack.default else (1,)
    at = len(lead)
    one, other = (block.input(name, *lead, block.tokens, block.tokens, axes=(at, at + 1)) for name in ("one", "other"))
    check(block, block.attends(block(join, [one, other])), (0, "key"), (1, "cross"), (2, "cross"))
