"""A block in the making, and a check of its split form: some tokens with all of them as keys, against all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sparsify.attention import SDPA
from sparsify.passes.split import split_queries_from_keys
from sparsify.program import Body
from sparsify.shapes import size_of

from .shared import kept_sizes
from .sketch import Sketch, aten, run, targets

CHOSEN = (0, 2, 3)
Axes = tuple[int, ...]


class Block:
    """A block of (2, tokens, 4) in the making; ``axes`` are those of each input that hold tokens, None for a number of them."""

    def __init__(self, hint: int = 5) -> None:
        first, self.tokens = kept_sizes(hint)
        self.sketch = Sketch(first)
        self.axes: list[Axes | None] = [(1,)]
        self.x = self.sketch.input("x", 2, self.tokens, 4, dtype=torch.float64)

    def __call__(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        return self.sketch(target, *args, **options)

    def input(self, name: str, *shape: Any, axes: Axes = ()) -> fx.Node:
        self.axes.append(axes)
        return self.sketch.input(name, *shape, dtype=torch.float64)

    def number(self) -> fx.Node:
        self.axes.append(None)
        return self.sketch.number("count", self.tokens)

    def attends(self, *more: Any, key: fx.Node | None = None, **options: Any) -> fx.Node:
        key = self(aten.sin.default, self.x) if key is None else key
        return self(SDPA, self(aten.tanh.default, self.x), key, self(aten.cos.default, self.x), *more, **options)

    def body(self, *results: Any, **options: Any) -> Body:
        return self.sketch.body("block0", *results, moving=[self.tokens], **options)


def some(value: Any, axes: Axes | None) -> Any:
    if axes is None:
        return len(CHOSEN)
    for axis in axes:
        value = value.index_select(axis, torch.tensor(CHOSEN))
    return value


def split(body: Body) -> Body:
    made = split_queries_from_keys(body, "block0.split", "some-pass")
    made.graph.lint()
    return made


def inputs_of(block: Block, made: Body, whole: list[Any]) -> list[Any]:
    few = [some(value, axes) for value, axes in zip(whole, block.axes, strict=True)]
    for position, level in made.twins:
        axes = block.axes[position]
        few.append(some(whole[position], axes[:-1]) if level == "cross" and axes else whole[position])
    return few


def values_of(body: Body, count: int) -> list[Any]:
    def length(size: Any) -> int:
        return size if isinstance(size, int) else count

    values = [node.meta["val"] for node in body.placeholders]
    return [
        torch.randn([length(size_of(n)) for n in v.shape], dtype=torch.float64) if isinstance(v, torch.Tensor) else count
        for v in values
    ]


def check(block: Block, result: fx.Node, *twins: tuple[int, str]) -> tuple[Body, Body]:
    """The split block agrees with the block at several numbers of tokens, and has these twins; both are returned."""
    body = block.body(result)
    before = targets(body.graph)
    made = split(body)
    assert list(made.twins) == list(twins)
    for count in (5, 8, 4):
        whole = values_of(body, count)
        want = run(body.graph, *whole).index_select(1, torch.tensor(CHOSEN))
        got = run(made.graph, *inputs_of(block, made, whole))
        assert (got - want).abs().max() < 1e-12
    assert targets(body.graph) == before, "the block itself stays"
    return body, made
