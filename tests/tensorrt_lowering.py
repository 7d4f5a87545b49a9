"""The operators that torch_tensorrt would see and has converters for, from the facts in ``data/torch_tensorrt.json``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions
from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace, _get_decomp_for_cia
from torch._ops import OpOverload
from torch.export import ExportedProgram

from sparsify.targets.tensorrt_ops import is_dynamic

aten = torch.ops.aten


@functools.cache
def facts() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "torch_tensorrt.json").read_text())


# Operators that torch_tensorrt takes apart in its own way, as far as diffusion transformers have them; what they become is
# what its sources say, written here once more.
OWN: dict[OpOverload, Callable[..., Any]] = {
    aten.rsqrt.default: lambda x: torch.reciprocal(torch.sqrt(x)),
    aten.reciprocal.default: lambda x: torch.div(1, x),
    aten._unsafe_view.default: lambda x, size: torch.reshape(x, size),
    aten.view.default: lambda x, size: aten._reshape_copy.default(x, size),
    aten.silu.default: lambda x: x * torch.sigmoid(x),
    aten.alias.default: lambda x: x,
    aten.lift_fresh_copy.default: lambda x: x,
    aten.full_like.default: lambda x, value, **options: torch.full(x.shape, value, dtype=options.get("dtype") or x.dtype),
}


def _named(names: Iterable[str]) -> list[Any]:
    return [functools.reduce(getattr, name.split("."), torch.ops) for name in names]


def _overloads(names: Iterable[str]) -> set[OpOverload]:
    found: set[OpOverload] = set()
    for op in _named(names):
        found |= {op} if isinstance(op, OpOverload) else {getattr(op, overload) for overload in op.overloads()}
    return found


@functools.cache
def table() -> dict[OpOverload, Callable[..., Any]]:
    """Its table of decompositions, put together from the same parts of torch."""
    groups = facts()["decompositions"]
    kept = _overloads(groups["disabled"]) | _overloads(groups["kept_attention"])
    implicit = {op: _get_decomp_for_cia(op) for op in _collect_all_valid_cia_ops_for_aten_namespace() if op not in kept}
    return {**get_decompositions(_named(groups["enabled"])), **implicit, **OWN}


def lowered(program: ExportedProgram) -> ExportedProgram:
    """The program as torch_tensorrt hands it to its converters."""
    result = program.run_decompositions(table())
    seen = {node.target for node in result.graph.nodes if node.op == "call_function"}
    missing = (
        (seen & _overloads(facts()["decompositions"]["own"]))
        - set(OWN)
        - _overloads(facts()["decompositions"]["kept_attention"])
    )
    assert not missing, f"write down in OWN what torch_tensorrt makes of {missing}"
    return result


def has_converter(node: fx.Node) -> bool:
    """Whether one of its converters takes this node, as far as the facts tell: its operator, and whether sizes are open."""
    name = str(node.target) if isinstance(node.target, OpOverload) else f"{node.target.__module__}.{node.target.__name__}"
    candidates = facts()["converters"].get(name.replace("_operator.", "operator."), [])
    return any((c["dynamic"] or not is_dynamic(node)) and CHECKS.get(c["checks"], lambda n: True)(node) for c in candidates)


def _attention(node: fx.Node) -> bool:
    """Of one rank, keys and values of one shape, and queries like them but for their number."""
    query, key, value = (node.args[i].meta["val"].shape for i in range(3))
    alike = len(query) == len(key) == len(value) and key == value
    heads = 1 if node.kwargs.get("enable_gqa") else None
    return alike and all(query[i] == key[i] for i in range(len(query)) if i not in (len(query) - 2, heads))


def _cast(node: fx.Node) -> bool:
    """To a dtype that it has."""
    return node.kwargs.get("dtype") in CASTS


def _bitwise(node: fx.Node) -> bool:
    """Of booleans."""
    return all(not isinstance(a, fx.Node) or a.meta["val"].dtype == torch.bool for a in node.args)


CASTS = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.int8, torch.bool)
CHECKS: dict[str | None, Callable[[fx.Node], bool]] = {
    "to_copy_dtype_validator(placeholder_only=False)": _cast,
    "to_copy_dtype_validator(placeholder_only=True)": _cast,
    "bitwise_type_validator": _bitwise,
    "has_static_shapes_in_args([1])": lambda node: not isinstance(node.args[1], fx.Node),
    "scaled_dot_product_attention_validator": _attention,
}
