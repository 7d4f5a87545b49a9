"""How an input that goes along with the tokens is pooled, judged by its values and not by its name.

RoPE tables and positions are taken at the centre of a window, masks keep what any token of it may see, indices are
never averaged, and features are averaged like the tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .calls import Leaf
from .ops import How, Rotation
from .program import Program

_BLOCKED = -1e3  # additive masks hold 0 and something below this
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.complex64: 1e-4, torch.complex128: 1e-6}


@dataclass(frozen=True)
class Pooling:
    """How to pool one value: see :func:`~sparsify.ops.pool_tokens` and :func:`~sparsify.ops.as_rotation`."""

    how: How = "mean"
    rotation: Rotation | None = None
    partner: fx.Node | None = None


class SideValues:
    """The values that inputs of blocks have in the example call, computed only where they are asked for."""

    def __init__(self, program: Program, model: nn.Module, inputs: Sequence[Leaf]) -> None:
        self._model = model
        self._constants = program.constants
        self._values: dict[fx.Node, Any] = dict(zip(program.placeholders, inputs, strict=True))

    def pooling(self, node: fx.Node, siblings: Sequence[fx.Node]) -> Pooling:
        """How to pool what ``node`` yields; its ``siblings`` are the other inputs of the block it goes to."""
        fake = node.meta["val"]
        if fake.dtype == torch.bool:
            return Pooling("max")
        if not fake.is_floating_point() and not fake.is_complex():
            return Pooling("nearest")
        value = self.of(node)
        if value is None or value.numel() == 0:
            return Pooling("centre", "complex") if fake.is_complex() else Pooling()
        if (form := _rotation_within(value)) is not None:
            return Pooling("centre", form)
        for sibling in siblings:
            other = self.of(sibling) if sibling is not node and _same_kind(sibling.meta["val"], fake) else None
            if other is not None and other.shape == value.shape and _is_one(value * value + other * other):
                return Pooling("centre", "partner", sibling)
        if not value.is_complex() and bool((value <= _BLOCKED).any()) and bool(((value == 0) | (value <= _BLOCKED)).all()):
            return Pooling("max")
        return Pooling()

    def of(self, node: fx.Node) -> Any:
        """The value of a node in the example call, or None if it depends on what blocks compute."""
        pending = [node]
        while pending:
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            missing = [source for source in current.all_input_nodes if source not in self._values]
            if missing:
                pending += missing
                continue
            self._values[current] = self._run(current)
            pending.pop()
        return self._values[node]

    def _run(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            name = str(node.target)
            if name.startswith("sparsify_"):
                return None  # new layers, behind blocks
            value = self._constants[name] if name in self._constants else operator.attrgetter(name)(self._model)
            return None if isinstance(value, torch.Tensor) and value.is_meta else value
        sources = [self._values[source] for source in node.all_input_nodes]
        if node.op != "call_function" or any(value is None for value in sources):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _rotation_within(value: torch.Tensor) -> Rotation | None:
    if value.is_complex():
        return "complex" if _is_one(value.abs()) else None
    squares = value * value
    if value.ndim > 2 and value.shape[-2:] == (2, 2) and _is_one(squares.sum(-2)) and _is_one(squares.sum(-1)):
        return "matrix"
    if value.ndim > 2 and value.shape[-1] == 2 and _is_one(squares.sum(-1)):
        return "pair"
    if value.ndim > 1 and value.shape[-1] % 2 == 0 and _is_one(squares.unflatten(-1, (2, -1)).sum(-2)):
        return "halves"
    return None


def _is_one(value: torch.Tensor) -> bool:
    return bool(((value - 1).abs() < _TOLERANCE.get(value.dtype, 2e-2)).all())


def _same_kind(a: Any, b: Any) -> bool:
    return isinstance(a, torch.Tensor) and a.ndim == b.ndim and a.dtype == b.dtype
