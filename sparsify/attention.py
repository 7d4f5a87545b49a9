"""What mixes tokens in a block: attention over the trunk's tokens, and anything else that sums over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from .program import Body
from .shapes import Size, shape_of, size_of

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
    def shares_values(self) -> bool:
        """Whether several query heads read one head of values (grouped-query attention)."""
        query, value = shape_of(self.query), shape_of(self.value)
        return len(query) > 2 and query[-3] != value[-3]

    @property
    def is_causal(self) -> bool:
        """Whether each token may only look back; no bidirectional denoiser does."""
        return bool(self.node.kwargs.get("is_causal", False) or (len(self.node.args) > 5 and self.node.args[5]))


def dependents(graph: fx.Graph, starts: Iterable[fx.Node]) -> set[fx.Node]:
    """``starts`` and every node computed from them."""
    found = set(starts)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def follows_tokens(body: Body, size: Size) -> bool:
    """Whether a size depends on the number of tokens."""
    return isinstance(size, sympy.Basic) and not body.moving.isdisjoint(size.free_symbols)


def moving_axes(body: Body, node: fx.Node) -> list[int]:
    """The axes of a tensor whose size follows the tokens."""
    return [axis for axis, size in enumerate(shape_of(node)) if follows_tokens(body, size)]


def aligned_inputs(body: Body) -> list[int]:
    """Positions of the inputs that go along with the tokens: the tokens, tables with a row for each, and their sizes."""
    found = []
    for position, node in enumerate(body.placeholders):
        value = node.meta["val"]
        sizes = shape_of(node) if isinstance(value, torch.Tensor) else (size_of(value),)
        if any(follows_tokens(body, size) for size in sizes):
            found.append(position)
    return found


def moving_nodes(body: Body) -> set[fx.Node]:
    """Every node computed from inputs that go along with the tokens."""
    placeholders = body.placeholders
    return dependents(body.graph, (placeholders[position] for position in aligned_inputs(body)))


def self_attentions(body: Body) -> list[Attention]:
    """Attention whose keys hold the block's tokens, in order of execution."""
    moving = moving_nodes(body)
    nodes = body.graph.find_nodes(op="call_function", target=SDPA)
    found = (attention for attention in map(Attention.of, nodes) if attention.key in moving)
    return [attention for attention in found if follows_tokens(body, shape_of(attention.key)[-2])]


def contractions(body: Body) -> list[fx.Node]:
    """Operators that sum over the axis of the tokens, as linear attention and statistics do, in order of execution."""
    moving = moving_nodes(body)
    found = []
    for node in body.graph.nodes:
        if node.target in _SUMS:
            sources = [source for source in node.all_input_nodes if source in moving]
            if any(moving_axes(body, source) for source in sources) and not moving_axes(body, node):
                found.append(node)
    return found


def refusal_to_mix(body: Body) -> str | None:
    """Why other tokens cannot be given to this block, or None."""
    if not body.moving:
        return f"the block is tied to {shape_of(body.token_node)[body.token_axis]} tokens"
    causal = [attention.node.name for attention in self_attentions(body) if attention.is_causal]
    return f"{causal[0]} is causal" if causal else None


def mixes_tokens(body: Body) -> bool:
    """Whether the block takes keys from tokens of the grid; in one that attends over time or text alone nothing crosses."""
    return bool(self_attentions(body) or contractions(body))


def unrecognised_mixing(body: Body) -> str | None:
    """A value with a row and a column for every token that no recognised attention or mask accounts for, or None."""
    masks = {attention.mask for attention in self_attentions(body)} - {None}
    for node in body.graph.nodes:
        shape = shape_of(node)
        symbols = [symbol for axis in moving_axes(body, node) for symbol in shape[axis].free_symbols & body.moving]
        squared = len(symbols) > len(set(symbols))  # an image of height x width has two axes too, but different ones
        if node.op == "call_function" and squared and masks.isdisjoint(dependents(body.graph, [node])):
            return f"{node.name} ({node.target}) has a row and a column per token, in a way that is not recognised as attention"
    return None


def refusal_of_positions(body: Body) -> str | None:
    """A value that is made from the number of tokens alone and has one entry for each, as a sentence, or None.

    That is a table of positions inside the block; sparse tokens would take the first rows of it, not their own.
    """
    valued = {node for node in body.placeholders if isinstance(node.meta["val"], torch.Tensor)}
    for node in body.graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), (int, torch.SymInt)):
            continue
        if any(source in valued for source in node.all_input_nodes):
            valued.add(node)
        elif node.target not in _SAME_EVERYWHERE and moving_axes(body, node):
            return f"{node.name} ({node.target}) has one entry per token but depends on their number alone, as positions do"
    return None


def refusal_of_counts(body: Body, sizes: Mapping[sympy.Basic, int]) -> str | None:
    """A condition on its sizes that tracing took for granted and ``sizes`` break, or None."""
    for condition in body.conditions:
        # Of a size of one tracing always assumes that it is not one; that changes strides only, never values.
        free: set[sympy.Basic] = getattr(condition, "free_symbols", set())
        if not free & body.moving or any(sizes.get(symbol) == 1 for symbol in free):
            continue
        if condition.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()}) == sympy.false:
            return f"its code takes another path for {dict(sizes)}: it was captured where {condition}"
    return None


_SUMS = {
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default, aten.sum.dim_IntList,
    aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.var.correction, aten.std.correction,
}  # fmt: skip
_SAME_EVERYWHERE = {
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format, aten.expand.default,
}  # fmt: skip
