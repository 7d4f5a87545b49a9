"""What leaves the blocks because all of them compute it alike; results stay bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sparsify.passes import OnceForBlocks
from sparsify.program import Body, Program

from .running import run_program
from .shared import kept_sizes
from .sketch import Sketch, aten, targets

WEIGHTS = {f"blocks__{index}__w": torch.randn(4, 4) for index in range(3)}
X, C, D = torch.randn(2, 5, 4), torch.randn(2, 4), torch.randn(2, 4)


def block(name: str = "block0", of: Any = aten.tanh.default, *more: Any) -> Body:
    """``x + linear(tanh(c), w) + relu(d)``, with an attribute ``w`` of its own."""
    first, tokens = kept_sizes(5)
    sketch = Sketch(first)
    x, c, d = sketch.input("x", 2, tokens, 4), sketch.input("c", 2, 4), sketch.input("d", 2, 4)
    made = sketch(aten.linear.default, sketch(of, c, *more), sketch.attribute("w", 4, 4))
    for part in (made, sketch(aten.relu.default, d)):
        x = sketch(aten.add.Tensor, x, sketch(aten.unsqueeze.default, part, 1))
    return sketch.body(name, x, moving=[tokens])


def chain(*bodies: Body, same: bool = True, **options: Any) -> Program:
    """Blocks in a row; all are given ``c``, and ``d`` where it is the ``same``, or else what comes from each block's number."""
    first, tokens = kept_sizes(5, role="outer")
    outer = Sketch(first)
    x, c, d = outer.input("x", 2, tokens, 4), outer.input("c", 2, 4), outer.input("d", 2, 4)
    for index, body in enumerate(bodies):
        own = d if same else outer(aten.mul.Tensor, d, index + 2)
        x = outer.block(f"blocks.{index}", body, x, c, own)
    outer.output(x)
    return outer.program(*bodies, **options)


def moved(program: Program, count: int = 1) -> list[Any]:
    """Run the pass; what the outer graph computes in the end, where results stayed."""
    before = run_program(program, X, C, D, **WEIGHTS)
    assert OnceForBlocks().run(program) == count, program.skips
    after = run_program(program, X, C, D, **WEIGHTS)
    assert torch.equal(before, after) and before.abs().max() > 0.1
    assert OnceForBlocks().run(program) == 0
    return targets(program.graph)


def test_what_all_blocks_make_of_the_same_inputs_leaves_them() -> None:
    body = block()
    program = chain(body, body, body)
    assert moved(program) == [aten.tanh.default, aten.relu.default]
    assert [node.name for node in body.placeholders] == ["x", "c", "d", "tanh_default_given", "relu_default_given"]
    assert aten.tanh.default not in targets(body.graph) and aten.linear.default in targets(body.graph)
    made = {node.target: node for node in program.graph.nodes if node.op == "call_function"}
    for call in program.block_nodes:
        assert call.args[3:] == (made[aten.tanh.default], made[aten.relu.default])
    assert made[aten.tanh.default].meta["provenance"] == ("once-for-blocks", "tanh_default")


def test_what_blocks_are_given_each_for_itself_stays() -> None:
    body = block()
    assert sorted(map(str, moved(chain(body, body, same=False)))) == ["aten.mul.Tensor", "aten.mul.Tensor", "aten.tanh.default"]
    assert aten.relu.default in targets(body.graph) and aten.tanh.default not in targets(body.graph)


def test_weights_that_all_blocks_share_go_along() -> None:
    body = block()
    tied = {"blocks.1.w": "blocks.0.w", "blocks.2.w": "blocks.0.w"}
    shared = {name: WEIGHTS["blocks__0__w"] for name in WEIGHTS}
    program = chain(body, body, body, tied=tied)
    before = run_program(program, X, C, D, **shared)
    assert OnceForBlocks().run(program) == 1
    assert torch.equal(before, run_program(program, X, C, D, **shared))
    assert targets(program.graph).count(aten.linear.default) == 1 and aten.linear.default not in targets(body.graph)
    assert [node.target for node in program.graph.find_nodes(op="get_attr")] == ["blocks.0.w"]


@pytest.mark.parametrize("tied", [{}, {"blocks.2.w": "blocks.1.w"}])
def test_weights_that_not_all_blocks_share_stay(tied: dict[str, str]) -> None:
    body = block()
    program = chain(body, body, body, tied=tied)
    assert OnceForBlocks().run(program) == 1
    assert aten.linear.default in targets(body.graph)


@pytest.mark.parametrize(
    ("tied", "leaves"),
    [
        ({}, []),
        ({"blocks.1.w": "blocks.0.w"}, ["blocks.0.w", "blocks.0.w"]),
        ({"blocks.0.w": "elsewhere.w"}, ["elsewhere.w"]),
    ],
)
def test_weights_of_the_only_block_of_a_kind_leave_it_if_others_have_them_too(tied: dict[str, str], leaves: list[str]) -> None:
    one, other = block("block0"), block("block1")
    program = chain(one, other, tied=tied)
    assert OnceForBlocks().run(program) == 2
    assert [program.owner(str(node.target)) for node in program.graph.find_nodes(op="get_attr")] == leaves
    assert targets(program.graph).count(aten.tanh.default) == 2


def test_what_one_block_alone_is_given_stays() -> None:
    body = block()
    program = chain(body)
    assert OnceForBlocks().run(program) == 0
    assert targets(program.graph) == []


def test_tensors_that_tracing_made_are_all_blocks_own() -> None:
    body = block()
    body.constants["w"] = WEIGHTS["blocks__0__w"]
    program = chain(body, body)
    assert aten.linear.default in moved(program)
    assert program.constants["w"] is WEIGHTS["blocks__0__w"]


@pytest.mark.parametrize(("of", "more"), [(aten.dropout.default, (0.5, True)), (aten.view.default, ([2, 4],))])
def test_random_numbers_and_views_stay(of: Any, more: tuple[Any, ...]) -> None:
    body = block("block0", of, *more)
    program = chain(body, body, same=False)
    assert OnceForBlocks().run(program) == 0
    assert of in targets(body.graph)


def test_models_that_run_in_place_are_left() -> None:
    body = block()
    program = chain(body, body, in_place={"blocks.0": None})
    assert OnceForBlocks().run(program) == 0 and not OnceForBlocks().run(chain(block(), in_place={"x": None}))
    assert targets(program.graph) == []


def test_a_place_is_told_by_its_values() -> None:
    body = block()
    (place,) = OnceForBlocks().match(chain(body, body))
    assert OnceForBlocks().describe(place) == "tanh_default, relu_default of block0"
    assert [node.target for node in place.nodes] == [aten.tanh.default, aten.relu.default]
    assert isinstance(place.values[0], fx.Node) and place.body is body
    with pytest.raises(AttributeError):
        place.body = body  # type: ignore[misc]


def test_it_makes_no_other_model() -> None:
    assert OnceForBlocks.prepares
