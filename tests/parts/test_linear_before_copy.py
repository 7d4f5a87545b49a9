"""A linear map moves in front of the copies of tokens: eager torch says that nothing changed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.ops import restore_tokens
from sparsify.passes import LinearBeforeCopy
from sparsify.program import Program
from sparsify.shapes import shape_of

from .sketch import Sketch, aten, run, targets

LINEAR = aten.linear.default


class Copies:
    """Sparse tokens on a grid of 2 x 3, copied to one of 4 x 6."""

    def __init__(self, *sizes: int, rest: tuple[Any, ...] = ()) -> None:
        self.sketch = sketch = Sketch()
        self.sizes = sizes
        self.x, self.weight, self.bias = sketch.input("x", *sizes), sketch.input("w", 5, 4), sketch.input("b", 5)
        self.copies = sketch(restore_tokens, self.x, [2, 3], [4, 6], *rest)

    def program(self, *results: fx.Node) -> Program:
        self.sketch.output(*results)
        return self.sketch.program()

    def ran(self) -> Any:
        torch.manual_seed(0)
        return run(self.sketch.graph, torch.rand(self.sizes), torch.rand(5, 4), torch.rand(5))

    def check(self, count: int, *results: fx.Node) -> list[Any]:
        """The operators after the pass, which changes no value."""
        program = self.program(*results)
        before = self.ran()
        assert LinearBeforeCopy().run(program) == count
        after = self.ran()
        for one, other in zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]:
            assert torch.allclose(one, other, atol=1e-6)
        return targets(program.graph)


@pytest.mark.parametrize(
    ("sizes", "rest"),
    [
        ((2, 6, 4), ()),
        ((2, 6, 4), (1,)),
        ((2, 6, 4), (-2,)),
        ((6, 4), (0,)),
        ((6, 4), (-2,)),
        ((2, 9, 4), (1, 3)),
        ((2, 11, 4), (1, 3, 2)),
        ((6, 6, 4), (0,)),
        ((3, 2, 6, 4), (2,)),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_sparse_tokens_are_mapped_and_then_copied(sizes: tuple[int, ...], rest: tuple[int, ...], bias: bool) -> None:
    model = Copies(*sizes, rest=rest)
    linear = model.sketch(LINEAR, model.copies, model.weight, *([model.bias] if bias else []))
    assert model.check(1, linear) == [LINEAR, restore_tokens]
    early, late = (node for node in model.sketch.graph.nodes if node.op == "call_function")
    assert early.args == (model.x, model.weight, *([model.bias] if bias else []))
    assert late.args == (early, [2, 3], [4, 6], *rest)
    assert shape_of(early)[:-1] == sizes[:-1]
    assert early.meta["provenance"] == ("linear-before-copy", linear.name)
    assert late.meta["provenance"] == ("linear-before-copy", model.copies.name)


def test_arguments_by_name_are_kept() -> None:
    model = Copies(2, 6, 4)
    model.copies.kwargs = {"before": 0}
    linear = model.sketch(LINEAR, model.copies, model.weight, bias=model.bias)
    model.check(1, linear)
    early, late = (node for node in model.sketch.graph.nodes if node.op == "call_function")
    assert (early.kwargs, late.kwargs) == ({"bias": model.bias}, {"before": 0})


def test_products_with_a_matrix_move_too() -> None:
    model = Copies(2, 6, 5)
    assert model.check(1, model.sketch(aten.matmul.default, model.copies, model.weight)) == [
        aten.matmul.default,
        restore_tokens,
    ]


def test_copies_that_others_read_stay() -> None:
    model = Copies(2, 6, 4)
    linear, exp = model.sketch(LINEAR, model.copies, model.weight), model.sketch(aten.exp.default, model.copies)
    assert model.check(1, linear, exp) == [restore_tokens, LINEAR, restore_tokens, aten.exp.default]


def test_every_map_of_the_same_copies_moves() -> None:
    model = Copies(2, 6, 4)
    one, other = (model.sketch(LINEAR, model.copies, model.weight, *bias) for bias in ((), (model.bias,)))
    assert model.check(2, one, other) == [LINEAR, restore_tokens, LINEAR, restore_tokens]


def test_maps_of_every_copy_are_found() -> None:
    model = Copies(2, 6, 4)
    second = model.sketch(restore_tokens, model.x, [2, 3], [2, 6])
    results = [model.sketch(LINEAR, copies, model.weight) for copies in (model.copies, second)]
    assert model.check(2, *results) == [LINEAR, restore_tokens, LINEAR, restore_tokens]


@pytest.mark.parametrize(("sizes", "rest"), [((2, 3, 6), (2,)), ((2, 3, 6), (-1,)), ((2, 6), ()), ((2, 6), (1,))])
def test_a_map_of_the_copied_axis_itself_stays(sizes: tuple[int, ...], rest: tuple[int, ...]) -> None:
    model = Copies(*sizes, rest=rest)
    wide = model.sketch.input("wide", 5, 24)
    program = model.program(model.sketch(LINEAR, model.copies, wide))
    assert LinearBeforeCopy().run(program) == 0


def test_other_operators_stay() -> None:
    model = Copies(2, 6, 4)
    assert model.check(0, model.sketch(aten.neg.default, model.copies)) == [restore_tokens, aten.neg.default]


def test_copies_that_are_the_weight_stay() -> None:
    model = Copies(6, 4, rest=(0,))
    tokens = model.sketch.input("tokens", 2, 7, 4)
    assert LinearBeforeCopy().run(model.program(model.sketch(LINEAR, tokens, model.copies))) == 0


def test_places_are_described() -> None:
    model = Copies(2, 6, 4)
    linear = model.sketch(LINEAR, model.copies, model.weight)
    assert LinearBeforeCopy().describe((linear, model.copies)) == f"{linear.name} of {model.copies.name}"


def test_it_prepares_and_has_no_state() -> None:
    assert LinearBeforeCopy.prepares is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        LinearBeforeCopy().name = "other"  # type: ignore[misc]
    assert LinearBeforeCopy() == LinearBeforeCopy()
