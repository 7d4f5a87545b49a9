"""Where an axis goes: worked out by hand for every kind of operator, and checked by reordering the indices along it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes.axes import axis_before, axis_behind

from .sketch import Sketch, aten

SIZES = (2, 3, 4, 6)


def one(target: Any, *args: Any, sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = torch.float32) -> tuple[fx.Node, fx.Node]:
    """An operator on ``x``, and ``x``."""
    sketch = Sketch()
    x = sketch.input("x", *sizes, dtype=dtype)
    return sketch(target, x, *args), x


def reordered(value: Any, axis: int) -> list[torch.Tensor]:
    """Tensors with the indices along an axis shifted by one."""
    return [each.roll(1, axis) for each in (value if isinstance(value, (list, tuple)) else [value])]


FOLLOWED = [  # the operator, its other arguments, the axis, and where it is in the result
    (aten.neg.default, (), 1, 1),
    (aten.clone.default, (), 3, 3),
    (aten.contiguous.default, (), 0, 0),
    (aten.alias.default, (), 2, 2),
    (aten.to.dtype, (torch.float32,), 1, 1),
    (aten._to_copy.default, (), 1, 1),
    (aten.dropout.default, (0.5, False), 1, 1),
    (aten.dropout.default, (0.0, True), 1, 1),
    (aten.transpose.int, (1, 2), 0, 0),
    (aten.transpose.int, (1, 2), 1, 2),
    (aten.transpose.int, (1, -2), 2, 1),
    (aten.transpose.int, (-1, 1), 3, 1),
    (aten.transpose.int, (-1, 1), 2, 2),
    (aten.permute.default, ([0, 2, 3, 1],), 1, 3),
    (aten.permute.default, ([0, 2, 3, 1],), 2, 1),
    (aten.permute.default, ([0, -2, -1, -3],), 3, 2),
    (aten.unsqueeze.default, (1,), 0, 0),
    (aten.unsqueeze.default, (1,), 1, 2),
    (aten.unsqueeze.default, (-1,), 3, 3),
    (aten.unsqueeze.default, (-2,), 3, 4),
    (aten.unsqueeze.default, (0,), 0, 1),
    (aten.chunk.default, (2, 3), 1, 1),
    (aten.chunk.default, (2,), 1, 1),
    (aten.chunk.default, (2, -1), 2, 2),
    (aten.split.Tensor, (2, 2), 3, 3),
    (aten.split_with_sizes.default, ([1, 2], 1), 0, 0),
    (aten.unbind.int, (), 1, 0),
    (aten.unbind.int, (2,), 3, 2),
    (aten.unbind.int, (2,), 1, 1),
    (aten.select.int, (0, 1), 1, 0),
    (aten.select.int, (-1, 1), 1, 1),
    (aten.select.int, (1, 0), 3, 2),
    (aten.slice.Tensor, (1, 0, 2), 2, 2),
    (aten.slice.Tensor, (-1, 0, 2), 0, 0),
    (aten.repeat_interleave.self_int, (2, 1), 2, 2),
    (aten.repeat_interleave.self_int, (2, 1), 0, 0),
    (aten.reshape.default, ([2, 3, 24],), 1, 1),
    (aten.reshape.default, ([6, 4, 6],), 2, 1),
    (aten.reshape.default, ([6, 4, 6],), 3, 2),
    (aten.reshape.default, ([1, 2, 3, 24],), 1, 2),
    (aten.view.default, ([2, 3, 2, 2, 6],), 3, 4),
    (aten.view.default, ([2, 3, 2, 2, 6],), 1, 1),
    (aten._unsafe_view.default, ([2, 12, 6],), 3, 2),
    (aten.flatten.using_ints, (1, 2), 3, 2),
    (aten.flatten.using_ints, (1, 2), 0, 0),
    (aten.unflatten.int, (1, [1, 3]), 2, 3),
    (aten.unflatten.int, (3, [2, 3]), 2, 2),
    (aten.mul.Tensor, (2.0,), 1, 1),
    (aten.add.Tensor, (2.0,), 3, 3),
    (aten.sub.Tensor, (2.0,), 2, 2),
    (aten.div.Tensor, (2.0,), 0, 0),
]


@pytest.mark.parametrize(("target", "args", "axis", "behind"), FOLLOWED)
def test_an_axis_is_followed(target: Any, args: tuple[Any, ...], axis: int, behind: int) -> None:
    node, x = one(target, *args)
    assert axis_behind(node, x, axis) == behind
    value = torch.rand(SIZES)
    random = target is aten.dropout.default and args[1]
    if not random:
        got, want = target(value.roll(1, axis), *args), reordered(target(value, *args), behind)
        assert all(map(torch.equal, got if isinstance(got, (list, tuple)) else [got], want))


LOST = [
    (aten.exp.default, (), 1),  # not affine
    (aten.softmax.int, (-1,), 1),
    (aten.to.dtype, (torch.float64,), 1),
    (aten.dropout.default, (0.5, True), 1),
    (aten.chunk.default, (2, 3), 3),
    (aten.chunk.default, (2,), 0),
    (aten.chunk.default, (2, -1), 3),
    (aten.split.Tensor, (2, 2), 2),
    (aten.split_with_sizes.default, ([1, 2], 1), 1),
    (aten.unbind.int, (), 0),
    (aten.unbind.int, (2,), 2),
    (aten.select.int, (-1, 1), 3),
    (aten.slice.Tensor, (1, 0, 2), 1),
    (aten.slice.Tensor, (-1, 0, 2), 3),
    (aten.repeat_interleave.self_int, (2, 1), 1),
    (aten.repeat_interleave.self_int, (2,), 1),  # all axes become one
    (aten.repeat_interleave.self_int, (2, None), 0),
    (aten.reshape.default, ([2, 3, 24],), 2),
    (aten.reshape.default, ([2, 3, 24],), 3),
    (aten.reshape.default, ([6, 4, 6],), 0),
    (aten.reshape.default, ([2, 4, 3, 6],), 1),  # as large, but of other elements
    (aten.flatten.using_ints, (1, 2), 1),
    (aten.unflatten.int, (3, [2, 3]), 3),
]


@pytest.mark.parametrize(("target", "args", "axis"), LOST)
def test_an_axis_is_lost(target: Any, args: tuple[Any, ...], axis: int) -> None:
    node, x = one(target, *args)
    assert axis_behind(node, x, axis) is None


def test_sizes_of_one_in_front_are_not_taken_for_an_axis_of_one() -> None:
    node, x = one(aten.reshape.default, [1, 1, 5], sizes=(1, 5))
    assert axis_behind(node, x, 0) == 1
    assert axis_behind(node, x, 1) == 2


def test_a_copy_to_another_dtype_ends_the_way() -> None:
    sketch = Sketch()
    x = sketch.input("x", *SIZES)
    assert axis_behind(sketch(aten._to_copy.default, x, dtype=torch.float64), x, 1) is None
    assert axis_behind(sketch(aten._to_copy.default, x, dtype=torch.float32), x, 1) == 1


# --- linear maps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "behind"), [(0, 0), (1, 1), (2, None)])
def test_a_linear_map_keeps_all_axes_but_the_one_it_maps(axis: int, behind: int | None) -> None:
    sketch = Sketch()
    x, weight, square = sketch.input("x", 2, 3, 4), sketch.input("weight", 5, 4), sketch.input("square", 4, 4)
    assert axis_behind(sketch(aten.linear.default, x, weight), x, axis) == behind
    assert axis_behind(sketch(aten.matmul.default, x, square), x, axis) == behind


def test_a_weight_is_not_followed() -> None:
    sketch = Sketch()
    x, weight = sketch.input("x", 2, 3, 4), sketch.input("weight", 5, 4)
    assert axis_behind(sketch(aten.linear.default, x, weight), weight, 0) is None


def test_products_of_batches_and_of_a_matrix_with_itself_are_no_linear_maps() -> None:
    sketch = Sketch()
    x, other, square = sketch.input("x", 2, 3, 4), sketch.input("other", 2, 4, 4), sketch.input("square", 4, 4)
    assert axis_behind(sketch(aten.matmul.default, x, other), x, 1) is None
    assert axis_behind(sketch(aten.matmul.default, square, square), square, 0) is None


# --- element by element -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
@pytest.mark.parametrize(
    ("sizes", "axis", "behind"),
    [
        ((2, 1, 4), 1, 1),
        ((2, 1, 4), 0, None),
        ((2, 1, 4), 2, None),
        ((1, 4), 1, 1),
        ((1, 4), 0, 0),
        ((4,), 1, 1),
        ((3, 4), 1, None),
        ((2, 3, 4), 1, None),
        ((), 2, 2),
        ((5, 2, 1, 4), 1, 2),
        ((5, 1, 1, 4), 0, 1),
        ((5, 2, 1, 1), 2, 3),
    ],
)
def test_the_other_operand_must_be_the_same_all_along_the_axis(
    target: Any, sizes: tuple[int, ...], axis: int, behind: int | None
) -> None:
    sketch = Sketch()
    x, other = sketch.input("x", 2, 3, 4), sketch.input("other", *sizes)
    assert axis_behind(sketch(target, x, other), x, axis) == behind
    swapped = None if target is aten.div.Tensor else behind  # the inverse is not affine
    assert axis_behind(sketch(target, other, x), x, axis) == swapped


@pytest.mark.parametrize("target", [aten.add.Tensor, aten.mul.Tensor])
def test_a_value_with_itself_is_not_followed(target: Any) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 4)
    assert axis_behind(sketch(target, x, x), x, 1) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_result_of_another_dtype_ends_the_way(dtype: torch.dtype) -> None:
    sketch = Sketch()
    x, scale = sketch.input("x", 2, 3, 4, dtype=dtype), sketch.input("scale", 2, 1, 4, dtype=torch.float32)
    node = sketch(aten.mul.Tensor, x, scale)
    assert (axis_behind(node, x, 1) == 1) == (dtype == torch.float64)
    assert axis_behind(sketch(aten.mul.Tensor, scale, x), scale, 0) is None


# --- one of several results, and the way back ---------------------------------------------------------------------------


def test_one_of_several_results_is_followed() -> None:
    sketch = Sketch()
    chunks = sketch(aten.chunk.default, sketch.input("x", *SIZES), 3, -1)
    (second,) = sketch.items(chunks, 1)
    assert axis_behind(second, chunks, 2) == 2
    assert axis_before(second, 2) == (chunks, 2)
    assert axis_before(chunks, 1) == (chunks.args[0], 1)
    assert axis_before(chunks, 3) is None


def test_the_operand_that_follows_along_an_axis_is_found() -> None:
    sketch = Sketch()
    x, shift, scale = sketch.input("x", 2, 3, 4), sketch.input("shift", 2, 1, 4), sketch.input("scale", 3, 1)
    moved = sketch(aten.permute.default, x, [1, 2, 0])
    assert [axis_before(moved, axis) for axis in range(3)] == [(x, 1), (x, 2), (x, 0)]
    added = sketch(aten.add.Tensor, shift, x)
    assert axis_before(added, 1) == (x, 1)
    assert axis_before(added, 0) is None
    scaled = sketch(aten.mul.Tensor, x, scale)
    assert axis_before(scaled, 0) == (x, 0)
    assert axis_before(scaled, 1) is None
    assert axis_before(scaled, 2) == (x, 2)
    assert axis_before(sketch(aten.exp.default, x), 1) is None


def test_where_two_operands_would_do_none_is_chosen() -> None:
    sketch = Sketch()
    one_row, one_column = sketch.input("row", 1, 1), sketch.input("column", 1, 1)
    assert axis_before(sketch(aten.add.Tensor, one_row, one_column), 0) is None


def test_sizes_among_the_operands_have_no_axes() -> None:
    sketch = Sketch()
    count = sketch.size(5)
    x, n = sketch.input("x", 2, count, 4), sketch.number("n", count)
    node = sketch(aten.reshape.default, x, [2, n, 2, 2])
    assert axis_before(node, 1) == (x, 1)
