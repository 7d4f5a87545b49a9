"""What does nothing is taken out, and all else stays."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch

from sparsify.passes import Cleanup
from sparsify.passes.cleanup import no_dropout, same_type
from sparsify.program import DENSITY, GRID

from .sketch import Sketch, aten, of_bodies, targets


def is_removed(target: Any, *args: Any, dtype: torch.dtype = torch.float32, sizes: tuple[Any, ...] = (2, 3)) -> bool:
    """Whether one operator on ``x`` is taken out of a graph."""
    sketch = Sketch()
    x = sketch.input("x", *sizes, dtype=dtype)
    made = sketch(target, x, *args)
    sketch.output(made)
    program = of_bodies()
    program.bodies["block0"] = sketch.body()
    Cleanup().rewrite(program, sketch.graph)
    (result,) = sketch.graph.output_node().args
    assert (result is x) == (targets(sketch.graph) == [])
    return result is x


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.dropout.default, (0.5, False)),
        (aten.dropout.default, (0.0, True)),
        (aten.dropout.default, (0, True)),
        (aten.slice.Tensor, ()),
        (aten.slice.Tensor, (1,)),
        (aten.slice.Tensor, (1, 0)),
        (aten.slice.Tensor, (1, None)),
        (aten.slice.Tensor, (1, 0, sys.maxsize)),
        (aten.slice.Tensor, (1, 0, None)),
        (aten.slice.Tensor, (1, 0, None, 1)),
        (aten.mul.Tensor, (1,)),
        (aten.mul.Tensor, (1.0,)),
        (aten.div.Tensor, (1.0,)),
        (aten.expand.default, ([2, 3],)),
        (aten.expand.default, ([-1, -1],)),
        (aten.alias.default, ()),
    ],
)
def test_what_returns_its_input_is_taken_out(target: Any, args: tuple[Any, ...]) -> None:
    assert is_removed(target, *args)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.dropout.default, (0.5, True)),
        (aten.dropout.default, (1.0, True)),
        (aten.slice.Tensor, (1, 1)),
        (aten.slice.Tensor, (1, 0, 2)),
        (aten.slice.Tensor, (1, 0, 1)),
        (aten.slice.Tensor, (0, 0, None, 2)),
        (aten.mul.Tensor, (0,)),
        (aten.mul.Tensor, (2.0,)),
        (aten.div.Tensor, (2,)),
        (aten.expand.default, ([4, 2, 3],)),
        (aten.add.Tensor, (1,)),
        (aten.clone.default, ()),
        (aten.to.dtype, (torch.float32,)),
    ],
)
def test_what_changes_its_input_stays(target: Any, args: tuple[Any, ...]) -> None:
    assert not is_removed(target, *args)


def test_an_axis_that_is_spread_stays() -> None:
    assert not is_removed(aten.expand.default, [2, 3], sizes=(1, 3))


def test_a_factor_of_one_that_makes_floats_of_integers_stays() -> None:
    assert is_removed(aten.mul.Tensor, 1, dtype=torch.int64)
    assert not is_removed(aten.mul.Tensor, 1.0, dtype=torch.int64)
    assert not is_removed(aten.div.Tensor, 1, dtype=torch.int64)


def test_a_product_of_tensors_stays() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 2), sketch.input("y", 1)
    sketch.output(sketch(aten.mul.Tensor, x, y))
    Cleanup().rewrite(of_bodies(), sketch.graph)
    assert targets(sketch.graph) == [aten.mul.Tensor]


@pytest.mark.parametrize("named", [{"dim": 1, "start": 1}, {"dim": 1, "end": 2}, {"step": 2}])
def test_arguments_by_name_count(named: dict[str, int]) -> None:
    sketch = Sketch()
    sketch.output(sketch(aten.slice.Tensor, sketch.input("x", 2, 3), **named))
    Cleanup().rewrite(of_bodies(), sketch.graph)
    assert targets(sketch.graph) == [aten.slice.Tensor]


def test_types_are_dtype_and_device() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2)
    x.meta["val"] = sketch.fake(2, device="cpu")
    same, other_dtype, other_device = (sketch(aten.clone.default, x) for _ in range(3))
    other_dtype.meta["val"] = sketch.fake(2, dtype=torch.float16)
    other_device.meta["val"] = sketch.fake(2, device="meta")
    assert [same_type(node) for node in (same, other_dtype, other_device)] == [True, False, False]


@pytest.mark.parametrize(("rate", "train", "expected"), [(0.5, True, False), (0.5, False, True), (0.0, True, True)])
def test_dropout_drops_in_training_alone(rate: float, train: bool, expected: bool) -> None:
    sketch = Sketch()
    assert no_dropout(sketch(aten.dropout.default, sketch.input("x", 2), rate, train)) is expected


def test_unused_bodies_and_dead_nodes_go() -> None:
    body, unused = Sketch(), Sketch()
    for sketch in (body, unused):
        sketch.output(sketch(aten.exp.default, sketch.input("x", 2, 7, 4)))
    outer = Sketch()
    x = outer.input("x", 2, 7, 4)
    outer.input("unread", 2)
    for name in (GRID, DENSITY, "other"):
        outer.graph.call_module(name, (x,))
    outer(aten.exp.default, x)
    outer.block("blocks.0", "block0", x)  # kept although nothing reads it
    outer.output(x)
    program = outer.program(body.body("block0"), unused.body("unused"))
    assert list(Cleanup().match(program)) == [outer.graph, body.graph, unused.graph]
    assert Cleanup().run(program) == 3
    assert list(program.bodies) == ["block0"]
    assert [node.target for node in outer.graph.nodes] == ["x", "unread", GRID, DENSITY, "blocks.0", "output"]
    assert targets(body.graph) == [aten.exp.default]


def test_it_prepares_and_has_no_state() -> None:
    assert Cleanup.prepares is True
    assert Cleanup.name == "cleanup"
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cleanup().name = "other"  # type: ignore[misc]
    assert len({Cleanup(), Cleanup()}) == 1
