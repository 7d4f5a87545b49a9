"""Programs with a text: two blocks on an image's tokens, and what the pass that keeps results of the prompt makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsify.passes import PromptOnce
from sparsify.program import Body, Program
from sparsify.shapes import size_of

from .running import run_program
from .shared import kept_sizes
from .sketch import Sketch, aten, targets

Build = Callable[[Sketch, fx.Node], Any]
IMAGE, TIME, TEXT, WORDS = torch.randn(2, 4, 3, 5), torch.rand(2), torch.randn(2, 6, 4), torch.randn(2, 6, 4)
WEIGHTS = {name: torch.randn(4, 4) for name in ("w", "blocks__0__w", "blocks__1__w")}


def plain_body() -> Body:
    """``x + text.mean``, with nothing that is worth keeping."""
    first, tokens, words = kept_sizes(15, 6)
    sketch = Sketch(first)
    x, text = sketch.input("x", 2, tokens, 4), sketch.input("text", 2, words, 4)
    return sketch.body("block0", sketch(aten.add.Tensor, x, sketch(aten.mean.dim, text, [1], True)), moving=[tokens])


def keys_body(*more: str) -> Body:
    """``x + mean(tanh(text) w)``, and values of the text that hold no product."""
    first, tokens, words = kept_sizes(15, 6)
    sketch = Sketch(first)
    x, text = sketch.input("x", 2, tokens, 4), sketch.input("text", 2, words, 4)
    keys = sketch(aten.linear.default, sketch(aten.tanh.default, text), sketch.attribute("w", 4, 4))
    if "size" in more:
        keys = sketch(aten.add.Tensor, keys, sketch(aten.sym_size.int, text, 1))
    if "tokens" in more:
        keys = sketch(aten.add.Tensor, keys, sketch(aten.mean.dim, x, [1], True))
    for part in (keys, sketch(aten.cos.default, text)):
        x = sketch(aten.add.Tensor, x, sketch(aten.sum.dim_IntList, part, [1], True))
    return sketch.body("block0", x, moving=[tokens])


def nothing(sketch: Sketch, text: fx.Node) -> Any:
    return text


def model(body: Body, build: Build = nothing, **options: Any) -> Program:
    """Two blocks on an image's tokens; ``build`` makes of the text what they are given, or that and results of the model."""
    first, h, w, s = kept_sizes(3, 5, 6, role="outer")
    outer = Sketch(first)
    image, time = outer.input("image", 2, 4, h, w), outer.input("time", 2)
    text, words = outer.input("text", 2, s, 4), outer.input("words", 2, s, 4)
    outer.words, outer.time, outer.image = words, time, image  # type: ignore[attr-defined]
    made = build(outer, text)
    given, *results = made if isinstance(made, tuple) else (made,)
    x = outer(aten.transpose.int, outer(aten.flatten.using_ints, image, 2), 1, 2)
    for index in range(2):
        x = outer.block(f"blocks.{index}", body, x, given)
    outer.output(x, *results)
    return outer.program(body, **({"grid": (size_of(h), size_of(w)), "timestep": "time"} | options))


def split(program: Program, count: int = 1) -> list[list[Any]]:
    """Run the pass; what the prompt graphs compute, where results stayed."""
    before = run_program(program, IMAGE, TIME, TEXT, WORDS, **WEIGHTS)
    assert PromptOnce().run(program) == count, program.skips
    after = run_program(program, IMAGE, TIME, TEXT, WORDS, **WEIGHTS)
    for one, other in zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]:
        assert torch.equal(one, other) and one.abs().max() > 0.1
    assert PromptOnce().run(program) == 0
    return [targets(graph) for graph in program.prompts.values()]
