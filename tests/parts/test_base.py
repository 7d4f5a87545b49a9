"""What a pass is: ranges of blocks, names and defaults, places and refusals."""

from __future__ import annotations

import dataclasses

import pytest

from sparsify import PolicyError
from sparsify.passes import BlockRange, Pass
from sparsify.program import Skip

from .some_pass import Some, trunk

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
