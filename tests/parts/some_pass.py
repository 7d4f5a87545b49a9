"""A pass that does nothing to graphs, and a trunk of three blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sparsify.errors import RewriteError
from sparsify.passes import Pass
from sparsify.program import Program

from .sketch import Sketch, aten


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
