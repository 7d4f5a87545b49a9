"""Which hand-written attention becomes one node, with which scale, mask and dropout; eager torch says whether it is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.passes import FuseAttention

from .sketch import Sketch, aten, of_bodies, run, targets

MATMUL, SOFTMAX = aten.matmul.default, aten.softmax.int


class Attention:
    """Attention with something in it: queries (2, 3, 5, 4), keys (2, 3, 6, 4) and values (2, 3, 6, 4)."""

    def __init__(
        self,
        below: Callable[[Sketch, fx.Node], fx.Node] = lambda sketch, node: node,
        above: Callable[[Sketch, fx.Node], fx.Node] = lambda sketch, node: node,
        axis: int = -1,
    ) -> None:
        self.sketch = sketch = Sketch()
        self.query, self.key, self.value = (
            sketch.input(name, 2, 3, rows, 4) for name, rows in zip("qkv", (5, 6, 6), strict=True)
        )
        sketch.input("mask", 5, 6)
        self.product = sketch(MATMUL, self.query, sketch(aten.transpose.int, self.key, -2, -1))
        self.softmax = sketch(SOFTMAX, below(sketch, self.product), axis)
        self.weights = above(sketch, self.softmax)
        self.result = sketch(MATMUL, self.weights, self.value)

    def fused(self, *others: fx.Node) -> fx.Node | None:
        """The node that stands for it after the pass, if one does; others are further results."""
        self.sketch.output(self.result, *others)
        program = of_bodies(self.sketch.body())
        torch.manual_seed(0)
        inputs = [torch.rand(2, 3, size, 4) for size in (5, 6, 6)] + [torch.rand(5, 6)]
        before = run(self.sketch.graph, *inputs)
        count = FuseAttention().run(program)
        after = run(self.sketch.graph, *inputs)
        for one, other in zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]:
            assert torch.allclose(one, other, atol=1e-6)
        found = self.sketch.graph.find_nodes(op="call_function", target=SDPA)
        assert len(found) == count <= 1
        return found[0] if found else None


def mask_of(sketch: Sketch) -> fx.Node:
    return sketch.graph.find_nodes(op="placeholder")[3]


def scaled(factor: float, target: object = aten.mul.Tensor) -> Callable[[Sketch, fx.Node], fx.Node]:
    return lambda sketch, node: sketch(target, node, factor)


def masked(sketch: Sketch, node: fx.Node) -> fx.Node:
    return sketch(aten.add.Tensor, node, mask_of(sketch))


def test_all_of_it_becomes_one_node() -> None:
    attention = Attention()
    fused = attention.fused()
    assert fused is not None
    assert fused.args[0] is attention.query
    assert (fused.args[2], fused.args[3], fused.args[4], fused.kwargs) == (attention.value, None, 0.0, {"scale": 1.0})
    assert targets(attention.sketch.graph) == [aten.transpose.int, aten.transpose.int, SDPA]
    assert fused.args[1].args[1:] == (-2, -1)  # type: ignore[union-attr]
    assert fused.meta["val"].shape == (2, 3, 5, 4)
    assert fused.meta["provenance"].pass_name == "fuse-attention"
    assert fused.meta["provenance"].origin == attention.result.name


@pytest.mark.parametrize(
    ("below", "scale"),
    [
        (scaled(0.5), 0.5),
        (scaled(2), 2),
        (scaled(4.0, aten.div.Tensor), 0.25),
        (lambda sketch, node: scaled(3.0)(sketch, scaled(0.5)(sketch, node)), 1.5),
        (lambda sketch, node: scaled(2.0, aten.div.Tensor)(sketch, scaled(0.5)(sketch, node)), 0.25),
    ],
)
def test_scales_are_multiplied(below: Callable[[Sketch, fx.Node], fx.Node], scale: float) -> None:
    fused = Attention(below).fused()
    assert fused is not None
    assert fused.kwargs["scale"] == pytest.approx(scale)
    assert fused.args[3] is None


@pytest.mark.parametrize("before", [1.0, 0.5])
def test_a_mask_is_added_to_scaled_logits(before: float) -> None:
    attention = Attention(lambda sketch, node: masked(sketch, scaled(before)(sketch, node)))
    fused = attention.fused()
    assert fused is not None
    assert (fused.args[3], fused.kwargs["scale"]) == (mask_of(attention.sketch), before)


@pytest.mark.parametrize(
    "through",
    [
        lambda sketch, node: sketch(aten.to.dtype, node, torch.float32),
        lambda sketch, node: sketch(aten._to_copy.default, node, dtype=torch.float32),
        lambda sketch, node: sketch(aten.clone.default, node),
        lambda sketch, node: sketch(aten.contiguous.default, node),
    ],
)
def test_changes_of_dtype_and_copies_do_not_matter(through: Callable[[Sketch, fx.Node], fx.Node]) -> None:
    assert Attention(through).fused() is not None
    assert Attention(above=through).fused() is not None
    assert Attention(through, through).fused() is not None


@pytest.mark.parametrize(("rate", "train", "dropout"), [(0.25, True, 0.25), (0.25, False, 0.0), (0.0, True, 0.0)])
def test_dropout_of_the_weights_is_kept(rate: float, train: bool, dropout: float) -> None:
    attention = Attention(above=lambda sketch, node: sketch(aten.dropout.default, node, rate, train))
    if dropout:
        attention.sketch.output(attention.result)  # random: compared by its argument alone
        assert FuseAttention().run(of_bodies(attention.sketch.body())) == 1
        (fused,) = attention.sketch.graph.find_nodes(op="call_function", target=SDPA)
    else:
        found = attention.fused()
        assert found is not None
        fused = found
    assert fused.args[4] == dropout


@pytest.mark.parametrize("axis", [-1, 3])
def test_the_weights_of_all_keys_sum_to_one(axis: int) -> None:
    assert Attention(axis=axis).fused() is not None


@pytest.mark.parametrize("axis", [0, 1, 2, -2, -3, -4])
def test_a_softmax_along_another_axis_stays(axis: int) -> None:
    assert Attention(axis=axis).fused() is None


@pytest.mark.parametrize(
    "below",
    [
        lambda sketch, node: scaled(0.5)(sketch, masked(sketch, node)),  # the mask is scaled too
        lambda sketch, node: masked(sketch, masked(sketch, node)),
        lambda sketch, node: sketch(aten.add.Tensor, node, mask_of(sketch), alpha=2),
        lambda sketch, node: sketch(aten.add.Tensor, node, 1.0),
        lambda sketch, node: sketch(aten.sub.Tensor, node, mask_of(sketch)),
        lambda sketch, node: sketch(aten.mul.Tensor, node, mask_of(sketch)),
        lambda sketch, node: sketch(aten.tanh.default, node),
        lambda sketch, node: sketch(aten.div.Tensor, mask_of(sketch), 2.0),  # no product at all
        lambda sketch, node: sketch(aten.add.Tensor, mask_of(sketch), node),  # what is scaled last is not the product
        lambda sketch, node: sketch(aten.full.default, [2, 3, 5, 6], 1.0),
        lambda sketch, node: sketch(aten.add.Tensor, node, sketch(aten.gt.Scalar, mask_of(sketch), 0.5)),  # True is 1
        lambda sketch, node: sketch(aten.add.Tensor, node, sketch(aten.to.dtype, mask_of(sketch), torch.int64)),
    ],
)
def test_other_logits_stay(below: Callable[[Sketch, fx.Node], fx.Node]) -> None:
    assert Attention(below).fused() is None


def test_a_mask_that_spreads_the_logits_stays() -> None:
    sketch = Sketch()
    query, key, value = sketch.input("q", 5, 4), sketch.input("k", 4, 6), sketch.input("v", 2, 6, 4)
    logits = sketch(aten.add.Tensor, sketch(MATMUL, query, key), sketch.input("mask", 2, 5, 6))
    sketch.output(sketch(MATMUL, sketch(SOFTMAX, logits, -1), value))
    assert FuseAttention().run(of_bodies(sketch.body())) == 0


@pytest.mark.parametrize(
    "above",
    [
        lambda sketch, node: sketch(aten.mul.Tensor, node, 2.0),
        lambda sketch, node: sketch(aten.add.Tensor, node, mask_of(sketch)),
    ],
)
def test_changed_weights_stay(above: Callable[[Sketch, fx.Node], fx.Node]) -> None:
    assert Attention(above=above).fused() is None


@pytest.mark.parametrize("what", ["product", "softmax"])
def test_what_something_else_reads_stays(what: str) -> None:
    attention = Attention()
    assert attention.fused(getattr(attention, what)) is None


def test_scaled_logits_that_something_else_reads_stay() -> None:
    seen: list[fx.Node] = []

    def below(sketch: Sketch, node: fx.Node) -> fx.Node:
        seen.append(scaled(0.5)(sketch, node))
        return scaled(0.5)(sketch, seen[0])

    attention = Attention(below)
    assert attention.fused(seen[0]) is None


def test_weights_on_the_right_of_a_product_are_no_attention() -> None:
    sketch = Sketch()
    q, k, v = sketch.input("q", 2, 5, 4), sketch.input("k", 2, 4, 5), sketch.input("v", 2, 5, 5)
    sketch.output(sketch(MATMUL, v, sketch(SOFTMAX, sketch(MATMUL, q, k), -1)))
    assert FuseAttention().run(of_bodies(sketch.body())) == 0


def test_weights_that_nothing_multiplies_are_no_attention() -> None:
    sketch = Sketch()
    sketch.output(sketch(SOFTMAX, sketch(MATMUL, sketch.input("q", 2, 5, 4), sketch.input("k", 2, 4, 6)), -1))
    assert FuseAttention().run(of_bodies(sketch.body())) == 0


def test_a_softmax_of_an_input_is_no_attention() -> None:
    sketch = Sketch()
    weights = sketch(SOFTMAX, sketch.input("logits", 2, 5, 6), -1)
    sketch.output(sketch(MATMUL, weights, sketch.input("v", 2, 6, 4)))
    assert FuseAttention().run(of_bodies(sketch.body())) == 0


@pytest.mark.parametrize(("rows", "fused"), [((2, 3), True), ((1, 3), False), ((2, 1), False)])
def test_values_have_the_batches_and_heads_of_the_queries(rows: tuple[int, int], fused: bool) -> None:
    sketch = Sketch()
    q, k, v = sketch.input("q", 2, 3, 5, 4), sketch.input("k", 2, 3, 4, 6), sketch.input("v", *rows, 6, 4)
    sketch.output(sketch(MATMUL, sketch(SOFTMAX, sketch(MATMUL, q, k), -1), v))
    assert FuseAttention().run(of_bodies(sketch.body())) == fused


# --- the pass -----------------------------------------------------------------------------------------------------------


def test_every_attention_of_every_body_is_found_and_described() -> None:
    bodies = []
    for name in ("block0", "block1"):
        attention = Attention()
        attention.sketch.output(attention.result)
        bodies.append(attention.sketch.body(name))
    found = list(FuseAttention().match(of_bodies(*bodies)))
    assert [FuseAttention().describe(place) for place in found] == ["matmul_default_1 of block0", "matmul_default_1 of block1"]


def test_it_prepares_and_what_it_finds_is_frozen() -> None:
    assert FuseAttention.prepares is True
    attention = Attention()
    attention.sketch.output(attention.result)
    (found,) = FuseAttention().match(of_bodies(attention.sketch.body()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.scale = 2.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FuseAttention().name = "other"  # type: ignore[misc]
    assert FuseAttention() == FuseAttention()
