"""A mean over tokens moves before the linear maps around it: poolingformer then works on one vector per image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..attention import follows_tokens
from ..program import Body, Program
from ..shapes import emit_size, shape_of
from .axes import LINEAR, axis_before, axis_behind, broadcasts, resized
from .base import Pass, remove_dead

aten = torch.ops.aten


@dataclass(frozen=True)
class Averaged:
    """A mean over an axis of tokens, and the node that gives every token a copy of it."""

    body: Body
    mean: fx.Node
    axis: int
    copies: fx.Node


@dataclass(frozen=True)
class MeanBeforeLinear(Pass):
    """Exact to rounding: the mean of a linear map is the map of the mean, and maps of copies are copies of the map.

    Of a poolingformer block (paper, section 3.1) there remain the mean of the normed tokens, modulation, the V rows and the
    output projection of one vector per image, and its addition to every token.
    """

    name: ClassVar[str] = "mean-before-linear"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[Averaged]:
        for body in program.bodies.values():
            for mean in body.graph.find_nodes(op="call_function", target=aten.mean.dim):
                if (found := _averaged(body, mean)) is not None and _passes_a_linear_map(found):
                    yield found

    def rewrite(self, program: Program, place: Averaged) -> None:
        graph, mean = place.body.graph, place.mean
        source: Any = mean.args[0]
        with graph.inserting_before(mean):
            early = self._mean_of(graph, source, place.axis, mean)
        mean.replace_all_uses_with(early)
        self._lift(graph, place.copies, early, place.axis)
        remove_dead(graph)

    def describe(self, place: Averaged) -> str:
        return f"{place.mean.name} of {place.body.name}"

    def _mean_of(self, graph: fx.Graph, node: fx.Node, axis: int, mean: fx.Node) -> fx.Node:
        """The mean of ``node`` over ``axis``, taken as early as it can be; the axis stays, with size 1."""
        before = axis_before(node, axis)
        if before is None:
            return self.make(graph, aten.mean.dim, (node, [axis], True), mean)
        operand, position = before
        early = self._mean_of(graph, operand, position, mean)
        return self._again(graph, node, axis, {operand: early})

    def _lift(self, graph: fx.Graph, copies: fx.Node, one: fx.Node, axis: int) -> None:
        """Let everything that treats all copies alike work on the one that they are of."""
        for user in list(copies.users):
            with graph.inserting_before(user):
                if (behind := axis_behind(user, copies, axis)) is not None:
                    self._lift(graph, user, self._again(graph, user, behind, {copies: one}), behind)
                elif broadcasts(user, copies, axis):
                    user.replace_input_with(copies, one)
                elif copies.target is not aten.expand.default:
                    user.replace_input_with(copies, self._spread(graph, one, axis, copies))

    def _spread(self, graph: fx.Graph, one: fx.Node, axis: int, copies: fx.Node) -> fx.Node:
        sizes: list[object] = [-1] * len(shape_of(copies))
        sizes[axis] = emit_size(graph, shape_of(copies)[axis])
        return self.make(graph, aten.expand.default, (one, sizes), copies)

    def _again(self, graph: fx.Graph, node: fx.Node, axis: int, given: dict[fx.Node, fx.Node]) -> fx.Node:
        args: Any = resized(node, axis, 1)
        args, kwargs = fx.node.map_arg((args, node.kwargs), lambda source: given.get(source, source))
        return self.make(graph, node.target, args, node, **kwargs)


def _averaged(body: Body, mean: fx.Node) -> Averaged | None:
    """What ``mean`` is the middle of: a mean over the tokens alone whose one reader copies it to all of them."""
    args: Any = mean.args
    source = args[0]
    axes = [axis % len(shape_of(source)) for axis in args[1]]
    if len(args) < 3 or not args[2] or mean.kwargs or len(axes) != 1 or len(mean.users) != 1:
        return None
    (copies,) = mean.users
    if copies.target is not aten.expand.default or not follows_tokens(body, shape_of(source)[axes[0]]):
        return None
    return Averaged(body, mean, axes[0], copies)


def _passes_a_linear_map(place: Averaged) -> bool:
    node: Any = place.mean.args[0]
    axis = place.axis
    while (before := axis_before(node, axis)) is not None:
        if node.target in LINEAR:
            return True
        node, axis = before
    nodes = [(place.copies, place.axis)]
    while nodes:
        copies, axis = nodes.pop()
        for user in copies.users:
            if (behind := axis_behind(user, copies, axis)) is not None:
                if user.target in LINEAR:
                    return True
                nodes.append((user, behind))
    return False
