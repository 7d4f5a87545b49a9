"""What of the outer graph is worth keeping between steps: what costs something and is not the caller's."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from .prompts import Build, model, plain_body, split
from .sketch import Sketch, aten, targets


def chain(count: int, *views: Any) -> Build:
    """That many cheap operators, and views, which cost nothing."""

    def build(sketch: Sketch, text: fx.Node) -> fx.Node:
        for target in [aten.tanh.default, aten.sin.default, aten.cos.default, aten.exp.default, aten.neg.default][:count]:
            text = sketch(target, text)
            for view, more in views:
                text = sketch(view, text, *more)
        return text

    return build


TURNED = (aten.transpose.int, (0, 2)), (aten.transpose.int, (0, 2))


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (chain(1), False),
        (chain(3), False),
        (chain(3, *TURNED), False),
        (chain(4), True),
        (chain(5), True),
        (lambda sketch, text: sketch(aten.linear.default, text, sketch.attribute("w", 4, 4)), True),
    ],
    ids=["one", "three", "three and views", "four", "five", "a product"],
)
def test_what_is_cheap_is_computed_again(build: Build, kept: bool) -> None:
    program = model(plain_body(), build)
    before = targets(program.graph)
    made = split(program, int(kept))
    assert len(made) == kept
    if not kept:
        assert targets(program.graph) == before


def linear(sketch: Sketch, text: fx.Node) -> fx.Node:
    return sketch(aten.linear.default, text, sketch.attribute("w", 4, 4))


def returned(*steps: Any) -> Build:
    def build(sketch: Sketch, text: fx.Node) -> Any:
        made = result = linear(sketch, text)
        for target, more in steps:
            result = sketch(target, result, *more)
        return made, result

    return build


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((), False),
        (((aten.transpose.int, (1, 2)),), False),
        (((aten.chunk.default, (2, 2)), (operator.getitem, (0,))), False),
        (((aten.to.dtype, (torch.float32,)),), False),
        (((aten.contiguous.default, ()), (aten.unsqueeze.default, (0,))), False),
        (((aten.neg.default, ()),), True),
        (((aten.unsqueeze.default, (0,)), (aten.tanh.default, ())), True),
        (((aten.mul.Tensor, (1,)),), False),
    ],
    ids=[
        "itself",
        "a view",
        "a part",
        "the same dtype",
        "maybe itself",
        "something new",
        "something new of a view",
        "what may do nothing",
    ],
)
def test_what_the_model_returns_is_its_callers(steps: Any, kept: bool) -> None:
    program = model(plain_body(), returned(*steps))
    made = split(program, int(kept))
    assert any(aten.linear.default in each for each in made) == kept


def test_results_of_other_inputs_are_kept_apart() -> None:
    def build(sketch: Any, text: fx.Node) -> Any:
        one, other = linear(sketch, text), sketch(aten.linear.default, sketch.words, sketch.attribute("w", 4, 4))
        both = sketch(aten.linear.default, sketch(aten.add.Tensor, sketch.words, text), sketch.attribute("w", 4, 4))
        time = sketch(aten.reshape.default, sketch.time, [2, 1, 1])
        scaled = [sketch(aten.tanh.default, sketch(aten.mul.Tensor, each, time)) for each in (one, other, both)]
        return text, *scaled

    program = model(plain_body(), build)
    assert len(split(program)) == 3
    assert list(program.prompts) == ["sparsify_prompt_0", "sparsify_prompt_1", "sparsify_prompt_2"]
    inputs = [[node.name for node in graph.find_nodes(op="placeholder")] for graph in program.prompts.values()]
    assert sorted(inputs) == [["text"], ["text", "words"], ["words"]], "inputs in the order of the model's"
    calls = {node.target: [each.name for each in node.args] for node in program.graph.nodes if node.target in program.prompts}
    assert calls == dict(zip(program.prompts, inputs, strict=True))
