"""The calling convention of a captured module: any nesting of arguments on one side, flat tensors on the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .errors import InputError


class _TENSOR:
    """Stands for "a tensor goes here" among the constants; a class, because deep copies keep its identity."""


@dataclass(frozen=True)
class CallSpec:
    """How one call maps to flat tensors: the tensors vary from call to call, everything else is part of the graph."""

    signature: inspect.Signature
    spec: pytree.TreeSpec
    constants: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[CallSpec, list[torch.Tensor]]:
        """The convention of ``forward(*args, **kwargs)``, and the tensors of this call."""
        signature = inspect.signature(forward)
        pairs, spec = pytree.tree_flatten_with_path(_bind(signature, args, kwargs))
        constants = tuple(_TENSOR if isinstance(leaf, torch.Tensor) else leaf for _, leaf in pairs)
        names = tuple(pytree.keystr(path) for path, _ in pairs)
        return cls(signature, spec, constants, names), [leaf for _, leaf in pairs if isinstance(leaf, torch.Tensor)]

    @property
    def tensor_names(self) -> list[str]:
        """Identifiers for the flat tensors, made from the paths of the arguments they sit in."""
        paths = [name for name, constant in zip(self.names, self.constants, strict=True) if constant is _TENSOR]
        return [re.sub(r"\W+", "_", path.replace("'", "")).strip("_") or "input" for path in paths]

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors of another call.

        Raises:
            InputError: the call has other arguments, another nesting, or another constant than the captured one.
        """
        leaves, spec = pytree.tree_flatten(_bind(self.signature, args, kwargs))
        if spec != self.spec:
            raise InputError(self._structure_message(args, kwargs))
        tensors = []
        for leaf, constant, name in zip(leaves, self.constants, self.names, strict=True):
            if constant is _TENSOR and isinstance(leaf, torch.Tensor):
                tensors.append(leaf)
            elif constant is _TENSOR or isinstance(leaf, torch.Tensor) or not _same(leaf, constant):
                raise InputError(
                    f"input {name} is {_describe(leaf)} but was {_describe(constant)} when the model was captured, and "
                    f"only tensors may vary between calls. Call sparsify again with example_inputs of this form."
                )
        return tensors

    def unflatten(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments that carry ``tensors``."""
        rest = iter(tensors)
        leaves = [next(rest) if constant is _TENSOR else constant for constant in self.constants]
        bound = self.signature.bind_partial()
        bound.arguments.update(pytree.tree_unflatten(leaves, self.spec))
        return bound.args, bound.kwargs

    def _structure_message(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        pairs, _ = pytree.tree_flatten_with_path(_bind(self.signature, args, kwargs))
        given, captured = {pytree.keystr(path) for path, _ in pairs}, set(self.names)
        return (
            f"the inputs differ in structure from the captured ones: new {sorted(given - captured) or 'none'}, missing "
            f"{sorted(captured - given) or 'none'}. Call sparsify again with example_inputs of this form."
        )


@dataclass(frozen=True)
class OutputSpec:
    """How flat output tensors are put back into what the module returns."""

    spec: pytree.TreeSpec
    constants: tuple[Any, ...]

    @classmethod
    def of(cls, output: Any) -> tuple[OutputSpec, list[torch.Tensor]]:
        """The nesting of ``output`` and the tensors in it."""
        leaves, spec = pytree.tree_flatten(output)
        constants = tuple(_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        return cls(spec, constants), [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """What the module returns, carrying ``tensors``."""
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if c is _TENSOR else c for c in self.constants], self.spec)


def _bind(signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the inputs do not fit the model's signature {signature}: {error}.") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _same(leaf: Any, constant: Any) -> bool:
    return type(leaf) is type(constant) and bool(leaf == constant)


def _describe(leaf: Any) -> str:
    if leaf is _TENSOR or isinstance(leaf, torch.Tensor):
        return "a tensor"
    return f"{leaf!r} ({type(leaf).__name__})"
