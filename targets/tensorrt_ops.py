"""Which operators of an exported program TensorRT has no converter for, told before an engine is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

Supports: TypeAlias = Callable[[fx.Node], bool]  # whether there is a converter for a node, given its shapes


def unsupported(program: ExportedProgram, supports: Supports) -> Counter[str]:
    """Operators, with how often each occurs, that would run in PyTorch between engines.

    Args:
        program: after torch_tensorrt's own decompositions.
        supports: its converters, ``DYNAMO_CONVERTERS.__contains__``.
    """
    return Counter(str(node.target) for node in converted(program) if not supports(node))


def converted(program: ExportedProgram) -> list[fx.Node]:
    """The nodes that are left for converters: constants are folded and assertions are removed before."""
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    live: set[fx.Node] = set()  # depend on an input
    for node in program.graph.nodes:
        if (node.op == "placeholder" and node.name in given) or any(source in live for source in node.all_input_nodes):
            live.add(node)
    read: set[fx.Node] = set()  # an output depends on them
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node in read:
            read.update(node.all_input_nodes)
    return [node for node in program.graph.nodes if node.op == "call_function" and node in live and node in read]


def is_dynamic(node: fx.Node) -> bool:
    """Whether a size of what the node reads or yields is open."""
    return any(_has_symbol(n.meta.get("val")) for n in (node, *node.all_input_nodes))


def _has_symbol(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_symbol, value))
    if isinstance(value, torch.Tensor):
        return any(isinstance(size, torch.SymInt) for size in value.shape)
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
