"""The verifier on programs of a few nodes: what it refuses, where, and what it lets pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sparsify import VerificationError
from sparsify import verify as module
from sparsify.ops import as_rotation, pool_tokens, restore_tokens
from sparsify.program import DENSITY, GRID, Body, Program
from sparsify.verify import verify

from .graphs import Sizes, block, body_of, call, program_of

aten = torch.ops.aten


class Made:
    """Two blocks of one body, which takes tokens (2, n, 8) and a vector (2, 8); behind them one operator."""

    def __init__(self, stage: str = "sparse") -> None:
        self.sizes, self.graph, self.inner = Sizes(), fx.Graph(), Sizes()
        (self.n,), (self.inside,) = self.sizes.new(12), self.inner.new(12)
        self.x = self.sizes.tensor(self.graph, "x", 2, self.n, 8)
        self.c = self.sizes.tensor(self.graph, "c", 2, 8)
        self.first = block(self.graph, "blocks.0", "block0", self.x, self.c)
        self.second = block(self.graph, "blocks.1", "block0", self.first, self.c)
        self.last = call(self.graph, aten.neg.default, self.second)
        self.output = self.graph.output((self.last,))
        self.program: Program = program_of(self.graph, self.sizes, self.body(), stage=stage)

    def body(self) -> Body:
        graph = fx.Graph()
        x = self.inner.tensor(graph, "tokens", 2, self.inside, 8)
        self.inner.tensor(graph, "vector", 2, 8)
        return body_of(graph, call(graph, aten.relu.default, x))

    def insert(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node before the output, with a value."""
        with self.graph.inserting_before(self.output):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = self.last.meta["val"]
        return node

    def refused(self, message: str, name: str = "some-pass") -> str:
        with pytest.raises(VerificationError, match=message) as caught:
            verify(self.program, name)
        return str(caught.value)


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
    graph = fx.Graph()
    x = made.sizes.tensor(graph, "x", 3)
    graph.output(call(graph, aten.neg.default, x))
    made.program.prompts["prompt_0"] = graph
    verify(made.program, "nothing")
    next(node for node in graph.nodes if node.op == "call_function").meta.pop("val")
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
    made.program.prompts["sparsify_prompt_0"] = fx.Graph()
    made.program.prompts["sparsify_prompt_0"].output(made.sizes.tensor(made.program.prompts["sparsify_prompt_0"], "x", 3))
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
            return made.sizes.tensor(made.graph, "v", *shape, **options)

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
    graph = fx.Graph()
    x = made.inner.tensor(graph, "tokens", 2, made.inside, 8)
    made.inner.tensor(graph, "table", made.inside, 8)
    made.program.bodies["block0"] = body_of(graph, call(graph, aten.relu.default, x))
    with made.graph.inserting_before(made.first):
        tables = [
            made.sizes.tensor(made.graph, f"table_{i}", rows, 8) for i, rows in enumerate((made.n, made.sizes.new(12)[0]))
        ]
    made.first.args, made.second.args = (made.x, tables[0]), (made.first, tables[0])
    verify(made.program, "nothing")
    made.second.args = (made.first, tables[1])
    if refused:
        made.refused("blocks_1 gives a size of .* where block0 takes")
    else:
        verify(made.program, "nothing")


def test_a_block_claims_the_shape_of_the_input_that_it_updates() -> None:
    made = Made()
    made.second.meta["val"] = made.sizes.fake(2, made.n + 1, 8)
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


def test_an_operator_claims_a_value_and_can_run() -> None:
    made = Made()
    made.last.meta.pop("val")
    made.refused("neg_default claims no value")
    for target, args in ((aten.matmul.default, (made.x, made.x)), (aten.view.default, (made.x, [5]))):
        made = Made()
        made.insert(target, *(made.x if isinstance(arg, fx.Node) else arg for arg in args))
        made.refused(f"{target.overloadpacket.__name__}.* cannot run: ")
    made = Made()
    node = made.insert(math.trunc, 3, 4)
    made.refused(f"{node.name} cannot run: ")


def test_a_fresh_capture_is_not_run_again_but_noted() -> None:
    made = Made("captured")
    made.last.meta["val"] = made.sizes.fake(1)
    verify(made.program, "nothing")
    made.program.stage = "analysed"
    verify(made.program, "nothing")
    made.insert(aten.neg.default, made.last).meta["val"] = made.sizes.fake(2)
    made.refused("neg_default_1 claims")


def test_what_was_run_is_not_run_again_while_arguments_and_claims_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = Made(), list[str]()
    compute = module.compute_value

    def watched(node: fx.Node, *rest: Any) -> Any:
        ran.append(node.name)
        return compute(node, *rest)

    monkeypatch.setattr(module, "compute_value", watched)
    verify(made.program, "nothing")
    assert sorted(ran) == ["neg_default", "relu_default"]
    verify(made.program, "nothing")
    assert len(ran) == 2
    again = made.insert(aten.neg.default, made.second)
    verify(made.program, "nothing")
    assert len(ran) == 2, "one that looks the same"
    again.meta["val"] = made.sizes.fake(2, made.n, 8)
    verify(made.program, "nothing")
    assert len(ran) == 3, "another claim"
    again.args = (made.c,)
    made.refused("neg_default_1 claims")
    assert len(ran) == 4, "another argument"


def test_what_is_kept_of_a_run_keeps_the_values_that_it_is_known_by() -> None:
    made = Made()
    verify(made.program, "nothing")
    kept = [value for values in made.program.verified.values() for value in values]
    assert any(value is made.last.meta["val"] for value in kept) and any(value is made.second.meta["val"] for value in kept)


def test_a_restated_value_may_say_the_same_in_other_sizes() -> None:
    made = Made()
    made.last.meta.update(val=made.sizes.fake(2, made.sizes.new(12)[0], 8), restated=True)
    verify(made.program, "nothing")
    made.last.meta.pop("restated")
    made.program.verified.clear()
    made.refused("neg_default claims")


def test_a_region_is_not_run() -> None:
    made = Made()
    made.insert(torch.ops.higher_order.cond, made.last)
    verify(made.program, "nothing")


CLAIMS: list[tuple[Callable[[Made], Any], bool]] = [
    (lambda made: made.sizes.fake(2, made.n, 8), True),
    (lambda made: made.sizes.fake(2, made.n * 2 - made.n, 8), True),
    (lambda made: made.sizes.fake(2, 12, 8), True),  # a number that was a size by a guard
    (lambda made: made.sizes.fake(2, 13, 8), False),
    (lambda made: made.sizes.fake(2, made.n + 1, 8), False),
    (lambda made: made.sizes.fake(2, made.sizes.new(12)[0], 8), False),
    (lambda made: made.sizes.fake(2, made.n, 9), False),
    (lambda made: made.sizes.fake(3, made.n, 8), False),
    (lambda made: made.sizes.fake(2, made.n), False),
    (lambda made: made.sizes.fake(2, made.n, 8, 1), False),
    (lambda made: made.sizes.fake(2, made.n, 8, dtype=torch.float64), False),
    (lambda made: made.sizes.fake(2, made.n, 8, device="meta"), False),
    (lambda made: (made.sizes.fake(2, made.n, 8),), False),
    (lambda made: made.n, False),
    (lambda made: None, False),
]


@pytest.mark.parametrize(("claim", "true"), CLAIMS)
def test_what_a_node_may_claim_of_a_tensor(claim: Callable[[Made], Any], true: bool) -> None:
    made = Made()
    made.last.meta["val"] = claim(made)
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("neg_default claims .* but yields float32")


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (lambda made, part: [part, part], True),
        (lambda made, part: (part, part), True),
        (lambda made, part: (part, part, part), False),
        (lambda made, part: (part,), False),
        (lambda made, part: (part, made.x.meta["val"]), False),
        (lambda made, part: (made.x.meta["val"], part), False),
        (lambda made, part: part, False),
    ],
)
def test_what_a_node_may_claim_of_several_tensors(claim: Callable[..., Any], true: bool) -> None:
    made = Made()
    node = made.insert(aten.unbind.int, made.x)
    node.meta["val"] = claim(made, made.sizes.fake(made.n, 8))
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("unbind.* claims .* but yields")


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (lambda made: 2 * made.n, True),
        (lambda made: made.n + made.n, True),
        (lambda made: 24, True),
        (lambda made: 25, False),
        (lambda made: made.n, False),
        (lambda made: made.sizes.new(24)[0], False),
    ],
)
def test_what_a_node_may_claim_of_a_size(claim: Callable[..., Any], true: bool) -> None:
    made = Made()
    with made.graph.inserting_before(made.first):
        count = made.sizes.number(made.graph, "count", made.n)
    node = made.insert(operator.mul, count, 2)
    node.meta["val"] = claim(made)
    if true:
        verify(made.program, "nothing")
    else:
        made.refused("mul claims .* but yields")


def test_a_size_that_depends_on_values_agrees_with_any() -> None:
    made = Made()
    with made.graph.inserting_before(made.first):
        flags = made.sizes.tensor(made.graph, "flags", 5, dtype=torch.bool)
    node = made.insert(aten.nonzero.default, flags)
    node.meta["val"] = made.sizes.fake(made.sizes.env.create_unbacked_symint(), 1, dtype=torch.long)
    verify(made.program, "nothing")
    node.meta["val"] = made.sizes.fake(made.sizes.env.create_unbacked_symint(), 2, dtype=torch.long)
    made.refused("nonzero_default claims")


@pytest.mark.parametrize("patch", [4, 2])
def test_a_side_that_is_one_by_a_guard_is_one(patch: int) -> None:
    """The rows of a grid of 1 x 8 tokens, say: torch puts in symbols alone."""
    made = Made()
    height, step, rows = made.sizes.new(4, patch, 3)
    side = height // step
    assert bool(side == 1) is (patch == 4), "which is a guard, or a guard that it is not"
    with made.graph.inserting_before(made.first):
        image = made.sizes.tensor(made.graph, "image", rows * side, 8)
    node = made.insert(aten.neg.default, image)
    node.meta["val"] = made.sizes.fake(rows, 8)
    if patch == 4:
        verify(made.program, "nothing")
    else:
        made.refused("neg_default_1 claims")
    node.meta["val"] = made.sizes.fake(2 * rows, 8)
    made.refused("neg_default_1 claims")
