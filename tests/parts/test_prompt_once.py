"""What depends on the prompt alone leaves the blocks for graphs of its own, and what the prompt is."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes import PromptOnce
from sparsify.passes.prompt_once import latent_inputs
from sparsify.shapes import size_of

from .prompts import keys_body, model, plain_body, split
from .sketch import Sketch, aten, targets

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
