"""On which side of the tokens other rows stand, as concatenations and blocks say."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
from torch import fx

from sparsify.errors import RewriteError
from sparsify.layout import TokenAxis, size_of_sum

from .grids import Made
from .sketch import Sketch, aten, expr


def test_text_stands_before_or_behind_as_the_concatenation_says() -> None:
    made = Made()
    tokens, text, more = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s, 3))
    s = expr(made.s)
    for parts, before, after in (
        ((text, tokens), s, 0),
        ((tokens, text), 0, s),
        ((text, tokens, more), s, 3),
        ((text, more, tokens), s + 3, 0),
        ((more, tokens, text), 3, s),
        ((more, tokens), 3, 0),
    ):
        for axis in (1, -2):
            assert made.layouts.of(made.cat(*parts, axis=axis)) == (TokenAxis(1, (0, 1), before, after),)


def test_a_concatenation_without_an_axis_is_on_the_first() -> None:
    made = Made()
    tokens, text = made.tensor(made.h * made.w, 8), made.tensor(made.s, 8)
    assert made.layouts.of(made.cat(text, tokens, axis=None)) == (TokenAxis(0, (0, 1), expr(made.s), 0),)


def test_text_around_text_is_added_up() -> None:
    made = Made()
    tokens, text, more = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s, 3))
    joined = made.cat(more, made.cat(text, tokens))
    assert made.layouts.of(joined) == (TokenAxis(1, (0, 1), 3 + expr(made.s), 0),)
    joined = made.cat(made.cat(text, tokens), more)
    assert made.layouts.of(joined) == (TokenAxis(1, (0, 1), expr(made.s), 3),)


def test_the_side_is_found_behind_other_operators_and_concatenations_on_other_axes() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    joined = made.cat(text, tokens)
    want = (TokenAxis(1, (0, 1), expr(made.s), 0),)
    other = made.tensor(8)
    assert made.layouts.of(made(aten.add.Tensor, other, made(aten.neg.default, joined))) == want
    assert made.layouts.of(made.cat(joined, joined, axis=2)) == want
    turned = made(aten.transpose.int, joined, 0, 1)
    assert made.layouts.of(turned) == (TokenAxis(0, (0, 1), expr(made.s), 0),)
    heads = made(aten.transpose.int, made(aten.unflatten.int, joined, 2, [2, 4]), 1, 2)
    assert made.layouts.of(heads) == (TokenAxis(2, (0, 1), expr(made.s), 0),)


def test_a_long_way_back_to_the_concatenation_is_gone_and_an_endless_one_is_not() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    node, nodes = made.cat(text, tokens), []
    for _ in range(1200):
        node = made.graph.call_function(aten.neg.default, (node,))
        node.meta["val"] = node.args[0].meta["val"]  # type: ignore[union-attr]
        nodes.append(node)
    assert made.layouts.of(nodes[300])[0].before == expr(made.s)
    with pytest.raises(RewriteError, match="it is not clear on which side"):
        made.layouts.of(nodes[-1])


def test_a_value_that_two_ways_lead_to_is_looked_at_once() -> None:
    made = Made()
    size = made.s + made.h * made.w
    node = made.tensor(made.b, size)
    for _ in range(60):
        node = made.graph.call_function(aten.add.Tensor, (made.graph.call_function(aten.neg.default, (node,)), node))
        for each in (node, node.args[0]):
            each.meta["val"] = made.sketch.fake(made.b, size)  # type: ignore[union-attr]
    with pytest.raises(RewriteError, match="on which side"):
        made.layouts.of(node)


def test_rows_of_no_known_side_are_refused_unless_they_were_said() -> None:
    made = Made()
    node = made.tensor(made.b, made.s + made.h * made.w, 8)
    with pytest.raises(RewriteError, match=f"{node.name} holds {expr(made.s)} rows beside the tokens of the grid"):
        made.layouts.of(node)
    made.program.rows_before = {expr(made.s): 2}
    assert made.layouts.of(node) == (TokenAxis(1, (0, 1), 2, expr(made.s) - 2),)
    assert made.layouts.of(made.tensor(made.b, made.h * made.w)) == (TokenAxis(1, (0, 1)),), "there are none"


def test_rows_beside_a_grid_of_numbers() -> None:
    made = Made(fixed=(4, 6), sequence=29)
    tokens, text = made.tensor(2, 24, 8), made.tensor(2, 5, 8)
    assert made.layouts.of(made.cat(text, tokens)) == (TokenAxis(1, (0, 1), 5, 0),)
    assert made.layouts.of(made.cat(tokens, text)) == (TokenAxis(1, (0, 1), 0, 5),)
    assert made.layouts.of(tokens) == (TokenAxis(1, (0, 1), 0, 0),)
    assert made.layouts.of(text) == ()


def with_block(made: Made, *args: fx.Node, write: Callable[[Sketch], Any], updates: list[int]) -> fx.Node:
    """A block that is called with ``args``; ``write`` makes its inputs and nodes."""
    inside = Sketch()
    write(inside)
    body = made.program.bodies["block0"] = inside.body(updates=updates)
    made.program.paths = ["blocks.0"]
    return made.sketch.block("blocks.0", body, *args)


def joining(*joined: tuple[str, ...], rows: int = 24) -> Callable[[Sketch], None]:
    """Writes a block of tokens ``x``, so many, and ``text``, which concatenates them in these ways."""

    def write(sketch: Sketch) -> None:
        parts = {name: sketch.input(name, 2, sketch.size(hint), 8) for name, hint in (("x", rows), ("text", 5))}
        for names in joined:
            sketch(aten.cat.default, [parts[name] for name in names], 1)

    return write


def test_a_block_hands_on_the_rows_of_the_input_that_it_updates() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    other = made.cat(tokens, text)
    joined = made.cat(text, tokens)

    def write(sketch: Sketch) -> None:
        n = sketch.size(29)
        sketch.input("other", 2, n, 8), sketch.input("x", 2, n, 8)

    node = with_block(made, other, joined, write=write, updates=[1])
    assert made.layouts.of(node) == (TokenAxis(1, (0, 1), expr(made.s), 0),)
    table = made.tensor(made.s + made.h * made.w, 8)
    assert made.layouts.of(table) == (TokenAxis(0, (0, 1), expr(made.s), 0),), "as in the trunk, of which it is a table"


def test_one_of_several_results_of_a_block_is_the_input_that_it_updates() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))

    def write(sketch: Sketch) -> None:
        n, m = sketch.sizes(29, 29)
        sketch.input("x", 2, n, 8), sketch.input("y", 2, m, 8)

    node = with_block(made, made.cat(text, tokens), made.cat(tokens, text), write=write, updates=[0, 1])
    for output, before, after in ((0, expr(made.s), 0), (1, 0, expr(made.s))):
        result = made.graph.call_function(operator.getitem, (node, output))
        result.meta["val"] = node.args[0].meta["val"]  # type: ignore[union-attr]
        assert made.layouts.of(result) == (TokenAxis(1, (0, 1), before, after),)


@pytest.mark.parametrize("axis", [1, -2, None])
@pytest.mark.parametrize("first", [False, True])
def test_text_that_a_block_joins_inside_tells_the_side_of_tables_outside(first: bool, axis: int | None) -> None:
    made = Made()
    turned = axis is None

    def shape(rows: Any) -> tuple[Any, ...]:
        return (rows, 2, 8) if turned else (2, rows, 8)

    tokens, text = (made.tensor(*shape(rows)) for rows in (made.h * made.w, made.s))
    table = made.tensor(made.s + made.h * made.w, 8)

    def write(sketch: Sketch) -> None:
        n, s = sketch.sizes(24, 5)
        x, text = (sketch.input(name, *shape(rows)) for name, rows in (("x", n), ("text", s)))
        parts = [text, x, text] if first else [x, text]
        sketch(aten.cat.default, [x, x], 2)
        sketch(aten.cat.default, parts[:2] if first else parts, *(() if axis is None else (axis,)))

    with_block(made, tokens, text, write=write, updates=[0])
    s = expr(made.s)
    assert made.layouts.of(table) == (TokenAxis(0, (0, 1), s if first else 0, 0 if first else s),)


def test_text_on_both_sides_inside_a_block() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    table = made.tensor(2 * made.s + 3 + made.h * made.w, 8)

    def write(sketch: Sketch) -> None:
        n, s = sketch.sizes(24, 5)
        x, text = sketch.input("x", 2, n, 8), sketch.input("text", 2, s, 8)
        three = sketch(aten.slice.Tensor, x, 1, 0, 3)
        sketch(aten.cat.default, [text, three, x, text], 1)

    with_block(made, tokens, text, write=write, updates=[0])
    s = expr(made.s)
    assert made.layouts.of(table) == (TokenAxis(0, (0, 1), s + 3, s),)


def test_text_that_is_joined_to_tokens_with_rows_of_their_own() -> None:
    """A history goes with the tokens, behind them; a text is put before them inside."""
    made = Made()
    tokens, text, history = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s, 3))
    table = made.tensor(3 + made.s + made.h * made.w, 8)

    with_block(made, made.cat(history, tokens), text, write=joining(("text", "x"), rows=27), updates=[0])
    s = expr(made.s)
    assert made.layouts.of(table) == (TokenAxis(0, (0, 1), s + 3, 0),)


def test_tokens_joined_to_tokens_inside_say_nothing() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    table = made.tensor(made.s + made.h * made.w, 8)

    with_block(made, tokens, text, write=joining(("x", "text", "x"), ("text", "text")), updates=[0])
    with pytest.raises(RewriteError, match="on which side"):
        made.layouts.of(table)


def test_what_was_said_goes_before_what_is_joined_inside() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    table = made.tensor(made.s + made.h * made.w, 8)

    with_block(made, tokens, text, write=joining(("x", "text")), updates=[0])
    made.program.rows_before = {expr(made.s): expr(made.s)}
    assert made.layouts.of(table)[0].before == expr(made.s)


def test_the_layout_of_a_node_is_found_once() -> None:
    made = Made()
    layouts, node = made.layouts, made.tensor(made.b, made.h * made.w)
    assert layouts.of(node) is layouts.of(node)


@pytest.mark.parametrize(("rest", "before", "after"), [(5, 2, 3), (5, 5, 0), (0, 0, 0)])
def test_what_is_left_of_a_number_of_rows_is_a_number(rest: int, before: int, after: int) -> None:
    found = size_of_sum(rest, before)
    assert found == after and isinstance(found, int)


def test_what_is_left_of_an_expression() -> None:
    s = sympy.Symbol("s")
    assert size_of_sum(s + 3, s) == 3 and isinstance(size_of_sum(s + 3, s), int)
    assert size_of_sum(s + 3, 3) == s
    assert size_of_sum(2 * (s + 1), s) == s + 2
