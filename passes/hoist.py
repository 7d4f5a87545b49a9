"""Move a part of a block that does not need its tokens out of it, into the outer graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..attention import aligned_inputs
from ..probe import is_random
from ..program import Body, Program
from ..shapes import annotate, emit_size, size_of
from ..sizes import binding, dimensions
from .base import Provenance

aten = torch.ops.aten

VIEWS = {
    aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int, aten.permute.default,
    aten.expand.default, aten.flatten.using_ints, aten.unflatten.int, aten.chunk.default, aten.split.Tensor, aten.slice.Tensor,
    aten.split_with_sizes.default, aten.unbind.int, aten.select.int, aten.alias.default,
}  # fmt: skip


def given_everywhere(program: Program, body: Body) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """The inputs that have nothing to do with a block's tokens, with what each call of it gives for them."""
    calls = program.calls_of(body)
    placeholders, aligned = body.placeholders, set(aligned_inputs(body))
    return {
        node: tuple(call.args[position] for call in calls)  # type: ignore[misc]
        for position, node in enumerate(placeholders[: len(placeholders) - len(body.twins)])
        if position not in aligned and isinstance(node.meta["val"], torch.Tensor) and calls
    }


def depending_on(
    graph: fx.Graph, starts: Iterable[fx.Node], admits: Callable[[fx.Node], bool] = lambda _: True
) -> dict[fx.Node, frozenset[fx.Node]]:
    """What is computed from ``starts``, their sizes, and parameters that ``admits`` lets through; with which starts."""
    found = {node: frozenset([node]) for node in starts}
    for node in graph.nodes:
        if node.op == "get_attr" and admits(node):
            found[node] = frozenset()
        elif node.op == "call_function" and is_tensor(node) and not is_random(node) and not _is_region(node):
            sizes = [source for source in node.all_input_nodes if is_size(source)]
            sources = [source for source in node.all_input_nodes if not is_size(source)]
            if all(source in found for source in sources):
                together: frozenset[fx.Node] = frozenset().union(*(found[source] for source in sources))
                if all(_symbols([size]) <= _symbols(together) for size in sizes):
                    found[node] = together
    return found


def frontier(graph: fx.Graph, inside: dict[fx.Node, frozenset[fx.Node]], within: set[fx.Node] | None = None) -> list[fx.Node]:
    """The values that the rest of the graph needs of ``inside``; views of them are left to the rest, they cost nothing."""
    wanted: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if inside.get(node) and any(user not in inside for user in node.users):
            while node.target in VIEWS or node.target is operator.getitem:
                node = node.args[0]
            if node.op == "call_function" and inside[node] and (within is None or node in within):
                wanted[node] = None
    return [node for node in wanted if isinstance(node.meta["val"], torch.Tensor)]


def behind(nodes: Iterable[fx.Node], inside: dict[fx.Node, frozenset[fx.Node]]) -> list[fx.Node]:
    """``nodes`` and what they are computed from, in order, without the inputs."""
    needed = set(pending := list(nodes))
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in needed and source in inside:
                needed.add(source)
                pending.append(source)
    return [node for node in (next(iter(needed)).graph.nodes if needed else ()) if node in needed and node.op != "placeholder"]


def copied(
    nodes: Sequence[fx.Node],
    graph: fx.Graph,
    values: dict[fx.Node, Any],
    size: Callable[[fx.Node], Any],
    name: Callable[[fx.Node], str],
    by: str,
    mode: FakeTensorMode,
) -> None:
    """Copy ``nodes`` to the insertion point of ``graph``.

    Args:
        nodes: in order.
        graph: where to.
        values: what stands for the inputs of ``nodes``; gets the copies.
        size: gives a size there.
        name: the name that a parameter has there.
        by: the pass that is at work.
        mode: of the values there.
    """
    for node in nodes:
        if node.op == "get_attr":
            twin = graph.get_attr(name(node))
            fake = node.meta["val"]
            with mode:
                twin.meta["val"] = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda s: size(s) if is_size(s) else values[s])
            twin = annotate(graph.call_function(node.target, args, kwargs), mode)  # type: ignore[arg-type]
            twin.meta["provenance"] = Provenance(by, node.name)
        values[node] = twin


def hoist(program: Program, body: Body, nodes: Sequence[fx.Node], results: Sequence[Sequence[fx.Node]]) -> None:
    """Let a block take these of its values from outside: ``results`` has for each call of it what it is given for each."""
    if not nodes:
        return
    placeholders = body.placeholders
    at = len(placeholders) - len(body.twins)
    for node in nodes:
        with body.graph.inserting_after(placeholders[at - 1]):
            taken = body.graph.placeholder(f"{node.name}_given")
        taken.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(taken)
        placeholders.insert(at, taken)
        at += 1
    body.given += len(nodes)
    for call, values in zip(program.calls_of(body), results, strict=True):
        end = len(call.args) - len(body.twins)
        call.args = (*call.args[:end], *values, *call.args[end:])


def into_outer(program: Program, body: Body, call: fx.Node, nodes: Sequence[fx.Node], by: str) -> dict[fx.Node, Any]:
    """Copies of a block's nodes in front of one of its calls, by what they are copies of."""
    bound, graph = binding(body, call), program.graph

    def name(node: fx.Node) -> str:
        if node.target in body.constants:
            program.constants.setdefault(str(node.target), body.constants[str(node.target)])
            return str(node.target)
        return f"{call.target}.{node.target}"

    values: dict[fx.Node, Any] = dict(zip(body.placeholders, call.args, strict=True))
    with graph.inserting_before(call):
        copied(
            nodes,
            graph,
            values,
            lambda s: emit_size(graph, sympy.sympify(size_of(s.meta["val"])).xreplace(bound)),
            name,
            by,
            program.fake_mode,
        )
    return values


def is_size(node: fx.Node) -> bool:
    """Whether a node yields a number."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def is_tensor(node: fx.Node) -> bool:
    """Whether a node yields a tensor, or several."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (list, tuple)) and all(isinstance(x, torch.Tensor) for x in value)
    )


def _symbols(nodes: Iterable[fx.Node]) -> set[Any]:
    """The symbols in the sizes of some nodes."""
    sizes = [size for node in nodes for size in dimensions(node.meta["val"])]
    return set().union(*(getattr(size, "free_symbols", ()) for size in sizes))


def _is_region(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator)
