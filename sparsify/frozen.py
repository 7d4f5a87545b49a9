"""Arguments that are part of a graph though they could change: kept as copies, and compared by what is in them."""

from __future__ import annotations

import copy
import enum
import functools
import math
import sys
import types
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .errors import InputError

# What these are cannot be seen in their attributes, or they are the same thing for as long as they live.
_BY_IDENTITY = (
    nn.Module,
    type,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    enum.Enum,
    torch.Generator,
)
_CUT = 80


def frozen(value: Any) -> Any:
    """A copy that later writes into ``value`` do not reach; itself where it has no parts.

    Modules, functions and tensors that want a gradient within it are not copied.

    Raises:
        InputError: it cannot be copied.
    """
    return _copied(value, {})


def same(a: Any, b: Any) -> bool:
    """Whether two arguments make the same graph: one type, and equal in every part; NaN equals NaN.

    Raises:
        InputError: they cannot be compared.
    """
    return _same(a, b, {})


def short(value: Any) -> str:
    """A value for a message."""
    if _is_numpy(value) and value.shape:
        return f"a numpy array of {value.dtype} {list(value.shape)}"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # the value is the caller's, and so is its repr
        text = object.__repr__(value)
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, torch.Tensor):
        return value if value.requires_grad else value.detach().clone()
    if type(value) in (set, frozenset):  # of what does not change, or it could not be found again
        return type(value)(value)
    if type(value) in (list, tuple):
        return type(value)(_copied(item, known) for item in value)
    if type(value) is dict:
        return {key: _copied(item, known) for key, item in value.items()}
    if _is_opaque(value):
        return value
    try:
        if not _goes_by_fields(value):
            return copy.deepcopy(value)
        made = known[id(value)] = copy.copy(value)
        for name, item in _fields(value).items():
            object.__setattr__(made, name, _copied(item, known))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"an input is {short(value)} ({type(value).__name__}), which is part of the graph but cannot be copied: {error}. "
            f"Pass what it holds as tensors or plain values."
        ) from error
    return made


def _same(a: Any, b: Any, seen: dict[tuple[int, int], Any]) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return _same_tensors(a, b)
    if _is_numpy(a):
        return _same_arrays(a, b, seen)
    if isinstance(a, float):
        return bool(a == b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, complex):
        return _same(a.real, b.real, seen) and _same(a.imag, b.imag, seen)
    if a is b or (id(a), id(b)) in seen:  # parts that are the same object are, of a copy, those that are not copied
        return True
    seen[id(a), id(b)] = a, b  # held, so that no other object gets these ids
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
    if type(a) is dict:
        return list(a) == list(b) and all(_same(a[key], b[key], seen) for key in a)
    if _is_opaque(a):
        return bool(a == b)
    if _goes_by_fields(a):
        mine, theirs = _fields(a), _fields(b)
        return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name], seen) for name in mine)
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"an input is {short(a)} ({type(a).__name__}), which is part of the graph but cannot be compared with that of the "
            f"capture: {error}. Pass what it holds as tensors or plain values."
        ) from error


def _same_tensors(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a is b or isinstance(a, FakeTensor) or isinstance(b, FakeTensor) or a.requires_grad or b.requires_grad:
        return a is b
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) or a.is_meta:
        return False
    a, b = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (a, b))
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _same_arrays(a: Any, b: Any, seen: dict[tuple[int, int], Any]) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.dtype.hasobject:
        return _same(a.tolist(), b.tolist(), seen)
    if a.dtype.kind == "c":
        return _same_arrays(a.real, b.real, seen) and _same_arrays(a.imag, b.imag, seen)
    return bool(sys.modules["numpy"].array_equal(a, b, equal_nan=a.dtype.kind in "fmM"))


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")  # torch runs without it, too
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _is_opaque(value: Any) -> bool:
    """Whether identity or its own equality is all there is: no part of it can be written to, or none that can be seen."""
    if isinstance(value, _BY_IDENTITY):
        return True
    return not _has_equality(value) and not _has_fields(value)


def _goes_by_fields(value: Any) -> bool:
    """Whether its attributes say what it is: a dataclass, whose equality may leave some out, or an object without equality."""
    return _has_fields(value) and (is_dataclass(value) or not _has_equality(value))


def _has_equality(value: Any) -> bool:
    equality: Any = type(value).__eq__
    return equality is not object.__eq__


def _has_fields(value: Any) -> bool:
    return hasattr(value, "__dict__") or any("__slots__" in vars(cls) for cls in type(value).__mro__)


def _fields(value: Any) -> dict[str, Any]:
    names = [name for cls in type(value).__mro__ for name in _slots(cls)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)} | dict(getattr(value, "__dict__", {}))


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    mangled = (
        f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name for name in names
    )
    return tuple(name for name in mangled if name not in ("__dict__", "__weakref__"))
