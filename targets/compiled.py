"""A function under torch.compile that compiles when, and only when, its shapes policy says so."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

Function = Callable[..., Any]
Shapes = Literal["dynamic", "per_grid"]


@dataclass(frozen=True, eq=False)
class ForAllShapes:
    """One artifact for all sizes; those of 0 and 1 excepted, which compilers always treat apart."""

    function: Function
    options: Mapping[str, Any]
    _seen: set[Any] = field(default_factory=set, init=False)

    @functools.cached_property
    def _compiled(self) -> Function:
        compiled: Function = torch.compile(self.function, fullgraph=True, dynamic=True, **self.options)
        return compiled

    def bound(self, owner: nn.Module, name: str) -> Function:
        """The function of tensors and sizes, with the parameters of ``owner``."""
        run = self._compiled

        def call(*values: Any) -> Any:
            inputs = [_plain(value) for value in values]
            situation = (torch.is_grad_enabled(), *[isinstance(x, torch.Tensor) and x.requires_grad for x in inputs])
            if situation in self._seen:
                return run(owner, *inputs)
            with _open_sizes([x for x in inputs if isinstance(x, torch.Tensor)]):
                result = run(owner, *inputs)
            self._seen.add(situation)
            return result

        return _named(call, name)


@dataclass(frozen=True, eq=False)
class ForEachShape:
    """One artifact for each set of input sizes, with these as numbers in the code."""

    function: Function
    options: Mapping[str, Any]
    _by_shape: dict[Any, Function] = field(default_factory=dict, init=False)

    def bound(self, owner: nn.Module, name: str) -> Function:
        """The function of tensors and sizes, with the parameters of ``owner``."""

        def call(*values: Any) -> Any:
            inputs = [_plain(value) for value in values]
            shapes = tuple([x.shape if isinstance(x, torch.Tensor) else x for x in inputs])
            run = self._by_shape.get(shapes)
            if run is None:
                run = self._by_shape[shapes] = torch.compile(self._copy(), fullgraph=True, dynamic=False, **self.options)
            return run(owner, *inputs)

        return _named(call, name)

    def _copy(self) -> Function:
        """With a code object of its own: dynamo looks through all artifacts of a code object, and allows it eight."""
        code = self.function.__code__
        return types.FunctionType(code.replace(co_name=f"{code.co_name}_{len(self._by_shape)}"), self.function.__globals__)


KINDS: dict[str, type[ForAllShapes] | type[ForEachShape]] = {"dynamic": ForAllShapes, "per_grid": ForEachShape}


def _plain(value: Any) -> Any:
    """A tensor as artifacts expect it: axes in the order of memory, and no view, whose base would have to fit as well."""
    if not isinstance(value, torch.Tensor):
        return value
    if 0 not in value.stride():  # what was expanded stays so
        value = value.contiguous()
    return torch.ops.aten._unsafe_view.default(value, value.shape) if value._is_view() else value


@contextmanager
def _open_sizes(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let every size be a number of its own; otherwise sizes that are equal at the first call would have to stay equal."""
    before = [dict(vars(tensor)) for tensor in tensors]
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))
    try:
        yield
    finally:  # they are the caller's
        for tensor, attributes in zip(tensors, before, strict=True):
            vars(tensor).clear()
            vars(tensor).update(attributes)


def _named(call: Function, name: str) -> Function:
    """With the name that it gets in a graph."""
    call.__name__ = call.__qualname__ = name.replace(".", "_")
    return call
