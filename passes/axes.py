"""Follow one axis through operators that treat every index along it alike: the same affine map, index by index.

Means over that axis, and copies along it, may change places with such operators. Everything else ends the way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from ..shapes import Size, shape_of
from .cleanup import no_dropout, same_type

aten = torch.ops.aten

LINEAR = (aten.linear.default, aten.matmul.default)
RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)  # their second argument is the shape


def axis_behind(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """Where ``axis`` of ``operand`` is in the result of ``node``; None if indices along it are not treated alike.

    The other operands must not change along the axis. Of several results each has it there.
    """
    rule = _RULES.get(node.target)
    return None if rule is None else rule(node, operand, axis)


def axis_before(node: fx.Node, axis: int) -> tuple[fx.Node, int] | None:
    """The one operand that the result of ``node`` follows along ``axis``, and where the axis is in it."""
    found = []
    for operand in dict.fromkeys(node.all_input_nodes):
        for position in range(_rank(operand)):
            if axis_behind(node, operand, position) == axis:
                found.append((operand, position))
    return found[0] if len(found) == 1 else None


def broadcasts(node: fx.Node, operand: fx.Node, axis: int) -> bool:
    """Whether ``node`` gives the same if ``operand`` has size 1 along ``axis``, because another operand has the full size."""
    if node.target not in _ELEMENTWISE or node.args[:2].count(operand) != 1:
        return False
    other = node.args[1] if node.args[0] is operand else node.args[0]
    from_behind = axis - _rank(operand)
    return (
        isinstance(other, fx.Node) and _rank(other) >= -from_behind and shape_of(other)[from_behind] == shape_of(operand)[axis]
    )


def resized(node: fx.Node, axis: int, size: Any) -> tuple[Any, ...]:
    """The arguments of ``node`` for a result that has ``size`` along ``axis``, where they state its shape."""
    if node.target not in RESHAPES:
        return node.args
    sizes = list(_arguments(node)[1])
    sizes[axis] = size
    return (node.args[0], sizes, *node.args[2:])


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value.ndim if isinstance(value, torch.Tensor) else 0


# --- one rule for each kind of operator: (node, operand, axis) -> axis of the result ------------------------------------


def _only_first(rule: Callable[[fx.Node, int], int | None]) -> Callable[[fx.Node, fx.Node, int], int | None]:
    return lambda node, operand, axis: rule(node, axis) if node.args[0] is operand else None


def _linear(node: fx.Node, axis: int) -> int | None:
    weight: Any = node.args[1]
    return axis if axis < _rank(node) - 1 and _rank(weight) == 2 and node.args[0] is not weight else None


def _transposed(node: fx.Node, axis: int) -> int:
    rank = _rank(node)
    a, b = (int(dim) % rank for dim in _arguments(node)[1:3])
    return {a: b, b: a}.get(axis, axis)


def _permuted(node: fx.Node, axis: int) -> int:
    return [int(dim) % _rank(node) for dim in _arguments(node)[1]].index(axis)


def _unsqueezed(node: fx.Node, axis: int) -> int:
    return axis + (int(_arguments(node)[1]) % _rank(node) <= axis)


def _kept_apart(node: fx.Node, axis: int) -> int | None:
    """Where a change of shape leaves an axis as it is."""
    before, after = shape_of(_arguments(node)[0]), shape_of(node)
    places = [i for i, size in enumerate(after) if same(size, before[axis]) and _same_product(after[:i], before[:axis])]
    return places[-1] if places else None  # sizes of 1 in front are no others


def _of_other_axis(dim_at: int, removes: bool = False) -> Callable[[fx.Node, int], int | None]:
    def rule(node: fx.Node, axis: int) -> int | None:
        args = _arguments(node)
        dim = int(args[dim_at] if len(args) > dim_at else 0) % _rank(args[0])
        return None if dim == axis else axis - (removes and dim < axis)

    return rule


def _repeated(node: fx.Node, axis: int) -> int | None:
    has_axis = len(_arguments(node)) > 2 and _arguments(node)[2] is not None  # else all axes are merged
    return _of_other_axis(2)(node, axis) if has_axis else None


def _where(holds: Callable[[fx.Node], bool]) -> Callable[[fx.Node, int], int | None]:
    return lambda node, axis: axis if holds(node) else None


def _elementwise(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    if node.target == aten.div.Tensor and node.args[0] is not operand:
        return None
    if node.args[:2].count(operand) != 1 or operand.meta["val"].dtype != node.meta["val"].dtype:
        return None  # a mean of what is counted or rounded otherwise is another mean
    other = node.args[1] if node.args[0] is operand else node.args[0]
    from_behind = axis - _rank(operand)
    if isinstance(other, fx.Node) and _rank(other) >= -from_behind and shape_of(other)[from_behind] != 1:
        return None
    return _rank(node) + from_behind


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal whatever their symbols are."""
    return a == b or bool(sympy.expand(sympy.sympify(a) - b) == 0)


def _same_product(a: Sequence[Size], b: Sequence[Size]) -> bool:
    return same(math.prod(a), math.prod(b))


_ELEMENTWISE = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
_RULES: dict[object, Callable[[fx.Node, fx.Node, int], int | None]] = {
    **dict.fromkeys(LINEAR, _only_first(_linear)),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys((*RESHAPES, aten.flatten.using_ints, aten.unflatten.int), _only_first(_kept_apart)),
    **dict.fromkeys((aten.to.dtype, aten._to_copy.default), _only_first(_where(same_type))),
    **dict.fromkeys(
        (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.neg.default), _only_first(lambda _, axis: axis)
    ),
    **dict.fromkeys((aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default), _only_first(_of_other_axis(2))),
    operator.getitem: _only_first(lambda _, axis: axis),
    aten.unbind.int: _only_first(_of_other_axis(1, removes=True)),
    aten.select.int: _only_first(_of_other_axis(1, removes=True)),
    aten.slice.Tensor: _only_first(_of_other_axis(1)),
    aten.repeat_interleave.self_int: _only_first(_repeated),
    aten.transpose.int: _only_first(_transposed),
    aten.permute.default: _only_first(_permuted),
    aten.unsqueeze.default: _only_first(_unsqueezed),
    aten.dropout.default: _only_first(_where(no_dropout)),
}
