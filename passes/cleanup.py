"""Remove what does nothing: dead nodes, unused bodies, and operators that return their input unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..program import DENSITY, GRID, Program
from ..shapes import shape_of
from .base import Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class Cleanup(Pass):
    """Exact to the last bit: only operators that return their input as it is are taken out.

    Casts stay even where they change nothing now: under autocast their input comes in another dtype.
    """

    name: ClassVar[str] = "cleanup"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[fx.Graph]:
        return program.graphs.values()

    def rewrite(self, program: Program, place: fx.Graph) -> None:
        used = {node.meta["body"] for node in program.all_block_nodes}
        program.bodies = {name: body for name, body in program.bodies.items() if name in used}
        for node in list(place.nodes):
            does_nothing = IDENTITIES.get(node.target) if node.op == "call_function" and not node.kwargs else None
            if does_nothing is not None and does_nothing(node):
                node.replace_all_uses_with(node.args[0])
        place.eliminate_dead_code(
            lambda node: node.op in ("placeholder", "output") or "body" in node.meta or node.target in (DENSITY, GRID)
        )


def same_type(node: fx.Node) -> bool:
    """Whether a result has dtype and device of the first operand."""
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return bool(before.dtype == after.dtype and before.device == after.device)


def no_dropout(node: fx.Node) -> bool:
    """Whether a dropout drops nothing."""
    return bool(node.args[1] == 0 or node.args[2] is False)


def _whole_slice(node: fx.Node) -> bool:
    given = list(node.args[2:])
    start, end, step = given + [None, None, 1][len(given) :]
    return bool(start in (0, None) and end in (None, sys.maxsize) and step == 1)


def _by_one(node: fx.Node) -> bool:
    operand = node.args[1]
    return isinstance(operand, (int, float)) and operand == 1 and same_type(node)


def _same_shape(node: fx.Node) -> bool:
    return bool(shape_of(node) == shape_of(node.args[0]))  # type: ignore[arg-type]


IDENTITIES: dict[object, Callable[[fx.Node], bool]] = {
    aten.dropout.default: no_dropout,
    aten.slice.Tensor: _whole_slice,
    aten.mul.Tensor: _by_one,
    aten.div.Tensor: _by_one,
    aten.expand.default: _same_shape,
    aten.alias.default: lambda node: True,
}
