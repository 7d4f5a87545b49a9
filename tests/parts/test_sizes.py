"""What the sizes of a block are at a call of it, and what the outer graph learns from the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
from torch import fx

from sparsify.errors import CaptureError
from sparsify.program import Body
from sparsify.shapes import size_of
from sparsify.sizes import bind_sizes, binding, dimensions, mismatch, set_equal

from .sketch import Sketch, expr

Shape = tuple[Any, ...]


def tied(inner: Sketch, taken: list[Any], outer: Sketch, given: list[Any]) -> tuple[Body, fx.Node]:
    """A body that takes tensors of some shapes, or sizes, and a call that gives it others."""
    inside, outside = Sketch(inner), Sketch(outer)
    for sketch, values in ((inside, taken), (outside, given)):
        for index, value in enumerate(values):
            if isinstance(value, tuple):
                sketch.input(f"x{index}", *value)
            else:
                sketch.number(f"x{index}", value)
    body = inside.body()
    return body, outside.block("blocks.0", body, *outside.graph.nodes)


def test_a_tensor_brings_its_axes_and_a_size_itself() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    assert dimensions(sketch.fake(2, rows)) == (2, expr(rows))
    assert dimensions(rows) == (expr(rows),) and dimensions(4) == (4,)
    assert dimensions(sketch.fake()) == ()


def test_symbols_of_a_block_are_what_the_call_gives() -> None:
    inner, outer = Sketch(), Sketch()
    b, n, k = inner.sizes(2, 12, 3)
    batch, h, w = outer.sizes(2, 3, 4)
    body, node = tied(inner, [(b, n, 8), (2 * k, n), k], outer, [(batch, h * w, 8), (6, w * h), 3])
    assert binding(body, node) == {expr(b): expr(batch), expr(n): expr(h) * expr(w), expr(k): sympy.Integer(3)}


def test_the_first_that_a_symbol_is_given_holds() -> None:
    inner, outer = Sketch(), Sketch()
    n, (first, second) = inner.size(12), outer.sizes(12, 12)
    body, node = tied(inner, [(1, n), (n,), (2 * n,)], outer, [(1, first), (second,), (24,)])
    assert binding(body, node) == {expr(n): expr(first)}


def test_a_side_that_is_a_multiple_of_a_symbol_gives_the_symbol() -> None:
    inner, outer = Sketch(), Sketch()
    half, whole = inner.size(6), outer.size(12)
    body, node = tied(inner, [(2 * half,), (half,)], outer, [(whole,), (7,)])
    assert binding(body, node) == {expr(half): expr(whole) / 2}


def test_other_expressions_give_no_symbol() -> None:
    inner, outer = Sketch(), Sketch()
    a, b = inner.sizes(3, 4)
    body, node = tied(inner, [(a * b,), (a + 2,), (2 * a * b,)], outer, [(12,), (5,), (24,)])
    assert binding(body, node) == {}


def test_sizes_that_are_one_inside_become_one_outside() -> None:
    inner, outer = Sketch(), Sketch()
    n, (tokens, rows) = inner.size(12), outer.sizes(12, 12)
    body, node = tied(inner, [(2, n, 8), (n, 8)], outer, [(2, tokens, 8), (rows, 8)])
    bind_sizes(outer.env, body, node)
    assert size_of(rows) == size_of(tokens)
    assert len(outer.env.guards) == 1


def test_a_symbol_becomes_the_product_that_it_equals() -> None:
    inner, outer = Sketch(), Sketch()
    n, (h, w, rows) = inner.size(12), outer.sizes(3, 4, 12)
    body, node = tied(inner, [(2, n, 8), (n, 8)], outer, [(2, h * w, 8), (rows, 8)])
    bind_sizes(outer.env, body, node)
    assert size_of(rows) == expr(h) * expr(w)


def test_a_symbol_becomes_the_product_that_comes_later() -> None:
    inner, outer = Sketch(), Sketch()
    n, (h, w, rows) = inner.size(12), outer.sizes(3, 4, 12)
    body, node = tied(inner, [(rows_first := n,), (n, 8)], outer, [(rows,), (h * w, 8)])
    assert rows_first is n
    bind_sizes(outer.env, body, node)
    assert size_of(rows) == expr(h) * expr(w)


@pytest.mark.parametrize("turned", [False, True])
def test_a_symbol_of_a_smaller_range_becomes_the_product_too(turned: bool) -> None:
    """Torch leaves such a symbol as it is, and notes a guard alone."""
    inner, outer = Sketch(), Sketch()
    n, (h, w, rows) = inner.size(12), outer.sizes(3, 4, 12)
    assert rows < 100
    body, node = tied(inner, [(n,), (n,)], outer, [(rows,), (h * w,)] if turned else [(h * w,), (rows,)])
    bind_sizes(outer.env, body, node)
    assert size_of(rows) == expr(h) * expr(w)


@pytest.mark.parametrize(
    "size",
    [lambda n: n, lambda n: 2 * n, lambda n: n + 3, lambda n: 2 * n + 6, lambda n: 100 - 3 * n],
)
def test_common_terms_and_factors_fall_away(size: Callable[[Any], Any]) -> None:
    inner, outer = Sketch(), Sketch()
    n, (h, w, rows) = inner.size(12), outer.sizes(3, 4, 12)
    assert rows < 100, "so that torch leaves it as it is"
    body, node = tied(inner, [(n,), (size(n),)], outer, [(h * w,), (size(rows),)])
    bind_sizes(outer.env, body, node)
    assert size_of(rows) == expr(h) * expr(w)


def test_a_size_that_is_a_number_inside_is_one_outside() -> None:
    inner, outer = Sketch(), Sketch()
    width = outer.size(8)
    body, node = tied(inner, [(2, 8)], outer, [(2, width)])
    bind_sizes(outer.env, body, node)
    assert size_of(width) == 8


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        (lambda n: [(2, 8)], lambda a, b: [(2, 9)]),
        (lambda n: [(2, 8)], lambda a, b: [(2, a)]),
        (lambda n: [(2, 0)], lambda a, b: [(2, a)]),
        (lambda n: [(n,), (n,)], lambda a, b: [(a,), (b,)]),
        (lambda n: [(n,), (n + 1,)], lambda a, b: [(a,), (a,)]),
    ],
)
def test_sizes_that_contradict_those_of_the_block_are_refused(taken: Callable[..., Any], given: Callable[..., Any]) -> None:
    inner, outer = Sketch(), Sketch()
    n, (a, b) = inner.size(12), outer.sizes(12, 13)
    body, node = tied(inner, taken(n), outer, given(a, b))
    with pytest.raises(CaptureError, match=r"blocks.0 is called with sizes that it was not captured for: .* does not hold"):
        bind_sizes(outer.env, body, node)


def test_sizes_that_agree_leave_no_guard() -> None:
    inner, outer = Sketch(), Sketch()
    n, a = inner.size(12), outer.size(12)
    body, node = tied(inner, [(2, n), (n + 1,), 3, (0, 2)], outer, [(2, a), (a + 1,), 3, (0, 2)])
    bind_sizes(outer.env, body, node)
    assert outer.env.guards == [] and size_of(a) == expr(a)


def test_what_a_block_took_for_granted_becomes_a_guard() -> None:
    inner, outer = Sketch(), Sketch()
    (n, unseen), (a,) = inner.sizes(12, 3), outer.sizes(12)
    body, node = tied(inner, [(n,)], outer, [(a,)])
    body.conditions = [expr(n) > 4, True, expr(unseen) > 100, expr(n) > 4]
    bind_sizes(outer.env, body, node)
    assert [guard.expr for guard in outer.env.guards] == [expr(a) > 4]
    body.conditions = [expr(n) > 40]
    with pytest.raises(CaptureError, match=r"40.* does not hold"):
        bind_sizes(outer.env, body, node)


def test_symbols_that_the_call_says_nothing_of_are_let_be() -> None:
    """Their names may be those of others outside."""
    inner, outer = Sketch(), Sketch()
    (h, w), (a, b) = inner.sizes(3, 4), outer.sizes(12, 13)
    body, node = tied(inner, [(h * w,), (h * w,)], outer, [(a,), (b,)])
    bind_sizes(outer.env, body, node)
    assert outer.env.guards == [] and size_of(a) != size_of(b)
    assert mismatch(outer.env, body, node) is None


def test_a_symbol_is_set_once_and_never_to_something_made_of_itself() -> None:
    sketch = Sketch()
    a, b, c = sketch.sizes(4, 4, 4)
    set_equal(sketch.env, expr(a), expr(a) + 1)
    assert size_of(a) == expr(a)
    set_equal(sketch.env, expr(a), expr(b))
    assert size_of(a) == expr(b)
    set_equal(sketch.env, expr(a), expr(c))
    assert size_of(a) == expr(b)
    set_equal(sketch.env, expr(b), expr(a))
    assert size_of(b) == expr(b), "it would be made of itself"
    set_equal(sketch.env, expr(c), expr(a) + 1)
    assert size_of(c) == expr(b) + 1, "with what is known of the other put in"
    set_equal(sketch.env, expr(b), 4)
    assert size_of(a) == 4


def test_what_was_known_of_sizes_is_asked_again_after_one_is_set() -> None:
    sketch = Sketch()
    a, b = sketch.sizes(4, 4)
    twice = 2 * a
    assert size_of(twice) == 2 * expr(a)
    set_equal(sketch.env, expr(a), expr(b))
    assert size_of(twice) == 2 * expr(b)


@pytest.mark.parametrize(
    ("taken", "given", "fits"),
    [
        (lambda n: [(n,), (n,)], lambda a, b: [(a,), (a,)], True),
        (lambda n: [(n,), (n,)], lambda a, b: [(a,), (b,)], False),
        (lambda n: [(n,), (2 * n,)], lambda a, b: [(a + b,), (2 * a + 2 * b,)], True),
        (lambda n: [(n,), (n + 1,)], lambda a, b: [(a,), (a,)], False),
        (lambda n: [(n,), n], lambda a, b: [(a,), a], True),
        (lambda n: [(n,), n], lambda a, b: [(a,), b], False),
        (lambda n: [(n,), (8,)], lambda a, b: [(a,), (b,)], True),  # fixed inside: a guard on the inputs sees to it
        (lambda n: [(n,), (n * n,)], lambda a, b: [(a,), (a * a,)], True),
    ],
)
def test_sizes_of_a_call_that_must_be_equal_inside(taken: Callable[..., Any], given: Callable[..., Any], fits: bool) -> None:
    inner, outer = Sketch(), Sketch()
    n, (a, b) = inner.size(12), outer.sizes(12, 12)
    body, node = tied(inner, taken(n), outer, given(a, b))
    said = mismatch(outer.env, body, node)
    assert (said is None) == fits
    assert said is None or ("blocks_0 gives a size of" in said and "where block0 takes" in said and f"{expr(a)}" in said)


def test_sizes_that_are_equal_by_what_is_known_outside_fit() -> None:
    for learn in (lambda a, b: a == b, lambda a, b: 2 * a == 2 * b, lambda a, b: a * 3 == b * 3, lambda a, b: b + 5 == a + 5):
        inner, outer = Sketch(), Sketch()
        n, (a, b) = inner.size(12), outer.sizes(12, 12)
        body, node = tied(inner, [(n,), (n,)], outer, [(a,), (b,)])
        assert mismatch(outer.env, body, node) is not None
        assert learn(a, b)
        assert mismatch(outer.env, body, node) is None


@pytest.mark.parametrize("turned", [False, True])
def test_sizes_that_are_equal_by_a_guard_that_sets_no_symbol_fit(turned: bool) -> None:
    inner, outer = Sketch(), Sketch()
    n, (a, b, c, d) = inner.size(12), outer.sizes(3, 4, 2, 6)
    given = [(c * d,), (a * b,)] if turned else [(a * b,), (c * d,)]
    body, node = tied(inner, [(n,), (n,)], outer, given)
    assert mismatch(outer.env, body, node) is not None
    assert a * b == c * d, "which is a guard"
    assert mismatch(outer.env, body, node) is None
    other, node = tied(inner, [(n,), (n,)], outer, [(a * c,), (b * d,)])
    assert mismatch(outer.env, other, node) is not None, "of other sizes it says nothing"


def test_a_call_with_other_numbers_of_inputs_or_axes_is_an_error() -> None:
    inner, outer = Sketch(), Sketch()
    n, a = inner.size(12), outer.size(12)
    for given in ([(a,), (a,)], [(a, 1)]):
        body, node = tied(inner, [(n,)], outer, given)
        with pytest.raises(ValueError, match="zip"):
            binding(body, node)
