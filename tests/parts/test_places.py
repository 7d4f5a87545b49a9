"""On which grid a block's tokens lie, and why it cannot drop tokens or regroup them."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from sparsify import Density
from sparsify.passes.places import grids_of, refusal_to_drop, sides_of
from sparsify.passes.split import split_queries_from_keys
from sparsify.program import Body, Program
from sparsify.shapes import size_of

from .blocks import attention, block, counted, cumulated, squared
from .dense import dense_program
from .sketch import Sketch, aten

pytestmark = pytest.mark.usefixtures("shared_sizes")

POOLED = Density.table({0: (3, 4), 500: (2, 3)})


def give(program: Program, node: fx.Node, tokens: Any) -> None:
    """Let a block take another number of tokens."""
    given = program.graph.call_function(operator.pos, (node.args[0],))
    node.prepend(given)
    with program.fake_mode:
        given.meta["val"] = torch.empty([2, tokens, 4])
    node.update_arg(0, given)


def pooled(density: Density = POOLED) -> Program:
    """The second of two blocks sees pooled tokens."""
    program = dense_program(block(), blocks=2, schedule=density)
    h, w = (node.meta["val"] for node in program.pooled_nodes)
    give(program, program.block_nodes[1], h * w)
    return program


# --- grids -----------------------------------------------------------------------------------------------------------------


def test_dense_and_pooled_tokens_lie_on_their_grids() -> None:
    program = pooled()
    dense, sparse = program.block_nodes
    assert grids_of(program, dense) == [(3, 5)]
    assert sorted(grids_of(program, sparse)) == [(2, 3), (3, 4)]


@pytest.mark.parametrize("density", [None, POOLED])
@pytest.mark.parametrize("more", [1, -1, 7])
def test_other_numbers_of_tokens_are_no_grid(more: int, density: Density | None) -> None:
    program = dense_program(block(), schedule=density)
    h, w = program.placeholders[0].meta["val"].shape[2:]
    give(program, program.block_nodes[0], h * w + more)
    assert grids_of(program, program.block_nodes[0]) == []


@pytest.mark.parametrize("more", [1, -1])
def test_text_beside_pooled_tokens_is_no_grid(more: int) -> None:
    program = dense_program(block(), schedule=POOLED)
    h, w = (node.meta["val"] for node in program.pooled_nodes)
    give(program, program.block_nodes[0], h * w + more)
    assert grids_of(program, program.block_nodes[0]) == []


def test_without_a_grid_there_is_none() -> None:
    program = dense_program(block())
    program.grid = ()
    give(program, program.block_nodes[0], 1)
    assert grids_of(program, program.block_nodes[0]) == []


def test_a_schedule_that_is_not_inserted_pools_nothing() -> None:
    program = pooled()
    program.density = None
    assert grids_of(program, program.block_nodes[1]) == []


def test_sides_are_nodes_of_the_grid_that_a_block_sees() -> None:
    program = pooled()
    dense, sparse = program.block_nodes
    assert sides_of(program, sparse) == program.pooled_nodes
    assert sides_of(program, dense) == program.grid_nodes != []


def test_without_a_density_sides_are_read_off_the_inputs() -> None:
    program = dense_program(block())
    (node,) = program.block_nodes
    sides = sides_of(program, node)
    assert [side.target for side in sides] == [aten.sym_size.int] * 2  # type: ignore[union-attr]
    assert [side.args[1] for side in sides] == [2, 3] and all(side < node for side in sides)  # type: ignore[union-attr, operator]
    assert [size_of(side.meta["val"]) for side in sides] == list(program.grid)  # type: ignore[union-attr]


def test_sides_that_are_known_are_numbers() -> None:
    program = dense_program(block())
    program.grid = (3, 5)
    assert sides_of(program, program.block_nodes[0]) == [3, 5]


# --- dropping tokens -------------------------------------------------------------------------------------------------------


def drop(program: Program, count: int = 6) -> str | None:
    return refusal_to_drop(program, program.block_nodes, count)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("attends", [True, False])
def test_blocks_that_take_tokens_as_a_list_may_drop_some(blocks: int, attends: bool) -> None:
    assert drop(dense_program(block(attends=attends), blocks=blocks)) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda: block(softmax=True, is_causal=True), "blocks.0: scaled_dot_product_attention_default is causal"),
        (lambda: block(squared), "has a row and a column per token"),
        (lambda: block(counted), "has one entry per token but depends on their number alone"),
        (lambda: block(cumulated, attends=False), "something besides attention mixes tokens"),
    ],
    ids=["causal", "a table", "positions", "a cumulative sum"],
)
def test_blocks_that_need_all_tokens_are_refused(body: Any, reason: str) -> None:
    found = drop(dense_program(body(), blocks=2))
    assert found is not None and reason in found and found.startswith("blocks.0: ")


def test_a_block_that_attends_is_not_tried() -> None:
    assert drop(dense_program(block(cumulated))) is None


def test_tokens_that_are_not_all_of_the_grid_are_refused() -> None:
    program = pooled()
    assert drop(program) == "blocks.1: its tokens are not those of the dense grid, and nothing else"
    assert refusal_to_drop(program, program.block_nodes[:1], 6) is None


@pytest.mark.parametrize(("count", "refused"), [(6, True), (7, False)])
def test_numbers_of_tokens_that_the_code_does_not_take_are_refused(count: int, refused: bool) -> None:
    body = block()
    body.conditions.append(next(iter(body.moving)) > 6)
    found = drop(dense_program(body), count)
    assert (found is not None and "it was captured where" in found) == refused


def odd(*more: str, axis: int = 1) -> Program:
    """One block with inputs beside its tokens."""
    inner, outer = Sketch(), Sketch()
    tokens, all_tokens = inner.size(15), outer.size(15)
    shapes = {
        "tokens": lambda n: (2, n, 4),
        "table": lambda n: (n, 4),
        "twice": lambda n: (2 * n, 4),
        "further": lambda n: (n + 1,),
    }
    if axis == 0:
        shapes["tokens"] = lambda n: (n, 2, 4)
    args, x = [], None
    for name in ("tokens", *more):
        if name == "number":
            inner.number(name, tokens)
            args.append(outer.number(name, all_tokens))
        else:
            node = inner.input(name, *shapes[name](tokens))
            x = x or node
            args.append(outer.input(name, *shapes[name](all_tokens)))
    assert x is not None
    body = inner.body(
        "block0", attention(inner, x) if axis == 1 else inner(aten.neg.default, x), moving=[tokens], token_axis=axis
    )
    outer.output(outer.block("blocks.0", body, *args))
    return outer.program(body, grid=(size_of(all_tokens),))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((), None),
        (("table",), None),
        (("number",), "its input number is the number of tokens"),
        (("table", "number"), "its input number is the number of tokens"),
        (("twice",), r"its input twice has an axis of 2*"),
        (("further",), "its input further has an axis of "),
    ],
)
def test_every_table_must_have_a_row_for_each_token(more: tuple[str, ...], reason: str | None) -> None:
    found = drop(odd(*more))
    assert found is None if reason is None else found is not None and found.startswith(f"blocks.0: {reason}")
    assert found is None or "number" in found or " rows for " in found


def test_tokens_on_another_axis_are_no_list() -> None:
    assert drop(odd(axis=0)) == "blocks.0: it does not take its tokens as one list"


def split(body: Body) -> Body:
    """The split form of a block, under the name of the block."""
    return split_queries_from_keys(body, "block0", "some-pass")


def test_blocks_with_keys_of_their_own_are_no_list() -> None:
    program = dense_program(block())
    body = program.bodies["block0"] = split(program.bodies["block0"])
    program.block_nodes[0].args *= 2
    assert body.twins
    assert drop(program) == "blocks.0: it does not take its tokens as one list"


def between(program: Program, replace: bool) -> fx.Node:
    """Something that reads the tokens of the first of some blocks, in place of the second or besides it."""
    first, second = program.block_nodes[:2]
    with program.graph.inserting_after(first):
        node = program.graph.call_function(aten.neg.default, (first,))
    node.meta["val"] = first.meta["val"]
    if replace:
        second.replace_input_with(first, node)
    else:
        (last,) = program.graph.output_node().all_input_nodes
        program.graph.output_node().args = ((last, node),)
    return node


def test_tokens_must_go_from_block_to_block_as_they_are() -> None:
    program = dense_program(block(), blocks=3)
    between(program, replace=True)
    assert drop(program) == "blocks.1 does not take the tokens of blocks.0 as they are"
    assert refusal_to_drop(program, program.block_nodes[1:], 6) is None


def test_tokens_that_others_read_too_are_refused() -> None:
    program = dense_program(block(), blocks=3)
    node = between(program, replace=False)
    assert drop(program) == f"the tokens of blocks.0 are read by {node.name} too, besides blocks.1"
    assert refusal_to_drop(program, program.block_nodes[:1], 6) is None


def two_results(read: bool) -> Program:
    """A block with tokens and text, of whose results the tokens are read or not."""
    inner, outer = Sketch(), Sketch()
    tokens, all_tokens = inner.size(15), outer.size(15)
    x, text = inner.input("x", 2, tokens, 4), inner.input("text", 2, 3, 4)
    body = inner.body("block0", attention(inner, x), inner(aten.neg.default, text), moving=[tokens], updates=[0, 1])
    call = outer.block("blocks.0", body, outer.input("x", 2, all_tokens, 4), outer.input("text", 2, 3, 4))
    outer.output(_item(outer, call, int(not read)))
    return outer.program(body, grid=(size_of(all_tokens),))


def _item(outer: Sketch, call: fx.Node, index: int) -> fx.Node:
    node = outer.graph.call_function(operator.getitem, (call, index))
    node.meta["val"] = call.meta["val"][index]
    return node


@pytest.mark.parametrize(("read", "reason"), [(True, None), (False, "nothing reads the tokens of blocks.0")])
def test_somebody_must_read_the_tokens(read: bool, reason: str | None) -> None:
    assert drop(two_results(read)) == reason
