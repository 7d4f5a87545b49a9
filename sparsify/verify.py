"""The verifier: run after every pass, it names the pass that left an illegal program and shows the IR around the fault.

It checks which operators are legal at each stage, the structure of every graph, that block calls fit their bodies, and
that the shapes nodes claim are those that running them on fake tensors gives.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .errors import VerificationError
from .ops import as_rotation, pool_tokens, restore_tokens
from .program import DENSITY, GRID, Program
from .shapes import compute_value, size_of
from .sizes import mismatch

_ALWAYS: tuple[object, ...] = (operator.getitem, torch.sym_sqrt, math.trunc)
# Which functions, besides ATen operators that change nothing in place, may stand in a graph at each stage.
LEGAL_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "captured": _ALWAYS,
    "analysed": _ALWAYS,
    "sparse": (*_ALWAYS, pool_tokens, restore_tokens, as_rotation),
}
_LEGAL_NAMESPACES = {"aten", "prims", "higher_order"}


def verify(program: Program, pass_name: str) -> None:
    """Check the whole program.

    Raises:
        VerificationError: it is not legal; ``pass_name`` is blamed.
    """
    graphs = program.graphs
    try:
        for where, graph in graphs.items():
            _verify_structure(graph, program.stage, where, {DENSITY, GRID, *program.prompts})
        _verify_blocks(program)
        for where, graph in graphs.items():
            _verify_shapes(graph, where, program.verified, run=program.stage != "captured")
    except _Fault as fault:
        raise VerificationError(f"pass {pass_name} left an illegal {fault.where}: {fault}\n{_nearby(fault.node)}") from fault


class _Fault(Exception):
    def __init__(self, where: str, node: fx.Node, message: str) -> None:
        super().__init__(message)
        self.where, self.node = where, node


def _verify_structure(graph: fx.Graph, stage: str, where: str, modules: set[str]) -> None:
    seen: set[fx.Node] = set()
    last = next(iter(reversed(graph.nodes)))  # in torch 2.11 what is reversed is no iterator yet
    if last.op != "output":
        raise _Fault(where, last, "the last node is not the output")
    for node in graph.nodes:
        for source in node.all_input_nodes:
            if source not in seen:
                raise _Fault(where, node, f"{node.name} uses {source.name}, which is not defined before it")
        seen.add(node)
        if node.op == "call_module" and "body" not in node.meta and node.target not in modules:
            raise _Fault(where, node, f"{node.name} calls {node.target}, which is neither a block nor one of {sorted(modules)}")
        if node.op == "call_method" or (node.op == "call_function" and not _is_legal(node.target, stage)):
            raise _Fault(where, node, f"{node.target} is not legal in the {stage} stage")
    try:
        graph.lint()
    except RuntimeError as error:
        raise _Fault(where, last, f"it does not lint: {error}") from error


def _is_legal(target: object, stage: str) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in _LEGAL_NAMESPACES and not target._schema.is_mutable
    if isinstance(target, torch._ops.HigherOrderOperator):
        return True
    return target in LEGAL_FUNCTIONS[stage] or _is_size_arithmetic(target)


def _is_size_arithmetic(target: object) -> bool:
    return getattr(target, "__module__", "") in ("_operator", "math") or getattr(target, "__name__", "").startswith("sym_")


def _verify_blocks(program: Program) -> None:
    names = [node.target for node in program.all_block_nodes]
    if [name for name in names if name in program.paths] != program.paths:
        output = program.graph.output_node()
        raise _Fault("outer graph", output, f"the blocks called are {names}, not {program.paths} in this order")
    for node in program.all_block_nodes:
        if node.meta["body"] not in program.bodies:
            raise _Fault("outer graph", node, f"{node.name} has the body {node.meta['body']}, which does not exist")
        body = program.body_of(node)
        if len(node.args) != len(body.placeholders):
            raise _Fault(
                "outer graph", node, f"{node.name} gives {len(node.args)} inputs, {body.name} takes {len(body.placeholders)}"
            )
        for argument, placeholder in zip(node.args, body.placeholders, strict=True):
            given, taken = argument.meta["val"] if isinstance(argument, fx.Node) else argument, placeholder.meta["val"]
            if _kind(given) != _kind(taken):
                raise _Fault("outer graph", node, f"{node.name} gives {_text(given)} for {placeholder.name}: {_text(taken)}")
        if program.stage == "sparse" and (unequal := mismatch(program.shape_env, body, node)):
            raise _Fault("outer graph", node, unequal)
        results = node.meta["val"] if isinstance(node.meta["val"], tuple) else (node.meta["val"],)
        for result, position in zip(results, body.updates, strict=True):
            if not _agree(node.args[position].meta["val"], result):  # type: ignore[union-attr]
                raise _Fault("outer graph", node, f"{node.name} claims {_text(result)}, not the shape of its input {position}")


def _verify_shapes(graph: fx.Graph, where: str, verified: dict[str, Any], run: bool) -> None:
    """Run each operator on what its arguments claim, and compare what comes out to what its node claims.

    A node whose operator, arguments and claims were all seen before is not run again. What torch.export claims has just
    come from such a run, so for a fresh capture it is only noted.
    """
    values = {node: node.meta.get("val") for node in graph.nodes}
    mode = next(value.fake_mode for value in values.values() if isinstance(value, FakeTensor))
    for node in graph.nodes:
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        if "val" not in node.meta:
            raise _Fault(where, node, f"{node.name} claims no value")
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: f"#{id(values[source])}")
        key = f"{node.target}{arguments}#{id(values[node])}"
        if key in verified:
            continue
        if run:
            try:
                actual = compute_value(node, values, mode)
            except (RuntimeError, ValueError, TypeError) as error:
                raise _Fault(where, node, f"{node.name} cannot run: {error}") from error
            if "restated" not in node.meta and not _agree(actual, values[node]):
                raise _Fault(where, node, f"{node.name} claims {_text(values[node])} but yields {_text(actual)}")
        verified[key] = [values[node], *(values[source] for source in node.all_input_nodes)]  # kept alive: ids are reused


def _kind(value: Any) -> object:
    return (value.ndim, value.dtype) if isinstance(value, torch.Tensor) else "size"


def _agree(actual: Any, claimed: Any) -> bool:
    if isinstance(actual, (tuple, list)):
        return isinstance(claimed, (tuple, list)) and len(actual) == len(claimed) and all(map(_agree, actual, claimed))
    if isinstance(actual, torch.Tensor):
        return (
            isinstance(claimed, torch.Tensor)
            and (actual.dtype, actual.device, actual.ndim) == (claimed.dtype, claimed.device, claimed.ndim)
            and all(map(_same_size, actual.shape, claimed.shape))
        )
    return not isinstance(actual, (int, torch.SymInt)) or _same_size(actual, claimed)


def _same_size(a: Any, b: Any) -> bool:
    sizes = size_of(a), size_of(b)
    if sizes[0] == sizes[1]:
        return True
    difference = sympy.expand(sympy.sympify(sizes[0]) - sizes[1])
    if difference.xreplace(_sides_of_one(a, b)).expand() == 0:
        return True
    numbers = [isinstance(size, int) for size in sizes]
    hints = [size if number else _hint(value) for size, number, value in zip(sizes, numbers, (a, b), strict=True)]
    # A number that was a size by a guard agrees with that size; a size that depends on values is new at every run.
    return None in hints or (any(numbers) and hints[0] == hints[1])


def _sides_of_one(*sizes: Any) -> dict[sympy.Basic, sympy.Basic]:
    """Sizes made of others that are one by a guard, such as the rows of a grid of 1 x 8 tokens; torch puts in symbols alone."""
    envs = {id(size.node.shape_env): size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)}
    guards = (guard.expr for env in envs.values() for guard in env.guards if isinstance(guard.expr, sympy.Eq))
    return {guard.lhs: guard.rhs for guard in guards if guard.rhs == 1}


def _hint(size: torch.SymInt) -> int | None:
    """The number at the sizes of the capture; None where it depends on values."""
    return size.node.hint  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[str(size) for size in value.shape]}".replace("'", "")
    return str(value)


def _nearby(node: fx.Node, lines: int = 3) -> str:
    nodes = list(node.graph.nodes)
    at = nodes.index(node)
    return "\n".join(f"{'>' if n is node else ' '} {n.format_node()}" for n in nodes[max(0, at - lines) : at + lines + 1])
