"""Passes as text: options of every type, and each way in which a text can be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sparsify import PolicyError
from sparsify.passes import BlockRange, Cleanup, Pass, PoolAttention, Share, SparseDense
from sparsify.passes.options import pass_text, passes_from_text, read_pass


class Nothing(Pass):
    def match(self, program: Any) -> list[Any]:
        return []

    def rewrite(self, program: Any, place: Any) -> None: ...


@dataclass(frozen=True)
class Toy(Nothing):
    count: int = 1
    share: float = 0.5
    word: str = "a"
    loud: bool = False
    blocks: BlockRange | None = None
    name: ClassVar[str] = "toy"


@dataclass(frozen=True)
class Ranged(Nothing):
    blocks: BlockRange
    name: ClassVar[str] = "ranged"


@pytest.mark.parametrize(
    ("rewrite", "text"),
    [
        (Share(), "share"),
        (PoolAttention(BlockRange(0, 1)), "pool-attention{blocks=0-1}"),
        (SparseDense(BlockRange(2, 5), 1, 2, 1), "sparse-dense{blocks=2-5 generate=1 sparse=2 recover=1}"),
    ],
)
def test_a_pass_is_written_with_its_options_and_read_back(rewrite: Pass, text: str) -> None:
    assert pass_text(rewrite) == text
    assert passes_from_text(text) == (rewrite,)
    assert read_pass(type(rewrite), text) == rewrite


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", ()),
        ("share", (Share(),)),
        ("share{}", (Share(),)),
        ("share,cleanup", (Share(), Cleanup())),
        ("share,pool-attention{blocks=3},cleanup", (Share(), PoolAttention(BlockRange(3, 3)), Cleanup())),
    ],
)
def test_a_list_of_passes_keeps_its_order(text: str, passes: tuple[Pass, ...]) -> None:
    assert passes_from_text(text) == passes


@pytest.mark.parametrize(
    "text", ["share,", ",share", "share,,share", "share cleanup", "share{", "share}", "share{}x", "share{a}{b}"]
)
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="is not like 'pool-attention"):
        passes_from_text(text)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ("", Toy()),
        ("count=3", Toy(count=3)),
        ("count=-3 share=2", Toy(count=-3, share=2.0)),
        ("word=b=c", Toy(word="b=c")),
        ("word=", Toy(word="")),
        ("loud=True", Toy(loud=True)),
        ("loud=true", Toy(loud=True)),
        ("loud=FALSE", Toy(loud=False)),
        ("  share=0.25   loud=True ", Toy(share=0.25, loud=True)),
    ],
)
def test_options_are_read_by_their_types(options: str, want: Toy) -> None:
    assert read_pass(Toy, f"toy{{{options}}}") == want
    assert type(read_pass(Toy, f"toy{{{options}}}").share) is float  # type: ignore[attr-defined]


def test_without_options_there_are_the_defaults() -> None:
    assert read_pass(Toy, "toy") == Toy()
    assert read_pass(Ranged, "ranged{blocks=1-2}") == Ranged(BlockRange(1, 2))


@pytest.mark.parametrize("text", ["toys", "share", "to", "toy,", "toy,toy", "toy{count=1}{}", "toy{", "", "toy count=1"])
def test_text_of_another_pass_or_form_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"is not like 'toy' or 'toy\{option=value\}'"):
        read_pass(Toy, text)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Toy, "counts=3", "toy has no option 'counts=3'; its options are .*'blocks', 'count', 'loud', 'share', 'word'"),
        (Toy, "count", "has no option 'count'"),
        (Share, "count=3", "share has no option 'count=3'; its options are none"),
        (Toy, "count=1 count=2", "toy has the option 'count' twice"),
        (Toy, "count=x", "'count=x' is not a value of type int"),
        (Toy, "share=x", "'share=x' is not a value of type float"),
        (Toy, "loud=yes", "'loud=yes' is not a value of type bool"),
        (Toy, "blocks=1", r"'blocks=1' cannot be written as text: .*has no parse\(text\)"),
        (Ranged, "blocks=2-1", "blocks=2-1 is not a block or a range"),
        (Ranged, "", "ranged: .*missing.*'blocks'; its options are .'blocks'"),
    ],
)
def test_an_option_that_is_wrong_is_named(cls: type[Pass], options: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        read_pass(cls, f"{cls.name}{{{options}}}")


def test_usual_types_are_known_where_the_names_of_a_class_are_gone() -> None:
    class Local: ...

    @dataclass(frozen=True)
    class Hidden(Nothing):
        count: int = 1
        loud: bool = False
        local: Local | None = None
        name: ClassVar[str] = "hidden"

    assert read_pass(Hidden, "hidden{count=4 loud=true}") == Hidden(4, True)
    with pytest.raises(PolicyError, match=r"'local=1' cannot be written as text: Local \| None has no parse"):
        read_pass(Hidden, "hidden{local=1}")
