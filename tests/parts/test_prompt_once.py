"""What depends on the prompt alone leaves the model for graphs of its own; what is cheap, returned or changes stays."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes import PromptOnce
from sparsify.passes.prompt_once import latent_inputs
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
    for graph in program.graphs.values():
        graph.lint()
    after = run_program(program, IMAGE, TIME, TEXT, WORDS, **WEIGHTS)
    for one, other in zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]:
        assert torch.equal(one, other) and one.abs().max() > 0.1
    assert PromptOnce().run(program) == 0
    return [targets(graph) for graph in program.prompts.values()]


# --- what leaves the blocks ----------------------------------------------------------------------------------------------


def test_products_of_the_text_leave_every_block() -> None:
    body = keys_body()
    program = model(body)
    (made,) = split(program)
    assert made == [aten.tanh.default, aten.linear.default, aten.sum.dim_IntList] * 2
    (graph,) = program.prompts.values()
    assert [node.name for node in graph.find_nodes(op="placeholder")] == ["text"]
    assert [node.target for node in graph.find_nodes(op="get_attr")] == ["blocks.0.w", "blocks.1.w"]
    assert [node.name for node in body.placeholders] == ["x", "text", "sum_dim_int_list_given"]
    assert targets(body.graph).count(aten.cos.default) == 1, "what holds no product stays"
    assert aten.tanh.default not in targets(body.graph)


def test_the_call_stands_behind_the_inputs_and_says_where_it_comes_from() -> None:
    program = model(keys_body())
    split(program)
    nodes = list(program.graph.nodes)
    call, first, second = nodes[4:7]
    assert (call.op, call.target, call.args) == ("call_module", "sparsify_prompt_0", (program.placeholders[2],))
    assert [node.args for node in (first, second)] == [(call, 0), (call, 1)]
    assert all(node.target is operator.getitem for node in (first, second))
    assert call.meta["val"] == (first.meta["val"], second.meta["val"])
    assert [node.args[2] for node in program.block_nodes] == [first, second]
    values = [node for node in program.prompts["sparsify_prompt_0"].nodes if node.target == aten.sum.dim_IntList]
    assert call.meta["provenance"] == ("prompt-once", first.meta["provenance"].origin)
    assert [node.meta["provenance"].origin for node in (first, second)] == [node.meta["provenance"].origin for node in values]
    assert values[0].meta["provenance"].origin != values[1].meta["provenance"].origin
    assert all(node.meta["provenance"].pass_name == "prompt-once" for node in (first, second, *values))


def test_sizes_of_the_text_are_found_again() -> None:
    (made,) = split(model(keys_body("size")))
    assert made == [aten.tanh.default, aten.linear.default, aten.sym_size.int, aten.add.Tensor, aten.sum.dim_IntList] * 2


def test_what_is_mixed_with_tokens_stays_and_what_it_is_mixed_with_leaves() -> None:
    body = keys_body("tokens")
    (made,) = split(model(body))
    assert made == [aten.tanh.default, aten.linear.default] * 2
    assert aten.add.Tensor in targets(body.graph)


def test_text_that_changes_with_the_time_stays() -> None:
    def changed(sketch: Any, text: fx.Node) -> fx.Node:
        return sketch(aten.add.Tensor, text, sketch(aten.reshape.default, sketch.time, [2, 1, 1]))  # type: ignore[no-any-return]

    program = model(keys_body(), changed)
    assert PromptOnce().run(program) == 0 and program.prompts == {}


def test_products_of_what_the_outer_graph_makes_of_the_text_leave_too() -> None:
    (made,) = split(model(keys_body(), lambda sketch, text: sketch(aten.sin.default, text)))
    assert made == [aten.sin.default, *[aten.tanh.default, aten.linear.default, aten.sum.dim_IntList] * 2]


# --- what of the outer graph is worth keeping ------------------------------------------------------------------------------


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


# --- what the prompt is ----------------------------------------------------------------------------------------------------


def test_the_prompt_is_all_but_the_timestep_and_the_latents() -> None:
    program = model(keys_body())
    (place,) = PromptOnce().match(program)
    assert sorted(node.name for node in place) == ["text", "words"]
    assert PromptOnce().describe(place) == "text, words"
    assert [node.name for node in latent_inputs(program)] == ["image"]


def test_what_goes_into_the_tokens_beside_the_latents_is_prompt() -> None:
    """A condition that is added to all tokens has no grid."""
    program = model(keys_body())
    image, _, text, _ = program.placeholders
    flat = next(node for node in program.graph.nodes if node.target == aten.flatten.using_ints)
    with program.graph.inserting_before(flat):
        means = program.graph.call_function(aten.mean.dim, (text, [1]))
        means.meta["val"] = text.meta["val"].mean(1)
        wide = program.graph.call_function(aten.reshape.default, (means, [2, 4, 1, 1]))
        wide.meta["val"] = means.meta["val"].reshape(2, 4, 1, 1)
        both = program.graph.call_function(aten.add.Tensor, (image, wide))
        both.meta["val"] = image.meta["val"]
    flat.replace_input_with(image, both)
    assert [node.name for node in latent_inputs(program)] == ["image"]
    assert len(split(program)) == 1


def test_without_a_grid_all_that_tokens_come_from_are_latents() -> None:
    program = model(keys_body(), grid=(101, 7))
    assert [node.name for node in latent_inputs(program)] == ["image"]


def test_numbers_are_no_latents() -> None:
    """Position ids have the grid too, and they stay what they are for a whole run."""
    outer, body = Sketch(), plain_body()
    tokens = outer.size(15)
    x, places = outer.input("x", 2, tokens, 4), outer.input("places", 2, tokens, 1, dtype=torch.int64)
    text, count = outer.input("text", 2, 6, 4), outer.number("count", outer.size(9))
    first = outer(aten.add.Tensor, outer(aten.add.Tensor, x, places), count)
    outer.output(outer.block("blocks.0", body, first, text))
    program = outer.program(body, grid=(size_of(tokens),), timestep="time")
    assert [node.name for node in latent_inputs(program)] == ["x"]
    inputs = PromptOnce().match(program)
    assert list(inputs) == []


@pytest.mark.parametrize(
    "options",
    [{"timestep": None}, {"in_place": {"blocks.0": None}}, {"prompts": {"sparsify_prompt_0": fx.Graph()}}, {"paths": []}],
)
def test_without_what_tells_the_prompt_nothing_is_split_off(options: dict[str, Any]) -> None:
    program = model(keys_body(), **options)
    before = targets(program.graph)
    assert PromptOnce().run(program) == 0
    assert targets(program.graph) == before and len(program.prompts) == len(options.get("prompts", ()))


def test_it_makes_no_other_model() -> None:
    assert PromptOnce.prepares
