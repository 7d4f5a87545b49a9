"""Poolingformer: attention becomes the mean of the values, the same for every token (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..attention import Attention, refusal_to_mix, self_attentions, token_count
from ..program import Body, Program
from ..shapes import annotate, emit_size, shape_of
from .base import BlockRange, Pass, copy_body

aten = torch.ops.aten


@dataclass(frozen=True)
class PoolAttention(Pass):
    """Give every query of these blocks equal weight on all keys that its mask allows.

    Queries and keys are then unused and go away; output projection, gates, norms and MLP stay. Attention dropout, where
    the model has it, goes with the attention weights it acted on.
    """

    blocks: BlockRange
    name: ClassVar[str] = "pool-attention"

    def match(self, program: Program) -> Iterable[fx.Node]:
        return self.blocks.of(program)

    def check(self, program: Program, place: fx.Node) -> str | None:
        body = program.body_of(place)
        if reason := refusal_to_mix(body):
            return reason
        for attention in self_attentions(body):
            if shape_of(attention.query)[:-2] != shape_of(attention.value)[:-2]:
                return f"{attention.node.name} shares values between query heads, which pooling does not spread out yet"
        return None

    def rewrite(self, program: Program, place: fx.Node) -> None:
        body = program.body_of(place)
        name = f"{body.name}.pooling"
        if name not in program.bodies:
            program.bodies[name] = self._pooled(copy_body(body, name))
        place.meta["body"] = name
        self.mark(place, place)

    def describe(self, place: fx.Node) -> str:
        return str(place.target)

    def _pooled(self, body: Body) -> Body:
        for attention in self_attentions(body):
            with body.graph.inserting_before(attention.node):
                mean = self._mean_of_values(body.graph, attention)
                tokens = emit_size(body.graph, token_count(body))
                sizes = [-1] * (attention.node.meta["val"].ndim - 2) + [tokens, -1]
                spread = self._make(body.graph, aten.expand.default, (mean, sizes), attention.node)
            attention.node.replace_all_uses_with(spread)
        body.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        return body

    def _mean_of_values(self, graph: fx.Graph, attention: Attention) -> fx.Node:
        if attention.mask is None:
            return self._make(graph, aten.mean.dim, (attention.value, [-2], True), attention.node)
        mask = attention.mask
        if mask.meta["val"].dtype == torch.bool:
            shut_out = self._make(graph, aten.logical_not.default, (mask,), attention.node)
            zeros = self._make(graph, aten.zeros_like.default, (mask,), attention.node, dtype=attention.value.meta["val"].dtype)
            mask = self._make(graph, aten.masked_fill.Scalar, (zeros, shut_out, float("-inf")), attention.node)
        # Attention with all logits equal: softmax of the mask alone.
        weights = self._make(graph, aten.softmax.int, (mask, -1), attention.node)
        return self._make(graph, aten.matmul.default, (weights, attention.value), attention.node)

    def _make(self, graph: fx.Graph, target: object, args: tuple[object, ...], origin: fx.Node, **kwargs: object) -> fx.Node:
        return self.mark(annotate(graph.call_function(target, args, kwargs)), origin)  # type: ignore[arg-type]
