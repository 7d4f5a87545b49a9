"""Why a pattern matched nowhere: the place that shares most with it, and the first difference there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx


class Miss(NamedTuple):
    """A place that almost matched: how much of what was asked for it has, and what is different.

    ``kinship`` decides between places of equal merit: how many of the operators asked for are somewhere near.
    """

    matched: int
    total: int
    what: str
    reason: str
    kinship: int = 0

    def __str__(self) -> str:
        return f"matched {self.matched} of {self.total} {self.what} of the pattern: {self.reason}"


def nearest_miss(pattern: fx.Graph, graph: fx.Graph) -> Miss | None:
    """The place in ``graph`` that shares most operators with ``pattern``; None where neither has any."""
    anchors = [node for node in pattern.output_node().all_input_nodes if len(node.users) == 1]
    total = sum(node.op == "call_function" for node in pattern.nodes)
    wanted = Counter(node.target for node in pattern.nodes if node.op == "call_function")
    misses = [
        _miss(pattern, anchor, node, total, wanted)
        for anchor in anchors
        for node in graph.nodes
        if node.op == "call_function" and node.target == anchor.target
    ]
    if misses:
        return max(misses, key=lambda miss: (miss.matched, miss.kinship))
    last = anchors[-1].target if anchors else "the pattern's result"
    return Miss(0, total, "operators", f"no node is {last}, which the pattern ends with")


def _miss(pattern: fx.Graph, anchor: fx.Node, node: fx.Node, total: int, wanted: Counter[Any]) -> Miss:
    """How far ``node`` is from being the result of the pattern."""
    walk = _Walk()
    walk.compare(anchor, node, "")
    walk.compare_readers(pattern)
    reasons = walk.differences or ["it overlaps another match, or would form a cycle"]
    return Miss(len(walk.operators), total, "operators", reasons[0], (wanted & _targets_behind(node, 2 * total)).total())


def _targets_behind(node: fx.Node, steps: int) -> Counter[Any]:
    """The operators that a node is computed by, so many steps back."""
    found, latest = {node}, {node}
    for _ in range(steps):
        latest = {source for each in latest for source in each.all_input_nodes} - found
        found |= latest
    return Counter(each.target for each in found)


class _Walk:
    """From the results of a pattern and of a graph back to their operands, for as long as they are alike."""

    def __init__(self) -> None:
        self.known: dict[fx.Node, Any] = {}
        self.operators: set[fx.Node] = set()
        self.differences: list[str] = []

    def compare(self, wanted: Any, found: Any, where: str) -> None:
        """Note what is alike, and the first difference; ``where`` says what ``found`` is."""
        if not isinstance(wanted, fx.Node):
            self._compare_literals(wanted, found, where)
        elif wanted in self.known:
            if self.known[wanted] is not found:
                self._differs(f"{where} is {_text(found)}, but {wanted.name} of the pattern is {_text(self.known[wanted])}")
        elif wanted.op == "placeholder":
            self.known[wanted] = found
        elif not isinstance(found, fx.Node) or found.target != wanted.target:
            self._differs(f"{_target(wanted)} expected as {where}, found {_text(found)}")
        else:
            self.known[wanted] = found
            self._compare_operands(wanted, found)

    def _compare_operands(self, wanted: fx.Node, found: fx.Node) -> None:
        """An operator counts as matched where its numbers agree, whatever its tensors are computed from."""
        others = dict(_arguments(found))
        named = [(name, operand, isinstance(operand, fx.Node)) for name, operand in _arguments(wanted)]
        before = len(self.differences)
        for name, operand, is_node in named:
            if not is_node:
                self.compare(operand, others.get(name), f"{name} of %{found.name}")
        if len(self.differences) == before:
            self.operators.add(found)
        for name, operand, is_node in named:
            if is_node:
                self.compare(operand, others.get(name), f"{name} of %{found.name}")

    def compare_readers(self, pattern: fx.Graph) -> None:
        """What is computed on the way may be read within the pattern alone."""
        results = pattern.output_node().all_input_nodes
        for wanted, found in self.known.items():
            if wanted.op != "placeholder" and wanted not in results:
                for user in found.users:
                    if user not in self.operators:
                        self._differs(f"%{found.name} is read outside of the pattern too, by %{user.name}")

    def _compare_literals(self, wanted: Any, found: Any, where: str) -> None:
        if isinstance(wanted, (list, tuple)) and isinstance(found, (list, tuple)) and len(wanted) == len(found):
            for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
                self.compare(one, other, f"item {index} of {where}")
        elif type(wanted) is not type(found) or wanted != found:
            self._differs(f"{wanted} expected as {where}, found {_text(found)}")

    def _differs(self, reason: str) -> None:
        self.differences.append(reason)


def _arguments(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """All operands by what they are called in messages, with defaults, so that both ways of giving them agree."""
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from ((f"operand {index}", value) for index, value in enumerate(node.args))
        return
    for index, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
        yield f"operand {index} ({argument.name})", value


def _target(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", "")


def _text(value: Any) -> str:
    if not isinstance(value, fx.Node):
        return str(value)
    if value.op == "call_function":
        return f"{_target(value)} %{value.name}"
    return f"the input %{value.name}" if value.op == "placeholder" else f"@{value.target}"
