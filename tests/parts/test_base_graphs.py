"""What passes do with graphs of a few nodes: new nodes and parameters, copies, uses that are replaced, dead nodes."""

from __future__ import annotations

import torch
from torch import fx, nn

from sparsify.passes import copy_body, remove_dead, replace_later_uses
from sparsify.passes.base import Provenance, copy_program
from sparsify.program import PassRun, Skip

from .sketch import Sketch, aten, run, targets
from .some_pass import Some, trunk

# --- new nodes ----------------------------------------------------------------------------------------------------------


def test_a_new_operator_has_a_value_and_says_where_it_came_from() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    made = Some().make(sketch.graph, aten.sum.dim_IntList, (x, [1]), x, keepdim=True)
    assert (made.target, made.args, made.kwargs) == (aten.sum.dim_IntList, (x, [1]), {"keepdim": True})
    assert made.meta["val"].shape == (2, 1)
    assert made.meta["provenance"] == Provenance("some-pass2", "x") == ("some-pass2", "x")
    assert "passes" not in made.meta


def test_a_block_remembers_every_pass_that_rewrote_it() -> None:
    _, program = trunk()
    block = program.block_nodes[0]
    assert Some().mark(block, block) is block
    Some().mark(block, block)
    assert block.meta["passes"] == ("some-pass2", "some-pass2")


def test_all_operators_of_a_traced_function_are_marked() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 2, 3), sketch.input("y", 3)
    first, (second,) = Some().trace(sketch.graph, lambda a, b: (a + b, [(a * 2).exp()]), x, y, origin=y)
    assert targets(sketch.output(first, second)) == [aten.add.Tensor, aten.mul.Tensor, aten.exp.default]
    made = [node for node in sketch.graph.nodes if node.op == "call_function"]
    assert [node.meta["provenance"] for node in made] == [("some-pass2", "y")] * 3
    one, other = torch.rand(2, 3), torch.rand(3)
    got = run(sketch.graph, one, other)
    assert torch.equal(got[0], one + other)
    assert torch.equal(got[1], (one * 2).exp())


def test_layers_are_numbered_by_pass_and_have_the_dtype_of_what_they_are_like() -> None:
    outer, program = trunk()
    like = outer.graph.find_nodes(op="placeholder")[0]
    like.meta["val"] = outer.fake(1, dtype=torch.float64)
    other = type("Other", (Some,), {"name": "some-other"})()
    names = [rewrite.layer(program, lambda: nn.Linear(2, 3), like).name for rewrite in (Some(), other, Some(), Some())]
    assert names == ["sparsify_some_pass2.0", "sparsify_some_other.0", "sparsify_some_pass2.1", "sparsify_some_pass2.2"]
    assert [layer.name for layer in program.layers] == names
    assert {(layer.dtype, layer.device.type) for layer in program.layers} == {(torch.float64, "cpu")}
    with outer.graph.inserting_before(outer.graph.output_node()):
        node = Some().parameter(program, program.layers[2], "weight")
    assert (node.op, node.target) == ("get_attr", "sparsify_some_pass2.1.weight")
    assert (tuple(node.meta["val"].shape), node.meta["val"].dtype) == ((3, 2), torch.float64)
    assert node.meta["provenance"] == ("some-pass2", "output")


# --- copies of graphs ---------------------------------------------------------------------------------------------------


def test_a_copied_body_has_a_graph_of_its_own() -> None:
    _, program = trunk()
    body = program.bodies["block0"]
    made = copy_body(body, "block0.mine")
    assert (made.name, body.name) == ("block0.mine", "block0")
    assert (made.moving, made.updates, made.constants) == (body.moving, body.updates, body.constants)
    assert targets(made.graph) == targets(body.graph)
    assert made.token_node.meta["val"] is body.token_node.meta["val"]
    made.token_node.meta["mine"] = True
    made.graph.output_node().args = (made.token_node,)
    made.graph.eliminate_dead_code()
    assert targets(body.graph) == [aten.exp.default]
    assert "mine" not in body.token_node.meta


def test_a_copied_program_keeps_what_was_found_and_forgets_what_passes_did() -> None:
    outer, program = trunk()
    (x,) = program.placeholders
    program.given = {"blocks.0": (x, 2)}
    program.layers.append("layer")  # type: ignore[arg-type]
    program.prompts["prompt"] = fx.Graph()
    program.savings.append("saving")  # type: ignore[arg-type]
    program.probes["block0"] = None
    program.values = "values"  # type: ignore[assignment]
    program.skips.append(Skip("a", "b", "c"))
    program.runs.append(PassRun("a", 1, 0.0, 0.0))
    made = copy_program(program)
    assert (made.layers, made.prompts, made.savings, made.probes, made.values) == ([], {}, [], {}, None)
    assert (made.skips, made.runs, made.paths, made.constants) == (program.skips, program.runs, program.paths, {})
    assert made.shape_env is program.shape_env
    assert made.given == {"blocks.0": (made.placeholders[0], 2)}
    assert made.placeholders[0] is not x
    assert [node.meta["body"] for node in made.block_nodes] == ["block0"] * 3
    assert made.bodies["block0"].graph is not program.bodies["block0"].graph
    for mine, theirs in ((made.skips, program.skips), (made.runs, program.runs), (made.paths, program.paths)):
        mine.clear()
        assert len(theirs) > 0
    made.constants["new"] = made.bodies["new"] = None  # type: ignore[assignment]
    assert program.constants == {}
    assert list(program.bodies) == ["block0"]
    made.graph.output_node().args = (made.placeholders[0],)
    assert outer.graph.output_node().args == (program.block_nodes[-1],)


def test_only_later_nodes_read_the_replacement() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2)
    early = sketch(aten.exp.default, x)
    by = sketch(aten.sin.default, early)
    late = sketch(aten.cos.default, early)
    sketch.output(late, early)
    replace_later_uses(early, by)
    assert by.args == (early,)
    assert late.args == (by,)
    value = torch.rand(2)
    assert torch.equal(run(sketch.graph, value)[0], value.exp().sin().cos())
    assert torch.equal(run(sketch.graph, value)[1], value.exp().sin())


def test_what_nothing_reads_goes_but_inputs_and_modules_stay() -> None:
    sketch = Sketch()
    x, _ = sketch.input("x", 2), sketch.input("unread", 2)
    sketch(aten.exp.default, sketch(aten.sin.default, x))
    sketch.graph.get_attr("unread_parameter")
    sketch.graph.call_module("some_module", (x,))
    sketch.output(sketch(aten.cos.default, x))
    remove_dead(sketch.graph)
    left = [(node.op, node.target) for node in sketch.graph.nodes]
    assert left == [
        ("placeholder", "x"),
        ("placeholder", "unread"),
        ("call_module", "some_module"),
        ("call_function", aten.cos.default),
        ("output", "output"),
    ]
