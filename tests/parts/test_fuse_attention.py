"""Which hand-written attention becomes one node, with which scale, mask and dropout; eager torch says whether it is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.passes import FuseAttention

from .tiny_graphs import Tiny, aten, of_bodies, run, targets

MATMUL, SOFTMAX = aten.matmul.default, aten.softmax.int


class Attention:
    """Attention with something in it: queries (2, 3, 5, 4), keys (2, 3, 6, 4) and values (2, 3, 6, 4)."""

    def __init__(
        self,
        below: Callable[[Tiny, fx.Node], fx.Node] = lambda tiny, node: node,
        above: Callable[[Tiny, fx.Node], fx.Node] = lambda tiny, node: node,
        axis: int = -1,
    ) -> None:
        self.tiny = tiny = Tiny()
        self.query, self.key, self.value = (
            tiny.input(name, 2, 3, rows, 4) for name, rows in zip("qkv", (5, 6, 6), strict=True)
        )
        tiny.input("mask", 5, 6)
        self.product = tiny.call(MATMUL, self.query, tiny.call(aten.transpose.int, self.key, -2, -1))
        self.softmax = tiny.call(SOFTMAX, below(tiny, self.product), axis)
        self.weights = above(tiny, self.softmax)
        self.result = tiny.call(MATMUL, self.weights, self.value)

    def fused(self, *others: fx.Node) -> fx.Node | None:
        """The node that stands for it after the pass, if one does; others are further results."""
        self.tiny.output(self.result, *others)
        program = of_bodies(self.tiny.body())
        torch.manual_seed(0)
        inputs = [torch.rand(2, 3, size, 4) for size in (5, 6, 6)] + [torch.rand(5, 6)]
        before = run(self.tiny.graph, *inputs)
        count = FuseAttention().run(program)
        after = run(self.tiny.graph, *inputs)
        for one, other in zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]:
            assert torch.allclose(one, other, atol=1e-6)
        found = self.tiny.graph.find_nodes(op="call_function", target=SDPA)
        assert len(found) == count <= 1
        return found[0] if found else None


def mask_of(tiny: Tiny) -> fx.Node:
    return tiny.graph.find_nodes(op="placeholder")[3]


def scaled(factor: float, target: object = aten.mul.Tensor) -> Callable[[Tiny, fx.Node], fx.Node]:
    return lambda tiny, node: tiny.call(target, node, factor)


def masked(tiny: Tiny, node: fx.Node) -> fx.Node:
    return tiny.call(aten.add.Tensor, node, mask_of(tiny))


def test_all_of_it_becomes_one_node() -> None:
    attention = Attention()
    fused = attention.fused()
    assert fused is not None
    assert fused.args[0] is attention.query
    assert (fused.args[2], fused.args[3], fused.args[4], fused.kwargs) == (attention.value, None, 0.0, {"scale": 1.0})
    assert targets(attention.tiny.graph) == [aten.transpose.int, aten.transpose.int, SDPA]
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
        (lambda tiny, node: scaled(3.0)(tiny, scaled(0.5)(tiny, node)), 1.5),
        (lambda tiny, node: scaled(2.0, aten.div.Tensor)(tiny, scaled(0.5)(tiny, node)), 0.25),
    ],
)
def test_scales_are_multiplied(below: Callable[[Tiny, fx.Node], fx.Node], scale: float) -> None:
    fused = Attention(below).fused()
    assert fused is not None
    assert fused.kwargs["scale"] == pytest.approx(scale)
    assert fused.args[3] is None


@pytest.mark.parametrize("before", [1.0, 0.5])
def test_a_mask_is_added_to_scaled_logits(before: float) -> None:
    attention = Attention(lambda tiny, node: masked(tiny, scaled(before)(tiny, node)))
    fused = attention.fused()
    assert fused is not None
    assert (fused.args[3], fused.kwargs["scale"]) == (mask_of(attention.tiny), before)


@pytest.mark.parametrize(
    "through",
    [
        lambda tiny, node: tiny.call(aten.to.dtype, node, torch.float32),
        lambda tiny, node: tiny.call(aten._to_copy.default, node, dtype=torch.float32),
        lambda tiny, node: tiny.call(aten.clone.default, node),
        lambda tiny, node: tiny.call(aten.contiguous.default, node),
    ],
)
def test_changes_of_dtype_and_copies_do_not_matter(through: Callable[[Tiny, fx.Node], fx.Node]) -> None:
    assert Attention(through).fused() is not None
    assert Attention(above=through).fused() is not None
    assert Attention(through, through).fused() is not None


@pytest.mark.parametrize(("rate", "train", "dropout"), [(0.25, True, 0.25), (0.25, False, 0.0), (0.0, True, 0.0)])
def test_dropout_of_the_weights_is_kept(rate: float, train: bool, dropout: float) -> None:
    attention = Attention(above=lambda tiny, node: tiny.call(aten.dropout.default, node, rate, train))
    if dropout:
        attention.tiny.output(attention.result)  # random: compared by its argument alone
        assert FuseAttention().run(of_bodies(attention.tiny.body())) == 1
        (fused,) = attention.tiny.graph.find_nodes(op="call_function", target=SDPA)
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
        lambda tiny, node: scaled(0.5)(tiny, masked(tiny, node)),  # the mask is scaled too
        lambda tiny, node: masked(tiny, masked(tiny, node)),
        lambda tiny, node: tiny.call(aten.add.Tensor, node, mask_of(tiny), alpha=2),
        lambda tiny, node: tiny.call(aten.add.Tensor, node, 1.0),
        lambda tiny, node: tiny.call(aten.sub.Tensor, node, mask_of(tiny)),
        lambda tiny, node: tiny.call(aten.mul.Tensor, node, mask_of(tiny)),
        lambda tiny, node: tiny.call(aten.tanh.default, node),
        lambda tiny, node: tiny.call(aten.div.Tensor, mask_of(tiny), 2.0),  # no product at all
        lambda tiny, node: tiny.call(aten.add.Tensor, mask_of(tiny), node),  # what is scaled last is not the product
        lambda tiny, node: tiny.call(aten.full.default, [2, 3, 5, 6], 1.0),
        lambda tiny, node: tiny.call(aten.add.Tensor, node, tiny.call(aten.gt.Scalar, mask_of(tiny), 0.5)),  # True is 1
        lambda tiny, node: tiny.call(aten.add.Tensor, node, tiny.call(aten.to.dtype, mask_of(tiny), torch.int64)),
    ],
)
def test_other_logits_stay(below: Callable[[Tiny, fx.Node], fx.Node]) -> None:
    assert Attention(below).fused() is None


def test_a_mask_that_spreads_the_logits_stays() -> None:
    tiny = Tiny()
    query, key, value = tiny.input("q", 5, 4), tiny.input("k", 4, 6), tiny.input("v", 2, 6, 4)
    logits = tiny.call(aten.add.Tensor, tiny.call(MATMUL, query, key), tiny.input("mask", 2, 5, 6))
    tiny.output(tiny.call(MATMUL, tiny.call(SOFTMAX, logits, -1), value))
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


@pytest.mark.parametrize(
    "above",
    [
        lambda tiny, node: tiny.call(aten.mul.Tensor, node, 2.0),
        lambda tiny, node: tiny.call(aten.add.Tensor, node, mask_of(tiny)),
    ],
)
def test_changed_weights_stay(above: Callable[[Tiny, fx.Node], fx.Node]) -> None:
    assert Attention(above=above).fused() is None


@pytest.mark.parametrize("what", ["product", "softmax"])
def test_what_something_else_reads_stays(what: str) -> None:
    attention = Attention()
    assert attention.fused(getattr(attention, what)) is None


def test_scaled_logits_that_something_else_reads_stay() -> None:
    seen: list[fx.Node] = []

    def below(tiny: Tiny, node: fx.Node) -> fx.Node:
        seen.append(scaled(0.5)(tiny, node))
        return scaled(0.5)(tiny, seen[0])

    attention = Attention(below)
    assert attention.fused(seen[0]) is None


def test_weights_on_the_right_of_a_product_are_no_attention() -> None:
    tiny = Tiny()
    q, k, v = tiny.input("q", 2, 5, 4), tiny.input("k", 2, 4, 5), tiny.input("v", 2, 5, 5)
    tiny.output(tiny.call(MATMUL, v, tiny.call(SOFTMAX, tiny.call(MATMUL, q, k), -1)))
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


def test_weights_that_nothing_multiplies_are_no_attention() -> None:
    tiny = Tiny()
    tiny.output(tiny.call(SOFTMAX, tiny.call(MATMUL, tiny.input("q", 2, 5, 4), tiny.input("k", 2, 4, 6)), -1))
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


def test_a_softmax_of_an_input_is_no_attention() -> None:
    tiny = Tiny()
    weights = tiny.call(SOFTMAX, tiny.input("logits", 2, 5, 6), -1)
    tiny.output(tiny.call(MATMUL, weights, tiny.input("v", 2, 6, 4)))
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


@pytest.mark.parametrize(("rows", "fused"), [((2, 3), True), ((1, 3), False), ((2, 1), False)])
def test_values_have_the_batches_and_heads_of_the_queries(rows: tuple[int, int], fused: bool) -> None:
    tiny = Tiny()
    q, k, v = tiny.input("q", 2, 3, 5, 4), tiny.input("k", 2, 3, 4, 6), tiny.input("v", *rows, 6, 4)
    tiny.output(tiny.call(MATMUL, tiny.call(SOFTMAX, tiny.call(MATMUL, q, k), -1), v))
    assert FuseAttention().run(of_bodies(tiny.body())) == fused


# --- batches of matrices, and a mask within their product ---------------------------------------------------------------


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
    tiny = Tiny()
    bias, q, k, v = (
        tiny.input(name, *sizes) for name, sizes in zip("bqkv", ((2, 5, 6), (2, 5, 4), (2, 4, 6), (2, 6, 4)), strict=True)
    )
    logits = tiny.call(aten.baddbmm.default, bias, q, k, **options)
    logits = logits if then is None else tiny.call(aten.mul.Tensor, logits, then)
    tiny.output(tiny.call(aten.bmm.default, tiny.call(aten._softmax.default, logits, -1, False), v))
    inputs = [torch.rand(node.meta["val"].shape) for node in (bias, q, k, v)]
    before = run(tiny.graph, *inputs)
    assert FuseAttention().run(of_bodies(tiny.body())) == (scale is not None)
    assert torch.allclose(run(tiny.graph, *inputs), before, atol=1e-6)
    for fused in tiny.graph.find_nodes(op="call_function", target=SDPA):
        assert fused.kwargs["scale"] == scale
        assert fused.args[3] is (bias if mask else None)


def test_a_second_mask_on_top_of_a_bias_stays() -> None:
    tiny = Tiny()
    bias, q, k, v = (
        tiny.input(name, *sizes) for name, sizes in zip("bqkv", ((2, 5, 6), (2, 5, 4), (2, 4, 6), (2, 6, 4)), strict=True)
    )
    logits = tiny.call(aten.add.Tensor, tiny.call(aten.baddbmm.default, bias, q, k), bias)
    tiny.output(tiny.call(aten.bmm.default, tiny.call(SOFTMAX, logits, -1), v))
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


def test_a_mask_on_top_of_a_bias_that_counts_for_nothing() -> None:
    tiny = Tiny()
    bias, q, k, v = (
        tiny.input(name, *sizes) for name, sizes in zip("bqkv", ((2, 5, 6), (2, 5, 4), (2, 4, 6), (2, 6, 4)), strict=True)
    )
    mask = tiny.input("mask", 5, 6)
    logits = tiny.call(aten.add.Tensor, tiny.call(aten.baddbmm.default, bias, q, k, beta=0), mask)
    tiny.output(tiny.call(aten.bmm.default, tiny.call(SOFTMAX, logits, -1), v))
    assert FuseAttention().run(of_bodies(tiny.body())) == 1
    (fused,) = tiny.graph.find_nodes(op="call_function", target=SDPA)
    assert fused.args[3] is mask


def test_a_biased_product_that_something_else_reads_stays() -> None:
    tiny = Tiny()
    bias, q, k, v = (
        tiny.input(name, *sizes) for name, sizes in zip("bqkv", ((2, 5, 6), (2, 5, 4), (2, 4, 6), (2, 6, 4)), strict=True)
    )
    logits = tiny.call(aten.baddbmm.default, bias, q, k)
    tiny.output(tiny.call(aten.bmm.default, tiny.call(SOFTMAX, logits, -1), v), logits)
    assert FuseAttention().run(of_bodies(tiny.body())) == 0


# --- the pass -----------------------------------------------------------------------------------------------------------


def test_every_attention_of_every_body_is_found_and_described() -> None:
    bodies = []
    for name in ("block0", "block1"):
        attention = Attention()
        attention.tiny.output(attention.result)
        bodies.append(attention.tiny.body(name))
    found = list(FuseAttention().match(of_bodies(*bodies)))
    assert [FuseAttention().describe(place) for place in found] == ["matmul_default_1 of block0", "matmul_default_1 of block1"]


def test_it_prepares_and_what_it_finds_is_frozen() -> None:
    assert FuseAttention.prepares is True
    attention = Attention()
    attention.tiny.output(attention.result)
    (found,) = FuseAttention().match(of_bodies(attention.tiny.body()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.scale = 2.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FuseAttention().name = "other"  # type: ignore[misc]
    assert FuseAttention() == FuseAttention()
