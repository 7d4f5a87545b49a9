"""What becomes of results along an axis of another size: which operand spreads, and which shapes are stated anew."""

from __future__ import annotations

from typing import Any

import pytest
import sympy

from sparsify.passes.axes import broadcasts, resized, same

from .sketch import Sketch, aten


@pytest.mark.parametrize("target", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
@pytest.mark.parametrize(
    ("sizes", "axis", "expected"),
    [
        ((2, 3, 4), 1, True),
        ((3, 4), 1, True),
        ((3, 1), 1, True),
        ((2, 1, 4), 1, False),
        ((4,), 1, False),
        ((4,), 2, True),
        ((5, 2, 3, 4), 1, True),
        ((5, 2, 3, 4), 0, True),
    ],
)
def test_another_operand_of_full_size_spreads_one_of_size_one(
    target: Any, sizes: tuple[int, ...], axis: int, expected: bool
) -> None:
    sketch = Sketch()
    x, other = sketch.input("x", 2, 3, 4), sketch.input("other", *sizes)
    assert broadcasts(sketch(target, x, other), x, axis) is expected
    assert broadcasts(sketch(target, other, x), x, axis) is expected


def test_nothing_else_spreads() -> None:
    sketch = Sketch()
    x, other = sketch.input("x", 2, 3, 4), sketch.input("other", 2, 3, 4)
    assert not broadcasts(sketch(aten.add.Tensor, x, x), x, 1)
    assert not broadcasts(sketch(aten.add.Tensor, x, 2.0), x, 1)
    assert not broadcasts(sketch(aten.maximum.default, x, other), x, 1)


@pytest.mark.parametrize("target", [aten.reshape.default, aten.view.default, aten._unsafe_view.default])
def test_a_stated_shape_gets_the_new_size(target: Any) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 4, 6)
    node = sketch(target, x, [2, 12, 6])
    assert resized(node, 1, 5) == (x, [2, 5, 6])
    assert node.args == (x, [2, 12, 6])


def test_other_operators_state_no_shape() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 4, 6)
    node = sketch(aten.transpose.int, x, 1, 2)
    assert resized(node, 1, 5) == (x, 1, 2)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (3, 3, True),
        (3, 4, False),
        (3, sympy.Integer(3), True),
        (sympy.Symbol("n") * 2, sympy.Symbol("n") + sympy.Symbol("n"), True),
        (sympy.Symbol("n") * (sympy.Symbol("n") + 1), sympy.Symbol("n") ** 2 + sympy.Symbol("n"), True),
        (sympy.Symbol("n") + 1, sympy.Symbol("n"), False),
        (sympy.Symbol("n"), 3, False),
        (3, sympy.Symbol("n"), False),
    ],
)
def test_sizes_are_the_same_for_all_values_of_their_symbols(a: Any, b: Any, expected: bool) -> None:
    assert same(a, b) is expected
