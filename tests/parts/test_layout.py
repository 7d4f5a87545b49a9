"""Where the grid sits in the axes of a tensor, on graphs of a few nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
from torch import fx

from sparsify.errors import RewriteError
from sparsify.layout import Layouts, TokenAxis, size_of_sum
from sparsify.program import DENSITY, Program

from .sketch import Sketch, aten, expr


class Made:
    """An outer graph whose token grid is time x height x width, or the last of these, with a text of some rows."""

    def __init__(self, axes: int = 2, fixed: tuple[int, ...] = (), sequence: Any = 0) -> None:
        self.sketch = Sketch()
        self.graph = self.sketch.graph
        self.b, self.s, self.t, self.h, self.w = self.sketch.sizes(2, 5, 3, 4, 6)
        grid = fixed or tuple(map(expr, (self.t, self.h, self.w)[3 - axes :]))
        self.program: Program = self.sketch.program(grid=grid, sequence=sequence)

    @property
    def layouts(self) -> Layouts:
        return Layouts(self.program)

    def tensor(self, *shape: Any) -> fx.Node:
        return self.sketch.input(f"x{len(self.graph.nodes)}", *shape)

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        return self.sketch(target, *args)

    def cat(self, *parts: fx.Node, axis: int | None = 1) -> fx.Node:
        return self(aten.cat.default, list(parts), *(() if axis is None else (axis,)))

    def pool(self, *hints: int) -> tuple[sympy.Expr, ...]:
        """Insert the density node; the sides of the pooled grid."""
        density = self.graph.create_node("call_module", DENSITY)
        pooled = self.sketch.sizes(*hints)
        for side in reversed(range(len(hints))):  # not in their order
            self.graph.call_function(operator.getitem, (density, side)).meta["val"] = pooled[side]
        return tuple(map(expr, pooled))


SHAPES: list[tuple[int, Callable[[Made], Any], bool]] = [
    (2, lambda made: (made.b, made.h * made.w, 8), True),
    (2, lambda made: (made.b, 8, made.h, made.w), True),
    (2, lambda made: (made.b * made.h * made.w, 8), True),
    (2, lambda made: (made.b, made.s + made.h * made.w, 8), True),
    (2, lambda made: (made.h * made.w, 8), True),
    (2, lambda made: (made.b, made.h, 8), False),
    (2, lambda made: (made.b, made.w, 8), False),
    (2, lambda made: (made.b, made.s, 8), False),
    (2, lambda made: (24, 8), False),
    (1, lambda made: (made.b, made.w), True),
    (1, lambda made: (made.b, made.h), False),
    (3, lambda made: (made.b, made.t, made.h, made.w), True),
    (3, lambda made: (made.b * made.t, made.h * made.w), True),
    (3, lambda made: (made.b, made.h * made.w), True),
    (3, lambda made: (made.b, made.t * made.w), False),
    (3, lambda made: (made.b, made.t), False),
]


@pytest.mark.parametrize(("axes", "shape", "holds"), SHAPES)
def test_a_tensor_holds_the_grid_if_its_axes_have_all_sides_but_the_time(
    axes: int, shape: Callable[[Made], Any], holds: bool
) -> None:
    made = Made(axes)
    assert made.layouts.holds_grid(made.tensor(*shape(made))) is holds


def test_what_is_no_tensor_holds_no_grid() -> None:
    made = Made()
    node = made.sketch.number("n", made.h * made.w)
    assert not made.layouts.holds_grid(node) and made.layouts.of(node) == ()
    assert Made(fixed=(4, 4)).layouts.sides_in(16) == [0, 1]


@pytest.mark.parametrize(("size", "holds"), [(24, True), (29, True), (5, False), (12, False), (48, False)])
def test_a_grid_of_numbers_is_known_by_its_number_of_tokens_alone_or_in_the_sequence(size: int, holds: bool) -> None:
    made = Made(fixed=(4, 6), sequence=29)
    assert made.layouts.holds_grid(made.tensor(2, size, 8)) is holds
    assert made.layouts.sides_in(size) == ([0, 1] if holds else [])
    assert made.layouts.is_aligned(size) is holds


def test_a_sequence_that_is_an_expression_adds_no_length_to_a_grid_of_numbers() -> None:
    made = Made(fixed=(4, 6))
    made.program.sequence = 24 + expr(made.s)
    assert made.layouts.sides_in(24) == [0, 1]
    assert made.layouts.sides_in(29) == [] == made.layouts.sides_in(24 + expr(made.s))


def test_sides_that_a_size_depends_on() -> None:
    made = Made(3)
    t, h, w, b, s = map(expr, (made.t, made.h, made.w, made.b, made.s))
    layouts = made.layouts
    for size, sides in ((t * h * w, [0, 1, 2]), (b * h, [1]), (s + h * w, [1, 2]), (t + w, [0, 2]), (s, []), (b, []), (7, []),
                        (sympy.Integer(7), [])):  # fmt: skip
        assert layouts.sides_in(size) == sides
        assert layouts.is_aligned(size) is bool(sides)


def test_what_becomes_of_sizes_when_the_grid_is_pooled() -> None:
    made = Made(3)
    pooled_t, pooled_h, pooled_w = made.pool(2, 3, 2)
    t, h, w, b, s = map(expr, (made.t, made.h, made.w, made.b, made.s))
    for size, pooled in (
        (t * h * w, pooled_t * pooled_h * pooled_w),
        (b * t * h * w, b * pooled_t * pooled_h * pooled_w),
        (h * w, pooled_h * pooled_w),
        (2 * w, 2 * pooled_w),
        (s + h * w, s + pooled_h * pooled_w),
        (s, s),
        (7, sympy.Integer(7)),
        (h + w, pooled_h + pooled_w),  # inside of an operator: any function of the sides
        (t * w, pooled_t * pooled_w),
        (h**2, pooled_h**2),
    ):
        assert sympy.expand(made.layouts.pooled(size) - pooled) == 0
        assert isinstance(made.layouts.pooled(size), sympy.Basic)


def test_a_grid_of_numbers_is_pooled_beside_its_text() -> None:
    made = Made(fixed=(4, 6), sequence=29)
    height, width = made.pool(2, 3)
    assert made.layouts.pooled(24) == height * width
    assert made.layouts.pooled(29) == 5 + height * width
    assert made.layouts.pooled(12) == 12


def axes_of(made: Made, *shape: Any) -> list[TokenAxis]:
    return list(made.layouts.of(made.tensor(*shape)))


def test_a_grid_alone_in_one_axis_or_several() -> None:
    made = Made()
    assert axes_of(made, made.b, made.h * made.w, 8) == [TokenAxis(1, (0, 1), 0, 0)]
    assert axes_of(made, made.b, 8, made.h, made.w) == [TokenAxis(2, (0,)), TokenAxis(3, (1,))]
    assert axes_of(made, made.b * made.h * made.w, 8) == [TokenAxis(0, (0, 1))]
    assert axes_of(made, made.b * made.h, 8, 2 * made.w) == [TokenAxis(0, (0,)), TokenAxis(2, (1,))]
    assert axes_of(made, made.b, made.s, 8) == []
    video = Made(3)
    assert axes_of(video, video.b * video.t, video.h * video.w) == [TokenAxis(0, (0,)), TokenAxis(1, (1, 2))]
    assert axes_of(video, video.b, video.t * video.h * video.w) == [TokenAxis(1, (0, 1, 2))]
    assert len({TokenAxis(1, (0,)), TokenAxis(1, (0,), 0, 0)}) == 1


@pytest.mark.parametrize(
    ("fixed", "factor", "sides"),
    [
        ((4, "h", "w"), 4, (0, 1, 2)),
        ((4, "h", "w"), 8, (0, 1, 2)),
        ((4, "h", "w"), 2, (1, 2)),
        ((4, "h", "w"), 1, (1, 2)),
        ((4, "h", "w"), 6, (1, 2)),
        (("t", "h", "w"), 4, (1, 2)),
    ],
)
def test_a_side_that_is_a_number_is_a_factor_of_the_size(fixed: Any, factor: int, sides: tuple[int, ...]) -> None:
    made = Made(3)
    named = {"t": expr(made.t), "h": expr(made.h), "w": expr(made.w)}
    made.program.grid = tuple(named.get(side, side) for side in fixed)
    assert axes_of(made, made.b * factor * made.h * made.w) == [TokenAxis(0, sides)]


def test_two_sides_that_are_numbers() -> None:
    made = Made(3)
    made.program.grid = (2, 3, expr(made.w))
    assert axes_of(made, 6 * made.w) == [TokenAxis(0, (0, 1, 2))]
    assert axes_of(made, 3 * made.w) == [TokenAxis(0, (1, 2))]
    assert axes_of(made, 5 * made.w) == [TokenAxis(0, (2,))]
    made.pool(2, 2, 3)
    pooled = made.layouts.pooled(12 * expr(made.w))
    assert len(pooled.free_symbols) == 3 and pooled.as_coeff_Mul()[0] == 2, "two grids are folded into it"


@pytest.mark.parametrize(
    "size",
    [
        lambda made: made.h * made.h * made.w,
        lambda made: made.h * made.w + made.h,
        lambda made: made.h + made.w,
        lambda made: made.t * made.w,
        lambda made: made.b * made.h * made.w + made.s,
        lambda made: 2 * made.h * made.w + 1,
        lambda made: (made.h // 2) * made.w,
    ],
)
def test_sizes_that_are_no_folding_of_the_grid_are_refused(size: Callable[[Made], Any]) -> None:
    made = Made(3)
    node = made.tensor(made.b, size(made))
    with pytest.raises(RewriteError, match=f"of {node.name} depends on the token grid in a way that is not understood"):
        made.layouts.of(node)


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


def test_a_block_hands_on_the_rows_of_the_input_that_it_updates() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    other = made.cat(tokens, text)
    joined = made.cat(text, tokens)

    def write(sketch: Sketch) -> None:
        (n,) = sketch.sizes(29)
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

    def write(sketch: Sketch) -> None:
        n, s = sketch.sizes(27, 5)
        x, text = sketch.input("x", 2, n, 8), sketch.input("text", 2, s, 8)
        sketch(aten.cat.default, [text, x], 1)

    with_block(made, made.cat(history, tokens), text, write=write, updates=[0])
    s = expr(made.s)
    assert made.layouts.of(table) == (TokenAxis(0, (0, 1), s + 3, 0),)


def test_tokens_joined_to_tokens_inside_say_nothing() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    table = made.tensor(made.s + made.h * made.w, 8)

    def write(sketch: Sketch) -> None:
        n, s = sketch.sizes(24, 5)
        x, text = sketch.input("x", 2, n, 8), sketch.input("text", 2, s, 8)
        sketch(aten.cat.default, [x, text, x], 1)
        sketch(aten.cat.default, [text, text], 1)

    with_block(made, tokens, text, write=write, updates=[0])
    with pytest.raises(RewriteError, match="on which side"):
        made.layouts.of(table)


def test_what_was_said_goes_before_what_is_joined_inside() -> None:
    made = Made()
    tokens, text = (made.tensor(made.b, rows, 8) for rows in (made.h * made.w, made.s))
    table = made.tensor(made.s + made.h * made.w, 8)

    def write(sketch: Sketch) -> None:
        n, s = sketch.sizes(24, 5)
        x, text = sketch.input("x", 2, n, 8), sketch.input("text", 2, s, 8)
        sketch(aten.cat.default, [x, text], 1)

    with_block(made, tokens, text, write=write, updates=[0])
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
