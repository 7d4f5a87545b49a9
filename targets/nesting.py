"""Nestings of arguments and results as plain JSON, so that a compiled file can be called without the model's Python code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..calls import SIZE, TENSOR
from ..errors import LoweringError

_MARKS: dict[str, Any] = {"tensor": TENSOR, "size": SIZE}
_PLAIN = (bool, int, float, str, type(None))


class Record(dict[str, Any]):
    """What a model returned as an object with named fields: ``out.sample``, ``out["sample"]`` or ``out[0]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError as error:
            raise AttributeError(f"the result has no field {name!r}; it has {list(self)}.") from error

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def encode(tree: Any, where: str) -> dict[str, Any]:
    """A nesting of marks and constants as JSON types.

    Raises:
        LoweringError: it holds what no file can, such as an object of the model's.
    """
    for name, mark in _MARKS.items():
        if tree is mark:
            return {name: True}
    if isinstance(tree, _PLAIN):
        return {"value": tree}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [encode(item, f"{where}[{index}]") for index, item in enumerate(tree)]}
    fields = _fields(tree)
    if fields is None or not all(isinstance(key, str) for key in fields):
        raise LoweringError(f"{where} is a {type(tree).__name__}, which a file for use without the model's code cannot hold.")
    kind = "dict" if type(tree) is dict else "record"
    return {kind: [[key, encode(value, f"{where}.{key}")] for key, value in fields.items()]}


def decode(data: Mapping[str, Any]) -> Any:
    """The inverse of :func:`encode`; objects come back as :class:`Record`."""
    ((kind, value),) = data.items()
    if kind in _MARKS:
        return _MARKS[kind]
    if kind == "value":
        return value
    if kind in ("tuple", "list"):
        items = [decode(item) for item in value]
        return tuple(items) if kind == "tuple" else items
    fields = {key: decode(item) for key, item in value}
    return {"dict": fields, "record": Record(fields)}[kind]


def _fields(tree: Any) -> Mapping[Any, Any] | None:
    if isinstance(tree, Mapping):
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return dict(zip(tree._fields, tree, strict=True))
    if dataclasses.is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return None


@dataclasses.dataclass(frozen=True)
class Nesting:
    """How flat output tensors are put back into what a model returns, read from a file."""

    tree: Any

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """The result that carries ``tensors``."""
        return _filled(self.tree, iter(tensors))


def _filled(tree: Any, tensors: Iterator[Any]) -> Any:
    if tree is TENSOR:
        return next(tensors)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_filled(item, tensors) for item in tree)
    if isinstance(tree, dict):
        return type(tree)({key: _filled(value, tensors) for key, value in tree.items()})
    return tree
