"""Leave the user's model exactly as it was: capture runs its Python code, and code has side effects."""

from __future__ import annotations

import contextlib
import operator
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .undo import Undo


@contextlib.contextmanager
def pristine(model: nn.Module, given: Any = None) -> Iterator[None]:
    """Restore every attribute, buffer, hook and training flag of ``model``, and the random state, on the way out.

    Where the model runs for real, ``given`` is what it is run on: the tensors in it, and the weights, are restored as well.

    Attributes matter because many models cache tables on themselves: a cache filled while tracing holds fake
    tensors and would break the model's next real call. For the same reason ``functools`` caches of the model's own
    methods are emptied, also behind one more decorator.
    """
    before = [(module, *_snapshot(module)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None})
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    with torch.random.fork_rng(devices=devices):
        try:
            with contextlib.nullcontext() if given is None else Undo([*model.parameters(), *tensors]):
                yield
        finally:
            for module, attributes, contents in before:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for name, content in contents.items():
                    _refill(module.__dict__[name], content)
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for cls in {type(module) for module, _, _ in before}:
                _clear_method_caches(cls)


@contextlib.contextmanager
def foreign_draws() -> Iterator[list[str]]:
    """Put back the random states that are not torch's; the list that it gives names those that were drawn from."""
    numbers = getattr(sys.modules.get("numpy"), "random", None)  # a model that draws from it has loaded it
    python, of_numpy = random.getstate(), None if numbers is None else numbers.get_state(legacy=False)
    drawn: list[str] = []
    try:
        yield drawn
    finally:
        if random.getstate() != python:
            random.setstate(python)
            drawn.append("Python's random module")
        if numbers is not None and repr(numbers.get_state(legacy=False)) != repr(of_numpy):
            numbers.set_state(of_numpy)
            drawn.append("numpy's random numbers")


def _snapshot(module: nn.Module) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The attributes, and what the containers among them hold: registries, hooks, caches, lists of records."""
    attributes = dict(module.__dict__)
    contents = {
        name: _content(value) if value else [] for name, value in attributes.items() if isinstance(value, (dict, list, set))
    }
    return attributes, contents


def _content(container: dict[Any, Any] | list[Any] | set[Any]) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _refill(container: dict[Any, Any] | list[Any] | set[Any], content: list[Any]) -> None:
    """Give a container its old content, if it changed; compared by identity, because tensors have no truth value."""
    if not container and not content:  # most are, of thousands
        return
    now = _content(container)
    if len(now) == len(content) and all(_same(a, b) for a, b in zip(now, content, strict=True)):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(map(operator.is_, a, b)))


def _clear_method_caches(cls: type) -> None:
    for base in cls.__mro__:
        for attribute in vars(base).values():
            for function in (attribute, *_enclosed(attribute)):
                clear = getattr(function, "cache_clear", None)
                if callable(clear):
                    clear()


def _enclosed(function: object) -> Iterator[object]:
    """What a decorated function holds: a cache may be behind one that decides whether to use it."""
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents
