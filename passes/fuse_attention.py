"""Recognise attention written out as softmax(Q K^T) V and name it ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..attention import SDPA
from ..program import Body, Program
from ..shapes import shape_of
from .base import Pass, remove_dead

aten = torch.ops.aten

_MATMUL = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_SCALES = (aten.mul.Tensor, aten.div.Tensor)
_PASSES_THROUGH = (aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.contiguous.default)


@dataclass(frozen=True)
class Written:
    """Hand-written attention: its parts, with the scale and the mask that were applied to the logits."""

    body: Body
    query: fx.Node
    key_transposed: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float
    dropout: float
    output: fx.Node


@dataclass(frozen=True)
class FuseAttention(Pass):
    """One node for attention, so that later passes and targets see a single form of it.

    Scales by a number, an additive mask, dropout of the weights and changes of dtype around the softmax are
    recognised. Everything else, such as a mask that is filled in, stays as it is and later passes say what they met.
    """

    name: ClassVar[str] = "fuse-attention"
    prepares: ClassVar[bool] = True

    def match(self, program: Program) -> Iterable[Written]:
        for body in program.bodies.values():
            for node in body.graph.nodes:
                if node.target in _SOFTMAX and (found := _written_around(body, node)) is not None:
                    yield found

    def rewrite(self, program: Program, place: Written) -> None:
        graph = place.body.graph
        with graph.inserting_before(place.output):
            key = self.make(graph, aten.transpose.int, (place.key_transposed, -2, -1), place.output)
            operands = (place.query, key, place.value, place.mask, place.dropout)
            fused = self.make(graph, SDPA, operands, place.output, scale=place.scale)
        place.output.replace_all_uses_with(fused)
        remove_dead(graph)

    def describe(self, place: Written) -> str:
        return f"{place.output.name} of {place.body.name}"


def _written_around(body: Body, softmax: fx.Node) -> Written | None:
    """The attention that ``softmax`` is the middle of, or None."""
    logits, axis = softmax.args[0], softmax.args[1]
    if not isinstance(logits, fx.Node) or axis not in (-1, len(shape_of(softmax)) - 1):
        return None
    below = _below(logits)
    above = _above(softmax)
    if below is None or above is None:
        return None
    product, scale, mask = below
    output, dropout = above
    query, key_transposed = product.args[-2:]
    value = output.args[1]
    parts = (query, key_transposed, value)
    if not all(isinstance(part, fx.Node) for part in parts) or shape_of(query)[:-2] != shape_of(value)[:-2]:  # type: ignore[arg-type]
        return None
    return Written(body, *parts, mask, scale, dropout, output)  # type: ignore[arg-type]


def _below(node: fx.Node) -> tuple[fx.Node, float, fx.Node | None] | None:
    """From the logits down to the product of queries and keys, collecting scale and mask on the way."""
    scale, mask = 1.0, None
    while node.target not in _MATMUL:
        if node.target == aten.baddbmm.default:
            return _of_baddbmm(node, scale, mask)
        if len(node.users) > 1 or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        operand = node.args[1] if len(node.args) > 1 else None
        if node.target in _SCALES and isinstance(operand, (int, float)) and not node.kwargs:
            scale = scale * operand if node.target == aten.mul.Tensor else scale / operand
        elif node.target == aten.add.Tensor and isinstance(operand, fx.Node) and not node.kwargs:
            # A scale met on the way to the mask, that is applied after it, would scale the mask as well.
            if mask is not None or scale != 1.0 or shape_of(node.args[0]) != shape_of(node):
                return None
            if not operand.meta["val"].is_floating_point():
                return None
            mask = operand
        elif node.target not in _PASSES_THROUGH:
            return None
        node = node.args[0]
    return (node, scale, mask) if len(node.users) == 1 else None


def _of_baddbmm(node: fx.Node, scale: float, mask: fx.Node | None) -> tuple[fx.Node, float, fx.Node | None] | None:
    """``beta * bias + alpha * Q K^T``: a scale and a mask in one."""
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    if len(node.users) > 1 or not isinstance(alpha, (int, float)):
        return None
    if beta == 0:
        return node, scale * alpha, mask
    bias = node.args[0]
    return (node, float(alpha), bias) if beta == 1 and mask is None and scale == 1.0 else None  # type: ignore[return-value]


def _above(softmax: fx.Node) -> tuple[fx.Node, float] | None:
    """From the weights up to their product with the values, collecting dropout on the way."""
    node, dropout = softmax, 0.0
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in _MATMUL and user.args[0] is node:
            return user, dropout
        if user.target == aten.dropout.default:
            dropout = float(user.args[1]) if user.args[2] else 0.0  # type: ignore[arg-type]
        elif user.target not in _PASSES_THROUGH:
            return None
        node = user
    return None
