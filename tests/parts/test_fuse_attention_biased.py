"""Attention by batches of matrices, with a mask within their product, becomes one node; eager torch says whether it is the same."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.passes import FuseAttention

from .sketch import Sketch, aten, of_bodies, run


def operands() -> tuple[Sketch, fx.Node, fx.Node, fx.Node, fx.Node]:
    """A sketch, and its inputs: a bias (2, 5, 6), queries (2, 5, 4), keys (2, 4, 6) and values (2, 6, 4)."""
    sketch = Sketch()
    bias, q, k, v = (
        sketch.input("b", 2, 5, 6),
        sketch.input("q", 2, 5, 4),
        sketch.input("k", 2, 4, 6),
        sketch.input("v", 2, 6, 4),
    )
    return sketch, bias, q, k, v


@pytest.mark.parametrize(
    ("options", "then", "scale", "mask"),
    [
        ({}, None, 1.0, True),
        ({"beta": 1, "alpha": 0.5}, None, 0.5, True),
        ({"beta": 0, "alpha": 0.5}, None, 0.5, False),
        ({"beta": 0}, 2.0, 2.0, False),
        ({"beta": 0, "alpha": 0.5}, 3.0, 1.5, False),
        ({"beta": 1}, 2.0, None, None),  # the mask would be scaled
        ({"beta": 2}, None, None, None),
        ({"beta": 0.5, "alpha": 0.5}, None, None, None),
    ],
)
def test_a_product_with_a_bias(options: dict[str, float], then: float | None, scale: float | None, mask: bool | None) -> None:
    sketch, bias, q, k, v = operands()
    logits = sketch(aten.baddbmm.default, bias, q, k, **options)
    logits = logits if then is None else sketch(aten.mul.Tensor, logits, then)
    sketch.output(sketch(aten.bmm.default, sketch(aten._softmax.default, logits, -1, False), v))
    inputs = [torch.rand(node.meta["val"].shape) for node in (bias, q, k, v)]
    before = run(sketch.graph, *inputs)
    assert FuseAttention().run(of_bodies(sketch.body())) == (scale is not None)
    assert torch.allclose(run(sketch.graph, *inputs), before, atol=1e-6)
    for fused in sketch.graph.find_nodes(op="call_function", target=SDPA):
        assert fused.kwargs["scale"] == scale
        assert fused.args[3] is (bias if mask else None)


def test_a_second_mask_on_top_of_a_bias_stays() -> None:
    sketch, bias, q, k, v = operands()
    logits = sketch(aten.add.Tensor, sketch(aten.baddbmm.default, bias, q, k), bias)
    sketch.output(sketch(aten.bmm.default, sketch(aten.softmax.int, logits, -1), v))
    assert FuseAttention().run(of_bodies(sketch.body())) == 0


def test_a_mask_on_top_of_a_bias_that_counts_for_nothing() -> None:
    sketch, bias, q, k, v = operands()
    mask = sketch.input("mask", 5, 6)
    logits = sketch(aten.add.Tensor, sketch(aten.baddbmm.default, bias, q, k, beta=0), mask)
    sketch.output(sketch(aten.bmm.default, sketch(aten.softmax.int, logits, -1), v))
    assert FuseAttention().run(of_bodies(sketch.body())) == 1
    (fused,) = sketch.graph.find_nodes(op="call_function", target=SDPA)
    assert fused.args[3] is mask


def test_a_biased_product_that_something_else_reads_stays() -> None:
    sketch, bias, q, k, v = operands()
    logits = sketch(aten.baddbmm.default, bias, q, k)
    sketch.output(sketch(aten.bmm.default, sketch(aten.softmax.int, logits, -1), v), logits)
    assert FuseAttention().run(of_bodies(sketch.body())) == 0
