"""Sizes as numbers and expressions, what nodes yield, and what of it is kept."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.shapes import annotate, compute_value, shape_of, size_of

from .sketch import Sketch, aten, expr


def test_a_size_is_a_number_or_an_expression_with_all_that_is_known_put_in() -> None:
    sketch = Sketch()
    rows, columns = sketch.sizes(5, 7)
    assert size_of(3) == 3 and size_of(rows) == expr(rows)
    assert size_of(2 * rows + columns) == 2 * expr(rows) + expr(columns)
    sketch.env.replacements[expr(rows)] = expr(columns)
    sketch.env._update_version_counter()
    assert size_of(rows) == expr(columns), "what was kept is of another time"
    sketch.env.replacements[expr(columns)] = sympy.Integer(7)
    sketch.env._update_version_counter()
    assert size_of(columns) == 7 and isinstance(size_of(columns), int)


def test_a_size_is_simplified_once_while_nothing_more_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Sketch(), Sketch()
    rows, columns = first.size(5), second.size(7)
    asked: list[Any] = []

    def watch(env: ShapeEnv) -> None:
        simplify = env.simplify

        def watched(size: Any, *rest: Any) -> Any:
            asked.append(size)
            return simplify(size, *rest)

        monkeypatch.setattr(env, "simplify", watched)

    watch(first.env), watch(second.env)
    for _ in range(3):
        assert size_of(rows) == expr(rows) and size_of(columns) == expr(columns)
    assert asked == [expr(rows), expr(columns)]
    assert first.size(5) == 5, "one more thing is known"
    asked.clear()
    assert size_of(rows) == expr(rows) and asked == [expr(rows)]


def test_the_shape_of_what_is_no_tensor_is_empty() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    assert shape_of(sketch.input("x", 2, rows)) == (2, expr(rows))
    assert shape_of(sketch.number("n", rows)) == ()
    assert shape_of(sketch.graph.placeholder("nothing")) == ()


def call(sketch: Sketch, target: Any, *args: Any) -> fx.Node:
    """A node whose value is made without a mode being given."""
    return annotate(sketch.graph.call_function(target, args))


class Counting:
    """Doubles a tensor, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        self.calls += 1
        return x * 2

    __name__ = "counting"


def runs(sketch: Sketch, *pairs: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """How often an operator is run for these arguments; tensors among them go through nodes."""
    graph, target = fx.Graph(), Counting()
    for args, kwargs in pairs:
        values: dict[fx.Node, Any] = {}

        def given(value: Any, values: dict[fx.Node, Any] = values) -> Any:
            if not isinstance(value, (torch.Tensor, torch.SymInt)):
                return value
            node = graph.placeholder(f"x{len(graph.nodes)}")
            values[node] = value
            return node

        args = tuple(map(given, args))
        node = graph.call_function(target, args, {name: given(value) for name, value in kwargs.items()})
        value = compute_value(node, values, sketch.mode)
        assert value.shape == values[args[0]].shape
    return target.calls


def test_an_operator_is_run_once_for_arguments_that_look_alike() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    x, y = sketch.fake(2, rows), sketch.fake(2, rows)
    assert runs(sketch, ((x,), {}), ((y,), {})) == 1
    assert runs(sketch, ((x, [1, 2], 0.5), {"how": "mean"}), ((y, [1, 2], 0.5), {"how": "mean"})) == 1
    assert runs(sketch, ((x, rows), {}), ((y, rows * 1), {})) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((1,), {}), ((2,), {})),
        (((1,), {}), ((True,), {})),
        (((1,), {}), ((1.0,), {})),
        ((([1, 2],), {}), (((1, 2),), {})),
        ((([1, 2],), {}), (([1, 3],), {})),
        (((), {"how": 1}), ((), {"how": 2})),
        (((), {"how": 1}), ((), {"way": 1})),
        (((), {}), ((None,), {})),
    ],
)
def test_an_operator_is_run_again_for_other_numbers(one: Any, other: Any) -> None:
    sketch = Sketch()
    x = sketch.fake(2, 3)
    assert runs(sketch, *(((x, *args), kwargs) for args, kwargs in (one, other))) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(torch.float64),
        lambda x: x.to("meta"),
        lambda x: x.t(),
        lambda x: torch.empty(5, 4)[1:],
        lambda x: torch.empty(4, 5)[:, :4],
        lambda x: torch.empty(2, 8),
        lambda x: x.requires_grad_(),
        lambda x: torch.empty(4, 4, dtype=torch.complex64),
    ],
)
def test_an_operator_is_run_again_for_another_tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    sketch = Sketch()
    x = sketch.fake(4, 4)
    with sketch.mode:
        other = change(torch.empty(4, 4))
    assert runs(sketch, ((x,), {}), ((other,), {})) == 2


def test_an_operator_is_run_again_for_conjugates_and_negatives() -> None:
    sketch = Sketch()
    z = sketch.fake(4, 4, dtype=torch.complex64)
    with sketch.mode:
        conjugate = z.conj()
        negative, real = conjugate.imag, z.imag
    assert runs(sketch, ((z,), {}), ((conjugate,), {})) == 2
    assert runs(sketch, ((real,), {}), ((negative,), {})) == 2


def test_an_operator_is_run_again_for_other_symbols() -> None:
    sketch = Sketch()
    rows, columns = sketch.sizes(5, 5)
    x = sketch.fake(2, rows)
    assert runs(sketch, ((x,), {}), ((sketch.fake(2, columns),), {})) == 2
    assert runs(sketch, ((x, rows), {}), ((x, columns), {})) == 2
    assert runs(sketch, ((x, rows), {}), ((x, rows + 1), {})) == 2


def test_tensors_with_known_values_and_other_layouts_are_like_no_others() -> None:
    sketch = Sketch()
    with sketch.mode:
        known = torch.tensor(3)
        sparse = torch.zeros(4).to_sparse()
    assert known.constant is not None  # type: ignore[attr-defined]
    assert runs(sketch, ((known,), {}), ((known,), {})) == 2
    assert runs(sketch, ((sparse,), {}), ((sparse,), {})) == 2


def test_what_is_kept_for_one_mode_is_not_given_to_another() -> None:
    first, second = Sketch(), Sketch()
    for sketch in (first, second):
        node = call(sketch, aten.neg.default, sketch.input("x", 2, 3))
        assert node.meta["val"].fake_mode is sketch.mode


def test_sizes_that_depend_on_values_are_new_at_every_run() -> None:
    sketch = Sketch()
    flags = [sketch.input(name, 4, dtype=torch.bool) for name in ("x", "y")]
    one, other = (call(sketch, aten.nonzero.default, each) for each in flags)
    assert shape_of(one)[0] != shape_of(other)[0]
    assert shape_of(one)[1] == 1


def test_values_are_symbolic_and_ask_for_no_gradient() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    x = sketch.input("x", 2, rows, 8, requires_grad=True)
    before = len(sketch.env.guards)
    node = call(sketch, aten.matmul.default, x, call(sketch, aten.transpose.int, x, 1, 2))
    assert shape_of(node) == (2, expr(rows), expr(rows))
    assert not node.meta["val"].requires_grad
    assert shape_of(call(sketch, aten.reshape.default, x, [2, -1])) == (2, 8 * expr(rows)), "a composite operator"
    assert len(sketch.env.guards) == before


def test_a_new_node_gets_its_value_from_tensors_in_lists_and_tuples_too() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    x = sketch.input("x", 2, rows)
    assert shape_of(call(sketch, aten.cat.default, [x, x], 1)) == (2, 2 * expr(rows))
    parts = call(sketch, aten.unbind.int, x)
    assert shape_of(call(sketch, operator.getitem, parts, 0)) == (expr(rows),)
    assert annotate(parts) is parts


def test_a_new_node_of_sizes_alone_is_a_size() -> None:
    sketch = Sketch()
    rows = sketch.size(5)
    n = sketch.number("n", rows)
    assert size_of(call(sketch, operator.add, n, 3).meta["val"]) == expr(rows) + 3


def test_a_new_node_of_no_arguments_needs_a_mode() -> None:
    sketch = Sketch()
    ones = sketch.graph.call_function(aten.ones.default, ([2, 3],))
    assert "val" not in annotate(ones).meta
    assert shape_of(annotate(ones, sketch.mode)) == (2, 3) and ones.meta["val"].fake_mode is sketch.mode


def test_the_mode_of_tensors_goes_before_the_one_that_is_given() -> None:
    sketch, other = Sketch(), Sketch()
    node = annotate(sketch.graph.call_function(aten.neg.default, (sketch.input("x", 3),)), other.mode)
    assert node.meta["val"].fake_mode is sketch.mode
