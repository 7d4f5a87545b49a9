"""The calling convention of a captured module: any nesting of arguments on one side, flat inputs on the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from .errors import ConstantError, InputError
from .frozen import frozen, same, short


class TENSOR:
    """Stands for "a tensor goes here" among the constants; a class, because deep copies keep its identity."""


class SIZE:
    """Stands for "an integer goes here that may be a size", such as the height of the latent."""


_OPEN = (torch.SymInt, torch.SymFloat, torch.SymBool)
Leaf: TypeAlias = torch.Tensor | int  # what a call gives a graph: tensors, and sizes as (symbolic) integers


@dataclass(frozen=True)
class CallSpec:
    """How one call maps to flat inputs: tensors and sizes vary from call to call, everything else is part of the graph."""

    signature: inspect.Signature
    spec: pytree.TreeSpec
    constants: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], sizes: bool = False
    ) -> tuple[CallSpec, list[Leaf]]:
        """The convention of ``forward(*args, **kwargs)``, and the flat inputs of this call.

        With ``sizes``, integers above 1 count as sizes, not as constants: tracing cannot leave 0 and 1 open.
        """
        signature = inspect.signature(forward)
        pairs, spec = pytree.tree_flatten_with_path(_bind(signature, args, kwargs))
        constants = tuple(_kind(leaf, sizes) for _, leaf in pairs)
        names = tuple(pytree.keystr(path) for path, _ in pairs)
        inputs = [leaf for (_, leaf), kind in zip(pairs, constants, strict=True) if _is_open(kind)]
        return cls(signature, spec, constants, names), inputs

    def apart(self) -> CallSpec:
        """The same with copies of the constants, which must not change when the caller writes into an argument.

        Raises:
            InputError: one of them cannot be copied.
        """
        return replace(self, constants=tuple(c if _is_open(c) else frozen(c) for c in self.constants))

    @property
    def input_names(self) -> list[str]:
        """Identifiers for the flat inputs, made from the paths of the arguments they sit in."""
        paths = [name for name, constant in zip(self.names, self.constants, strict=True) if _is_open(constant)]
        return [re.sub(r"\W+", "_", path.replace("'", "")).strip("_") or "input" for path in paths]

    @property
    def has_sizes(self) -> bool:
        """Whether any integer is left open."""
        return any(constant is SIZE for constant in self.constants)

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Leaf]:
        """The flat inputs of another call.

        Raises:
            ConstantError: an argument that is part of the graph has another value, or a list another length.
            InputError: the call has other arguments, or another nesting of them, than the captured one.
        """
        leaves, spec = pytree.tree_flatten(_bind(self.signature, args, kwargs))
        if spec != self.spec:
            if self._differs_in_length_alone(args, kwargs):
                raise ConstantError("a list among the inputs has another length than at capture.")
            raise InputError(self._structure_message(args, kwargs))
        inputs: list[Leaf] = []
        for leaf, constant, name in zip(leaves, self.constants, self.names, strict=True):
            is_tensor = isinstance(leaf, torch.Tensor)
            if is_tensor != (constant is TENSOR):
                raise InputError(
                    f"input {name} is {_describe(leaf)} but was {_describe(constant)} when the model was captured. "
                    f"Call sparsify again with example_inputs of this form."
                )
            if is_tensor or (constant is SIZE and _is_size(leaf)):
                inputs.append(leaf)
            elif constant is SIZE or not same(leaf, constant):
                raise ConstantError(f"input {name} is {_describe(leaf)} but was {_describe(constant)} at capture.")
        return inputs

    def unflatten(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments that carry ``inputs``."""
        rest = iter(inputs)
        leaves = [next(rest) if _is_open(constant) else constant for constant in self.constants]
        bound = self.signature.bind_partial()
        bound.arguments.update(pytree.tree_unflatten(leaves, self.spec))
        return bound.args, bound.kwargs

    def _differs_in_length_alone(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the nesting is that of the capture but for the lengths of lists, such as one of a shape per image."""
        pairs, _ = pytree.tree_flatten_with_path(_bind(self.signature, args, kwargs))
        kinds = [
            {re.sub(r"\[\d+\]", "[]", name) for name in names} for names in (self.names, (pytree.keystr(p) for p, _ in pairs))
        ]
        return kinds[0] == kinds[1]

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
        constants = tuple(TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        return cls(spec, constants), [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @property
    def open_sizes(self) -> list[str]:
        """What of the output is a number that a trace leaves open, such as ``x.shape[0]``: which one and what it is."""
        return [f"output {index} = {leaf}" for index, leaf in enumerate(self.constants, 1) if isinstance(leaf, _OPEN)]

    def settled(self) -> OutputSpec:
        """With plain integers for sizes that the trace has found to be fixed, by which it holds for these alone."""
        return OutputSpec(self.spec, tuple(map(_settled, self.constants)))

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """What the module returns, carrying ``tensors``."""
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if c is TENSOR else c for c in self.constants], self.spec)


def split_inputs(example_inputs: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    """Positional and keyword arguments out of what a caller gives as example inputs.

    Raises:
        InputError: it is no tuple, dict or tensor.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise InputError(
        f"example_inputs is a {type(example_inputs).__name__}; it must be a tuple of inputs or a dict of keyword inputs."
    )


def _bind(signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the inputs do not fit the model's signature {signature}: {error}.") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _settled(leaf: Any) -> Any:
    fixed = leaf.node.maybe_as_int() if isinstance(leaf, torch.SymInt) else None
    return leaf if fixed is None else fixed


def _is_open(constant: Any) -> bool:
    return constant is TENSOR or constant is SIZE


def _is_size(leaf: Any) -> bool:
    return isinstance(leaf, torch.SymInt) or (isinstance(leaf, int) and not isinstance(leaf, bool) and leaf > 1)


def _kind(leaf: Any, sizes: bool) -> Any:
    """The leaf itself where it is a constant."""
    if isinstance(leaf, torch.Tensor):
        return TENSOR
    return SIZE if sizes and _is_size(leaf) else leaf


def _describe(leaf: Any) -> str:
    if leaf is TENSOR or isinstance(leaf, torch.Tensor):
        return "a tensor"
    if leaf is SIZE:
        return "an integer above 1"
    return f"{short(leaf)} ({type(leaf).__name__})"
