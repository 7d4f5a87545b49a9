"""What a model returns, taken apart: every value with its path, whatever containers it is in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(value: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Paths such as ``output.sample`` or ``output[0]['mask']``, and what is there, in order."""
    children = _children(value)
    if children is None:
        yield path, value
        return
    for step, child in children:
        yield from leaves(child, f"{path}{step}")


def tensors_in(value: Any) -> list[tuple[str, Tensor]]:
    """The tensors among the leaves."""
    return [(path, leaf) for path, leaf in leaves(value) if isinstance(leaf, Tensor)]


def structural_mismatch(a: Any, b: Any, path: str = "output") -> str | None:
    """Where two values are nested in another way, or None."""
    if type(a) is not type(b):
        return f"{path} is a {type(a).__name__} where a {type(b).__name__} is expected"
    mine, theirs = _children(a), _children(b)
    if mine is None or theirs is None:
        return None
    steps, expected = [step for step, _ in mine], [step for step, _ in theirs]
    if steps != expected:
        return f"{path} has {', '.join(steps) or 'nothing'} where {', '.join(expected) or 'nothing'} is expected"
    found = (structural_mismatch(x, y, f"{path}{step}") for (step, x), (_, y) in zip(mine, theirs, strict=True))
    return next((reason for reason in found if reason is not None), None)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """What a container holds by how one gets there; None for what is no container.

    Dataclasses come first: the outputs of diffusers and transformers are mappings as well, which leave out what is None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", child) for index, child in enumerate(value)]
    return None
