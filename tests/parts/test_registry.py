"""Passes by name: whose name it is, what installed packages offer, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from sparsify import PolicyError
from sparsify.passes import Pass, Share, registry
from sparsify.passes.registry import pass_named, pass_names, register_own, register_pass

HERE = __name__


@dataclass(frozen=True)
class Offered(Pass):
    name: ClassVar[str] = "offered"

    def match(self, program: Any) -> list[Any]:
        return []

    def rewrite(self, program: Any, place: Any) -> None: ...


class Nameless(Offered):
    name = None  # type: ignore[assignment]


class NoPass:
    name = "no-pass"


def again() -> type[Offered]:
    """The same class, as a module that is loaded anew makes it."""
    twin = type("Offered", (Offered,), {"name": "offered", "__module__": HERE})
    twin.__qualname__ = Offered.__qualname__
    return twin


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_OWN", dict(registry._OWN))
    monkeypatch.setattr(registry, "_REGISTERED", {})
    yield
    monkeypatch.undo()
    registry._offered.cache_clear()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let installed packages offer (name, class) pairs; the list that is returned gets the groups that were asked for."""

    def install(*points: tuple[str, str]) -> list[str]:
        asked: list[str] = []

        def entry_points(group: str) -> list[EntryPoint]:
            asked.append(group)
            return [EntryPoint(name, f"{HERE}:{value}", group) for name, value in points]

        monkeypatch.setattr(registry, "entry_points", entry_points)
        registry._offered.cache_clear()
        return asked

    return install


def test_a_pass_that_is_registered_is_known_by_its_name() -> None:
    assert "offered" not in pass_names()
    assert register_pass(Offered) is Offered
    assert pass_named("offered") is Offered
    assert pass_names() == sorted({*registry._OWN, "offered"})


def test_the_passes_of_the_package_are_known() -> None:
    assert pass_named("share") is Share
    register_own(Offered)
    assert pass_named("offered") is Offered and registry._OWN["offered"] is Offered


def test_a_class_that_is_loaded_anew_takes_its_own_place() -> None:
    register_pass(Offered)
    twin = again()
    assert register_pass(twin) is twin
    assert pass_named("offered") is twin


def test_a_pass_of_the_package_is_registered_already() -> None:
    assert register_pass(Share) is Share
    assert registry._REGISTERED == {}


@pytest.mark.parametrize("register", [register_pass, register_own])
def test_a_name_that_is_taken_is_refused(register: Callable[[Any], Any]) -> None:
    register(Offered)
    with pytest.raises(PolicyError, match=r"the pass name 'offered' of .*:Other is taken by .*:Offered"):
        register_pass(type("Other", (Offered,), {"name": "offered"}))
    assert pass_named("offered") is Offered


@pytest.mark.parametrize("thing", [3, dict, NoPass, NoPass(), Nameless, Offered()])
def test_what_is_no_pass_is_refused(thing: Any) -> None:
    with pytest.raises(PolicyError, match=r"is no pass: it must be a subclass of sparsify.passes.Pass with a name"):
        register_pass(thing)


def test_an_unknown_name_lists_the_others(offer: Callable[..., list[str]]) -> None:
    offer(("offered", "Offered"))
    with pytest.raises(PolicyError, match=r"there is no pass 'other'; there are \[.*'offered'.*'share'"):
        pass_named("other")


def test_what_a_package_offers_is_found_and_read_once(offer: Callable[..., list[str]]) -> None:
    asked = offer(("offered", "Offered"), ("later", "Nameless"))
    assert {"offered", "later"} <= set(pass_names())
    assert pass_named("offered") is Offered and pass_named("offered") is Offered
    assert asked == ["sparsify.passes"]


def test_one_offer_that_is_listed_twice_is_one(offer: Callable[..., list[str]]) -> None:
    offer(("offered", "Offered"), ("offered", "Offered"))
    assert pass_named("offered") is Offered


def test_a_registered_pass_that_its_package_offers_too_is_one(offer: Callable[..., list[str]]) -> None:
    offer(("offered", "Offered"))
    register_pass(twin := again())
    assert pass_named("offered") is twin


@pytest.mark.parametrize(
    ("points", "registered", "message"),
    [
        (
            [("twice", "Offered"), ("twice", "Nameless")],
            None,
            r"'twice' is taken 2 times: by .*:Offered \(.*\) and by .*:Nameless",
        ),
        ([("share", "Offered")], None, r"'share' is taken 2 times: by .*share:Share and by .*:Offered \(an unknown package\)"),
        ([("offered", "Nameless")], Offered, r"'offered' is taken 2 times: by .*:Offered and by .*:Nameless"),
        ([("other", "Offered")], None, r"the pass 'other', .*:Offered of an unknown package, calls itself 'offered'"),
        ([("other", "NoPass")], None, r"of an unknown package, is no pass"),
        ([("other", "Missing")], None, r"'other', .*:Missing of an unknown package, cannot be loaded: AttributeError"),
    ],
)
def test_offers_that_do_not_fit_are_named(
    offer: Callable[..., list[str]], points: list[tuple[str, str]], registered: type[Pass] | None, message: str
) -> None:
    offer(*points)
    if registered is not None:
        register_pass(registered)
    with pytest.raises(PolicyError, match=message):
        pass_named(points[0][0])
