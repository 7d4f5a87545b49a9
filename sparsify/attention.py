"""What mixes tokens in a block: attention over the trunk's tokens, and anything else that sums over them."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import fx

from .program import Body
from .shapes import Size, shape_of

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Attention:
    """One ``scaled_dot_product_attention`` node with its operands by name."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None

    @classmethod
    def of(cls, node: fx.Node) -> Attention:
        """Read the operands off the node."""
        operands = dict(zip(("query", "key", "value", "attn_mask"), node.args, strict=False)) | node.kwargs
        return cls(node, operands["query"], operands["key"], operands["value"], operands.get("attn_mask"))  # type: ignore[arg-type]

    @property
    def is_causal(self) -> bool:
        """Whether each token may only look back; no bidirectional denoiser does."""
        return bool(self.node.kwargs.get("is_causal", False) or (len(self.node.args) > 5 and self.node.args[5]))


def dependents(graph: fx.Graph, start: fx.Node) -> set[fx.Node]:
    """``start`` and every node computed from it."""
    found = {start}
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def token_count(body: Body) -> Size:
    """The size of the token axis of a block's tokens."""
    return shape_of(body.token_node)[1]


def token_aligned_inputs(body: Body) -> list[fx.Node]:
    """Inputs besides the tokens that have an axis of the token count: they would have to be pooled along."""
    count = token_count(body)
    moving = {body.tokens, body.keys}
    return [node for index, node in enumerate(body.placeholders) if index not in moving and count in shape_of(node)]


def self_attentions(body: Body) -> list[Attention]:
    """Attention whose keys come from the block's tokens, in order of execution."""
    moving = dependents(body.graph, body.token_node)
    nodes = body.graph.find_nodes(op="call_function", target=SDPA)
    return [attention for attention in map(Attention.of, nodes) if attention.key in moving]


def refusal_to_mix(body: Body) -> str | None:
    """Why the attention of this block cannot be rewritten, or None."""
    count = token_count(body)
    if isinstance(count, int):
        return f"the block is tied to {count} tokens"
    attentions = self_attentions(body)
    if not attentions:
        return "no attention over the trunk's tokens was recognised in the block"
    for attention in attentions:
        if shape_of(attention.key)[-2] != count or shape_of(attention.query)[-2] != count:
            return f"{attention.node.name} attends over {shape_of(attention.key)[-2]} keys, not over the {count} tokens"
        if attention.is_causal:
            return f"{attention.node.name} is causal"
    return unknown_mixing(body)


def unknown_mixing(body: Body) -> str | None:
    """A node that sums over the token axis and is not a recognised attention, as a sentence, or None."""
    count = token_count(body)
    moving = dependents(body.graph, body.token_node)
    for node in body.graph.nodes:
        if node.op != "call_function" or node.target == SDPA or not hasattr(node.meta.get("val"), "shape"):
            continue
        sources = [source for source in node.all_input_nodes if source in moving and hasattr(source.meta.get("val"), "shape")]
        contracted = [source for source in sources if _contracts(node, source, count)]
        if contracted:
            return f"{node.name} ({node.target}) mixes tokens in a way that is not recognised as attention"
    return None


def refusal_of_positions(body: Body) -> str | None:
    """A value that is made from the number of tokens alone and has one entry for each, as a sentence, or None.

    That is a table of positions inside the block; sparse tokens would take the first rows of it, not their own.
    """
    count = token_count(body)
    moving = dependents(body.graph, body.token_node)
    valued = {body.token_node}
    for node in body.graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), (int, torch.SymInt)):
            continue
        if any(source in valued for source in node.all_input_nodes):
            valued.add(node)
        elif node in moving and node.target != aten.expand.default and _has_axis(node, count):
            return f"{node.name} ({node.target}) has one entry per token but depends on their number alone, as positions do"
    return None


def refusal_of_counts(body: Body, counts: set[int]) -> str | None:
    """A condition on the number of tokens that tracing took for granted and ``counts`` break, or None."""
    count = token_count(body)
    for condition in body.conditions:
        # Of a single token tracing always assumes that it is not one; that changes strides only, never values.
        broken = [
            n
            for n in sorted(counts - {1})
            if condition.free_symbols == {count} and condition.xreplace({count: sympy.Integer(n)}) == sympy.false
        ]
        if broken:
            return f"its code takes another path for {broken[0]} tokens: it was captured where {condition}"
    return None


def _has_axis(node: fx.Node, size: Size) -> bool:
    return hasattr(node.meta.get("val"), "shape") and size in shape_of(node)


def _contracts(node: fx.Node, source: fx.Node, count: Size) -> bool:
    """Whether ``node`` sums ``source`` over an axis of the token count, or moves tokens across each other."""
    before, after = shape_of(source), shape_of(node)
    return before.count(count) > after.count(count) or (after.count(count) > 1 and before.count(count) == 1)
