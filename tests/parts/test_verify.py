"""The verifier on programs of a few nodes: which nodes and calls it refuses, where, and what it lets pass."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from torch import fx

from sparsify import verify as module
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.program import DENSITY, GRID
from sparsify.verify import verify

from .sketch import Sketch, aten
from .verified import Made


@pytest.mark.parametrize("stage", ["captured", "analysed", "sparse"])
def test_a_legal_program_passes(stage: str) -> None:
    verify(Made(stage).program, "nothing")


def test_the_message_names_the_pass_the_graph_and_the_nodes_around() -> None:
    made = Made()
    for _ in range(9):
        made.insert(aten.neg.default, made.last)
    nodes = list(made.graph.nodes)
    nodes[7].target = torch.relu
    text = made.refused("pass some-pass left an illegal outer graph: .*relu.* is not legal in the sparse stage")
    lines = text.splitlines()[1:]
    assert lines == [f"{'>' if index == 7 else ' '} {nodes[index].format_node()}" for index in range(4, 11)]


@pytest.mark.parametrize(("at", "shown"), [(2, [0, 1, 2, 3, 4, 5]), (4, [1, 2, 3, 4, 5])])
def test_at_the_ends_of_a_graph_fewer_nodes_are_around(at: int, shown: list[int]) -> None:
    made = Made()
    nodes = list(made.graph.nodes)
    nodes[at].op, nodes[at].target = "call_method", "neg"
    lines = made.refused("neg is not legal").splitlines()[1:]
    assert [line[2:] for line in lines] == [nodes[index].format_node() for index in shown]
    assert [line[0] for line in lines].index(">") == shown.index(at)


def test_a_fault_in_a_body_or_a_prompt_graph_is_said_to_be_there() -> None:
    made = Made()
    next(node for node in made.program.bodies["block0"].graph.nodes if node.op == "call_function").target = torch.relu
    made.refused("illegal block0: .*relu.* is not legal")
    made = Made()
    prompt = Sketch(made.sketch)
    node = prompt(aten.neg.default, prompt.input("x", 3))
    made.program.prompts["prompt_0"] = prompt.output(node)
    verify(made.program, "nothing")
    node.meta.pop("val")
    made.refused("illegal prompt_0: neg_default claims no value")


def test_the_output_is_the_last_node() -> None:
    made = Made()
    made.output.append(made.graph.call_function(aten.neg.default, (made.x,)))
    made.refused("the last node is not the output")


def test_a_node_is_defined_before_it_is_used() -> None:
    made = Made()
    made.first.prepend(made.second)
    made.refused("blocks_1 uses blocks_0, which is not defined before it")


def test_a_module_that_is_called_is_a_block_or_one_of_the_programs_own() -> None:
    made = Made()
    prompt = Sketch(made.sketch)
    made.program.prompts["sparsify_prompt_0"] = prompt.output(prompt.input("x", 3))
    with made.graph.inserting_before(made.output):
        for name in (DENSITY, GRID, "sparsify_prompt_0"):
            made.graph.create_node("call_module", name)
    verify(made.program, "nothing")
    with made.graph.inserting_before(made.output):
        made.graph.create_node("call_module", "head")
    made.refused("head calls head, which is neither a block nor one of .*sparsify_density.*sparsify_grid.*sparsify_prompt_0")


def test_a_graph_lints() -> None:
    made = Made()
    made.insert(aten.neg.default, made.last).name = made.last.name
    made.refused("it does not lint: .*neg")


LEGAL: list[tuple[Any, tuple[str, ...]]] = [
    (aten.relu.default, ("captured", "analysed", "sparse")),
    (torch.ops.prims.neg.default, ("captured", "analysed", "sparse")),
    (torch.ops.higher_order.cond, ("captured", "analysed", "sparse")),
    (operator.getitem, ("captured", "analysed", "sparse")),
    (operator.mul, ("captured", "analysed", "sparse")),
    (math.trunc, ("captured", "analysed", "sparse")),
    (math.floor, ("captured", "analysed", "sparse")),
    (torch.sym_sqrt, ("captured", "analysed", "sparse")),
    (torch.sym_max, ("captured", "analysed", "sparse")),
    (pool_tokens, ("sparse",)),
    (restore_tokens, ("sparse",)),
    (as_rotation, ("sparse",)),
    (aten.relu_.default, ()),
    (aten.copy_.default, ()),
    (torch.ops.quantized.add.default, ()),
    (torch.relu, ()),
    (torch.nn.functional.relu, ()),
    (len, ()),
]


@pytest.mark.parametrize(("target", "stages"), LEGAL, ids=range(len(LEGAL)))
def test_which_functions_are_legal_at_which_stage(target: Any, stages: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "compute_value", lambda node, values, mode: values[node])
    for stage in ("captured", "analysed", "sparse"):
        made = Made(stage)
        made.insert(target, made.last)
        if stage in stages:
            verify(made.program, "nothing")
        else:
            made.refused(f"is not legal in the {stage} stage")


def test_a_method_is_never_legal() -> None:
    made = Made()
    with made.graph.inserting_before(made.output):
        made.graph.call_method("relu", (made.last,))
    made.refused("relu is not legal in the sparse stage")


def test_every_block_is_called_once_in_order() -> None:
    made = Made()
    made.program.paths = ["blocks.1", "blocks.0"]
    made.refused(r"the blocks called are \['blocks.0', 'blocks.1'\], not \['blocks.1', 'blocks.0'\] in this order")
    made.program.paths = ["blocks.0", "blocks.1", "blocks.2"]
    made.refused("the blocks called are")
    made.program.paths = ["blocks.1"]
    verify(made.program, "nothing")  # the other sees text alone
    made.program.paths = []
    verify(made.program, "nothing")


def test_a_block_has_a_body_and_gives_it_as_many_inputs_as_it_takes() -> None:
    made = Made()
    made.second.meta["body"] = "block7"
    made.refused("blocks_1 has the body block7, which does not exist")
    made = Made()
    made.second.args = (made.first,)
    made.refused("blocks_1 gives 1 inputs, block0 takes 2")


def test_a_block_is_given_tensors_of_the_rank_and_type_that_it_takes() -> None:
    def vector(made: Made, *shape: Any, **options: Any) -> fx.Node:
        with made.graph.inserting_before(made.first):
            return made.sketch.input("v", *shape, **options)

    for shape, options, shown in (
        ((2, 1, 8), {}, r"float32\[2, 1, 8\]"),
        ((2, 8), {"dtype": torch.float64}, r"float64\[2, 8\]"),
    ):
        made = Made()
        made.second.args = (made.first, vector(made, *shape, **options))
        made.refused(rf"blocks_1 gives {shown} for vector: float32\[2, 8\]")
    made = Made()
    made.second.args = (made.first, 3)
    made.refused(r"blocks_1 gives 3 for vector: float32\[2, 8\]")
    made = Made()
    made.second.args = (made.first, vector(made, 2, 9))
    verify(made.program, "nothing")  # a size that is fixed inside is a guard's business


@pytest.mark.parametrize(("stage", "refused"), [("sparse", True), ("analysed", False)])
def test_sizes_that_are_equal_inside_are_equal_at_a_sparse_call(stage: str, refused: bool) -> None:
    made = Made(stage)
    made.program.bodies["block0"] = made.body("table", made.inside, 8)
    with made.graph.inserting_before(made.first):
        tables = [made.sketch.input(f"table_{i}", rows, 8) for i, rows in enumerate((made.n, made.sketch.size(12)))]
    made.first.args, made.second.args = (made.x, tables[0]), (made.first, tables[0])
    verify(made.program, "nothing")
    made.second.args = (made.first, tables[1])
    if refused:
        made.refused("blocks_1 gives a size of .* where block0 takes")
    else:
        verify(made.program, "nothing")


def test_a_block_claims_the_shape_of_the_input_that_it_updates() -> None:
    made = Made()
    made.second.meta["val"] = made.sketch.fake(2, made.n + 1, 8)
    made.refused(r"blocks_1 claims float32\[2, .* \+ 1, 8\], not the shape of its input 0")


def test_each_of_several_results_is_the_shape_of_its_own_input() -> None:
    made = Made()
    made.program.bodies["block0"].updates = [1, 0]
    x, c = made.x.meta["val"], made.c.meta["val"]
    made.first.args, made.second.args = (made.x, made.c), (made.x, made.c)
    made.first.meta["val"] = (c, x)
    made.second.meta["val"] = (c, c)
    made.last.args = (made.x,)
    made.refused(r"blocks_1 claims float32\[2, 8\], not the shape of its input 0")
    made.second.meta["val"] = (c, x)
    verify(made.program, "nothing")
