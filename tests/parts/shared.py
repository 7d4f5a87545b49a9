"""Sizes that all tests share, so that what operators make of them is known from earlier ones."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sparsify.passes import density, split
from sparsify.shapes import new_size

from .sketch import Sketch


@functools.cache
def kept_sizes(*hints: int, role: str = "block") -> tuple[Any, ...]:
    """A sketch of these sizes and the sizes, the same for all who ask.

    Blocks and the graph around them have sizes of their own, by their ``role``.
    """
    sketch = Sketch()
    return sketch, *sketch.sizes(*hints)


def share_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of a test: sizes that passes make are the same in all tests."""
    for module in (density, split):
        monkeypatch.setattr(module, "new_size", _shared_size)


@functools.cache
def _shared_size(env: ShapeEnv, name: str, hint: int) -> Any:
    return new_size(env, name, hint)
