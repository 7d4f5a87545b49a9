"""What torch allows and other compilers don't, in other words: small exact rewrites of an exported graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def simplify(graph: fx.Graph) -> None:
    """Rewrite in place; every node keeps its value."""
    for node in graph.find_nodes(op="call_function", target=aten.squeeze.dim):
        _drop_if_idle(graph, node)
    for node in graph.find_nodes(op="call_function", target=aten.einsum.default):
        _permute_if_it_does_no_more(graph, node)


def _drop_if_idle(graph: fx.Graph, node: fx.Node) -> None:
    """A squeeze of an axis that is longer than 1 does nothing in torch, and is an error in ONNX."""
    source: Any = node.args[0]
    if source.meta["val"].shape[node.args[1]] != 1:
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _permute_if_it_does_no_more(graph: fx.Graph, node: fx.Node) -> None:
    """Einsum over one operand without a sum is a permutation, which exists in every type."""
    equation, operands, *_ = node.args
    before, _, after = str(equation).replace(" ", "").partition("->")
    if len(operands) != 1 or len(set(before)) != len(before) or sorted(before) != sorted(after) or not before.isalpha():  # type: ignore[arg-type]
        return
    with graph.inserting_before(node):
        permuted = graph.call_function(aten.permute.default, (operands[0], [before.index(letter) for letter in after]))  # type: ignore[index]
    permuted.meta = dict(node.meta)
    node.replace_all_uses_with(permuted)
    graph.erase_node(node)
