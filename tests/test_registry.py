"""Passes by name: registered, offered by installed packages, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sparsify import PolicyError
from sparsify.density import Density
from sparsify.passes import BlockRange, Pass, Pipeline, Share, pass_named, pass_names, register_pass, registry
from sparsify.program import Program


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)
    for name in [name for name in sys.modules if name.startswith("offered_")]:
        del sys.modules[name]


FIRST, CONSTANT = BlockRange(0, 0), Density.constant(grid=(4, 4))


@dataclass(frozen=True)
class Nothing(Pass):
    """Does nothing."""

    blocks: BlockRange = FIRST
    share: float = 0.5
    loud: bool = False
    schedule: Density = CONSTANT
    name: ClassVar[str] = "nothing"

    def match(self, program: Program) -> list[Any]:
        return []

    def rewrite(self, program: Program, place: Any) -> None: ...


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, source: str, dist: str = "offered") -> None:
    """An installed package that offers a pass, as pip leaves it."""
    info = folder / f"{dist}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sparsify.passes]\n{name} = {module}:Offered\n")
    (folder / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    registry._offered.cache_clear()


SOURCE = """
from dataclasses import dataclass
from typing import ClassVar
from sparsify.passes import Pass

@dataclass(frozen=True)
class Offered(Pass):
    depth: int = 3
    name: ClassVar[str] = "{name}"

    def match(self, program):
        return []

    def rewrite(self, program, place):
        pass
"""


def test_a_registered_pass_is_read_from_text_and_printed() -> None:
    assert register_pass(Nothing) is Nothing
    text = "nothing{blocks=1-2 share=0.25 loud=True schedule=constant(8x8)}"
    pipeline = Pipeline.parse(text)
    assert pipeline.passes == (Nothing(BlockRange(1, 2), 0.25, True, Density.constant(grid=(8, 8))),)
    assert str(pipeline) == text
    assert pass_named("nothing") is Nothing and "nothing" in pass_names()


def test_registering_again_is_allowed_and_taking_a_name_is_not() -> None:
    register_pass(Nothing)
    register_pass(Nothing)
    register_pass(Share)
    other = type("Other", (Nothing,), {"name": "nothing"})
    with pytest.raises(PolicyError, match=r"the pass name 'nothing' of .*:Other is taken by .*:Nothing"):
        register_pass(other)
    with pytest.raises(PolicyError, match=r"the pass name 'share' of .* is taken by sparsify.passes.share:Share"):
        register_pass(type("Mine", (Nothing,), {"name": "share"}))
    with pytest.raises(PolicyError, match="is no pass"):
        register_pass(dict)  # type: ignore[type-var]


def test_an_installed_package_offers_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "offered-pass", "offered_module", SOURCE.format(name="offered-pass"))
    assert "offered-pass" in pass_names()
    assert "offered_module" not in sys.modules, "it is loaded when its name is asked for"
    (found,) = Pipeline.parse("offered-pass{depth=5}").passes
    assert type(found).__name__ == "Offered" and found.depth == 5  # type: ignore[attr-defined]


def test_a_package_that_cannot_be_loaded_is_named_when_its_pass_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, "broken-pass", "offered_broken", "import no_such_module_at_all")
    assert Pipeline.parse("cleanup").passes and "broken-pass" in pass_names()
    message = (
        "the pass 'broken-pass', offered_broken:Offered of offered, cannot be loaded: ModuleNotFoundError: .*no_such_module"
    )
    with pytest.raises(PolicyError, match=message):
        Pipeline.parse("broken-pass")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("one-name", SOURCE.format(name="another-name"), "calls itself 'another-name'; its entry point must have that name"),
        ("no-pass", "Offered = 3", "is no pass"),
        (
            "share",
            SOURCE.format(name="share"),
            "'share' is taken 2 times: by sparsify.passes.share:Share and by offered_odd:Offered",
        ),
    ],
)
def test_entry_points_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, message: str
) -> None:
    offer(tmp_path, monkeypatch, name, "offered_odd", source)
    with pytest.raises(PolicyError, match=message):
        pass_named(name)


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, "twice", "offered_a", SOURCE.format(name="twice"), "first")
    offer(tmp_path, monkeypatch, "twice", "offered_b", SOURCE.format(name="twice"), "second")
    with pytest.raises(PolicyError, match=r"'twice' is taken 2 times: by offered_.:Offered \(\w+\) and by offered_.:Offered"):
        pass_named("twice")


def test_an_option_that_has_no_text() -> None:
    @dataclass(frozen=True)
    class Odd(Nothing):
        sizes: dict[str, int] | None = None
        name: ClassVar[str] = "odd"

    register_pass(Odd)
    with pytest.raises(PolicyError, match=r"pass odd: 'sizes=3' cannot be written as text"):
        Pipeline.parse("odd{sizes=3}")
