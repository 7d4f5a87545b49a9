"""Attention as the mean of what it reads, against attention with queries of zero; linear attention against sums written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.passes import BlockRange, PoolAttention
from sparsify.program import Body, Program
from sparsify.shapes import shape_of

from .shared import kept_sizes
from .sketch import Sketch, aten, run, targets

POOL = PoolAttention(BlockRange(0, 0))


def pooled(body: Body, **options: Any) -> tuple[Program, Body]:
    """A program of three blocks with this body, of which the first is pooled."""
    outer = Sketch(kept_sizes(role="outer")[0])
    args = [outer.input(node.name, *(3 for _ in shape_of(node))) for node in body.placeholders]
    calls = [outer.block(f"blocks.{index}", body, *args) for index in range(3)]
    outer.output(*calls)
    program = outer.program(body)
    assert POOL.run(program) == 1, program.skips
    return program, program.bodies["block0.pooling"]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def attends(sketch: Sketch, x: fx.Node, *more: Any, **options: Any) -> fx.Node:
    """Attention of ``tanh(x)`` to keys ``sin(x)`` and values ``cos(x)``."""
    q, k, v = (sketch(target, x) for target in (aten.tanh.default, aten.sin.default, aten.cos.default))
    return sketch(SDPA, q, k, v, *more, **options)


@pytest.mark.parametrize("lead", [(2,), (2, 3), (2, 1, 3)])
def test_every_query_gets_the_mean_of_the_values(lead: tuple[int, ...]) -> None:
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    x = sketch.input("x", *lead, tokens, 4, dtype=torch.float64)
    body = sketch.body("block0", sketch(aten.add.Tensor, attends(sketch, x), x), moving=[tokens])
    _, made = pooled(body)
    assert targets(made.graph) == [
        aten.cos.default, aten.mean.dim, aten.sym_size.int, aten.expand.default, aten.add.Tensor,
    ]  # fmt: skip
    for count in (5, 7, 1):
        values = noise(*lead, count, 4)
        assert (run(made.graph, values) - values - values.cos().mean(-2, keepdim=True)).abs().max() < 1e-14


def test_what_is_made_says_where_it_comes_from_and_the_block_stays() -> None:
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    x = sketch.input("x", 2, tokens, 4)
    body = sketch.body("block0", attends(sketch, x), moving=[tokens])
    before = targets(body.graph)
    program, made = pooled(body)
    nodes = [node for node in made.graph.nodes if node.target in (aten.mean.dim, aten.expand.default)]
    assert [node.meta["provenance"] for node in nodes] == [("pool-attention", "scaled_dot_product_attention_default")] * 2
    assert targets(body.graph) == before and SDPA in before
    assert [node.meta["body"] for node in program.block_nodes] == ["block0.pooling", "block0", "block0"]
    assert program.block_nodes[0].meta["passes"] == ("pool-attention",)


def test_blocks_of_one_kind_are_pooled_once() -> None:
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    body = sketch.body("block0", attends(sketch, sketch.input("x", 2, tokens, 4)), moving=[tokens])
    program, made = pooled(body)
    assert PoolAttention(BlockRange(1, 2)).run(program) == 2
    assert program.bodies == {"block0": body, "block0.pooling": made}
    assert [node.meta["body"] for node in program.block_nodes] == ["block0.pooling"] * 3


def allowed(*shape: int) -> torch.Tensor:
    mask = torch.rand(*shape) < 0.5
    mask[..., 0, :] = False  # a query that sees nothing
    return mask


MASKS = {
    "none": None,
    "boolean": allowed(5, 5),
    "boolean, by head": allowed(2, 4, 5, 5),
    "boolean, for keys": torch.tensor([[[[True, False, True, True, False]]]]),
    "additive": noise(2, 1, 5, 5),
    "additive, by head": noise(2, 4, 5, 5),
    "additive, closed": torch.where(allowed(1, 1, 5, 5), 0.3, -torch.inf).double(),
}


@pytest.mark.parametrize("heads", [4, 2, 1], ids=["own values", "shared values", "one head of values"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_attention_with_equal_logits(mask: torch.Tensor | None, heads: int) -> None:
    """The oracle is attention itself, with queries of zero."""
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    shapes = [(2, 4, tokens, 3), (2, heads, tokens, 3)]
    x, y = (sketch.input(name, *shape, dtype=torch.float64) for name, shape in zip("xy", shapes, strict=True))
    given = (
        []
        if mask is None
        else [sketch.input("mask", *(tokens if size == 5 else size for size in mask.shape), dtype=mask.dtype)]
    )
    gqa = {} if heads == 4 else {"enable_gqa": True}
    body = sketch.body("block0", sketch(SDPA, x, y, sketch(aten.neg.default, y), *given, **gqa), moving=[tokens])
    made = POOL._pooled(body)
    assert SDPA not in targets(made.graph)
    assert heads != 4 or aten.repeat_interleave.self_int not in targets(made.graph)
    values, shared = noise(2, 4, 5, 3), noise(2, heads, 5, 3)
    masks = [] if mask is None else [mask]
    want = torch.nn.functional.scaled_dot_product_attention(values * 0, shared, -shared, *masks, enable_gqa=heads != 4)
    assert (run(made.graph, values, shared, *masks) - want).abs().max() < 1e-12


def test_attention_over_other_things_than_tokens_stays() -> None:
    sketch = Sketch()
    tokens, words = sketch.size(5), sketch.size(3)
    x, text = sketch.input("x", 2, tokens, 4), sketch.input("text", 2, words, 4)
    cross = sketch(SDPA, x, text, text)
    body = sketch.body("block0", sketch(aten.add.Tensor, attends(sketch, x), cross), moving=[tokens])
    _, made = pooled(body)
    assert targets(made.graph).count(SDPA) == 1 and aten.mean.dim in targets(made.graph)
    assert aten.tanh.default not in targets(made.graph), "its queries went away, those of the text did not"


# --- linear attention ----------------------------------------------------------------------------------------------------

Steps = tuple[tuple[Any, tuple[Any, ...]], ...]
COPIES: Steps = ((aten.clone.default, ()), (aten.to.dtype, (torch.float64,)), (aten.contiguous.default, ()))


def through(sketch: Sketch, node: fx.Node, steps: Steps) -> fx.Node:
    for target, more in steps:
        node = sketch(target, node, *more)
    return node


def summed(right: bool, steps: Steps = (), matmul: Any = aten.matmul.default) -> Body:
    """``q (k^T v)``, or the same transposed: ``(v^T k) q^T``."""
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    x = sketch.input("x", 2, tokens, 4, dtype=torch.float64)
    q, k, v = (sketch(target, x) for target in (aten.tanh.default, aten.exp.default, aten.cos.default))

    def turned(node: fx.Node) -> fx.Node:
        return sketch(aten.transpose.int, node, 1, 2)

    if right:
        result = sketch(matmul, q, through(sketch, sketch(matmul, turned(k), v), steps))
    else:
        result = turned(sketch(matmul, through(sketch, sketch(matmul, turned(v), k), steps), turned(q)))
    return sketch.body("block0", result, moving=[tokens])


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("steps", [(), COPIES[:1], COPIES])
@pytest.mark.parametrize("matmul", [aten.matmul.default, aten.bmm.default])
def test_linear_attention_weighs_all_values_alike(right: bool, steps: Steps, matmul: Any) -> None:
    _, made = pooled(summed(right, steps, matmul))
    for count in (5, 8, 1):
        x = noise(2, count, 4)
        keys = x.exp().mean(1, keepdim=True).expand_as(x)
        assert (run(made.graph, x) - x.tanh() @ (keys.mT @ x.cos())).abs().max() < 1e-12
    (mean,) = made.graph.find_nodes(op="call_function", target=aten.mean.dim)
    averaged: Any = mean.args[0]
    while averaged.target == aten.transpose.int:
        averaged = averaged.args[0]
    assert averaged.target == aten.exp.default, "of the keys, though that of the values would give the same"
    assert mean.meta["provenance"].pass_name == "pool-attention" and mean.meta["provenance"].origin.startswith(matmul._opname)


def refusal(body: Body) -> str | None:
    outer = Sketch(kept_sizes(role="outer")[0])
    args = [outer.input(node.name, *(3 for _ in shape_of(node))) for node in body.placeholders]
    outer.output(outer.block("blocks.0", body, *args))
    program = outer.program(body)
    assert POOL.run(program) == 0
    assert set(program.bodies) == {"block0"}
    return program.skips[0].reason


@pytest.mark.parametrize("steps", [((aten.tanh.default, ()),), (COPIES[0], (aten.softmax.int, (-1,)), COPIES[0])])
def test_sums_that_something_acts_on_are_no_linear_attention(steps: Steps) -> None:
    assert refusal(summed(True, steps)) == "no attention over the trunk's tokens was recognised in the block"


def odd(build: Callable[[Sketch, fx.Node], fx.Node], moves: bool = True) -> Body:
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    x = sketch.input("x", 2, tokens if moves else 5, 4)
    return sketch.body("block0", build(sketch, x), moving=[tokens] if moves else ())


def used_twice(sketch: Sketch, x: fx.Node) -> fx.Node:
    state = sketch(aten.matmul.default, sketch(aten.transpose.int, x, 1, 2), x)
    return sketch(aten.add.Tensor, sketch(aten.matmul.default, x, state), sketch(aten.sum.default, state))


def nowhere(sketch: Sketch, x: fx.Node) -> fx.Node:
    return sketch(aten.matmul.default, sketch(aten.transpose.int, x, 1, 2), x)


def sums(sketch: Sketch, x: fx.Node) -> fx.Node:
    return sketch(aten.matmul.default, x, sketch(aten.transpose.int, sketch(aten.sum.dim_IntList, x, [1], True), 1, 2))


@pytest.mark.parametrize("build", [used_twice, nowhere, sums, lambda sketch, x: sketch(aten.tanh.default, x)])
def test_blocks_without_attention_are_refused(build: Callable[[Sketch, fx.Node], fx.Node]) -> None:
    assert refusal(odd(build)) == "no attention over the trunk's tokens was recognised in the block"


def test_causal_attention_is_refused() -> None:
    body = odd(lambda sketch, x: attends(sketch, x, is_causal=True))
    assert refusal(body) == "scaled_dot_product_attention_default is causal"


def test_blocks_of_fixed_tokens_are_refused() -> None:
    assert refusal(odd(attends, moves=False)) == "the block is tied to 5 tokens"
