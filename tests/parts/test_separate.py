"""Why a block cannot take other tokens: asked once for each body, in words."""

from __future__ import annotations

from typing import Any

import pytest

from sparsify import Density
from sparsify.errors import RewriteError
from sparsify.passes import separate
from sparsify.passes.separate import refusal_to_separate, separated
from sparsify.program import Body, Program

from .blocks import block, counted, cumulated, squared
from .dense import dense_program

pytestmark = pytest.mark.usefixtures("shared_sizes")

POOLED = Density.constant(grid=(2, 3))
MIXED = "something besides attention mixes tokens"


def program_of(body: Body, density: Density = POOLED) -> Program:
    return dense_program(body, schedule=density)


def refusal(body: Body, crosses: bool = True, density: Density = POOLED) -> str | None:
    program = program_of(body, density)
    return refusal_to_separate(program, program.block_nodes[0], crosses, "some-pass")


def test_a_body_is_split_once() -> None:
    program = program_of(body := block())
    made = separated(program, body, "some-pass")
    assert made.name == "block0.split" and program.bodies == {"block0": body, "block0.split": made}
    assert separated(program, body, "another") is made
    assert {node.meta["provenance"].pass_name for node in made.graph.nodes if "provenance" in node.meta} == {"some-pass"}


@pytest.mark.parametrize("crosses", [True, False])
@pytest.mark.parametrize("attends", [True, False])
def test_blocks_of_attention_and_of_nothing_else_take_other_tokens(crosses: bool, attends: bool) -> None:
    assert refusal(block(attends=attends), crosses) is None


@pytest.mark.parametrize("crosses", [True, False])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda: block(moves=False), "the block is tied to 15 tokens"),
        (lambda: block(softmax=True, is_causal=True), "is causal"),
        (lambda: block(squared), "has a row and a column per token"),
        (lambda: block(counted), "has one entry per token but depends on their number alone"),
    ],
    ids=["fixed", "causal", "a table", "positions"],
)
def test_what_is_seen_in_the_graph_is_refused(body: Any, reason: str, crosses: bool) -> None:
    found = refusal(body(), crosses)
    assert found is not None and reason in found


def test_what_is_not_seen_in_the_graph_shows_when_it_is_tried() -> None:
    assert MIXED in str(refusal(block(cumulated)))
    assert MIXED in str(refusal(block(cumulated, attends=False), crosses=False)), "tried too, since nothing crosses"


def test_a_sparse_block_that_attends_is_not_tried() -> None:
    """It sees all the tokens there are, and its neighbours that cross are of the same kind."""
    assert refusal(block(cumulated), crosses=False) is None


@pytest.mark.parametrize(
    ("density", "refused"),
    [(POOLED, True), (Density.constant(grid=(2, 4)), False), (Density.table({0: (2, 4), 500: (2, 3)}), True)],
)
def test_sizes_that_its_code_does_not_take_are_refused(density: Density, refused: bool) -> None:
    body = block()
    (tokens,) = body.moving
    body.conditions.append(tokens > 6)
    found = refusal(body, density=density)
    assert (found is not None) == refused
    assert found is None or (f"it was captured where {tokens > 6}" in found and "6" in found)


def test_the_answer_is_kept_for_each_use_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense_program(block(), blocks=2, schedule=POOLED)
    asked: list[str] = []
    monkeypatch.setattr(separate, "refusal_to_mix", lambda body: asked.append(body.name) or f"reason {len(asked)}")
    answers = [refusal_to_separate(program, node, crosses, "p") for crosses in (True, False) for node in program.block_nodes]
    assert answers == ["reason 1", "reason 1", "reason 2", "reason 2"]
    assert program.probes == {"block0.split": "reason 1", "block0": "reason 2"}


def test_without_attention_both_uses_are_one() -> None:
    program = dense_program(block(attends=False), schedule=POOLED)
    for crosses in (True, False):
        assert refusal_to_separate(program, program.block_nodes[0], crosses, "p") is None
    assert program.probes == {"block0": None} and set(program.bodies) == {"block0"}


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, IndexError, RewriteError])
def test_a_block_that_cannot_be_split_is_refused(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*values: Any) -> Any:
        raise error("one line\nand another")

    monkeypatch.setattr(separate, "separated", fails)
    assert refusal(block()) == "queries and keys cannot be told apart: one line"


def test_other_errors_are_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separate, "separated", lambda *values: {}["missing"])
    with pytest.raises(KeyError):
        refusal(block())


def test_it_is_tried_with_the_split_body() -> None:
    program = program_of(block())
    assert refusal_to_separate(program, program.block_nodes[0], True, "some-pass") is None
    assert set(program.bodies) == {"block0", "block0.split"}
