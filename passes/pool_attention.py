"""Poolingformer: attention becomes the mean of the values, the same for every token (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..attention import Attention, contractions, refusal_to_mix, self_attentions
from ..program import Body, Program
from ..shapes import emit_size, shape_of
from .base import BlockRange, Pass, copy_body, remove_dead

aten = torch.ops.aten


@dataclass(frozen=True)
class PoolAttention(Pass):
    """Give every query of these blocks equal weight on all keys that its mask allows.

    Queries and keys are then unused and go away; output projection, gates, norms and MLP stay. Attention dropout, where
    the model has it, goes with the attention weights it acted on. In linear attention, which has no weights, every key
    becomes the mean of the keys, so that all queries weigh all values alike.
    """

    blocks: BlockRange
    name: ClassVar[str] = "pool-attention"

    def match(self, program: Program) -> Iterable[fx.Node]:
        return self.blocks.of(program)

    def check(self, program: Program, place: fx.Node) -> str | None:
        body = program.body_of(place)
        if reason := refusal_to_mix(body):
            return reason
        if not self_attentions(body) and not _linear_attentions(body):
            return "no attention over the trunk's tokens was recognised in the block"
        return None

    def rewrite(self, program: Program, place: fx.Node) -> None:
        body = program.body_of(place)
        name = f"{body.name}.pooling"
        if name not in program.bodies:
            program.bodies[name] = self._pooled(copy_body(body, name))
        place.meta["body"] = name
        self.mark(place, place)

    def _pooled(self, body: Body) -> Body:
        for attention in self_attentions(body):
            with body.graph.inserting_before(attention.node):
                mean = self._mean_of_values(body.graph, attention)
                repeats = int(shape_of(attention.query)[-3]) // int(shape_of(mean)[-3]) if attention.shares_values else 1
                if repeats > 1:
                    mean = self.make(body.graph, aten.repeat_interleave.self_int, (mean, repeats, -3), attention.node)
                tokens = emit_size(body.graph, shape_of(attention.query)[-2])
                sizes = [-1] * (attention.node.meta["val"].ndim - 2) + [tokens, -1]
                spread = self.make(body.graph, aten.expand.default, (mean, sizes), attention.node)
            attention.node.replace_all_uses_with(spread)
        for node, position in _linear_attentions(body):
            keys = node.args[position]
            assert isinstance(keys, fx.Node)  # noqa: S101  # matched as such
            with body.graph.inserting_before(node):
                axis = [len(shape_of(keys)) - 1 if position == 0 else len(shape_of(keys)) - 2]
                mean = self.make(body.graph, aten.mean.dim, (keys, axis, True), node)
                node.update_arg(position, self.make(body.graph, aten.expand_as.default, (mean, keys), node))
        remove_dead(body.graph)
        return body

    def _mean_of_values(self, graph: fx.Graph, attention: Attention) -> fx.Node:
        if attention.mask is None:
            return self.make(graph, aten.mean.dim, (attention.value, [-2], True), attention.node)
        mask = attention.mask
        if mask.meta["val"].dtype == torch.bool:
            shut_out = self.make(graph, aten.logical_not.default, (mask,), attention.node)
            zeros = self.make(graph, aten.zeros_like.default, (mask,), attention.node, dtype=attention.value.meta["val"].dtype)
            mask = self.make(graph, aten.masked_fill.Scalar, (zeros, shut_out, float("-inf")), attention.node)
        # Attention with all logits equal: softmax of the mask alone; where nothing is allowed 0, as attention gives there.
        weights = self.make(graph, aten._safe_softmax.default, (mask, -1), attention.node)
        value = attention.value
        if attention.shares_values and shape_of(weights)[-3:-2] not in ((), (1,)):  # a row of weights for each head
            repeats = int(shape_of(attention.query)[-3]) // int(shape_of(value)[-3])
            value = self.make(graph, aten.repeat_interleave.self_int, (value, repeats, -3), attention.node)
        return self.make(graph, aten.matmul.default, (weights, value), attention.node)


def _linear_attentions(body: Body) -> list[tuple[fx.Node, int]]:
    """Products that sum keys and values over the tokens, with the position of the operand that holds the keys.

    It is the operand whose channels the next product sums with the queries.
    """
    found = []
    for node in contractions(body):
        if node.target not in _MATMUL:
            continue
        following = node
        while len(following.users) == 1:
            (user,) = following.users
            if user.target in _MATMUL:
                found.append((node, 1 if user.args[0] is following else 0))
                break
            if user.target not in _PASSES_THROUGH:
                break
            following = user
    return found


_MATMUL = (aten.matmul.default, aten.bmm.default)
_PASSES_THROUGH = (aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.contiguous.default)
