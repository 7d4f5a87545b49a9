"""What a pass is, on graphs of a few nodes: places, refusals, new nodes and parameters, copies of graphs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import fx, nn

from sparsify import PolicyError
from sparsify.errors import RewriteError
from sparsify.passes import BlockRange, Pass, copy_body, remove_dead, replace_later_uses
from sparsify.passes.base import Provenance, copy_program
from sparsify.program import PassRun, Program, Skip

from .sketch import Sketch, aten, run, targets


@dataclass(frozen=True)
class Some(Pass):
    """Rewrites numbers: odd ones are refused by the check, those from 10 on while they are rewritten."""

    places: tuple[Any, ...] = ()
    nothing: str | None = None
    name: ClassVar[str] = "some-pass2"

    def match(self, program: Program) -> Any:
        return iter(self.places)

    def check(self, program: Program, place: Any) -> str | None:
        return "it is odd" if place % 2 else None

    def rewrite(self, program: Program, place: Any) -> None:
        if place >= 10:
            raise RewriteError("it is too large")

    def explain(self, program: Program) -> str | None:
        return self.nothing


def trunk() -> tuple[Sketch, Program]:
    """Three blocks."""
    body = Sketch()
    tokens = body.size(7)
    body.output(body(aten.exp.default, body.input("x", 2, tokens, 4)))
    outer = Sketch(body)
    x = outer.input("x", 2, tokens, 4)
    for index in range(3):
        x = outer.block(f"blocks.{index}", "block0", x)
    outer.output(x)
    return outer, outer.program(body.body(moving=[tokens]))


# --- ranges of blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"), [("3", 3, 3), ("0-1", 0, 1), ("2-2", 2, 2), ("0", 0, 0), ("10-12", 10, 12), ("9-10", 9, 10)]
)
def test_a_range_is_read(text: str, first: int, last: int) -> None:
    assert BlockRange.parse(text) == (first, last)


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "2-1", "10-9", "0-1-2", " 1", "1.5"])
def test_text_that_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="is not a block or a range"):
        BlockRange.parse(text)


@pytest.mark.parametrize(("first", "last", "text"), [(3, 3, "3"), (0, 1, "0-1")])
def test_a_range_is_written(first: int, last: int, text: str) -> None:
    assert str(BlockRange(first, last)) == text


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (1, 2), (0, 2), (2, 2)])
def test_a_range_has_both_its_ends(first: int, last: int) -> None:
    _, program = trunk()
    assert [node.target for node in BlockRange(first, last).of(program)] == [f"blocks.{i}" for i in range(first, last + 1)]


def test_a_range_ends_with_the_trunk() -> None:
    with pytest.raises(PolicyError, match="blocks=2-3 but the trunk has blocks 0-2"):
        BlockRange(2, 3).of(trunk()[1])


# --- names and defaults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "pool-attention", "pass2", "a-2"])
def test_kebab_case_is_a_name(name: str) -> None:
    assert type("Named", (Pass,), {"name": name}).name == name


@pytest.mark.parametrize("name", ["", "Pool", "2a", "a--b", "a-", "-a", "a_b", "a b", "grid", "prompt", "restore"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PolicyError, match=r"Wrong\.name is"):
        type("Wrong", (Pass,), {"name": name})


def test_a_class_without_a_name_is_left_to_its_subclasses() -> None:
    class Unnamed(Pass):
        """Has none of its own."""

    class Mine(Unnamed):
        """Has one."""

        name = "mine"

    assert Mine.name == "mine"


def test_other_bases_hear_of_subclasses_too() -> None:
    heard = []

    class Listening:
        def __init_subclass__(cls) -> None:
            heard.append(cls.__name__)

    type("Heard", (Pass, Listening), {"name": "heard"})
    assert heard == ["Heard"]


def test_by_default_a_pass_makes_another_model_whatever_the_resolution() -> None:
    assert (Some.prepares, Some.per_resolution) == (False, False)


def test_a_pass_is_abstract_and_frozen() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Pass()  # type: ignore[abstract]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Some().nothing = "x"  # type: ignore[misc]
    assert Some((1,)) == Some((1,)) != Some((2,))


def test_nothing_is_checked_and_nothing_explained_by_default() -> None:
    outer, program = trunk()
    assert Pass.check(Some(), program, outer) is None
    assert Pass.explain(Some(), program) is None


# --- a run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewrite", "rewritten", "skips"),
    [
        (Some((2, 4)), 2, []),
        (Some((2, 3, 4, 12)), 2, [("3", "it is odd"), ("12", "it is too large")]),
        (Some((1,)), 0, [("1", "it is odd")]),
        (Some(), 0, []),
        (Some((), "almost"), 0, [("the whole model", "almost")]),
        (Some((2,), "almost"), 1, []),
    ],
)
def test_a_run_counts_its_places_and_notes_refusals(rewrite: Pass, rewritten: int, skips: list[tuple[str, str]]) -> None:
    _, program = trunk()
    assert rewrite.run(program) == rewritten
    assert program.skips == [Skip("some-pass2", where, why) for where, why in skips]


def test_places_are_described_by_paths_of_blocks_and_names_of_nodes() -> None:
    _, program = trunk()
    first, second, third = program.block_nodes
    (x,) = program.placeholders
    describe = Some().describe
    assert describe(x) == "x"
    assert describe(first) == describe([first]) == "blocks.0"
    assert describe([first, second, third]) == describe((first, second, third)) == "blocks.0 .. blocks.2"
    assert describe((x, first)) == "x .. blocks.0"
    assert describe("here") == "here"
    assert describe([]) == "[]"
    assert describe((first, 3)) == str((first, 3))
    assert describe((3, 4)) == "(3, 4)"


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
