"""A body that knows the sides of its token grid, and a block that is given another body."""

from __future__ import annotations

import math

import pytest
import sympy
import torch
from torch import fx

from sparsify.errors import RewriteError
from sparsify.passes import copy_on_grid, give
from sparsify.program import Body, Twin
from sparsify.shapes import shape_of, size_of

from .sketch import Sketch, aten, numbers, run, targets


def block() -> tuple[Sketch, Body, torch.SymInt, torch.SymInt]:
    """Tokens, text, and how many there are of each; with the number of tokens and of rows of text."""
    sketch = Sketch()
    tokens, rows = sketch.size(12), sketch.size(5)
    x, text = sketch.input("x", 2, tokens, 4), sketch.input("text", 2, rows, 4)
    count, row_count = sketch.number("count", tokens), sketch.number("row_count", rows)
    flat = sketch(aten.reshape.default, x, [2, sketch(torch.ops.aten.sym_size.int, x, 1), 2, 2])
    moved = sketch(aten.flatten.using_ints, sketch(aten.exp.default, flat), 2, 3)
    added = sketch(aten.add.Tensor, moved, sketch(aten.mean.dim, text, [1], True))
    sketch(aten.full.default, [count, row_count], 1.0)
    sketch.output(added)
    n = size_of(tokens)
    body = sketch.body(moving=[tokens], conditions=[sympy.Ge(n, 2), True, sympy.Eq(n % 2, 0)], given=1)
    return sketch, body, tokens, rows


def test_the_number_of_tokens_becomes_the_product_of_the_sides() -> None:
    sketch, body, tokens, _ = block()
    made = copy_on_grid(body, "block0.mine", (3, 4))
    assert (made.name, made.given, body.given) == ("block0.mine", 3, 1)
    assert [node.name for node in made.placeholders] == ["x", "text", "count", "row_count", "side0", "side1"]
    x, text, count, rows, *sides = made.placeholders
    product = math.prod(size_of(side.meta["val"]) for side in sides)
    assert made.moving == {size_of(side.meta["val"]) for side in sides}
    assert shape_of(x) == (2, product, 4)
    assert size_of(count.meta["val"]) == product
    assert rows.meta["val"] is body.placeholders[3].meta["val"]
    assert text.meta["val"] is body.placeholders[1].meta["val"]
    assert sketch.env.backed_var_to_val[size_of(tokens)] == 12
    assert [side.meta["val"].node.hint for side in sides] == [3, 4]
    assert x.meta["val"].shape[1].node.hint == count.meta["val"].node.hint == 12
    for node in made.graph.nodes:
        if node.op == "call_function":
            assert size_of(tokens) not in set().union(*(getattr(size, "free_symbols", set()) for size in shape_of(node)))


def test_all_operators_are_copied_and_do_what_they_did() -> None:
    sketch, body, _, _ = block()
    made = copy_on_grid(body, "block0.mine", (3, 4))
    assert targets(made.graph) == targets(sketch.graph)
    assert made.graph is not sketch.graph
    x, text = torch.rand(2, 6, 4), torch.rand(2, 3, 4)
    assert torch.equal(run(made.graph, x, text, 6, 3, 2, 3), run(sketch.graph, x, text, 6, 3))
    (result,) = made.graph.output_node().args
    assert shape_of(result) == shape_of(made.placeholders[0])  # type: ignore[arg-type]


def test_conditions_are_written_in_the_sides() -> None:
    _, body, tokens, _ = block()
    made = copy_on_grid(body, "block0.mine", (3, 4))
    product = size_of(made.token_node.meta["val"].shape[1])
    assert made.conditions == [sympy.Ge(product, 2), True, sympy.Eq(product % 2, 0)]
    assert body.conditions[0] == sympy.Ge(size_of(tokens), 2)


@pytest.mark.parametrize(
    ("grid", "step", "hints"),
    [((4, 6), 2, [4, 6]), ((6, 9), 3, [6, 9]), ((1, 6), 1, [2, 6]), ((2, 6), 2, [4, 6]), ((4, 7), 2, [4, 6]), ((3,), 1, [3])],
)
def test_sides_are_multiples_of_the_step(grid: tuple[int, ...], step: int, hints: list[int]) -> None:
    sketch, body, _, _ = block()
    made = copy_on_grid(body, "block0.mine", grid, step)
    sides = [node.meta["val"] for node in made.placeholders[4:]]
    assert [side.node.hint for side in sides] == hints
    assert len(made.moving) == len(grid)
    assert all(symbol.is_symbol for symbol in made.moving)
    for side in sides:
        (symbol,) = size_of(side).free_symbols
        assert symbol in made.moving
        assert numbers([size_of(side)], {symbol: 5}) == [5 * step]
        assert sketch.env.backed_var_to_val[symbol] * step == side.node.hint
    assert made.token_node.meta["val"].shape[1].node.hint == math.prod(hints)


def test_two_sizes_that_follow_the_tokens_are_refused() -> None:
    sketch, body, tokens, rows = block()
    with pytest.raises(RewriteError, match="block0 has 2 sizes that follow its tokens"):
        copy_on_grid(sketch.body(moving=[tokens, rows]), "block0.mine", (3, 4))
    with pytest.raises(RewriteError, match="has 0 sizes"):
        copy_on_grid(sketch.body(), "block0.mine", (3, 4))
    body.twins = (Twin(0, "key"),)
    with pytest.raises(RewriteError, match="sizes that follow its tokens, and one was expected"):
        copy_on_grid(body, "block0.mine", (3, 4))


def call_of(twins: tuple[Twin, ...]) -> tuple[Sketch, fx.Node, dict[str, fx.Node]]:
    """A block with an input and as many for keys."""
    sketch = Sketch()
    inputs = {name: sketch.input(name, 2, 7, 4) for name in ("x", "k1", "k2", "value", "key")}
    keys = [inputs[f"k{index + 1}"] for index in range(len(twins))]
    return sketch, sketch.block("blocks.0", "block0", inputs["x"], *keys), inputs


@pytest.mark.parametrize("twins", [(), (Twin(0, "key"),), (Twin(0, "key"), Twin(0, "cross"))])
def test_values_come_in_front_of_the_keys(twins: tuple[Twin, ...]) -> None:
    sketch, node, inputs = call_of(twins)
    sketch.output(node)
    program = sketch.program(sketch.body(twins=twins))
    node.meta["val"] = None
    give(program, node, sketch.body("block0.mine"), [inputs["value"], 3], [inputs["key"]])
    assert [str(argument) for argument in node.args] == ["x", "value", "3", *["k1", "k2"][: len(twins)], "key"]
    assert node.meta["body"] == "block0.mine"
    assert program.body_of(node).name == "block0.mine"
    assert shape_of(node) == (2, 7, 4)


def test_a_body_may_take_nothing_more() -> None:
    sketch, node, inputs = call_of(())
    sketch.output(node)
    program = sketch.program(sketch.body())
    give(program, node, sketch.body("block0.mine"))
    assert node.args == (inputs["x"],)
    assert sorted(program.bodies) == ["block0", "block0.mine"]
